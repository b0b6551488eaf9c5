"""Sets of rows as Python integers, and the search for a small vertex cover.

Row i is bit i of a set. A graph is a list with the set of neighbours of each row. A cover is a set
of rows that touches every edge; the rows outside it have no edge between them. One operation on an
integer handles all rows at once, and nothing needs to be compiled.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

__all__ = ["find_cover", "neighbours", "pack", "pack_all", "unpack"]

Flags = NDArray[np.bool_]
Graph = list[int]


def pack(flags: Flags) -> int:
    """Return the set of the rows whose flag is True."""
    return int.from_bytes(np.packbits(flags, bitorder="little").tobytes(), "little")


def pack_all(flags: Flags) -> Graph:
    """Return the set that each row of a matrix of flags stands for."""
    packed = np.packbits(flags, axis=1, bitorder="little")
    size, memory = packed.shape[1], packed.tobytes()
    return [int.from_bytes(memory[at : at + size], "little") for at in range(0, len(memory), size)]


def unpack(rows: int, n: int) -> Flags:
    """Return one flag per row: whether it is in the set."""
    memory = np.frombuffer(rows.to_bytes(-(-n // 8), "little"), np.uint8)
    return np.unpackbits(memory, count=n, bitorder="little").astype(bool)


def neighbours(graph: Graph, rows: int) -> int:
    """Return the rows with an edge to any of `rows`."""
    found = 0
    while rows:
        first = rows & -rows
        rows ^= first
        found |= graph[first.bit_length() - 1]
    return found


def _cliques(graph: Graph, undecided: int) -> int:
    """Return into how many cliques the undecided rows fall, taken greedily."""
    total = 0
    while undecided:
        total += 1
        clique = undecided  # the rows next to everyone in the clique so far
        while clique:
            first = clique & -clique
            undecided ^= first
            clique &= graph[first.bit_length() - 1]
    return total


def _reduce(
    graph: Graph, undecided: int, budget: int, look_limit: int
) -> tuple[int, int, int, int, int]:
    """Decide rows for as long as there is no real choice.

    Returns the rows still undecided, those that any cover must have, what is left of the budget
    (negative: there is no cover), the row to branch on (-1: no edge is left) and how often it
    looked at a row: with the limit reached, there may be a cover all the same.
    """
    covered, looks = 0, 0
    while budget >= 0 and looks < look_limit:
        looks += undecided.bit_count()
        changed, degrees, most, widest = False, [], 0, -1
        rest = undecided
        while rest:
            first = rest & -rest
            rest ^= first
            row = first.bit_length() - 1
            near = graph[row] & undecided
            degree = near.bit_count()
            if degree == 0:
                undecided ^= first
            elif degree > budget or degree == 1:
                # Out of the cover, the row would cost more neighbours than may go. Or it has one
                # only, and that covers this edge and perhaps more.
                taken = near if degree == 1 else first
                undecided &= ~taken
                rest &= ~taken
                covered |= taken
                budget -= 1
                changed = True
            else:
                degrees.append(degree)
                if degree > most:
                    most, widest = degree, row
        if changed:
            continue
        if not degrees:
            return undecided, covered, budget, -1, looks
        if most == 2:  # only cycles are left, and any row of a cycle is in some least cover
            undecided ^= 1 << widest
            covered |= 1 << widest
            budget -= 1
            continue
        # No cover reaches more edges than the rows of largest degree (the sum counts each twice).
        # And of each clique a cover leaves out one row at most.
        degrees.sort(reverse=True)
        if 2 * sum(degrees[:budget]) < sum(degrees):
            break
        looks += len(degrees)
        if len(degrees) - _cliques(graph, undecided) > budget:
            break
        return undecided, covered, budget, widest, looks
    return undecided, covered, -1, -1, looks


def find_cover(
    graph: Graph, undecided: int, budget: int, look_limit: int
) -> tuple[int | None, int]:
    """Search for at most `budget` of the undecided rows that touch every edge between them.

    Parameters
    ----------
    graph : list of int
        The set of neighbours of each row.
    undecided : int
        The set of rows whose edges are to be covered.
    budget : int
        Rows that the cover may hold.
    look_limit : int
        How often it may look at a row, which takes some 0.3 us.

    Returns
    -------
    cover : int or None
        A set that was found, or None.
    looks : int
        How often it looked. As many as the limit or more: it stopped before it was certain.
    """
    branches, looks = [(undecided, 0, budget)], 0
    while branches and looks < look_limit:
        undecided, before, budget = branches.pop()
        undecided, covered, budget, row, more = _reduce(
            graph, undecided, budget, look_limit - looks
        )
        looks += more + 1
        covered |= before
        if budget < 0:
            continue
        if row < 0:
            return covered, looks
        # First try the row in the cover, then out of it, so that its neighbours must be in.
        rest = undecided ^ (1 << row)
        near = graph[row] & rest
        branches.append((rest ^ near, covered | near, budget - near.bit_count()))
        branches.append((rest, covered | 1 << row, budget - 1))
    return None, looks
