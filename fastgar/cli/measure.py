"""Timing several functions against each other on one noisy machine.

Everybody takes a turn in every round, so that a slow minute of the machine hits all of them, and
every round has another order, so that nobody always comes after the same one; each call gets
another buffer than the one before it, so that caches flatter nobody; and each turn begins with as
many untimed calls, since threads of the one before may still be spinning.
"""

from __future__ import annotations

import random
import statistics
from collections.abc import Callable, Iterator, Sequence
from itertools import cycle
from time import perf_counter
from typing import Any

__all__ = ["Timing", "interleaved", "read_bandwidth"]

TURN = 1e-3  # a turn calls again until it has taken that long
LONG = 0.1  # from here on an untimed call costs more than it helps
ENDLESS = 5.0  # from here on one turn has to do
WARM = 0.1  # seconds of calls before it begins: some rules compile more when they are called often


class Timing:
    """The turns of one contestant."""

    def __init__(self, first: float, repeat: int, budget: float) -> None:
        self.calls = max(1, min(1000, round(TURN / max(first, 1e-9))))
        self.untimed = self.calls if first < LONG else 0
        affordable = budget / (max(first, 1e-9) * (self.calls + self.untimed))
        fewest = 1 if first > ENDLESS else 2
        self.turns = int(min(repeat, max(fewest, affordable)))
        self.seconds: list[float] = []

    @property
    def median(self) -> float:
        """Seconds per call in the median turn."""
        return statistics.median(self.seconds)

    @property
    def least(self) -> float:
        """Seconds per call in the quickest turn."""
        return min(self.seconds)


def interleaved(
    calls: Sequence[Callable[[Any], Any]], buffers: Sequence[Any], repeat: int, budget: float
) -> tuple[list[Timing | str], Iterator[int]]:
    """Prepare an interleaved measurement of functions on equal buffers.

    Parameters
    ----------
    calls : sequence of callable
        Each is called a few times now, for compilation and to see how long it takes.
    buffers : sequence
        Arguments to rotate over.
    repeat : int
        Turns of each.
    budget : float
        Seconds for one contestant; slow ones get fewer turns, but at least 2 (1 if a call takes 5
        seconds), spread over the rest.

    Returns
    -------
    timings : list of Timing or str
        In place of a function that cannot do it, such as for want of memory, the error's words; it
        may turn out only in a later round.
    rounds : iterator
        Consume it to measure; it yields the number of rounds still to go.
    """
    timings: list[Timing | str] = []
    for call in calls:
        try:
            first = _seconds(call, [buffers[0]])
            for slow in (ENDLESS, 1.0, 1.0):  # the first may have held a compilation, and the next
                if first < slow:
                    first = min(first, _seconds(call, [buffers[-1]]))
            for _ in range(min(100, int(WARM / max(first, 1e-9)))):
                call(buffers[-1])
        except (MemoryError, RuntimeError) as error:  # torch has the latter for both
            timings.append(str(error))
        else:
            timings.append(Timing(first, repeat, budget))
    return timings, _rounds(calls, timings, cycle(buffers), repeat)


def _rounds(
    calls: Sequence[Callable[[Any], Any]],
    timings: list[Timing | str],
    buffers: Iterator[Any],
    repeat: int,
) -> Iterator[int]:
    order = list(range(len(calls)))
    shuffle = random.Random(0).shuffle  # the same orders every time
    for turn in range(repeat):
        shuffle(order)
        for index in order:
            timing = timings[index]
            # Spread the fewer turns of a slow contestant evenly over the rounds.
            if isinstance(timing, str) or (
                turn * timing.turns // repeat == (turn - 1) * timing.turns // repeat
            ):
                continue
            try:
                for _ in range(timing.untimed):
                    calls[index](next(buffers))
                arguments = [next(buffers) for _ in range(timing.calls)]
                timing.seconds.append(_seconds(calls[index], arguments))
            except (MemoryError, RuntimeError) as error:
                timings[index] = str(error)
        yield repeat - turn - 1


def _seconds(call: Callable[[Any], Any], arguments: Sequence[Any]) -> float:
    began = perf_counter()
    for argument in arguments:
        call(argument)
    return (perf_counter() - began) / len(arguments)


def read_bandwidth(megabytes: int = 256, repeat: int = 9) -> float:
    """Return bytes per second that torch.sum reads from memory with torch's threads, at best."""
    import torch

    x = torch.ones(megabytes << 18)  # float32
    return x.numel() * 4 / min(_seconds(torch.sum, [x]) for _ in range(repeat))
