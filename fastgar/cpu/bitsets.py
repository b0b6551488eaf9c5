"""Sets of rows as machine words, and the search for a small vertex cover.

A set of rows is an array of uint64 words: row i is bit i % 64 of word i // 64. A graph is one such
set of neighbours for every row. A cover is a set of rows that touches every edge; the rows outside
it have no edge between them.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastgar.cpu.compile import jit

__all__ = ["find_cover", "pack", "unpack"]

Flags = NDArray[np.bool_]
Words = NDArray[np.uint64]
ONE = np.uint64(1)


def pack(flags: Flags) -> Words:
    """Return the sets of the rows whose flag along the last axis is True, as uint64 words."""
    n = flags.shape[-1]
    whole = np.zeros((*flags.shape[:-1], -(-n // 64) * 64), bool)
    whole[..., :n] = flags
    return np.packbits(whole, axis=-1, bitorder="little").view("<u8").astype(np.uint64, copy=False)


def unpack(rows: Words, n: int) -> Flags:
    """Return one flag per row: whether it is in the set."""
    flags = np.unpackbits(rows.astype("<u8").view(np.uint8), bitorder="little")
    return flags[:n].astype(bool)


@jit
def _count(word: Any) -> Any:
    """Return the number of bits set (LLVM knows the idiom: one instruction)."""
    word = word - ((word >> np.uint64(1)) & np.uint64(0x5555555555555555))
    word = (word & np.uint64(0x3333333333333333)) + (
        (word >> np.uint64(2)) & np.uint64(0x3333333333333333)
    )
    word = (word + (word >> np.uint64(4))) & np.uint64(0x0F0F0F0F0F0F0F0F)
    return np.int64((word * np.uint64(0x0101010101010101)) >> np.uint64(56))


@jit
def _common(a: Any, b: Any) -> Any:
    """Return how many rows are in both sets."""
    total = 0
    for word in range(a.size):
        total += _count(a[word] & b[word])
    return total


@jit
def _first(a: Any, b: Any, start: Any) -> Any:
    """Return the least row from `start` on that is in both sets, or -1."""
    word = start >> 6
    mask = ~((ONE << np.uint64(start & 63)) - ONE)
    while word < a.size:
        bits = a[word] & b[word] & mask
        if bits != np.uint64(0):
            return (word << 6) + _count((bits & (~bits + ONE)) - ONE)
        mask = ~np.uint64(0)
        word += 1
    return -1


@jit
def _copy(source: Any, target: Any) -> None:
    """Copy word by word: assigning a slice would cost three more seconds of compilation."""
    for word in range(source.size):
        target[word] = source[word]


@jit
def _drop(rows: Any, row: Any) -> None:
    """Take a row out of a set."""
    rows[row >> 6] &= ~(ONE << np.uint64(row & 63))


@jit
def _cover(undecided: Any, covered: Any, row: Any) -> None:
    """Move a row into the cover."""
    _drop(undecided, row)
    covered[row >> 6] |= ONE << np.uint64(row & 63)


@jit
def _cover_neighbours(graph: Any, undecided: Any, covered: Any, row: Any) -> Any:
    """Leave a row out of the cover, so that its neighbours must be in; return how many they are."""
    _drop(undecided, row)
    moved = 0
    for word in range(undecided.size):
        bits = graph[row, word] & undecided[word]
        undecided[word] &= ~bits
        covered[word] |= bits
        moved += _count(bits)
    return moved


@jit
def _cliques(graph: Any, undecided: Any, left: Any, clique: Any) -> Any:
    """Return into how many cliques the undecided rows fall, taken greedily."""
    total = 0
    _copy(undecided, left)
    row = _first(left, left, 0)
    while row >= 0:
        total += 1
        _drop(left, row)
        _copy(graph[row], clique)  # the rows next to everyone in the clique so far
        member = _first(clique, left, row)
        while member >= 0:
            _drop(left, member)
            for word in range(left.size):
                clique[word] &= graph[member, word]
            member = _first(clique, left, member)
        row = _first(left, left, row)
    return total


@jit
def _reduce(graph: Any, undecided: Any, covered: Any, budget: Any, scratch: Any, many: Any) -> Any:
    """Decide rows for as long as there is no real choice.

    The sets change in place. Returns what is left of the budget (negative: there is no cover) and
    the row to branch on (-1: no edge is left).
    """
    while budget >= 0:
        changed, edges, rows, most, widest = False, 0, 0, 0, -1
        many[:] = 0
        row = _first(undecided, undecided, 0)
        while row >= 0:
            degree = _common(graph[row], undecided)
            if degree == 0:
                _drop(undecided, row)
            elif degree > budget:  # left out, it would cost all its neighbours
                _cover(undecided, covered, row)
                budget -= 1
                changed = True
            elif degree == 1:  # the neighbour covers this edge and perhaps more
                _cover(undecided, covered, _first(graph[row], undecided, 0))
                budget -= 1
                changed = True
            else:
                edges += degree
                rows += 1
                many[degree] += 1
                if degree > most:
                    most, widest = degree, row
            row = _first(undecided, undecided, row + 1)
        if changed:
            continue
        if rows == 0:
            return budget, -1
        if most == 2:  # only cycles are left, and any row of a cycle is in some least cover
            _cover(undecided, covered, widest)
            budget -= 1
            continue
        # No cover reaches more edges than the rows of largest degree (`edges` counts each twice).
        reach, spare, degree = 0, budget, most
        while spare > 0 and degree > 0:
            reach += min(spare, many[degree]) * degree
            spare -= many[degree]
            degree -= 1
        # And of each clique a cover leaves out one row at most.
        if 2 * reach < edges or rows - _cliques(graph, undecided, scratch[0], scratch[1]) > budget:
            return -1, -1
        return budget, widest
    return -1, -1


@jit
def _search(
    graph: Any,
    undecided: Any,
    covered: Any,
    budgets: Any,
    choices: Any,
    scratch: Any,
    many: Any,
    node_limit: Any,
) -> Any:
    """Search depth first; level i of the first four arrays is the state after i rows were tried.

    Returns whether there is a cover (1, 0; -1: the limit came first), branches tried, final level.
    """
    level, nodes = 0, 0
    while True:
        budget, row = _reduce(
            graph, undecided[level], covered[level], budgets[level], scratch, many
        )
        if budget >= 0 and row < 0:
            return 1, nodes, level
        if budget >= 0:  # first try the row in the cover, and on return (below) out of it
            nodes += 1
            if nodes > node_limit:
                return -1, nodes, level
            budgets[level], choices[level] = budget, row
            _copy(undecided[level], undecided[level + 1])
            _copy(covered[level], covered[level + 1])
            level += 1
            _cover(undecided[level], covered[level], row)
            budgets[level] = budget - 1
        elif level == 0:
            return 0, nodes, level
        else:
            level -= 1
            budgets[level] -= _cover_neighbours(
                graph, undecided[level], covered[level], choices[level]
            )


def find_cover(
    graph: Words, undecided: Flags, budget: int, node_limit: int
) -> tuple[Flags | None, int]:
    """Search for at most `budget` of the undecided rows that touch every edge between them.

    Parameters
    ----------
    graph : (n, words) uint64
        Neighbours of each row (`pack` of an n x n matrix of flags).
    undecided : (n,) bool
        The rows whose edges are to be covered.
    budget : int
        Rows that the cover may hold.
    node_limit : int
        Branches that may be tried.

    Returns
    -------
    cover : (n,) bool or None
        One that was found, or None.
    nodes : int
        Branches tried. More than `node_limit`: the search stopped before it was certain.
    """
    n, words = graph.shape
    if budget < 0:
        return None, 0
    levels = np.zeros((2, budget + 2, words), np.uint64)
    levels[0, 0] = pack(undecided)
    budgets = np.full(budget + 2, budget)
    found, nodes, level = _search(
        graph,
        levels[0],
        levels[1],
        budgets,
        np.zeros(budget + 2, np.int64),
        np.zeros((2, words), np.uint64),
        np.zeros(n, np.int64),
        node_limit,
    )
    return (unpack(levels[1, level], n) if found == 1 else None), nodes
