"""The directed-deviation attacks, each made for one family of rules."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import numpy as np

from ..options import Range, Seed
from ..pipeline import Rule, rule
from .registry import register
from .rows import extremes, like, sign
from .trial import ByDistances, distances
from .view import View, f_of, generator

__all__ = ["fang"]

Above1 = Annotated[float, Range(1)]

HALVINGS = 64  # of the step length, until Krum takes the attackers' row


@register()
def fang(
    honest: Any,
    q: int,
    *,
    target: Literal["auto", "krum", "trimmed_mean", "median"] = "auto",
    b: Above1 = 2.0,
    seed: Seed = 0,
    view: View | None = None,
) -> Any:
    """Send what drives the aggregate against the sign of the honest mean in every coordinate.

    Against Krum: -lambda * sign(g), with the largest lambda for which Krum picks an attacker, found
    by halving from an upper bound. Against trimmed mean and median: in every coordinate a random
    value just beyond the least honest value where the mean is positive, just beyond the largest
    where it is negative.

    Options
    -------
    target : {"auto", "krum", "trimmed_mean", "median"}
        Which rule to attack ("trimmed_mean" and "median" are attacked alike). "auto": the latter
        if the view's rule ends in a column rule, else Krum.
    b : float
        How far beyond the honest values: up to b times (or 1/b times) the outermost one. At least
        1.

    View
    ----
    With the rule, for its f; without one, f is q. The options of `krum` or `multi_krum` decide who
    is picked.

    Returns
    -------
    array, shape (...) against Krum, (q, ...) against the others
        If Krum takes no lambda, the least that was tried, which is nearly 0.

    Raises
    ------
    ValueError
        If there are too few rows for Krum.

    Notes
    -----
    Fang, Cao, Jia and Gong, "Local Model Poisoning Attacks to Byzantine-Robust Federated Learning",
    USENIX Security 2020, sections 3.2 (Krum), 3.3 (trimmed mean) and 3.4 (median), with full
    knowledge. The paper speaks of models, here gradients take their place (as in its authors' later
    code), so that the model before the step is the origin. All attackers send one row against
    Krum; in the paper they differ by a tiny random amount.

    Examples
    --------
    >>> import numpy as np
    >>> honest = np.array([[1.0, -1.0], [2.0, -3.0], [3.0, -2.0]])
    >>> sent = fang(honest, q=2, target="median")
    >>> bool(((sent >= [0.5, -1]) & (sent <= [1, -0.5])).all())
    True
    """
    if target == "auto":
        last = view.rule.stages[-1].spec if view and isinstance(view.rule, Rule) else None
        target = "trimmed_mean" if last is not None and last.kind == "column" else "krum"
    if target == "krum":
        return _against_krum(honest, q, view)
    low, high = extremes(honest)
    drawn = 1 + (b - 1) * generator(view, seed).random((q, honest.shape[1]), np.float32)
    factor = like(honest, drawn)
    signs = sign(honest.mean(0))
    up, down = _positive(-signs), _positive(signs)
    outermost = up * high + down * low
    # Away from the honest values: those beyond 0 already grow, the others shrink towards it.
    outwards = -signs * sign(outermost)
    return outermost * (_positive(outwards) * factor + _positive(-outwards) / factor)


def _positive(signs: Any) -> Any:
    """Return 1 where a sign is positive, else 0."""
    return (signs + signs * signs) / 2


def _against_krum(honest: Any, q: int, view: View | None) -> Any:
    f = f_of(view, q)
    krum = rule("krum", f)
    if view is not None and isinstance(view.rule, Rule):
        stages = [stage.name for stage in view.rule.stages]
        krum = view.rule if stages in (["krum"], ["multi_krum"]) else krum
    h, d = honest.shape
    complaint = krum.check(h + q)
    if complaint is not None:
        raise ValueError(f"fang: {complaint}")
    signs = sign(honest.mean(0))
    D = distances(honest, refs=("origin",))
    if not np.isfinite(D).all():
        return -signs
    # The bound of section 3.2, with n-f-2 neighbours of which q-1 are attackers.
    nearest = np.sort(D[:h, :h], axis=1)[:, 1 : h + q - f - 1].sum(axis=1).min()
    alone = max(1, h - f - 1)
    largest = float(np.sqrt(nearest / (alone * d)) + np.sqrt(D[:h, h].max() / d))
    seen = View(q, krum, positions=None if view is None else view.positions)
    trial = ByDistances(honest, (honest[0] * 0, -largest * signs), seen)
    share = 1.0
    for _ in range(HALVINGS):
        c = np.zeros(trial.points)
        c[h : h + 2] = 1 - share, share
        if trial.share(c):
            break
        share /= 2
    return -largest * share * signs
