"""How far each row was used by what was decided."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from . import primitives
from .arrays import Table, Vote
from .geometry import Decision
from .primitives import Refs
from .statistic import Statistic

__all__ = ["usage", "votes", "weigh"]

WIDE = 4 << 20  # bytes of float64 in which `usage` sorts at a time
Matrix = NDArray[np.float64]
Ranks = NDArray[np.intp]


def votes(decision: Decision, T: Table, refs: Refs = ()) -> list[Vote]:
    """Return, for each row of the result, what makes its integers.

    A column rule rejects no row as a whole. Which it used most, it takes another read to tell.
    """
    statistic, everyone = decision.statistic, tuple(range(T.n))
    if statistic is not None and T.votes == "median":
        return [Vote(everyone, statistic.kind in ("mean", "finite_mean"))]
    if statistic is not None:
        used = usage(T, statistic, refs, decision.mix)
        weights = weigh(replace(decision, distances=None), used)[None]
    else:
        found = decision.mix if decision.weights is None else decision.weights[None]
        assert found is not None
        weights = np.nan_to_num(found)
    chosen = []
    for row in weights[:, : T.n]:
        believed = tuple(np.flatnonzero(row).tolist()) or everyone
        if T.votes == "first":
            believed = believed[:1]
        elif T.votes == "selected":
            believed = (int(np.argmax(row)),)
        chosen.append(Vote(believed))
    return chosen


def weigh(decision: Decision, used: Matrix | None) -> Matrix:
    """Return what each row, and then each reference, counts by a decision.

    Parameters
    ----------
    decision : Decision
    used : (m,) array or None
        Of a statistic: what `usage` gives for it.
    """
    weights, mix = decision.weights, decision.mix
    if weights is None:
        if mix is None:
            assert used is not None
            return used
        if used is None:
            share = np.full(len(mix), 1.0 / len(mix))
        else:
            total = used.sum()
            share = used / total if total > 0 else used
        weights = np.asarray(share @ np.nan_to_num(mix))
    return _shared(weights, decision.distances)


def _shared(weights: Matrix, D: Matrix | None) -> Matrix:
    """Return the weights with those of rows that are 0 apart spread evenly over these."""
    if D is None:
        return weights
    n = len(D)
    apart = D.copy()
    np.fill_diagonal(apart, 0.0)
    first = (apart == 0).argmax(axis=1)  # the lowest of the rows that are equal
    total, count = np.bincount(first, weights[:n], n), np.bincount(first, minlength=n)
    return np.concatenate([(total / np.maximum(count, 1))[first], weights[n:]])


def usage(T: Table, statistic: Statistic, refs: Refs = (), W: Matrix | None = None) -> Matrix:
    """Return the share of columns in which each row (of W times the points) was used.

    Used are the values whose rank has a weight, or that are among the closest; where those are k of
    t equal values, each of the t counts k/t. Made for reports: it sorts with NumPy, a range of
    columns at a time.
    """
    m = T.n if W is None else len(W)
    counts: Matrix = np.zeros(m)
    seen = 0
    step = max(1, WIDE // (8 * max(m, T.n)))
    for number, block in enumerate(T.blocks):
        for begin in range(0, block.columns, step):
            count = min(step, block.columns - begin)
            X = primitives.values(T, refs, number, begin, count)
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


def _used(values: Matrix, statistic: Statistic, offset: int) -> Matrix:
    """Return how far the statistic uses each value; the columns are numbered from `offset` on."""
    m, columns = values.shape
    finite: NDArray[np.bool_] = np.isfinite(values)
    if statistic.kind == "finite_mean":
        return finite.astype(np.float64)
    if statistic.kind in ("mean", "sign"):
        return np.ones((m, columns))
    if not finite.all():
        values = np.where(np.isnan(values), math.inf, values)
    ranked = np.sort(values, axis=0)
    used = np.zeros((m, columns))
    for first, last in _ranks_used(ranked, statistic):
        used += _at_ranks(values, ranked, first, last)
    used *= finite.sum(axis=0) >= m - statistic.faults
    if statistic.kind == "condense":
        first_row = ~statistic.takes_median(offset, offset + columns)
        as_first = values[:, first_row] == values[0, first_row]
        used[:, first_row] = as_first / as_first.sum(axis=0)
    return used


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


def _at_ranks(values: Matrix, ranked: Matrix, first: Ranks, last: Ranks) -> Matrix:
    """Return which values have these ranks; equal ones that do not all have them share alike."""
    each = np.arange(values.shape[1])
    low, high = ranked[first, each], ranked[last, each]
    found = ((values >= low) & (values <= high)).astype(np.float64)
    if (found.sum(axis=0) == last + 1 - first).all():
        return found
    for bound in (low, high):
        begin, end = (ranked < bound).sum(axis=0), (ranked <= bound).sum(axis=0)
        here = np.minimum(end, last + 1) - np.maximum(begin, first)
        found = np.where(values == bound, here / (end - begin), found)
    return found
