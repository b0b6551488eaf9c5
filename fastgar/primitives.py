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

import math
from collections.abc import Sequence
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from fastgar.dtypes import ITEMSIZE
from fastgar.statistic import Selection, Statistic, hash64

if TYPE_CHECKING:
    from fastgar.arrays import Out, Table

__all__ = [
    "columns", "combine", "inner", "select", "selects", "selects_on_gpu", "sqdist", "sqdist_to",
    "usage",
]  # fmt: skip

WIDE = 4 << 20  # bytes of float64 in which `usage` sorts at a time
Matrix = NDArray[np.float64]


def _on(T: Table) -> Any:
    """Return the backend for where the rows are."""
    if T.device == "cpu":
        return _cpu()
    if T.backend is None:
        T.backend = _cuda()(T.device, T.library, T.one_array)
    return T.backend


@cache
def _cpu() -> Any:
    from fastgar.cpu import backend  # Numba is imported here, at the first computation

    return backend


@cache
def _selection() -> Any:
    from fastgar.search import selection

    return selection


@cache
def _cuda() -> Any:
    from fastgar.cuda.backend import Backend

    return Backend


def _addresses(T: Table, refs: Sequence[Any], block: int, origin: int) -> NDArray[np.int64]:
    """Return the addresses of all points in one block; the origin's points to zeros."""
    rows = T.blocks[block].addresses
    if not refs:
        return rows
    points = np.empty(T.n + len(refs), dtype=np.int64)
    points[: T.n] = rows
    for i, ref in enumerate(refs):
        points[T.n + i] = origin if isinstance(ref, str) else ref.blocks[block].addresses[0]
    return points


def sqdist(T: Table, refs: Sequence[Any] = (), start: Matrix | None = None) -> Matrix:
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
    total = _distances(backend, T, refs, start)
    D: Matrix = backend.complete(total, True)
    return D


def _distances(backend: Any, T: Table, refs: Sequence[Any], start: Matrix | None) -> Any:
    total = backend.matrix(T.n + len(refs), start)
    for number, block in enumerate(T.blocks):
        rows = _addresses(T, refs, number, backend.ORIGIN)
        fresh = number == 0 and start is None
        backend.add_distances(total, rows, block.columns, block.dtype, fresh=fresh)
    return total


def selects(T: Table, selection: Selection) -> bool:
    """Return whether the backend makes this choice among these rows by itself."""
    if T.device == "cpu":
        does: bool = _selection().makes(selection, T.n)
    else:
        does = _on(T).selects(selection, T.n, [block.dtype for block in T.blocks])
    return does


def selects_on_gpu(selection: Selection, n: int, dtypes: Sequence[str]) -> bool:
    """Return what `selects` would for n rows of these dtypes on a GPU, which need not be there."""
    from fastgar.cuda.variants import selects

    return selects(selection, n, dtypes)


def select(T: Table, selection: Selection, refs: Sequence[Any], out: Out) -> Matrix | None:
    """Write what a selection makes of the points to `out`. On a GPU nothing waits.

    Returns None; the distances, and has written nothing, where the choice needs more than them.
    """
    if not T.columns:
        return None
    backend = _on(T)
    total = _distances(backend, T, refs, None)
    select = _selection().choose if T.device == "cpu" else backend.select
    chosen, whole = select(total, selection)
    if chosen is None:
        D: Matrix = total
        return D
    vectors: Sequence[Any] = ()
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


def inner(
    T: Table, refs: Sequence[Any], pivot: int, scale: Matrix, start: Matrix | None = None
) -> Matrix:
    """Return the inner products of ``scale_i * (point_i - point_pivot)``, all in float64.

    A point of scale 0 is not read, and its inner products are 0.
    """
    backend = _on(T)
    scales = np.ascontiguousarray(scale, dtype=np.float64)
    total = backend.matrix(T.n + len(refs), start)
    for number, block in enumerate(T.blocks):
        rows = _addresses(T, refs, number, backend.ORIGIN)
        backend.add_inner(total, rows, block.columns, block.dtype, pivot, scales)
    products: Matrix = backend.complete(total, False)
    return products


def combine(W: Matrix, T: Table, refs: Sequence[Any], out: Out) -> None:
    """Write W times the points to `out`. Weight 0 means not read; a row of NaN writes NaN."""
    backend = _on(T)
    vectors, weights = _without_origin(W if W.ndim == 2 else W[np.newaxis], T.n, refs)
    weights = np.array(weights, dtype=np.float64, order="C")
    for number, (block, places) in enumerate(zip(T.blocks, out.places, strict=True)):
        rows = _addresses(T, vectors, number, 0)
        backend.combine(weights, rows, block.columns, block.dtype, places)
    backend.flush()


def _without_origin(W: Matrix, n: int, refs: Sequence[Any]) -> tuple[Sequence[Any], Matrix]:
    """Return the references and the weights without the origin, which adds nothing."""
    kept = [i for i, ref in enumerate(refs) if not isinstance(ref, str)]
    if len(kept) == len(refs):
        return refs, W
    if not kept:
        return (), W[:, :n]
    vectors = [refs[i] for i in kept]
    return vectors, W[:, [*range(n), *(n + i for i in kept)]]


def columns(
    T: Table, statistic: Statistic, W: Matrix | None, out: Out, *, refs: Sequence[Any] = (),
    offset: int = 0, careful: bool = False,
) -> None:  # fmt: skip
    """Write the statistic of every column of the rows, or of W times the points, to `out`.

    A row of NaN in W is a faulty mixed row: it ranks as +infinity in every column. A result that is
    zero is +0, but for the mean, a weighted sum. `offset` is the number of the first column, for
    ``condense``. `careful`: points with a zero weight somewhere
    may be non-finite.
    """
    backend = _on(T)
    vectors: Sequence[Any] = ()
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


def _takes_median(statistic: Statistic, begin: int, end: int) -> NDArray[np.bool_]:
    """Return for the columns from number `begin` to `end` whether condense takes the median."""
    draws = hash64(statistic.key, np.arange(begin, end, dtype=np.uint64)) >> np.uint64(11)
    return draws * 2.0**-53 < statistic.probability


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
    D: Matrix = backend.complete(total, True)
    return D


def usage(
    T: Table, statistic: Statistic, refs: Sequence[Any] = (), W: Matrix | None = None
) -> Matrix:
    """Return the share of columns in which each row (of W times the points) was used.

    Used are the values whose rank has a weight, or that are among the closest; of equal values
    those of the lowest rows. Made for reports: it sorts with NumPy, a range of columns at a time.
    """
    backend = _on(T)
    m = T.n if W is None else len(W)
    counts: Matrix = np.zeros(m)
    seen = 0
    step = max(1, WIDE // (8 * max(m, T.n)))
    for number, block in enumerate(T.blocks):
        rows = _addresses(T, refs, number, 0)
        size = ITEMSIZE[block.dtype]
        for begin in range(0, block.columns, step):
            count = min(step, block.columns - begin)
            X = np.zeros((len(rows), count))
            for i, row in enumerate(rows.tolist()):
                if row:
                    X[i] = backend.numbers(row + begin * size, count, block.dtype)
            values = X[: T.n] if W is None else _mixed(W, X)
            counts += _used(values, statistic, seen).sum(axis=1)
            seen += count
    share: Matrix = counts / max(seen, 1)
    return share


def _mixed(W: Matrix, X: Matrix) -> Matrix:
    """Return W X where weight 0 is not read."""
    mixed = np.full((len(W), X.shape[1]), math.nan)
    for i, weights in enumerate(W):
        if not np.isnan(weights).any():
            mixed[i] = weights[weights != 0.0] @ X[weights != 0.0]
    return mixed


def _used(values: Matrix, statistic: Statistic, offset: int) -> NDArray[np.bool_]:
    """Return which values the statistic uses; the columns are numbered from `offset` on."""
    m, columns = values.shape
    finite: NDArray[np.bool_] = np.isfinite(values)
    if statistic.kind == "finite_mean":
        return finite
    if statistic.kind in ("mean", "sign"):
        return np.ones_like(finite)
    if not finite.all():
        values = np.where(np.isnan(values), math.inf, values)
    ranked = np.sort(values, axis=0)
    used = np.zeros_like(finite)
    for first, last in _ranks_used(ranked, statistic):
        used |= _at_ranks(values, ranked, first, last)
    used &= finite.sum(axis=0) >= m - statistic.faults
    if statistic.kind == "condense":
        first_row = ~_takes_median(statistic, offset, offset + columns)
        used[:, first_row] = False
        used[0, first_row] = True
    return used


Ranks = NDArray[np.intp]


def _ranks_used(ranked: Matrix, statistic: Statistic) -> list[tuple[Ranks, Ranks]]:
    """Return the first and the last rank that each column of (m, columns) sorted values uses.

    Several times, where ranks without a weight lie in between.
    """
    m, columns = ranked.shape
    weights = np.array(statistic.weights)
    (ranks,) = np.nonzero(weights)
    if statistic.closest is None:
        runs = np.split(ranks, np.flatnonzero(np.diff(ranks) > 1) + 1)
        return [(np.full(columns, run[0]), np.full(columns, run[-1])) for run in runs]
    k = statistic.closest
    with np.errstate(invalid="ignore"):  # of opposite infinities: NaN, and all is then as far
        centre = weights[ranks] @ ranked[ranks]
        first = (ranked[k:] - centre < centre - ranked[: m - k]).sum(axis=0)
    return [(first, first + k - 1)]


def _at_ranks(values: Matrix, ranked: Matrix, first: Ranks, last: Ranks) -> NDArray[np.bool_]:
    """Return which values have these ranks; of equal values the lower row ranks lower."""
    each = np.arange(values.shape[1])
    low, high = ranked[first, each], ranked[last, each]
    found: NDArray[np.bool_] = (values >= low) & (values <= high)
    if (found.sum(axis=0) == last + 1 - first).all():
        return found
    for bound in (low, high):
        equal = values == bound
        rank = (values < bound).sum(axis=0) - 1  # of the last of the equal values so far
        for row, here in zip(found, equal, strict=True):
            rank += here
            row &= ~here | ((first <= rank) & (rank <= last))
        if np.array_equal(low, high):
            break
    return found
