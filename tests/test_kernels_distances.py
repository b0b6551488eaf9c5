"""`distances.cu` on the host's processor, against NumPy in double precision."""

from __future__ import annotations

import numpy as np
import pytest
from emulated import EmulatedDevice
from emulation import guarded, needs_compiler

from fastgar import arrays, primitives
from fastgar.cuda import backend as cuda
from fastgar.cuda import connect
from fastgar.cuda import device as devices
from fastgar.cuda.shapes import SPAN, pair_shape
from fastgar.libraries import Library
from fastgar.statistic import CHUNK

ml_dtypes = pytest.importorskip("ml_dtypes")
pytestmark = needs_compiler()

DTYPES = {
    "float16": np.float16,
    "bfloat16": ml_dtypes.bfloat16,
    "float32": np.float32,
    "float64": np.float64,
}
# Direct differences: rounding is that of sums of 2048 floats, split among the slots.
TOLERANCE = {"float16": 1e-5, "bfloat16": 1e-5, "float32": 1e-5, "float64": 1e-13}


@pytest.fixture
def gpu(monkeypatch):
    device = EmulatedDevice()
    monkeypatch.setitem(connect._devices, device.name, device)
    return cuda.Backend(device.name, Library())


def sample(n, d, dtype="float32", seed=0):
    X = np.random.default_rng(seed).standard_normal((n, d)) + 3.0
    return X.astype(DTYPES[dtype])


def places(X):
    return X.ctypes.data + np.arange(len(X), dtype=np.int64) * X.strides[0]


def sqdist(gpu, X, dtype="float32", start=None, rows=None):
    rows = places(X) if rows is None else rows
    total = gpu.matrix(len(rows), start)
    gpu.add_distances(total, rows, X.shape[1], dtype)
    return gpu.complete(total, True)


def expected(X):
    X = X.astype(np.float64)
    return np.array([[((a - b) ** 2).sum() for b in X] for a in X])


def check(D, X, dtype="float32"):
    np.testing.assert_allclose(D, expected(X), rtol=TOLERANCE[dtype])
    assert np.array_equal(D, D.T)
    assert np.array_equal(np.diagonal(D), np.zeros(len(D)))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("n", [1, 2, 3, 5, 11, 20])
def test_sqdist_is_the_sum_of_squared_differences(gpu, n, dtype):
    for d in (1, 7, 8, 33, 257, SPAN, SPAN + 1, CHUNK + 3):
        X = guarded(sample(n, d, dtype, seed=d))
        check(sqdist(gpu, X, dtype), X, dtype)


@pytest.mark.parametrize(
    ("n", "d", "dtype"),
    [(51, 300, "float32"), (100, 77, "float32"), (128, 40, "float64"), (64, 2100, "bfloat16")],
)
def test_many_rows_fit_in_one_block(gpu, n, d, dtype):
    assert not pair_shape(n, dtype == "float64", False, True).cross
    X = sample(n, d, dtype)
    check(sqdist(gpu, X, dtype), X, dtype)


@pytest.mark.parametrize(("n", "dtype"), [(129, "float32"), (200, "float16"), (513, "float32")])
def test_more_rows_are_tiled_over_blocks(gpu, n, dtype):
    assert pair_shape(n, False, False, True).cross
    X = sample(n, 35 if n > 500 else SPAN + 9, dtype)
    X[n - 1, 5] = np.nan
    X[70] = X[3]
    D = sqdist(gpu, X, dtype)
    assert np.isinf(D[n - 1]).all() and np.isinf(D[:, n - 1]).all()
    assert D[70, 3] == 0.0
    check(D[: n - 1, : n - 1], X[: n - 1], dtype)


@pytest.mark.parametrize("order", ["ascending", "descending"])
@pytest.mark.parametrize("n", [4, 20, 33, 130])
def test_the_order_of_threads_and_blocks_does_not_matter(gpu, monkeypatch, n, order):
    X = sample(n, 2 * SPAN + 100)
    X[1, 3] = np.inf
    plain = sqdist(gpu, X)
    from emulation import Module

    launch = Module.launch
    monkeypatch.setattr(Module, "launch", lambda *args: launch(*args, order=order))
    assert np.array_equal(sqdist(gpu, X), plain)


@pytest.mark.parametrize("n", [6, 11, 20, 51])
@pytest.mark.parametrize("dtype", ["bfloat16", "float32", "float64"])
def test_alignment_and_layout_do_not_change_the_bits(gpu, n, dtype):
    X = sample(n, 1000, dtype)
    plain = sqdist(gpu, X, dtype)
    odd = np.zeros((n, 1001), X.dtype)[:, 1:]
    odd[...] = X
    assert np.array_equal(sqdist(gpu, odd, dtype), plain)
    apart = [row.copy() for row in X]
    table = np.array([row.ctypes.data for row in apart], np.int64)
    assert np.array_equal(sqdist(gpu, X, dtype, rows=table[::-1])[::-1, ::-1], plain)
    assert gpu.device.launches.count("table") == 1


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_faulty_row_is_infinitely_far_even_from_itself(gpu, dtype, bad):
    for place in (0, SPAN - 1, SPAN, CHUNK + 4):
        X = sample(5, CHUNK + 5, dtype)
        X[3, place] = bad
        D = sqdist(gpu, X, dtype)
        others = np.array([0, 1, 2, 4])
        assert np.isinf(D[3]).all() and np.isinf(D[:, 3]).all()
        assert np.array_equal(D[np.ix_(others, others)], D[np.ix_(others, others)].T)
        np.testing.assert_allclose(
            D[np.ix_(others, others)], expected(X[others]), rtol=TOLERANCE[dtype]
        )


def test_one_row_can_be_faulty_too(gpu):
    assert np.array_equal(sqdist(gpu, sample(1, 99)), [[0.0]])
    assert np.array_equal(sqdist(gpu, np.full((1, 99), np.nan, np.float32)), [[np.inf]])


@pytest.mark.parametrize("n", [5, 130])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_distances_of_finite_rows_do_not_overflow(gpu, n, dtype):
    X = sample(n, 2 * SPAN + 3, dtype)
    X[1] = DTYPES[dtype](1e30)
    X[2, 10] = DTYPES[dtype](3e38)
    X[n - 1, 10] = DTYPES[dtype](-3e38)
    X[3, 5] = np.nan
    D = sqdist(gpu, X, dtype)
    sound = np.delete(np.arange(n), 3)
    np.testing.assert_allclose(D[np.ix_(sound, sound)], expected(X[sound]), rtol=1e-5)


def test_float64_overflows_to_infinity_and_never_to_nan(gpu):
    X = sample(4, 50, "float64")
    X[1], X[2] = 1e300, -1.7e308
    D = sqdist(gpu, X, "float64")
    assert np.isinf(D[1, [0, 2, 3]]).all() and np.isinf(D[2, [0, 1, 3]]).all()
    assert D[0, 0] == D[1, 1] == D[2, 2] == 0.0 and np.isfinite(D[0, 3])


def test_copies_are_exactly_zero_apart(gpu):
    for n in (7, 20, 51, 130):
        X = sample(n, 3000)
        X[n - 2], X[4] = X[1], X[1]
        D = sqdist(gpu, X)
        assert D[n - 2, 1] == D[4, 1] == D[n - 2, 4] == 0.0


def test_a_shared_part_does_not_cost_accuracy(gpu):
    rng = np.random.default_rng(1)
    X = (rng.standard_normal(5000) + 1e-5 * rng.standard_normal((8, 5000))).astype(np.float32)
    np.testing.assert_allclose(sqdist(gpu, X), expected(X), rtol=1e-5)


def test_the_origin_is_the_address_zero(gpu):
    X = sample(6, SPAN + 77)
    D = sqdist(gpu, X, rows=np.append(places(X), [0, X[2].copy().ctypes.data]).astype(np.int64)[:7])
    np.testing.assert_allclose(D[6, :6], (X.astype(float) ** 2).sum(axis=1), rtol=1e-5)
    assert np.array_equal(D[:6, :6].diagonal(), np.zeros(6)) and D[6, 6] == 0.0


@pytest.mark.parametrize("n", [3, 20])
def test_a_row_cut_at_chunks_gives_the_bits_of_the_whole(gpu, monkeypatch, n):
    X = sample(n, 4 * CHUNK + 100)
    X[0, CHUNK] = np.nan
    whole = sqdist(gpu, X)
    D = None
    for begin, end in [(0, CHUNK), (CHUNK, 3 * CHUNK), (3 * CHUNK, X.shape[1])]:
        D = sqdist(gpu, X[:, begin:end].copy(), start=D)
    assert np.array_equal(D, whole)
    monkeypatch.setattr(cuda, "PARTIAL_BYTES", 0)  # and so do launches of one chunk each
    assert np.array_equal(sqdist(gpu, X), whole)


def test_long_sums_go_through_every_batch_of_the_adding(gpu):
    d = 40 * CHUNK + 5
    X = np.zeros((2, d), np.float32)
    X[0] = np.arange(d) % 7
    assert sqdist(gpu, X)[0, 1] == float((X[0].astype(float) ** 2).sum())


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("n", [1, 6, 20, 130])
def test_inner_products_are_those_of_the_cpu(gpu, n, dtype):
    d = 2100 if n < 50 else 50
    X = sample(n, d, dtype)
    scale = np.linspace(0.5, 1.0, n)
    if n > 4:
        X[3], scale[3] = np.nan, 0.0  # scale 0 means not read
    total = gpu.matrix(n, None)
    pivot = n - 1
    gpu.add_inner(total, places(X), d, dtype, pivot, scale)
    got = gpu.complete(total, False)
    want = primitives.inner(arrays.table(X), [], pivot, scale)
    np.testing.assert_allclose(got, want, rtol=1e-12, atol=1e-12 * np.abs(want).max())
    assert np.array_equal(got, got.T)


def test_columns_past_two_to_the_thirty_two(gpu):
    """The last columns of rows that are said to begin 16 GB before them."""
    d, first = 100, 1 << 21  # the span of columns that begins at number 2^32
    values = np.full(d, 2.0, np.float32)
    start = values.ctypes.data - first * SPAN * values.itemsize
    shape = pair_shape(3, False, False, False)
    triangles, counter = np.zeros(6), np.zeros(1, np.int64)
    rows = np.array([start, start, 0], np.int64)
    kernel = devices.kernel(
        "distances.cu", "partials", tuple(shape.defines(2, True, 1, False).items())
    )
    leaf = np.concatenate([[0, 0, first * SPAN + d, 0], rows])
    table, *rest = (array.ctypes.data for array in (leaf, triangles, counter))
    arguments = (table, 1, 3, 0, first, *rest, 0, 0)
    gpu.device.launch(kernel, 1, shape.threads, 0, arguments, 0)
    assert triangles.tolist() == [0.0, 0.0, 0.0, 4.0 * d, 4.0 * d, 0.0]
