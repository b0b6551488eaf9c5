"""Weighted sums of rows: k rows of W X in one pass, four rows by WIDTH vectors at a time.

And the sum of one row with weight 1: a copy.
"""

from __future__ import annotations

from fastgar.cpu.compile import Kernel
from fastgar.cpu.tiles import copy, itemsize_of, lanes_of, mix, take
from fastgar.cpu.vectors import AHEAD, WIDTH

STEP = 4096  # columns that a thread takes at a time
PART = 1 << 17  # bytes of a copy that a thread makes at a time


def _combine(  # type: ignore[no-untyped-def]
    counter, rows, n, weights, row, k, outs, columns, pieces, dtype, stream
):  # fmt: skip
    """Write the k rows of W X at the addresses `outs`; `row` bytes separate the rows of W.

    `stream`: past the caches; what follows in a thread, such as its last `take`, waits for that.
    """
    lanes, size = lanes_of(dtype), itemsize_of(dtype)
    whole = k - k % 4
    vectors = WIDTH if whole else 4
    while True:
        piece = take(counter)
        if piece >= pieces:
            return True
        half = pieces // 2
        if stream and piece < 2 * half:  # by turns in two halves: two threads touch fresh pages
            piece = piece % 2 * half + piece // 2  # that are far apart, and need not wait
        stop = columns if piece == pieces - 1 else (piece + 1) * STEP
        for j in range(piece * STEP, stop, vectors * lanes):
            at = min(j, columns - vectors * lanes) * size
            for i in range(0, whole, 4):  # 64 bytes further on in a row each time
                mix(
                    rows, n, at, at + AHEAD + 16 * i, weights + i * row, row, outs + 8 * i, at, 4,
                    WIDTH, dtype, dtype, stream,
                )  # fmt: skip
            for i in range(whole, k):
                soon, some, place = at + AHEAD, weights + i * row, outs + 8 * i
                if whole:
                    mix(rows, n, at, soon, some, row, place, at, 1, WIDTH, dtype, dtype, stream)
                else:  # few sums: longer runs of each row suit the memory better
                    mix(rows, n, at, soon, some, row, place, at, 1, 4, dtype, dtype, stream)


COMBINE = Kernel(_combine, 9)


def _copy(counter, source, target, size, pieces):  # type: ignore[no-untyped-def]
    while True:
        piece = take(counter)
        if piece >= pieces:
            return True
        begin = piece * PART
        copy(target + begin, source + begin, size - begin if piece == pieces - 1 else PART)


COPY = Kernel(_copy, 5)
