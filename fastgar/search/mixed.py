"""Distances of a few mixed rows, as algebra on the distances of the rows."""

from __future__ import annotations

from typing import Any

from fastgar.cpu.compile import Tiered, step

__all__ = ["MIXED", "ROWS", "mixed_distances"]

ROWS = 32  # above this NumPy is quicker, here and where rows are chosen


@step
def mixed_distances(W: Any, D: Any, found: Any, room: Any) -> None:
    """Write the squared distances of the rows of W X, where each row of W sums to 1.

    That is -q'Dq/2 with q the difference of two rows of W, and a matter of q alone: equal rows are
    exactly 0 apart, and two pairs that differ in the same way are equally far apart: mixing makes
    many such ties. `room` is for two rows of W.
    """
    apart, rows = room[0], room[1]
    for i in range(len(W)):
        found[i, i] = 0.0
        for j in range(i + 1, len(W)):
            count = 0
            for k in range(W.shape[1]):
                share = W[i, k] - W[j, k]
                if share != 0.0:
                    apart[count], rows[count] = share, k
                    count += 1
            squared = 0.0
            for a in range(1, count):
                row, near = int(rows[a]), 0.0
                for b in range(a):
                    near += apart[b] * D[row, int(rows[b])]
                squared -= apart[a] * near
            found[i, j] = found[j, i] = squared if squared > 0.0 else 0.0


MIXED = Tiered(mixed_distances, 0.0, 0.01)
