"""How long a node waits before it says whom it waits for: a deadline that follows the quorum."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["Pace"]

SHARE = 0.3  # of the mean that the newest wait is: a congestion is forgotten after twenty waits
SLACK = 4.0  # deadlines in usual waits


@dataclass
class Pace:
    """Deadlines from the times that quorums took: the q-th arrival, which liars cannot put off.

    Attributes
    ----------
    floor, ceiling : float
        Seconds; no deadline is shorter or longer.
    usual : float or None
        The mean of the waits so far, the late ones weighing most.
    """

    floor: float
    ceiling: float
    usual: float | None = None

    @property
    def deadline(self) -> float:
        """Seconds from the beginning of a wait."""
        if self.usual is None:
            return self.ceiling
        return min(max(SLACK * self.usual, self.floor), self.ceiling)

    def took(self, seconds: float) -> None:
        """Take note of how long a quorum took."""
        seconds = min(seconds, self.ceiling)
        before = seconds if self.usual is None else self.usual
        self.usual = before + SHARE * (seconds - before)
