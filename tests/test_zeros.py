"""The signs of zeros, and NaN with a sign: one result, bit for bit, whatever computes it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from emulation import needs_compiler
from hypothesis import given, settings
from hypothesis import strategies as st
from test_kernels_columns import DTYPES, bits, emulated, on_cpu

import fastgar as fg
from fastgar import reference
from fastgar.cpu import backend
from fastgar.registry import lookup
from fastgar.statistic import Statistic

RULES = [
    "median", "median(middle='lower')", "median(middle='upper')", "trimmed_mean", "meamed",
    "phocas", "condense(p=0.5)", "sign_majority", "nan_mean",
]  # fmt: skip


def values(dtype: str) -> dict[str, list[Any]]:
    """What each kind of column holds."""
    kind = np.dtype(DTYPES[dtype])
    bits_of = np.dtype(f"u{kind.itemsize}")
    sign = 1 << (8 * kind.itemsize - 1)
    infinity = int(np.array([np.inf], kind).view(bits_of)[0])

    def numbers(*patterns: int) -> list[Any]:
        return list(np.array(patterns, bits_of).view(kind))

    tiny = numbers(1, 2, 3, sign | 1, sign | 2, sign | 3)  # subnormal: halves of them underflow
    zeros = numbers(0, sign)
    odd = numbers(infinity + 1, sign | (infinity + 1), sign | (sign - 1), sign - 1)  # NaN
    return {
        "zeros": zeros,
        "negative zeros": zeros[1:],
        "subnormals": zeros + tiny,
        "NaN with a sign": zeros + odd[2:3] + list(np.array([1, -1], kind)),
        "all": zeros + tiny + odd + list(np.array([1, 1, -1, np.inf, -np.inf, 65504], kind)),
    }


def table(n: int, d: int, dtype: str, seed: int = 0) -> np.ndarray:
    """Columns of each kind in turn."""
    rng, kinds = np.random.default_rng(seed), list(values(dtype).values())
    X = np.empty((n, d), DTYPES[dtype])
    for j in range(d):
        some = np.array(kinds[j % len(kinds)], DTYPES[dtype])
        X[:, j] = some[rng.integers(0, len(some), n)]
    return X


def statistics(n: int) -> list[Statistic]:
    f = max(n // 4, (n - 1) // 3)
    ranks = np.linspace(-1.0, 1.0, n) if n > 1 else np.ones(1)
    return [
        Statistic.median(n),
        Statistic.median(n, "lower"),
        Statistic.median(n, "upper"),
        Statistic.between(n, f, n - f, f),
        Statistic.median(n, closest=n - f, faults=f),
        Statistic.between(n, f, n - f, f, closest=n - f),
        Statistic(tuple(ranks), faults=f),
        replace(Statistic.median(n), kind="condense", probability=0.5, key=7),
        Statistic((), kind="finite_mean"),
        Statistic((), kind="sign", faults=f),
    ]


def has_negative_zeros(X: Any) -> bool:
    X = np.asarray(X)
    with np.errstate(invalid="ignore"):  # of NaN that signal
        return bool((np.signbit(X) & (X == 0)).any())


@pytest.fixture
def tier(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Chooses between the CPU's kernel for exactly n rows and that for any number."""

    def choose(exact: bool) -> None:
        monkeypatch.setattr(backend, "FIXED_ROWS", 128 if exact else 0)
        monkeypatch.setattr(backend._Tiers, "worth", lambda *_: True)

    return choose


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_zero_is_positive_in_every_statistic(tier: Any, dtype: str) -> None:
    tier(False)
    for n in (1, 2, 5, 12, 40):
        X = table(n, 203, dtype, seed=n)
        assert has_negative_zeros(X)
        for statistic in statistics(n):
            got = on_cpu(X, statistic)
            assert not has_negative_zeros(got), statistic


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("n", [4, 11])
def test_both_tiers_of_the_cpu(tier: Any, n: int, dtype: str) -> None:
    X = table(n, 203, dtype)
    W = np.random.default_rng(0).dirichlet(np.ones(n), 7) - 0.1
    W[np.random.default_rng(1).random(W.shape) < 0.3] = 0.0
    for number, statistic in enumerate(statistics(n)[:6]):
        tier(True)
        exact = on_cpu(X, statistic)
        mixed = on_cpu(X, statistics(7)[number], W)
        tier(False)
        assert bits(exact) == bits(on_cpu(X, statistic)), statistic
        assert bits(mixed) == bits(on_cpu(X, statistics(7)[number], W)), statistic
        assert not has_negative_zeros(mixed)


@needs_compiler()
@pytest.mark.parametrize(
    ("n", "dtype"),
    [(1, "float32"), (4, "float32"), (11, "float32"), (70, "float32"), (140, "float32"),
     (11, "float64"), (70, "float64"), (4, "float16"), (4, "bfloat16"), (140, "bfloat16")],
)  # fmt: skip
def test_kernels_for_cuda(tier: Any, n: int, dtype: str) -> None:
    """In registers, up to 128 values (64 of float64), and in a tile."""
    tier(False)
    X = table(n, 101, dtype, seed=n)
    for statistic in statistics(n)[:: 1 if n < 20 and dtype == "float32" else 2]:
        assert bits(emulated(X, statistic)) == bits(on_cpu(X, statistic)), statistic


@needs_compiler()
@pytest.mark.parametrize(("m", "dtype"), [(7, "float32"), (140, "float32"), (7, "float16")])
def test_mixed_and_picked_rows_for_cuda(tier: Any, m: int, dtype: str) -> None:
    tier(False)
    rng = np.random.default_rng(m)
    X = table(9, 101, dtype)
    W = rng.dirichlet(np.ones(9), m) - 0.1
    W[rng.random(W.shape) < 0.3] = 0.0
    picks = rng.integers(0, 9, m)
    for statistic in (Statistic.median(m), Statistic.between(m, 1, m - 1, 1, closest=m - 2)):
        assert bits(emulated(X, statistic, W)) == bits(on_cpu(X, statistic, W))
        want = on_cpu(X[picks], statistic)
        assert bits(emulated(X, statistic, picks=picks)) == bits(want)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("spec", RULES)
def test_rules_streamed_and_by_any_number_of_threads(spec: str, dtype: str) -> None:
    d = 2 * fg.CHUNK + 77
    X = np.tile(table(7, 505, dtype), d // 505 + 1)[:, :d].copy()
    f = None if lookup(spec.partition("(")[0]).f == "no" else 2

    def rule() -> Any:
        return fg.rule(spec, f).at(0)  # which counts its steps

    whole = rule()(X)
    assert not has_negative_zeros(whole)
    streaming = fg.Streaming(rule(), n=7, f=f)
    parts = [streaming.apply(X[:, : fg.CHUNK]), streaming.apply(X[:, fg.CHUNK :])]
    assert bits(np.concatenate(parts)) == bits(whole)
    for threads in (1, 2, 3):
        fg.set_threads(threads)
        try:
            assert bits(rule()(X)) == bits(whole)
        finally:
            fg.set_threads(None)


@pytest.mark.parametrize("spec", RULES)
def test_the_oracle_has_the_same_zeros(spec: str) -> None:
    X = table(7, 505, "float64", seed=1)
    X[np.isnan(X)] = -0.0
    name = spec.partition("(")[0]
    f = None if lookup(name).f == "no" else 2
    options = {"p": 0.5} if name == "condense" else {}
    if "middle" in spec:
        options["middle"] = spec.split("'")[1]
    with np.errstate(invalid="ignore"):
        want = getattr(reference, name)(X, f, **options)
    got = fg.rule(spec, f).at(0)(X)
    zero = (got == 0) & (want == 0)
    assert zero.sum() > 50 and not has_negative_zeros(want)
    assert bits(got[zero]) == bits(want[zero])


def test_a_nan_with_a_sign_ranks_as_plus_infinity() -> None:
    for dtype, kind in DTYPES.items():
        nan = -np.array([np.nan], kind)
        assert np.signbit(nan[0])
        X = np.array([[3.0], [1.0], [2.0], [np.inf], [0.0]], kind)
        Y = np.where(np.isinf(X), nan, X)
        for spec in ("median", "trimmed_mean", "meamed", "phocas"):
            assert bits(fg.rule(spec, 1)(Y)) == bits(fg.rule(spec, 1)(X)), dtype


@settings(max_examples=60, deadline=None)
@given(data=st.data(), n=st.integers(1, 40), d=st.integers(1, 40), seed=st.integers(0, 2**31))
def test_the_order_of_rows_does_not_matter(data: st.DataObject, n: int, d: int, seed: int) -> None:
    dtype = data.draw(st.sampled_from(list(DTYPES)))
    X = table(n, d, dtype, seed)
    order = np.random.default_rng(seed).permutation(n)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(backend, "FIXED_ROWS", 0)  # so that not every n is compiled
        for number, statistic in enumerate(statistics(n)):
            if number not in (7, 8):  # condense reads row 0; finite values are added in order
                assert bits(on_cpu(X, statistic)) == bits(on_cpu(X[order].copy(), statistic))
