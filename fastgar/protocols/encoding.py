"""How numbers travel: as float32, or as the bits of bfloat16, which are half as many bytes.

Nodes compute with float32. What they send is rounded once, before it is saved and sent, so that
all who hear it, and the sender itself, go on from the same numbers.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..dtypes import widened
from .pool import Pool

__all__ = ["BITS", "ROUNDING", "WIRES", "encoded", "land", "landing", "numbers"]

Vector = NDArray[Any]

WIRES = ("float32", "bfloat16")
ROUNDING = {"float32": 0.0, "bfloat16": 2.0**-8}  # relative to what was rounded, at most
BITS = np.dtype(np.uint16)  # of bfloat16, which numpy does not have
BLOCK = 1 << 17  # numbers: with fewer, it is calls that take time


def encoded(vector: Vector, dtype: str, pool: Pool | None = None) -> Vector:
    """Return a vector as it travels, itself if it does so already.

    Parameters
    ----------
    vector : array, shape (d,)
        Numbers, or the bits of bfloat16.
    dtype : {"float32", "bfloat16"}
    pool : Pool, optional
        Of vectors of d `BITS`, one of which is then the result.

    Returns
    -------
    array, shape (d,)
        float32, or as bits in uint16 the nearest bfloat16, of two the even one. NaN stays NaN;
        what is larger than all bfloat16 becomes infinite.

    Notes
    -----
    Torch rounds as fast as memory is read, and needs no memory but the result's, which takes
    longer to get anew than to fill.
    """
    if dtype == "float32":
        return np.asarray(vector, np.float32)
    if vector.dtype == BITS:
        return vector
    import torch  # whose import takes seconds, which who only reads a cluster file need not wait

    vector = np.require(vector, np.float32, ("C", "W"))
    bits: Vector = np.empty(len(vector), BITS) if pool is None else pool.take()
    torch.from_numpy(bits.view(np.int16)).view(torch.bfloat16).copy_(torch.from_numpy(vector))
    return bits


def numbers(vector: Vector) -> Vector:
    """Return the numbers of a vector that travels: float32, itself if it is."""
    return widened(vector, "bfloat16") if vector.dtype == BITS else vector


def landing(vector: Vector) -> Vector:
    """Return the second half of a float32 vector's memory, where bits of bfloat16 may arrive."""
    return vector.view(BITS)[len(vector) :]


def land(vector: Vector) -> None:
    """Make numbers of the bits that are in the second half of a vector, in place.

    From the front on, and never further than to where what is still to be read begins: so it takes
    no memory. By NumPy, as it runs in threads of which each would have Torch start more.
    """
    wide, bits, done = vector.view(np.uint32), landing(vector), 0
    while done < len(wide):
        until = min(max((len(wide) + done) // 2, done + 1), done + BLOCK)
        np.left_shift(bits[done:until], 16, out=wide[done:until], dtype=np.uint32)
        done = until
