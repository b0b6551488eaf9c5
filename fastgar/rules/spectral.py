"""Rules that look for the direction in which the rows spread the most, in n x n space.

The covariance of the rows has the same eigenvalues as the n x n matrix of inner products of the
centred rows, and the projections of the rows on its top eigenvector follow from that matrix.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import numpy as np
from numpy.typing import NDArray

from ..geometry import Decision
from ..options import Count
from ..search import WORK_LIMIT
from . import proofs
from .decorators import distance_rule

if TYPE_CHECKING:
    from ..geometry import Geometry
    from ..search.eigen import Spread
    from ..search.subsets import Limit

__all__ = ["caf", "dnc"]

Array = NDArray[np.float64]

SAME = 1.0 - 1e-9  # a share of the largest that is it but for rounding
ACCURACY = 1e-12  # of a direction whose projections are taken as they are


@distance_rule(
    needs="2f + 1",
    guarantee="(f, kappa)",
    inner=True,
    keeps_far=True,
    paper="Allouah, Guerraoui and Stephan, Towards trustworthy federated learning with untrusted "
    "participants, ICML 2025",
)
def caf(g: Geometry, f: int, *, work_limit: Count = WORK_LIMIT) -> Decision:
    """Return a weighted mean whose covariance has been made small in every direction.

    Weights c start at 1. While they add up to more than n-2f: take the weighted mean and the top
    eigenvector of the weighted covariance, and multiply each c_i by 1 - tau_i / (the largest tau),
    where tau_i is the squared projection of row i on it. The mean with the least top eigenvalue
    wins. Each round ends one row's weight, so there are at most n. The eigenvector is found to
    rounding, or, where many eigenvalues are within 1 part in 1000 of the largest, to that.

    Options
    -------
    work_limit : int
        How many operations it may take, of about a nanosecond each, before it raises
        `fastgar.SearchLimit`, with the best weights so far: they need not be robust. They are
        counted, so where it stops does not depend on how quick the machine is. From some 400 rows
        on, of which nearly half may lie, the default is not enough even for honest ones, and from
        there on who lies can reach it with fewer. "nnm | trimmed_mean" has no limit.

    Examples
    --------
    >>> fg.caf(np.array([[1.0], [2.0], [3.0], [90.0]]), f=1).round(3)
    array([2.008])
    """
    from ..search.eigen import Spread
    from ..search.subsets import Limit

    limit = Limit("caf", g.n, g.n - f, work_limit)
    sound = g.sound()
    K = g.gram[np.ix_(sound, sound)]
    for certain in (False, True):
        limit.value = np.inf
        c, chosen, value = _faded(K, g.n, f, limit, sound, certain)
        spread = Spread(K, limit)
        spread.weigh(chosen)
        if certain or spread.proves(value):
            break
    weights, scores = np.zeros(g.n + len(g.names)), np.ones(g.n)
    weights[sound], scores[sound] = chosen / chosen.sum(), 1.0 - c
    return Decision(weights, scores=scores)


def _faded(
    K: Array, n: int, f: int, limit: Limit, sound: NDArray[np.intp], certain: bool
) -> tuple[Array, Array, float]:
    """Return the last weights, those of the least covariance, and the top eigenvalue of its sum."""
    from ..search.eigen import ROUNDING, Spread, error

    def exact(values: Array, vectors: Array, lengths: Array) -> int | None:
        found = lengths[0] <= ROUNDING * values[0] or error(values, lengths) <= ACCURACY
        return None if found else 0

    spread, c = Spread(K, limit), np.ones(len(K))
    least, chosen = np.inf, c.copy()
    while True:
        rows = spread.rows
        values, vectors = spread.main(exact, certain)
        total = c[rows].sum()
        if values[0] / total < least:
            least, chosen = values[0] / total, c.copy()
            weights = np.zeros(n)
            weights[sound] = c / total
            limit.found(weights, least)
        projection = np.abs(spread.projections(vectors[0]))
        largest = projection.max()
        if f == 0 or not largest > 0:
            break
        share_of_largest = (projection / largest) ** 2
        # Copies of the farthest row end with it, though the eigenvector differs in its last bits.
        share_of_largest[share_of_largest > 1.0 - 1e-12] = 1.0
        c[rows] *= 1.0 - share_of_largest
        if c.sum() <= n - 2 * f + 1e-9 * n:
            break
        spread.weigh(c[rows])
    return c, chosen, least * chosen.sum()


@distance_rule(
    needs="2f + 1",
    guarantee=lambda options: "none" if options["removal"] == "at once" else "(f, kappa)",
    inner=True,
    keeps_far=True,
    kappa=proofs.dnc,
    variants={"paper": {"removal": "at once"}},
    paper="Shejwalkar and Houmansadr, Manipulating the Byzantine, NDSS 2021 (divide and conquer; "
    "here over all coordinates)",
)
def dnc(
    g: Geometry,
    f: int,
    *,
    removal: Literal["one by one", "at once"] = "one by one",
    work_limit: Count = WORK_LIMIT,
) -> Decision:
    """Return the mean without the f rows that stand out most along the main direction of spread.

    That is the top singular vector of the centred rows; the row with the longest projection on it
    leaves (of several, the last), and the mean and the direction of those that are left are next.

    Options
    -------
    removal : {"one by one", "at once"}
        "at once" is the paper's: the f rows with the longest projections on one direction leave. A
        row far off along another direction, or nearer than one that draws the mean away, stays.
    work_limit : int
        How many operations it may take, of about a nanosecond each, before it raises
        `fastgar.SearchLimit`: what is left while fewer than f rows have gone is not robust. They
        are counted, so where it stops does not depend on how quick the machine is. From some 500
        rows on, of which nearly half may lie, the default is not enough even for honest ones, and
        from there on who lies can reach it with fewer. "nnm | trimmed_mean" has no limit.

    Examples
    --------
    >>> fg.dnc(np.array([[1.0], [2.0], [3.0], [90.0]]), f=1)
    array([2.])
    """
    from ..search.eigen import Spread
    from ..search.subsets import Limit

    sound = g.sound()
    spread = Spread(g.gram[np.ix_(sound, sound)], Limit("dnc", g.n, g.n - f, work_limit))
    scores = np.full(g.n, np.inf)
    one = removal == "one by one"
    while True:
        scores[sound[spread.rows]] = along = _standing_out(spread, one)
        if not one:
            return g.mean_of(g.order(scores)[: g.n - f], scores)
        if len(spread.rows) <= g.n - f:
            return g.mean_of(np.sort(sound[spread.rows]), scores)
        (farthest,) = np.nonzero(along >= along.max() * SAME)
        spread.drop(farthest[spread.rows[farthest].argmax()])


def _standing_out(spread: Spread, one: bool) -> Array:
    """Return how far each row lies from the mean along the main direction of spread.

    Directions with the same spread, but for rounding, all count: any of them might be found. Where
    only the farthest row matters, they need be no better known than to tell which `one` that is.
    """
    from ..search.eigen import FRESH, ROUNDING, error

    def clear(values: Array, vectors: Array, lengths: Array) -> int | None:
        if one:
            along = np.abs(vectors[0])
            (farthest,) = np.nonzero(along >= along.max() - 2 * error(values, lengths))
            if len(farthest) == 1 or spread.same(farthest):
                return None
        for k, length in enumerate(lengths):
            if k and values[k] + length < values[0] * SAME:
                return None
            if length > ROUNDING * values[0]:
                return k
        return None

    values, vectors = spread.main(clear)
    if not values[0] > 0:
        return np.zeros(len(spread.rows))
    main = vectors[: FRESH if len(spread.rows) > len(vectors) else None]
    main = main[values[: len(main)] >= values[0] * SAME]
    along: Array = np.linalg.norm(main, axis=0) * np.sqrt(values[0])
    return along
