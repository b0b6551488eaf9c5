"""The three primitives against NumPy in double precision, and their bits."""

from __future__ import annotations

import warnings
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

import fastgar
from fastgar import arrays, primitives
from fastgar.cpu import backend
from fastgar.statistic import CHUNK, Statistic, hash64, hash_key
from fastgar.usage import usage

ml_dtypes = pytest.importorskip("ml_dtypes")

DTYPES = {
    "float16": np.float16,
    "bfloat16": ml_dtypes.bfloat16,
    "float32": np.float32,
    "float64": np.float64,
}
UNIT = {"float16": 2.0**-11, "bfloat16": 2.0**-8, "float32": 2.0**-24, "float64": 2.0**-53}
ODD = [1, 15, 16, 17, 31, 33, 63, 64, 65, 255, 257, 1023, 1025, CHUNK, CHUNK + 3, 2 * CHUNK + 1]


def sample(n, d, dtype="float32", seed=0):
    X = np.random.default_rng(seed).standard_normal((n, d)) + 3.0
    return X.astype(DTYPES[dtype])


def distances(X):
    X = X.astype(np.float64)
    return np.array([[((a - b) ** 2).sum() for b in X] for a in X])


def columns(X, statistic, W=None, **options):
    T = arrays.table(X)
    out = T.empty()
    primitives.columns(T, statistic, W, out, **options)
    return out.value()


def combine(W, X, **options):
    T = arrays.table(X)
    out = T.empty(None if np.ndim(W) == 1 else len(W))
    primitives.combine(np.asarray(W, dtype=float), T, [], out, **options)
    return out.value()


def expected(X, statistic):
    """The statistic in double precision, and where a near tie leaves the window open."""
    values = np.where(np.isnan(X), np.inf, X.astype(np.float64))
    many = (~np.isfinite(values)).sum(axis=0) > statistic.faults
    values = np.sort(values, axis=0)
    weights = np.array(statistic.weights)
    used = weights != 0
    with np.errstate(invalid="ignore"):
        centre = weights[used] @ values[used]
    open_window = np.zeros(values.shape[1], dtype=bool)
    if statistic.closest:
        k = statistic.closest
        result = np.empty(values.shape[1])
        for column, middle in enumerate(centre):
            first = 0
            ranked = values[:, column]
            while first + k < len(ranked):
                with np.errstate(invalid="ignore"):
                    gain, loss = ranked[first + k] - middle, middle - ranked[first]
                open_window[column] |= np.isclose(gain, loss, rtol=1e-5)
                if not gain < loss:
                    break
                first += 1
            with np.errstate(invalid="ignore"):
                result[column] = ranked[first : first + k].mean()
        centre = result
    return np.where(many, np.nan, centre), open_window


# ------------------------------------------------------------------------------------- distances


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("n", [1, 2, 3, 4, 5, 6, 7, 8, 11, 21])
def test_sqdist_is_the_sum_of_squared_differences(n, dtype):
    for d in ODD:
        X = sample(n, d, dtype, seed=d)
        D = primitives.sqdist(arrays.table(X))
        np.testing.assert_allclose(D, distances(X), rtol=1e-12 if dtype == "float64" else 2e-5)
        assert D.dtype == np.float64
        assert np.array_equal(D, D.T)
        assert np.array_equal(np.diagonal(D), np.zeros(n))


def test_sqdist_of_no_columns_is_zero():
    assert np.array_equal(primitives.sqdist(arrays.table(np.zeros((4, 0)))), np.zeros((4, 4)))


@pytest.mark.parametrize("dtype", DTYPES)
def test_references_are_further_points(dtype):
    X = sample(6, CHUNK + 77, dtype)
    T = arrays.table(X)
    plain = primitives.sqdist(T)
    D = primitives.sqdist(T, ["origin", arrays.reference(T, X[2].copy())])
    assert np.array_equal(D[:6, :6], plain)
    np.testing.assert_allclose(D[6, :6], (X.astype(float) ** 2).sum(axis=1), rtol=2e-5)
    assert np.array_equal(D[7, :6], plain[2])
    assert D[7, 2] == 0.0


def test_a_shared_part_does_not_cost_accuracy():
    rng = np.random.default_rng(1)
    X = (rng.standard_normal(5000) + 1e-5 * rng.standard_normal((8, 5000))).astype(np.float32)
    np.testing.assert_allclose(primitives.sqdist(arrays.table(X)), distances(X), rtol=1e-5)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("place", [0, 5, CHUNK - 1, CHUNK, CHUNK + 4])
def test_a_faulty_row_is_infinitely_far_even_from_itself(bad, place):
    X = sample(5, CHUNK + 5)
    X[3, place] = bad
    D = primitives.sqdist(arrays.table(X))
    others = [0, 1, 2, 4]
    assert np.isinf(D[3]).all() and np.isinf(D[:, 3]).all()
    assert np.array_equal(
        D[np.ix_(others, others)], primitives.sqdist(arrays.table(X[others].copy()))
    )


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_distances_of_finite_rows_do_not_overflow(dtype):
    X = sample(5, 3 * CHUNK, dtype)
    X[1] = DTYPES[dtype](1e30)
    X[2, 10] = DTYPES[dtype](3e38)
    D = primitives.sqdist(arrays.table(X))
    assert np.isfinite(D).all()
    np.testing.assert_allclose(D, distances(X), rtol=1e-5)


@pytest.mark.parametrize("columns", [100, 3 * CHUNK])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_distances_do_not_overflow_beside_faulty_rows(dtype, columns):
    X = sample(6, columns, dtype)
    X[1, 50], X[2, -1], X[4, 7] = (DTYPES[dtype](x) for x in (3e38, np.inf, np.nan))
    D = primitives.sqdist(arrays.table(X))
    finite = [0, 1, 3, 5]
    assert np.isinf(D[[2, 4]]).all() and np.isinf(D[:, [2, 4]]).all()
    np.testing.assert_allclose(D[np.ix_(finite, finite)], distances(X[finite]), rtol=1e-5)


def test_distances_that_overflow_in_float64_are_infinite_without_a_warning():
    """Also where the sum over each chunk is finite and only their sum is not."""
    X = np.zeros((3, 2 * CHUNK))
    X[0], X[1] = 1.2e152, -1e151
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        D = primitives.sqdist(arrays.table(X))
    assert D[0, 1] == np.inf
    assert np.array_equal(D.diagonal(), [0, 0, 0])


def test_rows_of_any_layout_give_the_same_distances():
    X = sample(9, 500)
    D = primitives.sqdist(arrays.table(X))
    wide = np.zeros((18, 700), np.float32)
    wide[::2, 100:600] = X
    assert np.array_equal(primitives.sqdist(arrays.table(wide[::2, 100:600])), D)
    assert np.array_equal(primitives.sqdist(arrays.table(np.asfortranarray(X))), D)
    assert np.array_equal(primitives.sqdist(arrays.table(list(X))), D)
    assert np.array_equal(primitives.sqdist(arrays.table(X[::-1]))[::-1, ::-1], D)


def test_inner_products_about_a_pivot():
    X = sample(7, CHUNK + 19)
    scale = np.array([1, 2, 0.5, 0, 1, 1e-3, 1])
    X[3] = np.nan  # scale 0: not read
    K = primitives.inner(arrays.table(X), ["origin"], 4, np.append(scale, 1.0))
    points = np.vstack([X, np.zeros((1, X.shape[1]))]).astype(np.float64)
    points[3] = points[4]
    U = np.append(scale, 1.0)[:, None] * (points - points[4])
    np.testing.assert_allclose(K, U @ U.T, rtol=1e-9, atol=1e-9)
    assert np.array_equal(K[3], np.zeros(8))


@pytest.mark.parametrize("n", [128, 300])
def test_scratch_memory_lives_as_long_as_the_kernel(n):
    """Numba frees an array after its last use by name, though its address is still in use."""
    for dtype in ("float32", "bfloat16"):
        X = sample(n, 50, dtype)
        np.testing.assert_allclose(primitives.sqdist(arrays.table(X)), distances(X), rtol=2e-5)
        W = np.random.default_rng(n).dirichlet(np.ones(n), n)
        for mixing in (None, W, W[:100]):
            m = n if mixing is None else len(mixing)
            values = X.astype(float) if mixing is None else mixing @ X.astype(float)
            want, _ = expected(values, Statistic.median(m))
            got = columns(X, Statistic.median(m), mixing).astype(float)
            np.testing.assert_allclose(got, want, rtol=UNIT[dtype] + n * 2e-7)


# --------------------------------------------------------------------------------------- combine


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("k", [1, 2, 4, 7])
def test_combine_is_a_matrix_product(dtype, k):
    for d in ODD:
        X = sample(9, d, dtype, seed=d)
        W = np.random.default_rng(k).dirichlet(np.ones(9), k)
        got = combine(W, X).astype(np.float64)
        assert got.shape == (k, d)
        np.testing.assert_allclose(got, W @ X.astype(float), rtol=8 * UNIT[dtype])


@pytest.mark.parametrize("dtype", DTYPES)
def test_combine_with_one_weight_copies_the_row_bit_for_bit(dtype):
    X = sample(5, 1003, dtype)
    X[2, :3] = [-0.0, 0.0, 1e-7]
    X[1] = np.nan
    assert combine(np.eye(5)[2], X).tobytes() == X[2].tobytes()


def test_weight_zero_is_not_read():
    X = sample(5, 300)
    X[1, 7] = np.nan
    X[3] = np.inf
    W = np.array([[0.5, 0, 0.5, 0, 0], [0, 0, 0, 0, 1.0], [0, 1, 0, 0, 0]])
    got = combine(W, X)
    keep = [0, 2, 4]
    np.testing.assert_allclose(got[:2], W[:2, keep] @ X[keep].astype(float), rtol=1e-6)
    assert np.array_equal(got[2], X[1], equal_nan=True)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("k", [2, 4, 6])
def test_several_single_rows_are_copied_bit_for_bit(dtype, k):
    """Also beside rows that are not finite, and where -0 + 0 * 5 would be 0."""
    for d in (1, 300):
        X = sample(5, d, dtype)
        X[2], X[4, ::2], X[1] = -0.0, -0.0, np.inf
        picks = np.random.default_rng(k).permutation(6)[:k] % 5
        assert combine(np.eye(5)[picks], X).tobytes() == X[picks].tobytes()
    got = fastgar.combine([[0.0, 1.0], [0.0, 0.0]], np.array([[np.nan], [-0.0]]))
    assert got.tobytes() == np.array([[-0.0], [0.0]]).tobytes()


def test_a_row_of_nan_weights_writes_nan_and_all_zeros_write_zeros():
    X = sample(3, 100)
    X[2] = np.nan
    got = combine(np.array([[0.5, 0.5, 0], [np.nan] * 3, [0, 0, 0]]), X)
    assert np.isfinite(got[0]).all() and np.isnan(got[1]).all() and not got[2].any()
    got = combine(np.array([[np.nan] * 3, [0, 0, 0]]), X)
    assert np.isnan(got[0]).all() and not got[1].any()


@pytest.mark.parametrize("dtype", DTYPES)
def test_one_sum_has_the_bits_of_one_among_several(dtype):
    W = np.random.default_rng(0).standard_normal((5, 9))
    for d in ODD:
        X = sample(9, d, dtype, seed=d)
        several = combine(W, X)
        for weights, one in zip(W, several, strict=True):
            assert combine(weights, X).tobytes() == one.tobytes()


def test_one_sum_does_not_read_what_has_weight_zero():
    for d in ODD:
        X = sample(5, d)
        X[1], X[3, -1:] = np.nan, np.inf
        weights = np.array([0.5, 0.0, 0.25, -0.0, 0.25])
        assert np.array_equal(combine(weights, X), combine(weights[[0, 2, 4]], X[[0, 2, 4]]))
        nothing = combine(np.zeros(5), X)
        assert not nothing.any() and not np.signbit(nothing).any()
        assert np.isnan(combine(np.full(5, np.nan), X)).all()


@pytest.mark.parametrize("k", [1, 2, 4])
def test_weights_may_lie_in_memory_as_they_like(k):
    X, W = sample(6, 300), np.random.default_rng(k).standard_normal((k, 6))
    want = combine(W, X)
    fixed, wide = W.copy(), np.zeros((k, 12))
    fixed.flags.writeable = False
    wide[:, ::2] = W
    for same in (fixed, wide[:, ::2], np.asfortranarray(W), W[:, ::-1].copy()[:, ::-1]):
        assert np.array_equal(combine(same, X), want)


@pytest.mark.parametrize("threads", [1, 2])
def test_a_long_row_is_copied_in_parts(threads):
    fastgar.set_threads(threads)
    try:
        for d in (131_071, 131_072, 200_001, 400_003):
            X = sample(3, d, "float16")
            assert combine([0, 1, 0], X).tobytes() == X[1].tobytes()
    finally:
        fastgar.set_threads(None)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("k", [4, 7])
def test_writing_past_the_caches_gives_the_same(dtype, k, monkeypatch):
    rng = np.random.default_rng(k)
    made = {}

    def written(rows, W, skip, d):
        """Combine into memory that begins `skip` bytes after a cache line; return all of it."""
        size = rows.dtype.itemsize * d
        memory = np.full(k * size + 192, 0xAB, np.uint8)
        first = -memory.ctypes.data % 64 + 64 + skip
        places = [memory.ctypes.data + first + i * size for i in range(k)]
        backend.combine(W, arrays.table(rows).blocks[0].addresses, d, dtype, places)
        outside = np.concatenate([memory[:first], memory[first + k * size :]])
        assert (outside == 0xAB).all()
        return memory[first : first + k * size].tobytes(), backend._streams(places, size)

    for d in (256, 4096, 9024, 9025):
        X, W = sample(6, d, dtype, seed=d), rng.standard_normal((k, 6))
        for least in (0, 1 << 40):
            monkeypatch.setattr(backend, "STREAMED", least)
            for skip in (0, 8):
                made[least, skip] = written(X, W, skip, d)
        assert made[0, 0][1] == (d != 9025)
        assert not made[0, 8][1] and not made[1 << 40, 0][1]
        assert len({result for result, _ in made.values()}) == 1


def test_combine_writes_separate_rows():
    rows = [row.copy() for row in sample(4, 130)]
    got = combine(np.array([[0, 1.0, 0, 0], [0.25] * 4]), rows)
    assert isinstance(got, list) and np.array_equal(got[0], rows[1])
    np.testing.assert_allclose(got[1], np.mean(rows, axis=0), rtol=1e-6)


# --------------------------------------------------------------------------------------- columns


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("probability", [0.0, 0.3, 1.0])
def test_condense_takes_the_first_row_where_the_hash_says_so(dtype, probability):
    key = hash_key(12345, 3)
    assert key >> 63  # does not fit a signed integer
    median = Statistic.median(5)
    statistic = replace(median, kind="condense", probability=probability, key=key)
    for d in (*ODD, 40_000):  # by several threads
        X = sample(5, d, dtype, seed=d)
        for offset in (0, 10**10):
            index = np.arange(offset, offset + d, dtype=np.uint64)
            draws = (hash64(key, index) >> np.uint64(11)) * 2.0**-53
            want = np.where(draws < probability, columns(X, median), X[0])
            assert columns(X, statistic, offset=offset).tobytes() == want.tobytes()


SIZES = [1, 2, 3, 5, 8, 11, 16, 17, 20, 32, 33, 51, 65, 100, 129, 200, 530]


def statistics(n):
    f = n // 4
    yield Statistic.median(n)
    yield Statistic.median(n, "lower", faults=f)
    yield Statistic.median(n, "upper", faults=f)
    yield Statistic.between(n, f, n - f, f)
    yield Statistic.median(n, closest=n - f, faults=f)
    yield Statistic.between(n, f, n - f, f, closest=max(1, n // 3))
    yield Statistic(tuple(np.random.default_rng(n).dirichlet(np.ones(n))), faults=f)


@pytest.mark.parametrize("n", SIZES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_columns_against_a_full_sort(n, dtype):
    for d in (1, 17, 65, 1003):
        X = sample(n, d, dtype, seed=n + d)
        for statistic in statistics(n):
            want, near_tie = expected(X, statistic)
            got = columns(X, statistic).astype(np.float64)
            good = ~near_tie
            np.testing.assert_allclose(
                got[good], want[good], rtol=(n + 4) * UNIT["float32"] + UNIT[dtype]
                if dtype != "float64" else n * 4e-16,
                err_msg=f"{n} {d} {statistic}",
            )  # fmt: skip
            assert n < 5 or near_tie.mean() < 0.05 or dtype in ("float16", "bfloat16")


@pytest.mark.parametrize(
    ("n", "dtype"),
    [*((n, "float32") for n in (4, 11, 40, 90)), (9, "float64"), (9, "float16"), (9, "bfloat16")],
)
def test_both_kernels_give_the_same_bits(n, dtype, monkeypatch):
    X = sample(n, 5000, dtype)
    X[0, ::7] = np.nan
    X[1, ::5] = np.inf
    X[2, ::3] = -np.inf
    W = np.random.default_rng(0).dirichlet(np.ones(n), n)
    for statistic in list(statistics(n))[:-1]:
        for mixing in (None, W) if n < 40 else (None,):
            monkeypatch.setattr(backend, "FIXED_ROWS", 128)
            monkeypatch.setattr(backend._Tiers, "worth", lambda *_: True)
            fixed = columns(X, statistic, mixing)
            monkeypatch.setattr(backend, "FIXED_ROWS", 0)
            assert fixed.tobytes() == columns(X, statistic, mixing).tobytes()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("n", [7, 70])
def test_columns_of_a_mixing(n, dtype):
    for d in (1, 63, 64, 65, 1003):
        X = sample(n, d, dtype)
        W = np.random.default_rng(n).dirichlet(np.ones(n), n - 2)
        mixed = W @ X.astype(np.float64)
        for statistic in (Statistic.median(n - 2), Statistic.between(n - 2, 1, n - 3, 1)):
            want, _ = expected(mixed, statistic)
            np.testing.assert_allclose(
                columns(X, statistic, W).astype(float), want, rtol=UNIT[dtype] + n * 2e-7
            )


@pytest.mark.parametrize("n", [5, 12, 70, 140])
def test_faults_up_to_the_limit_are_extremes_and_beyond_it_nan(n):
    rng = np.random.default_rng(n)
    f = (n - 1) // 2
    X = sample(n, 700)
    for column in range(700):
        count = rng.integers(0, n + 1)
        X[rng.permutation(n)[:count], column] = rng.choice([np.nan, np.inf, -np.inf], count)
    for statistic in (
        Statistic.median(n),
        Statistic.between(n, f, n - f, f),
        Statistic.median(n, faults=f, closest=n - f),
    ):
        want, near_tie = expected(X, statistic)
        assert np.isnan(want).any() and np.isfinite(want).any()
        got = columns(X, statistic)
        assert np.array_equal(np.isnan(got), np.isnan(want))
        np.testing.assert_allclose(got[~near_tie], want[~near_tie], rtol=1e-5)


def test_a_faulty_mixed_row_is_an_extreme_in_every_column():
    X = sample(5, 100)
    X[4] = np.nan
    W = np.eye(5)
    W[4] = np.nan
    got = columns(X, Statistic.between(5, 1, 4, 1), W)
    want = np.sort(np.vstack([X[:4], np.full(100, np.inf)]), axis=0)[1:4].mean(axis=0)
    np.testing.assert_allclose(got, want, rtol=1e-6)


@pytest.mark.parametrize("n", [6, 140])
def test_careful_mixing_does_not_read_weight_zero(n):
    X = sample(n, 333)
    X[1, 5] = np.nan
    W = np.eye(n)
    want, _ = expected(X, Statistic.median(n))
    assert np.array_equal(columns(X, Statistic.median(n), W, careful=True), want.astype(np.float32))


def test_means_do_not_overflow_and_tiny_values_survive():
    X = np.full((7, 40), 3e38, np.float32)
    assert np.array_equal(columns(X, Statistic.between(7, 1, 6, 1)), X[0])
    X = np.full((6, 40), 1e-38, np.float32)
    np.testing.assert_allclose(columns(X, Statistic.median(6)), X[0], rtol=1e-6)


def test_finite_mean_signs_and_plain_mean():
    X = sample(6, 100)
    X[1] *= -1
    X[0, :10] = np.nan
    X[:, 5] = np.inf
    with np.errstate(invalid="ignore"):
        finite = np.isfinite(X)
        mean = np.where(finite, X, 0).sum(axis=0) / finite.sum(axis=0)
    got = columns(X, Statistic((), kind="finite_mean"))
    np.testing.assert_allclose(got, mean, rtol=1e-5)
    assert np.isnan(got[5])
    signs = np.sign(np.sign(np.where(np.isnan(X), 1, X)).sum(axis=0))
    signs[5] = np.nan  # six infinities are more than two faults
    assert np.array_equal(columns(X, Statistic((), kind="sign", faults=2)), signs, equal_nan=True)
    np.testing.assert_allclose(columns(X, Statistic((), kind="mean")), X.mean(axis=0), rtol=1e-5)


@settings(max_examples=60, deadline=None)
@given(
    n=st.integers(1, 40),
    d=st.integers(1, 40),
    seed=st.integers(0, 2**31),
    levels=st.integers(1, 4),
)
def test_ties_and_specials_keep_order_statistics_exact(n, d, seed, levels):
    rng = np.random.default_rng(seed)
    X = rng.integers(-levels, levels + 1, (n, d)).astype(np.float32)
    X[rng.random((n, d)) < 0.2] = rng.choice([np.nan, np.inf, -np.inf])
    low = int(rng.integers(0, n))
    got = columns(X, Statistic.between(n, low, low + 1, n))
    assert np.array_equal(got, np.sort(np.where(np.isnan(X), np.inf, X), axis=0)[low])


# -------------------------------------------------------------------------------- bits and inputs


@pytest.mark.parametrize("n", [5, 20, 140])
def test_bits_do_not_depend_on_the_number_of_threads(n):
    X = sample(n, 200_003 if n < 100 else 40_003)
    W = np.random.default_rng(0).dirichlet(np.ones(n), 3)
    results = []
    for threads in (1, 2, 3, 7):
        fastgar.set_threads(threads)
        try:
            results.append(
                (
                    primitives.sqdist(arrays.table(X)).tobytes(),
                    combine(W, X).tobytes(),
                    columns(X, Statistic.between(n, 1, n - 1, 1)).tobytes(),
                    columns(X, Statistic.median(3), W).tobytes(),
                )
            )
        finally:
            fastgar.set_threads(None)
    assert all(result == results[0] for result in results)


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_distances_of_pieces_add_up_to_the_bits_of_the_whole(dtype):
    X = sample(6, 5 * CHUNK + 100, dtype)
    X[2, 3 * CHUNK] = np.nan
    X[4, :] *= DTYPES[dtype](1e3)
    whole = primitives.sqdist(arrays.table(X), ["origin"])
    D = None
    for begin, end in ((0, CHUNK), (CHUNK, 4 * CHUNK), (4 * CHUNK, X.shape[1])):
        D = primitives.sqdist(arrays.table(X[:, begin:end]), ["origin"], start=D)
    assert np.array_equal(D, whole)


def test_many_small_batches_of_partial_matrices_give_the_same_bits(monkeypatch):
    X = sample(6, 9 * CHUNK + 5)
    X[1] *= 1e25
    whole = primitives.sqdist(arrays.table(X))
    monkeypatch.setattr(backend, "PARTIAL_BYTES", 0)
    assert np.array_equal(primitives.sqdist(arrays.table(X)), whole)


def test_inputs_are_not_written():
    X = sample(12, 3001)
    X[3, 4] = np.nan
    before = X.tobytes()
    X.flags.writeable = False
    primitives.sqdist(arrays.table(X), ["origin"])
    combine(np.full((3, 12), 0.1), X)
    columns(X, Statistic.median(12))
    columns(X, Statistic.median(12), np.eye(12))
    assert X.tobytes() == before


# --------------------------------------------------------------------------------------- reports


def test_usage_counts_the_columns_in_which_a_row_was_used():
    X = np.array([[0.0, 5, 1, 1], [1, 4, 1, 2], [2, 3, 1, 3], [np.nan, 2, 1, 4], [9, 1, 1, np.inf]])
    T = arrays.table(X)
    assert usage(T, Statistic.median(5)).tolist() == [0.05, 0.05, 0.8, 0.05, 0.05]
    trimmed = usage(T, Statistic.between(5, 1, 4, 1))
    np.testing.assert_allclose(trimmed, [0.15, 0.9, 0.9, 0.65, 0.4])
    closest = usage(T, Statistic.median(5, faults=1, closest=3))
    np.testing.assert_allclose(closest, [0.4, 0.9, 0.9, 0.65, 0.15])


@settings(max_examples=200, deadline=None)
@given(
    hnp.arrays(np.float64, st.tuples(st.integers(1, 9), st.integers(0, 6)),
               elements=st.sampled_from([0.0, 1, 2, 3, -1, np.inf, -np.inf, np.nan])),
    st.integers(0, 4), st.data(),
)  # fmt: skip
def test_equal_values_share_alike_what_was_used_of_them(X, faults, data):
    """As a sort of each column gives it, also with ranks of no weight in between."""
    n, d = X.shape
    ranks = data.draw(st.sets(st.integers(0, n - 1), min_size=1).map(sorted))
    closest = data.draw(st.none() | st.integers(1, n))
    if closest:  # to a centre that is exact however it is summed: nearly equal is not equal
        ranks = ranks[: 1 << len(ranks).bit_length() - 1]
    weights = [1 / len(ranks) if rank in ranks else 0.0 for rank in range(n)]
    statistic = Statistic(tuple(weights), closest=closest, faults=faults)
    want = np.zeros((n, d))
    for j, column in enumerate(X.T):
        values = np.where(np.isnan(column), np.inf, column)
        order = np.argsort(values, kind="stable")
        used = ranks
        if closest:
            ranked = values[order]
            with np.errstate(invalid="ignore"):
                centre = np.array(weights)[ranks] @ ranked[ranks]
                begin = int((ranked[closest:] - centre < centre - ranked[: n - closest]).sum())
            used = range(begin, begin + closest)
        if (~np.isfinite(column)).sum() <= faults:
            want[order[list(used)], j] = 1
        for value in values:
            want[values == value, j] = want[values == value, j].mean()
    got = usage(arrays.table(X), statistic) if d else np.zeros(n)
    np.testing.assert_allclose(got, want.mean(axis=1) if d else 0)


def test_distances_to_the_median():
    X = sample(9, 300_001)
    X[4, 17] = np.nan
    T = arrays.table(X)
    got = primitives.sqdist_to(T, Statistic.median(9))
    middle = np.median(np.where(np.isnan(X), np.inf, X), axis=0)
    want = ((X.astype(float) - middle) ** 2).sum(axis=1)
    want[4] = np.inf
    np.testing.assert_allclose(got[-1], np.append(want, 0), rtol=1e-5)
    assert np.array_equal(got[:-1, :-1], primitives.sqdist(T))
    pieces = None
    for begin in range(0, X.shape[1], 3 * CHUNK):
        piece = arrays.table(X[:, begin : begin + 3 * CHUNK])
        pieces = primitives.sqdist_to(piece, Statistic.median(9), pieces)
    assert np.array_equal(pieces, got)


def test_where_the_number_of_rows_changes_from_call_to_call_little_is_compiled():
    tiers = backend._Tiers()
    assert [n for n in range(5, 60) if tiers.worth((n, 2, 3))] == [5, 6, 7, 8]
    again = [tiers.worth((n, 2, 3)) for _ in range(8) for n in (20, 30)]
    assert again == [False] * 12 + [True] * 4  # the first time was above
    assert tiers.worth((40, 2, 3)) is False
    assert tiers.worth((40, 2, 3)) is True  # twice in a row
    assert [f for f in range(20) if tiers.worth((5, f, f + 1))] == list(range(7))
