"""For every kernel, a few launches that are small and yet reach each of its barriers.

`LAUNCHES` is what the thread sanitizer watches (test_races.py): few threads, as each costs it a
millisecond, but loops that run more than once, and more than one block where blocks share memory.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np

from fastgar.cuda.backend import NUMBERS, STRUCT
from fastgar.cuda.shapes import pair_shape, triangle
from fastgar.cuda.variants import (
    columns_variant,
    selection_scratch,
    selection_shape,
    votes_variant,
)
from fastgar.statistic import Statistic

__all__ = ["LAUNCHES", "Case"]


class Case(NamedTuple):
    """One module, and launches of its kernels: (kernel, grid, block, arguments, shared memory)."""

    file: str
    defines: dict[str, object]
    launches: Callable[[], Iterator[tuple[str, int, int, list[Any], int]]]


def _sample(n: int, d: int, faults: int = 1) -> np.ndarray:
    rng = np.random.default_rng(n)
    X = rng.standard_normal((n, d)).astype(np.float32)
    X[rng.permutation(n)[:faults], 1] = np.nan
    return X


def _columns(
    statistic: Statistic, m: int, n: int, d: int, *, in_global_memory: bool = False,
    table: bool = False,
) -> Case:  # fmt: skip
    """Blocks that have several tiles of columns; W X where there are other than m rows."""
    mixed = n != m
    variant = columns_variant(statistic, m, n, "float32", table=table, mix=int(mixed), alignment=4)
    low, high, _ = statistic.support
    defines, blocks, shared, scratch = dict(variant.defines), 1, variant.shared, 0
    if in_global_memory:  # as if the tile were longer
        defines["FG_SCRATCH"], blocks, shared, scratch = "1", 2, 0, 2 * shared

    def launches():
        X, out = _sample(n, d), np.zeros(d, np.float32)
        W = np.random.default_rng(0).random((m, n)) if mixed else None
        leaf = np.array([0, 0, d, 0, *(row.ctypes.data for row in X)])
        source, stride = (leaf, 1) if table else (X, X.strides[0])
        yield variant.kernel, blocks, variant.block, [
            source, stride, n, W, n, m, low, high, statistic.closest or 0, None,
            statistic.faults, 0, 1.0, 0, out, d, np.zeros(scratch // 8 + 1),
        ], shared  # fmt: skip

    return Case(variant.file, defines, launches)


def _votes() -> Case:
    variant = votes_variant("sign", "float32", table=False, alignment=4)

    def launches():
        X, out = _sample(5, 300), np.zeros(300, np.float32)
        yield "votes", 2, variant.block, [X, X.strides[0], 5, 1, out, 300], 0

    return Case(variant.file, dict(variant.defines), launches)


def _combine() -> Case:
    """More rows of W than are taken at a time, and more rows of X than are listed at a time."""
    defines = {"FG_DTYPE": 2, "FG_TABLE": 0, "FG_K": 4, "FG_PACK": 1}

    def launches():
        X, W = _sample(520, 300), np.random.default_rng(0).random((5, 520))
        W[0, 3] = np.nan
        W[:, ::3] = 0.0
        out = np.zeros((5, 300), np.float32)
        yield "combine", 1, 256, [X, X.strides[0], 520, W, 0.0, 5, out, out.strides[0], 300], 0

    return Case("combine.cu", defines, launches)


def _partials(points: int, d: int, spans: int = 1, products: bool = False) -> Case:
    """Several tiles of columns, with a fault and with distances that overflow, and without."""
    shape = pair_shape(points, products, products, False)

    def launches():
        for bad in (False, True):
            X = _sample(points, d, int(bad))
            if bad:
                X[0], X[1] = 1e30, -1e30
            blocks = spans * shape.blocks(points)
            triangles, counter = np.zeros((spans, triangle(points))), np.zeros(1, np.int32)
            scales = np.ones(points) if products else None
            arguments = [X, X.strides[0], points, d, 0, triangles, counter, scales, 2]
            yield "partials", blocks, shape.threads, arguments, 0

    return Case("distances.cu", shape.defines(2, False, 1, products), launches)


def _add(points: int, spans: int) -> Case:
    """Several blocks, of which the last to end makes the matrix."""

    def launches():
        parts = np.random.default_rng(0).random((spans, triangle(points)))
        diagonal = np.array([triangle(i + 1) - 1 for i in range(points)])
        parts[:, diagonal] = 0.0
        parts[5, diagonal[2]] = 1.0  # a row that is not finite
        total, counter = np.zeros((points, points)), np.zeros(1, np.int32)
        grid = -(-triangle(points) // 32)
        yield "add", grid, 256, [parts, spans, total, points, 0, 1, counter], 0

    return Case("distances.cu", {}, launches)


def _selection() -> Case:
    """Two warps, each of which has many rows; more rows than a warp has lanes."""
    n, f, block = 39, 9, 64
    shared = selection_shape(n)[1]

    def launches():
        X = np.random.default_rng(0).integers(0, 9, (n, 3)).astype(float)
        D = ((X[:, None] - X[None]) ** 2).sum(axis=2)
        weights, mixing, picks = np.zeros(n), np.zeros((n, n)), np.zeros(n, np.int64)
        scratch = np.zeros(selection_scratch(n), np.uint8)
        yield "krum", 1, block, [D, n, n, f, n - f - 1, 0, 3, weights], shared
        yield "cge", 1, block, [D, n, n, f, 4, weights], shared
        yield "nnm", 1, block, [D, n, n, f, mixing], shared
        yield "bulyan", 1, block, [D, n, n, f, picks, scratch], shared
        yield "bulyan_averaged", 1, block, [D, n, n, f, mixing, scratch], shared

    return Case("selection.cu", {}, launches)


def _table() -> Case:
    def launches():
        given = np.arange(NUMBERS).view(STRUCT)[0]
        yield "table", 1, 128, [np.zeros(400, np.int64), given, 400], 0

    return Case("table.cu", {}, launches)


# Of cases that have the same barriers, the first is the one that compiles soonest.
MEAMED = Statistic.median(130, closest=90, faults=3)
LAUNCHES: dict[str, Case] = {
    "columns, W X": _columns(Statistic.median(5), 5, 8, 520),
    "columns, W X in two parts": _columns(Statistic.median(5), 5, 1600, 140),
    "columns, sorted in a tile": _columns(MEAMED, 130, 130, 20),
    "columns, sorted in global memory": _columns(MEAMED, 130, 130, 30, in_global_memory=True),
    "columns": _columns(Statistic.median(6), 6, 6, 300, table=True),
    "votes": _votes(),
    "combine": _combine(),
    "partials": _partials(5, 700),
    "partials of two spans": _partials(6, 2100, 2),
    "partials of products": _partials(5, 700, products=True),
    "partials, many rows": _partials(130, 70),
    "add": _add(9, 300),
    "selection": _selection(),
    "table": _table(),
}  # fmt: skip
