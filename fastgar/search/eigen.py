"""The largest eigenvalue of a symmetric matrix and its eigenvector, in one thread."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastgar.cpu.compile import SHORT, Tiered, step

__all__ = ["is_positive", "largest_eigenpair", "largest_eigenspace"]

SMALL = 24  # rows up to which LAPACK does not share its work between threads: from 26 on it does
STEPS, WIDEST, KEPT = 128, SMALL, 8
DIRECTIONS = 4  # with the same eigenvalue, that are told apart among more than SMALL

Array = NDArray[np.float64]


@step
def is_positive(M: Any) -> bool:
    """Return whether a symmetric matrix is positive definite. Overwrites its upper triangle."""
    n = len(M)
    for k in range(n):
        if not M[k, k] > 0:
            return False
        for i in range(k + 1, n):
            share = M[k, i] / M[k, k]
            for j in range(i, n):
                M[i, j] -= share * M[k, j]
    return True


POSITIVE = Tiered(is_positive, *SHORT)


def largest_eigenpair(A: Array) -> tuple[float, Array]:
    """Return the largest eigenvalue and a unit vector of it.

    To rounding, or to 1 part in 1000 where many eigenvalues are as close as that to the largest.
    LAPACK looks for all of them, and its threads take 20 times as long where cores are busy. So it
    is Lanczos' method, begun again with the `KEPT` best vectors when there are `WIDEST`; and LAPACK
    only where that missed the largest, as one can have it do who knows where it starts.
    """
    n = len(A)
    if n > SMALL:
        value, vector = _krylov(A)
        if POSITIVE(value * 1.001 * np.eye(n) - A):
            return value, vector
    values, vectors = np.linalg.eigh(A)
    return float(values[-1]), vectors[:, -1]


def largest_eigenspace(A: Array, share: float) -> tuple[float, Array]:
    """Return the largest eigenvalue and the unit vectors of those that are this share of it.

    Among more than 24 rows found as `largest_eigenpair` does, and of more than four such vectors
    four: so the work is bounded where somebody chose all eigenvalues to be the same.

    Returns
    -------
    value : float
    vectors : (n, k) array
    """
    if len(A) <= SMALL:
        values, vectors = np.linalg.eigh(A)
        return float(values[-1]), vectors[:, values >= values[-1] * share]
    value, vector = largest_eigenpair(A)
    found, other = [vector], value
    while len(found) < DIRECTIONS:
        A = A - other * np.outer(vector, vector)
        other, vector = _krylov(A)
        if not other >= value * share:
            break
        found.append(vector)
    return value, np.stack(found, axis=1)


def _krylov(A: Array) -> tuple[float, Array]:
    """Return an eigenvalue and its vector: the largest, if the start is not orthogonal to it."""
    n = len(A)
    basis, images = np.zeros((2, WIDEST, n))
    following, k = np.random.default_rng(0).normal(size=n), 0
    for turn in range(1, STEPS + 1):
        for _ in range(2):  # the second time for what rounding left
            following = following - (basis[:k] @ following) @ basis[:k]
            following /= np.linalg.norm(following) or 1.0
        basis[k] = following
        following = images[k] = A @ basis[k]
        k += 1
        if turn % KEPT == 0:
            values, mixtures = np.linalg.eigh(basis[:k] @ images[:k].T)
            value, best = float(values[-1]), mixtures[:, -1]
            rest = best @ images[:k] - value * (best @ basis[:k])
            vector = best @ basis[:k]
            if np.linalg.norm(rest) <= 1e-14 * value:
                break
            if k == WIDEST:
                k, following = KEPT, rest
                basis[:k] = mixtures[:, -k:].T @ basis
                images[:k] = mixtures[:, -k:].T @ images
    return value, vector
