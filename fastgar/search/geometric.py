"""The geometric median in n x n space: the weights of the point with the least sum of distances.

Rows are p + u_i / unit_i with p the most central row, and `gram` holds the products of the u_i (see
``fastgar/geometry.py``). With z = sum of weights_i x_i the point, p + sum of at_i u_i, its distance
to row i is near_i / unit_i. A point is three lines of numbers: its weights, gram @ at, and near.
"""

from __future__ import annotations

from math import inf, sqrt
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastgar.cpu.compile import Tiered, step

__all__ = ["FOUND", "LINES", "descend", "least_sum_of_distances"]

LINES, FOUND = 10, 7
STALLED = 8  # steps that gain nothing, after which there are no more
TINY = 2.0**-1022
CLOSEST = 1e-90  # a row at no distance counts as at this one, whose inverse cubed is finite

Matrix = NDArray[np.float64]


@step
def _length(gram: Any, unit: Any, point: Any) -> float:
    """Complete a point, of which the weights are known, but for `near`; return |z - p|^2."""
    weights, towards = point[0], point[1]
    n = len(unit)
    for i in range(n):
        towards[i] = 0.0
    for j in range(n):
        at = weights[j] / unit[j]
        if at != 0.0:
            for i in range(n):
                towards[i] += gram[j, i] * at
    own = 0.0
    for i in range(n):
        own += weights[i] / unit[i] * towards[i]
    return own


@step
def _look(gram: Any, unit: Any, central: Any, point: Any) -> tuple[float, float]:
    """Complete a point of which the weights are known.

    Returns |z - p|^2, and the sum of distances less that from p: a long row does not drown the
    others in it.
    """
    towards, near = point[1], point[2]
    own, objective = _length(gram, unit, point), 0.0
    for i in range(len(unit)):
        change = own * unit[i] - 2.0 * towards[i]
        near[i] = sqrt(max(gram[i, i] + change * unit[i], 0.0))
        objective += change / max(near[i] + central[i], TINY)
    return own, objective


@step
def _best_row(gram: Any, unit: Any, central: Any) -> int:
    """Return the row with the least sum of distances."""
    best, least = 0, inf
    for i in range(len(unit)):
        objective, length = 0.0, min(1.0 / unit[i], 1e100)  # so that no square overflows
        for j in range(len(unit)):
            change = gram[i, i] * length * length * unit[j] - 2.0 * length * gram[i, j]
            near = sqrt(max(gram[j, j] + change * unit[j], 0.0))
            objective += change / max(near + central[j], TINY)
        if objective < least:
            best, least = i, objective
    return best


@step
def _product(gram: Any, towards: Any, own: float, unit: Any, i: int, j: int) -> float:
    """Return the product of (z - x_i) * unit_i and (z - x_j) * unit_j."""
    across = towards[i] * unit[j] + towards[j] * unit[i]
    product: float = gram[i, j] - across + own * unit[i] * unit[j]
    return product


@step
def _pull(gram: Any, point: Any, own: float, unit: Any, inverse: Any) -> float:
    """Return the length of the sum of the unit vectors to the rows that have an inverse."""
    total = 0.0
    for i in range(len(unit)):
        for j in range(len(unit)):
            total += inverse[i] * _product(gram, point[1], own, unit, i, j) * inverse[j]
    return sqrt(max(0.0, total))  # 0 for NaN, where numbers overflowed


@step
def _newton(
    gram: Any, point: Any, own: float, unit: Any, inverse: Any, total: float, change: Any,
    scale: Any, system: Any,
) -> bool:  # fmt: skip
    """Write Newton's step as a change of weights; return whether there is one.

    The Hessian is total * 1 - sum of (z - x_i)(z - x_i)' / distance_i^3; a step that combines the
    z - x_i solves an n x n system (Woodbury), which scaled on both sides is symmetric.
    """
    n = len(unit)
    for i in range(n):
        if not inverse[i] > 0.0:  # infinitely far
            return False
        change[i] = 1.0 / (sqrt(inverse[i]) * sqrt(unit[i]))
        scale[i] = inverse[i] / change[i]
    for i in range(n):
        for j in range(i, n):
            product = _product(gram, point[1], own, unit, i, j)
            system[i, j] = -scale[i] * product * scale[j]
        system[i, i] += total
    for i in range(n):  # upper triangle = U' / diagonal * U
        for k in range(i):
            share = system[k, i] / system[k, k]
            change[i] -= share * change[k]
            for j in range(i, n):
                system[i, j] -= share * system[k, j]
        if not system[i, i] > 0.0:
            return False
    share = 0.0
    for i in range(n - 1, -1, -1):
        for j in range(i + 1, n):
            change[i] -= system[i, j] * change[j]
        change[i] /= system[i, i]
    for i in range(n):
        change[i] = change[i] * scale[i] * unit[i]  # in this order nothing underflows
        share += change[i]
    for i in range(n):
        change[i] -= share * point[0, i]
    finite: bool = abs(share) < inf
    return finite


@step
def _weiszfeld(point: Any, unit: Any, inverse: Any, change: Any) -> float:
    """Write Weiszfeld's step as a change of weights; return the sum of inverse distances.

    Where numbers overflowed it is not above 0, and nothing is written.
    """
    total = 0.0
    for i in range(len(unit)):
        total += inverse[i] * unit[i]
    if total > 0.0:
        for i in range(len(unit)):
            change[i] = inverse[i] * unit[i] / total - point[0, i]
    return total


@step
def _move(point: Any, share: float, change: Any, ahead: Any) -> None:
    for i in range(len(change)):
        ahead[0, i] = point[0, i] + share * change[i]


@step
def descend(gram: Any, unit: Any, tol: float, max_iter: int, room: Any, system: Any) -> float:
    """Find the geometric median; return how far from optimal it is (0 to 1).

    Its weights are written to line `FOUND` of `room`, of which `LINES` are for work in between, as
    are the n lines of `system`.
    """
    central, inverse, change, newton = room[0], room[1], room[2], room[3]
    ahead, point = room[4:7], room[7:10]
    n = len(unit)
    slack = 0.0
    for i in range(n):
        central[i] = sqrt(max(gram[i, i], 0.0))  # mixed rows: rounding
        slack += 1e-14 * central[i]
    best = _best_row(gram, unit, central)
    for i in range(n):
        point[0, i] = 0.0
    point[0, best] = 1.0
    own, objective = _look(gram, unit, central, point)
    copies = 0
    for i in range(n):
        squared = central[i] ** 2 + (central[best] * (unit[i] / unit[best])) ** 2
        held = not point[2, i] ** 2 > 1e-14 * squared
        copies += held
        inverse[i] = 0.0 if held else 1.0 / point[2, i]
    pull = _pull(gram, point, own, unit, inverse)
    if pull <= copies + tol * n:
        return 0.0
    # Vardi and Zhang's step off a row: Weiszfeld's, shortened by what the row holds back.
    if not _weiszfeld(point, unit, inverse, change) > 0.0:
        return 0.0
    _move(point, 1.0 - copies / pull, change, point)
    own, objective = _look(gram, unit, central, point)
    gap, stalled, least = 1.0, 0, inf
    for _ in range(max_iter):
        for i in range(n):
            inverse[i] = 1.0 / max(point[2, i], CLOSEST)
        total = _weiszfeld(point, unit, inverse, change)
        if not total > 0.0:
            return 0.0
        for i in range(n):
            ahead[0, i] = change[i]
        gap = total * sqrt(max(0.0, _length(gram, unit, ahead))) / n
        if gap <= tol:
            break
        found = _newton(gram, point, own, unit, inverse, total, newton, ahead[1], system)
        share = 1.0
        while True:
            if found:
                _move(point, share, newton, ahead)
            else:
                _move(point, 1.0, change, ahead)
            own, after = _look(gram, unit, central, ahead)
            if not found or after <= objective + slack:
                break
            share /= 4.0
            found = share > 0.05
        objective = after
        for k in range(3):
            for i in range(n):
                point[k, i] = ahead[k, i]
        # Distances have the precision of the data: below that, there is nothing left to gain.
        stalled = stalled + 1 if objective > least - 1e4 * slack else 0
        least = min(least, objective)
        if stalled == STALLED:
            return 0.0
    return gap


DESCEND = Tiered(descend)


def least_sum_of_distances(
    gram: Matrix, length: Matrix, tol: float, max_iter: int
) -> tuple[Matrix, float]:
    """Return the weights of the geometric median, and how far from optimal it is (0 to 1).

    Parameters
    ----------
    gram, length : (n, n) and (n,) float64
        The frame of the rows.
    tol : float
        Which distance from the optimum is none.
    max_iter : int
        Steps after which to give up.
    """
    n = len(gram)
    room, system = np.zeros((LINES, n)), np.empty((n, n))
    gap = DESCEND(np.ascontiguousarray(gram), 1.0 / length, tol, max_iter, room, system)
    return room[FOUND], float(gap)
