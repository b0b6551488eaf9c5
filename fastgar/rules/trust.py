"""Rules that lean on one vector: a trusted row, a trusted reference, or the median of the rows."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from ..geometry import Decision
from ..options import Index
from ..spec import Options
from ..statistic import Middle, MoNNA, Statistic
from . import proofs
from .decorators import distance_rule

if TYPE_CHECKING:
    from ..geometry import Geometry

__all__ = ["aksel", "fltrust", "monna"]

# Of the reference's length. What is shorter has no direction: as a difference in float32 it is 0,
# and the weight that would lengthen it is no number in float32.
SHORTEST = 1e-38


def _monna_selection(n: int, f: int, options: Any) -> MoNNA:
    return MoNNA(f=f, pivot=options["pivot"])


@distance_rule(
    needs=("2f + 1", "pivot + 1"),
    guarantee="trusted",
    selection=_monna_selection,
    paper="Farhadkhani et al., Robust collaborative learning with linear gradient overhead, "
    "ICML 2023",
)
def monna(g: Geometry, f: int, *, pivot: Index = 0) -> Decision:
    """Return the mean of the n-f rows nearest to a trusted row, itself included.

    If that row is honest, the result is within sqrt(4f) times the honest spread.

    Options
    -------
    pivot : int
        Index of the trusted row. It must be finite.

    Examples
    --------
    >>> fg.monna(np.array([[1.0], [2.0], [3.0], [90.0]]), f=1)
    array([2.])
    """
    if g.faulty[pivot]:
        raise ValueError(f"monna trusts row {pivot} (pivot={pivot}), which holds NaN or infinity")
    distances = g.D[pivot]
    return g.mean_of(g.nearest()[pivot, : g.n - f], distances)


def _median(n: int, f: int, options: Options) -> Statistic:
    return Statistic.median(n, options["middle"], f)


@distance_rule(
    needs="2f + 1",
    guarantee="(f, kappa)",
    references=("median",),
    centre=_median,
    kappa=proofs.aksel,
    paper="Boussetta et al., AKSEL: fast Byzantine SGD, OPODIS 2020",
    variants={"epfl": {"middle": "lower"}},
)
def aksel(
    g: Geometry, f: int, *, mode: Literal["mid", "n-f"] = "mid", middle: Middle = "mean"
) -> Decision:
    """Return the mean of the rows nearest to the median of each coordinate.

    Options
    -------
    mode : {"mid", "n-f"}
        How many rows: (n+1)//2, or n-f.
    middle : {"mean", "lower", "upper"}
        Which median, when n is even; it has been taken when the distances to it are known.

    Examples
    --------
    >>> fg.aksel(np.array([[1.0], [2.0], [3.0], [90.0]]), f=1)
    array([2.5])
    """
    distances = g.distance_to("median")
    count = (g.n + 1) // 2 if mode == "mid" else g.n - f
    return g.mean_of(g.order(distances)[:count], distances)


@distance_rule(
    needs="f + 1",
    f="optional",
    guarantee="trusted",
    references=("origin", "reference"),
    inner=True,
    keeps_far=True,
    paper="Cao et al., FLTrust, NDSS 2021",
)
def fltrust(g: Geometry) -> Decision:
    """Return the average of the rows, weighted by agreement with a trusted reference.

    Each row is brought to the length of the reference and weighted by its cosine with it, where
    that is positive. Without any such row the result is zeros.

    Examples
    --------
    >>> X = np.array([[4.0, 0.0], [0.0, 2.0], [-1.0, -1.0]])
    >>> fg.fltrust(X, reference=np.array([1.0, 0.0]))
    array([1., 0.])
    """
    origin, reference = g.n + g.names.index("origin"), g.n + g.names.index("reference")
    cosine = g.cosines(origin, reference)
    lengths = g.distance_to("origin")
    trusted = float(g.length_between(origin, reference))
    weights = np.zeros(g.n + len(g.names))
    weight = np.where(lengths > SHORTEST * trusted, np.maximum(cosine, 0.0), 0.0)
    total = weight.sum()
    if total > 0 and trusted > 0:
        used = weight > 0
        weights[: g.n][used] = weight[used] / total * (trusted / lengths[used])
    weights[origin] = 1.0 - weights.sum()
    return Decision(weights, scores=-cosine)
