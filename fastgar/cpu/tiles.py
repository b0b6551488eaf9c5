"""Building blocks of the kernels that keep a tile of columns in the cache.

A tile is a small aligned matrix of the computing type: row r starts at `tile + r * pitch`, and one
vector of it holds LANES neighbouring columns. Every function here is straight-line vector code or
a loop of it; what is looped over how often is said in plain Numba in `columns.py` and `combine.py`.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

from llvmlite import ir
from numba import extending, types
from numba.core import cgutils as numba_cgutils

from fastgar.cpu.vectors import I64, Vectors
from fastgar.dtypes import DTYPES, ITEMSIZE, computing
from fastgar.networks import bitonic_merge, sorting

__all__ = [
    "add_slot", "add_weighted", "allocate", "cgutils", "clean", "copy", "copy_number", "element",
    "fill", "finish", "finite_tile", "flip", "integer_at", "itemsize_of", "lanes_of", "literal",
    "load_tile", "mix", "network", "number_at", "put_integer", "put_number", "release",
    "store_vector", "take",
]  # fmt: skip

cgutils: Any = numba_cgutils  # Numba is hardly typed, and compiled code not at all
intrinsic: Any = extending.intrinsic
literal: Any = intrinsic(prefer_literal=True)


def _integer(value: int) -> Any:
    return ir.Constant(I64, value)


def element(b: Any, table: Any, index: Any) -> Any:
    """Return the 64-bit integer at position `index` of the array at address `table`."""
    pointer = b.inttoptr(b.add(table, b.mul(index, _integer(8))), ir.PointerType())
    return b.load(pointer, typ=I64)


def _accumulator(b: Any, v: Vectors, start: float) -> Any:
    return cgutils.alloca_once_value(b, v.constant(start))


def _get(b: Any, v: Vectors, slot: Any) -> Any:
    return b.load(slot, typ=v.type)


@intrinsic
def take(typingctx: Any, counter: Any) -> Any:
    """Return the number at the address `counter` and add 1 to it, as one atomic step."""

    def codegen(context: Any, b: Any, signature: Any, args: Any) -> Any:
        pointer = b.inttoptr(args[0], ir.PointerType())
        return b.atomic_rmw("add", pointer, _integer(1), "monotonic")

    return types.intp(types.intp), codegen


def _fact(of: Callable[[Vectors], int]) -> Any:
    """Make an intrinsic that is a number known from the dtype."""

    @literal
    def fact(typingctx: Any, dtype: Any) -> Any:
        def codegen(context: Any, b: Any, signature: Any, args: Any) -> Any:
            return _integer(of(Vectors(b, DTYPES[dtype.literal_value])))

        return types.intp(dtype), codegen

    return fact


lanes_of = _fact(lambda v: v.lanes)
itemsize_of = _fact(lambda v: v.itemsize)


@intrinsic
def integer_at(typingctx: Any, table: Any, index: Any) -> Any:
    """Return the integer at position `index` of the array at address `table`."""

    def codegen(context: Any, b: Any, signature: Any, args: Any) -> Any:
        return element(b, *args)

    return types.intp(types.intp, types.intp), codegen


@literal
def number_at(typingctx: Any, table: Any, index: Any, dtype: Any) -> Any:
    """Return the float32 or float64 at position `index` of the array at `table`, as a double."""

    def codegen(context: Any, b: Any, signature: Any, args: Any) -> Any:
        v = Vectors(b, DTYPES[dtype.literal_value])
        pointer = v.pointer(args[0], b.mul(args[1], _integer(v.itemsize)))
        number = b.load(pointer, typ=v.scalar)
        return number if v.dtype == "float64" else b.fpext(number, ir.DoubleType())

    return types.float64(table, index, dtype), codegen


@intrinsic
def put_integer(typingctx: Any, table: Any, index: Any, value: Any) -> Any:
    """Write the integer at position `index` of the array at address `table`."""

    def codegen(context: Any, b: Any, signature: Any, args: Any) -> Any:
        place = b.add(args[0], b.mul(args[1], _integer(8)))
        b.store(args[2], b.inttoptr(place, ir.PointerType()))
        return context.get_dummy_value()

    return types.void(types.intp, types.intp, types.intp), codegen


@literal
def put_number(typingctx: Any, table: Any, index: Any, value: Any, dtype: Any) -> Any:
    """Write a double in the computing type of `dtype` at position `index` of the array `table`."""

    def codegen(context: Any, b: Any, signature: Any, args: Any) -> Any:
        v = Vectors(b, computing(DTYPES[dtype.literal_value]))
        number = args[2] if v.dtype == "float64" else b.fptrunc(args[2], v.scalar)
        b.store(number, v.pointer(args[0], b.mul(args[1], _integer(v.itemsize))))
        return context.get_dummy_value()

    return types.void(table, index, types.float64, dtype), codegen


@intrinsic
def copy(typingctx: Any, target: Any, source: Any, size: Any) -> Any:
    """Copy `size` bytes from one address to another."""

    def codegen(context: Any, b: Any, signature: Any, args: Any) -> Any:
        pointer, flag = ir.PointerType(), ir.IntType(1)
        kind = ir.FunctionType(ir.VoidType(), [pointer, pointer, I64, flag])
        memcpy = cgutils.get_or_insert_function(b.module, kind, "llvm.memcpy.p0.p0.i64")
        places = [b.inttoptr(address, pointer) for address in args[:2]]
        b.call(memcpy, [*places, args[2], ir.Constant(flag, 0)])
        return context.get_dummy_value()

    return types.void(types.intp, types.intp, types.intp), codegen


@literal
def copy_number(typingctx: Any, target: Any, source: Any, dtype: Any) -> Any:
    """Copy one number bit for bit, but +0 for -0."""

    def codegen(context: Any, b: Any, signature: Any, args: Any) -> Any:
        size = 8 * ITEMSIZE[DTYPES[dtype.literal_value]]
        kind = ir.IntType(size)
        to, place = (b.inttoptr(address, ir.PointerType()) for address in args[:2])
        bits = b.load(place, typ=kind, align=size // 8)
        negative = b.icmp_unsigned("==", bits, ir.Constant(kind, 1 << (size - 1)))
        b.store(b.select(negative, ir.Constant(kind, 0), bits), to, align=size // 8)
        return context.get_dummy_value()

    return types.void(types.intp, types.intp, dtype), codegen


@intrinsic
def allocate(typingctx: Any, size: Any) -> Any:
    """Return the address of fresh memory, to be released; 0 if there is none.

    An array would do, but compiling its code and loading it costs more than all else in a kernel.
    """

    def codegen(context: Any, b: Any, signature: Any, args: Any) -> Any:
        kind = ir.FunctionType(ir.PointerType(), [I64])
        malloc = cgutils.get_or_insert_function(b.module, kind, "malloc")
        return b.ptrtoint(b.call(malloc, args), I64)

    return types.intp(types.intp), codegen


@intrinsic
def release(typingctx: Any, memory: Any) -> Any:
    """Give back what `allocate` gave."""

    def codegen(context: Any, b: Any, signature: Any, args: Any) -> Any:
        kind = ir.FunctionType(ir.VoidType(), [ir.PointerType()])
        free = cgutils.get_or_insert_function(b.module, kind, "free")
        b.call(free, [b.inttoptr(args[0], ir.PointerType())])
        return context.get_dummy_value()

    return types.void(types.intp), codegen


@literal
def network(typingctx: Any, tile: Any, pitch: Any, size: Any, kind: Any, dtype: Any) -> Any:
    """Apply a network to the `size` tile rows at tile, tile + pitch, ...: 0 sorts, 1 merges."""

    def codegen(context: Any, b: Any, signature: Any, args: Any) -> Any:
        v = Vectors(b, computing(DTYPES[dtype.literal_value]))
        count = size.literal_value
        pairs = bitonic_merge(count) if kind.literal_value else sorting(count)
        places = [b.add(args[0], b.mul(args[1], _integer(row))) for row in range(count)]
        rows = [v.load(place) for place in places]
        v.sort(rows, pairs)
        for row, place in zip(rows, places, strict=True):
            v.store(row, place)
        return context.get_dummy_value()

    return types.void(tile, pitch, size, kind, dtype), codegen


@literal
def flip(typingctx: Any, low: Any, high: Any, stride: Any, levels: Any, dtype: Any) -> Any:
    """First step of merging two sorted runs, with the next `levels` half-cleaners.

    Compares low + m * stride with high - m * stride for m < 2**levels, then merges either side.
    """

    def codegen(context: Any, b: Any, signature: Any, args: Any) -> Any:
        v = Vectors(b, computing(DTYPES[dtype.literal_value]))
        count = 2**levels.literal_value
        steps = [b.mul(args[2], _integer(m)) for m in range(count)]
        places = [b.add(args[0], step) for step in steps]
        places += [b.sub(args[1], step) for step in reversed(steps)]
        rows = [v.load(place) for place in places]
        v.sort(rows, [(m, 2 * count - 1 - m) for m in range(count)])
        v.sort(rows, bitonic_merge(count))
        v.sort(rows, [(i + count, j + count) for i, j in bitonic_merge(count)])
        for row, place in zip(rows, places, strict=True):
            v.store(row, place)
        return context.get_dummy_value()

    return types.void(low, high, stride, levels, dtype), codegen


@literal
def load_tile(typingctx: Any, rows: Any, n: Any, at: Any, tile: Any, pitch: Any, dtype: Any) -> Any:
    """Copy one vector of each row, widened, into the tile; return whether all is finite."""

    def codegen(context: Any, b: Any, signature: Any, args: Any) -> Any:
        source = Vectors(b, DTYPES[dtype.literal_value])
        v = Vectors(b, computing(source.dtype))
        total = _accumulator(b, v, 0.0)
        with cgutils.for_range(b, args[1]) as loop:
            row = source.load(element(b, args[0], loop.index), args[2])
            v.store(row, b.add(args[3], b.mul(args[4], loop.index)))
            # 0 * x is 0 for every finite x and NaN for the others
            b.store(v.fma(row, v.constant(0.0), _get(b, v, total)), total)
        result = _get(b, v, total)
        return b.not_(v.any(b.fcmp_unordered("uno", result, result)))

    return types.boolean(rows, n, at, tile, pitch, dtype), codegen


@literal
def finite_tile(typingctx: Any, tile: Any, n: Any, pitch: Any, dtype: Any) -> Any:
    """Return whether one vector of each of n tile rows is finite throughout."""

    def codegen(context: Any, b: Any, signature: Any, args: Any) -> Any:
        v = Vectors(b, computing(DTYPES[dtype.literal_value]))
        total = _accumulator(b, v, 0.0)
        with cgutils.for_range(b, args[1]) as loop:
            row = v.load(args[0], b.mul(args[2], loop.index))
            b.store(v.fma(row, v.constant(0.0), _get(b, v, total)), total)
        result = _get(b, v, total)
        return b.not_(v.any(b.fcmp_unordered("uno", result, result)))

    return types.boolean(tile, n, pitch, dtype), codegen


@literal
def clean(
    typingctx: Any, tile: Any, n: Any, pitch: Any, poison: Any, faults: Any, dtype: Any
) -> Any:
    """Turn NaN into +Inf; write NaN at `poison` for columns with more than `faults` non-finite."""

    def codegen(context: Any, b: Any, signature: Any, args: Any) -> Any:
        v = Vectors(b, computing(DTYPES[dtype.literal_value]))
        count = _accumulator(b, v, 0.0)
        with cgutils.for_range(b, args[1]) as loop:
            place = b.add(args[0], b.mul(args[2], loop.index))
            value, one_more = v.cleaned(v.load(place), _get(b, v, count))
            v.store(value, place)
            b.store(one_more, count)
        v.store(v.poison(_get(b, v, count), args[4]), args[3])
        return context.get_dummy_value()

    return types.void(tile, n, pitch, poison, faults, dtype), codegen


@literal
def fill(typingctx: Any, place: Any, value: Any, dtype: Any) -> Any:
    """Write the same number (a float) into every lane of one vector."""

    def codegen(context: Any, b: Any, signature: Any, args: Any) -> Any:
        v = Vectors(b, computing(DTYPES[dtype.literal_value]))
        v.store(v.spread(v.narrowed(args[1])), args[0])
        return context.get_dummy_value()

    return types.void(place, value, dtype), codegen


@literal
def add_weighted(typingctx: Any, total: Any, place: Any, weight: Any, dtype: Any) -> Any:
    """Add weight (a float) times the vector of `dtype` at `place` to the vector at `total`."""

    def codegen(context: Any, b: Any, signature: Any, args: Any) -> Any:
        source = Vectors(b, DTYPES[dtype.literal_value])
        v = Vectors(b, computing(source.dtype))
        factor = v.spread(v.narrowed(args[2]))
        v.store(v.fma(source.load(args[1]), factor, v.load(args[0])), args[0])
        return context.get_dummy_value()

    return types.void(total, place, weight, dtype), codegen


@literal
def add_slot(
    typingctx: Any, total: Any, tile: Any, pitch: Any, n: Any, slot: Any, k: Any, centre: Any,
    weight: Any, dtype: Any,
) -> Any:  # fmt: skip
    """Add the member of the window of the k sorted values closest to `centre` that is in `slot`.

    Of the sorted rows slot, slot + k, slot + 2k, ... exactly one is in the window.
    """

    def codegen(context: Any, b: Any, signature: Any, args: Any) -> Any:
        total_, tile_, pitch_, n_, slot_, k_, centre_, weight_ = args[:8]
        v = Vectors(b, computing(DTYPES[dtype.literal_value]))
        middle = v.load(centre_)
        place = b.add(tile_, b.mul(pitch_, slot_))
        value = cgutils.alloca_once_value(b, v.load(place))
        span = b.mul(pitch_, k_)
        steps = b.sdiv(b.sub(b.sub(n_, _integer(1)), slot_), k_)
        with cgutils.for_range(b, steps) as loop:
            low = v.load(place, b.mul(span, loop.index))
            high = v.load(place, b.mul(span, b.add(loop.index, _integer(1))))
            nearer = v.nearer(high, low, middle)
            b.store(b.select(nearer, high, _get(b, v, value)), value)
        factor = v.spread(v.narrowed(weight_))
        v.store(v.fma(_get(b, v, value), factor, v.load(total_)), total_)
        return context.get_dummy_value()

    return types.void(total, tile, pitch, n, slot, k, centre, weight, dtype), codegen


@literal
def finish(typingctx: Any, totals: Any, pitch: Any, divisor: Any, dtype: Any) -> Any:
    """Add the four partial sums at totals + i * pitch, divide, leave the result in the first."""

    def codegen(context: Any, b: Any, signature: Any, args: Any) -> Any:
        v = Vectors(b, computing(DTYPES[dtype.literal_value]))
        parts = [v.load(args[0], b.mul(args[1], _integer(i))) for i in range(4)]
        v.store(b.fdiv(v.sum(parts), v.spread(v.narrowed(args[2]))), args[0])
        return context.get_dummy_value()

    return types.void(totals, pitch, divisor, dtype), codegen


@literal
def store_vector(typingctx: Any, place: Any, poison: Any, out: Any, dtype: Any) -> Any:
    """Round the vector at `place` (NaN where `poison` is NaN) to `dtype` and write it at `out`.

    A zero is written as +0.
    """

    def codegen(context: Any, b: Any, signature: Any, args: Any) -> Any:
        target = Vectors(b, DTYPES[dtype.literal_value])
        v = Vectors(b, computing(target.dtype))
        target.store(v.poisoned(v.load(args[0]), v.load(args[1])), args[2], signed=False)
        return context.get_dummy_value()

    return types.void(place, poison, out, dtype), codegen


@literal
def mix(
    typingctx: Any, rows: Any, n: Any, at: Any, soon: Any, weights: Any, row: Any, outs: Any,
    to: Any, count: Any, width: Any, dtype: Any, result: Any, stream: Any, skip: Any,
) -> Any:  # fmt: skip
    """Compute `count` rows of W X for `width` vectors of columns, written at outs[i] + to.

    `weights` is the address of `count` rows of n numbers of the computing type, `row` bytes apart;
    `result` is the dtype to round to. Sums run over the rows in order. What is `soon` bytes into
    each row is fetched meanwhile. `skip`: weight 0 leaves a sum as it is, which 0 * NaN does not,
    nor does 0 * 5 where the sum is -0.
    """

    def codegen(context: Any, b: Any, signature: Any, args: Any) -> Any:
        rows_, n_, at_, soon_, weights_, row_, outs_, to_ = args[:8]
        source = Vectors(b, DTYPES[dtype.literal_value])
        target = Vectors(b, DTYPES[result.literal_value])
        v = Vectors(b, computing(source.dtype))
        shape = [(i, w) for i in range(count.literal_value) for w in range(width.literal_value)]
        totals = {cell: _accumulator(b, v, -0.0) for cell in shape}  # x + -0.0 is x, bit for bit
        with cgutils.for_range(b, n_) as loop:
            start = element(b, rows_, loop.index)
            source.prefetch(start, soon_)
            address = b.add(start, at_)
            loaded = [
                source.load(address, _integer(w * source.stored))
                for w in range(width.literal_value)
            ]
            here = b.add(weights_, b.mul(loop.index, _integer(v.itemsize)))
            for i in range(count.literal_value):
                pointer = v.pointer(here, b.mul(row_, _integer(i)))
                weight = b.load(pointer, typ=v.scalar)
                used = b.fcmp_unordered("!=", weight, ir.Constant(v.scalar, 0.0))
                with b.if_then(used) if skip.literal_value else nullcontext():
                    factor = v.spread(weight)
                    for w, x in enumerate(loaded):
                        total = totals[i, w]
                        b.store(v.fma(x, factor, _get(b, v, total)), total)
        places = [b.add(element(b, outs_, _integer(i)), to_) for i in range(count.literal_value)]
        for i, w in shape:
            offset = _integer(w * target.stored)
            past = bool(stream.literal_value)
            target.store(_get(b, v, totals[i, w]), places[i], offset, stream=past)
        return context.get_dummy_value()

    signature = types.void(
        rows, n, at, soon, weights, row, outs, to, count, width, dtype, result, stream, skip
    )
    return signature, codegen
