"""Rules that move a point to the middle of the rows, step by step, in n x n space.

The point is a weighted average of the rows, so a step is a change of n weights, and the distances
from the point to the rows follow from the distances between rows.
"""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from ..geometry import Decision, Frame
from .options import Count, Positive
from .registry import distance_rule

if TYPE_CHECKING:
    from ..geometry import Geometry

__all__ = ["centered_clipping", "geometric_median", "rfa"]

Array = NDArray[np.float64]

STALLED = 8  # steps that gain nothing, after which there are no more


@distance_rule(
    needs="2f + 1",
    f="optional",
    robust=True,
    references=("start",),
    inner=lambda options: options["iters"] > 1,
    keeps_far=True,
    paper="Karimireddy, He and Jaggi, Learning from history for Byzantine-robust optimization, "
    "ICML 2021",
)
def centered_clipping(g: Geometry, *, tau: Positive, iters: Count = 1) -> Decision:
    """Move from a start towards the rows, none of which pulls by more than tau.

    v becomes v + the mean over the rows of (x - v) * min(1, tau/|x - v|). A faulty row adds 0 to a
    sum that is still divided by n.

    Options
    -------
    tau : float
        The greatest pull of a row, above 0.
    iters : int
        How many steps.

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
    robust=True,
    references=("origin",),
    inner=True,
    keeps_far=True,
    paper="Pillutla, Kakade and Harchaoui, Robust aggregation for federated learning, IEEE "
    "Transactions on Signal Processing, 2022, algorithm 2",
)
def rfa(g: Geometry, *, T: Count = 3, nu: Positive = 0.1) -> Decision:
    """Return the point after T smoothed Weiszfeld steps from the origin.

    A step is the average of the rows weighted by 1/max(nu, distance from the last point). Most
    code that is called a geometric median computes this.

    Options
    -------
    T : int
        How many steps.
    nu : float
        Distances below it count as nu; above 0.

    Examples
    --------
    >>> fg.rfa(np.array([[1.0], [2.0], [3.0], [90.0]]), T=8).round(3)
    array([2.169])
    """
    weights = np.zeros(g.n + len(g.names))
    weights[g.n + g.names.index("origin")] = 1.0
    for _ in range(T):
        distance = g.distance_to_point(weights)
        nearness = 1.0 / np.maximum(distance, nu)
        weights[:] = 0.0
        weights[: g.n] = nearness / nearness.sum()
    return Decision(weights, scores=distance)


@distance_rule(
    needs="2f + 1",
    f="optional",
    robust=True,
    inner=True,
    keeps_far=True,
    paper="Chen, Su and Xu, Distributed statistical machine learning in adversarial settings, 2017;"
    " Vardi and Zhang, PNAS 2000, for the optimality of a row",
    kappa=lambda n, f: 4 * (1 + f / (n - 2 * f)) ** 2,
)
def geometric_median(g: Geometry, *, tol: Positive = 1e-9, max_iter: Count = 200) -> Decision:
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
    rows = g.sound()
    gram, length = g.frame
    weights = np.zeros(g.n + len(g.names))
    if len(rows) == len(gram):
        frame = Frame(gram, length)
    else:
        frame = Frame(gram[np.ix_(rows, rows)], length[rows])
    weights[rows], gap = _least_sum_of_distances(frame, tol, max_iter)
    if gap > tol:
        warnings.warn(
            f"geometric_median stopped after {max_iter} steps: the unit vectors to the rows add up "
            f"to {gap:.1e} n, which is above tol={tol:.1e}",
            RuntimeWarning,
            stacklevel=2,
        )
    return Decision(weights)


class _Point:
    """A weighted average of the rows, and what Newton's method wants to know about it there.

    A row is p + length_i u_i (see geometry.py). With z = sum of at_i u_i the point itself, its
    distance to row i is length_i * nearness_i.
    """

    __slots__ = ("at", "from_row", "nearness", "objective", "own", "towards", "weights")

    def __init__(self, weights: Array, frame: Frame, central: Array) -> None:
        gram, length = frame
        self.weights = weights
        self.at = weights * length
        self.towards = gram @ self.at
        self.own = float(self.at @ self.towards)
        change = self.own / length - 2 * self.towards
        diagonal = gram.diagonal()
        self.nearness = np.sqrt(np.maximum(diagonal + change / length, 0.0))
        # Sum of distances, less that from p: a long row does not drown the others in it.
        both = np.maximum(self.nearness + central, np.finfo(float).tiny)
        self.objective = float((change / both).sum())


def _least_sum_of_distances(frame: Frame, tol: float, max_iter: int) -> tuple[Array, float]:
    """Return the weights of the geometric median, and how far from optimal it is (0 to 1)."""
    gram, length = frame
    n = len(gram)
    central = np.sqrt(gram.diagonal())
    slack = 1e-14 * float(central.sum())
    best, held_by = _best_row(frame, central)
    weights = np.zeros(n)
    weights[best] = 1.0
    point = _Point(weights, frame, central)
    elsewhere = np.ones(n, bool)
    elsewhere[held_by] = False
    inverse = np.zeros(n)
    np.divide(1.0, point.nearness, out=inverse, where=elsewhere)
    pull = np.sqrt(max(0.0, float(inverse @ _gram_at(point, frame) @ inverse)))
    if pull <= len(held_by) + tol * n:
        return weights, 0.0
    # Vardi and Zhang's step off a row: Weiszfeld's, shortened by what the row holds back.
    step = _weiszfeld(inverse, length) - weights
    point = _Point(weights + (1 - len(held_by) / pull) * step, frame, central)
    gap, stalled, least = 1.0, 0, np.inf
    for _ in range(max_iter):
        inverse = 1.0 / np.maximum(point.nearness, 1e-90)  # its cube is finite
        total = float((inverse / length).sum())
        step = _weiszfeld(inverse, length) - point.weights
        at = step * length
        gap = total * np.sqrt(max(0.0, float(at @ gram @ at))) / n
        if gap <= tol:
            break
        ahead = point
        newton = _newton(point, frame, inverse, total)
        for share in (1.0, 0.25, 0.0625):
            if newton is not None:
                ahead = _Point(point.weights + share * newton, frame, central)
                if ahead.objective <= point.objective + slack:
                    break
        else:
            ahead = _Point(point.weights + step, frame, central)
        point = ahead
        # Distances have the precision of the data: below that, there is nothing left to gain.
        stalled = stalled + 1 if point.objective > least - 1e4 * slack else 0
        least = min(least, point.objective)
        if stalled == STALLED:
            return point.weights, 0.0
    return point.weights, gap


def _best_row(frame: Frame, central: Array) -> tuple[int, NDArray[np.intp]]:
    """Return the row with the least sum of distances, and the rows that are copies of it."""
    gram, length = frame
    length = np.minimum(length, 1e100)  # so that no square overflows
    diagonal = gram.diagonal()
    change = (diagonal * length**2)[:, None] / length - 2 * length[:, None] * gram
    nearness = np.sqrt(np.maximum(diagonal + change / length, 0.0))
    both = np.maximum(nearness + central, np.finfo(float).tiny)
    best = int((change / both).sum(axis=1).argmin())
    near = diagonal + change[best] / length
    return best, np.flatnonzero(near <= 1e-14 * (diagonal + diagonal[best] / length**2))


def _weiszfeld(inverse: Array, length: Array) -> Array:
    share = inverse / length
    weights: Array = share / share.sum()
    return weights


def _gram_at(point: _Point, frame: Frame) -> Array:
    """Return the inner products of (z - x_i) / length_i."""
    gram, length = frame
    across = point.towards[:, None] / length
    at: Array = gram - across - across.T + point.own / length / length[:, None]
    return at


def _newton(point: _Point, frame: Frame, inverse: Array, total: float) -> Array | None:
    """Return Newton's step as a change of weights.

    The Hessian is total * 1 - sum of (z - x_i)(z - x_i)' / distance_i^3; a step that combines the
    z - x_i solves an n x n system (Woodbury).
    """
    length = frame.length
    system = _gram_at(point, frame)
    system *= (-(inverse**3) / length)[:, None]
    system.ravel()[:: len(system) + 1] += total
    try:
        y = np.linalg.solve(system, inverse)
    except np.linalg.LinAlgError:
        return None
    share = y / length
    step: Array = share - share.sum() * point.weights
    return step if np.isfinite(step).all() else None
