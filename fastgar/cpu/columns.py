"""Order statistics of every column, of the rows themselves or of a mixing W of them.

Two kernels give the same bits. For a number of rows fixed at compile time (up to 128), LANES
columns sit in registers, one vector per row, and a comparator network that was pruned to the wanted
ranks runs over them. For any number of rows, a tile of LANES columns is sorted in the cache: runs
of 16 in registers, then bitonic merges, eight rows at a time.

No kernel knows an order of -0 and +0, so a result that is zero is +0.
"""

from __future__ import annotations

import math
from typing import Any

from llvmlite import ir
from numba import types

from fastgar.cpu.compile import Kernel, part
from fastgar.cpu.emit import emit
from fastgar.cpu.tiles import (
    add_slot,
    add_weighted,
    allocate,
    clean,
    element,
    fill,
    finish,
    finite_tile,
    flip,
    integer_at,
    itemsize_of,
    lanes_of,
    load_tile,
    mix,
    network,
    number_at,
    put_integer,
    release,
    store_vector,
    take,
)  # fmt: skip
from fastgar.cpu.vectors import AHEAD, I64, WIDTH, Value, Vectors
from fastgar.dtypes import computing
from fastgar.networks import pruned, sorting

LEAST, USUAL = 4096, 32768  # columns that a thread takes at a time
WHOLE = 64  # columns: a multiple of what any kernel computes at a time


def pieces_of(columns: int, threads: int) -> int:
    """Return how many pieces of columns there are for threads to take.

    Long ones, since memory is read faster in long runs; but several for each thread, in case one is
    slow, and none that is shorter than it is worth.
    """
    short = columns // LEAST
    return 1 if short < 2 else min(short, max(columns // USUAL, 8 * threads))


def _mean(v: Vectors, values: list[Any]) -> Any:
    """Average without overflow: summed at a scale (a power of two) at which it cannot."""
    if len(values) == 1:
        return values[0]
    scale = 2.0 ** -math.ceil(math.log2(len(values)))
    partial = [v.builder.fmul(x, v.constant(scale)) for x in values[:4]]
    for position, x in enumerate(values[4:]):
        partial[position % 4] = v.fma(x, v.constant(scale), partial[position % 4])
    total = v.sum(partial)
    if len(values) * scale == 1.0:
        return total
    return v.builder.fdiv(total, v.constant(len(values) * scale))


def _closest(v: Vectors, ordered: list[Any], centre: Any, k: int) -> list[Any]:
    """Return the k sorted values closest to the centre: a window that slides while it nears."""
    window = list(ordered[:k])
    for t in range(len(ordered) - k):
        nearer = v.nearer(ordered[t + k], ordered[t], centre)
        window[t % k] = v.builder.select(nearer, ordered[t + k], window[t % k])
    return window


def _all_finite_or_cleaned(v: Vectors, values: list[Any], faults: Any) -> tuple[list[Any], Any]:
    """Return the values, NaN made +Inf, and NaN in the columns with too many non-finite ones.

    The usual case costs one multiply-add a value; the repair sits behind a branch.
    """
    b, zero = v.builder, v.constant(0.0)
    partial = [zero] * 4
    for position, x in enumerate(values):
        partial[position % 4] = v.fma(x, zero, partial[position % 4])  # NaN unless finite
    total = v.sum(partial)
    usual, repair, join = b.block, b.append_basic_block(), b.append_basic_block()
    b.cbranch(v.any(b.fcmp_unordered("uno", total, total)), repair, join)
    b.position_at_end(repair)
    count, cleaned = zero, []
    for x in values:
        value, count = v.cleaned(x, count)
        cleaned.append(value)
    cleaned.append(v.poison(count, faults))
    b.branch(join)
    b.position_at_end(join)
    merged = []
    for before, after in zip([*values, zero], cleaned, strict=True):
        phi = b.phi(v.type)
        phi.add_incoming(before, usual)
        phi.add_incoming(after, repair)
        merged.append(phi)
    return merged[:-1], merged[-1]


@emit(types.void)
def _in_registers(
    b: Value, rows: Value, at: Value, out: Value, to: Value, faults: Value, n: int, lo: int,
    hi: int, k: int, dtype: str, result: str,
) -> None:  # fmt: skip
    """Compute one vector of columns, read at rows[i] + at, written at out + to."""
    source, target, v = Vectors(b, dtype), Vectors(b, result), Vectors(b, computing(dtype))
    loaded = [source.load(element(b, rows, ir.Constant(I64, i)), at) for i in range(n)]
    values, poison = _all_finite_or_cleaned(v, loaded, faults)
    v.sort(values, sorting(n) if k else pruned(sorting(n), range(lo, hi)))
    value = _mean(v, values[lo:hi])
    if k:
        value = _mean(v, _closest(v, values, value, k))
    target.store(v.poisoned(value, poison), out, to, signed=False)


def _fixed(  # type: ignore[no-untyped-def]
    counter, rows, out, columns, pieces, faults, n, lo, hi, k, dtype
):  # fmt: skip
    lanes, size = lanes_of(dtype), itemsize_of(dtype)
    step = columns // pieces // WHOLE * WHOLE
    while True:
        piece = take(counter)
        if piece >= pieces:
            return True
        stop = columns if piece == pieces - 1 else (piece + 1) * step
        for j in range(piece * step, stop, lanes):
            at = min(j, columns - lanes) * size
            _in_registers(rows, at, out, at, faults, n, lo, hi, k, dtype, dtype)


@part
def _mix_read_only(rows, n, at, weights, place, dtype, compute):  # type: ignore[no-untyped-def]
    """Leave at `place` one vector of one mixed row, without reading rows of weight zero."""
    fill(place, -0.0, compute)
    for i in range(n):
        weight = number_at(weights, i, compute)
        if weight != 0.0:
            add_weighted(place, integer_at(rows, i) + at, weight, dtype)


@part
def _mix_tile(  # type: ignore[no-untyped-def]
    rows, n, at, weights, row, careful, m, tiles, dtype, compute
):  # fmt: skip
    """Fill m tile rows, WIDTH vectors wide, with W X; rows of W are `row` bytes apart."""
    whole = m - m % 4
    for i in range(0, whole, 4):
        some, place = weights + i * row, tiles + 8 * i
        mix(rows, n, at, at + AHEAD + 16 * i, some, row, place, 0, 4, WIDTH, dtype, compute, 0, 0)
    for i in range(whole, m):
        some, place = weights + i * row, tiles + 8 * i
        mix(rows, n, at, at + AHEAD, some, row, place, 0, 1, WIDTH, dtype, compute, 0, 0)
    if careful:  # a zero weight means "not read", and 0 * NaN is NaN: look again where that shows
        for i in range(m):
            for w in range(WIDTH):
                place = integer_at(tiles, i) + w * lanes_of(dtype) * itemsize_of(compute)
                if not finite_tile(place, 1, 0, compute):
                    here = at + w * lanes_of(dtype) * itemsize_of(dtype)
                    _mix_read_only(rows, n, here, weights + i * row, place, dtype, compute)


def _fixed_mixed(  # type: ignore[no-untyped-def]
    counter, rows, n, weights, row, careful, out, columns, pieces, faults,
    m, lo, hi, k, dtype, compute,
):  # fmt: skip
    lanes, size = lanes_of(dtype), itemsize_of(dtype)
    vector = lanes * itemsize_of(compute)
    pitch = WIDTH * vector
    scratch = allocate(64 + m * (pitch + 8))
    if not scratch:
        return False
    tile = (scratch + 63) // 64 * 64
    table = tile + m * pitch
    for i in range(m):
        put_integer(table, i, tile + i * pitch)
    step = columns // pieces // WHOLE * WHOLE
    while True:
        piece = take(counter)
        if piece >= pieces:
            break
        stop = columns if piece == pieces - 1 else (piece + 1) * step
        for j in range(piece * step, stop, WIDTH * lanes):
            first = min(j, columns - WIDTH * lanes)
            _mix_tile(rows, n, first * size, weights, row, careful, m, table, dtype, compute)
            for w in range(WIDTH):
                to = (first + w * lanes) * size
                _in_registers(table, w * vector, out, to, faults, m, lo, hi, k, compute, dtype)
    release(scratch)
    return True


@part
def _sort_tile(tile, pitch, n, compute):  # type: ignore[no-untyped-def]
    """Sort n tile rows; those from n to the next power of two (at least 16) must be +Inf."""
    for row in range(0, n, 16):
        network(tile + row * pitch, pitch, 16, 0, compute)
    run = 16
    while run < n:
        for start in range(0, n - run, 2 * run):
            _merge_runs(tile, pitch, start, run, n, compute)
        run *= 2


@part
def _merge_runs(tile, pitch, start, run, n, compute):  # type: ignore[no-untyped-def]
    """Merge the sorted runs at start and start + run: half-cleaners at strides run ... 8, 4, 2, 1.

    Three strides at a time (eight rows in registers), the last four within blocks of 16.
    """
    end = min(start + 2 * run, n)
    if run == 16:
        stride = 16
        for i in range(max(0, 32 - (end - start)), 16):
            flip(tile + (start + i) * pitch, tile + (start + 31 - i) * pitch, pitch, 0, compute)
    elif run == 32:
        stride = 16
        for i in range(16):
            flip(
                tile + (start + i) * pitch, tile + (start + 63 - i) * pitch, 16 * pitch, 1, compute
            )
    else:
        stride = run // 4
        for i in range(stride):
            low, high = tile + (start + i) * pitch, tile + (start + 2 * run - 1 - i) * pitch
            flip(low, high, stride * pitch, 2, compute)
    while stride > 16:
        rows = min(stride // 16, 8)
        last = stride // rows
        for block in range(start, end, stride):
            for i in range(block, block + last):
                if rows == 8:
                    network(tile + i * pitch, last * pitch, 8, 1, compute)
                elif rows == 4:
                    network(tile + i * pitch, last * pitch, 4, 1, compute)
                else:
                    network(tile + i * pitch, last * pitch, 2, 1, compute)
        stride = last
    for row in range(start, end, 16):
        network(tile + row * pitch, pitch, 16, 1, compute)


@part
def _average(tile, pitch, lo, hi, ranks, totals, compute):  # type: ignore[no-untyped-def]
    """Leave at `totals` the mean of the sorted rows lo to hi, or their sum weighted by `ranks`."""
    vector = lanes_of(compute) * itemsize_of(compute)
    scale, divisor = 1.0, 1.0
    if not ranks:
        while scale * (hi - lo) > 1.0:
            scale *= 0.5
        divisor = (hi - lo) * scale
    for i in range(4):
        fill(totals + i * vector, -0.0, compute)
    for i in range(lo, hi):
        weight = number_at(ranks, i, 3) if ranks else scale
        add_weighted(totals + ((i - lo) % 4) * vector, tile + i * pitch, weight, compute)
    finish(totals, vector, divisor, compute)


@part
def _average_closest(tile, pitch, n, k, centre, totals, compute):  # type: ignore[no-untyped-def]
    """Leave at `totals` the mean of the k sorted rows closest to the vector at `centre`."""
    vector = lanes_of(compute) * itemsize_of(compute)
    scale = 1.0
    while scale * k > 1.0:
        scale *= 0.5
    for i in range(4):
        fill(totals + i * vector, -0.0, compute)
    for slot in range(k):
        add_slot(totals + (slot % 4) * vector, tile, pitch, n, slot, k, centre, scale, compute)
    finish(totals, vector, k * scale, compute)


def _any(  # type: ignore[no-untyped-def]
    counter, rows, n, weights, row, careful, out, columns, pieces, faults, m, lo, hi, k, ranks,
    dtype, compute,
):  # fmt: skip
    lanes, size = lanes_of(dtype), itemsize_of(dtype)
    vector = lanes * itemsize_of(compute)
    width = WIDTH if weights else 1
    pitch = width * vector
    padded = 16
    while padded < m:
        padded *= 2
    scratch = allocate(64 + padded * (pitch + 8) + 6 * vector)
    if not scratch:
        return False
    base = (scratch + 63) // 64 * 64
    totals = base + padded * pitch
    centre, poison = totals + 4 * vector, totals + 5 * vector
    tiles = poison + vector
    for i in range(padded):
        put_integer(tiles, i, base + i * pitch)
    for i in range(m, padded):
        for w in range(width):
            fill(base + i * pitch + w * vector, math.inf, compute)
    step = columns // pieces // WHOLE * WHOLE
    while True:
        piece = take(counter)
        if piece >= pieces:
            break
        stop = columns if piece == pieces - 1 else (piece + 1) * step
        for j in range(piece * step, stop, width * lanes):
            first = min(j, columns - width * lanes) * size
            if weights:
                _mix_tile(rows, n, first, weights, row, careful, m, tiles, dtype, compute)
            for w in range(width):
                tile, to = base + w * vector, first + w * lanes * size
                if weights:
                    finite = finite_tile(tile, m, pitch, compute)
                else:
                    finite = load_tile(rows, m, to, tile, pitch, dtype)
                if finite:
                    fill(poison, 0.0, compute)
                else:
                    clean(tile, m, pitch, poison, faults, compute)
                _sort_tile(tile, pitch, m, compute)
                _average(tile, pitch, lo, hi, ranks, totals, compute)
                if k:
                    fill(centre, 0.0, compute)
                    add_weighted(centre, totals, 1.0, compute)
                    _average_closest(tile, pitch, m, k, centre, totals, compute)
                store_vector(totals, poison, out + to, dtype)
    release(scratch)
    return True


FIXED = Kernel(_fixed, 6)
FIXED_MIXED = Kernel(_fixed_mixed, 10)
ANY = Kernel(_any, 15)
