"""The stages of a pipeline: what a string means, and what the mathematics of a rule may give."""

from __future__ import annotations

import operator
import re
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .calls import Strings
from .errors import nearest, shown
from .geometry import Decision, Geometry
from .options import GREATEST
from .registry import lookup, registered
from .spec import Guarantee, Spec
from .statistic import Statistic

__all__ = [
    "Stage", "as_decision", "as_mixing", "as_statistic", "argument_for", "names", "parse", "whole",
]  # fmt: skip

Array = NDArray[np.float64]


class Stage:
    """One rule of a pipeline with its options.

    Attributes
    ----------
    spec : Spec
        The rule's declaration.
    given : dict
        The options that were named.
    options : dict
        Every option with its value.
    """

    __slots__ = ("given", "options", "spec")

    def __init__(self, spec: Spec, given: Mapping[str, Any]) -> None:
        self.spec = spec
        self.given = dict(given)
        self.options = spec.resolve(given)

    @property
    def name(self) -> str:
        """The rule's name."""
        return self.spec.name

    @property
    def inner(self) -> bool:
        """Whether it forms inner products."""
        inner = self.spec.inner
        return inner(self.options) if callable(inner) else inner

    @property
    def guarantee(self) -> Guarantee:
        """What holds whatever f rows hold (see `Spec`)."""
        return self.spec.guaranteed(self.options)

    @property
    def trusts_a_row(self) -> bool:
        """Whether its guarantee hangs on a row of a certain number."""
        return self.guarantee == "trusted" and "reference" not in self.spec.references

    def rows_after(self, n: int) -> int:
        """Return how many rows the next stage sees."""
        return n if self.spec.rows_after is None else self.spec.rows_after(n, self.options)

    def run(self, first: Any, f: int, step: int) -> Any:
        """Call the mathematics."""
        keywords = {**self.options, "step": step} if self.spec.randomised else self.options
        arguments = (first, f) if self.spec.takes_f else (first,)
        return self.spec.mathematics(*arguments, **keywords)

    def __str__(self) -> str:
        named = ", ".join(f"{name}={shown(value)}" for name, value in self.given.items())
        return f"{self.name}({named})" if named else self.name

    def __reduce__(self) -> tuple[Any, ...]:
        return _stage, (self.name, self.given)


def _stage(name: str, given: Mapping[str, Any]) -> Stage:
    return Stage(lookup(name), given)


# --------------------------------------------------- what a rule's mathematics may take and give


def argument_for(stage: Stage, g: Geometry) -> Any:
    return g.D.copy() if stage.spec.sees == "D" else g


def as_statistic(stage: Stage, n: int, f: int, given: Any) -> Statistic:
    """Return what a column rule gave as a `Statistic`."""
    if isinstance(given, Statistic):
        return given
    closest = None
    if isinstance(given, tuple) and len(given) == 2 and np.ndim(given[1]) == 1:
        closest, given = whole(f"{stage.name}: the number of closest values", given[0]), given[1]
        if closest is None or not 1 <= closest <= n:
            raise ValueError(f"{stage.name}: from 1 to {n} values can be closest, got {closest}")
    weights = np.asarray(given, dtype=np.float64)
    if weights.shape != (n,):
        raise ValueError(f"{stage.name} must give {n} weights, got shape {weights.shape}")
    _finite(stage, weights)
    _sums_to_one(stage, weights)
    faults = 0 if stage.spec.f == "no" else f
    return Statistic(tuple(weights.tolist()), closest=closest, faults=faults)


def as_decision(stage: Stage, g: Geometry, given: Any) -> Decision:
    """Return what a distance rule gave as a `Decision` over the current points."""
    if isinstance(given, Decision):
        return given
    weights = np.asarray(given, dtype=np.float64)
    points = g.n + len(g.names)
    if weights.shape == (g.n,):
        weights = np.concatenate([weights, np.zeros(points - g.n)])
    if weights.shape != (points,):
        raise ValueError(f"{stage.name} must give {g.n} weights, got shape {np.shape(given)}")
    _finite(stage, weights)
    _sums_to_one(stage, weights)
    if weights[: g.n][g.faulty].any():
        raise ValueError(f"{stage.name} gave a weight to a faulty row, which must have weight 0")
    return Decision(weights)


def as_mixing(stage: Stage, g: Geometry, given: Any) -> Array:
    """Return what a mixing rule gave as a matrix over the current points."""
    W = np.asarray(given, dtype=np.float64)
    points = g.n + len(g.names)
    if W.ndim == 2 and W.shape[1] == g.n and points > g.n:
        W = np.concatenate([W, np.zeros((len(W), points - g.n))], axis=1)
    expected = stage.rows_after(g.n)
    if W.shape != (expected, points):
        raise ValueError(
            f"{stage.name} must give a ({expected}, {g.n}) matrix, got shape {np.shape(given)}"
        )
    return W


def _finite(stage: Stage, weights: Array) -> None:
    (odd,) = np.nonzero(~np.isfinite(weights))
    if len(odd):
        raise ValueError(
            f"{stage.name} must give finite weights, and gave {weights[odd[0]]} to row {odd[0]}"
        )


def _sums_to_one(stage: Stage, weights: Array) -> None:
    total = float(weights.sum())
    if abs(total - 1.0) > 1e-9:
        raise ValueError(f"the weights that {stage.name} gives must sum to 1, not {total:g}")


def whole(name: str, value: Any) -> int | None:
    """Return a non-negative integer, or None; anything else is an error that says so."""
    if value is None:
        return None
    if type(value).__name__ in ("bool", "bool_"):
        raise TypeError(f"{name} must be an integer, got {shown(value)}")
    try:
        whole = operator.index(value)
    except TypeError:
        raise TypeError(f"{name} must be an integer, got {shown(value)}") from None
    if whole < 0:
        raise ValueError(f"{name} must be at least 0, got {shown(whole)}")
    if whole > GREATEST:
        raise ValueError(f"{name} must be below 2^63, got {shown(whole)}")
    return whole


# ------------------------------------------------------------------------------------- the string


def _meant(spec: str) -> str:
    """Return what to write instead of a string such as "trimmed-mean" or "nnm, krum"."""
    known = {each.name: each.kind for each in registered()}
    words = [spec] if nearest(spec, known, 1.0) else re.findall(r"[^\W\d][\w-]*", spec)
    names = [name for name in (nearest(word, known) for word in words) if name is not None]
    mixing = all(known[name] == "mixing" for name in names[:-1])
    if "(" in spec or not names or len(names) < len(words) or not mixing:
        return "write name(option=value) | name"
    return f"did you mean {' | '.join(names)!r}?"


STRINGS = Strings("rule", _meant, several=True)


def parse(spec: str) -> tuple[Stage, ...]:
    """Return the stages that a string describes."""
    calls = STRINGS.read(spec)
    if any("f" in call.named for call in calls):
        raise STRINGS.refusal(spec, "f is not an option, pass it as rule(..., f=...)")
    return tuple(Stage(lookup(call.name), call.named) for call in calls)


def names(spec: str) -> tuple[str, ...]:
    """Return the names in a string, of rules or not.

    >>> names("nnm | zeno(b=2)")
    ('nnm', 'zeno')
    """
    return tuple(call.name for call in STRINGS.read(spec))
