"""All pairs of rows in one pass: squared distances, or inner products about a pivot row.

Pairs are taken in blocks of BLOCK by BLOCK rows: with 4, eight loads feed sixteen differences and
multiply-adds. Sums run in vectors of the computing type over SPAN columns, then in float64; each
chunk of CHUNK columns gives one partial matrix, and partial matrices are added in order, so the
bits do not depend on the number of threads, nor on how a long row is cut into multiples of CHUNK.

A non-finite row shows as NaN on the diagonal of a partial matrix of distances.
"""

from __future__ import annotations

from math import inf
from typing import Any

from llvmlite import ir
from numba import types

from fastgar.cpu.compile import SHORT, Kernel, Tiered, part, step
from fastgar.cpu.emit import emit
from fastgar.cpu.tiles import (
    allocate,
    cgutils,
    element,
    integer_at,
    itemsize_of,
    lanes_of,
    number_at,
    put_integer,
    release,
    take,
)
from fastgar.cpu.vectors import BLOCK, I64, Value, Vectors
from fastgar.dtypes import CODES, ITEMSIZE
from fastgar.statistic import CHUNK

DOUBLE = CODES["float64"]
SPAN = 1024  # columns over which sums stay in vectors
OWN, OTHERS = 5, 8  # how the times compare that pairs within a block and between two blocks take


def _soon(
    b: Any, sources: Any, ahead: Any, points: Any, done: Any, whole: Any, work: int
) -> list[Any]:
    """Return where memory is to fetch from while a block is computed: `ahead` bytes on, in rows.

    Each block fetches a few of the rows, so that memory is as busy all the time: the first rows in
    the share of the `whole` work that is done, up to those in what is then done. At most four.
    """
    first, end = (
        b.sdiv(b.mul(part, points), whole) for part in (done, b.add(done, ir.Constant(I64, work)))
    )
    last = b.sub(end, ir.Constant(I64, 1))
    last = b.select(b.icmp_signed("<", first, last), last, first)
    rows = [b.add(first, ir.Constant(I64, k)) for k in range(4)]
    rows = [b.select(b.icmp_signed("<", row, last), row, last) for row in rows]
    return [b.add(element(b, sources, row), ahead) for row in rows]


@emit(types.void)
def _pairs(
    b: Value, table: Value, i: Value, j: Value, vectors: Value, sources: Value, ahead: Value,
    partial: Value, points: Value, done: Value, whole: Value, rows: int, others: int, own: int,
    products: int, source: str, dtype: str,
) -> None:  # fmt: skip
    """Add the block of rows i to i + rows against rows j to j + others to the partial matrix.

    `own` means the pairs of rows i to i + rows with themselves, each once, and the diagonal. The
    kernel is compiled for each remainder of the number of points, which may be 0: then for nothing.
    """
    pairs = [(p, q) for p in range(rows) for q in range(p if own else 0, others)]
    if not pairs:
        return
    v = Vectors(b, dtype)

    def starts(first: Any, count: int) -> list[Any]:
        return [element(b, table, b.add(first, ir.Constant(I64, k))) for k in range(count)]

    left = starts(i, rows)
    right = left if own else starts(j, others)
    soon = _soon(b, sources, ahead, points, done, whole, OWN if own else OTHERS)
    pace = v.lanes * ITEMSIZE[source]
    totals = [cgutils.alloca_once_value(b, v.constant(0.0)) for _ in pairs]
    with cgutils.for_range(b, vectors) as loop:
        offset = b.mul(loop.index, ir.Constant(I64, v.stored))
        ahead_by = b.mul(loop.index, ir.Constant(I64, pace))
        for start in soon:
            v.prefetch(start, ahead_by)
        x = [v.load(start, offset) for start in left]
        y = x if own else [v.load(start, offset) for start in right]
        for (p, q), total in zip(pairs, totals, strict=True):
            before = b.load(total, typ=v.type)
            if products:
                after = v.fma(x[p], y[q], before)
            elif own and p == q:
                after = v.fma(x[p], v.constant(0.0), before)  # NaN unless the row is finite
            else:
                difference = b.fsub(x[p], y[q])
                after = v.fma(difference, difference, before)
            b.store(after, total)
    sums = dict(zip(pairs, (b.load(total, typ=v.type) for total in totals), strict=True))
    width = 1 << (others - 1).bit_length()  # so that the sums of a row lie in one vector
    values = [sums.get((p, q), v.constant(0.0)) for p in range(rows) for q in range(width)]
    values += [v.constant(0.0)] * (-len(values) % v.lanes)
    lines = v.lane_sums(values)
    kind = ir.VectorType(ir.DoubleType(), others)
    for p in range(rows):
        vector, lane = divmod(p * width, v.lanes)
        mine = v.picked(lines[vector], range(lane, lane + others))
        place = b.mul(b.add(i, ir.Constant(I64, p)), points)
        place = b.add(place, i if own else j)
        pointer = v.pointer(partial, b.mul(place, ir.Constant(I64, 8)))
        known = b.load(pointer, typ=kind, align=8)
        b.store(b.fadd(known, mine), pointer, align=8)


@part
def _all_pairs(  # type: ignore[no-untyped-def]
    table, vectors, sources, ahead, partial, points, rest, products, dtype, compute
):  # fmt: skip
    """Add all pairs of points; `rest`, a compile-time constant, is points % BLOCK.

    Meanwhile memory is to fetch what is `ahead` bytes on from `sources`, of another dtype.
    """
    end = points - rest
    blocks = (points + BLOCK - 1) // BLOCK
    whole = blocks * OWN + blocks * (blocks - 1) // 2 * OTHERS
    done = 0
    for i in range(0, end, BLOCK):
        _pairs(
            table, i, i, vectors, sources, ahead, partial, points, done, whole, BLOCK, BLOCK, 1,
            products, dtype, compute,
        )  # fmt: skip
        done += OWN
        for j in range(i + BLOCK, end, BLOCK):
            _pairs(
                table, i, j, vectors, sources, ahead, partial, points, done, whole, BLOCK, BLOCK, 0,
                products, dtype, compute,
            )  # fmt: skip
            done += OTHERS
        if rest:
            _pairs(
                table, i, end, vectors, sources, ahead, partial, points, done, whole, BLOCK, rest,
                0, products, dtype, compute,
            )  # fmt: skip
            done += OTHERS
    _pairs(
        table, end, end, vectors, sources, ahead, partial, points, done, whole, rest, rest, 1,
        products, dtype, compute,
    )  # fmt: skip


@emit(types.void)
def _copy_row(
    b: Value, source: Value, count: Value, padded: Value, target: Value, pivot: Value,
    scale: Value, dtype: str, compute: str,
) -> None:  # fmt: skip
    """Write scale * (source - pivot), `count` numbers of the computing type, at `target`.

    `pivot` 0: just the numbers. Zeros follow up to `padded`.
    """
    v, wide = Vectors(b, dtype), Vectors(b, compute)

    def write(index: Any, number: Any) -> None:
        place = wide.pointer(target, b.mul(index, ir.Constant(I64, wide.itemsize)))
        b.store(number, place, align=wide.itemsize)

    centred = b.icmp_signed("!=", pivot, ir.Constant(I64, 0))
    with b.if_else(centred) as (about_pivot, plain):
        with about_pivot, cgutils.for_range(b, count) as loop:
            offset = b.mul(loop.index, ir.Constant(I64, v.itemsize))
            centre = v.load_one(pivot, offset, wide.scalar)
            difference = b.fsub(v.load_one(source, offset, wide.scalar), centre)
            write(loop.index, b.fmul(wide.narrowed(scale), difference))
        with plain:
            done = ir.Constant(I64, 0)
            if v.lanes == wide.lanes:  # halves are widened by the vector
                lanes = ir.Constant(I64, v.lanes)
                vectors = b.sdiv(count, lanes)
                done = b.mul(vectors, lanes)
                with cgutils.for_range(b, vectors) as loop:
                    numbers = v.load(source, b.mul(loop.index, ir.Constant(I64, v.stored)))
                    place = b.mul(loop.index, ir.Constant(I64, wide.stored))
                    wide.store(numbers, target, place)
            with cgutils.for_range(b, count, start=done) as loop:
                offset = b.mul(loop.index, ir.Constant(I64, v.itemsize))
                write(loop.index, v.load_one(source, offset, wide.scalar))
    with cgutils.for_range(b, padded, start=count) as loop:
        write(loop.index, ir.Constant(wide.scalar, 0.0))


def _partials(  # type: ignore[no-untyped-def]
    counter, rows, moves, points, columns, first, pieces, flags, partials, pivot, scales,
    staged, rest, products, dtype, compute,
):  # fmt: skip
    """Add to the (zero) partial matrix of each piece what chunk number first + piece holds.

    In float32 each piece gets a flag: whether something in its matrix is infinite. In float64
    `flags`, unless 0, say which pieces to do.
    """
    lanes, size = lanes_of(compute), itemsize_of(dtype)
    pitch = SPAN * itemsize_of(compute) + 64  # no power of two: rows would share cache sets
    scratch = allocate(64 + points * (pitch + 16))
    if not scratch:
        return False
    tile = (scratch + 63) // 64 * 64
    copies = tile + points * pitch  # where each row is copied to
    sources = copies + points * 8  # where each row goes on
    for i in range(points):
        put_integer(copies, i, tile + i * pitch)
    following = take(counter)
    while following < pieces:
        piece = following
        if compute == DOUBLE and flags and integer_at(flags, piece) == 0:
            following = take(counter)
            continue
        start = (first + piece) * CHUNK
        stop = min(start + CHUNK, columns)
        partial = partials + piece * points * points * 8
        for begin in range(start, stop, SPAN):
            count = min(SPAN, stop - begin)
            ahead = SPAN * size
            if begin + SPAN >= stop:  # the last span: memory is to fetch the first of what follows
                following = take(counter)
                ahead = ((first + following) * CHUNK - begin) * size if following < pieces else 0
            for i in range(points):
                move = integer_at(moves, i) if moves else 1
                put_integer(sources, i, integer_at(rows, i) + begin * size * move)
            done = 0 if staged else count - count % lanes
            for copied in range(done == 0, 1 + (done < count)):
                table, vectors = sources, done // lanes
                if copied:  # widened, centred or too few for a vector: a copy in the cache
                    left = count - done
                    table, vectors = copies, (left + lanes - 1) // lanes
                    centre = integer_at(sources, pivot) if scales else 0
                    for i in range(points):
                        scale = number_at(scales, i, DOUBLE) if scales else 1.0
                        read = left if scale != 0.0 else 0  # scale 0 means not read
                        source, place = integer_at(sources, i) + done * size, tile + i * pitch
                        _copy_row(
                            source, read, vectors * lanes, place, centre, scale, dtype, compute
                        )
                _all_pairs(
                    table, vectors, sources, ahead, partial, points, rest, products, dtype, compute
                )
        if compute != DOUBLE:
            found = 0
            for pair in range(points * points):
                found |= number_at(partial, pair, DOUBLE) == inf
            put_integer(flags, piece, found)
    release(scratch)
    return True


PARTIALS = Kernel(_partials, 11)


@step
def complete(total: Any, distances: bool) -> None:
    """Fill the lower triangle; of distances, make all that concerns a faulty row +Inf."""
    for i in range(len(total)):
        for j in range(i + 1, len(total)):
            if distances and (total[i, i] != 0.0 or total[j, j] != 0.0):
                total[i, j] = inf
            total[j, i] = total[i, j]
    for i in range(len(total)):
        if distances and total[i, i] != 0.0:
            total[i, i] = inf


COMPLETE = Tiered(complete, *SHORT)
