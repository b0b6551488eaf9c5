"""Weighted sums of rows: one sum, or k rows of W X in one pass, four by WIDTH vectors at a time.

And the sum of one row with weight 1: a copy.
"""

from __future__ import annotations

from fastgar.cpu.compile import Kernel
from fastgar.cpu.tiles import (
    allocate,
    copy,
    integer_at,
    itemsize_of,
    lanes_of,
    mix,
    number_at,
    put_integer,
    put_number,
    release,
    take,
)
from fastgar.cpu.vectors import AHEAD, WIDTH

STEP = 4096  # columns that a thread takes at a time
RUN = 4  # vectors of a row, and of the only sum, at a time: longer runs suit the memory better
PART = 1 << 17  # bytes of a copy that a thread makes at a time


def _combine_one(  # type: ignore[no-untyped-def]
    counter, rows, n, weights, out, columns, pieces, dtype, compute
):  # fmt: skip
    """Write at `out` the sum of rows with n weights. Weight 0 means not read; not all are 0."""
    room = allocate(16 * n + 8)
    if room == 0:
        return False
    used, count = room + 8 * n + 8, 0
    put_integer(room, n, out)
    for i in range(n):
        weight = number_at(weights, i, compute)
        if weight != 0.0:
            put_number(room, count, weight, dtype)
            put_integer(used, count, integer_at(rows, i))
            count += 1
    run, size = RUN * lanes_of(dtype), itemsize_of(dtype)
    while True:
        piece = take(counter)
        if piece >= pieces:
            release(room)
            return True
        stop = columns if piece == pieces - 1 else (piece + 1) * STEP
        for j in range(piece * STEP, stop, run):
            at = min(j, columns - run) * size
            mix(
                used, count, at, at + AHEAD, room, 0, room + 8 * n, at, 1, RUN, dtype, dtype, 0, 0
            )  # fmt: skip


COMBINE_ONE = Kernel(_combine_one, 7)


def _combine(  # type: ignore[no-untyped-def]
    counter, rows, n, weights, row, k, outs, columns, pieces, dtype, stream
):  # fmt: skip
    """Write the k rows of W X at the addresses `outs`; `row` bytes separate the rows of W.

    Weight 0 means not read; no row of W has nothing else.

    `stream`: past the caches; what follows in a thread, such as its last `take`, waits for that.
    """
    lanes, size = lanes_of(dtype), itemsize_of(dtype)
    whole = k - k % 4
    while True:
        piece = take(counter)
        if piece >= pieces:
            return True
        half = pieces // 2
        if stream and piece < 2 * half:  # by turns in two halves: two threads touch fresh pages
            piece = piece % 2 * half + piece // 2  # that are far apart, and need not wait
        stop = columns if piece == pieces - 1 else (piece + 1) * STEP
        for j in range(piece * STEP, stop, WIDTH * lanes):
            at = min(j, columns - WIDTH * lanes) * size
            for i in range(0, whole, 4):  # 64 bytes further on in a row each time
                mix(
                    rows, n, at, at + AHEAD + 16 * i, weights + i * row, row, outs + 8 * i, at, 4,
                    WIDTH, dtype, dtype, stream, 1,
                )  # fmt: skip
            for i in range(whole, k):
                soon, some, place = at + AHEAD, weights + i * row, outs + 8 * i
                mix(rows, n, at, soon, some, row, place, at, 1, WIDTH, dtype, dtype, stream, 1)


COMBINE = Kernel(_combine, 9)


def _copy(counter, source, target, size, pieces):  # type: ignore[no-untyped-def]
    while True:
        piece = take(counter)
        if piece >= pieces:
            return True
        begin = piece * PART
        copy(target + begin, source + begin, size - begin if piece == pieces - 1 else PART)


COPY = Kernel(_copy, 5)
