"""Who was believed in one step."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

__all__ = ["RankReport", "distrust"]

Array = NDArray[np.float64]
LINES = 20  # at most that a report prints


@dataclass(frozen=True, eq=False)
class RankReport:
    """Who was believed in one step.

    Attributes
    ----------
    step : int
        The first is 0.
    rule : str
    ranks : tuple of int
        The ranks of the group by their numbers in the whole job; what follows is in this order.
    weights : (n,) array
        The weight of each rank in the aggregate. Where a column rule comes last, the share of
        coordinates in which the rank was used, from a sample of them. Ranks that sent the same
        share alike what was taken of any of them.
    scores : (n,) array or None
        What a distance rule ranked the ranks by: lower is better.
    faulty, dropped : tuple of int
        Ranks that sent NaN or infinity; these, and those that got no weight (where the rule ranks
        by scores, only the f worst of them).
    suspicion : (n,) array
        From 0, where chance explains how often a rank was dropped (of column rules, how little it
        was used), to 1, where the log names it: see `fastgar.torch.suspicion`.
    """

    step: int
    rule: str
    ranks: tuple[int, ...]
    weights: Array
    scores: Array | None
    faulty: tuple[int, ...]
    dropped: tuple[int, ...]
    suspicion: Array

    def __str__(self) -> str:
        """Return a table: one line per rank, of many those that stand out most."""
        notable = np.isin(self.ranks, self.dropped + self.faulty)
        order = np.lexsort((-self.suspicion, ~notable))[:LINES]
        lines = [f"{self.rule}, step {self.step}", "rank   weight  suspicion"]
        for i in sorted(order):
            rank = self.ranks[i]
            line = f"{rank:>4} {self.weights[i]:>8.3f} {self.suspicion[i]:>10.2f}"
            if rank in self.faulty:
                line += "   not finite"
            elif rank in self.dropped:
                line += "   dropped"
            lines.append(line)
        if len(self.ranks) > LINES:
            lines.append(f"and {len(self.ranks) - LINES} other ranks")
        return "\n".join(lines)

    __repr__ = __str__


def distrust(
    weights: Array, scores: Array | None, faulty: NDArray[np.bool_], f: int
) -> tuple[NDArray[np.bool_], Array]:
    """Return which ranks a step dropped, and how far it distrusted each, from 0 to 1.

    Where the rule ranks by scores, a rank is dropped or not. Else it is distrusted as far as it got
    less weight than another.
    """
    dropped = (weights == 0) | faulty
    if scores is not None:  # a rule that keeps one rank of many does not distrust the others
        worst = np.zeros(len(scores), bool)
        worst[np.argsort(scores, kind="stable")[len(scores) - f :]] = True
        dropped &= worst | faulty
        return dropped, dropped.astype(np.float64)
    found = np.clip(1.0 - weights / max(float(weights.max()), 1e-300), 0.0, 1.0)
    return dropped, np.where(faulty, 1.0, found)
