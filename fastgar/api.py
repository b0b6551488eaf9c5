"""The three primitives as public functions, for people who write rules."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from . import primitives
from .arrays import Table, numbers, reference, table
from .errors import unknown
from .geometry import Decision
from .pipeline import Rule
from .primitives import Refs
from .registry import lookup, registered
from .stages import Stage
from .usage import votes

__all__ = ["columns", "combine", "sqdist"]

References = Sequence[Any]

LARGEST = float(np.finfo(np.float32).max)


def sqdist(X: Any, refs: References = ()) -> NDArray[np.float64]:
    """Return the squared distances between rows, and to further points.

    Parameters
    ----------
    X : array of shape (n, ...), sequence of n arrays, or sequence of n structures
        Of any array library: float16, bfloat16, float32 or float64.
    refs : sequence, optional
        Further points: each like one row of X, or "origin".

    Returns
    -------
    (n + r, n + r) array of float64
        Differences are formed directly, never from norms, so equal rows are exactly 0 apart. A row
        with a non-finite value has +Inf in its row, its column and on the diagonal.

    Notes
    -----
    One pass over X.

    Examples
    --------
    >>> fg.sqdist(np.array([[0.0, 0.0], [3.0, 4.0], [np.nan, 0.0]]))
    array([[ 0., 25., inf],
           [25.,  0., inf],
           [inf, inf, inf]])
    """
    T = table(X)
    return primitives.sqdist(T, _references(T, refs))


def combine(W: Any, X: Any, refs: References = ()) -> Any:
    """Return weighted sums of rows.

    Parameters
    ----------
    W : (n,) or (k, n) array, or (n + r,) or (k, n + r) with refs
        Finite weights, in any float dtype. Weight 0 means that the row is not read.
    X : array of shape (n, ...), sequence of n arrays, or sequence of n structures
    refs : sequence, optional
        Further points: each like one row of X, or "origin".

    Returns
    -------
    like one row of X, or a stack of k rows

    Raises
    ------
    ValueError
        If W is not finite or has another shape.

    Notes
    -----
    One pass over X. Sums are formed in float32 or wider.

    Examples
    --------
    >>> fg.combine([0.5, 0.5, 0.0], np.array([[1.0, 2.0], [3.0, 4.0], [np.nan, 0.0]]))
    array([2., 3.])
    """
    if getattr(X, "ndim", 2) == 1 and getattr(W, "ndim", 1) > 1:
        raise ValueError("the weights come first, and then X: combine(W, X)")
    T = table(X)
    vectors = _references(T, refs)
    weights = _weights("W", W, T, T.n + len(vectors), (1, 2))
    out = T.empty(None if weights.ndim == 1 else len(weights))
    primitives.combine(weights, T, vectors, out)
    if T.votes is not None:
        rows = np.atleast_2d(weights)
        out.votes = votes(Decision(mix=rows), T)
    return out.value()


def columns(X: Any, statistic: str, f: int | None = None, *, W: Any = None, **options: Any) -> Any:
    """Return an order statistic of each coordinate, of the rows or of a mixture of them.

    Parameters
    ----------
    X : array of shape (n, ...), sequence of n arrays, or sequence of n structures
    statistic : str
        The name of a column rule, such as "trimmed_mean".
    f : int, optional
        How many rows may hold anything, where the rule takes it.
    W : (m, n) array, optional
        The statistic is of the m rows of W X, which is never stored. Finite; weight 0 means that
        the row is not read.
    **options
        Of the rule.

    Returns
    -------
    like one row of X

    Raises
    ------
    ValueError
        If there is no such column rule, too few rows, or W is not finite or has another shape.

    Notes
    -----
    One pass over X. A coordinate that is zero is +0.0, whatever the signs of the zeros in it (but
    for "mean", which adds as `combine` does).

    Examples
    --------
    >>> X = np.array([[1.0], [2.0], [4.0], [90.0]])
    >>> fg.columns(X, "trimmed_mean", f=1)
    array([3.])
    >>> fg.columns(X, "median", W=[[0.5, 0.5, 0, 0], [0, 0, 1, 0], [0, 1, 0, 0]])
    array([2.])
    """
    known = [spec.name for spec in registered() if spec.kind == "column"]
    if not isinstance(statistic, str) or statistic not in known:
        raise unknown("column rule", statistic, known)
    rule = Rule((Stage(lookup(statistic), options),), f)
    T = table(X)
    mix = None if W is None else _weights("W", W, T, T.n, (2,))
    n = T.n if mix is None else len(mix)
    decision = Decision(mix=mix, statistic=rule.decide(n=n).statistic)
    return rule.apply(decision, T, careful=True).value()


def _references(T: Table, refs: References) -> Refs:
    if isinstance(refs, str):
        refs = [refs]
    vectors: list[Table | str] = []
    for i, ref in enumerate(refs):
        if isinstance(ref, str):
            if ref != "origin":
                raise unknown("point", ref, ["origin"])
            vectors.append(ref)
        else:
            vectors.append(reference(T, ref, f"refs[{i}]"))
    return vectors


def _weights(
    name: str, W: Any, T: Table, points: int, dimensions: tuple[int, ...]
) -> NDArray[np.float64]:
    try:
        weights = numbers(W)
    except (TypeError, ValueError) as error:  # not numbers; lists of different lengths
        raise type(error)(f"{name} must be an array of real numbers: {error}") from error
    if weights.ndim not in dimensions or weights.shape[-1] != points or weights.size == 0:
        shapes = {1: f"({points},)", 2: f"(k, {points})"}
        wanted = " or ".join(shapes[d] for d in dimensions)
        order = ", and then X: combine(W, X)" if dimensions == (1, 2) else ""
        raise ValueError(f"{name} must have shape {wanted}, got {weights.shape}{order}")
    if not np.isfinite(weights).all():
        raise ValueError(f"{name} must be finite; to leave a row out, give it weight 0")
    if any(block.dtype != "float64" for block in T.blocks) and np.abs(weights).max() > LARGEST:
        raise ValueError(f"{name} must be finite as float32, in which these rows are summed")
    return weights
