"""Choices among few rows by their distances, compiled: the twin of ``kernels/selection.cu``.

`fastgar.rules` says what is chosen. Here the same sums are formed in the same order, so that it
makes no difference which of the two chose; but a choice takes a few microseconds, not fifty.

`D` is as the distance kernels leave it, and is made complete. What is written is zeros before.
`room` is for work in between: two lines as long as D, and eight numbers more.
"""

from __future__ import annotations

from math import inf, nan, sqrt
from typing import Any

from fastgar.cpu.compile import jit, part
from fastgar.cpu.distances import complete

__all__ = ["ROWS", "cge", "krum", "nnm", "repeated_krum"]

ROWS = 32  # from here on NumPy sorts faster


@part
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


@part
def _sort(row: Any, squared: bool, line: Any) -> None:
    """Write the numbers of a row, or their square roots, to the line in ascending order."""
    for j in range(len(row)):
        value, place = row[j] if squared else sqrt(row[j]), j
        while place > 0 and line[place - 1] > value:
            line[place] = line[place - 1]
            place -= 1
        line[place] = value


@part
def _mean_of_best(D: Any, scores: Any, m: int, weights: Any) -> int:
    """Give the m rows with the least scores equal weights; return how many are faulty."""
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


@jit
def krum(D: Any, kept: int, squared: bool, m: int, weights: Any, room: Any) -> int:
    """Write the weights of the mean of the m rows with the least scores; return how many are bad.

    The score of a row is the sum of its `kept` least distances, its own among them.
    """
    complete(D, True)
    scores, line = room[0], room[1]
    for i in range(len(D)):
        _sort(D[i], squared, line)
        scores[i] = _sum(line, kept, line[len(D) :])
    bad: int = _mean_of_best(D, scores, m, weights)
    return bad


@jit
def cge(D: Any, m: int, weights: Any, room: Any) -> int:
    """Write the weights of the mean of the m rows nearest to the last point, like `krum`."""
    complete(D, True)
    n = len(weights)
    lengths = room[0]
    for i in range(n):
        lengths[i] = sqrt(D[i, n])
    bad: int = _mean_of_best(D, lengths, m, weights)
    return bad


@jit
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


@jit
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
        _sort(D[i], True, lines[i])
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
