"""Bulyan as the published code of the grid has it, with scores that never change."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from ...geometry import Decision
from ...registry import registered
from ...rules import distance_rule
from ...statistic import Statistic

if TYPE_CHECKING:
    from ...geometry import Geometry

__all__ = ["bulyan_published", "register"]


def register() -> None:
    """Make the rule known by its name, unless it is: only who asks for parity is to see it."""
    if all(spec.name != bulyan_published.__name__ for spec in registered()):
        paper = "the code of El Mhamdi, Guerraoui and Rouault, ICLR 2021: aggregators/bulyan.py"
        distance_rule(needs="4f + 3", paper=paper, guarantee="(f, kappa)")(bulyan_published)


def bulyan_published(g: Geometry, f: int) -> Decision:
    """Return Bulyan's aggregate with picks from one ranking of the rows.

    Rows are ranked once, by the sum of their n-f-2 least distances, not squared. The k-th of n-2f-2
    picks is the mean of the rows ranked k to n-f-2; then, in every coordinate, the n-4f-2 values
    closest to the median of the picks are averaged. The loop that is to take the distance of a
    pruned row out of the others' scores looks for that row among the others, and never finds it.
    """
    nearest = np.sqrt(np.sort(g.D, axis=1)[:, 1 : g.n - f - 1])  # a row's own distance comes first
    ranked = g.order(nearest.sum(axis=1))[: g.n - f - 2]
    mix = np.zeros((g.n - 2 * f - 2, g.n + len(g.names)))
    for k, weights in enumerate(mix):
        weights[ranked[k:]] = 1 / len(ranked[k:])
    statistic = Statistic.median(len(mix), "lower", f, closest=len(mix) - 2 * f)
    return Decision(mix=mix, statistic=statistic)
