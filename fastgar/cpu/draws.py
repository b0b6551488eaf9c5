"""Random numbers of nothing but a key and a position: kernels draw them as NumPy does."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

__all__ = ["hash64"]


def hash64(key: int, index: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Return random 64-bit numbers that depend on nothing but the key and the index."""
    z = np.uint64(key) + index * np.uint64(0x94D049BB133111EB)
    for _ in range(2):  # two rounds of splitmix64's finaliser
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        z = z ^ (z >> np.uint64(31))
    return z
