"""Weighted sums of rows: k rows of W X in one pass, four rows by WIDTH vectors at a time."""

from __future__ import annotations

from fastgar.cpu.compile import Kernel
from fastgar.cpu.tiles import itemsize_of, lanes_of, mix, take
from fastgar.cpu.vectors import WIDTH

STEP = 4096  # columns that a thread takes at a time


def _combine(  # type: ignore[no-untyped-def]
    counter, rows, n, weights, row, k, outs, columns, pieces, dtype, _
):  # fmt: skip
    """Write the k rows of W X at the addresses `outs`; `row` bytes separate the rows of W."""
    lanes, size = lanes_of(dtype), itemsize_of(dtype)
    whole = k - k % 4
    vectors = WIDTH if whole else 4
    while True:
        piece = take(counter)
        if piece >= pieces:
            return True
        stop = columns if piece == pieces - 1 else (piece + 1) * STEP
        for j in range(piece * STEP, stop, vectors * lanes):
            at = min(j, columns - vectors * lanes) * size
            for i in range(0, whole, 4):
                mix(rows, n, at, weights + i * row, row, outs + 8 * i, at, 4, WIDTH, dtype, dtype)
            for i in range(whole, k):
                if whole:
                    mix(
                        rows,
                        n,
                        at,
                        weights + i * row,
                        row,
                        outs + 8 * i,
                        at,
                        1,
                        WIDTH,
                        dtype,
                        dtype,
                    )
                else:  # few sums: longer runs of each row suit the memory better
                    mix(rows, n, at, weights + i * row, row, outs + 8 * i, at, 1, 4, dtype, dtype)


COMBINE = Kernel(_combine, 9)
