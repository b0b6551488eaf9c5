"""What a rule decides, from distances between rows: no data is read but to measure them."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from . import primitives
from .arrays import Table
from .composition import Composition
from .errors import TooManyFaults, shown
from .geometry import Decision, Geometry, rescaling
from .primitives import Refs
from .stages import argument_for, as_decision, as_mixing
from .statistic import tolerated

__all__ = ["Deciding", "DistanceOn", "on_all"]

Array = NDArray[np.float64]
DistanceOn = Literal["all"] | Callable[[str], bool]


class Deciding(Composition):
    """Stages that decide with what weights rows count, and which statistic is taken of them.

    Distances may be measured range by range of columns, in one process or in several.
    """

    def measure(self, T: Table, refs: Refs = (), start: Array | None = None) -> Array | None:
        """Return what the decision needs of a range of columns; the ranges' results add up.

        That is the squared distances between all points; None for a column rule. For a rule that
        looks at the distances to a statistic of the columns, that statistic is the last point.

        Parameters
        ----------
        T : Table
            The range of columns, in which row i is a part of row i.
        refs : tuple
            From `references`, for the same range.
        start : array, optional
            The result for the columns before these: adding up in order gives the bits of the whole.
        """
        if self._columns_only:
            return None
        if self._centre is None:
            return primitives.sqdist(T, refs, start=start)
        centre = self._centre(T.n, tolerated(self.f, T.n), self._last.options)
        return primitives.sqdist_to(T, centre, start)

    def wants_inner(self, D: Array | None) -> tuple[int, Array] | None:
        """Return the pivot and scales of a third read (`primitives.inner`), or None.

        It is needed when some row is far longer than the others and the algebra on D that the
        rule does would lose the others beside it.
        """
        if D is None or not (self._inner or self._overflow) or self._centre is not None:
            return None
        if not self._inner and np.isfinite(D).all():
            return None
        n = D.shape[0] - len(self._names)
        if self._too_many(D.diagonal()[:n]):
            return None  # which `decide` will say
        if not self._inner:
            sound = D.diagonal() == 0
            if np.isfinite(D[np.ix_(sound, sound)]).all():
                return None
        return rescaling(D, n)

    def decide(
        self, D: Array | None = None, inner: Array | None = None, *, n: int | None = None
    ) -> Decision:
        """Return the decision that follows from the distances: no data is read.

        Parameters
        ----------
        D : (points, points) array
            What `measure` gave for all columns; not needed for a column rule alone.
        inner : (points, points) array, optional
            What `primitives.inner` gave for all columns, if `wants_inner` asked for it.
        n : int, optional
            The number of rows, where there is no D.

        Returns
        -------
        Decision
            Over the n rows and then `refs`.

        Raises
        ------
        TooManyFaults
            More than f rows are faulty.
        ValueError
            A start or reference is not finite.
        """
        if D is None:
            if not self._columns_only or n is None:
                raise ValueError(f"{self} needs the distances (a column rule alone needs n)")
            return Decision(statistic=self._plan(n).statistic or self._draw(n))
        rescale = None if inner is None else rescaling(D, D.shape[0] - len(self._names))
        read = None if inner is None or rescale is None else (inner, rescale[1])
        g = Geometry(D, self._names, read)
        self.require(g.n)
        faulty, between = g.faulty, D[: g.n, : g.n]
        if g.any_faulty and self._too_many(faulty):
            raise TooManyFaults(np.flatnonzero(faulty).tolist(), tolerated(self.f, g.n))
        if self._names:
            for name, infinite in zip(self._names, D.diagonal()[g.n :], strict=True):
                if infinite != 0 and name != "median":
                    raise ValueError(f"{name} holds NaN or infinity")
        for stage in self._mixing:
            W = stage.run(argument_for(stage, g), tolerated(self.f, g.n), self.step)
            g = g.mix(as_mixing(stage, g, W))
        last = self._last
        if last.spec.kind == "mixing":
            decision = Decision(mix=g.rows_over_original())
        elif last.spec.kind == "column":
            statistic = self._plan(len(faulty)).statistic or self._draw(g.n)
            decision = Decision(mix=g.rows_over_original(), statistic=statistic)
        else:
            given = last.run(argument_for(last, g), tolerated(self.f, g.n), self.step)
            decision = _over_original(g, as_decision(last, g, given))
        if self._centre is not None and decision.weights is not None:
            decision.weights = decision.weights[: g.n]  # the median is no point to be read
        decision.faulty, decision.distances = faulty, between
        return decision

    def _too_many(self, faulty: NDArray[Any]) -> bool:
        return int(np.count_nonzero(faulty)) > tolerated(self.f, len(faulty))

    def conclude(
        self,
        D: Array,
        parts: Iterable[tuple[Table, Refs]],
        total: Callable[[Array], Array] = lambda partial: partial,
    ) -> Decision:
        """Return the decision that follows from the distances, with another read where needed.

        Parameters
        ----------
        D : (points, points) array
            What `measure` gave for all columns.
        parts : iterable of (Table, references)
            All ranges of columns that are here, to read once more if some row is very long.
        total : callable, optional
            Adds to what these ranges gave what other ranges did.

        Raises
        ------
        TooManyFaults, ValueError
            As for `decide`.
        """
        rescale, inner = self.wants_inner(D), None
        if rescale is not None:
            for T, refs in parts:
                inner = primitives.inner(T, refs, *rescale, start=inner)
            assert inner is not None
            inner = total(inner)
        return self.decide(D, inner)

    def _decide_on(
        self, T: Table, refs: Refs, distance_on: DistanceOn = "all", D: Array | None = None
    ) -> Decision:
        """Return the decision for these rows; `D`: the distances, where they are known."""
        if self._columns_only:
            return self.decide(n=T.n)
        if on_all(distance_on):
            part, near = T, refs
        else:
            assert callable(distance_on)
            part = T.select(distance_on)
            near = tuple(p if isinstance(p, str) else p.select(distance_on) for p in refs)
        if D is None:
            D = self.measure(part, near)
        assert D is not None
        partial = part is not T and part.columns < T.columns
        if partial:
            _add_faults(D, T, refs, part.paths)
        decision = self.conclude(D, [(part, near)])
        if partial:
            decision.distances = None
        return decision


def _add_faults(D: Array, T: Table, refs: Refs, seen: tuple[str, ...]) -> None:
    """Mark rows that are faulty in leaves that do not enter distances."""
    rest = T.select(lambda path: path not in seen)
    others = tuple(
        p if isinstance(p, str) else p.select(lambda path: path not in seen) for p in refs
    )
    faulty = np.flatnonzero(primitives.sqdist(rest, others).diagonal())
    faulty = faulty[faulty < len(D)]
    D[faulty] = D[:, faulty] = np.inf


def on_all(distance_on: DistanceOn) -> bool:
    """Return whether distances are those of all leaves."""
    if isinstance(distance_on, str) and distance_on == "all":
        return True
    if callable(distance_on):
        return False
    raise TypeError(
        f"distance_on must be 'all' or a function of a leaf's path, got {shown(distance_on)}"
    )


def _over_original(g: Geometry, decision: Decision) -> Decision:
    """Return a decision over current points as one over the original points."""
    if not g.is_mixed:
        return decision
    if decision.weights is not None:
        return Decision(g.over_original(decision.weights), scores=decision.scores)
    assert decision.mix is not None
    return Decision(
        mix=g.over_original(decision.mix), statistic=decision.statistic, scores=decision.scores
    )
