"""Who sees which columns of which rank's vector: the modes of a robust collective.

*sharded*: rank r receives the r-th range of columns from every rank, aggregates it for all, and all
gather the results: about 2 d numbers sent and received per rank, whatever n. The ranks are trusted
to aggregate; it is their gradients that may be corrupt. Ranks on one machine read each other's
numbers where they lie, in shared memory.

*replicated*: every rank receives everything and aggregates for itself: n d numbers. No rank's word
is taken for another's columns, and none forwards another's numbers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol
from weakref import WeakKeyDictionary

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from fastgar.arrays import Table, table
from fastgar.errors import unknown

from .group import Peers
from .window import Window, open_window

__all__ = ["MODES", "Exchange", "Memory", "Slab", "exchange_of", "fresh", "memory_of"]

MODES = ("sharded", "replicated")
HUGE = 4 << 20  # bytes from which on NumPy asks for huge pages


class Memory:
    """Buffers that are used again in the next step: fresh memory costs more than a read of it."""

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
    size = count * like.element_size()
    if like.is_cuda or size < HUGE:
        return like.new_empty(count)
    return torch.from_numpy(np.empty(size, np.uint8)).view(like.dtype)


@dataclass
class Slab:
    """A range of columns of a vector as all ranks have it, and then its aggregate.

    Attributes
    ----------
    vector : tensor
        Of this rank: a part of its gradient.
    begin, offset : int
        Where the range begins in the vector, and the vector in the whole gradient.
    width : int
        Columns in the range.
    rows : sequence of n tensors
        The range of each rank's vector.
    lent : Tensor or Window
        The memory in which the rows are.
    into : tensor, optional
        Where the aggregate of the vector goes.
    refs : tuple
        The same columns of what the rule refers to.
    """

    vector: Tensor
    begin: int
    offset: int
    width: int
    rows: Sequence[Tensor]
    lent: Tensor | Window
    into: Tensor | None
    arriving: list[dist.Work] = field(default_factory=list)
    gathering: list[dist.Work] = field(default_factory=list)
    refs: tuple[Any, ...] = ()
    result: Tensor | None = None

    @property
    def table(self) -> Table:
        """The rows, as the rules take them."""
        return table(self.rows)


class Exchange(Protocol):
    """How columns get to those who aggregate them, and aggregates to everybody."""

    shared: bool  # whether ranks see different columns and must add up what they know

    def offer(self, vector: Tensor) -> Window | None:
        """Make a vector ready for others before they are known to be ready, if that can be."""

    def send(
        self, vector: Tensor, offset: int, into: Tensor | None, offered: Window | None
    ) -> Slab:
        """Begin to send the vector of this rank."""

    def gather(self, slab: Slab, own: Tensor) -> None:
        """Begin to make the aggregate of the whole vector from the ranks' ranges of it."""

    def collect(self, slab: Slab) -> Tensor:
        """Return that aggregate, once everything has arrived."""

    def release(self, slab: Slab) -> None:
        """Take back the memory of the rows, which nobody reads any more."""


class Sharded:
    """Each rank aggregates its range of columns for all.

    `whole` is False where each rank keeps the aggregate of its columns: a reduce-scatter.
    """

    shared = True

    def __init__(self, peers: Peers, memory: Memory, whole: bool = True) -> None:
        self.peers, self.memory, self.whole = peers, memory, whole

    def widths(self, d: int) -> list[int]:
        """Return how many of d columns each rank aggregates."""
        width = -(-d // self.peers.n)
        return [min(width, max(0, d - rank * width)) for rank in range(self.peers.n)]

    def offer(self, vector: Tensor) -> Window | None:
        return None

    def send(
        self, vector: Tensor, offset: int, into: Tensor | None, offered: Window | None
    ) -> Slab:
        n, rank, widths = self.peers.n, self.peers.rank, self.widths(len(vector))
        width = widths[rank]
        buffer = self.memory.buffer(n * width, vector)
        rows = buffer[: n * width * vector.element_size()].view(vector.dtype)
        views = rows.view(n, width).unbind()
        slab = Slab(vector, sum(widths[:rank]), offset, width, views, buffer, into)
        if len(vector):
            slab.arriving = [self.peers.all_to_all(rows, vector, [width] * n, widths)]
        return slab

    def gather(self, slab: Slab, own: Tensor) -> None:
        if not self.whole:
            slab.result = own
            return
        result = fresh(len(slab.vector), slab.vector) if slab.into is None else slab.into
        pieces = torch.split(result, self.widths(len(result)))
        pieces[self.peers.rank].copy_(own)
        slab.gathering = self.peers.gather_pieces(pieces)
        slab.result = result

    def collect(self, slab: Slab) -> Tensor:
        self.release(slab)
        assert slab.result is not None
        return slab.result

    def release(self, slab: Slab) -> None:
        self.memory.give(slab.lent)


class Local(Sharded):
    """Sharded, among ranks that have memory in common.

    A rank's part of a window holds its vector, and then the aggregate of its range. It is written
    again when all others have said that they are through with it: they do so in the next exchange.
    """

    def offer(self, vector: Tensor) -> Window | None:
        window = self.memory.window(self._size(vector))
        if window is not None:
            self._part(window, self.peers.rank, vector)[: len(vector)].copy_(vector)
        return window

    def send(
        self, vector: Tensor, offset: int, into: Tensor | None, offered: Window | None
    ) -> Slab:
        window = offered or self.memory.window(self._size(vector))
        window = window or open_window(self.peers, self._size(vector))
        if window is None:
            return super().send(vector, offset, into, None)
        rank, widths = self.peers.rank, self.widths(len(vector))
        begin, width = sum(widths[:rank]), widths[rank]
        parts = [self._part(window, r, vector) for r in range(self.peers.n)]
        rows = [part[begin : begin + width] for part in parts]
        slab = Slab(vector, begin, offset, width, rows, window, into)
        if offered is None:
            parts[rank][: len(vector)].copy_(vector)
            slab.arriving = [self.peers.meet()]
        return slab

    def gather(self, slab: Slab, own: Tensor) -> None:
        if not isinstance(slab.lent, Window):
            super().gather(slab, own)
            return
        if self.whole:
            mine = self._part(slab.lent, self.peers.rank, slab.vector)
            mine[len(slab.vector) :][: len(own)].copy_(own)
        slab.result = own
        slab.gathering = [self.peers.meet()]

    def collect(self, slab: Slab) -> Tensor:
        window, d = slab.lent, len(slab.vector)
        if isinstance(window, Window) and self.whole:
            slab.result = fresh(d, slab.vector) if slab.into is None else slab.into
            for rank, piece in enumerate(torch.split(slab.result, self.widths(d))):
                piece.copy_(self._part(window, rank, slab.vector)[d : d + len(piece)])
        return super().collect(slab)

    def _size(self, vector: Tensor) -> int:
        return (len(vector) + max(1, self.widths(len(vector))[0])) * vector.element_size()

    def _part(self, window: Window, rank: int, like: Tensor) -> Tensor:
        """Return a rank's part of the window, as numbers of that dtype."""
        return window.parts[rank][: self._size(like)].view(like.dtype)


class Replicated:
    """Every rank receives everything."""

    shared = False

    def __init__(self, peers: Peers, memory: Memory) -> None:
        self.peers, self.memory = peers, memory

    def offer(self, vector: Tensor) -> Window | None:
        return None

    def send(
        self, vector: Tensor, offset: int, into: Tensor | None, offered: Window | None
    ) -> Slab:
        n, d = self.peers.n, len(vector)
        buffer = self.memory.buffer(n * d, vector)
        rows = buffer[: n * d * vector.element_size()].view(vector.dtype).view(n, d).unbind()
        slab = Slab(vector, 0, offset, d, rows, buffer, into)
        if d:
            slab.arriving = self.peers.send_to_all(rows, vector)
        return slab

    def gather(self, slab: Slab, own: Tensor) -> None:
        slab.result = own if slab.into is None else slab.into.copy_(own)

    def collect(self, slab: Slab) -> Tensor:
        self.release(slab)
        assert slab.result is not None
        return slab.result

    def release(self, slab: Slab) -> None:
        self.memory.give(slab.lent)


_kept: WeakKeyDictionary[Peers, Memory] = WeakKeyDictionary()


def memory_of(peers: Peers) -> Memory:
    """Return the buffers that a group keeps from call to call."""
    return _kept.setdefault(peers, Memory())


def exchange_of(
    mode: str, peers: Peers, memory: Memory, device: torch.device, whole: bool = True
) -> Exchange:
    """Return the way of exchange of this mode."""
    if mode not in MODES:
        raise unknown("mode", mode, MODES)
    if mode == "replicated":
        return Replicated(peers, memory)
    local = peers.on_one_machine and device.type == "cpu"
    return (Local if local else Sharded)(peers, memory, whole)
