"""How far a grid is: a bar on a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from math import prod
from types import TracebackType
from typing import Any

from ..estimate import BAR, Estimate, Kind
from .setting import Run

__all__ = ["Progress"]

SIZES = ("steps", "workers", "batch", "evaluations")


class Progress:
    """A bar with the time that is left, or a line for each run; or nothing, if quiet.

    Parameters
    ----------
    missing : sequence of Run
        What is to be done.
    done : int
        How many runs had ended before.
    processes : int
        How many runs there are at a time.
    quiet : bool
    """

    def __init__(self, missing: Sequence[Run], done: int, processes: int, *, quiet: bool) -> None:
        from tqdm import tqdm

        self._total, self._done = done + len(missing), done
        self._warm_up = processes  # the first run of each compiles, and says nothing of the others
        self._estimate = Estimate(((_kind(run), _size(run)) for run in missing), processes)
        self._lines = not quiet and not sys.stderr.isatty()
        self._bar = tqdm(
            total=self._total, initial=done, unit="run", disable=quiet or self._lines, leave=False,
            dynamic_ncols=True, bar_format=BAR,
        )  # fmt: skip

    def __enter__(self) -> Progress:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._bar.close()

    def ended(self, run: Run, words: str, seconds: float | None = None) -> None:
        """Count a run, and show how it ended, after so many seconds if it did its work."""
        self._done += 1
        self._warm_up -= 1
        self._estimate.done(_kind(run), _size(run), None if self._warm_up >= 0 else seconds)
        text = "; ".join(filter(None, (words, self._estimate.words())))
        self._bar.set_postfix_str(text, refresh=False)
        self._bar.update()
        if self._lines:
            self.say(f"[{self._done}/{self._total}] {text}")

    def say(self, text: str) -> None:
        """Print a line on the standard error, above the bar where there is one."""
        if self._bar.disable:
            print(text, file=sys.stderr, flush=True)
        else:
            self._bar.write(text, file=sys.stderr)


def _kind(run: Run) -> Kind:
    config = run.setting.config
    return Kind(str(config.get("rule")), str(config.get("attack", config.get("n"))))


def _size(run: Run) -> float:
    """Return how many samples a run goes through, or how many rows it tries."""
    config: Any = run.setting.config
    return float(prod(config.get(name, 1) for name in SIZES))
