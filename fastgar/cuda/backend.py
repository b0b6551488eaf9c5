"""The three primitives on a GPU: from addresses and n x n matrices to launches.

A `Backend` has what the module `fastgar.cpu.backend` has, for one device and the stream and
allocator of one caller. n x n numbers come in as NumPy arrays, or stay on the device as `Numbers`
where no host has to see them: what `select` gives, `combine` and `columns` take.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from .device import Device, Kernel, Pointer, connect, kernel
from .shapes import CHUNK_SPANS, SPAN, PairShape, pair_shape, triangle
from .variants import (
    CODES,
    ITEMSIZE,
    SELECTION_ROWS,
    Variant,
    columns_variant,
    selection_scratch,
    selection_shape,
    votes_variant,
)

if TYPE_CHECKING:
    from fastgar.arrays import Block
    from fastgar.primitives import Selection, Statistic

__all__ = ["Backend", "Numbers"]

Matrix = NDArray[np.float64]
Addresses = NDArray[np.int64]

PARTIAL_BYTES = 128 << 20  # of triangles that wait to be added in order
TABLE = 32  # addresses that one launch writes
ADD_ENTRIES, ADD_THREADS = 32, 256  # of a block of the kernel `add`
COMBINE_THREADS = 256
RESIDENT = 8  # blocks of `combine` for each multiprocessor: as many as it takes at a time
NULL = Pointer(0)
ADD = kernel("distances.cu", "add")
WRITE_TABLE = kernel("table.cu", "table")


@cache
def _partials(
    points: int, dtype: str, products: bool, table: bool, aligned: bool
) -> tuple[Kernel, PairShape]:
    shape = pair_shape(points, products or dtype == "float64", products, aligned)
    pack = 16 // ITEMSIZE[dtype] if aligned else 1
    defines = shape.defines(CODES[dtype], table, pack, products)
    return kernel("distances.cu", "partials", tuple(defines.items())), shape


@cache
def _combining(dtype: str, table: bool, outs: bool, k: int, pack: int) -> Kernel:
    defines = {
        "FG_DTYPE": CODES[dtype], "FG_TABLE": int(table), "FG_OUTS": int(outs), "FG_K": k,
        "FG_PACK": pack,
    }  # fmt: skip
    return kernel("combine.cu", "combine", tuple(defines.items()))


@dataclass(slots=True)
class Numbers:
    """Numbers on the device: weights or mixing rows (float64), or picked rows (int64)."""

    address: int
    shape: tuple[int, ...]
    picks: bool
    owner: Any


@dataclass(slots=True)
class _Total:
    """A matrix of pairs on the device, being added up."""

    points: int
    start: Matrix | None
    address: int = 0
    owner: Any = None
    begun: bool = False
    waiting: tuple[int, int] | None = None  # triangles not yet added, and how many
    triangles: Any = None  # their owner
    counter: int = 0


@dataclass(slots=True)
class _Rows:
    """Where rows are, as kernels take it."""

    address: int
    stride: int
    table: bool
    alignment: int
    owner: Any


class Backend:
    """See the top of this file.

    Parameters
    ----------
    name : str
        Such as "cuda:0".
    library
        The caller's array library, of `fastgar.arrays`: its current stream and its allocator.
    """

    ITEMSIZE = ITEMSIZE
    ORIGIN = 0  # the address that stands for a row of zeros
    READS_ZERO_WEIGHTS = False
    SELECTED = SELECTION_ROWS  # rows up to which it can `select`

    def __init__(self, name: str, library: Any) -> None:
        self.device: Device = connect(name, library.cuda)
        self.name, self.library = name, library
        self.stream: int = library.stream(name)
        self._sent: tuple[Any, Numbers] | None = None
        self._known: tuple[Addresses, _Rows] | None = None

    # ---------------------------------------------------------------------------------- memory

    def room(self, size: int) -> tuple[int, Any]:
        """Return the address of fresh memory, and its owner."""
        given: tuple[int, Any] | None = self.library.scratch(size, self.name)
        return self.device.allocate(size, self.stream) if given is None else given

    def span(self, columns: int, n: int) -> int:
        """Return how many columns to take where a statistic and the distances to it are wanted."""
        return columns

    def _send(self, values: NDArray[Any]) -> Numbers:
        """Return a copy on the device; of the same array as last time, the same copy."""
        if self._sent is not None and self._sent[0] is values:
            return self._sent[1]
        packed = np.ascontiguousarray(values)
        address, owner = self.room(packed.nbytes)
        self.device.write(address, packed, self.stream)
        sent = Numbers(address, values.shape, False, owner)
        self._sent = (values, sent)
        return sent

    def numbers(self, place: int, count: int, dtype: str) -> Matrix:
        """Return the `count` numbers at `place` in double precision. Waits."""
        into = np.empty(count, np.uint16 if dtype == "bfloat16" else dtype)
        if count:
            self.device.read(place, into, self.stream)
        if dtype == "bfloat16":
            into = (into.astype(np.uint32) << 16).view(np.float32)
        return into.astype(np.float64)

    def _rows(self, rows: Addresses) -> _Rows:
        """Return how kernels are told where the rows are; of the same array, the same."""
        if self._known is None or self._known[0] is not rows:
            self._known = rows, self._places(rows.tolist())
        return self._known[1]

    def _places(self, places: list[int]) -> _Rows:
        n, first = len(places), places[0]
        stride = places[1] - first if n > 1 else 0
        if first and (
            places == list(range(first, first + n * stride, stride)) if stride else n == 1
        ):
            bits = first | stride | 16
            return _Rows(first, stride, False, bits & -bits, None)
        bits = 16
        for place in places:
            bits |= place
        address, owner = self._table(places)
        return _Rows(address, 0, True, bits & -bits, owner)

    def _table(self, places: list[int]) -> tuple[int, Any]:
        address, owner = self.room(8 * len(places))
        for begin in range(0, len(places), TABLE):
            part = places[begin : begin + TABLE]
            arguments = (Pointer(address), begin, len(part), *part, *[0] * (TABLE - len(part)))
            self._launch(WRITE_TABLE, 1, TABLE, 0, arguments)
        return address, owner

    def _launch(
        self, kernel: Kernel, grid: int, block: int, shared: int, args: tuple[Any, ...]
    ) -> None:
        self.device.launch(kernel, grid, block, shared, args, self.stream)

    # ------------------------------------------------------------------------------- distances

    def matrix(self, points: int, start: Matrix | None) -> _Total:
        """Return a matrix to add to: of zeros, or of `start`."""
        return _Total(points, start)

    def add_distances(
        self, total: _Total, rows: Addresses, columns: int, dtype: str, *, fresh: bool = False
    ) -> None:
        """Add squared distances to `total`; whether it is `fresh` makes no difference here."""
        if columns:
            self._accumulate(total, rows, columns, dtype, False, 0, NULL)

    def add_inner(
        self, total: _Total, rows: Addresses, columns: int, dtype: str, pivot: int, scales: Matrix
    ) -> None:
        """Add inner products of scales_i * (row_i - row_pivot) to `total`."""
        if columns:
            sent = self._send(scales)
            self._accumulate(total, rows, columns, dtype, True, pivot, Pointer(sent.address))

    def _accumulate(
        self, total: _Total, rows: Addresses, columns: int, dtype: str, products: bool,
        pivot: int, scales: Pointer,
    ) -> None:  # fmt: skip
        points = total.points
        x = self._rows(rows)
        partials, shape = _partials(points, dtype, products, x.table, x.alignment >= 16)
        spans = -(-columns // SPAN)
        size = 8 * triangle(points)
        batch = max(PARTIAL_BYTES // size // CHUNK_SPANS, 1) * CHUNK_SPANS
        for first in range(0, spans, batch):
            count = min(batch, spans - first)
            self._add(total, finish=0)
            matrix = 0 if total.address else 8 * points * points
            address, owner = self.room(matrix + count * size + 16)
            if matrix:
                total.address, total.owner = address, owner
            triangles = address + matrix
            total.triangles, total.counter = owner, triangles + count * size
            arguments = (
                Pointer(x.address), x.stride, points, columns, first, Pointer(triangles),
                Pointer(total.counter), scales, pivot,
            )  # fmt: skip
            self._launch(partials, count * shape.blocks(points), shape.threads, 0, arguments)
            total.waiting = triangles, count

    def _add(self, total: _Total, finish: int) -> None:
        """Add the triangles that wait, if any."""
        if total.waiting is None:
            return
        points = total.points
        if total.start is not None and not total.begun:
            start = np.ascontiguousarray(total.start, np.float64)
            self.device.write(total.address, start, self.stream)
            total.begun = True
        triangles, count = total.waiting
        arguments = (
            Pointer(triangles), count, Pointer(total.address), points, int(total.begun), finish,
            Pointer(total.counter),
        )  # fmt: skip
        self._launch(ADD, -(-triangle(points) // ADD_ENTRIES), ADD_THREADS, 0, arguments)
        total.begun, total.waiting = True, None

    def complete(self, total: _Total, distances: bool) -> Matrix:
        """Return the matrix on the host, symmetric, faulty rows at +Inf. Waits."""
        points = total.points
        if total.waiting is None:  # no columns
            return np.zeros((points, points)) if total.start is None else total.start.copy()
        result: Matrix = np.empty((points, points))
        self.device.read(self.finish(total, distances), result, self.stream)
        return result

    def finish(self, total: _Total, distances: bool) -> int:
        """Complete the matrix on the device, and return its address; nothing waits."""
        self._add(total, finish=1 if distances else 2)
        return total.address

    def selects(self, selection: Selection, n: int, blocks: Sequence[Block]) -> bool:
        """Return whether `select` makes this choice among n rows.

        Distances of float64 rows may overflow, and NNM then needs another read.
        """
        if selection.kind not in ("krum", "cge", "nnm", "bulyan", "bulyan_averaged"):
            return False
        if selection.then is not None:
            return False
        if selection.kind == "nnm" and any(block.dtype == "float64" for block in blocks):
            return False
        return n <= self.SELECTED

    def select(self, total: _Total, selection: Selection) -> tuple[Numbers, bool]:
        """Return what a selection makes of the distances; nothing waits."""
        points, f = total.points, selection.f
        n = points - (selection.kind == "cge")  # which has the origin as its last point
        block, shared = selection_shape(n)
        D = (Pointer(self.finish(total, True)), points, n, f)
        if selection.kind == "krum":
            address, owner = self.room(8 * n)
            shape, picks = (n,), False
            rest: tuple[Any, ...] = (selection.kept, int(selection.squared), selection.m)
            rest += (Pointer(address),)
        elif selection.kind == "cge":
            address, owner = self.room(8 * n)
            shape, picks, rest = (n,), False, (n, Pointer(address))
        elif selection.kind == "nnm":
            address, owner = self.room(8 * n * n)
            shape, picks, rest = (n, n), False, (Pointer(address),)  # type: ignore[assignment]
        else:
            picks = selection.kind == "bulyan"
            shape = (n - 2 * f,) if picks else (n - 2 * f - 2, n)  # type: ignore[assignment]
            size = 8 * shape[0] * (1 if picks else n)
            address, owner = self.room(size + selection_scratch(n))
            rest = (Pointer(address), Pointer(address + size))
        self._launch(kernel("selection.cu", selection.kind), 1, block, shared, (*D, *rest))
        return Numbers(address, shape, picks, owner), False

    # --------------------------------------------------------------------------- weighted sums

    def combine(
        self, weights: Matrix | Numbers, rows: Addresses, columns: int, dtype: str,
        outs: list[int],
    ) -> None:  # fmt: skip
        """Write the k rows of `weights` (k, n) times X at the k addresses `outs`."""
        if columns and len(outs):
            sent = weights if isinstance(weights, Numbers) else self._send(weights)
            self._combine(Pointer(sent.address), 0.0, rows, columns, dtype, outs)

    def _combine(
        self, weights: Pointer, share: float, rows: Addresses, columns: int, dtype: str,
        outs: list[int],
    ) -> None:  # fmt: skip
        x, out = self._rows(rows), self._places(outs)
        k = len(outs)
        pack = max(1, min(x.alignment, out.alignment) // ITEMSIZE[dtype])
        combining = _combining(dtype, x.table, out.table, 1 if k == 1 else 4, pack)
        tiles = -(-columns // (COMBINE_THREADS * pack))
        grid = min(tiles, RESIDENT * self.device.processors)
        arguments = (
            Pointer(x.address), x.stride, len(rows), weights, share, k, Pointer(out.address),
            out.stride, columns,
        )  # fmt: skip
        self._launch(combining, grid, COMBINE_THREADS, 0, arguments)

    # --------------------------------------------------------------------------------- columns

    def columns(
        self, rows: Addresses, count: int, dtype: str, statistic: Statistic,
        mixing: Matrix | Numbers | None, out: int, *, careful: bool = False, offset: int = 0,
        whole: bool = False,
    ) -> None:  # fmt: skip
        """Write the statistic of each of `count` columns of X, or of mixing @ X, at `out`."""
        if not count:
            return
        if statistic.kind == "mean":
            if mixing is None:
                self._combine(NULL, 1.0 / len(rows), rows, count, dtype, [out])
            else:
                assert not isinstance(mixing, Numbers)
                self.combine(mixing.mean(axis=0)[np.newaxis], rows, count, dtype, [out])
            return
        x = self._rows(rows)
        bits = x.alignment | out
        alignment = bits & -bits
        source = (Pointer(x.address), x.stride, len(rows))
        if statistic.kind in ("finite_mean", "sign"):
            variant = votes_variant(statistic.kind, dtype, table=x.table, alignment=alignment)
            self._run(variant, count, (*source, statistic.faults, Pointer(out), count))
            return
        m, mode, mixed = len(rows), 0, (NULL, 0)
        if mixing is not None:
            sent = mixing if isinstance(mixing, Numbers) else self._send(mixing)
            m, mode, mixed = sent.shape[0], 1, (Pointer(sent.address), len(rows))
            if sent.picks:
                mode = 2
        variant = columns_variant(
            statistic, m, len(rows), dtype, table=x.table, mix=mode, alignment=alignment
        )
        low, high, ranks = statistic.support
        scratch, owner = NULL, None
        if variant.scratch:
            place_, owner = self.room(variant.scratch * variant.grid(count))
            scratch = Pointer(place_)
        weights = NULL if ranks is None else Pointer(self._send(ranks).address)
        key = statistic.key - (statistic.key >> 63 << 64)  # as a signed number
        arguments = (
            *source, *mixed, m, low, high, statistic.closest or 0, weights, statistic.faults, key,
            float(statistic.probability), offset, Pointer(out), count, scratch,
        )  # fmt: skip
        self._run(variant, count, arguments)
        del owner

    def _run(self, variant: Variant, count: int, arguments: tuple[Any, ...]) -> None:
        v = variant
        function = kernel(v.file, v.kernel, v.defines)
        self._launch(function, v.grid(count), v.block, v.shared, arguments)
