"""What `primitives` asks of a backend, in words that both backends know.

A `Statistic` of every column, a `Selection` of rows by their distances, and what all must agree on
so that the same bits come from everywhere: the columns of one partial sum, when a row is far, and
random numbers of nothing but a key and a position.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache, cached_property
from typing import ClassVar, Literal

import numpy as np
from numpy.typing import NDArray

__all__ = [
    "CGE", "CHUNK", "FAR", "MDA", "MVA", "NNM", "Bulyan", "BulyanAveraged", "CenteredClipping",
    "GeometricMedian", "Krum", "Middle", "MoNNA", "Selection", "Statistic", "hash64", "hash_key",
    "tolerated",
]  # fmt: skip

CHUNK = 8192  # columns of one partial sum of distances
FAR = 1e3  # a row this many usual distances from the medoid would spoil algebra on D

Matrix = NDArray[np.float64]
Middle = Literal["mean", "lower", "upper"]  # what a median takes of the two middle values


@dataclass(frozen=True)
class Statistic:
    """What to compute of each column of n values, sorted in ascending order.

    Attributes
    ----------
    weights : tuple of float
        One for each of the n ranks: the statistic is the weighted sum of the sorted values.
    closest : int, optional
        The mean of the `closest` values that are closest to that weighted sum instead (of two
        equally close values the smaller one).
    faults : int
        A column with more non-finite values than this is NaN; otherwise NaN ranks as +infinity.
    kind : {"order", "mean", "finite_mean", "sign", "condense"}
        ``"mean"``: the plain mean, whatever the values; ``"finite_mean"``: the mean of the
        finite values; ``"sign"``: the sign of the sum of signs;
        ``"condense"``: the weighted sum with `probability`, else the first row's value, by a
        counter hash of `key` (see `hash_key`) and the column's number.
    """

    weights: tuple[float, ...]
    closest: int | None = None
    faults: int = 0
    kind: str = "order"
    probability: float = 1.0
    key: int = 0

    @staticmethod
    @cache
    def median(
        n: int, middle: str = "mean", faults: int | None = None, closest: int | None = None
    ) -> Statistic:
        """Return the median of n values; of an even number the mean, lower or upper middle one."""
        low, high = (n - 1) // 2, n // 2
        if middle == "lower":
            high = low
        elif middle == "upper":
            low = high
        return Statistic.between(n, low, high + 1, tolerated(faults, n), closest)

    @staticmethod
    @cache
    def between(n: int, low: int, high: int, faults: int, closest: int | None = None) -> Statistic:
        """Return the mean of the sorted values at positions low to high (excluded)."""
        share = 1.0 / (high - low)
        weights = tuple(share if low <= rank < high else 0.0 for rank in range(n))
        return Statistic(weights, closest=closest, faults=faults)

    @cached_property
    def support(self) -> tuple[int, int, Matrix | None]:
        """Range of ranks with a weight, and the weights unless all have the same share."""
        ranks = [rank for rank, weight in enumerate(self.weights) if weight != 0.0]
        if not ranks:
            return 0, 1, np.zeros(len(self.weights))
        low, high = ranks[0], ranks[-1] + 1
        share = 1.0 / (high - low)
        if all(weight == share for weight in self.weights[low:high]):
            return low, high, None
        return low, high, np.array(self.weights, dtype=np.float64)

    def takes_median(self, begin: int, end: int) -> NDArray[np.bool_]:
        """Return for the columns from number `begin` to `end` whether condense takes the median."""
        draws = hash64(self.key, np.arange(begin, end, dtype=np.uint64)) >> np.uint64(11)
        return draws * 2.0**-53 < self.probability


@dataclass(frozen=True, eq=False, kw_only=True)
class Selection:
    """A choice of rows that a backend makes from their distances by itself: one of those below.

    Attributes
    ----------
    f : int
        How many faulty rows there may be; with more the result is NaN on a GPU, else an error.
    statistic : Statistic or None
        What is taken of every column of the rows that are picked or mixed; None: a weighted sum.
    """

    beyond: ClassVar[int] = 0  # points that it looks at after the rows

    f: int
    statistic: Statistic | None = None


@dataclass(frozen=True, eq=False, kw_only=True)
class Krum(Selection):
    """The mean of the `m` rows with the least sums over the `kept` least distances.

    Their own, 0, is among them. Distances are `squared` or not.
    """

    kept: int
    squared: bool
    m: int


class Bulyan(Selection):
    """The statistic of n-2f picks by Krum, one after the other."""


class BulyanAveraged(Selection):
    """The statistic of n-2f-2 means of ever fewer rows."""


@dataclass(frozen=True, eq=False, kw_only=True)
class NNM(Selection):
    """The statistic of the means of each row's n-f nearest, or what is chosen among them `then`.

    That looks at no further points, and `statistic` is then that of this choice.
    """

    then: Selection | None = None


class CGE(Selection):
    """The mean of the n-f rows nearest to the last point, which is the origin."""

    beyond: ClassVar[int] = 1


@dataclass(frozen=True, eq=False, kw_only=True)
class MoNNA(Selection):
    """The mean of the n-f rows nearest to the row `pivot`."""

    pivot: int


class MDA(Selection):
    """The mean of the n-f rows of least diameter."""


class MVA(Selection):
    """The mean of the n-f rows of least variance."""


@dataclass(frozen=True, eq=False, kw_only=True)
class CenteredClipping(Selection):
    """One step from the last point, towards rows that pull by `tau` at most."""

    beyond: ClassVar[int] = 1

    tau: float


@dataclass(frozen=True, eq=False, kw_only=True)
class GeometricMedian(Selection):
    """The point with the least sum of distances to the rows."""

    tol: float
    max_iter: int


def tolerated(f: int | None, n: int) -> int:
    """Return how many of n rows may hold anything: f or, where that is None, all but a majority."""
    return (n - 1) // 2 if f is None else f


def hash_key(seed: int, step: int) -> int:
    """Return the number that stands for (seed, step) in `hash64`."""
    return (seed * 0x9E3779B97F4A7C15 + step * 0xBF58476D1CE4E5B9) & 0xFFFFFFFFFFFFFFFF


def hash64(key: int, index: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Return random 64-bit numbers that depend on nothing but the key and the index."""
    z = np.uint64(key) + index * np.uint64(0x94D049BB133111EB)
    for _ in range(2):  # two rounds of splitmix64's finaliser
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        z = z ^ (z >> np.uint64(31))
    return z
