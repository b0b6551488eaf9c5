"""Which variant of a kernel suits a problem: macros for its text, and how to launch it.

Pure functions of shapes and dtypes. A variant is compiled once; everything that a comparator
network needs to be straight-line code is a macro, everything else is a parameter of the kernel.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from math import gcd

from ..dtypes import CODES, ITEMSIZE, computing
from ..networks import pruned, sorting
from ..statistic import CGE, NNM, Bulyan, BulyanAveraged, Krum, Selection, Statistic
from .shapes import SHARED

__all__ = [
    "SELECTED", "SELECTION_ROWS", "Variant", "columns_variant", "dtype_macros", "selection_scratch",
    "selection_shape", "selects", "votes_variant",
]  # fmt: skip

# Most values of a column that stay in registers (of which a thread has 255, of 4 bytes each).
IN_REGISTERS = {"float16": 128, "bfloat16": 128, "float32": 128, "float64": 60}
# Most words of a mixed column with which a thread takes so many columns.
MIXED = {4: 46, 3: 60, 2: 102}
REGISTERS = 65536  # of a multiprocessor
COLUMN_BLOCK = 128
TILE_BLOCK = 256
OWN_SHARED = 2 << 10  # of SHARED: tiles.cu and selection.cu take less than this for themselves
MIXING_BLOCKS = 2048  # blocks that stage W, each of which goes through many tiles of columns
SELECTION_ROWS = 1024  # that selection.cu takes
SELECTED: dict[type[Selection], str] = {  # its kernels
    Krum: "krum", CGE: "cge", NNM: "nnm", Bulyan: "bulyan", BulyanAveraged: "bulyan_averaged",
}  # fmt: skip
SCRATCH_BYTES = 256 << 20  # for tiles in global memory, if more than one block has one
SCRATCH_BLOCKS = 2  # of a multiprocessor that have one
PROCESSORS = 64  # of a GPU of which nobody says how many it has


@dataclass(frozen=True)
class Variant:
    """A kernel with its macros, and how to launch it.

    Attributes
    ----------
    file, kernel : str
    defines : tuple of (name, value)
        Macros to put before the file's text.
    block : int
        Threads of a block.
    columns : int
        Columns that a block takes at a time.
    shared : int
        Bytes of dynamic shared memory.
    scratch : int
        Bytes of global memory for each block.
    most_blocks : int
        More blocks than this are not launched: each goes on to further columns.
    resident : int
        Nor more than this for each multiprocessor; 0: any number.
    """

    file: str
    kernel: str
    defines: tuple[tuple[str, str], ...]
    block: int
    columns: int
    shared: int = 0
    scratch: int = 0
    most_blocks: int = 2**31 - 1
    resident: int = 0

    def grid(self, columns: int, processors: int = PROCESSORS) -> int:
        """Return how many blocks to launch for so many columns on so many multiprocessors."""
        return self.blocks([columns], processors)[0]

    def blocks(self, columns: Sequence[int], processors: int = PROCESSORS) -> list[int]:
        """Return how many blocks to launch for each of several leaves with so many columns."""
        wanted = [max(1, -(-count // self.columns)) for count in columns]
        most = min(self.most_blocks, self.resident * processors or self.most_blocks)
        share = min(1.0, most / sum(wanted))
        return [max(1, int(count * share)) for count in wanted]


def dtype_macros(dtype: str, table: bool) -> dict[str, object]:
    """Return the macros that `common.cuh` wants."""
    return {"FG_DTYPE": CODES[dtype], "FG_TABLE": int(table)}


def _network(pairs: Iterable[tuple[int, int]]) -> str:
    return " ".join(f"X({i},{j})" for i, j in pairs)


def _frozen(macros: dict[str, object]) -> tuple[tuple[str, str], ...]:
    return tuple((name, str(value)) for name, value in macros.items())


def _pack(values: int, dtype: str, alignment: int) -> int:
    """Return how many columns a thread takes: 16 bytes of few rows, 4 of many."""
    wanted = 16 if values <= 8 else 8 if values <= 16 else 4 if values <= 64 else 2
    return max(1, min(wanted, alignment) // ITEMSIZE[dtype])


def _mixing_pack(values: int, dtype: str, weighted: bool) -> int:
    """Return the same for a mixing: as many as registers hold, as a weight is read once for all."""
    words = 3 * values if dtype == "float64" else values
    words += 10 if weighted else 0
    return next((pack for pack, most in MIXED.items() if words <= most), 1)


def _blocks(values: int, pack: int, dtype: str, mixed: bool, weighted: bool) -> int:
    """Return how many blocks should fit a multiprocessor: as few as the registers want.

    Left to itself the compiler saves registers by spilling a few bytes.
    """
    words = values * _computed(dtype) // 4  # one column, sorted in place
    if mixed:
        words = words * pack + 24
    elif pack > 1:  # two columns at work, while what was read waits for its turn
        words += values + values * pack * ITEMSIZE[dtype] // 4
    if weighted:  # weights come ahead of their use
        words += 32
    if dtype == "float64":  # a comparison takes two registers more, and some work at a time
        words += words // 2
    return max(2, min(16, REGISTERS // (COLUMN_BLOCK * (words + 48))))


@cache
def columns_variant(
    statistic: Statistic, m: int, n: int, dtype: str, *, table: bool, mix: int, alignment: int
) -> Variant:
    """Return the variant for a statistic of each column: of `columns.cu`, or for many values of
    `tiles.cu`.

    Parameters
    ----------
    statistic : Statistic
        Of kind "order" or "condense".
    m, n : int
        Values in a column of what is sorted, and rows that are read for it.
    dtype : str
    table : bool
        Whether rows are given by a table of addresses.
    mix : {0, 1, 2}
        0: the rows themselves, 1: a matrix W, 2: a list of picked rows.
    alignment : int
        A power of two that divides the address of every row and of the result.
    """
    macros = dtype_macros(dtype, table)
    macros |= {
        "FG_MIX": mix,
        "FG_CONDENSE": int(statistic.kind == "condense"),
        "FG_RANKS": int(statistic.support[2] is not None),
    }
    if m <= IN_REGISTERS[dtype]:
        return _in_registers(statistic, m, n, dtype, mix, alignment, macros)
    return _in_tiles(m, dtype, macros)


def _in_registers(
    statistic: Statistic, m: int, n: int, dtype: str, mix: int, alignment: int,
    macros: dict[str, object],
) -> Variant:  # fmt: skip
    low, high, ranks = statistic.support
    closest = statistic.closest or 0
    pairs = sorting(m) if closest else pruned(sorting(m), range(low, high))
    weighted = ranks is not None
    pack = _mixing_pack(m, dtype, weighted) if mix == 1 else _pack(m, dtype, alignment)
    macros |= {"FG_N": m, "FG_LOW": low, "FG_HIGH": high, "FG_CLOSEST": closest}
    wide = gcd(pack, max(1, alignment // ITEMSIZE[dtype]))
    macros |= {"FG_PACK": pack, "FG_WIDE": wide, "FG_NETWORK": _network(pairs)}
    macros["FG_BLOCKS"] = _blocks(m, pack, dtype, mix == 1, weighted)
    shared, most = 0, 2**31 - 1
    if mix == 1:
        line = (m + 3) // 4 * 4 * _computed(dtype)
        ahead = 8 if m * pack <= 96 else 4
        part = min(n, SHARED // line // ahead * ahead)
        macros |= {"FG_ROWS": n, "FG_AHEAD": ahead, "FG_PART": part}
        shared, most = part * line, MIXING_BLOCKS
    block = COLUMN_BLOCK
    return Variant("columns.cu", "columns", _frozen(macros), block, block * pack, shared, 0, most)


def _in_tiles(m: int, dtype: str, macros: dict[str, object]) -> Variant:
    size = _computed(dtype)
    lines = (m + 15) // 16 * 17
    wide = width = 32 // ITEMSIZE[dtype]  # a sector of memory
    while width > 1 and lines * width * size > SHARED - OWN_SHARED:
        width //= 2
    macros |= {"FG_SORT16": _network(sorting(16))}
    if lines * width * size <= SHARED - OWN_SHARED:
        macros |= {"FG_WIDTH": width, "FG_SCRATCH": 0}
        shared = lines * width * size
        return Variant("tiles.cu", "tiles", _frozen(macros), TILE_BLOCK, width, shared)
    macros |= {"FG_WIDTH": wide, "FG_SCRATCH": 1}
    scratch = lines * wide * size
    most = max(1, SCRATCH_BYTES // scratch)
    return Variant(
        "tiles.cu", "tiles", _frozen(macros), TILE_BLOCK, wide, 0, scratch, most, SCRATCH_BLOCKS
    )


def _computed(dtype: str) -> int:
    return ITEMSIZE[computing(dtype)]


@cache
def votes_variant(kind: str, dtype: str, *, table: bool, alignment: int) -> Variant:
    """Return the variant of `votes.cu` for the mean of the finite values, or for signs."""
    pack = max(1, min(8, alignment) // ITEMSIZE[dtype])
    macros = dtype_macros(dtype, table) | {"FG_SIGNS": int(kind == "sign"), "FG_PACK": pack}
    return Variant("votes.cu", "votes", _frozen(macros), 256, 256 * pack)


def selects(selection: Selection, n: int, dtypes: Sequence[str]) -> bool:
    """Return whether `selection.cu` makes this choice among n rows, so that no host has to.

    Distances of float64 rows may overflow, and NNM then needs another read.
    """
    if isinstance(selection, NNM) and (selection.then is not None or "float64" in dtypes):
        return False
    return type(selection) in SELECTED and n <= SELECTION_ROWS


def selection_shape(n: int) -> tuple[int, int]:
    """Return the threads and bytes of shared memory with which `selection.cu` takes n rows."""
    line = 8 * max(32, 1 << (n - 1).bit_length())
    board = 8 * n + (n + 7) // 8 * 8
    warps = min(16, n, (SHARED - OWN_SHARED - board) // line)
    return 32 * warps, board + warps * line


def selection_scratch(n: int) -> int:
    """Return the bytes of scratch that Bulyan's picks want."""
    return 8 * (n * n + (n * n + 1) // 2)  # a double and an int for each pair, in whole doubles
