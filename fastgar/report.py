"""Who was believed, and why: the report on one aggregation."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .deciding import DistanceOn
from .pipeline import Rule, rule
from .usage import usage, weigh

__all__ = ["Report", "inspect", "on_a_screen"]

HALF = 20  # lines that a repr has at the beginning, and at the end


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
