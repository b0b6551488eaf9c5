"""Which tensors count as being on the host, where all are in the same memory.

A mark on the storage says so: views have it too. `Watch` sets it where a watched file makes a
tensor as one on the host is made. What has no mark is on the device.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor

__all__ = ["Span", "is_host", "mark_host", "of_same_memory", "overlap", "span", "tensors_in"]

PLAIN = (Tensor, torch.nn.Parameter)
Span = tuple[int, int]  # addresses


def tensors_in(values: Iterable[Any]) -> Iterator[Tensor]:
    """Yield the plain tensors among arguments, and in lists and tuples of them."""
    for value in values:
        if type(value) in PLAIN:
            yield value
        elif type(value) in (list, tuple):
            yield from tensors_in(value)


def _storage(tensor: Tensor) -> Any:
    try:
        return tensor.untyped_storage()
    except (RuntimeError, NotImplementedError):  # sparse, and others without one
        return None


def is_host(tensor: Tensor) -> bool:
    """Say whether a tensor counts as being on the host."""
    return hasattr(_storage(tensor), "on_host")


def mark_host(tensor: Tensor) -> Tensor:
    """Let a tensor, and all that share its memory, count as being on the host."""
    storage = _storage(tensor)
    if storage is not None:
        storage.on_host = True
    return tensor


def of_same_memory(a: Tensor, b: Tensor) -> bool:
    """Say whether two tensors are views of the same memory."""
    first, second = _storage(a), _storage(b)
    return first is not None and second is not None and first._cdata == second._cdata


def span(tensor: Tensor) -> Span:
    """Return the addresses between which a tensor lies."""
    if tensor.layout != torch.strided or tensor.is_meta or not tensor.numel():
        return 0, 0
    try:
        begin = tensor.data_ptr()
    except RuntimeError:  # of a transform, or of a tensor that is traced
        return 0, 0
    reach = sum((size - 1) * step for size, step in zip(tensor.shape, tensor.stride(), strict=True))
    return begin, begin + (reach + 1) * tensor.element_size()


def overlap(a: Span, b: Span) -> bool:
    """Say whether two ranges of addresses have one in common."""
    return a[0] < b[1] and b[0] < a[1]
