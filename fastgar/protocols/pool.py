"""Vectors whose memory is used again: to touch new memory takes longer than to write into it."""

from __future__ import annotations

import sys
import threading
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["Pool"]

Vector = NDArray[Any]


class Pool:
    """Vectors that are there already, so that a message needs no new memory.

    Parameters
    ----------
    d : int
    dtype
    """

    def __init__(self, d: int, dtype: Any = np.float32) -> None:
        self.d, self.dtype = d, dtype
        self.vectors: list[Vector] = []
        self._lock = threading.Lock()

    def take(self) -> Vector:
        """Return a vector that nobody else refers to, or a new one if there is none."""
        with self._lock:
            for _ in range(len(self.vectors)):
                vector = self.vectors.pop(0)
                self.vectors.append(vector)
                if sys.getrefcount(vector) <= 3:  # the list, this name, and the question itself
                    return vector
            vector = np.empty(self.d, self.dtype)
            self.vectors.append(vector)
            return vector
