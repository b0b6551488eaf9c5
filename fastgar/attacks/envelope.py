"""Attacks that go as far as honest rows go: inside their diameter, or among their lengths."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from .registry import register
from .rows import length, moments, sign
from .trial import distances
from .view import View, f_of

__all__ = ["anti_cge", "min_max", "min_sum"]

Direction = Literal["unit", "sign", "std"]

INSIDE = 1 - 1e-6  # of the way to the boundary: what is sent is rounded to the rows' dtype
SHORTER = 1 - 1e-3  # than the row that CGE would drop instead: bfloat16 rounds by 0.4 %, at random


def _perturbation(honest: Any, direction: Direction) -> tuple[Any, Any]:
    """Return the honest mean, and the direction away from it."""
    if direction == "std":
        mean, deviation = moments(honest)
        return mean, -deviation
    mean = honest.mean(0)
    if direction == "sign":
        return mean, -sign(mean)
    size = length(mean)
    return mean, -mean / size if size > 0 else -mean


def _as_far_as(honest: Any, direction: Direction, reach: Any) -> Any:
    """Return the point at the share of the way that `reach` finds from squared distances.

    It is given D of the honest rows, the distances from each to the mean and to a point `ahead`,
    and the distance between the two; the distance to a point between them is a parabola.
    """
    mean, step = _perturbation(honest, direction)
    size = length(step)
    if not 0 < size < np.inf:
        return mean + 0 * step
    # As far ahead as rows are from the mean, so that distances keep their precision.
    spread = length(honest[0] - mean)
    step = step * (spread / size if 0 < spread < np.inf else 1.0)
    D = distances(honest, mean, mean + step)
    if not np.isfinite(D).all():
        return mean + 0 * step
    h = len(honest)
    share = reach(D[:h, :h], D[:h, h], D[:h, h + 1], float(D[h, h + 1]))
    return mean + INSIDE * share * step


def _within_diameter(
    D: NDArray[np.float64], near: NDArray[np.float64], far: NDArray[np.float64], apart: float
) -> float:
    # near_i + (far_i - near_i - apart) t + apart t^2 <= diameter^2 for all i; true at t = 0
    half = 0.5 * (far - near - apart)
    room = np.maximum(D.max() - near, 0.0)
    return float(((np.sqrt(half**2 + apart * room) - half) / apart).min())


def _within_sum(
    D: NDArray[np.float64], near: NDArray[np.float64], far: NDArray[np.float64], apart: float
) -> float:
    half = 0.5 * float((far - near - apart).sum())  # 0 but for rounding: near is from the mean
    room = max(0.0, float(D.sum(axis=1).max() - near.sum()))
    total = len(D) * apart
    return float((np.sqrt(half**2 + total * room) - half) / total)


@register()
def min_max(honest: Any, q: int, *, direction: Direction = "unit") -> Any:
    """Send the farthest point in a direction that is no farther from any honest row than they are.

    That is g + gamma * p with the largest gamma for which the distance to every honest row is at
    most the largest distance of two honest rows.

    Options
    -------
    direction : {"unit", "sign", "std"}
        p is minus the mean over its length, minus its sign, or minus the standard deviation.

    Returns
    -------
    array, shape (...)
        The mean itself where the direction is 0.

    Notes
    -----
    Shejwalkar and Houmansadr, "Manipulating the Byzantine: Optimizing Model Poisoning Attacks and
    Defenses for Federated Learning", NDSS 2021, section IV, the first attack that does not know
    the rule. The authors search for gamma by halving steps; here it is the root of a quadratic
    equation, from one pass over the rows.

    Examples
    --------
    >>> import numpy as np
    >>> min_max(np.array([[1.0], [3.0]])).round(3)
    array([1.])
    """
    return _as_far_as(honest, direction, _within_diameter)


@register()
def min_sum(honest: Any, q: int, *, direction: Direction = "unit") -> Any:
    """Send the farthest point in a direction with no larger sum of distances than an honest row.

    That is g + gamma * p with the largest gamma for which the sum of squared distances to the
    honest rows is at most the largest such sum of an honest row.

    Options
    -------
    direction : {"unit", "sign", "std"}
        p is minus the mean over its length, minus its sign, or minus the standard deviation.

    Returns
    -------
    array, shape (...)
        The mean itself where the direction is 0.

    Notes
    -----
    Shejwalkar and Houmansadr, "Manipulating the Byzantine: Optimizing Model Poisoning Attacks and
    Defenses for Federated Learning", NDSS 2021, section IV, the second attack that does not know
    the rule. The authors search for gamma by halving steps; here it is the root of a quadratic
    equation, from one pass over the rows.

    Examples
    --------
    >>> import numpy as np
    >>> min_sum(np.array([[1.0], [2.0], [9.0]])).round(3)
    array([-1.])
    """
    return _as_far_as(honest, direction, _within_sum)


@register()
def anti_cge(honest: Any, q: int, *, view: View | None = None) -> Any:
    """Send minus the sum of the shortest honest rows, short enough to be kept by `cge`.

    With h honest rows, CGE keeps all attackers if they are shorter than the f-th longest honest
    row; beside them it keeps the h-f shortest honest rows, which are those in the sum.

    View
    ----
    With the rule, for its f; without one, f is q.

    Notes
    -----
    From the code of "Distributed Momentum for Byzantine-resilient SGD", ICLR 2021, which counts
    the shortest row twice, stays below the limit by one rounding in double precision, and sends
    NaN where q is above f.

    Examples
    --------
    >>> import numpy as np
    >>> anti_cge(np.array([[1.0, 0.0], [0.0, 2.0], [0.0, 3.0]]), q=1).round(2)
    array([-1.34, -2.68])
    """
    lengths = np.array([length(row) for row in honest])
    order = np.argsort(lengths, kind="stable")  # NaN last
    h = len(lengths)
    kept = max(h - f_of(view, q), 0)
    total = honest[order[: max(kept, 1)]].sum(0)
    size = length(total)
    limit = SHORTER * float(lengths[order[min(kept, h - 1)]])  # if f = 0, CGE keeps all there is
    return -total * (limit / size) if size > 0 else -total
