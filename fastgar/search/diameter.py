"""Exact search for the subset of rows with the least diameter (MDA)."""

from __future__ import annotations

import numpy as np

from fastgar.search import WORK_LIMIT
from fastgar.search.bitsets import find_cover, neighbours, pack, pack_all, unpack
from fastgar.search.subsets import (
    CLOSEST,
    KEPT,
    REMOVED,
    Find,
    Flags,
    Limit,
    Matrix,
    Rows,
    Status,
    among,
    ball,
    every,
    first_in_order,
    usable,
)

__all__ = ["minimum_diameter_subset", "within"]

LOOK = 300  # operations that are as long as one look of `find_cover`, which is interpreted


def within(D: Matrix, distance: float, size: int, limit: Limit) -> Find:
    """Return the search for `size` rows of which no two are further apart than the distance.

    They exist if and only if some cover of the pairs that are holds no more rows than may go.
    """
    graph = pack_all(np.greater(D, distance))

    def find(status: Status) -> Flags | None:
        present, kept = pack(status != REMOVED), pack(status == KEPT)
        left = present & ~neighbours(graph, kept)
        if kept & ~left:
            return None
        spare = left.bit_count() - size
        cover, looks = find_cover(graph, left & ~kept, spare, limit.left // LOOK + 1)
        limit.spend(LOOK * (looks + len(D)))
        return None if cover is None else unpack(left & ~cover, len(D))

    return find


def minimum_diameter_subset(D: Matrix, size: int, work_limit: int = WORK_LIMIT) -> Rows:
    """Return the `size` rows with the least largest distance between two of them.

    Ties go to the lexicographically first set of indices; distances are compared as they are.

    Parameters
    ----------
    D : (n, n) float64
        Squared distances, symmetric. A row with an infinite diagonal entry is faulty and never
        chosen; a pair of other rows may be infinitely far apart.
    size : int
        Rows to choose, n - f.
    work_limit : int
        Operations that the search may take, of about a nanosecond each.

    Returns
    -------
    rows : (size,) int64
        Indices, ascending.

    Raises
    ------
    SearchLimit
        The limit was met. It has the best rows so far.
    ValueError
        Fewer than `size` rows are usable.

    Notes
    -----
    As at least half of the rows stay, few pairs are far at the threshold that matters, and the
    reductions of `find_cover` leave little to branch on, if the rows are points and nobody chose
    them: some 10 ms at n = 100.

    The search starts at the `size` rows within the least radius about a row. In the best subset
    all rows are within its diameter of each, so the radius is at most that diameter, and two rows
    in that radius are at most twice as far apart.
    """
    best: Rows
    rows = usable(np.isfinite(np.diagonal(D)), size)
    limit = Limit("mda", len(D), size, work_limit)
    D = among(rows, D)
    subsets = every(len(D), size)
    if subsets is not None:
        best = subsets[CLOSEST(D, subsets, False, np.empty(len(subsets)))]
        return rows[best]
    undecided = np.zeros(len(D), np.int8)
    # Each row that stays has `size` rows within the diameter, itself among them.
    radius = np.partition(D, size - 1, axis=1)[:, size - 1]
    least = np.partition(radius, size - 1)[size - 1]
    subset = ball(D, radius, size)
    most = D[np.ix_(subset, subset)].max()
    limit.found(rows[subset], np.sqrt(most))
    distances = np.unique(D)
    distances = distances[distances.searchsorted(least) : distances.searchsorted(most) + 1]
    low, high = 0, len(distances) - 1
    while low < high:
        limit.bound = np.sqrt(distances[low])
        middle = (low + high) // 2
        found = within(D, distances[middle], size, limit)(undecided)
        if found is None:
            low = middle + 1
        else:
            high, subset = middle, found
            best = np.flatnonzero(found)[:size]
            limit.found(rows[best], np.sqrt(D[np.ix_(best, best)].max()))
    limit.bound = limit.value
    find = within(D, distances[high], size, limit)
    return rows[first_in_order(subset, size, find)]
