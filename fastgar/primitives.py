"""The three operations that read the big matrix; everything else works on n x n numbers.

========================  =====================================  ==========
operation                 gives                                  reads of X
========================  =====================================  ==========
``sqdist(T, refs)``       squared distances of all points        1
``combine(W, T)``         weighted sums of the points            1
``columns(T, statistic)`` an order statistic of every column,    1
                          of the rows or of a mixing of them
========================  =====================================  ==========

`inner` is the distance pass once more in float64, for pipelines that meet very long rows.

`select` is a distance pass, the choice that follows from it and the weighted sum (or the statistic
of the picked rows), by kernels alone: on a GPU nothing comes back to the host, so nothing waits.

*Points* are the n rows of a table followed by reference vectors: one-row tables, or ``"origin"``.
All of these split over columns: distances add up over column ranges, the rest is independent.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from fastgar.arrays import Out, Table
from fastgar.backend import Addresses, Backend, Matrix
from fastgar.dtypes import ITEMSIZE
from fastgar.statistic import Selection, Statistic

if TYPE_CHECKING:
    from fastgar.cuda.backend import Backend as CudaBackend

__all__ = [
    "Refs", "columns", "combine", "inner", "select", "selects", "sqdist", "sqdist_to", "values",
]  # fmt: skip

Refs = Sequence[Table | str]  # one-row tables, or "origin"


def _on(T: Table) -> Backend[Any, Any]:
    """Return the backend for where the rows are."""
    if T.device == "cpu":
        return _cpu()
    if T.backend is None:
        T.backend = _cuda()(T.device, T.library, T.one_array)
    backend: Backend[Any, Any] = T.backend
    return backend


@cache
def _cpu() -> Backend[Matrix, NDArray[Any]]:
    from fastgar.cpu import backend  # Numba is imported here, at the first computation

    return backend


@cache
def _cuda() -> type[CudaBackend]:
    from fastgar.cuda.backend import Backend

    return Backend


@cache
def _makes() -> Callable[[Selection, int], bool]:
    from fastgar.search.selection import makes

    return makes


@cache
def _choose() -> Callable[[Matrix, Selection], tuple[NDArray[Any] | None, bool]]:
    from fastgar.search.selection import choose

    return choose


def _addresses(T: Table, refs: Refs, block: int, origin: int) -> Addresses:
    """Return the addresses of all points in one block; the origin's points to zeros."""
    rows = T.blocks[block].addresses
    if not refs:
        return rows
    points = np.empty(T.n + len(refs), dtype=np.int64)
    points[: T.n] = rows
    for i, ref in enumerate(refs):
        points[T.n + i] = origin if isinstance(ref, str) else ref.blocks[block].addresses[0]
    return points


def sqdist(T: Table, refs: Refs = (), start: Matrix | None = None) -> Matrix:
    """Return the squared Euclidean distances between all points.

    Parameters
    ----------
    T : Table
        The n rows.
    refs : sequence of Table or "origin"
        Further points, each a table of one row.
    start : ndarray, optional
        Distances over columns that were seen before: this call's are added to them, chunk by
        chunk, so that a vector cut at multiples of ``CHUNK`` gives the bits of the whole.

    Returns
    -------
    ndarray, shape (n + r, n + r), float64
        Differences are formed directly and summed in float64 over chunks. The diagonal is 0, equal
        rows are exactly 0 apart. A point with a non-finite entry has +Inf in its row, its column
        and on the diagonal. There is no NaN. Pairs of finite points overflow only for float64 data.
    """
    backend = _on(T)
    return backend.complete(_distances(backend, T, refs, start), True)


def _distances(backend: Backend[Any, Any], T: Table, refs: Refs, start: Matrix | None) -> Any:
    total = backend.matrix(T.n + len(refs), start)
    for number, block in enumerate(T.blocks):
        rows = _addresses(T, refs, number, backend.ORIGIN)
        fresh = number == 0 and start is None
        backend.add_distances(total, rows, block.columns, block.dtype, fresh=fresh)
    return total


def selects(selection: Selection, n: int, dtypes: Sequence[str] | None = None) -> bool:
    """Return whether a backend makes this choice among n rows by itself.

    `dtypes` are those of the leaves on a GPU, which need not be there; None: on the CPU.
    """
    if dtypes is None:
        return _makes()(selection, n)
    from fastgar.cuda.variants import selects

    return selects(selection, n, dtypes)


def select(T: Table, selection: Selection, refs: Refs, out: Out) -> Matrix | None:
    """Write what a selection makes of the points to `out`. On a GPU nothing waits.

    Returns None; the distances, and has written nothing, where the choice needs more than them.
    """
    if not T.columns:
        return None
    backend = _on(T)
    total = _distances(backend, T, refs, None)
    chosen, whole = (_choose() if T.device == "cpu" else T.backend.select)(total, selection)
    if chosen is None:
        D: Matrix = total
        return D
    vectors: Refs = ()
    if refs and chosen.shape[-1] > T.n:
        vectors, chosen = _without_origin(chosen, T.n, refs)
    statistic = selection.statistic
    for number, (block, places) in enumerate(zip(T.blocks, out.places, strict=True)):
        rows, columns, dtype = _addresses(T, vectors, number, 0), block.columns, block.dtype
        if statistic is None:
            backend.combine(chosen, rows, columns, dtype, places)
        else:
            backend.columns(rows, columns, dtype, statistic, chosen, places[0], whole=whole)
    backend.flush()
    return None


def inner(T: Table, refs: Refs, pivot: int, scale: Matrix, start: Matrix | None = None) -> Matrix:
    """Return the inner products of ``scale_i * (point_i - point_pivot)``, all in float64.

    A point of scale 0 is not read, and its inner products are 0.
    """
    backend = _on(T)
    scales = np.ascontiguousarray(scale, dtype=np.float64)
    total = backend.matrix(T.n + len(refs), start)
    for number, block in enumerate(T.blocks):
        rows = _addresses(T, refs, number, backend.ORIGIN)
        backend.add_inner(total, rows, block.columns, block.dtype, pivot, scales)
    return backend.complete(total, False)


def combine(W: Matrix, T: Table, refs: Refs, out: Out) -> None:
    """Write W times the points to `out`. Weight 0 means not read; a row of NaN writes NaN."""
    backend = _on(T)
    vectors, weights = _without_origin(W if W.ndim == 2 else W[np.newaxis], T.n, refs)
    weights = np.array(weights, dtype=np.float64, order="C")
    for number, (block, places) in enumerate(zip(T.blocks, out.places, strict=True)):
        rows = _addresses(T, vectors, number, 0)
        backend.combine(weights, rows, block.columns, block.dtype, places)
    backend.flush()


def _without_origin(W: Matrix, n: int, refs: Refs) -> tuple[Refs, Matrix]:
    """Return the references and the weights without the origin, which adds nothing."""
    kept = [i for i, ref in enumerate(refs) if not isinstance(ref, str)]
    if len(kept) == len(refs):
        return refs, W
    if not kept:
        return (), W[:, :n]
    vectors = [refs[i] for i in kept]
    return vectors, W[:, [*range(n), *(n + i for i in kept)]]


def columns(
    T: Table, statistic: Statistic, W: Matrix | None, out: Out, *, refs: Refs = (),
    offset: int = 0, careful: bool = False,
) -> None:  # fmt: skip
    """Write the statistic of every column of the rows, or of W times the points, to `out`.

    A row of NaN in W is a faulty mixed row: it ranks as +infinity in every column. A result that is
    zero is +0, but for the mean, a weighted sum. `offset` is the number of the first column, for
    ``condense``. `careful`: points with a zero weight somewhere
    may be non-finite.
    """
    backend = _on(T)
    vectors: Refs = ()
    if W is not None:
        vectors, W = _without_origin(W, T.n, refs)
    for number, (block, (place,)) in enumerate(zip(T.blocks, out.places, strict=True)):
        rows, mixing = _addresses(T, vectors, number, 0), W
        if mixing is not None and _picks(mixing):
            rows, mixing = rows[mixing.argmax(axis=1)], None
        backend.columns(
            rows, block.columns, block.dtype, statistic, mixing, place, careful=careful,
            offset=offset,
        )  # fmt: skip
        offset += block.columns
    backend.flush()


def _picks(mixing: Matrix) -> bool:
    """Return whether every mixed row is just one of the rows, as in Bulyan."""
    return bool(
        np.all((mixing == 1.0).sum(axis=1) == 1) and np.count_nonzero(mixing) == len(mixing)
    )


def sqdist_to(T: Table, statistic: Statistic, start: Matrix | None = None) -> Matrix:
    """Return what `sqdist` would, with the statistic of the columns as one further, last point.

    Both come from one read of X, in ranges of columns that fit in the cache (on a GPU from two, of
    all columns). `start` is that of `sqdist`.
    """
    backend = _on(T)
    total = backend.matrix(T.n + 1, start)
    owners = []  # of the statistic, which is read when the matrix is complete
    for block in T.blocks:
        span = backend.span(block.columns, T.n)
        size = ITEMSIZE[block.dtype]
        centre, owner = backend.room(span * size)
        owners.append(owner)
        for begin in range(0, block.columns, span):
            count = min(span, block.columns - begin)
            rows = block.addresses + begin * size
            backend.columns(rows, count, block.dtype, statistic, None, centre)
            points = np.append(rows, centre)
            backend.add_distances(total, points, count, block.dtype)
    return backend.complete(total, True)


def values(T: Table, refs: Refs, block: int, begin: int, count: int) -> Matrix:
    """Return some columns of all points in one block, in double precision. On a GPU it waits."""
    backend, where = _on(T), T.blocks[block]
    rows = _addresses(T, refs, block, 0)
    X = np.zeros((len(rows), count))
    for i, row in enumerate(rows.tolist()):
        if row:
            place = row + begin * ITEMSIZE[where.dtype]
            X[i] = backend.numbers(place, count, where.dtype)
    return X
