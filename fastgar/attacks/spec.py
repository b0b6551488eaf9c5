"""Attacks by name, as the command line writes them: ``empire(k=10)``."""

from __future__ import annotations

import ast
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from ..errors import unknown
from ..rules.options import read_options
from .classic import empire, little, sign_flip

__all__ = ["Attack", "attack", "list_attacks"]

ATTACKS: dict[str, Callable[..., Any]] = {a.__name__: a for a in (little, empire, sign_flip)}


@dataclass(frozen=True)
class Attack:
    """A configured attack: call it with the honest rows and the number of attackers.

    Attributes
    ----------
    name : str
    options : mapping
        The options that were named.
    """

    name: str
    options: Mapping[str, Any]

    def __call__(self, honest: Any, q: int = 1) -> Any:
        """Return the vector that every attacker sends."""
        return ATTACKS[self.name](honest, q, **self.options)

    def __str__(self) -> str:
        named = ", ".join(f"{name}={value!r}" for name, value in self.options.items())
        return f"{self.name}({named})" if named else self.name


def attack(spec: str) -> Attack:
    """Return the attack that a string describes.

    Parameters
    ----------
    spec : str
        A name, with options as literals where needed: ``"empire(k=10)"``.

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
    """
    name, given = _parse(spec)
    if name not in ATTACKS:
        raise unknown("attack", name, ATTACKS)
    options = read_options(ATTACKS[name])
    for option in given:
        if option not in options:
            raise unknown(f"option of {name}", option, options)
    return Attack(name, {key: options[key].check(name, value) for key, value in given.items()})


def list_attacks() -> list[str]:
    """Return the names of all attacks.

    Examples
    --------
    >>> list_attacks()
    ['little', 'empire', 'sign_flip']
    """
    return list(ATTACKS)


def _parse(spec: str) -> tuple[str, dict[str, Any]]:
    error = ValueError(f"{spec!r} is no attack: write name or name(option=value)")
    try:
        tree = ast.parse(spec.strip(), mode="eval").body
        call = tree if isinstance(tree, ast.Call) else ast.Call(tree, [], [])
        if not isinstance(call.func, ast.Name) or call.args:
            raise error
        return call.func.id, {k.arg or "**": ast.literal_eval(k.value) for k in call.keywords}
    except (SyntaxError, ValueError, RecursionError):
        raise error from None
