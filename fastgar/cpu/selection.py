"""Krum's choice among few rows, compiled: the twin of ``kernels/selection.cu``.

`fastgar.rules.krum` says what is chosen. Here the same sums are formed in the same order, so that
it makes no difference which of the two chose; but a choice takes 1 us and not 10.
"""

from __future__ import annotations

from math import sqrt
from typing import Any

from fastgar.cpu.compile import jit
from fastgar.cpu.distances import complete

__all__ = ["ROWS", "choose"]

ROWS = 32  # from here on NumPy sorts faster


@jit
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


@jit
def choose(D: Any, kept: int, squared: bool, m: int, weights: Any, scores: Any, line: Any) -> int:
    """Write the weights of the mean of the m rows with the least scores; return how many are bad.

    The score of a row is the sum of its `kept` least distances, its own among them. `D` is as the
    distance kernels leave it, and is made complete; `weights` are zeros, `scores` and `line` room
    to work in.
    """
    n = len(D)
    complete(D, True)
    faulty = 0
    for i in range(n):
        faulty += D[i, i] != 0.0
        for j in range(n):
            value, place = D[i, j] if squared else sqrt(D[i, j]), j
            while place > 0 and line[place - 1] > value:
                line[place] = line[place - 1]
                place -= 1
            line[place] = value
        scores[i] = _sum(line, kept, line[n:])
    for _ in range(m):
        best = -1
        for i in range(n):
            free = D[i, i] == 0.0 and weights[i] == 0.0
            if free and (best < 0 or scores[i] < scores[best]):
                best = i
        if best >= 0:
            weights[best] = 1.0 / m
    return faulty
