"""The four dtypes that rows may have: their sizes, and what is computed in what."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["CODES", "DTYPES", "ITEMSIZE", "LARGEST", "computing", "stored", "widened"]

DTYPES = ("float16", "bfloat16", "float32", "float64")
CODES = {name: code for code, name in enumerate(DTYPES)}  # what kernels call them
ITEMSIZE = {"float16": 2, "bfloat16": 2, "float32": 4, "float64": 8}
LARGEST = {
    "float16": 65504.0,
    "bfloat16": float(np.float32(2.0**128 - 2.0**120)),
    "float32": float(np.finfo(np.float32).max),
    "float64": float(np.finfo(np.float64).max),
}


def computing(dtype: str) -> str:
    """Return the dtype in which columns of `dtype` are computed."""
    return "float64" if dtype == "float64" else "float32"


def stored(dtype: str) -> np.dtype[Any]:
    """Return NumPy's dtype for numbers in memory: it has no bfloat16, so its bits are integers."""
    return np.dtype(np.uint16 if dtype == "bfloat16" else dtype)


def widened(values: NDArray[Any], dtype: str) -> NDArray[Any]:
    """Return what is `stored` as numbers: the bits of bfloat16 as float32, others as they are."""
    if dtype != "bfloat16":
        return values
    wide = values.astype(np.uint32)
    wide <<= 16
    return wide.view(np.float32)
