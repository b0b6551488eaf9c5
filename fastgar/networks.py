"""Comparator networks: lists of pairs (i, j), each of which puts the smaller value at i.

Applied to vectors of columns, one comparator is a vector minimum and a vector maximum, so the cost
of a kernel is the number of comparators. Networks of up to 16 inputs are the best known ones;
larger ones are built by splitting, sorting both parts and merging (Batcher's odd-even merge, Knuth
TAOCP 3 section 5.3.4), at the split that needs the fewest comparators. `pruned` then drops every
comparator that cannot influence the ranks that are wanted.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import cache

__all__ = ["bitonic_merge", "pruned", "sorting"]

Network = tuple[tuple[int, int], ...]

# Best known sizes: 25, 29, 35, 39 and 45 comparators for 9 to 13 inputs; 60 for 16 (Green), from
# which 14 and 15 follow by leaving out the last wires. The rest likewise.
_BEST: dict[int, str] = {
    2: "01",
    3: "02 01 12",
    4: "01 23 02 13 12",
    8: "02 13 46 57 04 15 26 37 01 23 45 67 24 35 14 36 12 34 56",
    9: "03 17 25 48 07 24 38 56 02 13 45 78 14 36 57 01 24 35 68 23 45 67 12 34 56",
    10: "08 19 27 35 46 02 14 58 79 03 24 57 69 01 36 89 15 23 48 67 12 35 46 78 23 45 67 34 56",
    11: "09 16 24 37 58 01 35 4a 69 78 13 25 47 8a 04 12 37 59 68 01 26 45 78 9a 24 36 57 89 12 34"
    " 56 78 23 45 67",
    12: "08 17 26 3b 4a 59 01 25 34 69 78 ab 02 16 5a 9b 03 12 46 57 8b 9a 14 35 68 7a 13 25 69 8a"
    " 23 45 67 89 46 57 34 56 78",
    13: "0c 1a 29 37 5b 68 16 23 4b 79 8a 04 12 36 78 9a bc 46 59 8b ac 05 38 47 6b 9a 01 25 69 78"
    " ab 13 24 56 9a 12 34 57 68 23 45 67 89 34 56",
    16: "01 23 45 67 89 ab cd ef 02 13 46 57 8a 9b ce df 04 15 26 37 8c 9d ae bf 08 19 2a 3b 4c 5d"
    " 6e 7f 12 3c de 48 7b 5a 69 14 28 7d be 24 56 9a bd 38 7c 68 ac 35 79 34 56 78 9a bc 67 89",
}


def _parsed(text: str) -> Network:
    return tuple((int(pair[0], 16), int(pair[1], 16)) for pair in text.split())


def _merge(low: list[int], high: list[int]) -> tuple[list[tuple[int, int]], list[int]]:
    """Merge two sorted lists of wires; return the comparators and the wires in sorted order."""
    if not low or not high:
        return [], low + high
    if len(low) == len(high) == 1:
        return [(low[0], high[0])], [low[0], high[0]]
    first, v = _merge(low[0::2], high[0::2])
    second, w = _merge(low[1::2], high[1::2])
    final = list(zip(w, v[1:], strict=False))
    rest = v[1 + len(final) :] or w[len(final) :]
    return first + second + final, [v[0], *(wire for pair in final for wire in pair), *rest]


@cache
def _split(n: int) -> tuple[int, int]:
    """Return (comparators, size of the low part) of the cheapest way to sort n wires."""
    if n <= 16:
        return len(sorting(n)), 0
    near = {*range(n // 2 - 2, n // 2 + 3), *range(16, n, 16)}  # similar parts, or full sixteens
    return min(
        (_split(low)[0] + _split(n - low)[0] + _merge_size(low, n - low), low) for low in near
    )


@cache
def _merge_size(low: int, high: int) -> int:
    return len(_merge(list(range(low)), list(range(low, low + high)))[0])


@cache
def sorting(n: int) -> Network:
    """Return a network that sorts n values in ascending order."""
    if n <= 16:
        best = next(size for size in (0, 1, *_BEST) if size >= n)
        return tuple(pair for pair in _parsed(_BEST.get(best, "")) if pair[1] < n)
    low = _split(n)[1]
    pairs = [*sorting(low), *((i + low, j + low) for i, j in sorting(n - low))]
    merge, order = _merge(list(range(low)), list(range(low, n)))
    rank = {wire: position for position, wire in enumerate(order)}
    return tuple((rank[i], rank[j]) for i, j in pairs + merge)


def pruned(network: Iterable[tuple[int, int]], wanted: Iterable[int]) -> Network:
    """Keep only the comparators that the values on the `wanted` wires depend on."""
    needed = set(wanted)
    kept = []
    for i, j in reversed(tuple(network)):
        if i in needed or j in needed:
            needed |= {i, j}
            kept.append((i, j))
    return tuple(reversed(kept))


def bitonic_merge(size: int) -> Network:
    """Return the half-cleaners size/2, size/4, ..., 1 that sort a bitonic run of `size` wires."""
    network = []
    stride = size // 2
    while stride:
        network += [(i, i + stride) for i in range(size) if not i & stride]
        stride //= 2
    return tuple(network)
