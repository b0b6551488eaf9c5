"""Attacks by name, as the command line writes them: ``empire(k=10)``, ``optimal(empire)``."""

from __future__ import annotations

import ast
from collections.abc import Mapping
from typing import Any

from ..errors import LONGEST, nearest, shown
from . import registry
from .registry import Declared, lookup, refuse_to_search
from .view import View

__all__ = ["Attack", "attack", "list_attacks"]


class Attack:
    """A configured attack: call it with the honest rows and the number of attackers.

    Equal are attacks of the same name whose options have the same values. Make one with `attack`.

    Attributes
    ----------
    name : str
    options : dict
        The options that were named.
    """

    __slots__ = ("name", "options")

    def __init__(self, name: str, options: Mapping[str, Any] | None = None) -> None:
        self.name = name
        self.options = dict(options or {})
        declared = lookup(name)
        if declared.wraps and "inner" in self.options:
            self.options["inner"] = attack(self.options["inner"])
        declared.resolve(self.options)
        if declared.wraps:
            wrapped = attack(self.settings["inner"])
            refuse_to_search(lookup(wrapped.name), wrapped.options)

    @property
    def settings(self) -> dict[str, Any]:
        """Every option with its value."""
        values = lookup(self.name).resolve(self.options)
        if isinstance(values.get("inner"), str):
            values["inner"] = attack(values["inner"])
        return values

    @property
    def poisons(self) -> bool:
        """Whether attackers compute honestly, on other labels: those that `labels` returns."""
        return lookup(self.name).poisons

    def labels(self, labels: Any, classes: int) -> Any:
        """Return the labels that the attackers train on."""
        declared = lookup(self.name)
        if not declared.poisons:
            return labels
        return declared.formula(labels, classes, **declared.resolve(self.options))

    def __call__(self, honest: Any, q: int | None = None, *, view: View | None = None) -> Any:
        """Return the row that every attacker sends, or a row for each.

        Parameters
        ----------
        honest : array, shape (h, ...)
            The honest rows, of any array library. Never written.
        q : int, optional
            How many attackers there are; the view's number, or 1 without a view.
        view : View, optional
            What else the adversary sees.

        Returns
        -------
        array, shape (...) or (q, ...)
            In the library and dtype of the honest rows.

        Raises
        ------
        TypeError, ValueError
            If the rows are no floating numbers, there are none, or the attack misses something
            in the view.
        """
        declared = lookup(self.name)
        if declared.poisons:
            raise TypeError(
                f"{self.name} changes labels and sends no vector of its own: let the attackers "
                "compute on attack.labels(y, classes)"
            )
        return declared.send(honest, q, view, self.options)

    def __str__(self) -> str:
        named = [
            str(value) if option == "inner" else f"{option}={shown(value)}"
            for option, value in sorted(self.options.items(), key=lambda item: item[0] != "inner")
        ]
        return f"{self.name}({', '.join(named)})" if named else self.name

    def __repr__(self) -> str:
        return f"fastgar.attacks.attack({str(self)!r})"

    def _configuration(self) -> tuple[Any, ...]:
        return self.name, tuple(sorted(self.settings.items()))

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Attack):
            return NotImplemented
        return self._configuration() == other._configuration()

    def __hash__(self) -> int:
        return hash(self._configuration())

    def __reduce__(self) -> tuple[Any, ...]:
        return Attack, (self.name, self.options)


def attack(spec: str | Attack) -> Attack:
    """Return the attack that a string describes.

    Parameters
    ----------
    spec : str or Attack
        A name, with options as literals where needed: ``"empire(k=10)"``. An attack that is about
        another one takes that first, by name or with options: ``"optimal(empire)"``,
        ``"optimal(bulyan(coordinate='all'), evaluations=32)"``.

    Returns
    -------
    Attack

    Raises
    ------
    ValueError
        An unknown name or option, a value that cannot be right, or a string that is no attack.
    TypeError
        A value of the wrong type.

    Examples
    --------
    >>> import numpy as np
    >>> attack("empire(k=10)")(np.array([[1.0], [3.0]]))
    array([-18.])
    >>> attack("optimal('empire', evaluations=8)")
    fastgar.attacks.attack('optimal(empire, evaluations=8)')
    """
    if isinstance(spec, Attack):
        return spec
    if not isinstance(spec, str):
        raise TypeError(f"an attack is described by a string, got {type(spec).__name__}")
    if len(spec) > LONGEST:
        raise ValueError(f"an attack's string has at most {LONGEST} characters")
    try:
        tree = ast.parse(spec.strip(), mode="eval").body
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        raise _no_attack(spec) from None
    return _configured(tree, spec)


def list_attacks() -> list[str]:
    """Return the names of all attacks.

    Examples
    --------
    >>> list_attacks()[:3]
    ['little', 'empire', 'empire_strict']
    """
    return registry.names()


def _no_attack(spec: str) -> ValueError:
    close = None if "(" in spec else nearest(spec, registry.names())
    meant = "write name or name(option=value)" if close is None else f"did you mean {close!r}?"
    return ValueError(f"{shown(spec)} is no attack: {meant}")


def _configured(tree: ast.expr, spec: str) -> Attack:
    call = tree if isinstance(tree, ast.Call) else ast.Call(tree, [], [])
    if not isinstance(call.func, ast.Name) or any(k.arg is None for k in call.keywords):
        raise _no_attack(spec)
    declared = lookup(call.func.id)
    given = [(str(keyword.arg), keyword.value) for keyword in call.keywords]
    if call.args:
        if not declared.wraps or len(call.args) > 1:
            raise ValueError(f"{_no_attack(spec)}, naming the options of {declared.name}")
        given.insert(0, ("inner", call.args[0]))
    return Attack(declared.name, {name: _value(declared, name, tree, spec) for name, tree in given})


def _value(declared: Declared, option: str, tree: ast.expr, spec: str) -> Any:
    if option == "inner" and declared.wraps and not isinstance(tree, ast.Constant):
        return _configured(tree, spec)
    try:
        return ast.literal_eval(tree)
    except (ValueError, TypeError, SyntaxError, RecursionError, MemoryError):
        raise ValueError(
            f"{_no_attack(spec)}, where {declared.name}({option}=...) is a literal, such as 2 or "
            "'a'"
        ) from None
