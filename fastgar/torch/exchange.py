"""Who sees which columns of which rank's vector: the two modes of a robust collective.

*sharded*: rank r receives the r-th range of columns from every rank, aggregates it for all, and all
gather the results: about 2 d numbers sent and received per rank, whatever n. The ranks are trusted
to aggregate; it is their gradients that may be corrupt.

*replicated*: every rank receives everything and aggregates for itself: n d numbers. No rank's word
is taken for another's columns.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import torch
import torch.distributed as dist
from torch import Tensor

from fastgar.arrays import Table, table
from fastgar.errors import unknown

from .group import Peers

__all__ = ["MODES", "Exchange", "Memory", "Scattered", "Slab", "exchange_of"]


class Memory:
    """Buffers that are used again in the next step: fresh memory costs more than a read of it."""

    def __init__(self) -> None:
        self.free: dict[tuple[Any, ...], list[Tensor]] = {}
        self.taken: set[tuple[Any, ...]] = set()

    def tidy(self) -> None:
        """Drop what the last step did not need (DDP cuts its buckets anew after the first)."""
        self.free = {key: self.free[key] for key in self.free if key in self.taken}
        self.taken.clear()

    def take(self, count: int, like: Tensor) -> Tensor:
        """Return memory for so many numbers."""
        key = (count, like.dtype, like.device)
        self.taken.add(key)
        found = self.free.get(key)
        return found.pop() if found else like.new_empty(count)

    def give(self, buffer: Tensor) -> None:
        """Take back what `take` gave, once nobody reads it any more."""
        self.free.setdefault((len(buffer), buffer.dtype, buffer.device), []).append(buffer)


@dataclass
class Slab:
    """A range of columns of a vector as all ranks have it, and then its aggregate.

    Attributes
    ----------
    vector : tensor
        Of this rank: a part of its gradient.
    begin, offset : int
        Where the range begins in the vector, and the vector in the whole gradient.
    buffer : tensor
        Memory for the rows, and then for the aggregate of the vector.
    width : int
        Columns in the range.
    points : tuple
        The same columns of what the rule refers to.
    """

    vector: Tensor
    begin: int
    offset: int
    buffer: Tensor
    width: int
    n: int
    arriving: dist.Work | None = None
    points: tuple[Any, ...] = ()
    result: Tensor | None = None
    gathering: dist.Work | None = None

    @property
    def rows(self) -> Tensor:
        """The rows, (n, width)."""
        return self.buffer[: self.n * self.width].view(self.n, self.width)

    @property
    def table(self) -> Table:
        """The rows, as the rules take them."""
        return table(self.rows)


class Exchange(Protocol):
    """How columns get to those who aggregate them, and aggregates to everybody."""

    shared: bool  # whether ranks see different columns and must add up what they know

    def send(self, vector: Tensor, offset: int, memory: Memory) -> Slab:
        """Begin to send the vector of this rank."""

    def gather(self, slab: Slab, own: Tensor, into: Tensor | None) -> None:
        """Begin to make the aggregate of the whole vector from the ranks' ranges of it."""


class Sharded:
    """Each rank aggregates its range of columns for all."""

    shared = True

    def __init__(self, peers: Peers) -> None:
        self.peers = peers

    def send(self, vector: Tensor, offset: int, memory: Memory) -> Slab:
        n, rank, d = self.peers.n, self.peers.rank, len(vector)
        range_ = -(-d // n)
        widths = [min(range_, max(0, d - r * range_)) for r in range(n)]
        buffer = memory.take(n * range_, vector)
        slab = Slab(vector, min(d, rank * range_), offset, buffer, widths[rank], n)
        if d:
            out = slab.rows.view(-1)
            slab.arriving = self.peers.all_to_all(out, vector, [slab.width] * n, widths)
        return slab

    def gather(self, slab: Slab, own: Tensor, into: Tensor | None) -> None:
        d, range_ = len(slab.vector), len(slab.buffer) // slab.n
        if len(own) < range_:  # the last ranges may be shorter, and what is gathered may not
            own = torch.cat([own, own.new_zeros(range_ - len(own))])
        # The rows have been read for the last time: the aggregate may take their place.
        everyone = slab.buffer if into is None or len(slab.buffer) > d else into
        if d:
            slab.gathering = self.peers.all_gather(everyone, own)
        slab.result = everyone[:d]


class Scattered(Sharded):
    """As sharded, but each rank keeps the aggregate of its columns: a reduce-scatter."""

    def gather(self, slab: Slab, own: Tensor, into: Tensor | None) -> None:
        slab.result = own


class Replicated:
    """Each rank aggregates everything for itself."""

    shared = False

    def __init__(self, peers: Peers) -> None:
        self.peers = peers

    def send(self, vector: Tensor, offset: int, memory: Memory) -> Slab:
        n, d = self.peers.n, len(vector)
        slab = Slab(vector, 0, offset, memory.take(n * d, vector), d, n)
        if d:
            slab.arriving = self.peers.all_gather(slab.buffer, vector)
        return slab

    def gather(self, slab: Slab, own: Tensor, into: Tensor | None) -> None:
        slab.result = own


MODES: dict[str, Callable[[Peers], Exchange]] = {"sharded": Sharded, "replicated": Replicated}


def exchange_of(mode: str, peers: Peers) -> Exchange:
    """Return the way of exchange of this name."""
    if mode not in MODES:
        raise unknown("mode", mode, MODES)
    return MODES[mode](peers)
