"""Sums over the columns that a rank sees, where ranks beside it have copies of some."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastgar.arrays import Table, table

from .exchange import Slab

__all__ = ["Sums", "total"]

Array = NDArray[np.float64]


class Sums:
    """What a rule reads of columns: of those of this rank alone, and of those with copies."""

    def __init__(self) -> None:
        self.own: Array | None = None
        self.copied: Array | None = None

    def add(self, slab: Slab, read: Callable[[Table, Any, Array | None], Array | None]) -> None:
        """Add what is read of a slab; `read` gets the sum over the columns before."""
        if not slab.copies:
            self.own = read(slab.table, slab.refs, self.own)
            return
        for begin, end, copied in _ranges(slab):
            part = table([row[begin:end] for row in slab.rows])  # the refs are no tensors here
            if copied:
                self.copied = read(part, slab.refs, self.copied)
            else:
                self.own = read(part, slab.refs, self.own)

    def value(self, copies: int) -> Array:
        """Return the sum, in which each of so many copies counts for its share."""
        found = [self.own, None if self.copied is None else self.copied / copies]
        return total(np.stack([each for each in found if each is not None]))


def _ranges(slab: Slab) -> Iterator[tuple[int, int, bool]]:
    """Return ranges that make up a slab, and whether they are copies."""
    done, last = 0, slab.width
    for each in slab.copies:
        begin, end = (min(max(place - slab.begin, 0), last) for place in each)
        if begin < end:
            if done < begin:
                yield done, begin, False
            yield begin, end, True
            done = end
    if done < last or not last:
        yield done, last, False


def total(everyone: Array) -> Array:
    """Return the sum of what ranks have, in their order."""
    found: Array = everyone[0].copy()
    for other in everyone[1:]:
        found += other
    return found
