"""Exact search for the subset whose covariance has the least largest eigenvalue (SMEA).

The scatter of a subset S is narrower than w in every direction if and
only if z'(w I - G)z > 0 for all z != 0 that sum to 0, with G the Gram matrix of S about any
point. About one of its own rows, the base, this says that M = w (I + 11') - G is positive
definite on the other rows. Subsets inherit it. So the Schur complement A of the rows kept so far
tells which others can still join (A_ii > 0) and how much of each other's room they take.
"""

from __future__ import annotations

from math import sqrt
from typing import Any

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

from fastgar.cpu.compile import SHORT, Tiered, step
from fastgar.search import WORK_LIMIT
from fastgar.search.eigen import is_positive
from fastgar.search.subsets import (
    FREE,
    KEPT,
    REMOVED,
    SLICE,
    TIE,
    Flags,
    Limit,
    Matrix,
    Rows,
    Status,
    among,
    ball,
    every,
    first_in_order,
    largest,
    least_variance,
    mean_squares,
    usable,
)

__all__ = ["minimum_spectral_subset"]


@step
def _is_narrower(G: Any, M: Any, width: float) -> bool:
    """Return whether the scatter of rows whose Gram matrix about one more is G is that narrow."""
    n = len(G)
    for i in range(n):
        for j in range(i, n):
            M[i, j] = width - G[i, j]
        M[i, i] += width
    positive: bool = is_positive(M)
    return positive


@step
def _width(G: Any, M: Any, guess: float) -> Any:
    """Return the largest eigenvalue of the scatter, which is close to the guess, and the work.

    Bisection with the same test as the search, so that both agree to the last few digits. M is
    scratch.
    """
    tests = 2
    low, high = guess * (1.0 - 1e-12), guess * (1.0 + 1e-12)
    if not _is_narrower(G, M, high):
        low, high = 0.0, 0.0
        for i in range(len(G)):
            high += max(0.0, G[i, i])
    elif _is_narrower(G, M, low):
        low = 0.0
    while high - low > 1e-14 * high:
        middle = 0.5 * (low + high)
        tests += 1
        if _is_narrower(G, M, middle):
            high = middle
        else:
            low = middle
    return high, tests * len(G) ** 2 * (len(G) + 12) // 12


@step
def _join(A: Any, status: Any, row: Any) -> Any:
    """Keep a row, make A the Schur complement for the rows free after it, and return the work.

    Inner loops run over all columns, which is quicker than asking which are free: what stands in
    the others is never read.
    """
    status[row] = KEPT
    work = status.size
    for i in range(status.size):
        if status[i] == FREE:
            share = A[i, row] / A[row, row]
            for j in range(status.size):
                A[i, j] -= share * A[row, j]
            work += status.size // 2
    return work


@step
def _sift(A: Any, status: Any, left: Any) -> Any:
    """Remove the free rows that cannot join; `left` rows may go.

    Returns how many may go then, and the free row with the least A_ii (-1: none is free).
    """
    free, tightest = 0, -1
    for i in range(status.size):
        if status[i] == FREE and A[i, i] > 0:
            free += 1
            if tightest < 0 or A[i, i] < A[tightest, tightest]:
                tightest = i
        elif status[i] == FREE:
            status[i] = REMOVED
            left -= 1
    if free > left:
        return left, tightest
    for i in range(status.size):
        if status[i] == FREE:
            status[i] = REMOVED
    return left - free, -1


@step
def _times(A: Any, status: Any, z: Any, Az: Any) -> Any:
    """Write A z for the free rows, and return z'Az."""
    n = status.size
    for j in range(n):
        Az[j] = 0.0
    for i in range(n):
        if status[i] == FREE:
            for j in range(n):
                Az[j] += z[i] * A[i, j]
    return _dot(status, z, Az)


@step
def _dot(status: Any, a: Any, b: Any) -> Any:
    """Return the inner product over the free rows."""
    total = 0.0
    for i in range(status.size):
        if status[i] == FREE:
            total += a[i] * b[i]
    return total


@step
def _descend(A: Any, status: Any, z: Any, Az: Any, r: Any, Ar: Any) -> Any:
    """Turn z towards the lowest eigenvector over the free rows, by a few steps; return z'Az."""
    n = status.size
    norm = sqrt(_dot(status, z, z))
    for i in range(n):
        z[i] = z[i] / norm if norm > 0 else 1.0
    total = _times(A, status, z, Az)
    for _ in range(3):
        norm = _dot(status, z, z)
        low = total / norm
        for i in range(n):
            r[i] = Az[i] - low * z[i]
        length = _dot(status, r, r)
        if length <= 1e-20 * low * low * norm:
            break
        # The best mixture of z and the residual r is the lower eigenvector of a 2 x 2 matrix.
        half, side = 0.5 * (_times(A, status, r, Ar) / length - low), sqrt(length / norm)
        unit = max(abs(half), side)  # so that no square overflows
        turn = (half - unit * sqrt((half / unit) ** 2 + (side / unit) ** 2)) * norm / length
        for i in range(n):
            z[i] += turn * r[i]
            Az[i] += turn * Ar[i]
        total = _dot(status, z, Az)
    return total


@step
def _agreed(A: Any, status: Any, left: Any, z: Any, scratch: Any) -> Any:
    """Keep the rows that all subsets hold; return how many (-1: there is no subset), and the work.

    A subset leaves out a set Q of `left` free rows, and needs z'Az > 0 for what remains of z. That
    is the sum of z_i A_ij z_j, less the rows and columns of Q, plus what was then taken twice: for
    each row of Q at most what it gains where it alone chooses the others.
    """
    n = status.size
    vectors, top = scratch
    gain, terms, Az = vectors[0], vectors[1], vectors[2]
    low = _descend(A, status, z, Az, gain, terms)
    work = 20 * n
    for i in range(n):
        if status[i] == FREE:
            work += 2 * n
    if low >= 0:
        return 0, work
    if left == 0:
        return -1, work
    widest, poorest = 0.0, 0.0
    for i in range(n):
        if status[i] == FREE:
            widest = max(widest, A[i, i])
            gain[i] = z[i] * (A[i, i] * z[i] - 2 * Az[i])
            poorest = min(poorest, gain[i])
    room = 1e-12 * widest  # for rounding
    for paired in range(2):
        if paired and left > 1:
            for i in range(n):
                if status[i] == FREE:
                    for j in range(n):
                        terms[j] = z[i] * A[i, j] * z[j]
                    terms[i] = 0.0
                    work += largest(terms, status, left - 1, top) + n
                    for t in range(left - 1):
                        gain[i] += max(0.0, terms[top[t]])
        work += largest(gain, status, left, top)
        most = low
        for t in range(left):
            most += max(0.0, gain[top[t]])
        least = max(0.0, gain[top[left - 1]])
        if most - least + poorest >= -room:  # then no row is decided, paired or not
            return 0, work
    if most < -room:
        return -1, work
    agreed = 0
    for i in range(n):
        if status[i] == FREE and most - least + gain[i] < -room:
            if A[i, i] <= 0:
                return -1, work
            work += _join(A, status, i)
            agreed += 1
    return agreed, work


@step
def _busiest(A: Any, status: Any, taken: Any) -> Any:
    """Return the free row that would take the largest shares of the others' room."""
    n = status.size
    for j in range(n):
        taken[j] = 0.0
    for i in range(n):
        if status[i] == FREE:
            for j in range(n):
                taken[j] += A[i, j] * A[i, j] / A[i, i]
    row = -1
    for i in range(n):
        if status[i] == FREE and (row < 0 or taken[i] * A[row, row] > taken[row] * A[i, i]):
            row = i
    return row


@step
def _duplicate(source: Any, target: Any) -> None:
    """Copy number by number: assigning a slice would cost three more seconds of compilation."""
    for i in range(source.shape[0]):
        for j in range(source.shape[1]):
            target[i, j] = source[i, j]


@step
def _narrower(twins: Any, levels: Any, level: Any, budget: Any, scratch: Any) -> Any:
    """Search depth first for rows on which M is positive definite; each level removes one more.

    The Schur complement of level i is matrices[source[i]]: its own once a row was kept there.
    Rows with the same number in `twins` are equal: without one, its twins need not be tried.
    Called again at the level that it returned, it goes on where the budget stopped it. Returns
    whether there are such rows (1, 0; -1: the budget was spent first), the work, and the level of
    `states` that holds them.
    """
    matrices, source, states, vectors, left, choices = levels
    work = 0
    while work < budget:
        A, state = matrices[level], states[level]
        n = state.size
        work += 4 * n
        if source[level] != level:
            _duplicate(matrices[source[level]], A)
            source[level] = level
            work += n * n * (1 + n // 128)  # large ones leave the caches, and need new memory
        left[level], row = _sift(A, state, left[level])
        if left[level] >= 0 and row < 0:
            return 1, work, level
        agreed = -1
        if left[level] >= 0:
            agreed, more = _agreed(A, state, left[level], vectors[level], scratch)
            work += more
        if agreed > 0:
            continue
        if agreed == 0 and left[level] == 0:
            work += _join(A, state, row)
        elif agreed == 0:
            # First try without the row that takes most, and on return (below) with it.
            work += n * n
            row = choices[level] = _busiest(A, state, scratch[0][0])
            left[level + 1], source[level + 1] = left[level], source[level]
            for i in range(n):
                states[level + 1, i], vectors[level + 1, i] = state[i], vectors[level, i]
                if state[i] == FREE and twins[i] == twins[row]:
                    states[level + 1, i] = REMOVED
                    left[level + 1] -= 1
            level += 1
        elif level == 0:
            return 0, work, level
        else:
            level -= 1
            work += _join(matrices[level], states[level], choices[level])
    return -1, work, level


WIDTH = Tiered(_width)
JOIN = Tiered(_join, *SHORT)
NARROWER = Tiered(_narrower, make=1.0)  # which takes three or four


def _about(base: np.intp, K: Matrix) -> Matrix:
    """Return the Gram matrix about one of the rows."""
    moved: Matrix = K - (K[base] + K[base][:, None]) + K[base, base]
    return moved


def _widest(G: Matrix) -> NDArray[np.float64]:
    """Return centred rows' projections on about their widest direction, the longest as 1."""
    vector: NDArray[np.float64] = G[:, np.argmax(np.diagonal(G))]
    for _ in range(20):
        vector = vector / (np.abs(vector).max() or 1.0)
        vector = G @ vector
    return vector / (np.abs(vector).max() or 1.0)


def _peel(K: Matrix, size: int) -> Flags:
    """Return the flags of `size` rows: the longest along the widest direction goes, and again.

    Where many rows are to go, an eighth of them goes at a time.
    """
    rows = np.arange(len(K))
    while rows.size > size:
        G = K[np.ix_(rows, rows)]
        G = G - G.mean(axis=0)
        G -= G.mean(axis=1, keepdims=True)
        leave = -(-(rows.size - size) // 8)
        rows = np.sort(rows[np.abs(_widest(G)).argsort(kind="stable")[:-leave]])
    return np.isin(np.arange(len(K)), rows)


def _widths(K: Matrix, subsets: Rows) -> Matrix:
    """Return the largest eigenvalue of the scatter of each subset."""
    G = K[subsets[:, :, np.newaxis], subsets[:, np.newaxis]]
    G = G - G[:, :1]  # about the first row of each: of equal rows exactly 0
    G -= G[:, :, :1]
    G -= G.mean(axis=1, keepdims=True)
    G -= G.mean(axis=2, keepdims=True)
    widths: Matrix = np.maximum(np.linalg.eigvalsh(G)[:, -1], 0.0)
    return widths


def _least_along(K: Matrix, subset: Flags) -> float:
    """Return a variance in the widest direction that no subset with as many rows is below.

    A subset's variance along any direction is at least that of the narrowest window of as many rows
    along it. This one is about the widest direction of a good subset.
    """
    to_mean = K[:, subset].mean(axis=1)
    G = (K - to_mean - to_mean[:, None] + to_mean[subset].mean())[subset]
    mixture = _widest(G[:, subset])
    along = mixture @ G
    length = np.sqrt(max(mixture @ along[subset], 0.0)) or 1.0
    windows = sliding_window_view(np.sort(along / length), int(subset.sum()))
    return float(windows.var(axis=1).min()) * (1 - 1e-9)  # for rounding


def minimum_spectral_subset(
    K: Matrix, size: int, work_limit: int = WORK_LIMIT, allowed: Flags | None = None
) -> Rows:
    """Return the `size` rows whose covariance has the least largest eigenvalue.

    Eigenvalues within a relative 1e-12 of the least are ties, of which the lexicographically first
    set of indices is taken.

    Parameters
    ----------
    K : (n, n) float64
        Inner products of the rows about any point; its precision is best if that is near the rows
        that stay. Rows of infinite length are chosen only if there are too few others: then the
        first rows are.
    size, work_limit
        As in `minimum_diameter_subset`.
    allowed : (n,) bool, optional
        The rows that may be chosen; by default all. What K holds of the others is not read.

    Returns
    -------
    rows : (size,) int64
        Indices, ascending.

    Raises
    ------
    SearchLimit
        The limit was met. It has the best rows so far.
    ValueError
        Fewer than `size` rows are allowed.

    Notes
    -----
    Up to 10 ms at n = 20, f = 4 and 0.1 s at n = 30, f = 8. At n = 51, f = 12 it takes from 3 ms to
    all that it may, the less the more the rows to leave out stand out: where none do, and d is
    large, the search meets the limit.

    The search starts at the narrower of two subsets, of which one is where the search for the least
    variance starts: at most twice the least. A largest eigenvalue is between the variance and the
    variance over the number of dimensions, at most size - 1: so it is at most 2 (size - 1) times
    the least.
    """
    n = len(K)
    rows = usable(np.ones(n, bool) if allowed is None else np.asarray(allowed), size)
    limit = Limit("smea", n, size, work_limit)
    finite = rows[np.isfinite(np.diagonal(K)[rows])]
    if finite.size < size or rows.size == size:
        return rows[:size]
    rows = finite
    K = np.ldexp(among(rows, K), -20)  # so that no sum overflows
    n = len(K)
    subset = _peel(K, size)
    K = _about(np.argmax(subset), K)  # rounded here once, and hardly again
    subsets = every(n, size)
    if subsets is not None:
        widths = _widths(K, subsets)
        best: Rows = subsets[(widths <= widths.min() * (1 + TIE)).argmax()]
        return rows[best]
    sums = np.diagonal(K)[:, None] + np.diagonal(K)
    D = np.maximum(sums - 2 * K, 0.0)
    squares = mean_squares(D, size)
    both = np.stack([subset, ball(D, squares, size)])
    subset = both[_widths(K, np.nonzero(both)[1].reshape(2, size)).argmin()]
    # A row far from the others rules out the most, so it is the first base.
    bases = np.argsort(-squares, kind="stable")
    twins = np.unique(K, axis=0, return_inverse=True)[1].reshape(n)
    scratch = np.zeros((3, n)), np.zeros(n, np.int64)
    depth = n - size + 2
    matrices = np.empty((depth, n, n))  # pages that are not written take no memory
    states, vectors = np.zeros((depth, n), np.int8), np.ones((depth, n))
    source, lefts, choices = np.zeros((3, depth), np.int64)
    levels = matrices, source, states, vectors, lefts, choices

    def search_with(base: np.intp, status: Status, width: float) -> Flags | None:
        limit.spend(10 * n * n)
        matrices[0], states[0], vectors[0] = width - _about(base, K), status, 1.0
        lefts[0] = n - size - np.count_nonzero(status == REMOVED)
        matrices[0, np.arange(n), np.arange(n)] += width
        kept = np.flatnonzero(status == KEPT)
        states[0, kept], states[0, base] = FREE, KEPT
        others = kept[kept != base]
        if (matrices[0, others, others] <= 0).any():
            return None
        for row in others:
            if matrices[0, row, row] <= 0:
                return None
            limit.spend(JOIN(matrices[0], states[0], row))
        found, level = -1, 0
        while found < 0:
            budget = min(SLICE, limit.left)
            found, work, level = NARROWER(twins, levels, level, budget, scratch)
            limit.spend(work)
        subset: Flags = states[level] == KEPT
        return subset if found == 1 else None

    def search(status: Status, width: float) -> Flags | None:
        kept = np.flatnonzero(status == KEPT)
        if kept.size:
            return search_with(kept[0], status, width)
        # Two rows of a subset are as wide as half their squared distance, and it is no narrower.
        near = D - TIE * sums <= 2 * width
        status = np.where(np.count_nonzero(near, axis=1) >= size, status, REMOVED).astype(np.int8)
        for base in bases:
            if np.count_nonzero(status == REMOVED) > n - size:
                break
            if status[base] != REMOVED:
                found = search_with(base, status, width)
                if found is not None:
                    return found
                status[twins == twins[base]] = REMOVED
        return None

    def width(subset: Flags) -> float:
        base, *others = np.flatnonzero(subset)
        G = _about(base, K)[np.ix_(others, others)]
        guess = _widths(K, np.flatnonzero(subset)[np.newaxis])[0]
        width, work = WIDTH(G, np.empty_like(G), float(guess))
        limit.found(rows[subset], float(np.ldexp(width / size, 20)))
        limit.spend(work)
        return float(width)

    narrowest = max(_least_along(K, subset), least_variance(squares, size) / max(size - 1, 1))
    limit.bound = float(np.ldexp(narrowest, 20))
    least = width(subset)
    limit.spend(n**3 // 4)  # what led here: NumPy's
    while least > 0:
        found = search(np.zeros(n, np.int8), least * (1 - TIE))
        if found is None or width(found) >= least:
            break
        subset, least = found, width(found)
    limit.bound = limit.value
    if least == 0:  # equal rows: two that differ are wider than this
        if not (D > 0).any():
            return rows[:size]
        least = D[D > 0].min() / 4
    return rows[first_in_order(subset, size, lambda status: search(status, least * (1 + TIE)))]
