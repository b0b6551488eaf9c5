"""A log that strangers cannot fill: one line a minute for each cause."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Hashable

__all__ = ["Say", "log"]

log = logging.getLogger("fastgar.network")


class Say:
    """Writes warnings, of each cause at most one a minute, with how many it left out.

    Causes are a peer and a word of a fixed set: as many as there are, so many are remembered.
    """

    def __init__(self, every: float = 60.0) -> None:
        self.every = every
        self._lock = threading.Lock()
        self._last: dict[Hashable, tuple[float, int]] = {}

    def __call__(self, cause: Hashable, sentence: str) -> None:
        now = time.monotonic()
        with self._lock:
            last, left_out = self._last.get(cause, (-self.every, 0))
            quiet = now - last < self.every
            self._last[cause] = (last, left_out + 1) if quiet else (now, 0)
        if not quiet:
            log.warning(sentence + (f" ({left_out} more like it)" if left_out else ""))
