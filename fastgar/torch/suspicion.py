"""Whether a rank is dropped more often than chance does it to honest ranks.

Some honest rank is always the farthest: of n alike, a rule that drops f drops each in f/n of the
steps, and now and then one of them several times in a row. So a rank is suspected by a test.

In each step let x_i, between 0 and 1, say how far rank i was distrusted, and x their mean over the
ranks. The null hypothesis is that ranks are exchangeable: whatever happened before, each is as
likely as any other to get each of this step's x_i. Then it is a fair bet to multiply the share w of
a capital by x_i / x. A rank has capital 1 to begin with: of that 1 / (s (s + 1)) is bet from step s
on, as a fault may begin at any time, in equal parts with each w of `SHARES`. A capital in fair bets
ever rises to n / ALARM with probability at most ALARM / n (Ville): among n exchangeable ranks that
happens to any with probability at most `ALARM`, in a run of any length.

With momentum at the workers the steps depend on each other, and a bet counts as 1 - momentum of
one (its power, which is no better than fair). That is a rule of thumb, held by a simulation. Ranks
with data of another kind are not exchangeable, and are named if that shows. So may be honest ranks
when faulty ones, which the rule does not drop, leave it to them. Ranks that send the very same are
distrusted alike.

A rank that is dropped in every step from step s on, with f - 1 others, is named after at most
log(4 n s (s + 1) / ALARM) / log(n / f) steps, rounded up (with momentum, divided by 1 - momentum):

    ranks, f   from step 1   from step 10,000
    4, 1                 8                 21
    11, 2                7                 18
    5, 2                12                 31
    64, 16              10                 23
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

__all__ = ["ALARM", "Tally"]

Array = NDArray[np.float64]
Ranks = NDArray[np.bool_]
ALARM = 1e-3  # probability that any of exchangeable ranks is ever named
SHARES = np.array([1.0, 0.5, 0.25, 0.125])  # of the capital: for faults in all steps, or in some
QUIET = 100  # steps after which NaN or infinity is news again


@dataclass
class Tally:
    """What is counted of each rank over the steps.

    Attributes
    ----------
    step : int
        How many were counted.
    capital : (n, 4) array
        Won by bets on each rank.
    streak, quiet : (n,) arrays
        In how many steps in a row it was dropped, and was finite.
    named : (n,) array
        Whether it was named, and its capital has not melted since.
    """

    step: int = 0
    capital: Array = field(default_factory=lambda: np.zeros((0, len(SHARES))))
    streak: NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, np.int64))
    quiet: NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, np.int64))
    named: Ranks = field(default_factory=lambda: np.zeros(0, bool))

    @property
    def n(self) -> int:
        """How many ranks were seen."""
        return len(self.streak)

    def count(self, distrust: Array, dropped: Ranks, faulty: Ranks, pace: float = 1.0) -> Events:
        """Take one step in, of which the evidence counts `pace`; return what is news."""
        n = len(distrust)
        if self.n == 0:
            self.capital = np.zeros((n, len(SHARES)))
            self.streak, self.quiet = np.zeros(n, np.int64), np.full(n, QUIET)
            self.named = np.zeros(n, bool)
        self.step += 1
        begun = 1 / (self.step * (self.step + 1) * len(SHARES))
        mean = float(distrust.mean())
        odds = distrust / mean if mean > 0 else np.ones(n)
        factors = 1 - SHARES + SHARES * odds[:, None]
        # No more than what is needed: a rank that recovers is soon as good as any.
        self.capital = np.minimum((self.capital + begun) * factors**pace, n / ALARM)
        wealth = self._wealth()
        found = (wealth >= n / ALARM) & ~self.named
        self.named = (self.named | found) & (wealth > 1)
        self.streak = np.where(dropped, self.streak + 1, 0)
        infinite = faulty & (self.quiet >= QUIET)
        self.quiet = np.where(faulty, 0, self.quiet + 1)
        return Events(found & ~faulty, infinite)

    def suspicion(self) -> Array:
        """Return, for each rank, 0 where chance explains all to 1 where it is named."""
        evidence = np.log(self._wealth()) / np.log(self.n / ALARM)
        suspicion: Array = np.where(self.quiet == 0, 1.0, np.clip(evidence, 0.0, 1.0))
        return suspicion

    def _wealth(self) -> Array:
        """Return the capital of each rank, with what is not yet bet."""
        wealth: Array = self.capital.sum(axis=1) + 1 / (self.step + 1)
        return wealth


@dataclass(frozen=True)
class Events:
    """Ranks, as arrays of bool, of which something is to be said after a step."""

    dropped_too_often: Ranks
    not_finite: Ranks
