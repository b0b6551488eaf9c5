"""What a rule would make of the honest rows and q copies of one vector, for many such vectors.

`ByRows` asks the rule each time. `ByDistances` reads the data once: a vector that is a combination
of points c (weights that sum to 1) has squared distances to all points that follow from the
points' own distances D,

    |x_p - sum of c_j x_j|^2 = (D c)_p - c'Dc / 2,

so that each trial costs O(n^2), and so does the distance between what the rule returns (again a
combination of points) and the honest mean.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from .. import primitives
from ..arrays import reference, table
from ..pipeline import Rule
from ..statistic import FAR
from .view import View

__all__ = ["ByDistances", "ByRows", "distances", "target"]

Array = NDArray[np.float64]


def target(attack: str, honest: Any, view: View | None) -> View:
    """Return the view after checking that its rule can be tried on these rows."""
    if view is None or view.rule is None:
        raise ValueError(
            f"{attack} needs to know the rule: pass view=View(q, rule=fastgar.rule(name, f))"
        )
    rule = view.rule
    if isinstance(rule, Rule):
        if rule.stages[-1].spec.kind == "mixing":
            raise ValueError(f"{attack}: {rule} gives a row per worker, so there is no deviation")
        if "reference" in rule.refs:
            raise ValueError(
                f"{attack}: {rule} compares with a trusted reference, which no adversary sees"
            )
        complaint = rule.check(len(honest) + view.q)
        if complaint is not None:
            raise ValueError(f"{attack}: {complaint}")
    return view


def distances(honest: Any, *extra: Any, refs: tuple[Any, ...] = ()) -> Array:
    """Return squared distances of the honest rows, of extra vectors and references: one pass."""
    T = table(honest)
    points: list[Any] = [reference(T, row, "the attack") for row in extra]
    points += [ref if isinstance(ref, str) else reference(T, ref, "start") for ref in refs]
    return primitives.sqdist(T, points)


class ByRows:
    """Trials by aggregating: for every rule.

    Parameters
    ----------
    honest : array, shape (h, d)
    mean : array, shape (d,)
        Of the honest rows.
    view : View
        That knows the rule.
    """

    def __init__(self, honest: Any, mean: Any, view: View) -> None:
        n = len(honest) + view.q
        rule = view.rule
        self.mean = mean
        self.step = getattr(rule, "step", 0)
        self.rule = rule.at(self.step) if hasattr(rule, "at") else rule
        self.places = view.places(n)
        self.keywords = {"start": view.start} if "start" in getattr(rule, "refs", ()) else {}
        others = iter(range(len(honest)))
        order = [0 if row in self.places else next(others) for row in range(n)]
        # A fastgar rule reads a list of rows where they are; other functions get one matrix.
        listed = isinstance(rule, Rule)
        self.everyone: Any = [honest[i] for i in order] if listed else honest[np.array(order)]

    def deviation(self, row: Any) -> float:
        """Return |F - mean|^2 if all attackers send `row`."""
        if isinstance(self.everyone, list) or not hasattr(self.everyone, "at"):
            for place in self.places:
                self.everyone[place] = row
        else:  # a jax array never changes
            self.everyone = self.everyone.at[np.array(self.places)].set(row)
        rule = self.rule
        if isinstance(rule, Rule):
            rule.step = self.step  # what the server will draw, each time
        elif hasattr(rule, "at"):
            rule = rule.at(self.step)
        off = rule(self.everyone, **self.keywords) - self.mean
        return float(off @ off)


class ByDistances:
    """Trials by algebra on distances: for distance rules, and mixing before them.

    Parameters
    ----------
    honest : array, shape (h, d)
    extra : tuple of arrays, shape (d,)
        Further points that the vectors in question are combinations of.
    view : View
        That knows the rule, a `fastgar.Rule`.
    """

    def __init__(self, honest: Any, extra: tuple[Any, ...], view: View) -> None:
        rule: Rule = view.rule
        self.rule = rule.at(rule.step)
        self.h = len(honest)
        n = self.h + view.q
        self.places = view.places(n)
        start = "origin" if view.start is None else view.start
        refs = tuple(start if name == "start" else name for name in rule.refs)
        self.D = distances(honest, *extra, refs=refs)
        self.finite = bool(np.isfinite(self.D).all())
        self.points = len(self.D)
        # Row i of the server's matrix, and then each reference, is this point.
        at = np.full(n, self.points)
        at[np.setdiff1d(np.arange(n), self.places)] = np.arange(self.h)
        self.at = np.concatenate([at, np.arange(self.points - len(refs), self.points)])

    @staticmethod
    def can(rule: Any) -> bool:
        """Whether a rule decides by distances between rows alone."""
        if not isinstance(rule, Rule):
            return False
        last = rule.stages[-1].spec
        return last.kind == "distance" and last.centre is None

    def _with(self, c: Array) -> Array:
        """Return the distances of all points and, last, of the combination c of them."""
        reach = self.D @ c
        full = np.zeros((self.points + 1, self.points + 1))
        full[:-1, :-1] = self.D
        full[-1, :-1] = full[:-1, -1] = np.maximum(reach - 0.5 * (c @ reach), 0.0)
        return full

    def _weights(self, full: Array, c: Array) -> Array | None:
        if not self.finite:
            return None
        D = full[np.ix_(self.at, self.at)]
        rescaled = self.rule.wants_inner(D)
        if rescaled is None:
            return self.rule.decide(D).weights
        inner = self._inner(c, *rescaled)
        return None if inner is None else self.rule.decide(D, inner).weights

    def _inner(self, c: Array, pivot: int, scale: Array) -> Array | None:
        """Return inner products about a row for a rule that needs them: the attackers are far off.

        What the rule would lose in the long distances to them is there in those of the points, as
        long as all points are near each other.
        """
        centre = self.at[pivot]
        if centre == self.points:
            return None
        central = self.D[centre]
        if central.max() > FAR**2 * float(np.median(central)):
            return None
        gram = 0.5 * (central + central[:, None] - self.D)
        towards = gram @ c
        full = np.block([[gram, towards[:, None]], [towards, c @ towards]])
        inner: Array = full[np.ix_(self.at, self.at)] * scale * scale[:, None]
        return inner

    def share(self, c: Array) -> float | None:
        """Return the weight of all attackers together, if they send the combination c of points.

        None: it takes a look at the rows to tell.
        """
        weights = self._weights(self._with(c), c)
        return None if weights is None else float(weights[self.places].sum())

    def deviation(self, c: Array) -> float | None:
        """Return |F - mean|^2 if all attackers send the combination c of points, or None."""
        full = self._with(c)
        weights = self._weights(full, c)
        if weights is None:
            return None
        v = np.zeros(len(full))
        np.add.at(v, self.at, weights)
        v[: self.h] -= 1.0 / self.h
        return max(0.0, -0.5 * float(v @ full @ v))
