"""The second half of condense: some columns of a result become those of the first row."""

from __future__ import annotations

from typing import Any

import numpy as np

from fastgar.cpu.compile import Kernel, part
from fastgar.cpu.tiles import copy, itemsize_of, take

__all__ = ["PIECE", "REPLACE"]

PIECE = 8192  # columns that a thread takes at a time


@part
def _hash64(key: Any, index: Any) -> Any:
    """Return what `fastgar.primitives.hash64` does."""
    z = key + index * np.uint64(0x94D049BB133111EB)
    for _ in range(2):
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        z = z ^ (z >> np.uint64(31))
    return z


def _replace(counter, source, result, columns, pieces, key, below, offset, dtype):  # type: ignore[no-untyped-def]
    """Copy from source to result the columns of which the hash's upper 53 bits are not `below`."""
    size = itemsize_of(dtype)
    while True:
        piece = take(counter)
        if piece >= pieces:
            return True
        stop = columns if piece == pieces - 1 else (piece + 1) * PIECE
        for j in range(piece * PIECE, stop):
            draw = _hash64(np.uint64(key), np.uint64(offset + j)) >> np.uint64(11)
            kept = source if draw >= np.uint64(below) else result  # no branch, which nobody guesses
            copy(result + j * size, kept + j * size, size)


REPLACE = Kernel(_replace, 8)
