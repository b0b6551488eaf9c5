"""The main directions of the spread of weighted rows, found again each time weights have fallen.

With weights c, K the inner products of the rows and r the roots of c, what the spread is along a
direction are the eigenvalues of P R K R P, where R = diag(r) and P takes away what is along r. That
is Lanczos' method, begun with the directions found before: LAPACK looks for all of them, and its
threads take 20 times as long where cores are busy.
"""

from __future__ import annotations

from collections.abc import Callable
from hashlib import blake2b
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastgar.cpu.compile import INTERPRETED, SHORT, Tiered, jit, step
from fastgar.search.subsets import Limit

__all__ = ["FRESH", "PROVED", "ROUNDING", "Spread", "error", "is_positive"]

SMALL = 24  # rows up to which LAPACK does not share its work between threads: from 26 on it does
WIDEST = SMALL  # vectors at once
KEPT, STEPS = 16, 128  # vectors with which it begins again, and steps after which it is left
FRESH = 4  # vectors by chance at first; as many with the same eigenvalue are told apart
ALONE = 1 << 18  # multiply-adds that OpenBLAS does in one thread
ROUNDING = 1e-13  # of a product with n numbers, relatively
CERTAIN, PROVED = 1.001, 1.1  # times a value that is proved to be the largest; so it stays to this
OVERHEAD = 50_000  # operations that are as long as the rest of one step, which is NumPy

Array = NDArray[np.float64]
# From eigenvalues, vectors and how far each is from being one, to the next to improve, if any.
Enough = Callable[[Array, Array, Array], "int | None"]


@step
def is_positive(M: Any) -> bool:
    """Return whether a symmetric matrix is positive definite. Overwrites its upper triangle.

    64 rows at a time are taken from 256 columns at a time, which stay in the cache for that long.
    """
    n, k = len(M), 0
    while k < n:
        end = min(k + 64, n)
        for p in range(k, end):
            if not M[p, p] > 0:
                return False
            for i in range(p + 1, end):
                share, row, above = M[p, i] / M[p, p], M[i, i:], M[p, i:]
                for j in range(n - i):
                    row[j] -= share * above[j]
        for begin in range(end, n, 256):
            stop = min(begin + 256, n)
            for i in range(end, stop):
                low = max(i, begin)
                row = M[i, low:stop]
                for p in range(k, end, 4):
                    a, b = M[p, i] / M[p, p], M[p + 1, i] / M[p + 1, p + 1]
                    c, d = M[p + 2, i] / M[p + 2, p + 2], M[p + 3, i] / M[p + 3, p + 3]
                    first, second = M[p, low:stop], M[p + 1, low:stop]
                    third, fourth = M[p + 2, low:stop], M[p + 3, low:stop]
                    for j in range(stop - low):
                        row[j] -= a * first[j] + b * second[j] + (c * third[j] + d * fourth[j])
        k = end
    return True


def _times(K: Any, X: Any, products: Any) -> None:
    """Write the products of vectors with the first rows and columns of a symmetric matrix.

    Reading that takes longest: it is read once for four vectors, and half of it for the others.
    """
    count, n = X.shape
    v = 0
    while v + 4 <= count:
        for w in range(v, v + 4):
            for j in range(n):
                products[w, j] = 0.0
        for i in range(n):
            a, b, c, d = X[v, i], X[v + 1, i], X[v + 2, i], X[v + 3, i]
            for j in range(n):
                products[v, j] += a * K[i, j]
                products[v + 1, j] += b * K[i, j]
                products[v + 2, j] += c * K[i, j]
                products[v + 3, j] += d * K[i, j]
        v += 4
    for w in range(v, count):
        x, y = X[w], products[w]
        for j in range(n):
            y[j] = 0.0
        for i in range(0, n - 1, 2):
            a, b, own, other = x[i], x[i + 1], 0.0, 0.0
            for j in range(i):
                own += K[i, j] * x[j]
                other += K[i + 1, j] * x[j]
                y[j] += a * K[i, j] + b * K[i + 1, j]
            y[i] += own + K[i, i] * a + K[i + 1, i] * b
            y[i + 1] += other + K[i + 1, i] * a + K[i + 1, i + 1] * b
        if n % 2:
            own = 0.0
            for j in range(n - 1):
                own += K[n - 1, j] * x[j]
                y[j] += x[n - 1] * K[n - 1, j]
            y[n - 1] += own + K[n - 1, n - 1] * x[n - 1]


POSITIVE = Tiered(is_positive, *SHORT)
TIMES = jit(_times, regroup=True)  # in the order the compiler likes: it is never interpreted


def _mixed(mixture: Array, vectors: Array) -> Array:
    """Return mixtures of long vectors, which OpenBLAS forms in one thread."""
    wide = max(1, ALONE // max(mixture.size, 1))
    mixed = np.empty((len(mixture), vectors.shape[1]))
    for begin in range(0, vectors.shape[1], wide):
        some = slice(begin, begin + wide)
        mixed[:, some] = mixture @ vectors[:, some]
    return mixed


def _inner(vectors: Array, others: Array) -> Array:
    """Return the inner products of long vectors, formed in one thread."""
    wide = max(1, ALONE // (len(vectors) * len(others)))
    total = np.zeros((len(vectors), len(others)))
    for begin in range(0, vectors.shape[1], wide):
        some = slice(begin, begin + wide)
        total += vectors[:, some] @ others[:, some].T
    return total


def _length(vector: Array) -> float:
    """Return the length of a vector whose squares may be too small or too large to be numbers."""
    largest = float(np.abs(vector).max(initial=0.0))
    if not largest > 0:
        return 0.0
    unit = vector / largest
    return largest * float(np.sqrt(np.einsum("i,i", unit, unit)))


def _without(vectors: Any, place: int) -> Any:
    """Return vectors without a number, in whose place the last one is."""
    vectors = vectors.copy()
    vectors[..., place] = vectors[..., -1]
    return vectors[..., :-1]


def error(values: Array, lengths: Array) -> float:
    """Return about how far the first vector is from an eigenvector, from what `Enough` gets.

    What is at right angles to all vectors has eigenvalues below theirs, and it is what mixes them.
    """
    apart = values[0] - values[1 : len(lengths)]
    if not (values[0] > values[-1] and (apart > 0).all()):
        return 0.0 if lengths[0] == 0 else float("inf")
    mixing = 1.0 + float((lengths[1:] / apart).sum())
    return float(lengths[0] / (values[0] - values[-1]) * mixing)


class Spread:
    """Rows whose weights only fall, and the directions in which they spread the most.

    Parameters
    ----------
    K : (n, n) array
        Inner products of the rows about any point near them. The weights are 1 at first.
    limit : Limit
        What the work is booked on, in operations of about a nanosecond.

    Attributes
    ----------
    rows : (m,) array of int
        The rows that have a weight, in the order of what vectors hold: the last row has the place
        of one that went.
    """

    def __init__(self, K: Array, limit: Limit) -> None:
        self._exponent = int(np.frexp(np.diagonal(K).max(initial=0.0))[1])
        self._K = np.ascontiguousarray(np.ldexp(K, -self._exponent))
        self.rows = np.arange(len(K))
        self._root = np.ones(len(K))
        self._limit = limit
        # The vectors found last, and their products with the matrix, if these are still known.
        self._basis = self._images = np.empty((0, len(K)))
        self._rounded = 0.0  # the largest eigenvalue when the images were last formed anew
        self._most = 0.0  # no eigenvalue is above it, if it is not 0
        self._chance: np.random.Generator | None = None
        limit.spend(10 * K.size)

    def weigh(self, weights: Array) -> None:
        """Let the rows have these weights, in the order of `rows`; none is larger than before."""
        root = np.sqrt(weights)
        self._basis = self._basis * (root / self._root)
        self._root = root
        for place in np.flatnonzero(weights == 0)[::-1]:
            self._basis = _without(self._basis, place)
            self._leave(place)
        self._basis = self._centred(self._basis)
        self._images = self._basis[:0]

    def drop(self, place: int) -> None:
        """Let a row go, of rows with the same weight."""
        m = len(self.rows)
        if len(self._images):  # which are those of what the vectors had along this row, less
            alone = np.full((1, m), -1.0 / (m - 1.0))
            alone[0, place] = 1.0
            self._images = self._images - self._basis[:, place, None] * self._times(alone)
        self._basis, self._images = _without(self._basis, place), _without(self._images, place)
        self._leave(place)
        self._basis, self._images = self._centred(self._basis), self._centred(self._images)

    def _leave(self, place: int) -> None:
        """Give the last row the place of one that goes."""
        K, last = self._K, len(self.rows) - 1
        K[place, : last + 1] = K[last, : last + 1]
        K[: last + 1, place] = K[: last + 1, last]
        self.rows, self._root = _without(self.rows, place), _without(self._root, place)

    def same(self, places: NDArray[np.intp]) -> bool:
        """Return whether these rows are equal, as far as their inner products tell."""
        m = len(self.rows)
        first = self._K[places[0], :m]
        return all((self._K[place, :m] == first).all() for place in places[:0:-1])

    def projections(self, vector: Array) -> Array:
        """Return how far each row is from the mean along the direction of an eigenvector."""
        root = self._root
        along = self._products((vector * root)[None])[0]
        along -= np.einsum("i,i,i", along, root, root) / np.einsum("i,i", root, root)
        projections: Array = np.ldexp(along, self._exponent)
        return projections

    def main(self, enough: Enough, certain: bool = True) -> tuple[Array, Array]:
        """Return the largest eigenvalues, in descending order, and unit vectors of them.

        Up to 24 rows have all. Otherwise there are at most 16, as good as `enough` asks for or as
        they are after 128 steps. The first is the largest eigenvalue to 1 part in 10, if that must
        be `certain`.

        Returns
        -------
        values : (k,) array
        vectors : (k, m) array
        """
        m = len(self.rows)
        if m <= SMALL:
            values, vectors = self._all()
        else:
            values, vectors = self._improved(enough), self._basis
            if certain and not self._proved(values[0], PROVED):
                values, vectors = self._all()
                values = values[:KEPT]
                self._basis = vectors = np.ascontiguousarray(vectors[:KEPT])
                self._images = vectors[:0]
        return np.ldexp(values, self._exponent), vectors

    def proves(self, value: float) -> bool:
        """Return whether no eigenvalue is more than 1 part in 1000 above this one."""
        return self._proved(float(np.ldexp(value, -self._exponent)), 1.0)

    def _proved(self, value: float, slack: float) -> bool:
        """Return whether no eigenvalue is that far above; asked for less, it need not be so."""
        m = len(self.rows)
        A = self._matrix()
        if not value > 0:
            return not (A.diagonal() > 0).any()
        if 0 < self._most <= value * slack:  # a matrix that gets smaller all the time
            return True
        self._limit.spend(m**3 // 15)
        A *= -1.0
        A[np.arange(m), np.arange(m)] += CERTAIN * value
        if not POSITIVE(A):
            return False
        self._most = CERTAIN * value
        return True

    def _matrix(self) -> Array:
        m, root = len(self.rows), self._root
        self._limit.spend(10 * m * m)
        A = self._K[:m, :m] * root * root[:, None]
        unit = root / np.sqrt(np.einsum("i,i", root, root))
        A -= np.einsum("ij,j->i", A, unit)[:, None] * unit
        A -= np.einsum("ij,i->j", A, unit) * unit[:, None]
        return A

    def _all(self) -> tuple[Array, Array]:
        A = self._matrix()
        self._limit.spend(len(A) ** 3 + OVERHEAD)
        values, vectors = np.linalg.eigh((A + A.T) / 2)
        return values[::-1], vectors.T[::-1]

    def _centred(self, vectors: Array) -> Array:
        root = self._root
        along = np.einsum("ij,j->i", vectors, root) / np.einsum("i,i", root, root)
        centred: Array = vectors - along[:, None] * root
        return centred

    def _times(self, vectors: Array) -> Array:
        """Return the products of vectors, which are at right angles to r, with P R K R P."""
        return self._centred(self._products(vectors * self._root) * self._root)

    def _products(self, vectors: Array) -> Array:
        k, m = vectors.shape
        self._limit.spend(k * (m * m // 4 + 100 * m) + OVERHEAD)
        products = np.empty((k, m))
        if m <= INTERPRETED:
            np.matmul(vectors, self._K[:m, :m], out=products)
        else:
            TIMES(self._K, vectors, products)
        return products

    def _by_chance(self, count: int) -> Array:
        """Return random vectors, which the rows themselves draw: nobody can aim beside them."""
        if self._chance is None:
            digest = blake2b(self._K.data, digest_size=16).digest()
            self._chance = np.random.default_rng(int.from_bytes(digest, "little"))
        return self._chance.normal(size=(count, len(self.rows)))

    def _start(self) -> tuple[Array, int]:
        """Return room for r and a basis, and for its images, and how many vectors it begins with.

        They are what is left of the vectors found last and, as that may lack what nothing leads to,
        one by chance.
        """
        root, basis, images = self._root, self._basis, self._images
        if len(basis):
            values, mixture = np.linalg.eigh(_inner(basis, basis))
            held = values > 0.01
            mixture = (mixture[:, held] / np.sqrt(values[held])).T
            basis = _mixed(mixture, basis)
            images = _mixed(mixture, images) if len(images) else images
        k, known = len(basis), len(images)
        room = np.empty((2, 1 + WIDEST, len(root)))
        room[0, 0] = root / np.sqrt(np.einsum("i,i", root, root))
        room[0, 1 : 1 + k], room[1, 1 : 1 + known] = basis, images
        for vector in self._by_chance(1 if k else FRESH):
            k += 1
            room[0, k] = _beside(room[0, :k], vector)
        room[1, 1 + known : 1 + k] = self._times(room[0, 1 + known : 1 + k])
        return room, k

    def _improved(self, enough: Enough) -> Array:
        fresh = not len(self._images)
        room, k = self._start()
        basis, images = room[:, 1:]
        steps = 0
        while True:
            self._limit.spend(OVERHEAD)
            inner = _inner(basis[:k], images[:k])
            values, mixture = np.linalg.eigh((inner + inner.T) / 2)
            values, mixture = values[::-1][:KEPT], mixture.T[::-1][:KEPT]
            basis[: len(values)] = _mixed(mixture, basis[:k])
            images[: len(values)] = _mixed(mixture, images[:k])
            k = len(values)
            if fresh:
                self._rounded, fresh = values[0], False
            elif values[0] < self._rounded / 16:  # what a far row left behind is too large
                images[:k], fresh = self._times(basis[:k]), True
                continue
            rests = images[: min(k, FRESH)] - values[:FRESH, None] * basis[: min(k, FRESH)]
            weakest = enough(values, basis[:k], np.array([_length(rest) for rest in rests]))
            if weakest is None or steps >= STEPS:
                break
            following = rests[weakest]
            while k < WIDEST:
                basis[k] = _beside(room[0, : 1 + k], following)
                following = images[k] = self._times(basis[k : k + 1])[0]
                k, steps = k + 1, steps + 1
        self._basis, self._images = basis[:k].copy(), images[:k].copy()
        return values


def _beside(basis: Array, vector: Array) -> Array:
    """Return the part of a vector at right angles to a basis, as a unit vector."""
    vector = vector / (_length(vector) or 1.0)
    for _ in range(3):
        vector = vector - np.einsum("i,ij->j", np.einsum("ij,j->i", basis, vector), basis)
        length = np.sqrt(np.einsum("i,i", vector, vector))
        vector /= length or 1.0
        if length > 0.7:
            break
    return vector
