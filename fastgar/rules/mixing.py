"""Mixing rules: a step before a rule that replaces rows by averages of rows."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ..options import Count, Seed
from ..statistic import NNM, hash64, hash_key
from . import proofs
from .decorators import mixing_rule

if TYPE_CHECKING:
    from ..geometry import Geometry

__all__ = ["bucketing", "nnm"]


def _nnm_selection(n: int, f: int, options: Any) -> NNM:
    return NNM(f=f)


@mixing_rule(
    needs="2f + 1",
    guarantee="(f, kappa)",
    selection=_nnm_selection,
    queued=True,
    kappa_with=proofs.with_nnm,
    inner=False,  # a far row is the neighbour of no other, so it is never mixed into one
    paper="Allouah et al., Fixing by mixing, AISTATS 2023",
)
def nnm(g: Geometry, f: int) -> NDArray[np.float64]:
    """Replace each row by the mean of its n-f nearest rows, itself included.

    Examples
    --------
    >>> fg.nnm(np.array([[1.0], [2.0], [3.0], [91.0]]), f=1)
    array([[ 2.],
           [ 2.],
           [ 2.],
           [32.]])
    """
    near = g.nearest()[:, : g.n - f]
    W = np.zeros((g.n, g.n + len(g.names)))
    np.put_along_axis(W, near, 1.0 / (g.n - f), axis=1)
    W[g.faulty] = np.nan
    return W


def _after_bucketing(n: int, options: Any) -> int:
    s: int = options["s"]
    return -(-n // s)


@mixing_rule(
    needs="f + 1",
    f="optional",
    guarantee="(f, kappa)",
    rows_after=_after_bucketing,
    breakdown="1/(2s)",
    kappa_with=proofs.with_bucketing,
    paper="Karimireddy, He and Jaggi, Byzantine-robust learning on heterogeneous datasets via "
    "bucketing, ICLR 2022, algorithm 1",
)
def bucketing(g: Geometry, *, s: Count = 2, seed: Seed = 0, step: int = 0) -> NDArray[np.float64]:
    """Replace the rows by the means of random buckets of s rows each.

    The next stage sees ceil(n/s) rows (the last bucket may be smaller) and the same f.

    Options
    -------
    s : int
        Rows per bucket.
    seed : int
        Of the draw, which depends on it, on the step and on the number of rows, on nothing else.

    Examples
    --------
    >>> fg.bucketing(np.array([[1.0], [2.0], [3.0], [4.0]]), s=4)
    array([[2.5]])
    """
    drawn = hash64(hash_key(seed, step), np.arange(g.n, dtype=np.uint64)).argsort(kind="stable")
    buckets = -(-g.n // s)
    W = np.zeros((buckets, g.n + len(g.names)))
    for row, start in zip(W, range(0, g.n, s), strict=True):
        bucket = drawn[start : start + s]
        row[bucket] = np.nan if g.faulty[bucket].any() else 1.0 / len(bucket)
    W[np.isnan(W).any(axis=1)] = np.nan
    return W
