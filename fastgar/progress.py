"""How far some work is, and how long what is left will take: a bar, plain lines, or nothing."""

from __future__ import annotations

import shutil
import sys
import time
from collections import defaultdict
from collections.abc import Iterable, Sequence
from types import TracebackType
from typing import NamedTuple, Self

__all__ = ["Estimate", "Kind", "Progress", "Scene", "duration", "passing"]

BAR = "{l_bar}{bar}| {n_fmt}/{total_fmt} [{elapsed}{postfix}]"  # tqdm's, without its own estimate
ENOUGH = 4  # pieces of work that were timed, before anything is said
PLAIN = 5.0  # seconds between two lines of a scene, where there is no terminal


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


class Progress:
    """A bar with the time that is left, or lines where there is no terminal; nothing, if quiet.

    Parameters
    ----------
    total : int
        How many units there are.
    unit : str
        One of them, in a word.
    work : iterable of (Kind, float)
        What is still to be done, as for `Estimate`.
    done : int
        How many units had been done before.
    at_once : int
        How many pieces are worked on at a time.
    quiet : bool

    Attributes
    ----------
    reached : int
        How many units are done.
    estimate : Estimate
    """

    def __init__(
        self,
        total: int,
        unit: str,
        work: Iterable[tuple[Kind, float]],
        *,
        done: int = 0,
        at_once: int = 1,
        quiet: bool = False,
    ) -> None:
        from tqdm import tqdm

        self.estimate = Estimate(work, at_once)
        self._total, self.reached, self._warm_up = total, done, at_once
        self._quiet, self._live = quiet, not quiet and sys.stderr.isatty()
        self._bar = tqdm(
            total=total, initial=done, unit=unit, disable=not self._live, leave=False,
            dynamic_ncols=True, bar_format=BAR,
        )  # fmt: skip

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._bar.close()

    def begin(self, title: str) -> None:
        """Put a title before the bar."""
        self._bar.set_description(title)

    def reach(self, count: int) -> None:
        """Move the bar to so many units."""
        self.reached = count
        self._bar.update(count - self._bar.n)

    def show(self, words: str) -> None:
        """Put words behind the bar, and the time that is left."""
        self._bar.set_postfix_str(self._and_left(words))

    def tell(self, words: str) -> None:
        """Print a line with the time that is left, unless quiet."""
        if not self._quiet:
            self.say(self._and_left(words))

    def say(self, text: str) -> None:
        """Print a line on the standard error, above the bar where there is one."""
        if self._live:
            self._bar.write(text, file=sys.stderr)
        else:
            print(text, file=sys.stderr, flush=True)

    def ended(self, kind: Kind, size: float, words: str, seconds: float | None = None) -> None:
        """Count a piece that is a unit, and say how it ended: after so many seconds, if it worked.

        The first piece of each process compiles, and its time says nothing of the others.
        """
        self._warm_up -= 1
        self.estimate.done(kind, size, None if self._warm_up >= 0 else seconds)
        self.reach(self.reached + 1)
        if self._live:
            self.show(words)
        else:
            self.tell(f"[{self.reached}/{self._total}] {words}")

    def _and_left(self, words: str) -> str:
        return "; ".join(filter(None, (words, self.estimate.words())))


class Scene:
    """How things are that go on side by side: drawn again and again on a terminal.

    Elsewhere a line every few seconds; nothing, if quiet.
    """

    def __init__(self, *, quiet: bool = False) -> None:
        self._quiet, self._live = quiet, sys.stderr.isatty()
        self._drawn, self._said = 0, 0.0

    def show(self, line: str, drawn: Sequence[str], *, last: bool = False) -> None:
        """Show how things are, in a line or drawn; the last time in any case."""
        now = time.monotonic()
        if self._quiet or (not self._live and not last and now - self._said < PLAIN):
            return
        self._said = now
        if not self._live:
            print(line, file=sys.stderr, flush=True)
            return
        width, height = shutil.get_terminal_size()
        width, height = width - 1, max(height - 1, 2)  # what scrolls away cannot be drawn over
        if len(drawn) > height:
            more = len(drawn) - height + 1
            drawn = [*drawn[: height - 1], f"... and {more} lines more"]
        above = f"\x1b[{self._drawn}A\x1b[J" if self._drawn else ""
        sys.stderr.write(above + "".join(f"{each[:width]}\n" for each in drawn))
        sys.stderr.flush()
        self._drawn = len(drawn)


def passing(text: str) -> None:
    """Show a passing line on a terminal, in place of the one before."""
    if sys.stderr.isatty():
        print(f"\r{text:<60}\r{text}", end="", file=sys.stderr, flush=True)


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
