"""What a node waits for, since when, and when it looks again."""

from __future__ import annotations

from collections.abc import Callable

from .mailbox import Mailbox, Received, Want
from .pace import Pace

__all__ = ["Waits"]

DOUBT, MOST_DOUBT = 1.0, 5.0  # so that a slow network is not taken for a dead leader for ever
IN_VAIN = 4.0  # deadlines in which others of a later step may come, after the first f_s + 2


class Waits:
    """The waits of a node, one after the other.

    Parameters
    ----------
    mailbox : Mailbox
    pace : Pace
    behind : callable
        Returns whether others have gone on. Then, where nothing is usual yet, deadlines are short:
        so that who comes back behind the others asks them soon.

    Attributes
    ----------
    wants : tuple of Want
        The first of which ends the wait.
    since, due : float
        When the wait began, and when to look at it again.
    quiet : float
        When the first of the waits began that were all in vain.
    """

    def __init__(self, mailbox: Mailbox, pace: Pace, behind: Callable[[], bool]) -> None:
        self.mailbox, self.pace, self._behind = mailbox, pace, behind
        self.wants: tuple[Want, ...] = ()
        self.since = self.due = self.quiet = 0.0
        self._count = self._late = self._told = 0  # deadlines that passed; that a text knows of
        self._again = False  # whether only a deadline has come of the last wait
        self._going = False  # whether the last wait was for news
        self._vain = False  # whether the last one was
        self._doubt = 0.0  # deadlines that a want without a message gets more: some were too few
        self._enough_at: float | None = None
        self._there: dict[int, float] = {}  # by later step, since when as many as `enough` are
        self._first: float | None = None  # since when that was so of any, while all is in vain

    def begin(self, wants: tuple[Want, ...], now: float) -> None:
        """Begin a wait."""
        self.wants = wants
        self._count += 1
        due = self.due
        if not self._again:
            self._late = 0
        self._told, self._enough_at = self._late, None
        self.since = now
        if not self._vain:
            self.quiet = now
            self._there, self._first = {}, None
        self.due = now + self._next()
        if self._going and wants[0].news:  # else news that trickle in would put it off for ever
            self.due = min(due, self.due)

    @property
    def first(self) -> bool:
        """Whether it is the first wait of the node's life."""
        return self._count == 1

    @property
    def long(self) -> bool:
        """Whether more than one deadline has passed."""
        return self._late > 1

    def settled(self) -> None:
        """Take note that a text has made something of news: the next wait is for something else."""
        self._going = self._again = self._vain = False

    def hurry(self, now: float) -> None:
        """Look sooner if others turn out to have gone on."""
        if not self._late:
            self.due = min(self.due, now + self._next())

    def passed(self, now: float) -> None:
        """Take note that the deadline has passed; the next comes after twice the time."""
        self._late += 1
        self.due = now + self._next()

    def ready(self, kind: str | None, now: float) -> tuple[Want, Received, float] | None:
        """Return the want that is satisfied, by what, and after how long; of a kind, or of any."""
        for want in self.wants:
            if kind is not None and kind != want.kind and kind not in want.news:
                continue
            if want.later and want.enough:
                received = self.mailbox.look(want, False, self._settled(want, now))
            else:
                received = self.mailbox.look(want, self._is_late(want, now))
            if self._enough_at is None and self._is_enough(want):
                self._enough_at = now
            if received is not None:
                return want, received, self._end(want, received, now)
        return None

    def _end(self, want: Want, received: Received, now: float) -> float:
        """End the wait, and return how long it took."""
        self._going = bool(want.news)
        self._again = self._going and self._is_late(want, now)
        self._vain = not received.rows
        if want.enough == 0:
            change = DOUBT if self._vain else -DOUBT / 10
            self._doubt = min(max(0.0, self._doubt + change), MOST_DOUBT)
        seconds = (now if self._enough_at is None else self._enough_at) - self.since
        usual = self._count > 1 and not self._vain  # the first is that of a start
        if usual and want is self.wants[0]:
            self.pace.took(seconds)
        return seconds

    def _next(self) -> float:
        """Return the seconds until the next deadline."""
        pace = self.pace
        seconds = pace.floor if pace.usual is None and self._behind() else pace.deadline
        most = pace.deadline if self._there else pace.ceiling  # those that lack are asked again
        return float(min(seconds * 2 ** min(self._late, 30), most))

    def _settled(self, want: Want, now: float) -> list[int]:
        """Return the later steps of which the messages that are there will do.

        The others had time to come since any step had so many: several deadlines, and the longest
        there is, as a link that broke is dialled again by then. And since this one had: as much, or
        until a later one had as many, as the cluster would not stay at one step for so long.
        """
        before, time = self._there, max(IN_VAIN * self.pace.deadline, self.pace.ceiling)
        there = {step: before.get(step, now) for step in self.mailbox.steps_of(want)}
        self._there, newest = there, max(there, default=0)
        if there and self._first is None:
            self._first = now
            self.due = min(self.due, now + self._next())
        if self._first is None or now - self._first < time:
            return []
        return [step for step, at in there.items() if step < newest or now - at >= time]

    def _is_late(self, want: Want, now: float) -> bool:
        if want.news:
            return self._late > self._told
        return self._late >= want.patience + (self._doubt if want.enough == 0 else 0.0)

    def _is_enough(self, want: Want) -> bool:
        return (
            bool(want.enough)
            and not want.later
            and len(self.mailbox.whole(want)) >= (want.enough or 0)
        )
