"""Rows that are hard on a rule, for `gpu_check.py`: ties, both zeros, the ends of a dtype, faults.

Every function returns n rows of d numbers in float64, to be rounded to the dtype, of which at most
f are faulty.
"""

from __future__ import annotations

from typing import Any

import numpy as np

# What a dtype calls subnormal; what is not, though its square is, or nearly; and close to the end.
EXTREMES = {
    "float16": (6e-7, 2e-4, 6e4),
    "bfloat16": (1e-39, 2e-20, 1e38),
    "float32": (1e-39, 2e-20, 1e38),
    "float64": (1e-310, 2e-160, 1e300),
}

Rows = np.ndarray[Any, Any]


def edges(n: int, d: int, f: int, dtype: str) -> Rows:
    """Return columns of ten kinds, in turn: each meets another branch of a column's kernel."""
    draw = np.random.default_rng(1000 * n + d)
    tiny, small, huge = EXTREMES[dtype]
    X = draw.standard_normal((n, d)) + 1.0
    X[:, 1::10] = draw.integers(-2, 3, X[:, 1::10].shape)  # ties, and zeros among them
    X[:, 2::10] = np.copysign(0.0, X[:, 2::10] - 1.0)
    X[:, 3::10] *= tiny
    X[:, 4::10] *= small
    X[:, 5::10] = huge * draw.uniform(0.5, 1.0, X[:, 5::10].shape) * np.sign(X[:, 5::10] - 1.0)
    X[:, 6::10] = np.abs(X[0, 6::10])  # all rows agree
    faults = (np.nan, np.inf, -np.inf)
    for column in range(7, d, 10):  # as many faults as the rule forgives
        where = draw.permutation(n)[:f]
        X[where, column] = [faults[(i + column // 10) % 3] for i in range(f)]
    for column in range(8, d, 10):  # too many
        where = draw.permutation(n)[: max(f + 1, (n + 1) // 2)]
        X[where, column] = np.nan
    X[:, 9::10] *= 10.0 ** draw.integers(-4, 5, X[:, 9::10].shape)
    return X


def rows(n: int, d: int, f: int, dtype: str) -> Rows:
    """Return rows near each other, with copies and up to f that are far away or not finite."""
    draw = np.random.default_rng(1000 * n + d + 1)
    X = draw.standard_normal((n, d)) + 1.0
    if n > 6:
        X[n - 1], X[n - 3] = X[n - 2], X[n - 2]
    kinds = (np.nan, 30.0, np.inf)
    for i in range(min(f, 3)):
        if np.isfinite(kinds[i]):
            X[2 + i] *= kinds[i]
        else:
            X[2 + i, draw.integers(d)] = kinds[i]
    return X


def scaled(n: int, d: int, f: int, dtype: str, size: float) -> Rows:
    """Return `rows` of this size, without the far row."""
    X = np.random.default_rng(1000 * n + d + 2).uniform(0.5, 1.0, (n, d)) * size
    if n > 6:
        X[n - 1] = X[n - 2]
    if f:
        X[2, 0] = np.nan
    return X


def subnormal(n: int, d: int, f: int, dtype: str) -> Rows:
    """Return rows of numbers that a GPU which flushes them would take for 0."""
    return scaled(n, d, f, dtype, EXTREMES[dtype][0])


def small(n: int, d: int, f: int, dtype: str) -> Rows:
    """Return rows whose squares the dtype cannot hold."""
    return scaled(n, d, f, dtype, EXTREMES[dtype][1])


def huge(n: int, d: int, f: int, dtype: str) -> Rows:
    """Return rows near the end of the dtype."""
    return scaled(n, d, f, dtype, EXTREMES[dtype][2])


INPUTS = {"edges": edges, "rows": rows, "subnormal": subnormal, "small": small, "huge": huge}
