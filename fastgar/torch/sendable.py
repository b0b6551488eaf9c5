"""What ranks can send each other: plain tensors with their numbers in memory."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import torch
from torch import Tensor

from fastgar.arrays import table

__all__ = ["is_finite", "require_memory", "require_sendable"]

PLAIN = (Tensor, torch.nn.Parameter)


def require_sendable(part: Any, devices: Collection[str]) -> None:
    """Raise if this is no tensor that a backend for such devices sends, and rules aggregate."""
    require_memory(part, devices)
    table([part])  # whose errors say what can be read


def require_memory(part: Any, devices: Collection[str]) -> None:
    """Raise if this is no plain tensor with its numbers in memory, on one of these devices."""
    if not isinstance(part, Tensor):
        raise TypeError(f"tensors are needed, got a {type(part).__name__} among them")
    if type(part) not in PLAIN:
        raise TypeError(
            f"plain tensors are needed, got a {type(part).__name__}: pass the tensor in it, such "
            "as that of DTensor.to_local()"
        )
    if part.layout != torch.strided or part.is_quantized or part.is_meta or part.is_neg():
        kind = "quantised" if part.is_quantized else str(part.layout).removeprefix("torch.")
        raise TypeError(
            f"tensors with their numbers in memory are needed, got one on {part.device} "
            f"({kind}{', negated' if part.is_neg() else ''}): pass a dense copy"
        )
    if part.device.type not in devices:
        raise TypeError(
            f"the backend of this process group sends tensors on {' or '.join(sorted(devices))}, "
            f"got one on {part.device}"
        )


def is_finite(vector: Tensor) -> bool:
    """Return whether a vector holds neither NaN nor infinity, in one read and no memory."""
    if not vector.numel():
        return True
    wide = torch.float64 if vector.dtype == torch.float64 else torch.float32
    if bool(torch.isfinite(vector.sum(dtype=wide))):  # half the time of what follows
        return True
    return all(bool(torch.isfinite(extreme)) for extreme in torch.aminmax(vector))
