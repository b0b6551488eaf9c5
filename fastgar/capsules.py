"""What a DLPack capsule says of an array, checked: its producer may be wrong.

NumPy's own reader has no bfloat16, and believes what it reads.
"""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Sequence
from math import prod
from typing import Any

__all__ = ["read", "steps"]

VERSION = 1  # of DLPack's layout, the major one
MOST_DIMENSIONS = 64  # as in NumPy


class _DLTensor(ctypes.Structure):
    _fields_ = [
        ("data", ctypes.c_void_p),
        ("device_type", ctypes.c_int32),
        ("device_id", ctypes.c_int32),
        ("ndim", ctypes.c_int32),
        ("code", ctypes.c_uint8),
        ("bits", ctypes.c_uint8),
        ("lanes", ctypes.c_uint16),
        ("shape", ctypes.POINTER(ctypes.c_int64)),
        ("strides", ctypes.POINTER(ctypes.c_int64)),
        ("byte_offset", ctypes.c_uint64),
    ]


_capsule_name = ctypes.PYFUNCTYPE(ctypes.c_char_p, ctypes.py_object)(
    ("PyCapsule_GetName", ctypes.pythonapi)
)
_capsule_pointer = ctypes.PYFUNCTYPE(ctypes.c_void_p, ctypes.py_object, ctypes.c_char_p)(
    ("PyCapsule_GetPointer", ctypes.pythonapi)
)

_DLPACK_CODES = {0: "int", 1: "uint", 2: "float", 4: "bfloat", 5: "complex", 6: "bool"}
_DEFAULT_STREAM = 1  # as DLPack numbers it


def _capsule(x: Any, library: str) -> Any:
    """Return the capsule of an array, the numbers in which are ready for CUDA's default stream."""
    on_gpu = hasattr(x, "__dlpack_device__") and int(x.__dlpack_device__()[0]) == 2
    stream = {"stream": _DEFAULT_STREAM} if on_gpu else {}
    try:
        try:
            return x.__dlpack__(max_version=(1, 0), **stream)
        except TypeError:  # older than DLPack 1.0
            return x.__dlpack__(**stream)
    except (BufferError, RuntimeError) as error:
        raise TypeError(f"{library} does not hand its array out: {error}") from error


Found = tuple[Any, int, tuple[int, ...], tuple[int, ...] | None, int, str, str]


def read(x: Any, library: str) -> Found:
    """Return the capsule of an array, its address, shape, strides, their unit, dtype and device.

    Raises
    ------
    TypeError
        If the library hands out none, or none that can be true. (Whether the memory is as large as
        the capsule says, nobody but the producer knows.)
    """
    capsule = _capsule(x, library)
    tensor = _DLTensor.from_address(_tensor_in(capsule, library))
    if tensor.device_type == 2 and tensor.device_id >= 0:
        device = f"cuda:{tensor.device_id}"
    elif tensor.device_type in (1, 3):  # 3: page-locked CPU memory
        device = "cpu"
    else:
        raise TypeError(f"{library} arrays are read on the CPU: move it there first")
    dtype = f"{_DLPACK_CODES.get(tensor.code, 'other')}{tensor.bits}"
    dtype = "bool" if dtype == "bool8" else dtype
    if tensor.lanes != 1:
        dtype += f"x{tensor.lanes}"
    fault = _fault(tensor)
    if fault is not None:
        raise TypeError(f"{library} hands out what is no array in memory: {fault}")
    shape = tuple(tensor.shape[: tensor.ndim]) if tensor.ndim else ()
    strides = tuple(tensor.strides[: tensor.ndim]) if tensor.ndim and tensor.strides else None
    address = (tensor.data or 0) + tensor.byte_offset
    return capsule, address, shape, strides, tensor.bits // 8, dtype, device


def _tensor_in(capsule: Any, library: str) -> int:
    """Return where the tensor in a capsule is."""
    try:
        name = _capsule_name(capsule)
    except ValueError:  # no capsule at all
        name = b""
    if name in (b"dltensor", b"dltensor_versioned"):  # and not used_dltensor
        start: int = _capsule_pointer(capsule, name)
        if name == b"dltensor":
            return start
        if ctypes.c_uint32.from_address(start).value == VERSION:
            return start + 32  # after version, context, deleter and flags
    raise TypeError(f"{library} hands out no DLPack capsule that can be read, but {capsule!r}")


def _fault(tensor: _DLTensor) -> str | None:
    """Return None, or why no array can lie in memory as a capsule says."""
    n = tensor.ndim
    if not 0 <= n <= MOST_DIMENSIONS:
        return f"it has {n} dimensions"
    if n and not tensor.shape:
        return f"it has {n} dimensions and no shape"
    shape = tensor.shape[:n] if n else []
    if any(length < 0 for length in shape):
        return f"its shape is {tuple(shape)}"
    count = prod(shape)
    if count == 0:
        return None
    if not tensor.data:
        return f"it has {count} numbers and no memory"
    size = -(-tensor.bits // 8)
    address = tensor.data + tensor.byte_offset
    low, high = steps(shape, tensor.strides[:n]) if n and tensor.strides else (0, count - 1)
    if address + low * size <= 0 or max(count * size, address + (high + 1) * size) > sys.maxsize:
        return f"shape {tuple(shape)}, strides and offset lead beyond all memory"
    return None


def steps(shape: Sequence[int], strides: Sequence[int]) -> tuple[int, int]:
    """Return the least and the greatest distance of a number from the first, in units."""
    steps = [(length - 1) * stride for length, stride in zip(shape, strides, strict=True)]
    return sum(step for step in steps if step < 0), sum(step for step in steps if step > 0)
