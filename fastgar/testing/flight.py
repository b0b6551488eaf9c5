"""Collectives under way: what they receive is not there yet, and what they send may not change.

On a GPU a collective runs on a stream of its own, beside the code that comes after it, until that
waits. Here what it receives is kept aside until the wait, and there is poison in its place.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

import torch
from torch import Tensor
from torch.distributed import Work

from .device import Span, overlap, span
from .frames import complain

__all__ = ["FLIGHTS", "Flight", "Pending", "bytes_of", "never_waited", "require_landed"]

TURN = timedelta(seconds=0.2)  # after which a wait looks whether the ranks go together at all
POISON = 255  # in each byte: NaN in a floating-point number


@dataclass(eq=False)
class Flight:
    """A collective that was launched and not yet waited for."""

    group: Any
    op: str
    where: str
    sent: list[tuple[Tensor, Tensor]]  # and what it was at the launch
    received: list[tuple[Tensor, Tensor]]  # and what will be there
    leaving: list[Span] = field(init=False)
    arriving: list[Span] = field(init=False)

    def __post_init__(self) -> None:
        self.leaving = [span(tensor) for tensor, _ in self.sent]
        self.arriving = [span(tensor) for tensor, _ in self.received]
        for tensor, _ in self.received:
            bytes_of(tensor).fill_(POISON)

    def __str__(self) -> str:
        """Return what was launched where."""
        return f"{self.op}, launched at {self.where or 'a place unknown'}"


FLIGHTS: list[Flight] = []


def bytes_of(tensor: Tensor) -> Tensor:
    """Return a contiguous tensor as a vector of bytes."""
    return tensor.detach().reshape(-1).view(torch.uint8)


def require_landed(read: Sequence[Tensor], written: Sequence[Tensor], what: str) -> None:
    """Complain if something is read that has not arrived, or changed that is on its way."""
    for tensor in (*read, *written):
        own = span(tensor)
        changed = any(tensor is each for each in written)
        for flight in FLIGHTS:
            if any(overlap(own, each) for each in flight.arriving):
                verb = "writes to" if changed else "reads"
                complain(f"{what} {verb} what arrives only with the wait for {flight}")
            if changed and any(overlap(own, each) for each in flight.leaving):
                complain(f"{what} changes what is on its way until the wait for {flight}")


class Pending(Work):
    """The work of a collective under way."""

    def __init__(
        self, flight: Flight, inner: Any, timeout: timedelta, differing: Callable[[], None],
        patient: bool,
    ) -> None:  # fmt: skip
        super().__init__()
        self.flight, self.inner, self.timeout = flight, inner, timeout
        self.differing, self.patient = differing, patient
        self.done = False
        FLIGHTS.append(flight)

    def wait(self, timeout: timedelta | None = None) -> bool:
        """Wait, and let arrive what was received."""
        if self.done:
            return True
        self.done = True
        try:
            self._wait(timeout or self.timeout)
        except BaseException:  # the other collectives of this group are as broken
            FLIGHTS[:] = [each for each in FLIGHTS if each.group is not self.flight.group]
            raise
        self._land()
        return True

    def _wait(self, timeout: timedelta) -> None:
        if not self.patient:  # gloo breaks off a receive that is looked after in between
            self.inner.wait(timeout)
            return
        end = time.monotonic() + timeout.total_seconds()
        while True:
            completed = self.inner.is_completed()
            try:
                self.inner.wait(TURN)
                return
            except RuntimeError:
                if completed or time.monotonic() > end:
                    raise
                self.differing()

    def _land(self) -> None:
        flight = self.flight
        if flight in FLIGHTS:
            FLIGHTS.remove(flight)
        for tensor, was in flight.sent:
            if not torch.equal(bytes_of(tensor), bytes_of(was)):
                complain(f"what is sent has changed before the wait for {flight}")
        for tensor, arrived in flight.received:
            found = bytes_of(tensor)
            if len(found) and not bool((found == POISON).all()):
                complain(f"there was written to what arrives only with the wait for {flight}")
            bytes_of(tensor).copy_(bytes_of(arrived))

    def get_future(self) -> Any:
        """Return a future of what is received; that counts as the wait."""

        def land(done: Any) -> list[Tensor]:
            done.value()
            if not self.done:
                self.done = True
                self._land()
            return [tensor for tensor, _ in self.flight.received]

        return self.inner.get_future().then(land)

    def is_completed(self) -> bool:
        """Say whether a wait would be short."""
        completed: bool = self.inner.is_completed()
        return completed


def never_waited(begun: Sequence[Flight]) -> None:
    """Complain of what is still under way and was not before."""
    left = [flight for flight in FLIGHTS if flight not in begun]
    if left:
        complain("there is no wait for " + "; for ".join(map(str, left)))
