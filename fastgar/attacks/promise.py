"""What a rule promises whatever f rows hold, and how much of it some rows need."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from math import inf, sqrt
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..bounds import kappa
from ..errors import SearchLimit
from ..pipeline import Rule, rule
from ..spec import Guarantee

__all__ = ["Promise", "quietly"]

Array = NDArray[np.float64]
Honest = NDArray[np.bool_]

# Where the honest spread, or the length that bounds a rule, is a smaller part of the longest honest
# row, nothing is judged: rounding would be a part of what is measured. Liars may be of any length.
LEAST_PART = 1e-6
LONGEST_ROW = (
    1e12  # honest row, and shortest 1e-12: an option such as tau is to mean something beside
)


@contextmanager
def quietly() -> Iterator[None]:
    """Say nothing in the block of numbers that overflow or medians that do not converge."""
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore", RuntimeWarning)
        yield


@dataclass(frozen=True)
class Promise:
    """What a rule promises for n rows, f of which may hold anything.

    Its ratio is squared, of what it is about over what bounds it. For a guarantee of "(f, kappa)",
    for a row that is trusted, and for no guarantee it is about the distance of the aggregate from
    the honest mean, in honest spreads (see `fastgar.kappa`); the bound is kappa. Otherwise it is
    about the length of the aggregate, in lengths that the rule is bounded by; the bound is 1.

    Attributes
    ----------
    rule : str
        With everything it needs but a reference: that is the honest mean.
    n, f : int

    Raises
    ------
    ValueError
        If the rule is none, or cannot aggregate so many rows.
    """

    rule: str
    n: int
    f: int

    def __post_init__(self) -> None:
        self._rule.require(self.n)

    @property
    def guarantee(self) -> Guarantee:
        """That of the rule."""
        return self._rule.guarantee

    @cached_property
    def bound(self) -> float | None:
        """What the ratio does not exceed, as far as that is proved; None: there is no proof."""
        if self._about_length:
            return 1.0
        last = self._rule.stages[-1]
        if self.guarantee == "trusted" and last.name == "monna":
            return 4.0 * self.f  # see its docstring
        if last.name == "condense":  # a coordinate is that of the median or of an honest row
            honest_row = self.n - self.f - 1.0 if self.guarantee == "trusted" else 0.0
            return max(kappa("median", self.n, self.f), honest_row)
        try:
            return kappa(self.rule, self.n, self.f)
        except ValueError:
            return None

    @cached_property
    def least(self) -> float | None:
        """What no rule at all can promise less than: f/(n-2f); None for lengths."""
        return None if self._about_length else self.f / (self.n - 2 * self.f)

    @cached_property
    def _rule(self) -> Rule:
        return rule(self.rule, self.f)

    @cached_property
    def _about_length(self) -> bool:
        return self.guarantee == "bounded" or "reference" in self._rule.refs

    @cached_property
    def _trusted(self) -> int | None:
        if self.guarantee != "trusted" or "reference" in self._rule.refs:
            return None
        pivot: int = self._rule.stages[-1].options.get("pivot", 0)
        return pivot

    def ratio(self, rows: Array, honest: Honest) -> float:
        """Return what these rows bring it to, if the honest ones among them are these.

        Parameters
        ----------
        rows : (n, d) array of float64
        honest : (n,) array of bool
            n-f times True. The draw of a rule that draws is its first.

        Returns
        -------
        float
            Infinite if the aggregate is not finite. 0 if the rows say nothing: rounding would be
            measured, a liar is trusted, or the rule gives up its search.
        """
        if self._trusted is not None and not honest[self._trusted]:
            return 0.0
        good = rows[honest]
        mean = good.mean(axis=0)
        apart = good - mean
        squares = float(np.square(apart).sum())
        longest = sqrt(np.square(good).sum(axis=1).max())
        if (
            not 1.0 / LONGEST_ROW < longest < LONGEST_ROW
            or not squares > len(good) * (LEAST_PART * longest) ** 2
        ):
            return 0.0
        if self._rule.stages[-1].name == "smea":
            squares = float(np.linalg.norm(apart, 2)) ** 2
        self._rule.step = 0
        reference = {"reference": mean} if "reference" in self._rule.refs else {}
        try:
            aggregate = self._rule(rows, **reference)
        except SearchLimit:
            return 0.0
        if not np.isfinite(aggregate).all():
            return inf
        if self._about_length:
            limit = self._length(longest, float(np.linalg.norm(mean)), rows.shape[1])
            length = float(np.linalg.norm(aggregate))
            return (length / limit) ** 2 if limit > LEAST_PART * longest else 0.0
        return float(np.linalg.norm(aggregate - mean)) ** 2 / (squares / len(good))

    def _length(self, longest: float, mean: float, columns: int) -> float:
        """Return the length that bounds the aggregate, from two of honest rows."""
        last = self._rule.stages[-1]
        options: dict[str, Any] = last.options
        if self._rule.stages[0].name == "clip":
            return float(self._rule.stages[0].options["c"])
        if last.name == "centered_clipping":
            return float(options["iters"] * options["tau"])
        if last.name == "sign_majority":
            return sqrt(columns)
        if last.name == "fltrust":
            return mean
        if last.name == "rfa":
            # In a step from z every honest row is within reach = longest + |z|, or counts as at nu.
            # A liar's weight times its distance is at most that, over n-f: the sum of the honest
            # rows' inverses. So z is drawn by liars no farther than f/(n-f) times that.
            length = 0.0
            for _ in range(options["T"]):
                reach = longest + length
                counted = options["nu"] * (reach if options["relative"] else 1.0)
                pull = self.f / (self.n - self.f) * max(reach, counted)
                length = max(longest, length) + pull
            return length
        return longest  # cge
