"""Attacks that need no wits: noise, constants, losses."""

from __future__ import annotations

import math
from typing import Any, Literal

import numpy as np

from ..dtypes import LARGEST
from ..options import Positive, Probability, Seed
from .registry import register
from .rows import dtype_name, like
from .view import View, generator, own_rows

__all__ = ["drop", "gaussian", "huge", "inf", "nan", "random", "zero"]


@register()
def gaussian(
    honest: Any, q: int, *, std: Positive = 200.0, seed: Seed = 0, view: View | None = None
) -> Any:
    """Send normal numbers with mean 0, each attacker its own.

    Options
    -------
    std : float
        Standard deviation, above 0.

    Returns
    -------
    array, shape (q, ...)
        The same numbers for every array library.

    Notes
    -----
    Blanchard et al., "Machine Learning with Adversaries: Byzantine Tolerant Gradient Descent",
    NeurIPS 2017, the Gaussian attackers of the experiments (std = 200).

    Examples
    --------
    >>> import numpy as np
    >>> gaussian(np.zeros((5, 3)), q=2).shape
    (2, 3)
    """
    draw = generator(view, seed)
    return like(honest, std * draw.standard_normal((q, honest.shape[1]), np.float32))


@register()
def random(
    honest: Any, q: int, *, scale: Positive = 1.0, seed: Seed = 0, view: View | None = None
) -> Any:
    """Send numbers that are uniform between 0 and `scale`, each attacker its own.

    Options
    -------
    scale : float
        Above 0.

    Returns
    -------
    array, shape (q, ...)
        The same numbers for every array library.

    Notes
    -----
    Guirguis et al., "Garfield: System Support for Byzantine Machine Learning", DSN 2021.

    Examples
    --------
    >>> import numpy as np
    >>> sent = random(np.zeros((5, 3)), q=2)
    >>> bool(((sent >= 0) & (sent < 1)).all())
    True
    """
    draw = generator(view, seed)
    return like(honest, scale * draw.random((q, honest.shape[1]), np.float32))


def _constant(honest: Any, value: float) -> Any:
    return like(honest, np.full(honest.shape[1], value))


@register(wide=False)
def zero(honest: Any, q: int) -> Any:
    """Send zeros, as if there were nothing to learn.

    Examples
    --------
    >>> import numpy as np
    >>> zero(np.array([[1.0, 3.0]]))
    array([0., 0.])
    """
    return _constant(honest, 0.0)


@register(wide=False)
def inf(honest: Any, q: int) -> Any:
    """Send infinity in every coordinate.

    Examples
    --------
    >>> import numpy as np
    >>> inf(np.array([[1.0, 3.0]]))
    array([inf, inf])
    """
    return _constant(honest, math.inf)


@register(wide=False)
def nan(honest: Any, q: int) -> Any:
    """Send NaN in every coordinate.

    Examples
    --------
    >>> import numpy as np
    >>> nan(np.array([[1.0, 3.0]]))
    array([nan, nan])
    """
    return _constant(honest, math.nan)


@register(wide=False)
def huge(honest: Any, q: int, *, value: float = 1e30) -> Any:
    """Send a finite number whose square is not, in every coordinate.

    Code that checks for NaN and infinity lets it through, and then squares it in single
    precision.

    Options
    -------
    value : float
        What to send, or the largest finite number of the rows' dtype if that is less.

    Examples
    --------
    >>> import numpy as np
    >>> huge(np.array([[1.0, 3.0]]), value=-1e30)
    array([-1.e+30, -1.e+30])
    """
    limit = LARGEST[dtype_name(honest)]
    return _constant(honest, min(max(value, -limit), limit))


@register()
def drop(
    honest: Any,
    q: int,
    *,
    p: Probability = 0.3,
    lost: Literal["zero", "nan"] = "zero",
    seed: Seed = 0,
    view: View | None = None,
) -> Any:
    """Send what an honest worker would, with some coordinates lost.

    Options
    -------
    p : float
        The probability that a coordinate is lost, from 0 to 1.
    lost : {"zero", "nan"}
        What arrives in its place.

    View
    ----
    With ``own``; without it the honest rows stand in for it, in turn.

    Returns
    -------
    array, shape (q, ...)
        The same coordinates are lost for every array library.

    Notes
    -----
    Guirguis et al., "Garfield: System Support for Byzantine Machine Learning", DSN 2021; NaN for
    what a lossy link loses: Damaskinos et al., "AggregaThor: Byzantine Machine Learning via Robust
    Gradient Aggregation", MLSys 2019.

    Examples
    --------
    >>> import numpy as np
    >>> drop(np.array([[1.0, 3.0]]), p=1)
    array([[0., 0.]])
    """
    kept = generator(view, seed).random((q, honest.shape[1]), np.float32) >= p
    return own_rows(view, honest, q) * like(
        honest, np.where(kept, 1.0, 0.0 if lost == "zero" else math.nan)
    )
