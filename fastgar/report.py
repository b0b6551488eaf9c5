"""Who was believed, and why: the report on one aggregation."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from . import primitives
from .arrays import Table
from .deciding import DistanceOn
from .geometry import Decision
from .pipeline import Rule, rule
from .primitives import Refs
from .statistic import Statistic

__all__ = ["Report", "inspect", "on_a_screen", "usage", "weigh"]

WIDE = 4 << 20  # bytes of float64 in which `usage` sorts at a time
HALF = 20  # lines that a repr has at the beginning, and at the end
Matrix = NDArray[np.float64]
Ranks = NDArray[np.intp]


@dataclass(frozen=True, eq=False)
class Report:
    """What an aggregation gave, and what each row had to do with it.

    Attributes
    ----------
    rule : Rule
    aggregate
        What the rule returns.
    weights : (n,) array
        The weight of each row in the aggregate. For column rules, the share of the coordinates in
        which the row was used (mixed rows count for the rows they are made of). Rows or values that
        are equal share alike what was taken of any of them.
    scores : (n,) array or None
        What a distance rule ranked the rows by: lower is better. None where it ranks no rows.
    selected, excluded : tuple of int
        The rows with a weight and those without.
    faulty : tuple of int
        Rows with a non-finite value, where the rule looks for them.
    references : dict
        The weights of the origin, the start or the reference, where the rule uses them.
    """

    rule: Rule
    aggregate: Any = field(repr=False)
    weights: NDArray[np.float64]
    scores: NDArray[np.float64] | None
    selected: tuple[int, ...]
    excluded: tuple[int, ...]
    faulty: tuple[int, ...]
    references: dict[str, float]

    def __str__(self) -> str:
        """Return a table: one line per row, who was believed and why."""
        n = len(self.weights)
        lines = [f"{self.rule}, n = {n}" + ("" if self.rule.f is None else f", f = {self.rule.f}")]
        lines.append("row   weight" + ("" if self.scores is None else "      score"))
        for i in range(n):
            line, rank = f"{i:>3} {self.weights[i]:>8.3f}", ""
            if self.scores is not None:
                line += f" {self.scores[i]:>10.4g}"
                before = self.scores < self.scores[i]
                before[:i] |= self.scores[:i] == self.scores[i]
                rank = f": rank {np.count_nonzero(before) + 1} of {n}"
            if i in self.faulty:
                line += "   not finite"
            elif i in self.excluded:
                line += f"   not used{rank}"
            lines.append(line)
        for name, weight in self.references.items():
            lines.append(f"{name}: {weight:.3f}")
        return "\n".join(lines)

    def __repr__(self) -> str:
        return on_a_screen(str(self))


def on_a_screen(text: str) -> str:
    """Return a text without its middle, if it has more lines than a screen."""
    lines = text.split("\n")
    more = len(lines) - 2 * HALF
    if more <= 1:
        return text
    return "\n".join([*lines[:HALF], f"... {more} lines more: print it ...", *lines[-HALF:]])


def inspect(
    spec: str | Rule,
    X: Any,
    f: int | None = None,
    *,
    buffers: str = "median",
    distance_on: DistanceOn = "all",
    start: Any = None,
    reference: Any = None,
) -> Report:
    """Aggregate, and tell who was believed.

    Parameters
    ----------
    spec : str or Rule
        A rule's name or a pipeline, as `fastgar.rule` takes it.
    X, f, buffers, distance_on, start, reference
        As for `fastgar.rule` and for calling what it returns.

    Returns
    -------
    Report
        It prints as a table; its repr leaves out the middle of a long one.

    Notes
    -----
    A column rule costs one more read, in NumPy: this is for looking, not for the inner loop.

    Examples
    --------
    >>> fg.inspect("krum", np.array([[4.0], [6.0], [9.0], [90.0], [7.0]]), f=1)
    krum, n = 5, f = 1
    row   weight      score
      0    0.000         13   not used: rank 3 of 5
      1    1.000          5
      2    0.000         13   not used: rank 4 of 5
      3    0.000  1.345e+04   not used: rank 5 of 5
      4    0.000          5   not used: rank 2 of 5
    """
    configured = rule(spec, f)
    explained = configured.explain(
        X, buffers=buffers, distance_on=distance_on, start=start, reference=reference
    )
    decision, rows = explained.decision, explained.rows
    n = rows.n
    used = None
    if decision.statistic is not None:
        used = usage(rows, decision.statistic, explained.refs, decision.mix)
    weights = weigh(decision, used)
    scores = decision.scores
    if scores is not None and len(scores) != n:
        scores = None  # they rank buckets, not rows
    faulty = () if decision.faulty is None else tuple(np.flatnonzero(decision.faulty).tolist())
    return Report(
        rule=configured,
        aggregate=explained.aggregate,
        weights=weights[:n],
        scores=scores,
        selected=tuple(np.flatnonzero(weights[:n] != 0).tolist()),
        excluded=tuple(np.flatnonzero(weights[:n] == 0).tolist()),
        faulty=faulty,
        references=dict(zip(configured.refs, weights[n:].tolist(), strict=False)),
    )


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
