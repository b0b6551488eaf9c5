"""The second half of condense: some columns of a result become those of the first row."""

from __future__ import annotations

import numpy as np

from fastgar.cpu.compile import Kernel, part
from fastgar.cpu.tiles import copy_number, itemsize_of, take
from fastgar.statistic import hash64

__all__ = ["PIECE", "REPLACE"]

PIECE = 8192  # columns that a thread takes at a time

_hash64 = part(hash64)


def _replace(counter, source, result, columns, pieces, key, below, offset, dtype):  # type: ignore[no-untyped-def]
    """Copy from source to result the columns of which the hash's upper 53 bits are not `below`.

    Of what is copied -0 becomes +0, as in the other columns.
    """
    size = itemsize_of(dtype)
    while True:
        piece = take(counter)
        if piece >= pieces:
            return True
        stop = columns if piece == pieces - 1 else (piece + 1) * PIECE
        for j in range(piece * PIECE, stop):
            draw = _hash64(np.uint64(key), np.uint64(offset + j)) >> np.uint64(11)
            kept = source if draw >= np.uint64(below) else result  # no branch, which nobody guesses
            copy_number(result + j * size, kept + j * size, dtype)


REPLACE = Kernel(_replace, 8)
