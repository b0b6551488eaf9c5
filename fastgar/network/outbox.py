"""What is to be sent to one peer: of each kind the two newest steps, and no more."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["Message", "Outbox"]

KEPT = 2  # steps of each kind


@dataclass(eq=False)
class Message:
    """One message, and whether it still has to go out over the present connection."""

    kind: int
    step: int
    payload: memoryview
    digest: bytes
    number: int  # in order of posting
    waiting: bool = True


class Outbox:
    """Messages for one peer. It has no lock of its own: who calls it holds the peer's."""

    def __init__(self) -> None:
        self.kept: dict[int, list[Message]] = {}
        self.posted = 0

    def post(self, kind: int, step: int, payload: memoryview, digest: bytes) -> None:
        """Keep a message. Of its kind, all but the two newest steps are dropped.

        One that was dropped while it was being sent is finished: its sender holds it.
        """
        self.posted += 1
        kept = [message for message in self.kept.get(kind, ()) if message.step != step]
        kept.append(Message(kind, step, payload, digest, self.posted))
        kept.sort(key=lambda message: message.step)
        self.kept[kind] = kept[-KEPT:]

    def next(self) -> Message | None:
        """Return the message that waits longest, which then waits no more."""
        waiting = [each for kept in self.kept.values() for each in kept if each.waiting]
        if not waiting:
            return None
        first = min(waiting, key=lambda message: message.number)
        first.waiting = False
        return first

    def again(self) -> None:
        """Let all that is kept go out once more: there is a new connection."""
        for kept in self.kept.values():
            for message in kept:
                message.waiting = True

    @property
    def empty(self) -> bool:
        """Whether nothing waits."""
        return not any(message.waiting for kept in self.kept.values() for message in kept)
