"""Rows of any array library, through its operators and the few names that libraries do not share.

numpy, jax and whoever follows the array API have a namespace; torch has methods instead.
"""

from __future__ import annotations

import math
from typing import Any

from ..dtypes import LARGEST
from ..libraries import library_of

__all__ = [
    "as_matrix", "cast", "copy", "dtype_name", "extremes", "length", "like", "moments",
    "narrow", "sign", "widen",
]  # fmt: skip

BLOCK = 1 << 19  # numbers of a block of columns: 2 MB in float32, which stays in the cache


def dtype_name(x: Any) -> str:
    """Return "float32" for what numpy, torch and jax call so."""
    dtype = x.dtype
    return str(getattr(dtype, "name", None) or str(dtype).rpartition(".")[2])


def as_matrix(attack: str, honest: Any) -> Any:
    """Return the honest rows as an (h, d) matrix, or raise an error that says what they must be."""
    if not hasattr(honest, "mean") or not hasattr(honest, "dtype"):
        raise TypeError(
            f"{attack}: the honest rows are a {type(honest).__name__}, not an array: pass one "
            "numpy, torch or jax array of shape (h, ...), such as np.stack(rows)"
        )
    name, shape = dtype_name(honest), tuple(honest.shape)
    if name not in LARGEST:
        raise TypeError(
            f"{attack}: the honest rows are {name}, but gradients are {', '.join(LARGEST)}: "
            "convert them first"
        )
    if not shape or shape[0] == 0:
        raise ValueError(f"{attack}: needs at least one honest row, got an array of shape {shape}")
    library = library_of(honest)
    if library is not None:
        library.view(honest)  # a TypeError where there is nothing to read
    if hasattr(honest, "detach"):
        honest = honest.detach()  # nobody trains through an attack
    return honest.reshape((shape[0], math.prod(shape[1:])))


def cast(x: Any, to: Any) -> Any:
    """Return `x` in the dtype of `to`."""
    if hasattr(x, "detach"):
        return x.detach().to(to.dtype)
    return x if x.dtype == to.dtype else x.astype(to.dtype)


def widen(x: Any) -> Any:
    """Return 16-bit numbers as float32, in which their squares neither overflow nor vanish."""
    if dtype_name(x) not in ("float16", "bfloat16"):
        return x
    return x.float() if hasattr(x, "float") else x.astype("float32")


def narrow(x: Any, to: Any) -> Any:
    """Return what was computed from widened rows in their own dtype; it does not overflow."""
    if dtype_name(to) == "float16" and x.dtype != to.dtype:
        limit = LARGEST["float16"]
        x = x.clamp(-limit, limit) if hasattr(x, "clamp") else x.clip(-limit, limit)
    return cast(x, to)


def like(x: Any, values: Any) -> Any:
    """Return numpy numbers as an array of the library, dtype and device of `x`."""
    if hasattr(x, "new_tensor"):
        return x.new_tensor(values)
    return x.__array_namespace__().asarray(values, dtype=x.dtype, device=x.device)


def copy(x: Any) -> Any:
    """Return a copy."""
    return x.clone() if hasattr(x, "clone") else x.copy()


def sign(x: Any) -> Any:
    """Return -1, 0 or 1 for every number."""
    return x.sign() if hasattr(x, "sign") else x.__array_namespace__().sign(x)


def extremes(rows: Any) -> tuple[Any, Any]:
    """Return the least and the largest value of every column."""
    if hasattr(rows, "amin"):  # torch's min(0) is a pair of values and indices
        return rows.amin(0), rows.amax(0)
    return rows.min(0), rows.max(0)


def length(x: Any) -> float:
    """Return the Euclidean norm of a vector."""
    return math.sqrt(float(x @ x))


def moments(rows: Any, ddof: int = 0) -> tuple[Any, Any]:
    """Return mean and standard deviation (over h - ddof) of every column of an (h, d) matrix.

    A block of columns at a time, so that no (h, d) differences go through memory: at h = 16 and
    d = 1e6 that halves numpy's time, and torch's own `std` takes fifteen times as long.
    """
    mean = rows.mean(0)
    h, d = rows.shape
    scale = h / (h - ddof)
    if not hasattr(rows, "__setitem__") or hasattr(rows, "at"):  # jax arrays never change
        return mean, (((rows - mean) ** 2).mean(0) * scale) ** 0.5
    deviation = mean * 0
    step = max(1, BLOCK // h)
    for begin in range(0, d, step):
        part = slice(begin, begin + step)
        off = rows[:, part] - mean[part]
        off *= off
        deviation[part] = off.mean(0) * scale
    deviation **= 0.5
    return mean, deviation
