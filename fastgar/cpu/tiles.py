"""Building blocks of the kernels that keep a tile of columns in the cache.

A tile is a small aligned matrix of the computing type: row r starts at `tile + r * pitch`, and one
vector of it holds LANES neighbouring columns. Every function here is straight-line vector code or
a loop of it; what is looped over how often is said in plain Numba in `columns.py` and `combine.py`.
"""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils as numba_cgutils

from fastgar.cpu.emit import emit
from fastgar.cpu.vectors import I64, Value, Vectors, lanes
from fastgar.dtypes import ITEMSIZE, computing
from fastgar.networks import bitonic_merge, sorting

__all__ = [
    "add_slot", "add_weighted", "allocate", "cgutils", "clean", "copy", "copy_number", "element",
    "fill", "finish", "finite_tile", "flip", "integer_at", "itemsize_of", "lanes_of", "load_tile",
    "mix", "network", "number_at", "put_integer", "put_number", "release", "store_vector", "take",
]  # fmt: skip

cgutils: Any = numba_cgutils  # Numba is hardly typed, and compiled code not at all


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


def _finite(b: Any, v: Vectors, total: Any) -> Any:
    """Return whether a sum of 0 * x, which is NaN unless every x is finite, is a number."""
    result = _get(b, v, total)
    return b.not_(v.any(b.fcmp_unordered("uno", result, result)))


@emit(types.intp)
def take(b: Value, counter: Value) -> Value:
    """Return the number at the address `counter` and add 1 to it, as one atomic step."""
    pointer = b.inttoptr(counter, ir.PointerType())
    return b.atomic_rmw("add", pointer, _integer(1), "monotonic")


@emit(types.intp)
def lanes_of(b: Value, dtype: str) -> Value:
    """Return how many columns of this dtype are computed at a time."""
    return _integer(lanes(dtype))


@emit(types.intp)
def itemsize_of(b: Value, dtype: str) -> Value:
    """Return the bytes of one number."""
    return _integer(ITEMSIZE[dtype])


@emit(types.intp)
def integer_at(b: Value, table: Value, index: Value) -> Value:
    """Return the integer at position `index` of the array at address `table`."""
    return element(b, table, index)


@emit(types.float64)
def number_at(b: Value, table: Value, index: Value, dtype: str) -> Value:
    """Return the float32 or float64 at position `index` of the array at `table`, as a double."""
    v = Vectors(b, dtype)
    number = b.load(v.pointer(table, b.mul(index, _integer(v.itemsize))), typ=v.scalar)
    return number if dtype == "float64" else b.fpext(number, ir.DoubleType())


@emit(types.void)
def put_integer(b: Value, table: Value, index: Value, value: Value) -> None:
    """Write the integer at position `index` of the array at address `table`."""
    place = b.add(table, b.mul(index, _integer(8)))
    b.store(value, b.inttoptr(place, ir.PointerType()))


@emit(types.void)
def put_number(b: Value, table: Value, index: Value, value: Value, dtype: str) -> None:
    """Write a double in the computing type of `dtype` at position `index` of the array `table`."""
    v = Vectors(b, computing(dtype))
    b.store(v.narrowed(value), v.pointer(table, b.mul(index, _integer(v.itemsize))))


@emit(types.void)
def copy(b: Value, target: Value, source: Value, size: Value) -> None:
    """Copy `size` bytes from one address to another."""
    pointer, flag = ir.PointerType(), ir.IntType(1)
    kind = ir.FunctionType(ir.VoidType(), [pointer, pointer, I64, flag])
    memcpy = cgutils.get_or_insert_function(b.module, kind, "llvm.memcpy.p0.p0.i64")
    places = [b.inttoptr(address, pointer) for address in (target, source)]
    b.call(memcpy, [*places, size, ir.Constant(flag, 0)])


@emit(types.void)
def copy_number(b: Value, target: Value, source: Value, dtype: str) -> None:
    """Copy one number bit for bit, but +0 for -0."""
    size = ITEMSIZE[dtype]
    kind = ir.IntType(8 * size)
    to, place = (b.inttoptr(address, ir.PointerType()) for address in (target, source))
    bits = b.load(place, typ=kind, align=size)
    negative = b.icmp_unsigned("==", bits, ir.Constant(kind, 1 << (8 * size - 1)))
    b.store(b.select(negative, ir.Constant(kind, 0), bits), to, align=size)


@emit(types.intp)
def allocate(b: Value, size: Value) -> Value:
    """Return the address of fresh memory, to be released; 0 if there is none.

    An array would do, but compiling its code and loading it costs more than all else in a kernel.
    """
    kind = ir.FunctionType(ir.PointerType(), [I64])
    malloc = cgutils.get_or_insert_function(b.module, kind, "malloc")
    return b.ptrtoint(b.call(malloc, [size]), I64)


@emit(types.void)
def release(b: Value, memory: Value) -> None:
    """Give back what `allocate` gave."""
    kind = ir.FunctionType(ir.VoidType(), [ir.PointerType()])
    free = cgutils.get_or_insert_function(b.module, kind, "free")
    b.call(free, [b.inttoptr(memory, ir.PointerType())])


def _exchange_at(v: Vectors, places: list[Any], pairs: Any) -> None:
    """Apply a comparator network to the vectors at these places."""
    rows = [v.load(place) for place in places]
    v.sort(rows, pairs)
    for row, place in zip(rows, places, strict=True):
        v.store(row, place)


@emit(types.void)
def network(b: Value, tile: Value, pitch: Value, size: int, kind: int, dtype: str) -> None:
    """Apply a network to the `size` tile rows at tile, tile + pitch, ...: 0 sorts, 1 merges."""
    places = [b.add(tile, b.mul(pitch, _integer(row))) for row in range(size)]
    pairs = bitonic_merge(size) if kind else sorting(size)
    _exchange_at(Vectors(b, computing(dtype)), places, pairs)


@emit(types.void)
def flip(b: Value, low: Value, high: Value, stride: Value, levels: int, dtype: str) -> None:
    """First step of merging two sorted runs, with the next `levels` half-cleaners.

    Compares low + m * stride with high - m * stride for m < 2**levels, then merges either side.
    """
    count = 2**levels
    steps = [b.mul(stride, _integer(m)) for m in range(count)]
    places = [b.add(low, step) for step in steps]
    places += [b.sub(high, step) for step in reversed(steps)]
    pairs = [(m, 2 * count - 1 - m) for m in range(count)]
    pairs += [(i + side, j + side) for side in (0, count) for i, j in bitonic_merge(count)]
    _exchange_at(Vectors(b, computing(dtype)), places, pairs)


@emit(types.boolean)
def load_tile(
    b: Value, rows: Value, n: Value, at: Value, tile: Value, pitch: Value, dtype: str
) -> Value:
    """Copy one vector of each row, widened, into the tile; return whether all is finite."""
    source, v = Vectors(b, dtype), Vectors(b, computing(dtype))
    total = _accumulator(b, v, 0.0)
    with cgutils.for_range(b, n) as loop:
        row = source.load(element(b, rows, loop.index), at)
        v.store(row, b.add(tile, b.mul(pitch, loop.index)))
        b.store(v.fma(row, v.constant(0.0), _get(b, v, total)), total)
    return _finite(b, v, total)


@emit(types.boolean)
def finite_tile(b: Value, tile: Value, n: Value, pitch: Value, dtype: str) -> Value:
    """Return whether one vector of each of n tile rows is finite throughout."""
    v = Vectors(b, computing(dtype))
    total = _accumulator(b, v, 0.0)
    with cgutils.for_range(b, n) as loop:
        row = v.load(tile, b.mul(pitch, loop.index))
        b.store(v.fma(row, v.constant(0.0), _get(b, v, total)), total)
    return _finite(b, v, total)


@emit(types.void)
def clean(
    b: Value, tile: Value, n: Value, pitch: Value, poison: Value, faults: Value, dtype: str
) -> None:
    """Turn NaN into +Inf; write NaN at `poison` for columns with more than `faults` non-finite."""
    v = Vectors(b, computing(dtype))
    count = _accumulator(b, v, 0.0)
    with cgutils.for_range(b, n) as loop:
        place = b.add(tile, b.mul(pitch, loop.index))
        value, one_more = v.cleaned(v.load(place), _get(b, v, count))
        v.store(value, place)
        b.store(one_more, count)
    v.store(v.poison(_get(b, v, count), faults), poison)


@emit(types.void)
def fill(b: Value, place: Value, value: Value, dtype: str) -> None:
    """Write the same number (a float) into every lane of one vector."""
    v = Vectors(b, computing(dtype))
    v.store(v.spread(v.narrowed(value)), place)


@emit(types.void)
def add_weighted(b: Value, total: Value, place: Value, weight: Value, dtype: str) -> None:
    """Add weight (a float) times the vector of `dtype` at `place` to the vector at `total`."""
    source, v = Vectors(b, dtype), Vectors(b, computing(dtype))
    factor = v.spread(v.narrowed(weight))
    v.store(v.fma(source.load(place), factor, v.load(total)), total)


@emit(types.void)
def add_slot(
    b: Value, total: Value, tile: Value, pitch: Value, n: Value, slot: Value, k: Value,
    centre: Value, weight: Value, dtype: str,
) -> None:  # fmt: skip
    """Add the member of the window of the k sorted values closest to `centre` that is in `slot`.

    Of the sorted rows slot, slot + k, slot + 2k, ... exactly one is in the window.
    """
    v = Vectors(b, computing(dtype))
    middle = v.load(centre)
    place = b.add(tile, b.mul(pitch, slot))
    value = cgutils.alloca_once_value(b, v.load(place))
    span = b.mul(pitch, k)
    steps = b.sdiv(b.sub(b.sub(n, _integer(1)), slot), k)
    with cgutils.for_range(b, steps) as loop:
        low = v.load(place, b.mul(span, loop.index))
        high = v.load(place, b.mul(span, b.add(loop.index, _integer(1))))
        nearer = v.nearer(high, low, middle)
        b.store(b.select(nearer, high, _get(b, v, value)), value)
    factor = v.spread(v.narrowed(weight))
    v.store(v.fma(_get(b, v, value), factor, v.load(total)), total)


@emit(types.void)
def finish(b: Value, totals: Value, pitch: Value, divisor: Value, dtype: str) -> None:
    """Add the four partial sums at totals + i * pitch, divide, leave the result in the first."""
    v = Vectors(b, computing(dtype))
    parts = [v.load(totals, b.mul(pitch, _integer(i))) for i in range(4)]
    v.store(b.fdiv(v.sum(parts), v.spread(v.narrowed(divisor))), totals)


@emit(types.void)
def store_vector(b: Value, place: Value, poison: Value, out: Value, dtype: str) -> None:
    """Round the vector at `place` (NaN where `poison` is NaN) to `dtype` and write it at `out`.

    A zero is written as +0.
    """
    target, v = Vectors(b, dtype), Vectors(b, computing(dtype))
    target.store(v.poisoned(v.load(place), v.load(poison)), out, signed=False)


@emit(types.void)
def mix(
    b: Value, rows: Value, n: Value, at: Value, soon: Value, weights: Value, row: Value,
    outs: Value, to: Value, count: int, width: int, dtype: str, result: str, stream: int, skip: int,
) -> None:  # fmt: skip
    """Compute `count` rows of W X for `width` vectors of columns, written at outs[i] + to.

    `weights` is the address of `count` rows of n numbers of the computing type, `row` bytes apart;
    `result` is the dtype to round to. Sums run over the rows in order. What is `soon` bytes into
    each row is fetched meanwhile. `skip`: weight 0 leaves a sum as it is, which 0 * NaN does not,
    nor does 0 * 5 where the sum is -0.
    """
    source, target, v = Vectors(b, dtype), Vectors(b, result), Vectors(b, computing(dtype))
    shape = [(i, w) for i in range(count) for w in range(width)]
    totals = {cell: _accumulator(b, v, -0.0) for cell in shape}  # x + -0.0 is x, bit for bit
    with cgutils.for_range(b, n) as loop:
        start = element(b, rows, loop.index)
        source.prefetch(start, soon)
        address = b.add(start, at)
        loaded = [source.load(address, _integer(w * source.stored)) for w in range(width)]
        here = b.add(weights, b.mul(loop.index, _integer(v.itemsize)))
        for i in range(count):
            weight = b.load(v.pointer(here, b.mul(row, _integer(i))), typ=v.scalar)
            used = b.fcmp_unordered("!=", weight, ir.Constant(v.scalar, 0.0))
            with b.if_then(used) if skip else nullcontext():
                factor = v.spread(weight)
                for w, x in enumerate(loaded):
                    total = totals[i, w]
                    b.store(v.fma(x, factor, _get(b, v, total)), total)
    places = [b.add(element(b, outs, _integer(i)), to) for i in range(count)]
    for i, w in shape:
        value, offset = _get(b, v, totals[i, w]), _integer(w * target.stored)
        target.store(value, places[i], offset, stream=bool(stream))
