"""The n x n mathematics that rules share: what a rule may know of the rows, and what it decides.

A rule never sees the rows. It sees their squared distances D, and everything linear follows from
them: rows mixed by a matrix W have distances that are algebra on D, and a point z = sum of w_j x_j
(weights that sum to 1) has distances to the rows that are algebra on D and w.

That algebra subtracts numbers of the size of the longest row squared, so it is right only while
rows are comparable. With a row that is over `FAR` times as far away as is usual, points are
written about the most central row p, in units of their own length:

    x_i = p + length_i * u_i,     gram = <u_i, u_j>,     |u_i| at most the usual distance

where `gram` comes from a third read of the data (`primitives.inner`), in float64, so that the long
row costs no accuracy to the others. Without such a row, `gram` comes from D and length_i = 1.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from .statistic import FAR, Statistic

__all__ = ["Decision", "Frame", "Geometry", "medoid", "rescaling"]

Array = NDArray[np.float64]

ALONE = 1 << 18  # multiply-adds that OpenBLAS does in one thread: more may wait for a busy core
PAIRWISE = 128  # up to this many rows, distances of mixed rows are formed pair by pair
ROUNDING = 2.0**-21  # of the sum that makes a mixed row, in units of its longest part
MOST = 1e300  # a length may not overflow
BEYOND = 1e-160  # scale for a row whose squared distance overflows: its own square then does not


@dataclass(slots=True)
class Decision:
    """What a rule decided: the aggregate is weights times points, or a statistic of mixed rows.

    Attributes
    ----------
    weights : (points,) array or None
        For the rows and then the references. Weight 0 means that the row is not read.
    mix : (m, points) array or None
        Where a column rule comes last, or nothing does: the mixed rows. A row of NaN is faulty.
    statistic : Statistic or None
        What to take of every column (of the mixed rows, where there is a mix).
    scores : (m,) array or None
        What the last stage ranked its rows by: lower is better.
    faulty : (n,) array of bool or None
        Rows with a non-finite entry, where that is known.
    distances : (n, n) array or None
        Between the rows, squared, where all columns count in them.
    """

    weights: Array | None = None
    mix: Array | None = None
    statistic: Statistic | None = None
    scores: Array | None = None
    faulty: NDArray[np.bool_] | None = None
    distances: Array | None = None


class Frame(NamedTuple):
    """Points about a central row, in units of their own length (see the top of this file)."""

    gram: Array  # (points, points)
    length: Array  # (points,), at least about 1


def medoid(D: Array, n: int) -> tuple[int, float]:
    """Return the most central row and the usual squared distance from it.

    The most central row has the least median distance to the rows (itself among them): with fewer
    than half the rows Byzantine, at least one honest row lies within that distance of it.
    """
    nearest = np.sort(D[:n, :n], axis=1)
    usual = nearest[:, n // 2]
    pivot = int(usual.argmin())
    if usual[pivot] > 0:
        return pivot, float(usual[pivot])
    # Over half the rows are copies of one row: the nearest other point sets the scale.
    others = D[pivot]
    others = others[(others > 0) & (others < np.inf)]
    return pivot, float(others.min()) if others.size else 1.0


def rescaling(D: Array, n: int) -> tuple[int, Array] | None:
    """Return the pivot and the scale of each point for a third read, or None if none is needed.

    Parameters
    ----------
    D : (points, points) array
        Squared distances of the n rows and of the references that inner products are formed with.
    n : int
        The number of rows.
    """
    pivot, usual = medoid(D, n)
    from_pivot = D[pivot]
    sound = D.diagonal() == 0
    span = usual
    if D.shape[0] > n + 1:  # two references: what lies between them is looked at as well
        between = D[n:, n:]
        between = between[between > 0]
        span = min(span, float(between.min())) if between.size else span
    if from_pivot.max(where=sound, initial=0.0) <= FAR**2 * span:
        return None
    scale = np.zeros_like(from_pivot)
    overflow = sound & np.isinf(from_pivot)
    near = sound & (from_pivot <= usual)
    far = sound & ~near & ~overflow
    scale[near] = 1.0
    scale[far] = np.sqrt(usual / from_pivot[far])
    scale[overflow] = BEYOND
    return pivot, scale


def _mixed_distances(W: Array, D: Array) -> Array:
    """Return the squared distances of the rows of W X, where each row of W sums to 1.

    Pair by pair, so that ties stay ties (see `mixed_distances`, which does so for a few rows). With
    many rows that costs too much, and one product does for all pairs.
    """
    from .search.mixed import MIXED, ROWS

    m = len(W)
    out = np.zeros((m, m))
    if max(W.shape) <= ROWS:
        MIXED(np.ascontiguousarray(W), np.ascontiguousarray(D), out, np.empty((2, len(D))))
        return out
    if m <= PAIRWISE:
        first, second = _pairs(m)
        apart = np.empty(len(first))
        step = max(1, ALONE // D.size)
        for begin in range(0, len(first), step):
            some = slice(begin, begin + step)
            q = W[first[some]] - W[second[some]]
            np.einsum("ij,ij->i", q @ D, q, out=apart[some])
        apart *= -0.5
    else:
        product = W @ D @ W.T
        product += product.T
        own = product.diagonal() * 0.25  # half of W_i D W_i'
        product = product * 0.5 - (own + own[:, None])  # in an order that keeps it symmetric
        first, second = _pairs(m)
        apart = product[first, second]
        for k in np.flatnonzero(apart <= 1e-12 * np.abs(own).max(initial=0.0)):
            q = W[first[k]] - W[second[k]]
            apart[k] = -0.5 * (q @ D @ q)
    np.maximum(apart, 0.0, out=apart)
    out[first, second] = apart
    out[second, first] = apart
    return out


@lru_cache(maxsize=8)
def _pairs(m: int) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    return np.triu_indices(m, 1)


@lru_cache(maxsize=64)
def _none_faulty(n: int) -> NDArray[np.bool_]:
    none = np.zeros(n, bool)
    none.flags.writeable = False
    return none


class Geometry:
    """What a distance or mixing rule may know of the rows that reach it.

    Points are the n current rows and then the references (`names`). Rows that hold a non-finite
    number are `faulty`: infinitely far from everything, to be given weight 0.

    Attributes
    ----------
    n : int
        The number of current rows.
    names : tuple of str
        The references.
    faulty : (n,) array of bool
    any_faulty : bool
    """

    __slots__ = (
        "_distances", "_frame", "_mixture", "_rows", "_usual", "any_faulty", "faulty", "n", "names",
    )  # fmt: skip

    def __init__(
        self,
        D: Array,
        names: tuple[str, ...] = (),
        inner: tuple[Array, Array] | None = None,
    ) -> None:
        self.names = names
        self.n = n = D.shape[0] - len(names)
        self._distances: Array | None = D
        self._rows: Array | None = None  # current rows as combinations of the original points
        self._frame: Frame | None = None
        self._mixture: tuple[Array, Array] | None = None  # W and D, where distances may follow
        self._usual = 0.0
        faults = D.diagonal()[:n]
        self.any_faulty = bool(faults @ faults)  # a third of the time of any()
        self.faulty: NDArray[np.bool_] = faults != 0 if self.any_faulty else _none_faulty(n)
        if inner is not None:
            gram, scale = inner
            self._usual = float(np.sqrt(medoid(D, n)[1]))
            self._frame = _in_own_units(gram, scale, self._usual)

    # ------------------------------------------------------------------------- what can be seen

    @property
    def is_mixed(self) -> bool:
        """Whether the current rows are combinations of the original ones."""
        return self._rows is not None

    @property
    def all_distances(self) -> Array:
        """Squared distances between all points: (points, points), not to be written to."""
        if self._distances is None:
            if self._mixture is not None:
                D = _mixed_distances(*self._mixture)
            else:
                assert self._frame is not None
                D = _distances(self._frame)
            D[:, : self.n][:, self.faulty] = np.inf
            D[: self.n][self.faulty] = np.inf
            self._distances = D
        return self._distances

    @property
    def D(self) -> Array:
        """Squared distances between the current rows: (n, n), not to be written to."""
        D = self.all_distances
        return D[: self.n, : self.n] if self.names else D

    @property
    def frame(self) -> Frame:
        """The points about a central row: exact however long some of them are."""
        if self._frame is None:
            D = self.all_distances
            pivot, _ = medoid(D, self.n)
            if self.any_faulty or not np.isfinite(D).all():
                D = np.minimum(D, 1e290)  # a finite row whose square overflows is merely far
            central = D[pivot]
            gram = central + central[:, None]
            gram -= D
            gram *= 0.5
            if self.any_faulty:
                gram[: self.n][self.faulty] = 0.0
                gram[:, : self.n][:, self.faulty] = 0.0
            self._frame = Frame(gram, np.ones(len(gram)))
        return self._frame

    def length_between(self, first: int, second: int) -> float:
        """Return the distance (not squared) between two points."""
        return float(np.sqrt(self.all_distances[first, second]))

    def cosines(self, origin: int, other: int) -> Array:
        """Return the cosine between each row and another point, both seen from a point `origin`.

        0 where the row or the other point is at the origin.
        """
        gram, length = self.frame
        o, v, rows = origin, other, slice(0, self.n)

        def product(i: int | slice, j: int) -> Array:
            # <x_i - x_o, x_j - x_o> / length_i
            value: Array = length[j] * (gram[i, j] - gram[o, j] * length[o] / length[i])
            value = value - length[o] * (gram[i, o] - gram[o, o] * length[o] / length[i])
            return value

        along = product(rows, v)
        ratio = length[o] / length[rows]
        own = gram.diagonal()[rows] - 2 * ratio * gram[rows, o] + ratio**2 * gram[o, o]
        size = np.sqrt(np.maximum(own, 0.0)) * self.length_between(o, v)
        cosine = np.zeros(self.n)
        np.divide(along, size, out=cosine, where=(size > 0) & ~self.faulty)
        return np.clip(cosine, -1.0, 1.0)

    def sound(self) -> NDArray[np.intp]:
        """Return the indices of the rows that are not faulty."""
        return np.flatnonzero(~self.faulty)

    def distance_to(self, name: str) -> Array:
        """Return the distance (not squared) of every row to a reference."""
        at = self.n + self.names.index(name)
        squared = self.all_distances[: self.n, at]
        distance: Array = np.sqrt(squared)
        overflow = np.isinf(squared) & ~self.faulty
        if self._frame is not None and overflow.any():
            weights = np.zeros(self.n + len(self.names))
            weights[at] = 1.0
            distance[overflow] = self._distance_from_frame(weights)[overflow]
        return distance

    def distance_to_point(self, weights: Array) -> Array:
        """Return the distance (not squared) of every row to the point of these weights.

        Parameters
        ----------
        weights : (points,) array
            They sum to 1, and are 0 for faulty rows.
        """
        (used,) = np.nonzero(weights)
        if len(used) == 1:
            squared = self.all_distances[used[0], : self.n]
            if np.isfinite(squared).all() or np.isfinite(squared[~self.faulty]).all():
                distance: Array = np.sqrt(squared)
                return distance
        return self._distance_from_frame(weights)

    def _distance_from_frame(self, weights: Array) -> Array:
        gram, length = self.frame
        at = weights * length
        reach = float(np.abs(at).max())
        at /= reach
        towards = gram @ at
        longer = np.maximum(length, reach)  # so that no square overflows
        a, b = length / longer, reach / longer
        own = a * a * gram.diagonal() - 2 * (a * b) * towards + b * b * (at @ towards)
        distance: Array = (longer * np.sqrt(np.maximum(own, 0.0)))[: self.n]
        if self.any_faulty:
            distance[self.faulty] = np.inf
        return distance

    @property
    def gram(self) -> Array:
        """Inner products of the rows about a central row: (n, n). Those of faulty rows are 0."""
        gram, length = self.frame
        gram, length = gram[: self.n, : self.n], length[: self.n]
        usual = float(np.sqrt(gram.diagonal().max(initial=0.0)))
        length = np.minimum(length, 1e140 / max(usual, 1e-140))  # so that no square overflows
        products: Array = gram * (length * length[:, None])
        return products

    def order(self, scores: Array) -> NDArray[np.intp]:
        """Return the rows by ascending score: faulty rows last, ties by lowest index."""
        if self.any_faulty:
            scores = np.where(self.faulty, np.nan, scores)  # NaN sorts after +Inf
        return scores.argsort(kind="stable")

    def nearest(self) -> NDArray[np.intp]:
        """Return, for each row, the rows by distance: itself first, faulty rows last."""
        D = self.D.copy()
        if self._frame is not None and not np.isfinite(D[~self.faulty][:, ~self.faulty]).all():
            D = _apart(self._frame)[: self.n, : self.n]  # not squared: these do not overflow
        if self.any_faulty:
            D[:, self.faulty] = np.nan  # sorts after a finite row whose distance overflows
        np.fill_diagonal(D, -1.0)  # before any copy of it
        return D.argsort(axis=1, kind="stable")

    # -------------------------------------------------------------------------- what is decided

    def mean_of(
        self, rows: NDArray[np.intp] | Sequence[int], scores: Array | None = None
    ) -> Decision:
        """Decide for the mean of these rows."""
        weights = np.zeros(self.n + len(self.names))
        weights[rows] = 1.0 / len(rows)
        return Decision(weights, scores=scores)

    def mix(self, W: Array) -> Geometry:
        """Return the geometry of the rows W X.

        Parameters
        ----------
        W : (m, points) array
            Row i of the new geometry is the sum over j of W[i, j] * point j. Rows sum to 1; a row
            of NaN is faulty.
        """
        faulty: NDArray[np.bool_] = np.logical_or.reduce(np.isnan(W), axis=1)
        any_faulty = bool(faulty.any())
        if any_faulty:
            W = np.where(faulty[:, None], 0.0, W)
        m, r = len(W), len(self.names)
        points = np.zeros((m + r, self.n + r))
        points[:m] = W
        if r:
            points[m:, self.n :] = np.eye(r)
        mixed = Geometry.__new__(Geometry)
        mixed.n, mixed.names = m, self.names
        mixed.faulty, mixed.any_faulty = faulty, any_faulty
        mixed._usual = self._usual
        mixed._frame = mixed._distances = mixed._mixture = None
        if self._rows is None:
            mixed._rows = points
        else:
            mixed._rows = points @ self._rows
        if self._usual:
            assert self._frame is not None
            mixed._frame = _mixed_frame(points, self._frame, self._usual)
        else:
            D = self.all_distances
            if not np.isfinite(D).all():  # a finite row whose square overflows is merely far
                D = np.where(D.diagonal() > 0, 0.0, np.minimum(D, 1e290))
                D = np.where(D.diagonal()[:, None] > 0, 0.0, D)
            mixed._mixture = points, D
        return mixed

    def over_original(self, weights: Array) -> Array:
        """Return weights over the current points as weights over the original points."""
        return weights if self._rows is None else weights @ self._rows

    def rows_over_original(self) -> Array:
        """Return the current rows as combinations of the original points; faulty rows are NaN."""
        if self._rows is None:
            rows = np.eye(self.n, self.n + len(self.names))
        else:
            rows = self._rows[: self.n].copy()
        rows[self.faulty] = np.nan
        return rows


def _in_own_units(gram: Array, scale: Array, usual: float) -> Frame:
    """Return the frame of points read at `scale`, each brought to at most the usual distance."""
    length = np.ones_like(scale)
    np.divide(1.0, scale, out=length, where=scale > 0)
    size = np.sqrt(gram.diagonal())
    shrink = np.ones_like(size)
    if np.isfinite(usual):
        np.divide(usual, size, out=shrink, where=(size > 0) & (scale == BEYOND))
        shrink = np.maximum(shrink, length / MOST)
    return Frame(_scaled(gram, shrink), length / shrink)


def _scaled(gram: Array, by: Array) -> Array:
    """Return by_i * gram_ij * by_j, exactly symmetric."""
    gram = gram * by * by[:, None]  # the product of the two factors might underflow
    scaled: Array = (gram + gram.T) * 0.5
    return scaled


def _mixed_frame(points: Array, frame: Frame, usual: float) -> Frame:
    """Return the frame of mixed points, each in units of its new length.

    Long rows that cancel each other in a mixed row (two liars in one bucket, x and -x) leave the
    rounding of their sum behind, of which the algebra knows nothing. Where it would be seen beside
    the usual distance, it counts as a vector of its own, so that the mixed row is known to be far.
    """
    gram, length = frame
    B = points * length
    largest = np.abs(B).max(axis=1)
    largest[largest == 0] = 1.0
    B /= largest[:, None]  # so that no square overflows
    gram = B @ gram @ B.T
    if np.isfinite(usual):
        unsure = largest * ROUNDING > 0.01
        gram.ravel()[:: len(gram) + 1] += unsure * (ROUNDING * usual) ** 2
    size = np.sqrt(np.maximum(gram.diagonal(), 0.0))
    own = largest
    if np.isfinite(usual):
        own = np.clip(largest * (size / usual), 1.0, MOST)
    return Frame(_scaled(gram, largest / own), own)


def _apart(frame: Frame) -> Array:
    """Return the distances (not squared) of points in a frame."""
    gram, length = frame
    longer = np.maximum(length, length[:, None])
    a, b = length / longer, length[:, None] / longer
    own = gram.diagonal()
    squared = a * a * own + b * b * own[:, None] - 2 * (a * b) * gram
    np.maximum(squared, 0.0, out=squared)
    np.fill_diagonal(squared, 0.0)
    distances: Array = longer * np.sqrt(squared)
    return distances


def _distances(frame: Frame) -> Array:
    """Return the squared distances of points in a frame; +Inf where they overflow."""
    with np.errstate(over="ignore"):
        squared: Array = np.square(_apart(frame))
    return squared
