"""Every kernel compiles for every architecture that we name, and keeps its numbers in registers.

NVRTC compiles down to machine code without a GPU or a driver. The spills are those that its
assembler (ptxas, the one that the driver's users get) reports for each kernel.
"""

from __future__ import annotations

import os
import re
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from itertools import cycle

import nvrtc
import pytest

from fastgar.cuda.shapes import pair_shape
from fastgar.cuda.variants import (
    IN_REGISTERS,
    columns_variant,
    votes_variant,
)  # fmt: skip
from fastgar.dtypes import CODES, ITEMSIZE
from fastgar.statistic import Statistic

pytestmark = pytest.mark.skipif(
    nvrtc.library() is None, reason="NVRTC is not installed (pip install nvidia-cuda-nvrtc)"
)

ARCHITECTURES = ("sm_75", "sm_80", "sm_86", "sm_89", "sm_90", "sm_100", "sm_120")
FEWER = tuple(a for a in ARCHITECTURES if a != "sm_86")  # which has the registers of sm_89
DYNAMIC = "FG_BYTES_OF_DYNAMIC_SHARED_MEMORY"  # which the kernels do not look at
ALL = bool(os.environ.get("FASTGAR_ALL_KERNELS"))
SHARED = 48 << 10  # bytes that every GPU gives a block without being asked


def of_columns(n, dtype, statistic, *, table=False, mix=0, alignment=16):
    """(file, macros, values of a column) of one variant; macros tell its dynamic shared memory."""
    variant = columns_variant(statistic, n, n, dtype, table=table, mix=mix, alignment=alignment)
    return variant.file, (*variant.defines, (DYNAMIC, variant.shared)), n


def column_variants():
    """One of each kind for each dtype: (file, macros, values of a column)."""
    for dtype in CODES:
        yield of_columns(20, dtype, Statistic.median(20))
        yield of_columns(20, dtype, Statistic.median(20, closest=15), table=True)
        yield of_columns(20, dtype, Statistic.between(20, 4, 16, 4), mix=1)
        votes = votes_variant("sign" if dtype == "float64" else "finite_mean", dtype,
                              table=dtype == "float32", alignment=16)  # fmt: skip
        yield votes.file, votes.defines, 0
    weights = Statistic(tuple(range(1, 22)))
    yield of_columns(21, "float32", weights, mix=2)
    yield of_columns(21, "float32", replace(weights, kind="condense"), table=True)
    yield of_columns(300, "float32", Statistic.median(300), mix=1, table=True)
    yield of_columns(1000, "float64", Statistic.median(1000, closest=700))
    yield of_columns(100_000, "float32", Statistic.median(100_000))


def other_variants():
    for dtype, code in CODES.items():
        yield of_distances(11, dtype, False, aligned=True, table=code % 2 == 0)
        yield of_combine(dtype, k=1 if code % 2 else 4, aligned=code < 3)
    yield of_distances(200, "float32", False, aligned=True, table=False)
    yield of_distances(11, "float32", True, aligned=True, table=True)
    yield "selection.cu", (), 0
    yield "distances.cu", (), 0
    yield "table.cu", (), 0


def of_distances(points, dtype, products, *, aligned, table):
    shape = pair_shape(points, products or dtype == "float64", products, aligned)
    pack = 16 // ITEMSIZE[dtype] if aligned else 1
    macros = shape.defines(CODES[dtype], table, pack, products)
    return "distances.cu", tuple(macros.items()), points


def of_combine(dtype, *, k, aligned):
    pack = 16 // ITEMSIZE[dtype] if aligned else 1
    macros = {"FG_DTYPE": CODES[dtype], "FG_TABLE": int(k > 1)}
    return "combine.cu", tuple({**macros, "FG_K": k, "FG_PACK": pack}.items()), 0


def further_variants():
    """Other sizes and alignments, of which there are too many for every architecture."""
    for dtype in CODES:
        for n in (8, 32):
            f = n // 4
            yield of_columns(n, dtype, Statistic.between(n, f, n - f, f), alignment=2)
            yield of_columns(n, dtype, Statistic.median(n, closest=n - f), table=True)
            yield of_columns(n, dtype, Statistic.median(n, closest=n - f), mix=1, table=n % 2 == 0)
        for points, products in ((2, False), (20, False), (51, True)):
            aligned = points % 4 == 0
            yield of_distances(points, dtype, products, aligned=aligned, table=not aligned)


STATISTICS = {
    "median": lambda n: Statistic.median(n),
    "trimmed mean": lambda n: Statistic.between(n, n // 4, n - n // 4, n // 4),
    "closest": lambda n: Statistic.median(n, closest=n - n // 4),
    "weights": lambda n: Statistic(tuple(range(1, n + 1))),
    "condense": lambda n: replace(Statistic.median(n), kind="condense"),
}


def many_values():
    """Columns of as many values as registers hold, fewer and more: (values, dtype, name, mix)."""
    for dtype, most in IN_REGISTERS.items():
        for n in (20, 33, 60, 65, 100, most):
            if n <= most:
                yield from ((n, dtype, "median", mix) for mix in (0, 1, 2))
        for name in list(STATISTICS)[1:]:
            if most > 100:
                yield 100, dtype, name, 0
            yield from ((most, dtype, name, mix) for mix in (0, 1))
        for n in (300, 100_000):  # in a tile, in shared memory or not
            yield from ((n, dtype, "closest", mix) for mix in (0, 1, 2))


def shared(said):
    """Bytes of static shared memory of each kernel, in the order of the report."""
    return [int(size) for size in re.findall(r"(\d+) bytes smem", said)]


def spills(said):
    """Bytes of local memory of each kernel, by name."""
    found = re.findall(
        r"Function properties for (\w+)\s*\n.*?(\d+) bytes stack frame, (\d+) bytes spill stores",
        said,
    )
    return {name: int(stack) + int(stores) for name, stack, stores in found}


def complaints(variants, architectures):
    """Compile each variant for its architecture; return which of them use local memory."""

    def one(task):
        (file, macros, _), architecture = task
        code, said = nvrtc.compiled(
            file, dict(macros), f"--gpu-architecture={architecture}", *nvrtc.OPTIONS
        )
        assert code.startswith(b"\x7fELF")
        local = spills(said)
        if not local:
            pytest.skip("this NVRTC does not report spills")
        worst = {name: size for name, size in local.items() if size}
        least = dict(macros).get(DYNAMIC, 0)
        assert max(shared(said), default=0) + least <= SHARED, (file, macros)
        named = " ".join(f"{k}={v}" for k, v in macros if len(str(v)) < 30)
        return f"{file} {architecture} {named}: {worst}" if worst else None

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        return [c for c in pool.map(one, zip(variants, architectures, strict=False)) if c]


@pytest.mark.parametrize("architecture", FEWER)
def test_columns_stay_in_registers_up_to_the_most_values_that_they_take(architecture):
    """One size of each kind on each architecture; FASTGAR_ALL_KERNELS=1: all (half an hour)."""
    tasks = list(dict.fromkeys(many_values()))
    chosen = tasks if ALL else tasks[FEWER.index(architecture) :: 3 * len(FEWER)]
    variants = [
        of_columns(n, dtype, STATISTICS[name](n), mix=mix, table=mix != 1 and n % 2 == 0)
        for n, dtype, name, mix in chosen
    ]
    assert complaints(variants, cycle([architecture])) == []


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_every_kind_of_kernel_compiles_without_spilling(architecture):
    assert complaints([*column_variants(), *other_variants()], cycle([architecture])) == []


def test_every_size_compiles_without_spilling():
    """Each on one of the architectures; FASTGAR_ALL_KERNELS=1: on all of them (some minutes)."""
    variants = list(further_variants())
    if not ALL:
        assert complaints(variants, cycle(ARCHITECTURES)) == []
        return
    for architecture in ARCHITECTURES:
        assert complaints(variants, cycle([architecture])) == []


def most_pairs():
    """Products of as many rows as one block takes, and of one more; distances of the most."""
    for dtype in CODES:
        for points, products in ((104, True), (105, True), (124, False), (128, False)):
            for aligned in (False, True):
                yield of_distances(points, dtype, products, aligned=aligned, table=True)


def test_the_most_pairs_of_a_block_stay_in_registers():
    """Each on one of the architectures; FASTGAR_ALL_KERNELS=1: on all of them."""
    variants = list(most_pairs())
    for architecture in ARCHITECTURES if ALL else ["sm_75"]:
        assert complaints(variants, cycle([architecture])) == []
    if not ALL:
        assert complaints(variants, cycle(["sm_80", "sm_90", "sm_120"])) == []


def test_spills_are_found():
    n = 120  # in the registers of a block of which eight must fit
    file, macros, _ = of_columns(n, "float32", Statistic.median(n))
    _, said = nvrtc.compiled(
        file, {**dict(macros), "FG_BLOCKS": 8}, "--gpu-architecture=sm_90", *nvrtc.OPTIONS
    )
    assert spills(said)["columns"] > 0
