"""Rules that look at the lengths of rows: the origin is a point like the rows."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ..options import Positive
from ..statistic import CGE
from . import proofs
from .decorators import distance_rule, mixing_rule

if TYPE_CHECKING:
    from ..geometry import Decision, Geometry

__all__ = ["arc", "cge", "clip"]


def _cge_selection(n: int, f: int, options: Any) -> CGE:
    return CGE(f=f)


@distance_rule(
    needs="f + 1",
    references=("origin",),
    selection=_cge_selection,
    queued=True,
    guarantee="bounded",
    paper="Gupta, Liu and Vaidya, Byzantine fault-tolerant distributed machine learning using SGD "
    "and norm-based comparative gradient elimination, arXiv 2008.04699",
)
def cge(g: Geometry, f: int) -> Decision:
    """Return the mean of the n-f shortest rows (comparative gradient elimination).

    Lies no longer than the longest honest row go through: its length is all that bounds the result.

    Examples
    --------
    >>> fg.cge(np.array([[1.0], [2.0], [9.0]]), f=1)
    array([1.5])
    """
    lengths = g.distance_to("origin")
    return g.mean_of(g.order(lengths)[: g.n - f], lengths)


def _shortened(g: Geometry, lengths: NDArray[np.float64], limit: float) -> NDArray[np.float64]:
    """Return the W that scales rows down to a length; the origin takes the rest of each weight."""
    share = np.ones(g.n)
    np.divide(limit, lengths, out=share, where=lengths > limit)
    share[g.faulty] = np.nan
    W = np.zeros((g.n, g.n + len(g.names)))
    W[np.arange(g.n), np.arange(g.n)] = share
    W[:, g.n + g.names.index("origin")] = 1.0 - share
    return W


@mixing_rule(
    needs="f + 1",
    f="optional",
    references=("origin",),
    inner=True,
    keeps_far=True,
    guarantee="bounded",
    paper="Allouah et al., Adaptive gradient clipping for robust federated learning, ICLR 2025",
)
def clip(g: Geometry, *, c: Positive) -> NDArray[np.float64]:
    """Scale every row that is longer than c to length c.

    Honest rows too, so a rule that comes after it is bounded by c, not by their spread.

    Options
    -------
    c : float
        The greatest length, above 0.

    Examples
    --------
    >>> fg.clip(np.array([[3.0, 4.0], [0.3, 0.4]]), c=1.0)
    array([[0.6, 0.8],
           [0.3, 0.4]])
    """
    return _shortened(g, g.distance_to("origin"), c)


@mixing_rule(
    needs="2f + 1",
    references=("origin",),
    inner=True,
    keeps_far=True,
    guarantee="(f, kappa)",
    kappa_with=proofs.with_arc,
    paper="Allouah et al., Adaptive gradient clipping for robust federated learning, ICLR 2025",
)
def arc(g: Geometry, f: int) -> NDArray[np.float64]:
    """Scale the 2f(n-f)//n longest rows to the length of the next below them.

    Faulty rows count among the longest.

    Examples
    --------
    >>> fg.arc(np.array([[1.0], [2.0], [3.0], [90.0]]), f=1)
    array([[1.],
           [2.],
           [3.],
           [3.]])
    """
    lengths = g.distance_to("origin")
    kept = g.n - 2 * f * (g.n - f) // g.n
    return _shortened(g, lengths, float(np.sort(lengths)[kept - 1]))
