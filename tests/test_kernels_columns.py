"""Column kernels for CUDA, run on the host, against those for the CPU: the same bits."""

from __future__ import annotations

import mmap
import platform
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from emulation import EmulationError, build, guarded, needs_compiler, sanitizer_environment

from fastgar import arrays, primitives
from fastgar.cpu import backend
from fastgar.cuda.variants import columns_variant, votes_variant
from fastgar.statistic import Statistic, hash_key

ml_dtypes = pytest.importorskip("ml_dtypes")
pytestmark = needs_compiler()


@pytest.fixture(autouse=True)
def one_cpu_kernel(monkeypatch):
    """The CPU's kernel for any number of rows gives the bits of the others, and compiles once."""
    monkeypatch.setattr(backend, "FIXED_ROWS", 0)


DTYPES = {
    "float16": np.float16,
    "bfloat16": ml_dtypes.bfloat16,
    "float32": np.float32,
    "float64": np.float64,
}
SIZE = {"float16": 2, "bfloat16": 2, "float32": 4, "float64": 8}


def sample(n, d, dtype="float32", seed=0, faults=0):
    """Numbers with ties, and up to `faults` of each column NaN or infinite."""
    rng = np.random.default_rng(seed)
    X = rng.standard_normal((n, d)).astype(np.float32)
    X[:, ::3] = np.round(4 * X[:, ::3]) / 4
    for column in range(0, d, 2):
        bad = rng.permutation(n)[: rng.integers(0, faults + 1)]
        X[bad, column] = rng.choice([np.nan, np.inf, -np.inf], len(bad))
    return X.astype(DTYPES[dtype])


def bits(array):
    """The bytes of an array, where all NaN are one."""
    with np.errstate(invalid="ignore"):  # of NaN that signal
        return np.where(np.isnan(array), array.dtype.type(np.nan), array).tobytes()


def alignment_of(*places):
    power = 16
    while any(place % power for place in places):
        power //= 2
    return power


def addresses_of(X):
    return np.array([row.ctypes.data for row in X], dtype=np.int64)


def raw(array):
    return array.view(np.uint16) if array.dtype.itemsize == 2 else array


def emulated(
    X, statistic, mixing=None, picks=None, *, table=False, d=None, offset=0, order="shuffled",
    blocks=None, at="end", align=None, flush=False,
):  # fmt: skip
    """The statistic by the CUDA kernel; reading or writing outside of the arrays is an error."""
    dtype = X.dtype.name
    n, width = X.shape
    d = width if d is None else d
    rows = guarded(raw(X), at=at)
    out = guarded(np.zeros(d, raw(X).dtype), at=at)
    places = [*addresses_of(rows), out.ctypes.data]
    m = len(mixing) if mixing is not None else len(picks) if picks is not None else n
    mix = 1 if mixing is not None else 2 if picks is not None else 0
    if statistic.kind in ("finite_mean", "sign"):
        variant = votes_variant(
            statistic.kind, dtype, table=table, alignment=align or alignment_of(*places)
        )
    else:
        variant = columns_variant(
            statistic, m, n, dtype, table=table, mix=mix, alignment=align or alignment_of(*places)
        )
    module = build(variant.file, dict(variant.defines), flush=flush)
    grid = variant.grid(d) if blocks is None else blocks
    leaf = np.array([0, 0, d, 0, *addresses_of(rows)])  # the record of the only one
    source, stride = (guarded(leaf), 1) if table else (rows, rows.strides[0])
    if variant.kernel == "votes":
        args = [source, stride, n, statistic.faults, out, d]
    else:
        low, high, ranks = statistic.support
        mixed = mixing if mixing is not None else picks
        key = statistic.key - (1 << 64) if statistic.key >> 63 else statistic.key
        scratch = np.zeros(max(variant.scratch * grid, 8), np.uint8)
        args = [
            source, stride, n, None if mixed is None else guarded(mixed),
            0 if mixing is None else mixing.shape[1], m, low, high, statistic.closest or 0,
            None if ranks is None else guarded(ranks), statistic.faults, key,
            statistic.probability, offset, out, d, guarded(scratch),
        ]  # fmt: skip
    module.launch(variant.kernel, grid, variant.block, args, shared=variant.shared, order=order)
    result = np.array(out)
    return result.view(X.dtype)


def on_cpu(X, statistic, mixing=None, offset=0):
    T = arrays.table(X)
    out = T.empty()
    primitives.columns(T, statistic, mixing, out, offset=offset, careful=True)
    return np.asarray(out.value())


def statistics(n):
    f = n // 4
    yield Statistic.median(n)
    yield Statistic.median(n, "lower", faults=f)
    yield Statistic.median(n, "upper", faults=f)
    yield Statistic.between(n, f, n - f, f)
    yield Statistic.between(n, n - 1, n, f)
    yield Statistic.median(n, closest=n - f, faults=f)
    yield Statistic.between(n, f, n - f, f, closest=max(1, n // 3))
    yield Statistic(tuple(np.random.default_rng(n).dirichlet(np.ones(n))), faults=f)


def same(X, statistic, **options):
    want = on_cpu(X, statistic)
    assert bits(emulated(X, statistic, **options)) == bits(want), statistic


# -------------------------------------------------------------------------------- the rows


@pytest.mark.parametrize(
    ("n", "dtype"),
    [
        *((n, "float32") for n in (1, 2, 3, 8, 11, 20, 51)),
        *((n, dtype) for n in (12,) for dtype in ("float16", "bfloat16", "float64")),
    ],
)
def test_every_statistic_has_the_bits_of_the_cpu(n, dtype):
    X = sample(n, 1003, dtype, seed=n, faults=n // 4 + 1)
    for statistic in list(statistics(n))[:: 1 if dtype == "float32" else 2]:
        same(X, statistic)


@pytest.mark.parametrize(
    ("n", "dtype"),
    [(60, "float64"), (61, "float64"), (100, "float32"), (128, "float16"), (128, "float32")],
)
def test_as_many_values_as_registers_hold_and_one_more(n, dtype):
    X = sample(n, 133, dtype, seed=n, faults=n // 4 + 1)
    same(X, Statistic.median(n))
    same(X, Statistic.between(n, n // 5, n - n // 5, n // 4))


@pytest.mark.parametrize(
    ("n", "dtype"),
    [
        (129, "float32"),
        (200, "float32"),
        (257, "bfloat16"),
        (530, "float32"),
        (1024, "float32"),
        (700, "float64"),
        (1024, "float16"),
    ],
)
def test_hundreds_of_values_are_sorted_in_a_tile(n, dtype):
    X = sample(n, 37, dtype, seed=n, faults=n // 4 + 1)
    for statistic in statistics(n):
        same(X, statistic)


def test_thousands_of_values_are_sorted_in_narrower_tiles_and_then_in_global_memory():
    for n, dtype, d in ((3000, "float32", 5), (11_000, "float32", 3), (12_100, "float32", 9)):
        X = sample(n, d, dtype, seed=n, faults=n // 4 + 1)
        same(X, Statistic.between(n, n // 5, n - n // 5, n // 4))
        same(X, Statistic.median(n, closest=n // 2, faults=n // 4), blocks=1)


@pytest.mark.parametrize(
    ("n", "dtype"),
    [(7, "float16"), (13, "bfloat16"), (7, "float32"), (21, "float32"), (7, "float64")],
)
def test_any_number_of_columns_any_stride_and_rows_by_table(n, dtype):
    wide = sample(n, 300, dtype, seed=n, faults=1)
    statistic = Statistic.between(n, 1, n - 1, 2)
    for d in (1, 2, 7, 8, 9, 255, 257):
        X = wide[:, :d].copy()
        same(X, statistic, at="end", table=d % 2 == 0)
        same(X, statistic, at="start", table=d % 2 == 1)
    want = on_cpu(wide[:, :77].copy(), statistic)
    assert bits(emulated(wide, statistic, d=77)) == bits(want)


@pytest.mark.parametrize("n", [9, 150])
@pytest.mark.parametrize("order", ["ascending", "descending"])
def test_the_order_of_threads_and_blocks_and_their_number_do_not_matter(n, order):
    X = sample(n, 700 if n == 9 else 50, seed=n, faults=3)
    for statistic in list(statistics(n))[3::2]:
        first = emulated(X, statistic)
        assert bits(emulated(X, statistic, order=order, blocks=2)) == bits(first)


@pytest.mark.parametrize("n", [5, 12, 70, 140])
def test_faults_beyond_the_limit_are_nan_and_never_a_plausible_number(n):
    f = (n - 1) // 2
    X = sample(n, 400 if n < 100 else 60, seed=n, faults=n)
    for statistic in (Statistic.median(n), Statistic.between(n, f, n - f, f)):
        got = emulated(X, statistic)
        assert np.isnan(got).any() and np.isfinite(got).any()
        assert bits(got) == bits(on_cpu(X, statistic))


def test_means_do_not_overflow():
    X = np.full((7, 40), 3e38, np.float32)
    assert np.array_equal(emulated(X, Statistic.between(7, 1, 6, 1)), X[0])


def test_scratch_of_very_many_rows_is_bounded():
    for n, blocks in ((12_000, 2 * 132), (100_000, 78), (1_000_000, 7), (100_000_000, 1)):
        statistic = Statistic.between(12_000, 0, 1, 0)
        variant = columns_variant(statistic, n, n, "float32", table=True, mix=0, alignment=4)
        assert variant.grid(10**9, 132) == blocks and variant.grid(1, 132) == 1
        assert blocks == 1 or blocks * variant.scratch <= 256 << 20


# ----------------------------------------------------------------------------- mixed and picked


@pytest.mark.parametrize("table", [False, True])
@pytest.mark.parametrize(
    ("n", "m", "dtype"),
    [(7, 7, "float32"), (12, 9, "float64"), (20, 20, "float32"), (11, 5, "float16"),
     (9, 9, "bfloat16"), (40, 33, "float32"), (17, 140, "float32")],
)  # fmt: skip
def test_a_mixing_is_fused(n, m, dtype, table):
    rng = np.random.default_rng(n)
    W = rng.dirichlet(np.ones(n), m)
    W[:, 3] = W[0] = 0
    W[0, 2] = 1.0
    X = sample(n, 203 if m < 100 else 21, dtype, seed=n)
    X[3] = np.nan  # a row that no mixed row reads
    X[2, 5] = np.inf
    W[1] = np.nan  # a faulty mixed row
    for statistic in (
        Statistic.median(m),
        Statistic.between(m, 1, m - 1, 1),
        Statistic.median(m, closest=m - 2, faults=1),
    ):
        want = on_cpu(X, statistic, W)
        assert bits(emulated(X, statistic, W, table=table)) == bits(want)


def test_a_mixing_of_more_rows_than_shared_memory_holds_weights_for():
    n, m = 400, 33
    W = np.random.default_rng(0).dirichlet(np.ones(n), m)
    X = sample(n, 150, seed=1)
    statistic = Statistic.median(m)
    got = emulated(X, statistic, W, blocks=1, order="shuffled")
    assert bits(got) == bits(on_cpu(X, statistic, W))


@pytest.mark.parametrize("table", [False, True])
@pytest.mark.parametrize("theta", [6, 131])
def test_picked_rows_are_read_where_they_are(theta, table):
    n = theta + 5
    X = sample(n, 90, seed=3, faults=1)
    picks = np.random.default_rng(0).permutation(n)[:theta].astype(np.int64)
    statistic = Statistic.median(theta, faults=2, closest=theta - 4)
    want = on_cpu(X[picks], statistic)
    assert bits(emulated(X, statistic, picks=picks, table=table)) == bits(want)
    none = np.full(theta, -1)
    assert np.isnan(emulated(X, statistic, picks=none, table=table)).all()


# ---------------------------------------------------------------- condense and those without order


@pytest.mark.parametrize(("n", "middle"), [(6, "mean"), (140, "mean"), (6, "lower")])
def test_condense_takes_the_median_or_the_first_row(n, middle):
    from dataclasses import replace

    key = hash_key(12345, 3)
    assert key >> 63  # does not fit a signed integer
    X = sample(n, 333 if n == 6 else 60, seed=2, faults=1)
    statistic = replace(Statistic.median(n, middle), kind="condense", probability=0.7, key=key)
    got = emulated(X, statistic, offset=10**10)
    assert bits(got) == bits(on_cpu(X, statistic, offset=10**10))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", ["finite_mean", "sign"])
def test_finite_mean_and_signs(kind, dtype):
    for n, d in ((1, 5), (6, 515), (33, 130)):
        X = sample(n, d, dtype, seed=n, faults=n)
        statistic = Statistic((), kind=kind, faults=n // 3)
        for table in (False, True):
            same(X, statistic, table=table)
        same(X, statistic, blocks=1, order="shuffled")


# ------------------------------------------------------------------------- more than 2^31 numbers


def huge(count):
    """An array of zeros, of which only the pages that are touched exist."""
    try:
        flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | getattr(mmap, "MAP_NORESERVE", 0x4000)
        return np.frombuffer(mmap.mmap(-1, 2 * count, flags=flags), dtype=np.uint16)
    except (OSError, ValueError):
        pytest.skip("this machine does not lend out so many addresses")


@pytest.mark.parametrize("kind", ["registers", "tile", "votes"])
def test_columns_past_two_to_the_31(kind):
    d, last = (1 << 31) + 999, 40
    n = 130 if kind == "tile" else 3
    picks = np.arange(n) % 3  # of three rows, however many values there are
    X, out = huge(3 * d), huge(d)
    for i in range(3):
        X[(i + 1) * d - last : (i + 1) * d] = np.float32(i + 1).view(np.uint32) >> 16
    if kind == "votes":
        variant = votes_variant("finite_mean", "bfloat16", table=False, alignment=2)
        args = [X, 2 * d, 3, 0, out, d]
    else:
        median = Statistic.median(n)
        variant = columns_variant(median, n, 3, "bfloat16", table=False, mix=2, alignment=2)
        low, high, _ = median.support
        args = [X, 2 * d, 3, picks, 0, n, low, high, 0, None, 0, 0, 1.0, 0, out, d, None]
    grid = variant.grid(d)
    module = build(variant.file, dict(variant.defines))
    module.launch(
        variant.kernel, grid, variant.block, args, shared=variant.shared, only=(grid - 2, grid)
    )
    two = np.float32(2.0).view(np.uint32) >> 16
    tail = out[d - variant.columns - 1 :]
    assert (tail[-min(last, len(tail)) :] == two).all() and not out[: 1 << 20].any()


# -------------------------------------------------------------------------------- subnormal numbers


@pytest.mark.parametrize("n", [6, 7, 140])
def test_subnormal_numbers_are_kept(n):
    X = sample(n, 133 if n < 100 else 21, seed=n)
    f = n // 4
    for scale in (1e-39, 2e-38, 2e-20):
        rows = X * np.float32(scale)
        rows[:, ::5] *= 0.0  # zeros of either sign
        for statistic in (Statistic.median(n), Statistic.between(n, f, n - f, f)):
            same(rows, statistic)


@pytest.mark.skipif(platform.machine() != "x86_64", reason="other processors flush otherwise")
def test_a_compiler_that_flushes_them_would_be_noticed():
    X = np.full((6, 50), 1.5e-38, np.float32)  # is not subnormal, and half of it is
    X[3:] *= np.float32(1.25)
    median = Statistic.median(6)
    same(X, median)
    assert on_cpu(X, median).all()
    assert not emulated(X, median, flush=True).any()
    X = np.full((7, 50), -1e-39, np.float32)
    assert on_cpu(X, Statistic.median(7)).all()
    assert not emulated(X, Statistic.median(7), flush=True).any()
    ones = np.arange(300, dtype=np.float32).reshape(6, 50)
    assert bits(emulated(ones, median, flush=True)) == bits(on_cpu(ones, median))


# ---------------------------------------------------------------------------------- the emulation


def test_a_wide_load_that_the_alignment_does_not_allow_is_found():
    X = sample(4, 101)
    with pytest.raises(EmulationError, match="misaligned"):
        emulated(X, Statistic.median(4), align=16)


SANITIZED = """
import numpy as np
import test_kernels_columns as t
from fastgar.statistic import Statistic
build, t.build = t.build, lambda *args, **how: build(*args, **how, sanitize="address")
for n in (6, 130):
    X = t.sample(n, 35, faults=1)
    W = np.random.default_rng(0).dirichlet(np.ones(n), n)
    for mixing in (None, W):
        t.emulated(X, Statistic.median(n, closest=n - 2, faults=1), mixing)
print("clean", flush=True)
variant = t.columns_variant(Statistic.median(130), 130, 130, "float32", table=0, mix=0, alignment=4)
object.__setattr__(variant, "shared", variant.shared - 1024)
t.emulated(X, Statistic.median(130))
"""


def test_shared_memory_stays_within_its_bounds():
    environment = sanitizer_environment()
    if environment is None:
        pytest.skip("the compiler comes without the address sanitizer")
    done = subprocess.run(
        [sys.executable, "-c", SANITIZED], cwd=Path(__file__).parent, env=environment,
        capture_output=True, text=True,
    )  # fmt: skip
    assert done.stdout == "clean\n", done.stderr[-3000:]
    assert "AddressSanitizer" in done.stderr  # of a launch with too little of it


def test_a_row_too_many_is_found():
    X = sample(5, 64)
    rows, out = guarded(X), guarded(np.zeros(64, np.float32))
    variant = columns_variant(Statistic.median(6), 6, 6, "float32", table=False, mix=0, alignment=4)
    module = build(variant.file, dict(variant.defines))
    args = [rows, rows.strides[0], 6, None, 0, 6, 2, 4, 0, None, 2, 0, 1.0, 0, out, 64, None]
    with pytest.raises(EmulationError, match=r"access at .* of argument 0, which has 1280 bytes"):
        module.launch("columns", 1, variant.block, args)
