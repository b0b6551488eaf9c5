"""Choices among few rows by their distances; ``kernels/selection.cu`` makes some on a GPU.

`fastgar.rules` says what is chosen. Here the same sums are formed in the same order, so that it
makes no difference which of the two chose; but a choice takes a few microseconds, not fifty.

`D` is as the distance kernels leave it, and is made complete. What is written is zeros before.
`room` is for work in between: lines as long as D, eight numbers longer where numbers are added up.
A choice returns how many rows are faulty; -1 if it needs more than distances, or cannot be made
this quickly.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from math import inf, nan, sqrt
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastgar.cpu.compile import SHORT, Tiered, step
from fastgar.cpu.distances import complete
from fastgar.errors import TooManyFaults
from fastgar.search.geometric import FOUND, LINES, descend
from fastgar.search.mixed import ROWS, mixed_distances
from fastgar.search.subsets import SUMMABLE, closest, every
from fastgar.statistic import (
    CGE,
    FAR,
    MDA,
    MVA,
    NNM,
    BulyanAveraged,
    CenteredClipping,
    GeometricMedian,
    Krum,
    MoNNA,
    Selection,
)

__all__ = ["choose", "makes"]

Chosen = NDArray[Any]
Matrix = NDArray[np.float64]


@step
def _sum(values: Any, count: int, partial: Any) -> float:
    """Add up to 128 numbers in NumPy's order: with eight partial sums, if there are that many."""
    total = 0.0
    rest = count if count < 8 else count % 8
    if count >= 8:
        for k in range(8):
            partial[k] = values[k]
        for i in range(8, count - rest):
            partial[i % 8] += values[i]
        total = (partial[0] + partial[1]) + (partial[2] + partial[3])
        total += (partial[4] + partial[5]) + (partial[6] + partial[7])
    for i in range(count - rest, count):
        total += values[i]
    return total


@step
def _sort(row: Any, squared: bool, count: int, line: Any) -> None:
    """Write the `count` least numbers of a row, or their square roots, to the line in order."""
    for j in range(len(row)):
        value, place = row[j] if squared else sqrt(row[j]), min(j, count - 1)
        if j == place or value < line[place]:
            while place > 0 and line[place - 1] > value:
                line[place] = line[place - 1]
                place -= 1
            line[place] = value


@step
def _mean_of_best(D: Any, scores: Any, m: int, weights: Any) -> int:
    """Give the m rows with the least scores equal weights; return how many are bad."""
    for _ in range(m):
        best = -1
        for i in range(len(weights)):
            free = D[i, i] == 0.0 and weights[i] == 0.0
            if free and (best < 0 or scores[i] < scores[best]):
                best = i
        if best >= 0:
            weights[best] = 1.0 / m
    faulty = 0
    for i in range(len(weights)):
        faulty += D[i, i] != 0.0
    return faulty


@step
def krum(D: Any, kept: int, squared: bool, m: int, weights: Any, room: Any) -> int:
    """Write the weights of the mean of the m rows with the least scores; return how many are bad.

    The score of a row is the sum of its `kept` least distances, its own among them.
    """
    complete(D, True)
    scores, line = room[0], room[1]
    for i in range(len(D)):
        _sort(D[i], squared, kept, line)
        scores[i] = _sum(line, kept, line[len(D) :])
    bad: int = _mean_of_best(D, scores, m, weights)
    return bad


@step
def cge(D: Any, m: int, weights: Any, room: Any) -> int:
    """Write the weights of the mean of the m rows nearest to the last point, like `krum`."""
    complete(D, True)
    n = len(weights)
    lengths = room[0]
    for i in range(n):
        lengths[i] = sqrt(D[i, n])
    bad: int = _mean_of_best(D, lengths, m, weights)
    return bad


@step
def monna(D: Any, pivot: int, m: int, weights: Any, room: Any) -> int:
    """Write the weights of the mean of the m rows nearest to the pivot, like `krum`.

    Returns -1 where the pivot is bad.
    """
    complete(D, True)
    if D[pivot, pivot] != 0.0:
        return -1
    for i in range(len(D)):
        room[0, i] = D[pivot, i]
    room[0, pivot] = -1.0  # before any copy of it
    bad: int = _mean_of_best(D, room[0], m, weights)
    return bad


@step
def nnm(D: Any, kept: int, mixing: Any, room: Any) -> int:
    """Write each row's equal weights of the `kept` rows nearest to it; return how many are bad.

    A faulty row has NaN instead. Returns -1 where a finite distance overflowed.
    """
    complete(D, True)
    n = len(D)
    line, order = room[0], room[1]
    faulty = 0
    for i in range(n):
        bad = D[i, i] != 0.0
        faulty += bad
        count = 0
        for j in range(n):
            if bad:
                mixing[i, j] = nan
            elif D[j, j] == 0.0:
                if D[i, j] == inf:
                    return -1
                value, place = -1.0 if j == i else D[i, j], count
                while place > 0 and line[place - 1] > value:
                    line[place], order[place] = line[place - 1], order[place - 1]
                    place -= 1
                line[place], order[place] = value, j
                count += 1
        for k in range(min(kept, count)):
            mixing[i, int(order[k])] = 1.0 / kept
    return faulty


@step
def mixed_by_nnm(D: Any, kept: int, mixing: Any, mixed: Any, room: Any) -> int:
    """Write what `nnm` does and, unless a row is faulty, the distances of the mixed rows."""
    faulty: int = nnm(D, kept, mixing, room)
    if faulty == 0:
        mixed_distances(mixing, D, mixed, room)
    return faulty


@step
def krum_of_nnm(
    D: Any, nearest: int, kept: int, squared: bool, m: int, weights: Any, mixing: Any, mixed: Any,
    room: Any,
) -> int:  # fmt: skip
    """Write what `mixed_by_nnm` does and what `krum` does then; return how many rows are bad."""
    faulty: int = mixed_by_nnm(D, nearest, mixing, mixed, room)
    if faulty == 0:
        krum(mixed, kept, squared, m, weights, room)
    return faulty


@step
def repeated_krum(D: Any, f: int, picks: Any, lines: Any, room: Any) -> int:
    """Write n - 2f picks, each by Krum among the rows that are left; return how many are bad.

    `lines` is room for another matrix like D.
    """
    complete(D, True)
    n = len(D)
    scores, passed = room[0], room[1]
    faulty = 0
    for i in range(n):
        passed[i] = D[i, i]
        faulty += D[i, i] != 0.0
        _sort(D[i], True, n, lines[i])
    for k in range(len(picks)):
        kept, best = min(max(1, n - k - f - 2) + 1, n - k), -1
        for i in range(n):
            if passed[i] == 0.0:
                scores[i] = _sum(lines[i], kept, room[1, n:])
                if best < 0 or scores[i] < scores[best]:
                    best = i
        if best < 0:
            return faulty
        picks[k], passed[best] = best, 1.0
        for i in range(n):  # every row loses the picked one as a neighbour
            place = 0
            while lines[i, place] != D[i, best]:
                place += 1
            for j in range(place, n - k - 1):
                lines[i, j] = lines[i, j + 1]
    return faulty


@step
def centered_clipping(D: Any, tau: float, weights: Any, room: Any) -> int:
    """Write the weights after one step from the last point; return how many are bad."""
    complete(D, True)
    n = len(D) - 1
    if D[n, n] != 0.0:
        return -1
    faulty = 0
    for i in range(n):
        faulty += D[i, i] != 0.0
        if D[i, i] == 0.0 and D[i, n] == inf:
            return -1
        distance = sqrt(D[i, n])
        weights[i] = (tau / distance if distance > tau else 1.0) / n
    weights[n] = 1.0 - _sum(weights, n, room[0])
    return faulty


@step
def subset(D: Any, subsets: Any, summed: bool, weights: Any, widths: Any) -> int:
    """Write the weights of the mean of the `closest` of the subsets; return 0."""
    complete(D, True)
    for i in range(len(D)):
        for j in range(i + 1):
            if not D[i, j] < SUMMABLE:
                return -1
    best = subsets[closest(D, subsets, summed, widths)]
    for row in best:
        weights[row] = 1.0 / len(best)
    return 0


@step
def geometric_median(D: Any, far: float, tol: float, max_iter: int, weights: Any, room: Any) -> int:
    """Write the weights of the geometric median; return 0 (-1 where a row is too `far` squared).

    `room` is one line more than `descend` needs, and then two matrices like D.
    """
    complete(D, True)
    n, pivot, usual = len(D), 0, inf
    for i in range(n):
        nearer = 0
        for j in range(n):
            nearer += D[i, j] < usual
        if nearer > n // 2:
            _sort(D[i], True, n // 2 + 1, room[0])
            pivot, usual = i, room[0, n // 2]
    unit, gram, system = room[LINES], room[LINES + 1 : LINES + 1 + n], room[LINES + 1 + n :]
    for i in range(n):
        if D[pivot, i] == inf or D[pivot, i] > far * usual or usual == 0.0:
            return -1
        unit[i] = 1.0
        for j in range(n):
            gram[i, j] = (D[pivot, j] + D[pivot, i] - D[i, j]) * 0.5
    if descend(gram, unit, tol, max_iter, room, system) > tol:
        return -1
    for i in range(n):
        weights[i] = room[FOUND, i]
    return 0


KRUM = Tiered(krum, *SHORT)
CGE_WEIGHTS = Tiered(cge, *SHORT)
MONNA = Tiered(monna, *SHORT)
NNM_WEIGHTS = Tiered(nnm, *SHORT)
MIXED_BY_NNM = Tiered(mixed_by_nnm, 0.0, SHORT[1])
KRUM_OF_NNM = Tiered(krum_of_nnm, 0.0, SHORT[1])
REPEATED_KRUM = Tiered(repeated_krum, *SHORT)
CENTERED_CLIPPING = Tiered(centered_clipping, *SHORT)
SUBSET = Tiered(subset, *SHORT)
GEOMETRIC_MEDIAN = Tiered(geometric_median, *SHORT)


@lru_cache(maxsize=256)
def makes(selection: Selection, n: int) -> bool:
    """Return whether `choose` makes this choice among n rows."""
    if isinstance(selection, (MDA, MVA)) and every(n, n - selection.f) is None:
        return False
    if isinstance(selection, NNM) and selection.then is not None and not makes(selection.then, n):
        return False
    return n <= ROWS and not isinstance(selection, BulyanAveraged)


def choose(D: Matrix, selection: Selection) -> tuple[Chosen | None, bool]:
    """Return what a selection makes of the distances, and whether every row surely has a weight.

    What is made is (1, points) weights, (m, n) mixing or the numbers of picked rows; None where the
    choice needs more than distances, which are then complete, or more time.
    """
    points, f = len(D), selection.f
    whole, weigh = False, WEIGHING.get(type(selection))
    if weigh is not None:
        chosen: Chosen = np.zeros((1, points))
        faulty = weigh(D, selection, chosen[0])
        if isinstance(selection, CGE):
            chosen = chosen[:, :-1]  # the origin is the last point
    elif isinstance(selection, NNM):
        if selection.then is not None:
            return _choose_mixed(D, f, selection.then), False
        chosen = np.zeros((points, points))
        faulty = NNM_WEIGHTS(D, points - f, chosen, np.empty((2, points)))
        whole = faulty == 0
    else:
        chosen = np.zeros(points - 2 * f, dtype=np.int64)
        faulty = REPEATED_KRUM(D, f, chosen, np.empty_like(D), np.empty((2, points + 8)))
    if faulty > f:
        n = points - selection.beyond
        raise TooManyFaults(np.flatnonzero(D.diagonal()[:n]).tolist(), f)
    return (chosen, whole) if faulty >= 0 else (None, False)


def _krum(D: Matrix, s: Krum, weights: Chosen) -> int:
    faulty: int = KRUM(D, s.kept, s.squared, s.m, weights, np.empty((2, len(D) + 8)))
    return faulty


def _cge(D: Matrix, s: CGE, weights: Chosen) -> int:
    points = len(D)
    faulty: int = CGE_WEIGHTS(D, points - 1 - s.f, weights[:-1], np.empty((1, points)))
    return faulty


def _monna(D: Matrix, s: MoNNA, weights: Chosen) -> int:
    points = len(D)
    faulty: int = MONNA(D, s.pivot, points - s.f, weights, np.empty((1, points)))
    return faulty


def _centered_clipping(D: Matrix, s: CenteredClipping, weights: Chosen) -> int:
    faulty: int = CENTERED_CLIPPING(D, s.tau, weights, np.empty((1, 8)))
    return faulty


def _geometric_median(D: Matrix, s: GeometricMedian, weights: Chosen) -> int:
    points = len(D)
    room = np.zeros((LINES + 1 + 2 * points, points))
    faulty: int = GEOMETRIC_MEDIAN(D, FAR**2, s.tol, s.max_iter, weights, room)
    return faulty


def _subset(D: Matrix, s: MDA | MVA, weights: Chosen) -> int:
    subsets = every(len(D), len(D) - s.f)
    assert subsets is not None
    faulty: int = SUBSET(D, subsets, isinstance(s, MVA), weights, np.empty(len(subsets)))
    return faulty


# How the weights of the points are written, by what is selected; returns how many rows are faulty.
WEIGHING: dict[type[Selection], Callable[[Matrix, Any, Chosen], int]] = {
    Krum: _krum, CGE: _cge, MoNNA: _monna, CenteredClipping: _centered_clipping,
    GeometricMedian: _geometric_median, MDA: _subset, MVA: _subset,
}  # fmt: skip


def _choose_mixed(D: Matrix, f: int, then: Selection) -> Chosen | None:
    """Return what a selection makes of the means of each row's n - f nearest.

    None where that needs more than distances, or a row is faulty.
    """
    n = len(D)
    mixing, mixed, room = np.zeros((n, n)), np.empty((n, n)), np.empty((2, n + 8))
    chosen: Chosen | None
    if isinstance(then, Krum):  # at once: two calls take 1 us more
        chosen = np.zeros((1, n))
        krum = then.kept, then.squared, then.m
        if KRUM_OF_NNM(D, n - f, *krum, chosen[0], mixing, mixed, room) != 0:
            return None
    else:
        if MIXED_BY_NNM(D, n - f, mixing, mixed, room) != 0:
            return None
        chosen, _ = choose(mixed, then)
    if chosen is None or chosen.ndim == 1:
        return chosen if chosen is None else mixing[chosen]
    weights: Chosen = chosen.dot(mixing)
    return weights
