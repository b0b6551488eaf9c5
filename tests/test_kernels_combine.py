"""`combine.cu` and `table.cu` on the host's processor: the bits of the CPU kernel."""

from __future__ import annotations

import numpy as np
import pytest
from emulated import EmulatedDevice
from emulation import build, guarded, needs_compiler
from test_kernels_columns import bits, huge
from test_zeros import table

from fastgar.cpu import backend as cpu
from fastgar.cuda import backend as cuda
from fastgar.cuda import connect
from fastgar.libraries import Library
from fastgar.statistic import Statistic

ml_dtypes = pytest.importorskip("ml_dtypes")
pytestmark = needs_compiler()

DTYPES = {
    "float16": np.float16,
    "bfloat16": ml_dtypes.bfloat16,
    "float32": np.float32,
    "float64": np.float64,
}


@pytest.fixture
def gpu(monkeypatch):
    device = EmulatedDevice()
    monkeypatch.setitem(connect._devices, device.name, device)
    return cuda.Backend(device.name, Library())


def sample(n, d, dtype="float32", seed=0):
    return np.random.default_rng(seed).standard_normal((n, d)).astype(DTYPES[dtype])


def places(X):
    return X.ctypes.data + np.arange(len(X), dtype=np.int64) * X.strides[0]


def combine(backend, W, X, dtype="float32", rows=None, outs=None):
    out = guarded(np.full((len(W), X.shape[1]), 7).astype(X.dtype))
    where = places(out).tolist() if outs is None else outs
    rows = places(X) if rows is None else rows
    backend.combine(W, rows, X.shape[1], dtype, where)
    backend.flush()
    return out


def equal(a, b):
    return a.dtype == b.dtype and bits(a) == bits(b)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("k", [1, 2, 4, 5])
def test_combine_has_the_bits_of_the_cpu(gpu, k, dtype):
    rng = np.random.default_rng(k)
    for n, d in [(1, 1), (3, 7), (7, 1025), (20, 2048), (33, 4099)]:
        X = guarded(sample(n, d, dtype, seed=d))
        W = rng.standard_normal((k, n))
        W[:, ::3] = 0.0
        assert equal(combine(gpu, W, X, dtype), combine(cpu, W, X, dtype))


@pytest.mark.parametrize("n", [512, 513, 1100])
def test_more_rows_than_are_listed_at_a_time(gpu, n):
    X, W = sample(n, 777), np.random.default_rng(0).standard_normal((5, n))
    W[:, 200:600] = 0.0
    W[2] = 0.0
    assert equal(combine(gpu, W, X), combine(cpu, W, X))


@pytest.mark.parametrize("k", [1, 3])
def test_weight_zero_means_not_read(gpu, k):
    X = sample(6, 100)
    X[2], X[4, 3] = np.nan, np.inf
    W = np.full((k, 6), 0.25)
    W[:, [2, 4]] = 0.0
    clean = np.nan_to_num(X, posinf=0.0)
    assert equal(combine(gpu, W, X), combine(cpu, W, clean))
    rows = places(X)
    rows[2] = 8  # no such memory
    assert equal(combine(gpu, W, X, rows=rows), combine(cpu, W, clean))


def test_a_zero_in_one_row_of_weights_does_not_spoil_the_others(gpu):
    X = sample(3, 50)
    X[1] = np.nan
    out = combine(gpu, np.array([[0.5, 0.0, 0.5], [0.5, 0.5, 0.0], [0.0, 0.0, 0.0]]), X)
    assert equal(out[0], combine(cpu, np.array([[0.5, 0.0, 0.5]]), X)[0])
    assert np.isnan(out[1]).all()
    assert (out[2] == 0.0).all() and not np.signbit(out[2]).any()


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_row_of_nan_in_the_weights_is_a_row_of_nan(gpu, dtype):
    X = sample(4, 33, dtype)
    W = np.array([[np.nan] * 4, [0.0, 1.0, 0.0, 0.0]])
    out = combine(gpu, W, X, dtype)
    assert np.isnan(out[0].astype(float)).all() and equal(out[1], X[1])
    assert np.isnan(combine(gpu, W[:1], X, dtype).astype(float)).all()


@pytest.mark.parametrize("dtype", DTYPES)
def test_one_row_is_copied_bit_for_bit(gpu, dtype):
    X = sample(3, 100, dtype)
    X[1, :5] = [-0.0, 0.0, np.inf, -np.inf, DTYPES[dtype](6e-5)]
    out = combine(gpu, np.array([[0.0, 1.0, 0.0]]), X, dtype)
    assert out.tobytes() == X[1].tobytes()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("k", [1, 2, 4, 5])
def test_signs_of_zeros_are_those_of_the_cpu(gpu, k, dtype):
    """Weights that are 0 only in float32 count as 0 too."""
    rng = np.random.default_rng(k)
    for n, d in [(1, 7), (3, 65), (9, 515)]:
        X = guarded(table(n, d, dtype, seed=d))
        for few in (rng.dirichlet(np.ones(n), k), np.eye(n)[rng.integers(0, n, k)]):
            for nothing in (0.0, -0.0, 1e-60):
                W = np.where(rng.random((k, n)) < 0.4, nothing, few * rng.choice([-1, 1], (k, n)))
                got = combine(cpu, W, X, dtype)
                assert equal(combine(gpu, W, X, dtype), got)
                for weights, row in zip(W, got, strict=True):
                    assert equal(combine(cpu, weights[None], X, dtype)[0], row)
                    if (weights == 0).all():
                        assert not row.view(np.uint8).any()


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
@pytest.mark.parametrize("shift", [0, 1, 2, 3])
def test_rows_and_results_of_any_alignment(gpu, dtype, shift):
    wide = np.zeros((5, 600 + shift), DTYPES[dtype])
    X = wide[:, shift:]
    X[...] = sample(5, 600, dtype)
    W = np.random.default_rng(1).standard_normal((2, 5))
    plain = combine(cpu, W, X.copy(), dtype)
    assert equal(combine(gpu, W, X, dtype), plain)
    room = np.zeros((2, 601 + shift), DTYPES[dtype])[:, shift : 600 + shift]
    combine(gpu, W, X, dtype, outs=places(room).tolist())
    assert equal(room, plain)


def test_tables_of_many_rows_and_results(gpu):
    apart = [sample(1, 70, seed=i)[0] for i in range(75)]
    X = np.array(apart)
    rows = np.array([row.ctypes.data for row in apart], np.int64)
    W = np.random.default_rng(1).standard_normal((3, 75))
    results = [np.zeros(70, np.float32) for _ in range(3)]
    outs = [result.ctypes.data for result in results]
    combine(gpu, W, X, rows=rows, outs=outs)
    assert equal(np.array(results), combine(cpu, W, X))
    assert gpu.device.launches == ["table", "table", "combine"]  # the weights, the places


def test_columns_past_two_to_the_31():
    """The last columns of rows of more than 2^31 numbers; their other pages are never touched."""
    d, last = (1 << 31) + 999, 40
    X, out = huge(3 * d), huge(2 * d)
    for i in range(3):
        X[(i + 1) * d - last : (i + 1) * d] = np.float32(i + 1).view(np.uint32) >> 16
    weights = np.array([[0.5, 0.0, 0.5], [0.0, 1.0, 0.0]])
    defines = {"FG_DTYPE": 1, "FG_TABLE": 0, "FG_K": 4, "FG_PACK": 1}
    tiles = -(-d // 256)
    args = [X, 2 * d, 3, weights, 0.0, 2, out, 2 * d, d]
    build("combine.cu", defines).launch("combine", tiles, 256, args, only=(tiles - 2, tiles))
    two = np.float32(2.0).view(np.uint32) >> 16
    for result in (out[:d], out[d:]):
        assert (result[-last:] == two).all()
        assert not result[-257:-last].any() and not result[: 1 << 20].any()


def test_the_same_weights_for_all_need_no_matrix(gpu):
    X = sample(9, 500)
    out = np.zeros((1, 500), np.float32)
    mean = Statistic((), kind="mean")
    gpu.columns(places(X), 500, "float32", mean, None, out.ctypes.data)
    gpu.flush()
    assert equal(out, combine(cpu, np.full((1, 9), 1.0 / 9), X))
    assert gpu.device.launches == ["combine"]
