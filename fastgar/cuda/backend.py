"""The three primitives on a GPU: from addresses and n x n matrices to launches.

A `Backend` is what `fastgar.backend` wants, for one device and the stream and allocator of one
caller. n x n numbers come in as NumPy arrays, or stay on the device as `Numbers`
where no host has to see them: what `select` gives, `combine` and `columns` take.

What concerns several leaves of a model waits until all are known (`finish`, `flush`), and is
launched together: a launch takes the host some microseconds, and most leaves are small.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cache, cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..dtypes import CODES, ITEMSIZE, stored, widened
from ..statistic import CGE, NNM, Bulyan, Krum, Selection, Statistic
from .connect import connect
from .device import Device, Kernel, kernel
from .leaves import NOWHERE, NULL, Layout, Piece, Places, records
from .shapes import CHUNK_SPANS, SPAN, PairShape, pair_shape, triangle, whole_chunks
from .variants import (
    SELECTED,
    SELECTION_ROWS,
    Variant,
    columns_variant,
    selection_scratch,
    selection_shape,
    votes_variant,
)

__all__ = ["Backend", "Numbers"]

Matrix = NDArray[np.float64]
Addresses = NDArray[np.int64]

PARTIAL_BYTES = 128 << 20  # of triangles that wait to be added in order
NUMBERS = 480  # that one launch of `table` writes
STRUCT = np.dtype(f"V{8 * NUMBERS}")
FEW = 2 * NUMBERS  # numbers that are written by launches, rather than by a copy
ADD_ENTRIES, ADD_THREADS = 32, 256  # of a block of the kernel `add`
COMBINE_THREADS = 256
RESIDENT = 8  # blocks of `combine` for each multiprocessor: as many as it takes at a time
ADD = kernel("distances.cu", "add")
WRITE_TABLE = kernel("table.cu", "table")
_new = tuple.__new__  # of a NamedTuple: half the time of calling it


@cache
def _partials(
    points: int, dtype: str, products: bool, table: bool, aligned: bool
) -> tuple[Kernel, PairShape]:
    shape = pair_shape(points, products or dtype == "float64", products, aligned)
    pack = 16 // ITEMSIZE[dtype] if aligned else 1
    defines = shape.defines(CODES[dtype], table, pack, products)
    return kernel("distances.cu", "partials", tuple(defines.items())), shape


@cache
def _combining(dtype: str, table: bool, k: int, pack: int) -> Kernel:
    defines = {"FG_DTYPE": CODES[dtype], "FG_TABLE": int(table), "FG_K": k, "FG_PACK": pack}
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
    """A matrix of pairs on the device: what is to be added up, and what was."""

    points: int
    start: Matrix | None
    pieces: list[Piece] = field(default_factory=list)
    products: tuple[int, Numbers] | None = None  # the pivot and the scales, of inner products
    address: int = 0
    owner: Any = None
    begun: bool = False
    waiting: tuple[int, int] | None = None  # triangles not yet added, and how many
    triangles: Any = None  # their owner
    counter: int = 0


class Backend:
    """See the top of this file.

    Parameters
    ----------
    name : str
        Such as "cuda:0".
    library
        The caller's array library, of `fastgar.arrays`: its current stream and its allocator.
    regular : bool
        Whether the rows are those of one array. Others are always told by tables, so that it is
        not up to chance which kernels a call needs: they must be loaded before a graph is captured.
    """

    ORIGIN = 0  # the address that stands for a row of zeros

    def __init__(self, name: str, library: Any, regular: bool = True) -> None:
        self.device: Device = connect(name, library.cuda)
        self.name, self.library, self.regular = name, library, regular
        self.stream: int = library.stream(name)
        self._layouts: dict[int, tuple[Addresses, Layout]] = {}
        self._tables: dict[int, tuple[int, Any]] = {}
        self._sent: tuple[Any, Numbers] | None = None
        self._mean: tuple[Any, Numbers] | None = None
        self._sums: list[tuple[Numbers | None, float, Piece]] = []
        self._statistic: tuple[Statistic, Numbers | None] | None = None  # asked for, and
        self._leaves: list[tuple[int, Piece]] = []  # of which leaves, from which column on

    # ---------------------------------------------------------------------------------- memory

    @cached_property
    def captured(self) -> bool:
        """Whether the caller records its work in a CUDA graph."""
        return self.device.capturing(self.stream)

    def room(self, size: int) -> tuple[int, Any]:
        """Return the address of fresh memory, and its owner."""
        given: tuple[int, Any] | None = self.library.scratch(size, self.name)
        if given is None:
            given = self.device.allocate(size, self.stream)
        if not self.library.knows_graphs and self.captured:
            self.device.keep(given[1])  # or another would get it, and the graph write to it
        return given

    def span(self, columns: int, n: int) -> int:
        """Return how many columns to take where a statistic and the distances to it are wanted."""
        return max(columns, 1)  # a step through the columns, also where there are none

    def _send(self, values: NDArray[Any]) -> Numbers:
        """Return a copy on the device; of the same array as last time, the same copy."""
        if self._sent is not None and self._sent[0] is values:
            return self._sent[1]
        address, owner = self._upload(values)
        sent = Numbers(address, values.shape, False, owner)
        self._sent = (values, sent)
        return sent

    def _averaged(self, mixing: Matrix | Numbers) -> Numbers:
        """Return the one row of weights that is the mean of mixing rows, of the same the same."""
        assert not isinstance(mixing, Numbers)
        if self._mean is None or self._mean[0] is not mixing:
            self._mean = mixing, self._send(mixing.mean(axis=0)[np.newaxis])
        return self._mean[1]

    def _upload(self, values: NDArray[Any]) -> tuple[int, Any]:
        """Return where a copy of numbers of 8 bytes is on the device, and its owner."""
        packed = np.array(values, order="C")
        address, owner = self.room(packed.nbytes)
        if packed.size > FEW and not self.captured:
            self.device.prepare(WRITE_TABLE)  # which the same call in a graph launches
            self.device.write(address, packed, self.stream)
            return address, owner
        flat = packed.reshape(-1).view(np.int64)
        for begin in range(0, len(flat), NUMBERS):
            part = flat[begin : begin + NUMBERS]
            given = np.zeros(NUMBERS, np.int64)
            given[: len(part)] = part
            arguments = (address + 8 * begin, given.view(STRUCT)[0], len(part))
            self._launch(WRITE_TABLE, 1, 128, 0, arguments)
        return address, owner

    def _refuse_to_wait(self) -> None:
        if self.captured:
            raise RuntimeError(
                "this needs numbers on the host, for which a CUDA graph that is being captured "
                "cannot wait: capture column rules, or krum, multi_krum, bulyan, cge or nnm before "
                f"an order statistic (of up to {SELECTION_ROWS} rows, without distance_on= and "
                "check=), and call others outside of the capture"
            )

    def numbers(self, place: int, count: int, dtype: str) -> Matrix:
        """Return the `count` numbers at `place` in double precision. Waits."""
        self._refuse_to_wait()
        into = np.empty(count, stored(dtype))
        if count:
            self.device.read(place, into, self.stream)
        return widened(into, dtype).astype(np.float64)

    def _piece(self, rows: Addresses, columns: int, dtype: str, outs: Sequence[int] = ()) -> Piece:
        known = self._layouts.get(id(rows))
        if known is None:
            known = self._layouts[id(rows)] = rows, Layout.of(rows.tolist(), self.regular)
        layout = known[1]
        target = Layout.of(outs, self.regular) if outs else NOWHERE
        bits = layout.bits | target.bits | 16
        return _new(Piece, (rows, columns, dtype, outs, layout, target, bits & -bits))

    def _places(
        self, pieces: Sequence[Piece], units: Sequence[int], offsets: Sequence[int] = ()
    ) -> Places:
        """Return where the rows and results of leaves are; see `records`."""
        first = pieces[0]
        if len(pieces) == 1 and first.target.stride is not None:
            where = (first.target.first, first.target.stride, units[0])
            if first.layout.stride is not None:
                return Places(False, first.layout.first, first.layout.stride, *where, None)
            address, owner = self._table(first)
            return Places(True, address, 1, *where, owner)
        address, owner = self._upload(records(pieces, units, offsets))
        return Places(True, address, len(pieces), NULL, 0, sum(units), owner)

    def _table(self, piece: Piece) -> tuple[int, Any]:
        """Return a table of one leaf, of the same rows the same: its results are told apart."""
        known = self._tables.get(id(piece.rows))
        if known is None:
            alone = piece._replace(outs=())
            known = self._tables[id(piece.rows)] = self._upload(records([alone], [0]))
        return known

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
            total.pieces.append(self._piece(rows, columns, dtype))

    def add_inner(
        self, total: _Total, rows: Addresses, columns: int, dtype: str, pivot: int, scales: Matrix
    ) -> None:
        """Add inner products of scales_i * (row_i - row_pivot) to `total`."""
        if columns:
            total.products = pivot, self._send(scales)
            total.pieces.append(self._piece(rows, columns, dtype))

    def _accumulate(self, total: _Total) -> None:
        """Launch what was put into `total`, as many leaves together as there is memory for."""
        pieces, total.pieces = total.pieces, []
        batch = max(PARTIAL_BYTES // (8 * triangle(total.points)) // CHUNK_SPANS, 1) * CHUNK_SPANS
        some: list[Piece] = []
        count = 0
        for piece in pieces:
            if some and count + whole_chunks(piece.columns) > batch:
                self._measure(total, some, batch)
                some, count = [], 0
            some.append(piece)
            count += whole_chunks(piece.columns)
        if some:
            self._measure(total, some, batch)

    def _measure(self, total: _Total, pieces: list[Piece], batch: int) -> None:
        """Launch the partial sums of leaves, or, part after part, of one that is larger."""
        if len(pieces) == 1:
            spans = -(-pieces[0].columns // SPAN)
            for first in range(0, spans, batch):
                count = min(batch, spans - first)
                self._partials(total, pieces, [count], [0], self._triangles(total, count), first)
            return
        # In the order of the leaves, whatever their dtypes and places; each has whole chunks, as if
        # it were alone.
        spans_ = [whole_chunks(piece.columns) for piece in pieces]
        triangles = self._triangles(total, sum(spans_))
        alike: dict[tuple[str, bool], list[tuple[Piece, int, int]]] = {}
        place = 0
        for piece, count in zip(pieces, spans_, strict=True):
            alike.setdefault((piece.dtype, piece.alignment == 16), []).append((piece, count, place))
            place += count
        for group in alike.values():
            some, counts, places = (list(each) for each in zip(*group, strict=True))
            self._partials(total, some, counts, places, triangles, 0)

    def _triangles(self, total: _Total, count: int) -> int:
        """Return where so many triangles go, which then wait to be added."""
        self._add(total, finish=0)
        points = total.points
        matrix = 0 if total.address else 8 * points * points
        size = 8 * triangle(points) * count
        address, owner = self.room(matrix + size + 16)
        if matrix:
            total.address, total.owner = address, owner
        triangles = address + matrix
        total.triangles, total.counter = owner, triangles + size
        total.waiting = triangles, count
        return triangles

    def _partials(
        self, total: _Total, pieces: list[Piece], spans: list[int], places: list[int],
        triangles: int, first: int,
    ) -> None:  # fmt: skip
        """Launch leaves of a dtype: so many spans of each, of which the first has this place."""
        points, products, pivot, scales = total.points, total.products is not None, 0, NULL
        if total.products is not None:
            pivot, scales = total.products[0], total.products[1].address
        if len(pieces) == 1:
            triangles += 8 * triangle(points) * places[0]
        x = self._places(pieces, spans, places)
        aligned = pieces[0].alignment == 16
        partials, shape = _partials(points, pieces[0].dtype, products, x.table, aligned)
        arguments = (
            x.rows, x.stride, points, pieces[0].columns, first, triangles, total.counter, scales,
            pivot,
        )  # fmt: skip
        self._launch(partials, x.units * shape.blocks(points), shape.threads, 0, arguments)

    def _add(self, total: _Total, finish: int) -> None:
        """Add the triangles that wait, if any."""
        if total.waiting is None:
            return
        points = total.points
        if total.start is not None and not total.begun:
            start = np.array(total.start, np.float64, order="C")
            self.device.write(total.address, start, self.stream)
            total.begun = True
        triangles, count = total.waiting
        arguments = (
            triangles, count, total.address, points, int(total.begun), finish, total.counter,
        )  # fmt: skip
        self._launch(ADD, -(-triangle(points) // ADD_ENTRIES), ADD_THREADS, 0, arguments)
        total.begun, total.waiting = True, None

    def complete(self, total: _Total, distances: bool) -> Matrix:
        """Return the matrix on the host, symmetric, faulty rows at +Inf. Waits."""
        points = total.points
        if not total.pieces:  # no columns
            return np.zeros((points, points)) if total.start is None else total.start.copy()
        self._refuse_to_wait()
        self.flush()  # statistics of the columns may be among the points
        result: Matrix = np.empty((points, points))
        self.device.read(self.finish(total, distances), result, self.stream)
        return result

    def finish(self, total: _Total, distances: bool) -> int:
        """Complete the matrix on the device, and return its address; nothing waits."""
        self._accumulate(total)
        self._add(total, finish=1 if distances else 2)
        return total.address

    def select(self, total: _Total, selection: Selection) -> tuple[Numbers, bool]:
        """Return what a selection makes of the distances; nothing waits."""
        points, f = total.points, selection.f
        n = points - selection.beyond
        block, shared = selection_shape(n)
        D = (self.finish(total, True), points, n, f)
        if isinstance(selection, Krum):
            address, owner = self.room(8 * n)
            shape, picks = (n,), False
            rest: tuple[Any, ...] = (selection.kept, int(selection.squared), selection.m)
            rest += (address,)
        elif isinstance(selection, CGE):
            address, owner = self.room(8 * n)
            shape, picks, rest = (n,), False, (n, address)
        elif isinstance(selection, NNM):
            address, owner = self.room(8 * n * n)
            shape, picks, rest = (n, n), False, (address,)  # type: ignore[assignment]
        else:
            picks = isinstance(selection, Bulyan)
            shape = (n - 2 * f,) if picks else (n - 2 * f - 2, n)  # type: ignore[assignment]
            size = 8 * shape[0] * (1 if picks else n)
            address, owner = self.room(size + selection_scratch(n))
            rest = (address, address + size)
        self._launch(
            kernel("selection.cu", SELECTED[type(selection)]), 1, block, shared, (*D, *rest)
        )
        return Numbers(address, shape, picks, owner), False

    # --------------------------------------------------------------- weighted sums and columns

    def combine(
        self, weights: Matrix | Numbers, rows: Addresses, columns: int, dtype: str,
        outs: list[int],
    ) -> None:  # fmt: skip
        """Write the k rows of `weights` (k, n) times X at the k addresses `outs`."""
        if columns and len(outs):
            sent = weights if isinstance(weights, Numbers) else self._send(weights)
            self._sums.append((sent, 0.0, self._piece(rows, columns, dtype, outs)))

    def columns(
        self, rows: Addresses, count: int, dtype: str, statistic: Statistic,
        mixing: Matrix | Numbers | None, out: int, *, careful: bool = False, offset: int = 0,
        whole: bool = False,
    ) -> None:  # fmt: skip
        """Write the statistic of each of `count` columns of X, or of mixing @ X, at `out`."""
        if not count:
            return
        piece = self._piece(rows, count, dtype, [out])
        if statistic.kind == "mean":
            weights = None if mixing is None else self._averaged(mixing)
            self._sums.append((weights, 1.0 / len(rows), piece))
            return
        if mixing is not None and not isinstance(mixing, Numbers):
            mixing = self._send(mixing)
        asked = statistic, mixing
        if self._statistic is not None and any(
            a is not b for a, b in zip(asked, self._statistic, strict=True)
        ):
            self.flush()
        self._statistic = asked
        self._leaves.append((offset, piece))

    def flush(self) -> None:
        """Launch the weighted sums and statistics that were asked for."""
        if self._sums:
            sums, self._sums = self._sums, []
            alike: dict[tuple[int, float, str, int, int], list[Piece]] = {}
            for weights, share, piece in sums:
                pack = max(1, piece.alignment // ITEMSIZE[piece.dtype])
                where = NULL if weights is None else weights.address
                key = (where, share, piece.dtype, pack, len(piece.outs))
                alike.setdefault(key, []).append(piece)
            for key, pieces in alike.items():
                self._combine(*key, pieces)
        if self._statistic is not None:
            leaves, asked = self._leaves, self._statistic
            self._leaves, self._statistic = [], None
            groups: dict[tuple[str, int], list[tuple[int, Piece]]] = {}
            for leaf in leaves:
                groups.setdefault((leaf[1].dtype, leaf[1].alignment), []).append(leaf)
            for (dtype, alignment), some in groups.items():
                self._columns(*asked, dtype, alignment, some)

    def _combine(
        self, weights: int, share: float, dtype: str, pack: int, k: int, pieces: list[Piece]
    ) -> None:
        tiles = [-(-piece.columns // (COMBINE_THREADS * pack)) for piece in pieces]
        x = self._places(pieces, tiles)
        combining = _combining(dtype, x.table, 1 if k == 1 else 4, pack)
        grid = min(x.units, RESIDENT * self.device.processors)
        arguments = (
            x.rows, x.stride, len(pieces[0].rows), weights, share, k, x.outs, x.out_stride,
            x.units if x.table else pieces[0].columns,
        )  # fmt: skip
        self._launch(combining, grid, COMBINE_THREADS, 0, arguments)

    def _columns(
        self, statistic: Statistic, mixing: Numbers | None, dtype: str, alignment: int,
        leaves: list[tuple[int, Piece]],
    ) -> None:  # fmt: skip
        """Launch a statistic of leaves, each with the number of its first column."""
        offset, first = leaves[0]
        n, m, mode, mixed = len(first.rows), len(first.rows), 0, (NULL, 0)
        if mixing is not None:
            m, mode, mixed = mixing.shape[0], 2 if mixing.picks else 1, (mixing.address, n)
        table = len(leaves) > 1 or first.layout.stride is None
        votes = statistic.kind in ("finite_mean", "sign")
        if votes:
            variant = votes_variant(statistic.kind, dtype, table=table, alignment=alignment)
        else:
            alike = replace(statistic, key=0) if statistic.key else statistic  # as at other steps
            variant = columns_variant(
                alike, m, n, dtype, table=table, mix=mode, alignment=alignment
            )
        if variant.scratch and len(leaves) > 1:  # as much as one launch may take
            for leaf in leaves:
                self._columns(statistic, mixing, dtype, alignment, [leaf])
            return
        pieces = [piece for _, piece in leaves]
        blocks = variant.blocks([piece.columns for piece in pieces], self.device.processors)
        offsets = [own - offset for own, _ in leaves]
        x = self._places(pieces, blocks, offsets)
        source = (x.rows, x.stride, n)
        if votes:
            self._run(variant, x.units, (*source, statistic.faults, x.outs, first.columns))
            return
        low, high, ranks = statistic.support
        scratch, owner = NULL, None
        if variant.scratch:
            scratch, owner = self.room(variant.scratch * x.units)
        weights = NULL if ranks is None else self._send(ranks).address
        key = statistic.key - (statistic.key >> 63 << 64)  # as a signed number
        arguments = (
            *source, *mixed, m, low, high, statistic.closest or 0, weights, statistic.faults, key,
            float(statistic.probability), offset, x.outs, first.columns, scratch,
        )  # fmt: skip
        self._run(variant, x.units, arguments)
        del owner

    def _run(self, v: Variant, blocks: int, arguments: tuple[Any, ...]) -> None:
        self._launch(kernel(v.file, v.kernel, v.defines), blocks, v.block, v.shared, arguments)
