"""Rules that search all sets of n-f rows for the most compact one; exactly, and with a limit.

Who chooses f of the rows can make a search as hard as they like, so that it ends in `SearchLimit`:
to train among liars, take a rule that does not search, such as "nnm | trimmed_mean", or the best
rows found. Those are robust too, as each search starts at the n-f rows nearest to one row and goes
on to more compact ones only.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from ..errors import SearchLimit
from ..options import Count
from ..search import WORK_LIMIT
from ..statistic import MDA, MVA
from . import proofs
from .decorators import distance_rule

if TYPE_CHECKING:
    from ..geometry import Decision, Geometry

__all__ = ["mda", "mva", "smea"]

OnLimit = Literal["raise", "best"]
Rows = NDArray[np.intp]


def _rows(on_limit: OnLimit, search: Callable[..., Rows], *arguments: Any) -> Rows:
    """Return the rows that a search finds or, where the caller takes those, its best so far."""
    try:
        return search(*arguments)
    except SearchLimit as error:
        if on_limit == "raise":
            raise
        return np.array(error.best)


def _mda_selection(n: int, f: int, options: Any) -> MDA:
    return MDA(f=f)


def _mva_selection(n: int, f: int, options: Any) -> MVA:
    return MVA(f=f)


@distance_rule(
    needs="2f + 1",
    guarantee="(f, kappa)",
    selection=_mda_selection,
    kappa=proofs.mda,
    paper="El Mhamdi et al., Genuinely distributed Byzantine machine learning, PODC 2020",
    variance_ratio=lambda n, f, options: (n - f) / (8**0.5 * f) if f else float("inf"),
)
def mda(
    g: Geometry, f: int, *, work_limit: Count = WORK_LIMIT, on_limit: OnLimit = "raise"
) -> Decision:
    """Return the mean of the n-f rows of least diameter (minimum-diameter averaging, "brute").

    Among several sets of the least diameter, the lexicographically first.

    Options
    -------
    work_limit : int
        How many operations the search may take, of about a nanosecond each. They are counted, so
        where it stops does not depend on how quick the machine is. Who sends f of the rows can have
        it reach any limit; a rule such as "nnm | trimmed_mean" does not search.
    on_limit : {"raise", "best"}
        Whether to raise `fastgar.SearchLimit` at the limit, or to take the best rows so far, which
        are at most twice as far apart as need be: their mean and that of the honest rows are within
        3f/(n-f) times the diameter of those (the rule's own: 2f/(n-f)).

    Examples
    --------
    >>> fg.mda(np.array([[1.0], [2.0], [3.0], [90.0]]), f=1)
    array([2.])
    """
    from ..search.diameter import minimum_diameter_subset

    return g.mean_of(_rows(on_limit, minimum_diameter_subset, g.D, g.n - f, work_limit))


@distance_rule(
    needs="2f + 1",
    guarantee="(f, kappa)",
    selection=_mva_selection,
    kappa=proofs.least_spread,
    paper="after Rousseeuw, Multivariate estimation with high breakdown point, 1985",
)
def mva(
    g: Geometry, f: int, *, work_limit: Count = WORK_LIMIT, on_limit: OnLimit = "raise"
) -> Decision:
    """Return the mean of the n-f rows of least variance (the trace of their covariance).

    Options
    -------
    work_limit : int
        How many operations the search may take, of about a nanosecond each. They are counted, so
        where it stops does not depend on how quick the machine is. Who sends f of the rows can have
        it reach any limit; a rule such as "nnm | trimmed_mean" does not search.
    on_limit : {"raise", "best"}
        Whether to raise `fastgar.SearchLimit` at the limit, or to take the best rows so far, whose
        variance is at most twice the least: the square of their mean's distance to that of the
        honest rows is at most 5.9 f/(n-2f) times the variance of those (the rule's own: 4f/(n-2f)).

    Examples
    --------
    >>> fg.mva(np.array([[1.0], [2.0], [3.0], [90.0]]), f=1)
    array([2.])
    """
    from ..search.variance import minimum_variance_subset

    return g.mean_of(_rows(on_limit, minimum_variance_subset, g.D, g.n - f, work_limit))


@distance_rule(
    needs="2f + 1",
    guarantee="(f, kappa)",
    inner=True,
    paper="Allouah et al., On the privacy-robustness-utility trilemma in distributed learning, "
    "ICML 2023",
    kappa=proofs.least_spread,
)
def smea(
    g: Geometry, f: int, *, work_limit: Count = WORK_LIMIT, on_limit: OnLimit = "raise"
) -> Decision:
    """Return the mean of the n-f rows whose covariance has the least largest eigenvalue.

    Options
    -------
    work_limit : int
        How many operations the search may take, of about a nanosecond each. They are counted, so
        where it stops does not depend on how quick the machine is. Who sends f of the rows can have
        it reach any limit; a rule such as "nnm | trimmed_mean" does not search. From some 40 rows
        on, rows of which none stands out reach the default.
    on_limit : {"raise", "best"}
        Whether to raise `fastgar.SearchLimit` at the limit, or to take the best rows so far, which
        are as good as those of `mva` are: the square of their mean's distance to that of the honest
        rows is at most 5.9 f/(n-2f) times the variance of those, in all directions together
        (`fastgar.kappa` knows the rule's own).

    Examples
    --------
    >>> fg.smea(np.array([[1.0], [2.0], [3.0], [90.0]]), f=1)
    array([2.])
    """
    from ..search.spectrum import minimum_spectral_subset

    search = minimum_spectral_subset, g.gram, g.n - f, work_limit, ~g.faulty
    return g.mean_of(_rows(on_limit, *search))
