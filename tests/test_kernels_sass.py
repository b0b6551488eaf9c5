"""What the machine code of the kernels does: loads under way, instructions for each number.

Bars on what `asv_benchmarks/sass.py` reads off NVIDIA's disassembler. They are near what the
compiler makes today: a kernel that falls below one got slower, whatever its bits are.
"""

from __future__ import annotations

import os
import sys
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
KERNELS = {"distances.cu": "partials"}  # others are named as their file is
LEAST = 4  # loads under way


def code_of(variant, architecture):
    file, macros, _ = variant
    code, _ = nvrtc.compiled(file, dict(macros), f"-arch={architecture}", *nvrtc.OPTIONS)
    return sass.read(code, KERNELS.get(file, Path(file).stem), TOOL)


def each(variants):
    """Pairs of (variant, machine code), each on one of the architectures, or on all of them."""
    variants = list(variants)
    if ALL:
        tasks = [(v, a) for v in variants for a in ARCHITECTURES]
    else:
        tasks = list(zip(variants, cycle(ARCHITECTURES), strict=False))
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        yield from pool.map(lambda task: (*task, code_of(*task)), tasks)


# ---------------------------------------------------------------------------------------- loads


def test_loads_are_under_way_together_in_every_loop_that_has_any():
    """Of rows, weights, tiles that are sorted in global memory; of a leaf's record in a loop, two.

    Not held to it are bisections, for a leaf's record or for where a window begins: where one reads
    next depends on what it has just read.
    """
    variants = [v for v in column_variants() if v[0] != "votes.cu"]
    for dtype in ("float64", "float32"):
        for n in (300, 20_000):
            closest = Statistic.median(n, closest=n - n // 3)
            variants.append(of_columns(n, dtype, closest, mix=int(n == 300)))
    variants.append(of_columns(300, "float16", Statistic.median(300), mix=1))
    weights = Statistic(tuple(range(1, 20_001)))
    variants.append(of_columns(20_000, "bfloat16", weights, mix=2))
    for dtype in CODES:
        variants += [of_combine(dtype, k=k, aligned=True) for k in (1, 4)]
        for kind in ("finite_mean", "sign"):
            votes = votes_variant(kind, dtype, table=kind == "sign", alignment=16)
            variants.append((votes.file, votes.defines, 0))
    for (file, macros, n), architecture, code in each(variants):
        found, least = code.load_loops(), min(LEAST, n or LEAST)
        if file == "combine.cu":  # only there a loop around others reads a record
            assert min(found) >= 2, (macros, architecture, found)
            found = code.load_loops(code.innermost)
        assert found and min(found) >= least, (file, macros, architecture, found)


@pytest.mark.parametrize("n", [11, 20, 51, 100, 200] if ALL else [20, 200])
def test_the_next_tile_of_distances_is_loaded_ahead(n):
    variants = [of_distances(n, "float32", False, aligned=a, table=t)
                for a, t in ((True, True), (True, False), (False, False))]  # fmt: skip
    variants += [of_distances(n, "bfloat16", False, aligned=True, table=False)]
    variants += [of_distances(n, "float64", False, aligned=True, table=False)]
    for (_, macros, _), architecture, code in each(variants):
        names = dict(macros)
        shape = pair_shape(n, names["FG_DTYPE"] == CODES["float64"], False, names["FG_PACK"] > 1)
        rows = shape.r * shape.groups * (2 if shape.cross else 1)
        loads = -(-rows * shape.columns // names["FG_PACK"] // shape.threads)  # of a thread
        found = code.loads_under_way(code.busiest)
        assert found >= min(LEAST, loads), (macros, architecture, found, loads)


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
