"""What `primitives` needs of where the rows are: kernels for the CPU, or for one GPU.

A backend takes addresses and n x n numbers. What it makes for itself, it gets back as it was: sums
of pairs (`Total`), and what was chosen of the rows (`Chosen`), which need not be on the host.
"""

from __future__ import annotations

from typing import Any, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from .statistic import Statistic

__all__ = ["Addresses", "Backend", "Matrix"]

Matrix = NDArray[np.float64]
Addresses = NDArray[np.int64]  # where the first number of each row is

Total = TypeVar("Total")
Chosen = TypeVar("Chosen", contravariant=True)


class Backend(Protocol[Total, Chosen]):
    """What reads rows.

    Attributes
    ----------
    ORIGIN : int
        The address that stands for a row of zeros.
    """

    ORIGIN: int

    def matrix(self, points: int, start: Matrix | None) -> Total:
        """Return a matrix to add to: of zeros, or a copy of `start`."""

    def add_distances(
        self, total: Total, rows: Addresses, columns: int, dtype: str, *, fresh: bool = False
    ) -> None:
        """Add squared distances to `total`, in which there are only zeros if it is `fresh`."""

    def add_inner(
        self, total: Total, rows: Addresses, columns: int, dtype: str, pivot: int, scales: Matrix
    ) -> None:
        """Add inner products of scales_i * (row_i - row_pivot) to `total`."""

    def complete(self, total: Total, distances: bool) -> Matrix:
        """Return the matrix, symmetric; of distances, what concerns a faulty row is +Inf."""

    def combine(
        self, weights: Matrix | Chosen, rows: Addresses, columns: int, dtype: str, outs: list[int]
    ) -> None:
        """Write the k rows of `weights` (k, n) times X at the k addresses `outs`."""

    def columns(
        self, rows: Addresses, count: int, dtype: str, statistic: Statistic,
        mixing: Matrix | Chosen | None, out: int, *, careful: bool = False, offset: int = 0,
        whole: bool = False,
    ) -> None:  # fmt: skip
        """Write the statistic of each of `count` columns of X, or of mixing @ X, at `out`."""

    def flush(self) -> None:
        """Do what was put off."""

    def span(self, columns: int, n: int) -> int:
        """Return how many columns to take where a statistic and the distances to it are wanted."""

    def room(self, size: int) -> tuple[int, Any]:
        """Return the address of fresh memory, and its owner."""

    def numbers(self, place: int, count: int, dtype: str) -> Matrix:
        """Return the `count` numbers at `place` in double precision."""
