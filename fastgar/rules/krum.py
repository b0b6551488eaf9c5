"""Krum and what is built on it: rows are ranked by how near their nearest rows are."""

from __future__ import annotations

from math import sqrt
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from ..geometry import Decision
from ..options import Count
from ..statistic import Bulyan, BulyanAveraged, Krum, Middle, Selection, Statistic
from . import proofs
from .decorators import distance_rule

if TYPE_CHECKING:
    from ..geometry import Geometry

__all__ = ["bulyan", "krum", "multi_krum"]

Neighbours = Literal["n-f-2", "n-f-1"]

PAPER = {"neighbours": "n-f-2", "squared": True, "selection": "repeated"}
PUBLISHED = {
    "byzfl": {"neighbours": "n-f-1"},
    "epfl": {"neighbours": "n-f-1", "squared": False},
}


def _needs(options: Any) -> tuple[str, ...]:
    return ("2f + 3",) if options["neighbours"] == "n-f-2" else ("2f + 1",)


def _needs_for_m(options: Any) -> tuple[str, ...]:
    if options["m"] is None:
        return _needs(options)
    return (*_needs(options), "m + f + 2" if options["neighbours"] == "n-f-2" else "m + f")


def _variance_ratio(n: int, f: int, options: Any) -> float | None:
    """Return the papers' condition, for scores as the papers have them."""
    if any(options.get(name, value) != value for name, value in PAPER.items()):
        return None
    among = n - f + (f * (n - f - 2) + f * f * (n - f - 1)) / (n - 2 * f - 2)
    return 1 / sqrt(2 * among)


def _kept(n: int, f: int, neighbours: Neighbours) -> int:
    """Return how many distances of a row count in its score: its own, 0, is one of them."""
    return n - f - (1 if neighbours == "n-f-2" else 0)


def _krum_selection(n: int, f: int, options: Any) -> Krum:
    kept = _kept(n, f, options["neighbours"])
    m = options.get("m", 1)
    return Krum(f=f, kept=kept, squared=options["squared"], m=_default_m(n, f) if m is None else m)


def _default_m(n: int, f: int) -> int:
    return max(1, n - f - 2)


def _bulyan_selection(n: int, f: int, options: Any) -> Selection:
    repeated = options["selection"] == "repeated"
    statistic = _of_picks(n - 2 * f if repeated else n - 2 * f - 2, f, options["middle"])
    return (Bulyan if repeated else BulyanAveraged)(f=f, statistic=statistic)


def _of_picks(picks: int, f: int, middle: Middle) -> Statistic:
    return Statistic.median(picks, middle, f, closest=picks - 2 * f)


def _scores(g: Geometry, f: int, neighbours: Neighbours, squared: bool) -> NDArray[np.float64]:
    """Sum, for each row, the least distances to the other rows (its own, 0, comes first)."""
    nearest = g.D.copy()
    nearest.sort(axis=1)
    nearest = nearest[:, : _kept(g.n, f, neighbours)]
    scores: NDArray[np.float64] = np.add.reduce(nearest if squared else np.sqrt(nearest), 1)
    return scores


@distance_rule(
    needs=_needs,
    paper="Blanchard et al., Machine learning with adversaries, NeurIPS 2017, section 4",
    guarantee="(f, kappa)",
    selection=_krum_selection,
    queued=True,
    variants=PUBLISHED,
    kappa=proofs.krum,
    variance_ratio=_variance_ratio,
)
def krum(
    g: Geometry, f: int, *, neighbours: Neighbours = "n-f-2", squared: bool = True
) -> Decision:
    """Return the row whose nearest rows are nearest.

    The score of a row is the sum of its squared distances to the n-f-2 other rows nearest to it;
    the least score wins, ties go to the lowest index.

    Options
    -------
    neighbours : {"n-f-2", "n-f-1"}
        How many of the nearest rows count. With "n-f-1", n >= 2f + 1 rows are enough.
    squared : bool
        Whether distances are squared.

    Examples
    --------
    >>> X = np.array([[1.0, 1.0], [1.1, 1.0], [1.0, 1.2], [9.0, 9.0], [0.9, 1.0]])
    >>> fg.krum(X, f=1)
    array([1., 1.])
    """
    scores = _scores(g, f, neighbours, squared)
    return g.mean_of(g.order(scores)[:1], scores)


@distance_rule(
    needs=_needs_for_m,
    paper="Blanchard et al., Machine learning with adversaries, NeurIPS 2017",
    guarantee="(f, kappa)",
    selection=_krum_selection,
    queued=True,
    variants=PUBLISHED,
    kappa=proofs.krum,
    variance_ratio=proofs.multi_krum_variance_ratio,
)
def multi_krum(
    g: Geometry,
    f: int,
    *,
    m: Count | None = None,
    neighbours: Neighbours = "n-f-2",
    squared: bool = True,
) -> Decision:
    """Return the mean of the m rows with the least Krum scores.

    Options
    -------
    m : int, optional
        How many rows; n-f-2 by default, and at most (n-f with ``neighbours="n-f-1"``).
    neighbours : {"n-f-2", "n-f-1"}
        How many of the nearest rows count in a score.
    squared : bool
        Whether distances are squared.

    Examples
    --------
    >>> X = np.array([[1.0, 1.0], [1.1, 1.0], [1.0, 1.2], [9.0, 9.0], [0.9, 1.0]])
    >>> fg.multi_krum(X, f=1)
    array([0.95, 1.  ])
    """
    scores = _scores(g, f, neighbours, squared)
    count = m if m is not None else _default_m(g.n, f)
    return g.mean_of(g.order(scores)[:count], scores)


@distance_rule(
    needs="4f + 3",
    paper="El Mhamdi, Guerraoui and Rouault, The hidden vulnerability of distributed learning in "
    "Byzantium, ICML 2018, section 4",
    guarantee="(f, kappa)",
    selection=_bulyan_selection,
    queued=True,
    variants={"epfl": {"selection": "averaged", "middle": "upper"}},
    kappa=proofs.bulyan,
    variance_ratio=_variance_ratio,
)
def bulyan(
    g: Geometry,
    f: int,
    *,
    selection: Literal["repeated", "averaged"] = "repeated",
    middle: Middle = "mean",
) -> Decision:
    """Return, for each coordinate, the mean of the values closest to the median of Krum's picks.

    n-2f rows are picked by Krum, each time among the rows that are left (with m left, the nearest
    max(1, m-f-2) count); then, in every coordinate, the n-4f values closest to the median of the
    picked are averaged.

    Options
    -------
    selection : {"repeated", "averaged"}
        "repeated" is the paper's. "averaged" is the authors' code: n-2f-2 picks, of which the k-th
        is the mean of the n-f-1-k best rows; then the best row leaves, and its distance leaves the
        scores (of n-f-2 neighbours each) without replacement; n-4f-2 values are averaged.
    middle : {"mean", "lower", "upper"}
        Which median of the picked, where their number is even.

    Examples
    --------
    >>> X = np.array([[4.0], [5.0], [6.0], [90.0], [3.0], [5.0], [4.0]])
    >>> fg.bulyan(X, f=1).round(3)
    array([4.667])
    """
    pick = _repeated_krum if selection == "repeated" else _averaged_krum
    mix = pick(g, f)
    return Decision(mix=mix, statistic=_of_picks(len(mix), f, middle))


def _repeated_krum(g: Geometry, f: int) -> NDArray[np.float64]:
    """Pick n-2f rows one by one, each by Krum among those left."""
    order = g.D.argsort(axis=1)
    nearest = np.take_along_axis(g.D, order, axis=1)  # each row's distances, least (its own) first
    passed = g.faulty.copy()
    mix = np.zeros((g.n - 2 * f, g.n + len(g.names)))
    for k, weights in enumerate(mix):
        neighbours = max(1, g.n - k - f - 2)
        scores = nearest[:, : neighbours + 1].sum(axis=1)
        rest = np.flatnonzero(~passed)
        best = rest[scores[rest].argmin()]  # also where all of these scores overflow
        weights[best] = 1.0
        passed[best] = True
        left = order != best  # every row loses the picked one as a neighbour
        nearest = nearest[left].reshape(g.n, -1)
        order = order[left].reshape(g.n, -1)
    return mix


def _averaged_krum(g: Geometry, f: int) -> NDArray[np.float64]:
    """Average ever fewer of the best rows, the best of which leaves after each pick."""
    order = g.nearest()[:, 1 : g.n - f - 1]
    distances = np.take_along_axis(g.D, order, axis=1)
    here = np.ones(g.n, bool)
    mix = np.zeros((g.n - 2 * f - 2, g.n + len(g.names)))
    for k, weights in enumerate(mix):
        scores = np.where(here[order], distances, 0.0).sum(axis=1)
        ranked = g.order(scores)
        best = ranked[here[ranked]][: g.n - f - 2 - k]
        weights[best] = 1.0 / len(best)
        here[best[0]] = False
    return mix
