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

import torch
import torch.distributed as dist
from torch import Tensor

from fastgar.arrays import Table, table
from fastgar.errors import require_name

from .group import Peers
from .memory import Memory, fresh
from .window import Window, open_window

__all__ = ["MODES", "Exchange", "Slab", "exchange_of"]

MODES = ("sharded", "replicated")


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
    passed : dict
        The same columns of what the caller passed for the rule to refer to.
    refs : tuple
        What the rule refers to, as it takes that, once the rows are there.
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
    passed: dict[str, Tensor] = field(default_factory=dict)
    refs: tuple[Any, ...] = ()
    result: Tensor | None = None

    @property
    def table(self) -> Table:
        """The rows, as the rules take them."""
        return table(self.rows)


class Exchange(Protocol):
    """How columns get to those who aggregate them, and aggregates to everybody."""

    shared: bool  # whether ranks see different columns and must add up what they know
    late: bool  # whether vectors that were offered need nothing more than that all are there
    memory: Memory

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

    shared, late = True, False

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

    A rank's part of a window holds its vector and, at the end, the aggregate of its range. That is
    written again when all others have said that they are through with it: they do so in the next
    exchange. They may still read it while this rank puts its next vector there, which is of another
    length perhaps; but what is longer leaves more room at the end.
    """

    late = True

    def offer(self, vector: Tensor) -> Window | None:
        window = self.memory.window(self._size(vector))
        if window is not None:
            self._vector(window, self.peers.rank, vector).copy_(vector)
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
        parts = [self._vector(window, r, vector) for r in range(self.peers.n)]
        rows = [part[begin : begin + width] for part in parts]
        slab = Slab(vector, begin, offset, width, rows, window, into)
        if offered is None:
            parts[rank].copy_(vector)
            slab.arriving = [self.peers.meet()]
        return slab

    def gather(self, slab: Slab, own: Tensor) -> None:
        if not isinstance(slab.lent, Window):
            super().gather(slab, own)
            return
        if self.whole:
            self._aggregate(slab.lent, self.peers.rank, slab.vector).copy_(own)
        slab.result = own
        slab.gathering = [self.peers.meet()]

    def collect(self, slab: Slab) -> Tensor:
        window, d = slab.lent, len(slab.vector)
        if isinstance(window, Window) and self.whole:
            slab.result = fresh(d, slab.vector) if slab.into is None else slab.into
            for rank, piece in enumerate(torch.split(slab.result, self.widths(d))):
                piece.copy_(self._aggregate(window, rank, slab.vector))
        return super().collect(slab)

    def _size(self, vector: Tensor) -> int:
        return _whole(vector.nbytes) + self._room(vector)

    def _room(self, vector: Tensor) -> int:
        """Return how many bytes there are for an aggregate: not fewer for a longer vector."""
        return _whole(max(1, self.widths(len(vector))[0]) * vector.element_size())

    def _vector(self, window: Window, rank: int, like: Tensor) -> Tensor:
        """Return where a rank has its vector."""
        return window.parts[rank][: like.nbytes].view(like.dtype)

    def _aggregate(self, window: Window, rank: int, like: Tensor) -> Tensor:
        """Return where a rank has the aggregate of its range."""
        size = self.widths(len(like))[rank] * like.element_size()
        return window.parts[rank][window.size - self._room(like) :][:size].view(like.dtype)


def _whole(size: int) -> int:
    """Return a number of bytes rounded up, so that numbers of any dtype may follow."""
    return -(-size // 8) * 8


class Replicated:
    """Every rank receives everything."""

    shared, late = False, False

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


def exchange_of(
    mode: str, peers: Peers, memory: Memory, device: torch.device, whole: bool = True
) -> Exchange:
    """Return the way of exchange of this mode."""
    require_name("mode", mode, MODES)
    if mode == "replicated":
        return Replicated(peers, memory)
    local = peers.on_one_machine and device.type == "cpu"
    return (Local if local else Sharded)(peers, memory, whole)
