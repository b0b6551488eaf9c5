"""The three primitives on CPU memory: from addresses and NumPy n x n matrices to kernel calls."""

from __future__ import annotations

import ctypes
from collections import Counter
from math import ceil
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastgar.cpu import columns as column_kernels
from fastgar.cpu.combine import COMBINE, COMBINE_ONE, COPY, PART, RUN
from fastgar.cpu.combine import STEP as COMBINE_STEP
from fastgar.cpu.condense import PIECE, REPLACE
from fastgar.cpu.distances import COMPLETE, PARTIALS, SPAN
from fastgar.cpu.threads import get_threads, run
from fastgar.cpu.vectors import BLOCK, WIDTH, lanes
from fastgar.cpu.votes import VOTES
from fastgar.dtypes import CODES, ITEMSIZE, computing, stored, widened
from fastgar.statistic import CHUNK, Statistic

__all__ = [
    "ORIGIN", "add_distances", "add_inner", "columns", "combine", "complete", "flush", "matrix",
    "numbers", "room", "span", "view",
]  # fmt: skip

Matrix = NDArray[np.float64]
Addresses = NDArray[np.int64]

FIXED_ROWS = 128  # up to here a kernel for exactly n rows pays; its compile time grows with n
PARTIAL_BYTES = 16 << 20  # for the partial matrices that wait to be added in order
ZEROS = np.zeros(SPAN)
ORIGIN = ZEROS.ctypes.data  # the address that stands for a row of zeros
CACHED = 4 << 20  # bytes of X that stay in a core's share of the cache between two uses
STREAMED = 16 << 20  # bytes of several results that caches do not keep until they are used
LINE = 64  # bytes of a cache line
SINGLE, DOUBLE = CODES["float32"], CODES["float64"]
COMPUTED = {name: np.dtype(computing(name)) for name in CODES}
LANES = {name: lanes(name) for name in CODES}


_addressof = ctypes.addressof
_memory: Any = ctypes.c_char.from_buffer


def address(array: NDArray[Any]) -> int:
    """Return where a writable array begins, five times faster than ``array.ctypes.data``."""
    return _addressof(_memory(array))


def _address_or_0(array: NDArray[Any] | None) -> int:
    return 0 if array is None else address(array)


def view(place: int, count: int, dtype: str) -> NDArray[Any]:
    """Return the `count` numbers at `place` as an array (bfloat16: as unsigned integers)."""
    kind = stored(dtype)
    memory: Any = (ctypes.c_char * (count * kind.itemsize)).from_address(place)
    values: NDArray[Any] = np.frombuffer(memory, dtype=kind, count=count)
    return values


def numbers(place: int, count: int, dtype: str) -> Matrix:
    """Return the `count` numbers at `place` in double precision."""
    return widened(view(place, count, dtype), dtype).astype(np.float64)


def flush() -> None:
    """Do what was put off: nothing, as all is done at once here."""


def matrix(points: int, start: Matrix | None) -> Matrix:
    """Return a matrix to add to: of zeros, or a copy of `start`."""
    return np.zeros((points, points)) if start is None else start.copy()


def complete(total: Matrix, distances: bool) -> Matrix:
    """Return the matrix, symmetric; of distances, what concerns a faulty row is +Inf."""
    COMPLETE(total, distances)
    return total


def room(size: int) -> tuple[int, Any]:
    """Return the address of fresh memory, and its owner."""
    memory = np.empty(size, dtype=np.uint8)
    return memory.ctypes.data, memory


def span(columns: int, n: int) -> int:
    """Return how many columns to take where a statistic and the distances to it are wanted."""
    return max(CHUNK, min(columns, CACHED // (4 * (n + 1)) // CHUNK * CHUNK))


def _padded(
    rows: Addresses, columns: int, dtype: str, width: int
) -> tuple[Addresses, NDArray[np.uint8]]:
    """Copy rows that are shorter than a kernel's vectors into zeroed memory of that width."""
    size = ITEMSIZE[dtype]
    copy = np.zeros((len(rows), width * size), dtype=np.uint8)
    target = copy.ctypes.data + np.arange(len(rows)) * (width * size)
    for source, place in zip(rows.tolist(), target.tolist(), strict=True):
        ctypes.memmove(place, source, columns * size)
    return target, copy


def _moves(rows: Addresses, columns: int) -> Addresses | None:
    """Return which rows move along from span to span, where that is not all of them."""
    if columns <= SPAN or ORIGIN not in rows.tolist():
        return None
    moving: Addresses = (rows != ORIGIN).astype(np.int64)
    return moving


def _accumulate(
    total: Matrix, rows: Addresses, columns: int, dtype: str, *, products: bool = False,
    pivot: int = 0, scales: Matrix | None = None,
) -> None:  # fmt: skip
    """Add the partial matrices of all chunks to the upper triangle of `total`, in order."""
    points, code = len(rows), CODES[dtype]
    double = products or code == DOUBLE
    moves = _moves(rows, columns)
    source = (address(rows), _address_or_0(moves), points, columns)
    centre = (pivot, _address_or_0(scales))
    chunks = -(-columns // CHUNK)
    slots = min(chunks, max(get_threads(), PARTIAL_BYTES // (8 * points * points)))
    sums = np.zeros((1 + slots, points, points))  # first the total so far, then of each chunk
    flags = np.zeros(slots, dtype=np.int64)

    def compute(kind: int, first: int, count: int, flagged: int) -> None:
        staged = products or code != kind
        constants = (int(staged), points % BLOCK, int(products), code, kind)
        run(
            PARTIALS.specialised(*constants), *source, first, count, flagged, address(sums[1:]),
            *centre, *constants,
            pieces=count,
        )  # fmt: skip

    for first in range(0, chunks, slots):
        count = min(slots, chunks - first)
        if first:
            sums[:] = 0.0
        sums[0] = total
        if double:
            compute(DOUBLE, first, count, 0)
        else:
            compute(SINGLE, first, count, address(flags))
            if np.count_nonzero(flags) and _overflowed(sums[1 : 1 + count], flags[:count]):
                sums[1:][flags != 0] = 0.0
                compute(DOUBLE, first, count, address(flags))
                flags[:] = 0
        with np.errstate(over="ignore"):
            np.add.reduce(sums[: 1 + count], out=total)  # matrix after matrix


def _overflowed(sums: Matrix, flags: NDArray[np.int64]) -> bool:
    """Clear the flags of matrices whose infinities all concern non-finite rows.

    Returns whether a flag is left: those matrices are to be computed again in float64.
    """
    sound = sums.diagonal(axis1=1, axis2=2) == 0.0
    apart = np.isinf(sums) & sound[:, :, np.newaxis] & sound[:, np.newaxis]
    flags &= apart.any(axis=(1, 2))
    return bool(flags.any())


def _fill(total: Matrix, rows: Addresses, columns: int, code: int, kind: int) -> bool:
    """Write the distances over the columns of one chunk to `total`, which holds zeros.

    Returns whether one is infinite; in float64 always False.
    """
    points, moves = len(rows), _moves(rows, columns)
    constants = (int(code != kind), points % BLOCK, 0, code, kind)
    source = (address(rows), _address_or_0(moves), points, columns)
    flag = ctypes.c_int64()
    only_chunk, place = (0, 1, _addressof(flag) if kind == SINGLE else 0), address(total)
    entry = PARTIALS.specialised(*constants)
    run(entry, *source, *only_chunk, place, 0, 0, *constants, pieces=1)
    return flag.value != 0


def add_distances(
    total: Matrix, rows: Addresses, columns: int, dtype: str, *, fresh: bool = False
) -> None:
    """Add squared distances to the upper triangle of `total`, NaN to the diagonal of bad rows.

    `fresh`: there are only zeros in it yet.
    """
    if not columns:
        return
    if not fresh or columns > CHUNK:
        _accumulate(total, rows, columns, dtype)
    else:  # one matrix, which need not be added to zeros
        code = CODES[dtype]
        infinite = _fill(total, rows, columns, code, max(code, SINGLE))
        if infinite and _overflowed(total[np.newaxis], np.ones(1, np.int64)):
            total[:] = 0.0
            _fill(total, rows, columns, code, DOUBLE)


def add_inner(
    total: Matrix, rows: Addresses, columns: int, dtype: str, pivot: int, scales: Matrix
) -> None:
    """Add inner products of scales_i * (row_i - row_pivot) to the upper triangle of `total`."""
    if columns:
        _accumulate(total, rows, columns, dtype, products=True, pivot=pivot, scales=scales)


def combine(weights: Matrix, rows: Addresses, columns: int, dtype: str, outs: list[int]) -> None:
    """Write the k rows of `weights` (k, n) times X at the k addresses `outs`.

    A weight that is 0 in the computing type means that the row is not read into that sum, which
    changes its zeros too: -0 + 0 * 5 is 0. A sum of nothing is +0. The weights are in rows, one
    after the other, and in memory that may be written to.
    """
    k = len(weights)
    assert len(outs) == k
    if not columns or not k:
        return
    width = RUN * LANES[dtype]
    if columns < width:
        rows, _rows = _padded(rows, columns, dtype, width)
        places, _result = _padded(np.array(outs), 0, dtype, width)
        combine(weights, rows, width, dtype, places.tolist())
        for out, place in zip(outs, places.tolist(), strict=True):
            ctypes.memmove(out, place, columns * ITEMSIZE[dtype])
    elif k == 1:
        _combine_one(weights[0], rows, columns, dtype, outs[0])
    else:
        _combine_several(weights, rows, columns, dtype, outs)


def _combine_one(weights: Matrix, rows: Addresses, columns: int, dtype: str, out: int) -> None:
    narrow = weights.astype(COMPUTED[dtype], copy=False)
    used = np.count_nonzero(narrow)
    if not used:
        view(out, columns, dtype)[:] = 0
        return
    if used == 1 and narrow.item(only := int(narrow.argmax())) == 1.0:
        _copy(rows.item(only), out, columns * ITEMSIZE[dtype])
        return
    pieces, code = columns // COMBINE_STEP or 1, CODES[dtype]
    constants = (code, max(code, SINGLE))
    run(
        COMBINE_ONE.specialised(*constants), address(rows), len(rows), address(narrow), out,
        columns, pieces, *constants,
        pieces=pieces,
    )  # fmt: skip


def _combine_several(
    weights: Matrix, rows: Addresses, columns: int, dtype: str, outs: list[int]
) -> None:
    narrow = weights.astype(COMPUTED[dtype], "C")
    used, wanted = _read(narrow), np.asarray(narrow.any(axis=1))
    if not len(used):
        for out, row in zip(outs, weights, strict=True):
            view(out, columns, dtype)[:] = _not_a_number(dtype) if np.isnan(row).any() else 0
        return
    if not wanted.all():
        for out, reads in zip(outs, wanted.tolist(), strict=True):
            if not reads:
                view(out, columns, dtype)[:] = 0
        combine(weights[wanted], rows, columns, dtype, np.array(outs)[wanted].tolist())
        return
    if len(used) < len(rows):
        narrow, rows = narrow.take(used, 1), rows.take(used)
    places, k = np.array(outs), len(outs)
    constants = (CODES[dtype], int(k > 3 and _streams(outs, columns * ITEMSIZE[dtype])))
    pieces = columns // COMBINE_STEP or 1
    run(
        COMBINE.specialised(*constants), address(rows), len(rows), address(narrow),
        narrow.strides[0], k, address(places), columns, pieces, *constants,
        pieces=pieces,
    )  # fmt: skip


def _copy(source: int, target: int, size: int) -> None:
    if size < 2 * PART:
        ctypes.memmove(target, source, size)
        return
    pieces = size // PART
    run(COPY.specialised(), source, target, size, pieces, pieces=pieces)


def _streams(outs: list[int], size: int) -> bool:
    """Return whether rows of this many bytes are to be written past the caches."""
    large = len(outs) * size >= STREAMED and size % LINE == 0
    return large and all(out % LINE == 0 for out in outs)


def _read(weights: Matrix) -> NDArray[np.intp]:
    """Return which rows have a weight anywhere.

    A row of weights that is NaN stands for a faulty row of the result, and needs no row in
    particular: NaN times any row is NaN.
    """
    used: NDArray[np.intp]
    (used,) = np.nonzero(np.fmax.reduce(np.abs(weights)) > 0.0)  # where NaN does not count
    return used


def _not_a_number(dtype: str) -> Any:
    return np.uint16(0x7FC0) if dtype == "bfloat16" else np.dtype(dtype).type(np.nan)


class _Tiers:
    """Decides when a kernel for exactly these constants is worth its compile time.

    The kernel for any number of rows gives the same bits in up to twice the time, and takes longer
    to compile. So the first few combinations of the first few numbers of rows are compiled at once.
    Others are when they come twice in a row, or for the eighth time: where n changes from call to
    call, hardly anything compiles.
    """

    NUMBERS, EACH = 4, 8

    def __init__(self) -> None:
        self.calls: Counter[tuple[int, ...]] = Counter()
        self.last: tuple[int, ...] | None = None
        self.made: Counter[int] = Counter()  # at once, by the number of rows

    def worth(self, key: tuple[int, ...]) -> bool:
        """Say whether to compile for `key`, which begins with the number of rows."""
        n = key[0]
        if self.made[n] < self.EACH and (n in self.made or len(self.made) < self.NUMBERS):
            self.made[n] += 1
            return True
        self.calls[key] += 1
        again, self.last = self.last == key, key
        return again or self.calls[key] >= 8


_tiers = _Tiers()


def columns(
    rows: Addresses, count: int, dtype: str, statistic: Statistic, mixing: Matrix | None, out: int,
    *, careful: bool = False, offset: int = 0, whole: bool = False,
) -> None:  # fmt: skip
    """Write the statistic of each of `count` columns of X, or of mixing @ X, at `out`.

    In place of the mixing, the numbers of the rows that were picked. `whole`: every row is known to
    have a weight somewhere. `offset` is the number of the first column, for condense.
    """
    if not count:
        return
    if mixing is not None and mixing.ndim == 1:
        rows, mixing = rows[mixing], None
    if statistic.kind == "mean":
        share = np.full((1, len(rows)), 1 / len(rows)) if mixing is None else mixing.mean(axis=0)
        combine(np.atleast_2d(share), rows, count, dtype, [out])
        return
    narrow = None
    if mixing is not None:
        narrow = mixing.astype(COMPUTED[dtype], "C")
        if not whole:
            used = _read(narrow)
            if len(used) < len(rows):
                used = used if len(used) else np.zeros(1, dtype=np.intp)
                narrow, rows = narrow.take(used, 1), rows.take(used)
    width = LANES[dtype] * (1 if mixing is None else WIDTH)
    if count < width:
        padded, _rows = _padded(rows, count, dtype, width)
        size = ITEMSIZE[dtype]
        result = np.empty(width * size, dtype=np.uint8)
        _columns(padded, width, dtype, statistic, narrow, address(result), careful)
        ctypes.memmove(out, address(result), count * size)
    else:
        _columns(rows, count, dtype, statistic, narrow, out, careful)
    if statistic.kind == "condense":
        below = ceil(statistic.probability * 2**53)
        key, code, pieces = ctypes.c_int64(statistic.key).value, CODES[dtype], count // PIECE or 1
        run(
            REPLACE.specialised(code), rows.item(0), out, count, pieces, key, below, offset, code,
            pieces=pieces,
        )  # fmt: skip


def _columns(
    rows: Addresses, count: int, dtype: str, statistic: Statistic, mixing: Any, out: int,
    careful: bool,
) -> None:  # fmt: skip
    pieces = column_kernels.pieces_of(count, get_threads())
    n, code = len(rows), CODES[dtype]
    source: tuple[int, ...]
    if statistic.kind in ("finite_mean", "sign"):
        constants: tuple[int, ...] = (int(statistic.kind == "sign"), code)
        source = (address(rows), n, out, count, pieces, statistic.faults)
        run(VOTES.specialised(*constants), *source, *constants, pieces=pieces)
        return
    low, high, ranks = statistic.support
    k, faults = statistic.closest or 0, statistic.faults
    compute = DOUBLE if code == DOUBLE else SINGLE
    if mixing is None:
        m, source, constants = n, (address(rows),), (n, low, high, k, code)
        kernel = column_kernels.FIXED
    else:
        m = len(mixing)
        source = (address(rows), n, address(mixing), mixing.strides[0], int(careful))
        constants = (m, low, high, k, code, compute)
        kernel = column_kernels.FIXED_MIXED
    entry = None
    if ranks is None and m <= FIXED_ROWS:
        entry = kernel.known(*constants)
        if entry is None and _tiers.worth(constants):
            entry = kernel.specialised(*constants)
    if entry is not None:
        run(entry, *source, out, count, pieces, faults, *constants, pieces=pieces)
        return
    constants = (code, compute)
    weights = 0 if ranks is None else address(ranks)
    source = source if len(source) > 1 else (*source, n, 0, 0, 0)
    run(
        column_kernels.ANY.specialised(*constants), *source, out, count, pieces, faults,
        m, low, high, k, weights, *constants, pieces=pieces,
    )  # fmt: skip
