"""How the distance kernel is laid out for a number of points: see `kernels/distances.cu`."""

from __future__ import annotations

from functools import cache
from typing import NamedTuple

from ..statistic import CHUNK

__all__ = ["CHUNK_SPANS", "SPAN", "PairShape", "pair_shape", "triangle", "whole_chunks"]

SPAN = 2048  # columns of one partial matrix
CHUNK_SPANS = CHUNK // SPAN  # that are added to each other before they go to the total
TRIANGLE = 128  # up to here one block takes all pairs; above, it takes CROSS rows against CROSS
# What stays in registers of one block, rows being read one number at a time, or summing products.
TRIANGLE_ONE_BY_ONE, TRIANGLE_OF_PRODUCTS = 124, 104
CROSS = 64
SHARED = 48 << 10  # bytes that every GPU gives a block without being asked
OWN_SHARED = 1280  # of which the addresses of rows, and their flags, take less than this
WARP = 32
HELD = 96  # bytes of the next tile that a thread holds in registers
HELD_ONE_BY_ONE = 40


class PairShape(NamedTuple):
    """Compile-time constants of the kernel `partials`, and the threads of its blocks."""

    r: int  # rows of a group
    groups: int
    slots: int  # threads that share the columns of one unit
    columns: int  # of a tile in shared memory
    cross: bool
    threads: int

    def defines(self, dtype: int, table: bool, pack: int, products: bool) -> dict[str, int]:
        """Return the lines of `#define` that make the kernel."""
        return {
            "FG_DTYPE": dtype, "FG_TABLE": int(table), "FG_PACK": pack,
            "FG_PRODUCTS": int(products), "FG_CROSS": int(self.cross), "FG_R": self.r,
            "FG_GROUPS": self.groups, "FG_SLOTS": self.slots, "FG_COLUMNS": self.columns,
        }  # fmt: skip

    def blocks(self, points: int) -> int:
        """Return how many blocks share a span of columns."""
        if not self.cross:
            return 1
        blocks = -(-points // CROSS)
        return blocks * (blocks + 1) // 2


def triangle(points: int) -> int:
    """Return the numbers of a triangle of pairs, the diagonal included."""
    return points * (points + 1) // 2


def whole_chunks(columns: int) -> int:
    """Return the spans of so many columns, filled up to a multiple of those of a chunk."""
    return -(-columns // (SPAN * CHUNK_SPANS)) * CHUNK_SPANS


def _whole_warps(threads: int) -> int:
    return -(-threads // WARP) * WARP


def _threads(groups: int, slots: int) -> int:
    across, inside = groups * (groups - 1) // 2, (groups + 1) // 2
    return _whole_warps(across * slots) + _whole_warps(inside * slots)


def _units(groups: int) -> int:
    return groups * (groups - 1) // 2 + (groups + 1) // 2


def _cost(r: int, groups: int, products: bool) -> float:
    """Return the instructions per column: two per pair (one of products), one per number read."""
    across, inside = groups * (groups - 1) // 2, (groups + 1) // 2
    pairs = across * r * r + inside * r * (r + 1 if products else r - 1)
    return pairs * (1 if products else 2) + 2 * r * (across + inside)


@cache
def pair_shape(points: int, wide: bool, products: bool, aligned: bool) -> PairShape:
    """Return the layout for this many points.

    `wide`: sums are in float64; `aligned`: rows can be read 16 bytes at a time (one by one they
    take more registers on their way, so that less of them can be).

    It depends on the number of groups of rows, not on the very number of points: where n changes
    from call to call, few kernels are compiled. Bits depend on the slots alone, which are the
    same for rows of any alignment.
    """
    size = 8 if wide else 4
    lanes = 16 // size
    ahead = HELD if aligned else HELD_ONE_BY_ONE
    one_by_one = TRIANGLE if aligned else TRIANGLE_ONE_BY_ONE
    if points > (TRIANGLE_OF_PRODUCTS if products else one_by_one):
        return PairShape(
            4, CROSS // 4, 1, _columns(2 * CROSS, 1, lanes, size, 256 * ahead), True, 256
        )
    layouts = [_groups(points, wide, products, limit) for limit in (HELD, HELD_ONE_BY_ONE)]
    slots = min(_slots(r, groups, lanes, size) for r, groups in layouts)
    r, groups = layouts[0 if aligned else 1]
    threads = _threads(groups, slots)
    columns = _columns(r * groups, slots, lanes, size, threads * ahead)
    return PairShape(r, groups, slots, columns, False, threads)


def _groups(points: int, wide: bool, products: bool, ahead: int) -> tuple[int, int]:
    """Return the rows of a group, and the groups, with the least work that leave registers."""
    most = 4 if wide else 6
    options = [(r, -(-points // r)) for r in range(2, most + 1)]
    light = [(r, groups) for r, groups in options if 16 * r * groups <= ahead * _units(groups)]
    return min(light or options, key=lambda option: _cost(option[0], option[1], products))


def _slots(r: int, groups: int, lanes: int, size: int) -> int:
    slots = 128
    while slots > 1 and (
        _threads(groups, slots) > 256 or not _fits(r * groups, slots * lanes, 0, size, 256 * HELD)
    ):
        slots //= 2
    return slots


def _fits(rows: int, columns: int, padding: int, size: int, ahead: int) -> bool:
    """Return whether two tiles fit in shared memory, and the next one in registers (`ahead`)."""
    small = 2 * rows * (columns + padding) * size <= SHARED - OWN_SHARED
    return small and rows * columns * size <= ahead


def _columns(rows: int, slots: int, lanes: int, size: int, ahead: int) -> int:
    """Return the width of a tile: up to eight steps of every slot."""
    padding = lanes * (slots if slots < 8 else 0)
    columns = least = max(16, slots * lanes)
    while 2 * columns <= 8 * least and _fits(rows, 2 * columns, padding, size, ahead):
        columns *= 2
    return columns
