"""Who was believed, and why: the report on one aggregation."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from . import primitives
from .arrays import table
from .geometry import Decision
from .pipeline import DistanceOn, Rule, rule

__all__ = ["Report", "inspect"]

LINES = 100  # at most that a report prints


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
        which the row was used (mixed rows count for the rows they are made of).
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
        """Return a table: one line per row, who was believed and why; of many rows, the first."""
        n = len(self.weights)
        lines = [f"{self.rule}, n = {n}" + ("" if self.rule.f is None else f", f = {self.rule.f}")]
        lines.append("row   weight" + ("" if self.scores is None else "      score"))
        for i in range(min(n, LINES)):
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
        if n > LINES:
            lines.append(
                f"... {n - LINES} more rows; {len(self.selected)} have a weight, "
                f"{len(self.faulty)} are not finite"
            )
        for name, weight in self.references.items():
            lines.append(f"{name}: {weight:.3f}")
        return "\n".join(lines)

    __repr__ = __str__


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
        It prints as a table.

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
    T = table(X, buffers=buffers)
    points = configured.points(T, start, reference)
    decision = configured._decide_on(T, points, distance_on)
    n = T.n
    weights = _weights(decision, T, points)
    out = configured.apply(decision, T, points)
    configured.step += 1
    scores = decision.scores
    if scores is not None and len(scores) != n:
        scores = None  # they rank buckets, not rows
    faulty = () if decision.faulty is None else tuple(np.flatnonzero(decision.faulty).tolist())
    return Report(
        rule=configured,
        aggregate=out.value(),
        weights=weights[:n],
        scores=scores,
        selected=tuple(np.flatnonzero(weights[:n] != 0).tolist()),
        excluded=tuple(np.flatnonzero(weights[:n] == 0).tolist()),
        faulty=faulty,
        references=dict(zip(configured.refs, weights[n:].tolist(), strict=False)),
    )


def _weights(decision: Decision, T: Any, points: tuple[Any, ...]) -> NDArray[np.float64]:
    if decision.weights is not None:
        return decision.weights
    statistic, mix = decision.statistic, decision.mix
    if mix is None:
        assert statistic is not None
        return primitives.usage(T, statistic)
    if statistic is None:
        used = np.full(len(mix), 1.0 / len(mix))
    else:
        used = primitives.usage(T, statistic, points, mix)
        total = used.sum()
        used = used / total if total > 0 else used
    weights: NDArray[np.float64] = used @ np.nan_to_num(mix)
    return weights
