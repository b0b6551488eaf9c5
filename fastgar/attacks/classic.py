"""Attacks that go from the honest mean, or from nothing, along one direction."""

from __future__ import annotations

from statistics import NormalDist
from typing import Annotated, Any, Literal

import numpy as np

from ..options import Positive, Range
from .registry import register
from .rows import like, moments
from .view import View, own_rows

__all__ = ["bit_flip", "bulyan", "empire", "empire_strict", "little", "reverse", "sign_flip"]

Divisor = Annotated[int, Range(0, 1)]


def _minus_deviation(honest: Any, ddof: int) -> tuple[Any, Any]:
    if len(honest) <= ddof:
        raise ValueError("little: ddof=1 needs two honest rows, of one there is no deviation")
    mean, deviation = moments(honest, ddof)
    return mean, -deviation


@register(factor="k", line=_minus_deviation)
def little(honest: Any, q: int, *, k: float | Literal["auto"] = 1.5, ddof: Divisor = 0) -> Any:
    """Send the honest mean minus k standard deviations in every coordinate.

    Options
    -------
    k : float or "auto"
        How far to go. "auto" is the largest deviation that leaves enough honest rows further out
        to form a majority with the attackers, were the rows normal: the quantile of
        (n - floor(n/2 + 1)) / (n - q), with n = h + q, without its sign. It needs a minority of
        attackers.
    ddof : {0, 1}
        The standard deviation divides by h - ddof: 0 as the authors' code does, 1 as that of
        "Distributed Momentum for Byzantine-resilient SGD", ICLR 2021.

    Notes
    -----
    Baruch, Baruch and Goldberg, "A Little Is Enough: Circumventing Defenses For Distributed
    Learning", NeurIPS 2019, algorithm 3.

    Examples
    --------
    >>> import numpy as np
    >>> little(np.array([[0.0], [2.0]]), k=1.5)
    array([-0.5])
    """
    factor = _auto_factor(len(honest), q) if isinstance(k, str) else k
    mean, direction = _minus_deviation(honest, ddof)
    return mean + factor * direction


def _auto_factor(h: int, q: int) -> float:
    n = h + q
    share = (n - (n // 2 + 1)) / h
    if not 0 < share < 1:
        raise ValueError(f'little: k="auto" needs a minority of attackers, got {q} of {n} rows')
    return abs(NormalDist().inv_cdf(share))


def _minus_mean(honest: Any) -> tuple[Any, Any]:
    mean = honest.mean(0)
    return mean, -mean


@register(factor="k", line=_minus_mean)
def empire(honest: Any, q: int, *, k: float = 1.1) -> Any:
    """Send (1 - k) times the honest mean: a gradient that points uphill where k > 1.

    The mean of n rows keeps its direction as long as k < n/q; rules that look for a close
    group can be led astray with k barely above 1, since the vector is short.

    Options
    -------
    k : float
        1.1 sends -0.1 times the mean.

    Notes
    -----
    Xie, Koyejo and Gupta, "Fall of Empires: Breaking Byzantine-tolerant SGD by Inner Product
    Manipulation", UAI 2019; k as in the code of "Distributed Momentum for
    Byzantine-resilient SGD", ICLR 2021.

    Examples
    --------
    >>> import numpy as np
    >>> empire(np.array([[1.0], [3.0]]), k=1.5)
    array([-1.])
    """
    return (1 - k) * honest.mean(0)


def _minus_mean_from_zero(honest: Any) -> tuple[Any, Any]:
    mean = honest.mean(0)
    return mean * 0, -mean


@register(factor="eps", line=_minus_mean_from_zero)
def empire_strict(honest: Any, q: int, *, eps: float = 0.1) -> Any:
    """Send -eps times the honest mean: `empire` with the paper's own factor.

    Options
    -------
    eps : float
        ``empire_strict(eps)`` is ``empire(k=1 + eps)``.

    Notes
    -----
    Xie, Koyejo and Gupta, "Fall of Empires: Breaking Byzantine-tolerant SGD by Inner Product
    Manipulation", UAI 2019, where any eps > 0 that is small enough is shown to fool Krum.

    Examples
    --------
    >>> import numpy as np
    >>> empire_strict(np.array([[1.0], [3.0]]), eps=0.5)
    array([-1.])
    """
    return -eps * honest.mean(0)


@register()
def sign_flip(honest: Any, q: int) -> Any:
    """Send the honest mean with its sign turned.

    Examples
    --------
    >>> import numpy as np
    >>> sign_flip(np.array([[1.0], [3.0]]))
    array([-2.])
    """
    return -honest.mean(0)


@register(factor="x", line=_minus_mean_from_zero)
def reverse(honest: Any, q: int, *, x: Positive = 100.0) -> Any:
    """Send -x times the honest mean.

    Options
    -------
    x : float
        Above 0.

    Notes
    -----
    Guirguis et al., "Garfield: System Support for Byzantine Machine Learning", DSN 2021, whose
    attacker reverses a gradient of its own.

    Examples
    --------
    >>> import numpy as np
    >>> reverse(np.array([[1.0], [3.0]]), x=10)
    array([-20.])
    """
    return -x * honest.mean(0)


@register()
def bit_flip(honest: Any, q: int, *, view: View | None = None) -> Any:
    """Send the gradient of the first attacker with its sign bits flipped.

    View
    ----
    With ``own``, whose first row is meant. Without it the first honest row stands in for it.

    Notes
    -----
    Xie, Koyejo and Gupta, "Zeno: Distributed Stochastic Gradient Descent with Suspicion-based
    Fault-tolerance", ICML 2019, the bit-flipping failures of section 6, as in the authors' code.

    Examples
    --------
    >>> import numpy as np
    >>> bit_flip(np.array([[1.0], [3.0]]), view=View(q=1, own=np.array([[5.0]])))
    array([-5.])
    """
    return -own_rows(view, honest, q)[0]


def _along_coordinate(honest: Any, coordinate: int | Literal["all"]) -> tuple[Any, Any]:
    mean = honest.mean(0)
    d = honest.shape[1]
    values = np.ones(d) if coordinate == "all" else np.zeros(d)
    if isinstance(coordinate, int):
        if not -d <= coordinate < d:
            raise ValueError(
                f"bulyan: coordinate must be between {-d} and {d - 1} for rows of {d} numbers, "
                f"got {coordinate}"
            )
        values[coordinate] = 1.0
    return mean, like(mean, values)


@register(factor="k", line=_along_coordinate)
def bulyan(honest: Any, q: int, *, k: float = 1.0, coordinate: int | Literal["all"] = -1) -> Any:
    """Send the honest mean with k added to one coordinate, or to all of them.

    In high dimension, honest rows are far apart although each coordinate differs by little. A
    distance hides one coordinate that is off by as much as all others together: by about
    sqrt(d) times their spread. The rule `bulyan` is the answer to it.

    Options
    -------
    k : float
        What to add; ``optimal(bulyan)`` finds what a rule lets through.
    coordinate : int or "all"
        Which number of the flattened row; negative numbers count from the end.

    Notes
    -----
    El Mhamdi, Guerraoui and Rouault, "The Hidden Vulnerability of Distributed Learning in
    Byzantium", ICML 2018, section 3: one coordinate against rules that look at a finite norm, all
    of them against the maximum norm.

    Examples
    --------
    >>> import numpy as np
    >>> bulyan(np.array([[1.0, 0.0], [3.0, 0.0]]), k=9, coordinate=0)
    array([11.,  0.])
    """
    mean, direction = _along_coordinate(honest, coordinate)
    return mean + k * direction
