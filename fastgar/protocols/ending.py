"""Signals that ask a process to end: heard at once, also in the middle of a long computation."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

__all__ = ["Ended", "ending"]

GRACE = 4.0  # seconds for a process to end by itself
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Ended(BaseException):
    """The process was told to end by a signal.

    Attributes
    ----------
    number : int
        Of the signal; 128 more is the status to end with.
    """

    def __init__(self, number: int) -> None:
        self.number = number
        super().__init__(number)


@contextmanager
def ending(grace: float = GRACE) -> Iterator[None]:
    """Raise `Ended` in the main thread on SIGINT, SIGTERM and SIGHUP, each time.

    Python only hears a signal between two of its own instructions. So a thread watches, too: if
    the block is not left within `grace` seconds it ends the process, which is safe for whoever
    keeps what matters on disk at any moment.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def end(number: int, frame: FrameType | None) -> None:
        raise Ended(number)

    over = threading.Event()
    heard, noted = os.pipe()
    os.set_blocking(noted, False)

    def watch() -> None:
        numbers = os.read(heard, 1)
        if numbers and not over.wait(grace):
            os._exit(128 + numbers[0])

    before = [signal.signal(number, end) for number in SIGNALS]
    wakeup = signal.set_wakeup_fd(noted, warn_on_full_buffer=False)
    watcher = threading.Thread(target=watch, name="fastgar ending", daemon=True)
    watcher.start()
    try:
        yield
    finally:
        over.set()
        signal.set_wakeup_fd(wakeup)
        for number, handler in zip(SIGNALS, before, strict=True):
            signal.signal(number, handler)
        os.close(noted)
        watcher.join()
        os.close(heard)
