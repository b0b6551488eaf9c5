"""Buffers that are used again in the next step: fresh memory costs more than a read of it."""

from __future__ import annotations

from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from ..libraries import library_of
from .group import Peers
from .window import Window

__all__ = ["Memory", "fresh", "memory_of"]


class Memory:
    """The buffers of a group, or of a model."""

    def __init__(self) -> None:
        self.free: dict[Any, list[Tensor | Window]] = {}
        self.taken: set[int] = set()

    def tidy(self) -> None:
        """Drop what the last step did not need (DDP cuts its buckets anew after the first)."""
        for kind, free in self.free.items():
            self.free[kind] = [each for each in free if id(each) in self.taken]
        self.taken.clear()

    def buffer(self, count: int, like: Tensor) -> Tensor:
        """Return memory for so many numbers."""
        size = count * like.element_size()
        found = self._take(like.device, size)
        return fresh(size, like.new_empty(0, dtype=torch.uint8)) if found is None else found

    def window(self, size: int) -> Window | None:
        """Return a window of at least that size, the same on every rank, if there is one."""
        found: Window | None = self._take("window", size)
        return found

    def forget_windows(self) -> None:
        """Keep none. Ranks must all have the same: those that did not ask alike may not."""
        self.free.pop("window", None)

    def _take(self, kind: Any, size: int) -> Any:
        free = self.free.setdefault(kind, [])
        fitting = [each for each in free if size <= _size(each) <= 2 * size]
        if not fitting:  # a new one will be there for what these were for
            self.free[kind] = [each for each in free if not size < 2 * _size(each) < 2 * size]
            return None
        found = min(fitting, key=_size)
        self.free[kind] = [each for each in free if each is not found]
        return found

    def give(self, used: Tensor | Window) -> None:
        """Take back what nobody reads any more."""
        self.taken.add(id(used))
        kind = "window" if isinstance(used, Window) else used.device
        self.free.setdefault(kind, []).append(used)


def _size(lent: Tensor | Window) -> int:
    """Return how many bytes there are."""
    return lent.size if isinstance(lent, Window) else len(lent)


def fresh(count: int, like: Tensor) -> Tensor:
    """Return new memory for so many numbers, in huge pages: 16 MB cost 2 ms to touch, not 11."""
    library = library_of(like)
    assert library is not None
    made: Tensor = library.make(like, (count,))[1]
    return made


_kept: WeakKeyDictionary[Peers, Memory] = WeakKeyDictionary()


def memory_of(peers: Peers) -> Memory:
    """Return the buffers that a group keeps from call to call."""
    return _kept.setdefault(peers, Memory())
