"""Rules that move a point to the middle of the rows, step by step, in n x n space.

The point is a weighted average of the rows, so a step is a change of n weights, and the distances
from the point to the rows follow from the distances between rows.
"""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any

import numpy as np

from ..geometry import Decision
from ..options import Count, Positive, Steps
from ..statistic import CenteredClipping, GeometricMedian
from . import proofs
from .decorators import distance_rule

if TYPE_CHECKING:
    from ..geometry import Geometry

__all__ = ["centered_clipping", "geometric_median", "rfa"]

TINY = 2.0**-1022


def _clipping_selection(n: int, f: int, options: Any) -> CenteredClipping | None:
    if options["iters"] > 1:
        return None
    return CenteredClipping(f=f, tau=float(options["tau"]))


def _median_selection(n: int, f: int, options: Any) -> GeometricMedian:
    tol, max_iter = float(options["tol"]), options["max_iter"]
    return GeometricMedian(f=f, tol=tol, max_iter=max_iter)


@distance_rule(
    needs="2f + 1",
    f="optional",
    guarantee="bounded",
    references=("start",),
    selection=_clipping_selection,
    inner=lambda options: options["iters"] > 1,
    keeps_far=True,
    paper="Karimireddy, He and Jaggi, Learning from history for Byzantine-robust optimization, "
    "ICML 2021",
)
def centered_clipping(g: Geometry, *, tau: Positive, iters: Steps = 1) -> Decision:
    """Move from a start towards the rows, none of which pulls by more than tau.

    v becomes v + the mean over the rows of (x - v) * min(1, tau/|x - v|). A faulty row adds 0 to a
    sum that is still divided by n.

    However many rows lie, the result is within iters * tau of the start. How near the honest mean
    that is depends on tau and the start: Karimireddy et al. prove a bound for f of up to n/10 rows.

    Options
    -------
    tau : float
        The greatest pull of a row, above 0.
    iters : int
        How many steps, at most 1000.

    Examples
    --------
    >>> fg.centered_clipping(np.array([[1.0], [2.0], [3.0], [90.0]]), tau=2.0)
    array([1.75])
    """
    weights = np.zeros(g.n + len(g.names))
    weights[g.n + g.names.index("start")] = 1.0
    for _ in range(iters):
        distance = g.distance_to_point(weights)
        pull = np.ones(g.n)
        np.divide(tau, distance, out=pull, where=distance > tau)
        pull /= g.n
        weights *= 1.0 - pull.sum()
        weights[: g.n] += pull
    return Decision(weights, scores=distance)


@distance_rule(
    needs="2f + 1",
    f="optional",
    guarantee="bounded",
    references=("origin",),
    inner=True,
    keeps_far=True,
    variants={"byzfl": {"relative": False}, "authors": {"nu": 1e-5, "relative": False}},
    paper="Pillutla, Kakade and Harchaoui, Robust aggregation for federated learning, IEEE "
    "Transactions on Signal Processing, 2022, algorithm 2",
)
def rfa(g: Geometry, *, T: Steps = 3, nu: Positive = 0.1, relative: bool = True) -> Decision:
    """Return the point after T smoothed Weiszfeld steps from the origin.

    A step is the average of the rows weighted by 1/max(nu, distance from the last point). Most
    code that is called a geometric median computes this. The authors' code starts from the mean,
    which one long row takes along, and T steps back leave a share of its length; from the origin
    what is left is a share of the honest rows' own length. Only `geometric_median`, to convergence,
    is within their spread.

    Options
    -------
    T : int
        How many steps, at most 1000.
    nu : float
        Distances below it count as nu; above 0.
    relative : bool
        Whether nu is a share of the median distance of the rows from the last point, instead of a
        length: rows that are all shorter than such a length are averaged.

    Examples
    --------
    >>> fg.rfa(np.array([[1.0], [2.0], [3.0], [90.0]]), T=8).round(3)
    array([2.169])
    """
    weights = np.zeros(g.n + len(g.names))
    weights[g.n + g.names.index("origin")] = 1.0
    for _ in range(T):
        distance = g.distance_to_point(weights)
        # The lower median: with f faulty rows, which are infinitely far, it is finite.
        unit = float(np.partition(distance, (g.n - 1) // 2)[(g.n - 1) // 2]) if relative else 1.0
        distance = np.maximum(distance, max(nu * unit, TINY))
        nearness = distance.min() / distance  # and not its inverse, which may overflow
        weights[:] = 0.0
        weights[: g.n] = nearness / nearness.sum()
    return Decision(weights, scores=distance)


@distance_rule(
    needs="2f + 1",
    f="optional",
    guarantee="(f, kappa)",
    selection=_median_selection,
    inner=True,
    keeps_far=True,
    paper="Chen, Su and Xu, Distributed statistical machine learning in adversarial settings, 2017;"
    " Vardi and Zhang, PNAS 2000, for the optimality of a row",
    kappa=proofs.geometric_median,
)
def geometric_median(
    g: Geometry, *, tol: Positive = 1e-9, max_iter: Count = proofs.ENOUGH
) -> Decision:
    """Return the point with the least sum of distances to the rows.

    To convergence: the unit vectors from the point to the rows add up to at most tol * n, or the
    point is a row and those to the other rows add up to at most the number of its copies; or the
    sum of distances no longer shrinks. Newton's method does that in a few steps, Weiszfeld's where
    Newton's would not go down. Where it is not unique (rows on a line, an even number of them), a
    middle row is returned.

    Options
    -------
    tol : float
        When to stop, above 0.
    max_iter : int
        After how many steps to stop at the latest, with a RuntimeWarning.

    Examples
    --------
    >>> fg.geometric_median(np.array([[0.0, 0.0], [2.0, 0.0], [0.0, 2.0], [2.0, 2.0], [1.0, 1.0]]))
    array([1., 1.])
    """
    from ..search.geometric import least_sum_of_distances

    rows = g.sound()
    gram, length = g.frame
    weights = np.zeros(g.n + len(g.names))
    if len(rows) < len(gram):
        gram, length = gram[np.ix_(rows, rows)], length[rows]
    weights[rows], gap = least_sum_of_distances(gram, length, tol, max_iter)
    if gap > tol:
        warnings.warn(
            f"geometric_median stopped after {max_iter} steps: the unit vectors to the rows add up "
            f"to {gap:.1e} n, which is above tol={tol:.1e}",
            RuntimeWarning,
            stacklevel=2,
        )
    return Decision(weights)
