"""What the machine code of the kernels does: loads under way, instructions for each number.

Bars on what `asv_benchmarks/sass.py` reads off NVIDIA's disassembler. They are near what the
compiler makes today: a kernel that falls below one got slower, whatever its bits are.
"""

from __future__ import annotations

import os
import re
import sys
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from itertools import cycle
from pathlib import Path

import nvrtc
import pytest
from test_kernels_compile import column_variants, of_columns, of_combine, of_distances

from fastgar.cuda.shapes import pair_shape
from fastgar.cuda.variants import IN_REGISTERS, votes_variant
from fastgar.dtypes import CODES
from fastgar.statistic import Statistic

sys.path.append(str(Path(__file__).resolve().parent.parent))  # where the benchmarks are
from asv_benchmarks import roofline, sass

TOOL = sass.disassembler()
pytestmark = [
    pytest.mark.skipif(nvrtc.library() is None, reason="NVRTC is not installed"),
    pytest.mark.skipif(TOOL is None, reason="nvdisasm is not installed"),
]
# One of each kind of multiprocessor; FASTGAR_ALL_KERNELS=1: all of each.
ARCHITECTURES = ("sm_75", "sm_80", "sm_90", "sm_100", "sm_120")
ALL = bool(os.environ.get("FASTGAR_ALL_KERNELS"))
LEAST = 4  # loads under way


def kernels_of(file, macros=()):
    """The kernels of a file; of `distances.cu`, that for which these macros are."""
    if file == "distances.cu":
        return ["partials" if macros else "add"]
    text = re.sub(r"__launch_bounds__\s*\([^)]*\)", "", (nvrtc.KERNELS / file).read_text())
    return re.findall(r"__global__\s+void\s+(\w+)", text)


def codes_of(variant, architecture):
    """The machine code of each kernel of a variant."""
    file, macros, _ = variant
    code, _ = nvrtc.compiled(file, dict(macros), f"-arch={architecture}", *nvrtc.OPTIONS)
    return {kernel: sass.read(code, kernel, TOOL) for kernel in kernels_of(file, macros)}


def code_of(variant, architecture):
    (code,) = codes_of(variant, architecture).values()
    return code


def each(variants, read=code_of):
    """Variant, architecture and machine code of each, on one of the architectures, or on all."""
    variants = list(variants)
    if ALL:
        tasks = [(v, a) for v in variants for a in ARCHITECTURES]
    else:
        tasks = list(zip(variants, cycle(ARCHITECTURES), strict=False))
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        yield from pool.map(lambda task: (*task, read(*task)), tasks)


# ---------------------------------------------------------------------------------------- loads


def fewer(kernel, macros, n):
    """The loads under way of the loops that have fewer than LEAST: there are no more to be had.

    Whatever may be below the bar is here, with its reason.
    """
    m = dict(macros)
    if kernel == "combine" and m["FG_TABLE"]:
        return [2]  # what a tile needs of the record of its leaf: its first tile, and its columns
    if kernel == "columns":
        # A search in two halves for the leaf: with more cuts the values do not stay in registers;
        # and all rows, where they are few.
        return [1] * bool(int(m["FG_TABLE"])) + [n] * (n < LEAST)
    if kernel == "partials":  # the whole next tile; of products, and of the pivot
        products, wide = m["FG_PRODUCTS"], m["FG_DTYPE"] == CODES["float64"]
        shape = pair_shape(n, wide or products, products, m["FG_PACK"] > 1)
        rows = shape.r * shape.groups * (2 if shape.cross else 1)
        loads = -(-rows * shape.columns // m["FG_PACK"] // shape.threads) * (1 + products)
        return [loads] if loads < LEAST else []
    return []


def load_variants():
    """Every kernel, and all ways in which it reads."""
    yield from column_variants()
    for dtype in ("float64", "float32"):
        for n in (300, 20_000):
            closest = Statistic.median(n, closest=n - n // 3)
            yield of_columns(n, dtype, closest, mix=int(n == 300))
    yield of_columns(300, "float16", Statistic.median(300), mix=1)
    yield of_columns(20_000, "bfloat16", Statistic(tuple(range(1, 20_001))), mix=2)
    yield of_columns(3, "float32", Statistic.median(3))
    for code, dtype in enumerate(CODES):
        for kind in ("finite_mean", "sign"):
            votes = votes_variant(kind, dtype, table=kind == "sign", alignment=16)
            yield votes.file, votes.defines, 0
        yield of_combine(dtype, k=1, aligned=True)
        yield of_combine(dtype, k=4, aligned=code % 2 == 0)
        for k, points in enumerate((2, 20, 51, 100, 200)):
            aligned, table = (k + code) % 3 != 0, (k + code) % 2 == 0
            yield of_distances(points, dtype, False, aligned=aligned, table=table)
        for k, points in enumerate((11, 200)):
            aligned, table = (k + code) % 2 == 0, code > 1
            yield of_distances(points, dtype, True, aligned=aligned, table=table)
    halves = of_combine("bfloat16", k=4, aligned=False)  # compilers differ in what they take apart
    for variant in (halves, ("distances.cu", (), 0), ("selection.cu", (), 0)):
        yield from [variant] * (1 if ALL else len(ARCHITECTURES))
    yield "table.cu", (), 0


def test_four_loads_are_under_way_in_every_loop_of_every_kernel():
    """Rows, weights, tiles, records, n x n numbers, and where a place is searched."""
    seen, excepted = set(), set()
    for (_, macros, n), architecture, codes in each(load_variants(), codes_of):
        for kernel, code in codes.items():
            seen.add(kernel)
            found, said = code.load_loops(), (kernel, macros, architecture)
            assert found or kernel == "table", said  # which reads its arguments alone
            below = Counter(k for k in found if k < LEAST)
            assert below <= Counter(fewer(kernel, macros, n)), (*said, found)
            excepted |= {kernel} if below else set()
    files = [path.name for path in nvrtc.KERNELS.glob("*.cu")]
    assert seen == {"partials", *(kernel for file in files for kernel in kernels_of(file))}
    assert excepted == {"columns", "combine", "partials"}  # no exception that nothing needs


# --------------------------------------------------------------------------------- instructions


@pytest.mark.parametrize("rule", ["median", "trimmed_mean"])
def test_columns_take_no_more_minima_and_maxima_than_the_network_needs(rule):
    variants = []
    for n in (11, 20, 32, 51, 100):
        f = (n - 3) // 4
        statistic = Statistic.median(n) if rule == "median" else Statistic.between(n, f, n - f, f)
        variants += [of_columns(n, dtype, statistic) for dtype in CODES if n <= IN_REGISTERS[dtype]]
    for (_, macros, n), architecture, code in each(variants):
        names, counts = dict(macros), code.count()
        needed = int(names["FG_PACK"]) * roofline.exchanges(rule, n, (n - 3) // 4)
        if names["FG_DTYPE"] == str(CODES["float64"]):  # a comparison puts two values in order
            assert counts["FMNMX"] == 0 < counts["DSETP"] < needed, (macros, architecture)
        else:
            found = counts["FMNMX"] + 2 * counts["FMNMX3"]  # of three numbers, on sm_100 and later
            assert 0.98 * needed <= found <= 1.02 * needed, (macros, architecture, found, needed)


def test_a_mixing_takes_little_more_than_its_multiply_adds():
    bars = {11: 1.25, 20: 1.165, 51: 1.21, 100: 1.2}
    for (_, macros, n), architecture, code in each(
        of_columns(n, "float32", Statistic.median(n), mix=1) for n in bars
    ):
        names = dict(macros)
        turn = max((code.shortest(loop) for loop in code.innermost), key=sass.multiply_adds)
        needed = n * int(names["FG_AHEAD"]) * int(names["FG_PACK"])  # others look for NaN
        assert sass.multiply_adds(turn) >= needed
        assert len(turn) <= bars[n] * needed, (architecture, n, len(turn) / needed)


def per_pair(n, code):
    """Instructions of a block for each pair of rows and column of a tile (two are needed)."""
    shape = pair_shape(n, False, False, True)
    work = shape.r**2 * shape.columns // shape.slots  # multiply-adds of a thread in a tile
    tile = max((code.shortest(loop) for loop in code.outermost), key=sass.multiply_adds)
    step = max((code.shortest(loop) for loop in code.innermost), key=sass.multiply_adds)
    turns = max(0, work - sass.multiply_adds(tile)) / sass.multiply_adds(step)
    rows = shape.r * shape.groups
    pairs = rows * rows if shape.cross else n * (n - 1) / 2
    return shape.threads * (len(tile) + turns * len(step)) / (pairs * shape.columns)


@pytest.mark.parametrize(
    ("n", "bar"), [(11, 3.05), (20, 2.4), (32, 2.45), (51, 2.8), (100, 2.55), (200, 2.35)]
)
def test_distances_take_little_more_than_two_instructions_a_pair(n, bar):
    variant = of_distances(n, "float32", False, aligned=True, table=False)
    for _, architecture, code in each([variant]):
        found = per_pair(n, code)
        assert 2 <= found <= bar, (architecture, found)


# ----------------------------------------------------------------------------------- the reader

BAD = """
extern "C" __global__ void bad(const float* x, long long stride, float* out, int n) {
    float total = 0;
#pragma unroll LOADS
    for (int i = 0; i < n; ++i) total += __ldg(x + i * stride) * 2;
    for (int i = 0; i < n; i += 1024) total = fminf(fmaxf(total * total, i), stride);
    out[threadIdx.x] = total;
}
"""


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_one_load_at_a_time_is_found(tmp_path, architecture):
    place = tmp_path / "bad.cu"
    place.write_text(BAD)
    for loads in (1, 8):
        variant = str(place), {"LOADS": loads}, 0
        code = code_of(variant, architecture)
        assert max(code.load_loops()) == loads
        assert code.count()["FMNMX"] >= 2 and len(code.loops) >= 2


LISTING = """
        /*0000*/                   MOV R1, 0x1 ;
.L_x_0:
        /*0010*/                   LDG.E.128.CONSTANT R4, desc[UR4][R2.64] ;
        /*0020*/                   LDG.E.128.CONSTANT R8, desc[UR4][R2.64+0x10] ;
        /*0030*/              @!P0 BRA `(.L_x_1) ;
        /*0040*/                   FFMA R0, R7, R1, R0 ;
        /*0050*/                   FFMA R0, R11, R1, R0 ;
.L_x_1:
        /*0060*/              @P1  BRA `(.L_x_0) ;
        /*0070*/                   EXIT ;
.L_x_2:
        /*0080*/                   BRA `(.L_x_2) ;
"""


def test_ways_and_registers_are_read():
    code = sass.Code(LISTING)
    (loop,) = code.loops  # what comes after the end is not reached
    assert [i.base for i in code.shortest(loop)] == ["LDG", "LDG", "BRA", "FFMA", "FFMA", "BRA"]
    assert len(code.way(loop, lambda i: -1)) == 4
    assert code.load_loops() == [2] and code.blocks[1][0].written == {4, 5, 6, 7}
    assert code.count() == {"MOV": 1, "LDG": 2, "FFMA": 2, "BRA": 3, "EXIT": 1}


HALVES = """
.L_x_0:
        /*0010*/                   LDG.E.CONSTANT R4, desc[UR4][R2.64+-0x4] ;
        /*0020*/                   LDG.E.CONSTANT R5, desc[UR4][R2.64] ;
        /*0030*/                   LDG.E.CONSTANT R6, desc[UR4][R2.64+0x4] ;
        /*0040*/                   LDG.E.CONSTANT R9, desc[UR4][R2.64+0x24] ;
        /*0050*/                   LDG.E.CONSTANT R8, desc[UR4][R2.64+0x20] ;
        /*0060*/                   LDG.E.CONSTANT R2, desc[UR4][R4.64] ;
        /*0070*/                   LDG.E.CONSTANT R3, desc[UR4][R2.64+0x4] ;
        /*0080*/                   FADD R0, R3, R8 ;
        /*0090*/                   BRA `(.L_x_0) ;
"""


def test_halves_of_a_number_are_one_load():
    (block,) = sass.Code(HALVES).blocks[:1]
    assert sass.under_way(block[:5]) == 3  # two of 8 bytes, one of 4
    assert sass.under_way(block[:6]) == 3  # that address does not count
    assert sass.under_way(block[:7]) == 3  # as R2 is another by then
    assert sass.under_way(block) == 3
