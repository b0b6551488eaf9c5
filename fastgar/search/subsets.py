"""Exact search for the `size` of n rows that lie closest together, on n x n matrices alone.

Three measures of closeness: the diameter (MDA, `diameter.py`), the trace of the covariance (MVA,
`variance.py`) and its largest eigenvalue (SMEA, `spectrum.py`). Where there are only a few subsets,
all are measured. Otherwise each has an oracle: given which rows are kept and which removed, is
there a subset at most this wide? The least width comes from asking for less until the answer is
no; then the rows are walked in order, and each is kept if some subset of that width still has it.
What remains is the lexicographically first of the best subsets.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from itertools import combinations
from math import comb, inf
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastgar.cpu.compile import SHORT, Tiered, step
from fastgar.errors import SearchLimit

__all__ = [
    "CLOSEST", "FREE", "KEPT", "REMOVED", "SLICE", "SUMMABLE", "TIE", "Find", "Flags",
    "Limit", "Matrix", "Rows", "Status", "among", "ball", "closest", "every", "first_in_order",
    "largest", "least_variance", "mean_squares", "usable",
]  # fmt: skip

SLICE = 100_000  # operations between two looks at whether somebody pressed Ctrl-C, or to compile
FEW = 20_000  # distances inside all subsets, up to which it is quicker to look at every one
FREE, KEPT, REMOVED = 0, 1, 2  # what is decided of a row
SUMMABLE = 1e300  # no sum of a few thousand smaller numbers overflows
TIE = 1e-12  # widths that differ by less, relatively, are equal: sums in different order do


Flags = NDArray[np.bool_]
Matrix = NDArray[np.float64]
Rows = NDArray[np.intp]
Weights = NDArray[np.float64]
Status = NDArray[np.int8]
Find = Callable[[Status], "Flags | None"]  # from what is decided to a subset, if there is one


class Limit:
    """How much work is left to one call, and what it has to show when there is none.

    Work is counted, not timed, so that every machine stops at the same point: in operations, each
    a pass through an innermost loop that takes about a nanosecond once compiled.

    `best` is a subset of width `value`, or the weights of the rows of one; none has a width below
    `bound`.
    """

    def __init__(self, rule: str, n: int, size: int, work_limit: int) -> None:
        self.rule, self.n, self.f, self.limit, self.spent = rule, n, n - size, work_limit, 0
        self.best: Rows | Weights = np.arange(0)
        self.value, self.bound = inf, 0.0

    @property
    def left(self) -> int:
        """What a search may take: with one operation more, it is too much."""
        return self.limit - self.spent + 1

    def found(self, best: Rows | Weights, value: float) -> None:
        """Remember the first subset, and each that is better than those before."""
        if value < self.value or not self.best.size:
            self.best, self.value = best, value

    def spend(self, work: int) -> None:
        """Book the work of one step; where it is more than was left, that was cut short."""
        self.spent += int(work)
        if self.spent > self.limit:
            raise SearchLimit(
                self.rule, self.n, self.f, self.spent, self.best.tolist(), self.value, self.bound
            )


def usable(allowed: Flags, size: int) -> Rows:
    """Return the indices of the rows that may be chosen, if there are enough."""
    n = allowed.size
    rows = np.flatnonzero(allowed)
    if not 1 <= size <= n:
        raise ValueError(f"a subset of {n} rows has between 1 and {n} of them, not {size}")
    if rows.size < size:
        raise ValueError(f"a subset of {size} rows needs as many usable ones, got {rows.size}")
    return rows


def among(rows: Rows, matrix: Matrix) -> Matrix:
    """Return the entries between these rows, only to be read, in the layout compiled for."""
    part = matrix if rows.size == len(matrix) else matrix[np.ix_(rows, rows)]
    return np.ascontiguousarray(part, np.float64)


@lru_cache(maxsize=16)
def every(n: int, size: int) -> Rows | None:
    """Return all subsets of `size` of n rows, (subsets, size), in order; None if there are many."""
    if comb(n, size) * size**2 > FEW:
        return None
    subsets: Rows = np.array(list(combinations(range(n), size)), dtype=np.intp)
    subsets.flags.writeable = False
    return subsets


@step
def closest(D: Any, subsets: Any, summed: bool, widths: Any) -> int:
    """Return the number of the first subset with the least diameter, or sum of distances."""
    least = inf
    for k in range(len(subsets)):
        width = 0.0
        for a in range(1, subsets.shape[1]):
            for b in range(a):
                distance = D[subsets[k, a], subsets[k, b]]
                width = width + distance if summed else max(width, distance)
        widths[k] = width
        least = min(least, width)
    most = least * (1.0 + TIE) if summed else least
    first = 0
    while widths[first] > most:
        first += 1
    return first


CLOSEST = Tiered(closest, *SHORT)


def ball(D: Matrix, radius: NDArray[np.float64], size: int) -> Flags:
    """Return the flags of the `size` rows nearest to the row of least `radius`, itself first."""
    flags = np.zeros(len(D), bool)
    flags[D[radius.argmin()].argsort(kind="stable")[:size]] = True
    return flags


def mean_squares(D: Matrix, size: int) -> NDArray[np.float64]:
    """Return each row's mean squared distance to the `size` rows nearest to it, itself included."""
    shares = np.partition(D, size - 1, axis=1)[:, :size] / size  # whose sum does not overflow
    means: NDArray[np.float64] = shares.sum(axis=1)
    return means


def least_variance(squares: NDArray[np.float64], size: int) -> float:
    """Return a variance that no subset is below, from `mean_squares`.

    Twice the variance of a subset is the mean, over its rows, of their mean squared distance to
    its rows, and no row has any nearer than its nearest.
    """
    shares = np.partition(squares, size - 1)[:size] / size
    return float(shares.sum()) / 2 * (1 - 1e-12)  # for rounding


def first_in_order(subset: Flags, size: int, find: Find) -> Rows:
    """Return the lexicographically first `size` rows that are a subset of those `find` finds.

    `subset` is any of them: while it has the next row, nothing need be searched.
    """
    status = np.zeros(subset.size, np.int8)
    kept = 0
    for row in range(subset.size):
        status[row] = KEPT
        if not subset[row]:
            other = find(status)
            if other is None:
                status[row] = REMOVED
                continue
            subset = other
        kept += 1
        if kept == size:
            break
    return np.flatnonzero(status == KEPT)


@step
def largest(score: Any, status: Any, count: Any, top: Any) -> Any:
    """Write the free rows with the `count` largest scores, in descending order; return the work."""
    found, work = 0, status.size
    for i in range(status.size):
        if status[i] == FREE and (found < count or score[i] > score[top[count - 1]]):
            found = min(found + 1, count)
            place = found - 1
            while place > 0 and score[top[place - 1]] < score[i]:
                top[place] = top[place - 1]
                place -= 1
                work += 1
            top[place] = i
    return work
