"""Timing several functions against each other on one noisy machine.

Everybody takes a turn in every round, so that a slow minute of the machine hits all of them; each
call gets another buffer than the one before it, so that caches flatter nobody; and each turn
begins with an untimed call, since threads of the one before may still be spinning.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator, Sequence
from itertools import cycle
from time import perf_counter
from typing import Any

__all__ = ["Timing", "interleaved", "read_bandwidth"]

SHORT = 1e-3  # a turn calls again until it has taken that long
LONG = 0.1  # from here on the untimed call costs more than it helps
ENDLESS = 5.0  # from here on one turn has to do


class Timing:
    """The turns of one contestant."""

    def __init__(self, first: float, repeat: int, budget: float) -> None:
        self.calls = max(1, min(1000, round(SHORT / first)))
        self.warm_up = first < LONG
        spent = first * (self.calls + self.warm_up)
        self.turns = min(repeat, max(1 if first > ENDLESS else 2, int(budget / spent)))
        self.seconds: list[float] = []

    @property
    def median(self) -> float:
        """Median seconds per call."""
        return statistics.median(self.seconds)


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
        In place of a function that cannot do it, such as for want of memory, the error's words.
    rounds : iterator
        Consume it to measure; it yields the number of rounds still to go.
    """
    timings: list[Timing | str] = []
    for call in calls:
        try:
            first = _seconds(call, [buffers[0]])
        except (MemoryError, RuntimeError) as error:  # torch has the latter for both
            timings.append(str(error))
            continue
        for _ in range(3):  # the first may have held a compilation, the next a kernel's change
            if first < 1.0:
                first = min(first, _seconds(call, [buffers[-1]]))
        timings.append(Timing(first, repeat, budget))
    able = [(c, t) for c, t in zip(calls, timings, strict=True) if isinstance(t, Timing)]
    return timings, _rounds(able, cycle(buffers), repeat)


def _rounds(
    able: Sequence[tuple[Callable[[Any], Any], Timing]], buffers: Iterator[Any], repeat: int
) -> Iterator[int]:
    for turn in range(repeat):
        for call, timing in able:
            # Spread the fewer turns of a slow contestant evenly over the rounds.
            if turn * timing.turns // repeat == (turn - 1) * timing.turns // repeat:
                continue
            if timing.warm_up:
                call(next(buffers))
            arguments = [next(buffers) for _ in range(timing.calls)]
            timing.seconds.append(_seconds(call, arguments))
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
