"""What an omniscient adversary sees."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np

from ..errors import shown
from ..statistic import hash_key
from .rows import cast

__all__ = ["View", "f_of", "generator", "own_rows"]


@dataclass(frozen=True, eq=False, repr=False)
class View:
    """What the adversary sees at one step, beyond the rows that the honest workers send.

    It sees everything that exists at the moment when its q workers have to send: what honest
    workers computed, the state of the server, the rule with its options and its random draws.

    It does not see what comes later or stays elsewhere: the data and labels of honest workers,
    their next batches, the validation samples or the trusted gradient of a rule that has such an
    oracle, and the next steps' draws of the workers. And it changes nothing but its own q rows:
    honest rows, model and momentum are for reading, and a rule is evaluated on a copy, so that
    the server's count of steps (and thus its next draw) stays what it is.

    Attributes
    ----------
    q : int
        How many attackers there are.
    rule : Rule or callable, optional
        What the server aggregates with, as it is before this step's aggregation. Anything that
        makes one row of an (n, d) array will do, if possible with ``at(step)``, ``step`` and
        ``refs`` as a `fastgar.Rule` has them.
    step : int
        The number of the training step.
    own : (q, ...) array, optional
        What the attackers would send if they were honest.
    sampled : (h, ...) array, optional
        The honest gradients before momentum.
    momentum : (...) array, optional
        The server's momentum.
    model : (...) array, optional
        The parameters, before the step.
    previous : (...) array, optional
        The last aggregate.
    start : (...) array, optional
        What the rule is given as its ``start``.
    positions : tuple of int, optional
        In which rows of the server's matrix the attackers sit; None: in the last ones.
    seed : int
        Of the run: attacks that draw random numbers depend on it and on `step`, and on nothing
        else.
    """

    q: int
    rule: Any = None
    step: int = 0
    own: Any = None
    sampled: Any = None
    momentum: Any = None
    model: Any = None
    previous: Any = None
    start: Any = None
    positions: tuple[int, ...] | None = None
    seed: int = 0

    def __repr__(self) -> str:
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        named = (f"{name}={shown(value)}" for name, value in values.items() if value is not None)
        return f"View({', '.join(named)})"

    def __post_init__(self) -> None:
        if self.q < 1:
            raise ValueError(f"a view is that of at least one attacker, got q={shown(self.q)}")
        if isinstance(self.rule, str):
            raise TypeError(
                "a view's rule must be ready to be called: pass "
                f"fastgar.rule({shown(self.rule)}, f)"
            )
        if self.positions is not None:
            rows = set(self.positions)
            if len(rows) != self.q or len(self.positions) != self.q or min(rows) < 0:
                raise ValueError(
                    f"positions must name {self.q} different rows, got {shown(self.positions)}"
                )

    def places(self, n: int) -> list[int]:
        """Return the rows among n in which the attackers sit."""
        if self.positions is None:
            return list(range(n - self.q, n))
        if max(self.positions) >= n:
            raise ValueError(f"positions must be below n = {n}, got {shown(self.positions)}")
        return list(self.positions)

    def like(self, honest: Any) -> View:
        """Return this view with all arrays flat and in the dtype of `honest`, (h, d)."""
        h, d = honest.shape
        rows = {"own": (self.q, d), "sampled": (h, d)}
        seen = {}
        for field in fields(self):
            array = getattr(self, field.name)
            if field.name in ARRAYS and array is not None:
                shape = rows.get(field.name, (d,))
                if int(np.prod(array.shape)) != int(np.prod(shape)):
                    raise ValueError(
                        f"view.{field.name} must hold {' x '.join(map(str, shape))} numbers, "
                        f"got shape {tuple(array.shape)}"
                    )
                seen[field.name] = cast(array.reshape(shape), honest)
        return replace(self, **seen)


ARRAYS = ("own", "sampled", "momentum", "model", "previous", "start")


def generator(view: View | None, seed: int) -> np.random.Generator:
    """Return random numbers that depend on the run's seed, on `seed` and on the step alone."""
    run, step = (view.seed, view.step) if view is not None else (0, 0)
    return np.random.default_rng(hash_key(hash_key(run, seed), step))


def own_rows(view: View | None, honest: Any, q: int) -> Any:
    """Return what the attackers would send if honest; unknown: the honest rows, in turn."""
    if view is not None and view.own is not None:
        return view.own
    return honest[np.arange(q) % len(honest)]


def f_of(view: View | None, q: int) -> int:
    """Return the f that the server declared, or how many attackers there are if it is unknown."""
    f = getattr(view.rule, "f", None) if view is not None else None
    return q if f is None else int(f)
