"""Attacks by name, as the command line writes them: ``empire(k=10)``, ``optimal(empire)``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..calls import Call, Strings, form
from ..errors import nearest, shown
from . import registry
from .registry import lookup
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
            attack(self.settings["inner"]).require_a_free_factor(name)

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

    def require_a_free_factor(self, wrapper: str) -> None:
        """Raise an error unless an attack about this one can choose how far it goes."""
        declared = lookup(self.name)
        if declared.poisons or declared.wraps:
            raise ValueError(f"{wrapper}: {self.name} has no factor to search for")
        if declared.factor in self.options:
            raise ValueError(
                f"{wrapper} searches for {self.name}'s {declared.factor}: leave it out"
            )

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
    (call,) = STRINGS.read(spec)
    return _configured(call, spec)


def list_attacks() -> list[str]:
    """Return the names of all attacks.

    Examples
    --------
    >>> list_attacks()[:3]
    ['little', 'empire', 'empire_strict']
    """
    return registry.names()


def _meant(spec: str) -> str:
    close = None if "(" in spec else nearest(spec, registry.names())
    return form(spec) if close is None else f"did you mean {close!r}?"


STRINGS = Strings("attack", _meant, unnamed=1, inner="inner")


def _configured(call: Call, spec: str) -> Attack:
    declared = lookup(call.name)
    given = STRINGS.options(spec, call, "inner" if declared.wraps else None)
    if isinstance(given.get("inner"), Call):
        given["inner"] = _configured(given["inner"], spec)
    return Attack(declared.name, given)
