"""Rules that search all sets of n-f rows for the most compact one; exactly, and with a limit."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ..primitives import Selection
from . import proofs
from .options import Count
from .registry import distance_rule

if TYPE_CHECKING:
    from ..geometry import Decision, Geometry

__all__ = ["mda", "mva", "smea"]

NODES = 200_000  # a few seconds


def _mda_selection(n: int, f: int, options: Any) -> Selection:
    return Selection("mda", f)


def _mva_selection(n: int, f: int, options: Any) -> Selection:
    return Selection("mva", f)


@distance_rule(
    needs="2f + 1",
    guarantee="(f, kappa)",
    selection=_mda_selection,
    kappa=proofs.mda,
    paper="El Mhamdi et al., Genuinely distributed Byzantine machine learning, PODC 2020",
    variance_ratio=lambda n, f, options: (n - f) / (8**0.5 * f) if f else float("inf"),
)
def mda(g: Geometry, f: int, *, node_limit: Count = NODES) -> Decision:
    """Return the mean of the n-f rows of least diameter (minimum-diameter averaging, "brute").

    Among several sets of the least diameter, the lexicographically first.

    Options
    -------
    node_limit : int
        How many nodes the search may visit before it gives up: with `fastgar.SearchLimit`.

    Examples
    --------
    >>> fg.mda(np.array([[1.0], [2.0], [3.0], [90.0]]), f=1)
    array([2.])
    """
    from ..cpu.diameter import minimum_diameter_subset

    return g.mean_of(minimum_diameter_subset(g.D, g.n - f, node_limit))


@distance_rule(
    needs="2f + 1",
    guarantee="(f, kappa)",
    selection=_mva_selection,
    kappa=proofs.least_spread,
    paper="after Rousseeuw, Multivariate estimation with high breakdown point, 1985",
)
def mva(g: Geometry, f: int, *, node_limit: Count = NODES) -> Decision:
    """Return the mean of the n-f rows of least variance (the trace of their covariance).

    Options
    -------
    node_limit : int
        How many nodes the search may visit before it gives up: with `fastgar.SearchLimit`.

    Examples
    --------
    >>> fg.mva(np.array([[1.0], [2.0], [3.0], [90.0]]), f=1)
    array([2.])
    """
    from ..cpu.variance import minimum_variance_subset

    return g.mean_of(minimum_variance_subset(g.D, g.n - f, node_limit))


@distance_rule(
    needs="2f + 1",
    guarantee="(f, kappa)",
    inner=True,
    paper="Allouah et al., On the privacy-robustness-utility trilemma in distributed learning, "
    "ICML 2023",
    kappa=proofs.least_spread,
)
def smea(g: Geometry, f: int, *, node_limit: Count = NODES) -> Decision:
    """Return the mean of the n-f rows whose covariance has the least largest eigenvalue.

    Options
    -------
    node_limit : int
        How many nodes the search may visit before it gives up: with `fastgar.SearchLimit`.

    Examples
    --------
    >>> fg.smea(np.array([[1.0], [2.0], [3.0], [90.0]]), f=1)
    array([2.])
    """
    from ..cpu.spectrum import minimum_spectral_subset

    return g.mean_of(minimum_spectral_subset(g.gram, g.n - f, node_limit, ~g.faulty))
