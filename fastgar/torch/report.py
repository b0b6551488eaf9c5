"""Who was believed in one step, and what is counted of each rank over the steps."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..report import on_a_screen

__all__ = ["RankReport", "Tally"]

Array = NDArray[np.float64]
MEMORY = 0.9  # of suspicion: what a step leaves of that of the steps before


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
        coordinates in which the rank was used, from a sample of them.
    scores : (n,) array or None
        What a distance rule ranked the ranks by: lower is better.
    faulty, dropped : tuple of int
        Ranks that sent NaN or infinity; these, and those that got no weight (where the rule ranks
        by scores, only the f worst of them).
    suspicion : (n,) array
        Between 0 and 1: the exponential average of how often a rank was dropped (of column rules,
        how much less than others it was used). Of an honest rank it is that of its peers.
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
        """Return a table: one line per rank."""
        lines = [f"{self.rule}, step {self.step}", "rank   weight  suspicion"]
        for i, rank in enumerate(self.ranks):
            line = f"{rank:>4} {self.weights[i]:>8.3f} {self.suspicion[i]:>10.2f}"
            if rank in self.faulty:
                line += "   not finite"
            elif rank in self.dropped:
                line += "   dropped"
            lines.append(line)
        return "\n".join(lines)

    def __repr__(self) -> str:
        return on_a_screen(str(self))


@dataclass
class Tally:
    """What is counted of each rank over the steps."""

    suspicion: Array = field(default_factory=lambda: np.zeros(0))
    streak: NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, np.int64))
    step: int = 0

    def count(self, weights: Array, scores: Array | None, faulty: Any, f: int) -> Any:
        """Take one step in; return which ranks it dropped."""
        dropped = (weights == 0) | faulty
        distrust = 1.0 - weights / max(float(weights.max()), 1e-300)
        if scores is not None:  # a rule that keeps one rank of many does not distrust the others
            worst = np.zeros(len(scores), bool)
            worst[np.argsort(scores, kind="stable")[len(scores) - f :]] = True
            dropped &= worst | faulty
            distrust = dropped.astype(np.float64)
        distrust[faulty] = 1.0
        if self.step == 0:
            self.suspicion, self.streak = np.zeros(len(weights)), np.zeros(len(weights), np.int64)
        rate = max(1 - MEMORY, 1 / (self.step + 1))  # at first the plain average
        self.suspicion = self.suspicion + rate * (np.clip(distrust, 0.0, 1.0) - self.suspicion)
        self.streak = np.where(dropped, self.streak + 1, 0)
        self.step += 1
        return dropped
