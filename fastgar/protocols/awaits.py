"""What a text awaits: messages, or a computation of its own."""

from __future__ import annotations

import types
from collections.abc import Generator

from .mailbox import Received, Want

__all__ = ["COMPUTE", "computation", "messages"]

COMPUTE = object()  # what a text yields where it computes


@types.coroutine
def messages(wants: tuple[Want, ...]) -> Generator[tuple[Want, ...], Received, Received]:
    """Wait for the first of some wants."""
    received = yield wants
    return received


@types.coroutine
def computation() -> Generator[object, None, None]:
    """Let a computation take its time."""
    yield COMPUTE
