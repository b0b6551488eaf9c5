"""Where the rows and results of the leaves of a model are, as kernels are told it.

One array is told by an address and a stride. Rows that lie apart, and several leaves together, are
told by a table, which has a record for each leaf: see `kernels/common.cuh`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

__all__ = ["NOWHERE", "NULL", "RECORD", "Layout", "Piece", "Places", "records"]

Addresses = NDArray[np.int64]

NULL = 0
RECORD = 4  # numbers of a record before its addresses


class Layout(NamedTuple):
    """How addresses lie."""

    first: int
    stride: int | None  # from each to the next, where that is the same
    bits: int  # those that are set in any of them

    @staticmethod
    def of(places: Sequence[int], regular: bool) -> Layout:
        """Return the layout; where not `regular`, with no stride though there might be one."""
        first, count = places[0], len(places)
        if count == 1:
            return Layout(first, 0 if first else None, first)
        stride = places[1] - first
        regular = regular and first != NULL and stride != 0
        if regular and places == list(range(first, first + count * stride, stride)):
            return Layout(first, stride, first | stride)
        bits = 0
        for place in places:
            bits |= place
        return Layout(first, None, bits)


NOWHERE = Layout(NULL, 0, 0)


class Piece(NamedTuple):
    """Rows of one leaf, and where what is made of them goes."""

    rows: Addresses
    columns: int
    dtype: str
    outs: Sequence[int]
    layout: Layout  # of the rows
    target: Layout  # of the results
    alignment: int  # the greatest power of two up to 16 that divides all addresses


class Places(NamedTuple):
    """Where rows and results are, as kernels take it."""

    table: bool
    rows: int
    stride: int  # in bytes; the number of leaves, where there is a table
    outs: int
    out_stride: int
    units: int  # of work in all
    owner: Any


def records(
    pieces: Sequence[Piece], units: Sequence[int], offsets: Sequence[int] = ()
) -> NDArray[np.int64]:
    """Return the table of leaves that have so many units of work each.

    `offsets` is what each record says of its leaf's beginning: the number of its first column, or
    the place of its first triangle.
    """
    n, k = len(pieces[0].rows), len(pieces[0].outs)
    table = np.zeros((len(pieces), RECORD + n + k), np.int64)
    table[1:, 0], table[:, 1] = np.cumsum(units[:-1]), units
    table[:, 3] = offsets or 0
    for record, piece in zip(table, pieces, strict=True):
        record[2] = piece.columns
        record[RECORD : RECORD + n] = piece.rows
        record[RECORD + n :] = piece.outs
    return table
