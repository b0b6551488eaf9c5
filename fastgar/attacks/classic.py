"""Attacks that need only the mean and the standard deviation of the honest rows."""

from __future__ import annotations

from statistics import NormalDist
from typing import Any, Literal

__all__ = ["empire", "little", "sign_flip"]


def little(honest: Any, q: int = 1, *, k: float | Literal["auto"] = 1.5) -> Any:
    """Send the honest mean minus k standard deviations in every coordinate.

    Parameters
    ----------
    honest : array, shape (h, ...)
        The honest rows.
    q : int
        How many attackers there are; only ``k="auto"`` looks at it.
    k : float or "auto"
        How far to go. "auto" is the largest deviation that leaves enough honest rows further out
        to form a majority with the attackers, were the rows normal: the quantile of
        (n - floor(n/2 + 1)) / (n - q), with n = h + q.

    Returns
    -------
    array, shape (...)

    Notes
    -----
    The standard deviation divides by h, as the authors' code does. Baruch, Baruch and Goldberg,
    "A Little Is Enough: Circumventing Defenses For Distributed Learning", NeurIPS 2019,
    algorithm 3.

    Examples
    --------
    >>> import numpy as np
    >>> little(np.array([[0.0], [2.0]]), k=1.5)
    array([-0.5])
    """
    factor = _auto_factor(len(honest), q) if isinstance(k, str) else k
    mean = honest.mean(0)
    deviation = ((honest - mean) ** 2).mean(0) ** 0.5
    return mean - factor * deviation


def _auto_factor(h: int, q: int) -> float:
    n = h + q
    share = (n - (n // 2 + 1)) / h
    if not 0 < share < 1:
        raise ValueError(f'little: k="auto" needs a minority of attackers, got {q} of {n} rows')
    return abs(NormalDist().inv_cdf(share))


def empire(honest: Any, q: int = 1, *, k: float = 1.1) -> Any:
    """Send (1 - k) times the honest mean: a gradient that points uphill where k > 1.

    The mean of n rows keeps its direction as long as k < n/q; rules that look for a close
    group can be led astray with k barely above 1, since the vector is short.

    Parameters
    ----------
    honest : array, shape (h, ...)
        The honest rows.
    q : int
        How many attackers there are; not looked at.
    k : float
        1.1 sends -0.1 times the mean.

    Returns
    -------
    array, shape (...)

    Notes
    -----
    Xie, Koyejo and Gupta, "Fall of Empires: Breaking Byzantine-tolerant SGD by Inner Product
    Manipulation", UAI 2019, section 3.

    Examples
    --------
    >>> import numpy as np
    >>> empire(np.array([[1.0], [3.0]]), k=1.5)
    array([-1.])
    """
    return (1 - k) * honest.mean(0)


def sign_flip(honest: Any, q: int = 1) -> Any:
    """Send the honest mean with its sign turned.

    Parameters
    ----------
    honest : array, shape (h, ...)
        The honest rows.
    q : int
        How many attackers there are; not looked at.

    Returns
    -------
    array, shape (...)

    Examples
    --------
    >>> import numpy as np
    >>> sign_flip(np.array([[1.0], [3.0]]))
    array([-2.])
    """
    return -honest.mean(0)
