"""How long what is left of some runs will take, from what was done of them."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from typing import NamedTuple

__all__ = ["BAR", "Estimate", "Kind", "duration"]

BAR = "{l_bar}{bar}| {n_fmt}/{total_fmt} [{elapsed}{postfix}]"  # tqdm's, without its own estimate
ENOUGH = 4  # pieces of work that were timed, before anything is said


class Kind(NamedTuple):
    """What the time for a piece of work depends on, beside its size."""

    rule: str
    attack: str

    def like(self) -> tuple[Kind, Kind, Kind, Kind]:
        """Return this kind, and coarser ones, the likest first."""
        return self, Kind("", self.attack), Kind(self.rule, ""), Kind("", "")


class Estimate:
    """The time that is left.

    A rule or an attack may be a hundred times as slow as another, and a grid has them one after the
    other. So what is left of a kind is judged by what was done of it, or else of the same attack,
    of the same rule, or of anything.

    Parameters
    ----------
    work : iterable of (Kind, float)
        All that there is to do: pieces and their sizes.
    at_once : int
        How many pieces are worked on at a time.
    """

    def __init__(self, work: Iterable[tuple[Kind, float]], at_once: int = 1) -> None:
        self._left: defaultdict[Kind, float] = defaultdict(float)
        for kind, size in work:
            self._left[kind] += size
        self._timed: defaultdict[Kind, list[float]] = defaultdict(lambda: [0.0, 0.0])
        self._likes = {kind: kind.like() for kind in self._left}
        self._at_once, self._count = at_once, 0

    def done(self, kind: Kind, size: float, seconds: float | None = None) -> None:
        """Take note of a piece of work; without a time if that says nothing of other pieces."""
        self._left[kind] -= size
        if seconds is not None:
            self._count += 1
            for each in self._likes[kind]:
                total = self._timed[each]
                total[0] += size
                total[1] += seconds

    def left(self) -> float | None:
        """Return the seconds that are left, or None before enough is known."""
        if self._count < ENOUGH:
            return None
        total = 0.0
        for kind, size in self._left.items():
            done, seconds = next(self._timed[k] for k in self._likes[kind] if k in self._timed)
            total += size * seconds / done
        return max(0.0, total) / self._at_once

    def words(self) -> str:
        """Return what to say at the end of a line of progress: nothing before enough is known."""
        left = self.left()
        return f"about {duration(left)} left" if left else ""


def duration(seconds: float) -> str:
    """Return a time in words.

    Examples
    --------
    >>> duration(42.4), duration(700), duration(9000)
    ('42 s', '12 min', '2 h 30 min')
    """
    minutes = round(seconds / 60)
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"
