"""The attack that looks for the factor that hurts a rule the most."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from ..options import Steps
from .named import Attack, attack
from .registry import lookup, register
from .rows import length
from .trial import ByDistances, ByRows, target
from .view import View

__all__ = ["line_maximum", "optimal"]

GOLDEN = (3 - 5**0.5) / 2  # the smaller part of the golden section
BETTER = 1 + 1e-5  # times the best so far: less than that may be rounding, in d sums of float32


@register()
def optimal(
    honest: Any,
    q: int,
    *,
    inner: str | Attack = "little",
    evaluations: Steps = 16,
    view: View | None = None,
) -> Any:
    """Send what an attack does, with the factor that moves the aggregate farthest from the mean.

    The factor maximises |F - g|, with F what the rule returns for all rows and g the mean of
    the honest ones: among `evaluations` values that are tried (see `line_maximum`), which always
    include 0.

    Options
    -------
    inner : str or Attack
        Which attack. Its factor is ``k`` of little, empire and bulyan, ``eps`` of empire_strict,
        ``x`` of reverse; these must not be given. For an attack without such an option the
        factor multiplies what it adds to the honest mean: 1 is the attack itself.
    evaluations : int
        How many factors are tried, at most 1000.

    View
    ----
    Needed: with the rule, and with what the rule needs: ``start``, ``positions``.

    Raises
    ------
    ValueError
        If the view has no rule, the rule cannot aggregate that many rows, or the attack has no
        single, finite vector to scale.

    Notes
    -----
    For distance rules the rows are read once, for the distances of the honest rows, g and one
    point further along; with these each evaluation costs O(n^2). Where those are not enough
    (column rules, Bulyan, rows of wildly different lengths) each evaluation aggregates. The
    server's rule keeps its count of steps, and a randomised rule is tried with the draw that the
    server will use.

    The line search of the code of "Distributed Momentum for Byzantine-resilient SGD", ICLR 2021,
    also maximises this deviation with 16 evaluations; it shrinks its steps by 0.8.

    Examples
    --------
    >>> import fastgar, numpy as np
    >>> honest = np.array([[1.0], [2.0], [3.0], [4.0]])
    >>> view = View(q=2, rule=fastgar.rule("mean"))
    >>> optimal(honest, q=2, inner="empire", evaluations=5, view=view)
    array([-35.])
    """
    view = target("optimal", honest, view)
    base, direction = _line(honest, q, inner, view)
    factor = _best_factor(honest, base, direction, evaluations, view)
    return base + factor * direction


def line_maximum(score: Callable[[float], float], evaluations: int) -> float:
    """Return the best of `evaluations` factors from 0 on, for a function of them.

    First 0, then 1, 3, 7, 15, ...: steps double for as long as each is better than the one before.
    From then on the best lies between two that are worse, and golden section looks on in the
    wider of the two gaps. A function that grows up to where the attackers are found out and is
    low behind it is as good as one with a smooth maximum. "Better" is by more than 1e-5, so
    that rounding does not steer the search; of equals the first stays.

    Parameters
    ----------
    score : callable
    evaluations : int
        At least 1.

    Returns
    -------
    float

    Examples
    --------
    >>> round(line_maximum(lambda x: -((x - 5) ** 2), 30), 2)
    5.0
    """
    low = best = 0.0
    high: float | None = None
    value = score(0.0)
    step = 1.0
    for _ in range(evaluations - 1):
        if high is None:
            at = best + step
            step *= 2
        elif high - best >= best - low:
            at = best + GOLDEN * (high - best)
        else:
            at = best - GOLDEN * (best - low)
        found = score(at)
        if found > value and found > value * BETTER:
            low, high = (best, high) if at > best else (low, best)
            best, value = at, found
        elif at > best:
            high = at
        else:
            low = at
    return best


def _line(honest: Any, q: int, inner: Any, view: View) -> tuple[Any, Any]:
    """Return base and direction: what is sent is base + factor * direction."""
    chosen = attack(inner)
    chosen.require_a_free_factor("optimal")
    declared = lookup(chosen.name)
    values = declared.resolve(chosen.options)
    if declared.line is not None and declared.factor is not None:
        del values[declared.factor]
        return declared.line(honest, **values)
    mean = honest.mean(0)
    sent = chosen(honest, q, view=view)
    if sent.ndim != 1:
        raise ValueError(f"optimal needs one vector for all attackers, and {inner} sends {q}")
    return mean, sent - mean


def _best_factor(honest: Any, base: Any, direction: Any, evaluations: int, view: View) -> float:
    size = length(direction)
    if not np.isfinite(size) and np.isfinite(length(honest.mean(0))):
        raise ValueError("optimal needs an attack that sends finite numbers")
    if not size > 0 or not np.isfinite(size):
        return 0.0
    rows: ByRows | None = None
    near: ByDistances | None = None
    if ByDistances.can(view.rule):
        # The second point on the line is about as far away as rows are: D keeps its precision.
        spread = length(honest[0] - base)
        reach = spread / size if 0 < spread < np.inf else 1.0
        near = ByDistances(honest, (base, base + reach * direction), view)

    def score(factor: float) -> float:
        nonlocal rows
        if near is not None:
            c = np.zeros(near.points)
            c[near.h : near.h + 2] = 1 - factor / reach, factor / reach
            found = near.deviation(c)
            if found is not None:
                return found
        if rows is None:
            rows = ByRows(honest, honest.mean(0), view)
        return rows.deviation(base + factor * direction)

    return line_maximum(score, evaluations)
