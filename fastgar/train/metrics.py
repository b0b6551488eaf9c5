"""What a step was like: norms, deviations and cosines of what was sent and what came of it.

With x_i the rows that were sent, g_i the gradients that honest workers sampled (the same rows,
unless there is momentum at the workers) and h honest rows:

=========================  =====================================================================
metric                     formula
=========================  =====================================================================
``sampled_norm``           | mean of g |; so ``honest_norm`` and ``attack_norm``, of sent rows
``sampled_deviation``      sqrt(sum |g_i - mean of g|^2 / (h - 1)); so ``honest_deviation`` and
                           ``attack_deviation``, of sent rows
``aggregate_norm``         | aggregate |
``cos_sampled_honest``     of the angle between the two means; so the other three, of the means
                           and the aggregate
``ratio``                  ``honest_deviation`` / ``honest_norm``
``ratio_bound``            the ratio under which the rule is proved to work
                           (`fastgar.variance_ratio`)
``curvature``              sum over k of mu^k <mean of g in step t, mean of g in step t-1-k>
``byzantine_weight``       the liars' weights over the weights of all rows
=========================  =====================================================================

A deviation divides by h - 1, because it estimates E|g - Eg|^2, of which the theory behind the bound
speaks. So does the code of "Distributed momentum for Byzantine-resilient SGD" (El Mhamdi et al.,
ICLR 2021), whose curvature has one more factor mu.

All but the curvature is algebra on squared distances between rows, aggregate and origin:
2 <x, y> = |x|^2 + |y|^2 - |x - y|^2. A rule that looks at distances has measured these before, so
that recording hardly reads anything again.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

import fastgar as fg

from ..errors import shown
from .products import by_algebra, cosine, inner_products, mean_of, spread

__all__ = ["METRICS", "Distances", "Recorder"]

Array = NDArray[np.float64]
Mask = NDArray[np.bool_]

METRICS = (
    "sampled_norm", "sampled_deviation", "honest_norm", "honest_deviation", "attack_norm",
    "attack_deviation", "aggregate_norm", "cos_sampled_honest", "cos_honest_attack",
    "cos_honest_aggregate", "cos_attack_aggregate", "ratio", "ratio_bound", "curvature",
    "byzantine_weight",
)  # fmt: skip

HONEST, ATTACK, AGGREGATE = range(3)


class Distances(NamedTuple):
    """What the server measured and decided, so that nothing has to be measured again.

    Attributes
    ----------
    D : (points, points) array
        Squared distances, as from `fastgar.sqdist`, of the rows that were sent, in their order,
        and then of further points.
    origin : int
        Which of the points is the origin.
    weights : (n,) or (points,) array
        The aggregate is the sum of weights times points. What is beyond the end has weight 0.
    """

    D: Array
    origin: int
    weights: Array


class Recorder:
    """Computes the metrics of each step; the curvature remembers the steps before.

    Parameters
    ----------
    rule : Rule or anything else
        What aggregates; only a `fastgar.Rule` has a bound.
    n, f : int
        How many rows it aggregates, and how many liars it is to survive.
    mu : float
        The momentum, wherever it is placed: at least 0 and below 1.

    Examples
    --------
    >>> recorder = Recorder(fg.rule("median"), n=4, f=1, mu=0.9)
    >>> sent = torch.tensor([[3.0, 4.0], [3.0, 6.0], [3.0, 2.0], [-3.0, -4.0]])
    >>> found = recorder.record(sent, [3], None, fg.median(sent))
    >>> found["honest_norm"], found["honest_deviation"], found["cos_honest_attack"]
    (5.0, 2.0, -1.0)
    >>> round(found["ratio"], 3), round(found["ratio_bound"], 3)
    (0.4, 0.577)
    """

    def __init__(self, rule: object, n: int, f: int, mu: float) -> None:
        if not 0 <= mu < 1:
            raise ValueError(f"mu must be at least 0 and below 1, got {shown(mu)}")
        self.mu = mu
        self.bound = _bound(rule, n, f)
        self._past: Tensor | None = None  # sum over k of mu^k times the mean k + 1 steps ago

    def state_dict(self) -> dict[str, Tensor]:
        """Return a copy of what later steps need; nothing before the first step."""
        return {} if self._past is None else {"past": self._past.clone()}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Go on from where `state_dict` was called."""
        past = state.get("past")
        self._past = None if past is None else past.clone()

    def record(
        self,
        sent: Tensor,
        liars: Sequence[int] | NDArray[np.integer[Any]] | Tensor,
        sampled: Tensor | None,
        aggregate: Tensor,
        distances: Distances | None = None,
        weights: Array | None = None,
        *,
        mean: Tensor | None = None,
    ) -> dict[str, float | None]:
        """Return the metrics of one step by their names, which are `METRICS`.

        What is not on the CPU is copied there.

        Parameters
        ----------
        sent : Tensor, shape (n, d)
            The rows that the rule aggregated.
        liars : indices
            The Byzantine rows among them; all others are honest.
        sampled : Tensor, shape (h, d), or None
            The honest gradients before momentum; None if these are what honest workers sent.
        aggregate : Tensor, shape (d,)
            What the rule made of the rows, before any momentum of the server.
        distances : Distances, optional
            For an aggregate that is a weighted sum, where distances have been measured.
        weights : (n,) or (points,) array, optional
            What each row counted, by default the weights in `distances`. For a column rule
            `fastgar.inspect` can tell; without them there is no Byzantine weight.
        mean : Tensor, shape (d,), optional
            The mean of the sampled rows, if it is known.

        Returns
        -------
        dict of str to float or None
            None where there is no finite number: metrics that a row takes part in that is not
            finite (so liars spoil none of the honest rows' metrics), metrics of liars if there
            are none, a deviation of one row, a cosine with the origin, the curvature in the first
            step, a bound or weights that are not known.

        Raises
        ------
        ValueError
            If there is no honest row, or shapes do not fit.

        Notes
        -----
        Reads of n or h rows:

        - one of `sent`, for distances, unless `distances` are given;
        - one of the sampled rows, for their mean, unless `mean` is given;
        - with momentum at the workers one of the sampled rows, for distances, and one of the
          honest rows, for their mean;
        - two of `sent`, for means, if these or the aggregate are 1,000 times as short as some row
          that they come from, or each other: algebra on distances would lose them.
        """
        sent, aggregate = sent.cpu(), aggregate.cpu()
        sampled = None if sampled is None else sampled.cpu()
        mean = None if mean is None else mean.cpu()
        n = len(sent)
        lies = np.zeros(n, bool)
        lies[np.asarray(liars, dtype=np.intp)] = True
        if lies.all():
            raise ValueError(f"a step needs an honest row, but all of its {n} rows lie")
        if distances is not None:
            _require(distances, n)
            weights = distances.weights if weights is None else weights
        known = _measured(sent, aggregate) if distances is None else distances
        with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
            found = _of_sent(sent, lies, aggregate, known)
            found |= self._of_sampled(sent, ~lies, sampled, mean)
            found["byzantine_weight"] = _byzantine_weight(weights, lies)
        if sampled is None:
            for name in ("norm", "deviation"):
                found[f"sampled_{name}"] = found[f"honest_{name}"]
        found["ratio_bound"] = self.bound
        return {name: float(found[name]) if np.isfinite(found[name]) else None for name in METRICS}

    def _of_sampled(
        self, sent: Tensor, honest: Mask, sampled: Tensor | None, mean: Tensor | None
    ) -> dict[str, float]:
        """Return the metrics that take the mean of the sampled rows, and remember that mean."""
        found = {}
        if mean is None:
            mean = mean_of(sent, honest) if sampled is None else fg.mean(sampled)
        past = torch.zeros_like(mean) if self._past is None else self._past
        vectors = [mean, past]
        if sampled is not None:
            vectors.append(mean_of(sent, honest))
            found["sampled_deviation"] = spread(fg.sqdist(sampled))
        inner = inner_products(vectors)
        found["sampled_norm"] = np.sqrt(inner[0, 0])
        found["cos_sampled_honest"] = cosine(inner, 0, 0 if sampled is None else 2)
        found["curvature"] = math.nan if self._past is None else inner[0, 1]
        past *= self.mu
        if np.isfinite(inner[0, 0]):  # else this step would spoil all later ones
            past += mean
        self._past = past
        return found


def _bound(rule: object, n: int, f: int) -> float:
    """Return the ratio under which the rule is proved to work; NaN if none is known."""
    if not isinstance(rule, fg.Rule):
        return math.nan
    try:
        return fg.variance_ratio(str(rule), n, f)
    except ValueError:
        return math.nan


def _measured(sent: Tensor, aggregate: Tensor) -> Distances:
    """Measure what is not known, with the aggregate as a point of its own."""
    n = len(sent)
    return Distances(fg.sqdist(sent, [aggregate, "origin"]), n + 1, np.eye(n + 1)[n])


def _require(known: Distances, n: int) -> None:
    """Raise a ValueError unless the shapes fit."""
    points = len(known.D)
    if known.D.shape != (points, points) or not n <= known.origin < points:
        raise ValueError(
            f"D is between {n} rows and then further points, one of them the origin: got shape "
            f"{known.D.shape} and origin = {known.origin}"
        )
    shape = known.weights.shape
    if len(shape) != 1 or not n <= shape[0] <= points:
        raise ValueError(f"weights must have shape ({n},) or ({points},), got {shape}")


def _of_sent(sent: Tensor, lies: Mask, aggregate: Tensor, known: Distances) -> dict[str, float]:
    """Return the metrics of the rows that were sent, and of the aggregate."""
    D, origin, weights = known
    honest, liars = np.flatnonzero(~lies), np.flatnonzero(lies)
    A = np.zeros((3, len(D)))  # two means and the aggregate as weighted sums of the points
    A[HONEST, honest] = 1 / len(honest)
    A[ATTACK, liars] = 1 / max(1, len(liars))
    A[AGGREGATE, : len(weights)] = weights
    inner = by_algebra(A, D, origin)
    if inner is None:
        inner = inner_products([mean_of(sent, ~lies), mean_of(sent, lies), aggregate])
    if not len(liars):
        inner[ATTACK] = inner[:, ATTACK] = math.nan
    norms = np.sqrt(inner.diagonal())
    deviation = spread(D[np.ix_(honest, honest)])
    return {
        "honest_norm": norms[HONEST],
        "honest_deviation": deviation,
        "attack_norm": norms[ATTACK],
        "attack_deviation": spread(D[np.ix_(liars, liars)]),
        "aggregate_norm": norms[AGGREGATE],
        "cos_honest_attack": cosine(inner, HONEST, ATTACK),
        "cos_honest_aggregate": cosine(inner, HONEST, AGGREGATE),
        "cos_attack_aggregate": cosine(inner, ATTACK, AGGREGATE),
        "ratio": deviation / norms[HONEST],
    }


def _byzantine_weight(weights: Array | None, lies: Mask) -> float:
    """Return the liars' part of the weight of the rows; NaN if there are no liars or weights."""
    if weights is None or not lies.any():
        return math.nan
    rows = weights[: len(lies)]
    total = rows.sum()
    return float(rows[lies].sum() / total) if total != 0 else 0.0
