"""What becomes of the learning rate in the course of a run."""

from __future__ import annotations

import math
from collections.abc import Callable

from ..errors import shown
from ..options import Count, Positive
from .named import configured

__all__ = ["SCHEDULES", "schedule"]

Rate = Callable[[int], float]


def schedule(spec: str) -> Rate:
    """Return the function that a string describes: from steps done to a factor of the rate.

    Examples
    --------
    >>> rate = schedule("steps(every=100, factor=0.1)")
    >>> rate(0), rate(99), rate(100)
    (1.0, 1.0, 0.1)
    >>> schedule("inverse(decay=100)")(100)
    0.5
    """
    name, options = configured("schedule", spec, SCHEDULES)
    return SCHEDULES[name](**options)


def constant() -> Rate:
    """Keep the learning rate."""
    return lambda done: 1.0


def steps(
    *,
    factor: Positive,
    every: Count | None = None,
    at: tuple = (),  # type: ignore[type-arg]  # the check is one of the class alone
) -> Rate:
    """Multiply the learning rate by a factor, every so many steps or after certain numbers."""
    if (every is None) == (not at):
        raise ValueError("schedule: steps needs either every=... or at=(..., ...)")
    if not all(type(number) is int and number >= 1 for number in at):
        raise ValueError(f"schedule: steps(at=...) must be numbers of steps, got {shown(at)}")

    def rate(done: int) -> float:
        times = done // every if every else sum(done >= number for number in at)
        try:
            return float(factor**times)
        except OverflowError:
            return math.inf

    return rate


def inverse(*, decay: Positive) -> Rate:
    """Divide the learning rate by t / decay + 1 after t steps."""
    return lambda done: 1.0 / (done / decay + 1.0)


SCHEDULES: dict[str, Callable[..., Rate]] = {
    "constant": constant,
    "steps": steps,
    "inverse": inverse,
}
