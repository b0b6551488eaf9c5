"""Rules that look for the direction in which the rows spread the most, in n x n space.

The covariance of the rows has the same eigenvalues as the n x n matrix of inner products of the
centred rows, and the projections of the rows on its top eigenvector follow from that matrix.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from ..geometry import Decision
from .registry import distance_rule

if TYPE_CHECKING:
    from ..geometry import Geometry

__all__ = ["caf", "dnc"]

Array = NDArray[np.float64]


def _centred(K: Array, share: Array) -> Array:
    """Return inner products about the weighted mean."""
    to_mean = K @ share
    centred: Array = K - to_mean - to_mean[:, None] + share @ to_mean
    return centred


@distance_rule(
    needs="2f + 1",
    robust=True,
    inner=True,
    keeps_far=True,
    paper="Allouah, Guerraoui and Stephan, Towards trustworthy federated learning with untrusted "
    "participants, ICML 2025",
)
def caf(g: Geometry, f: int) -> Decision:
    """Return a weighted mean whose covariance has been made small in every direction.

    Weights c start at 1. While they add up to more than n-2f: take the weighted mean and the top
    eigenvector of the weighted covariance, and multiply each c_i by 1 - tau_i / (the largest tau),
    where tau_i is the squared projection of row i on it. The mean with the least top eigenvalue
    wins. Each round ends one row's weight, so there are at most n: they take up to a second at
    n = 300, and half a minute at n = 1000. The eigenvector is found to rounding, or, where many
    eigenvalues are within 1 part in 1000 of the largest, to that.

    Examples
    --------
    >>> fg.caf(np.array([[1.0], [2.0], [3.0], [90.0]]), f=1).round(3)
    array([2.008])
    """
    from ..cpu.eigen import largest_eigenpair

    K = g.gram
    c = np.where(g.faulty, 0.0, 1.0)
    least, chosen = np.inf, c
    while True:
        rows = np.flatnonzero(c)
        share = c[rows] / c[rows].sum()
        centred = _centred(K[np.ix_(rows, rows)], share)
        root = np.sqrt(share)
        value, vector = largest_eigenpair(centred * root * root[:, None])
        if value < least:
            least, chosen = value, c / c.sum()
        projection = np.abs(centred @ (root * vector))
        largest = projection.max()
        if f == 0 or not largest > 0:
            break
        share_of_largest = (projection / largest) ** 2
        # Copies of the farthest row end with it, though the eigenvector differs in its last bits.
        share_of_largest[share_of_largest > 1.0 - 1e-12] = 1.0
        c[rows] *= 1.0 - share_of_largest
        if c.sum() <= g.n - 2 * f + 1e-9 * g.n:
            break
    weights = np.zeros(g.n + len(g.names))
    weights[: g.n] = chosen
    return Decision(weights, scores=1.0 - c)


@distance_rule(
    needs="2f + 1",
    robust=True,
    inner=True,
    keeps_far=True,
    paper="Shejwalkar and Houmansadr, Manipulating the Byzantine, NDSS 2021 (divide and conquer; "
    "here one pass over all coordinates)",
)
def dnc(g: Geometry, f: int) -> Decision:
    """Return the mean without the f rows that stand out most along the main direction of spread.

    That is the top singular vector of the centred rows; a row's score is the length of its
    projection on it.

    Examples
    --------
    >>> fg.dnc(np.array([[1.0], [2.0], [3.0], [90.0]]), f=1)
    array([2.])
    """
    rows = g.sound()
    centred = _centred(g.gram[np.ix_(rows, rows)], np.full(len(rows), 1.0 / len(rows)))
    _, vectors = np.linalg.eigh(centred)
    scores = np.full(g.n, np.inf)
    scores[rows] = np.abs(centred @ vectors[:, -1])
    return g.mean_of(g.order(scores)[: g.n - f], scores)
