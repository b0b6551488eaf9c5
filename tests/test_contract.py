"""The never-breaks contract: up to f rows may hold anything, for every rule with a guarantee."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import fastgar as fg

# Options that a rule needs; one line for each that cannot be called without.
OPTIONS = {"centered_clipping": "(tau=2.0)", "clip": "(c=3.0)"}
MIXED = [
    "nnm | krum",
    "nnm | trimmed_mean",
    "nnm | median",
    "nnm | geometric_median",
    "arc | nnm | krum",
    "arc | meamed",
    "clip(c=3.0) | median",
    "clip(c=3.0) | geometric_median",
    "nnm | bulyan",
    "bucketing(s=2) | median",
    "bucketing(s=2) | rfa",
    "nnm | caf",
    "nnm | mda",
    "arc | smea",
    "nnm | centered_clipping(tau=1.0, iters=3)",
    "arc | rfa",
    "nnm | nnm | phocas",
]


def specs(*kinds: str) -> list[str]:
    return [
        rule.name + OPTIONS.get(rule.name, "")
        for rule in fg.list_rules()
        if rule.guarantee != "none" and rule.kind in kinds
    ]


COLUMN = specs("column")
DISTANCE = specs("distance")
ROBUST = [*COLUMN, *DISTANCE, *MIXED]
FRAIL = [rule.name for rule in fg.list_rules() if rule.guarantee == "none"]

UNBOUNDED = ("fltrust",)  # it has a length of its own (tested below)


def test_the_table_covers_the_registry() -> None:
    assert set(FRAIL) == {"mean", "nan_mean"}
    assert len(COLUMN) + len(DISTANCE) >= 21


def poison(kind: str, X: np.ndarray, row: int, rng: np.random.Generator) -> None:
    """Overwrite one row with what a liar, a broken machine or a lossy link might send."""
    d = X.shape[1]
    big = 0.99 * float(np.finfo(X.dtype).max)
    if kind == "nan":
        X[row] = np.nan
    elif kind == "one nan":
        X[row, rng.integers(d)] = np.nan
    elif kind == "inf":
        X[row] = np.inf
    elif kind == "-inf":
        X[row] = -np.inf
    elif kind == "one -inf":
        X[row, rng.integers(d)] = -np.inf
    elif kind == "both infs":
        X[row] = np.inf
        X[row, rng.integers(d)] = -np.inf
    elif kind == "huge":
        X[row] = big
    elif kind == "-huge":
        X[row] = -big
    elif kind == "mixed huge":
        X[row] = big * rng.choice([-1.0, 1.0], size=d)
    elif kind == "1e38":
        X[row] = min(1e38, big)
    elif kind == "denormal":
        X[row] = np.finfo(X.dtype).smallest_subnormal
    elif kind == "zero":
        X[row] = 0.0
    elif kind == "copy":
        X[row] = X[-1]
    elif kind == "long":
        X[row] *= 1e6 if X.dtype.itemsize > 2 else 1e3
    else:
        raise ValueError(kind)


KINDS = [
    "nan", "one nan", "inf", "-inf", "one -inf", "both infs", "huge", "-huge", "mixed huge", "1e38",
    "denormal", "zero", "copy", "long",
]  # fmt: skip
NON_FINITE = {"nan", "one nan", "inf", "-inf", "one -inf", "both infs"}


def aggregate(spec: str, X: np.ndarray, f: int) -> np.ndarray:
    at_call = {"reference": X[-1]} if "fltrust" in spec else {}
    return np.asarray(fg.rule(spec, f)(X, **at_call))


def first_liar(spec: str) -> int:
    """Return the first row that may lie: not row 0 for a rule that trusts it."""
    return int("monna" in spec or "condense" in spec)


def honest_bound(honest: np.ndarray) -> float:
    """Return a distance that no robust rule leaves: some spreads, some lengths (rules that start
    from the origin, or cut to a length, may end anywhere between it and the rows)."""
    wide = honest.astype(np.float64)
    spread = np.linalg.norm(wide - wide.mean(axis=0), axis=1).max()
    return 4.0 * float(spread + np.linalg.norm(wide, axis=1).max())


def check_within_bound(spec: str, X: np.ndarray, f: int, liars: list[int]) -> None:
    got = aggregate(spec, X, f)
    assert np.isfinite(got).all(), spec
    if spec not in UNBOUNDED:
        honest = np.delete(X, liars, axis=0)
        error = np.linalg.norm(got.astype(np.float64) - honest.astype(np.float64).mean(axis=0))
        assert error <= honest_bound(honest), spec


def rows(n: int, d: int, dtype: Any, seed: int = 0) -> np.ndarray:
    return (np.random.default_rng([n, d, seed]).normal(size=(n, d)) + 1.0).astype(dtype)


# ------------------------------------------------------------------------- 1: up to f of anything


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("spec", ROBUST)
def test_f_liars_of_one_kind(spec: str, kind: str) -> None:
    rng = np.random.default_rng(0)
    for n, f, d in ((11, 2, 17), (12, 2, 5)):
        X = rows(n, d, np.float32)
        liars = [first_liar(spec), 4]
        for liar in liars:
            poison(kind, X, liar, rng)
        check_within_bound(spec, X, f, liars)


@settings(max_examples=12, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
@pytest.mark.parametrize("spec", ROBUST)
def test_f_liars_of_any_kinds(spec: str, data: st.DataObject) -> None:
    n = data.draw(st.integers(5, 13), "n")
    most = fg.max_f(spec, n) if fg.rule(spec, 0).check(n) is None else -1
    if most < 0:
        return
    f = data.draw(st.integers(0, min(most, (n - 1) // 2)), "f")
    dtype = data.draw(st.sampled_from(["float32", "float64", "float16"]), "dtype")
    X = rows(n, data.draw(st.sampled_from([1, 3, 16]), "d"), dtype, data.draw(st.integers(0, 99)))
    liars = data.draw(
        st.lists(st.integers(first_liar(spec), n - 2), max_size=f, unique=True), "liars"
    )  # the last row stays honest: copies and references are taken from it
    rng = np.random.default_rng(0)
    for liar in liars:
        poison(data.draw(st.sampled_from(KINDS), "kind"), X, liar, rng)
    with np.errstate(all="ignore"):
        check_within_bound(spec, X, f, liars)


@pytest.mark.parametrize("spec", FRAIL)
@pytest.mark.parametrize("kind", KINDS)
def test_frail_rules_neither_crash_nor_hang(spec: str, kind: str) -> None:
    X = rows(11, 17, np.float32)
    for liar in (0, 4):
        poison(kind, X, liar, np.random.default_rng(0))
    f = None if fg.rules.lookup(spec).f == "no" else 2
    assert fg.rule(spec, f)(X).shape == (17,)


def test_the_length_of_fltrust_is_that_of_the_reference() -> None:
    for kind in KINDS:
        X = rows(11, 17, np.float32)
        poison(kind, X, 2, np.random.default_rng(0))
        got = fg.fltrust(X, reference=X[-1])
        assert np.linalg.norm(got) <= np.linalg.norm(X[-1]) * (1 + 1e-5)


def test_dnc_forgets_every_long_row_that_shares_a_direction() -> None:
    X = rows(11, 17, np.float32)
    X[3], X[7] = 1e6 * X[0], -1e7 * X[0]
    np.testing.assert_allclose(
        fg.dnc(X, f=2), np.delete(X, [3, 7], axis=0).mean(axis=0), rtol=1e-5, atol=1e-6
    )


@pytest.mark.parametrize("spec", ROBUST)
def test_inputs_are_never_written(spec: str) -> None:
    X = rows(11, 33, np.float32)
    X[3] = np.nan
    before = X.copy()
    aggregate(spec, X, 2)
    np.testing.assert_array_equal(X, before)


# ------------------------------------------------------------------------------- 2: column rules


@pytest.mark.parametrize("spec", COLUMN)
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_column_with_too_many_faults_is_nan_and_no_other(spec: str, value: float) -> None:
    for n, f in ((7, 2), (11, 3), (12, 5)):
        X = rows(n, 40, np.float32)
        clean = fg.rule(spec, f)(X)
        X[: f + 1, 7] = value
        X[:f, 9] = value
        got = fg.rule(spec, f)(X)
        assert np.isnan(got[7])
        assert np.isfinite(np.delete(got, 7)).all()
        untouched = np.delete(np.arange(40), [7, 9])
        np.testing.assert_array_equal(got[untouched], clean[untouched])


def test_nan_ranks_as_infinity() -> None:
    X = rows(9, 20, np.float64)
    Y = X.copy()
    X[3], Y[3] = np.nan, np.inf
    for spec in COLUMN:
        np.testing.assert_array_equal(fg.rule(spec, 2)(X), fg.rule(spec, 2)(Y))


# ----------------------------------------------------------------------------- 3: distance rules

FINDING = [*DISTANCE, *MIXED]
# A row so far from the median that its square overflows passes for faulty in Aksel.
OVERFLOWING = ("aksel", "bucketing(s=2) | median", "bucketing(s=2) | rfa")


@pytest.mark.parametrize("spec", [*FINDING, "nnm", "arc", "bucketing", "clip(c=3.0)", "cge"])
def test_more_than_f_faulty_rows_are_named(spec: str) -> None:
    X = rows(11, 17, np.float32)
    X[[2, 5, 9], [0, 16, 4]] = [np.nan, np.inf, -np.inf]
    with pytest.raises(fg.TooManyFaults) as raised:
        aggregate(spec, X, 2)
    assert raised.value.rows == (2, 5, 9)
    assert raised.value.f == 2
    assert isinstance(raised.value, ValueError)
    if fg.rule(spec, 3).check(11) is None:
        aggregate(spec, X, 3)


@pytest.mark.parametrize("spec", ["geometric_median", "centered_clipping(tau=1.0)", "rfa", "nnm"])
def test_without_f_almost_half_may_be_faulty(spec: str) -> None:
    f = None if "nnm" not in spec else 5
    X = rows(11, 17, np.float32)
    X[:5] = np.nan
    fg.rule(spec, f)(X)
    X[5] = np.nan
    with pytest.raises(fg.TooManyFaults, match="f = 5"):
        fg.rule(spec, f)(X)


@pytest.mark.parametrize("spec", [s for s in FINDING if "bucketing" not in s])
@pytest.mark.parametrize("kind", sorted(NON_FINITE))
def test_faulty_rows_have_weight_0_and_are_not_read(spec: str, kind: str) -> None:
    X = rows(11, 17, np.float32)
    poison(kind, X, 4, np.random.default_rng(0))
    at_call = {"reference": X[-1]} if "fltrust" in spec else {}
    report = fg.inspect(spec, X, f=2, **at_call)
    assert report.faulty == (4,)
    assert report.weights[4] == 0
    assert 4 in report.excluded
    assert np.isfinite(report.weights).all()
    assert np.isfinite(report.aggregate).all()


@pytest.mark.parametrize("spec", [s for s in FINDING if s not in OVERFLOWING])
def test_a_faulty_row_is_not_chosen_even_if_all_squares_overflow(spec: str) -> None:
    X = rows(11, 17, np.float64) * 1e200
    X[2] = np.nan
    assert np.isfinite(aggregate(spec, X, 2)).all()


def test_n_and_f_never_shrink() -> None:
    """With a faulty row, counts stay those of n rows, not of the rows that are left."""
    X = rows(11, 17, np.float64)
    X[4] = np.nan
    left = np.delete(X, 4, axis=0)
    D = fg.sqdist(left)
    scores = np.sort(D, axis=1)[:, : 11 - 2 - 1].sum(axis=1)
    assert (fg.krum(X, f=2) == left[scores.argmin()]).all()
    assert len(fg.inspect("multi_krum", X, f=2).selected) == 11 - 2 - 2
    assert len(fg.inspect("mda", X, f=2).selected) == 9
    assert len(fg.inspect("dnc", X, f=2).selected) == 9
    assert len(fg.inspect("monna", X, f=2).selected) == 9
    pulled = fg.centered_clipping(X, tau=1e9)
    np.testing.assert_allclose(pulled, left.sum(axis=0) / 11)
    # ARC: 2f(n-f)//n = 3 rows are cut, of which the faulty one is the first.
    lengths = np.sort(np.linalg.norm(left, axis=1))
    cut = np.linalg.norm(fg.arc(X, f=2), axis=1)
    assert np.nanmax(cut) == pytest.approx(lengths[7])
    assert np.isnan(cut[4])


def test_a_faulty_reference_is_an_error() -> None:
    X = rows(11, 17, np.float32)
    bad = X[0].copy()
    bad[3] = np.inf
    with pytest.raises(ValueError, match="reference holds NaN or infinity"):
        fg.fltrust(X, reference=bad)
    with pytest.raises(ValueError, match="start holds NaN or infinity"):
        fg.centered_clipping(X, tau=1.0, start=bad)
    X[0] = bad
    with pytest.raises(ValueError, match="monna trusts row 0"):
        fg.monna(X, f=2)
    fg.monna(X, f=2, pivot=1)


# ------------------------------------------------------------------------------------ 4: mixing


def test_a_faulty_row_stays_faulty_through_mixing() -> None:
    X = rows(11, 17, np.float32)
    X[4, 3] = np.nan
    for mixed in (fg.nnm(X, f=2), fg.arc(X, f=2), fg.clip(X, c=1.0)):
        assert np.isnan(mixed[4]).all()
        assert np.isfinite(np.delete(mixed, 4, axis=0)).all()
    buckets = fg.bucketing(X, s=2)
    assert np.isnan(buckets).all(axis=1).sum() == 1
    assert np.isfinite(buckets).all(axis=1).sum() == 5
    # Three buckets lost with f = 3 is fine, and one more row is one too many.
    with pytest.raises(fg.TooManyFaults):
        Y = X.copy()
        Y[:5] = np.nan
        fg.rule("bucketing(s=1) | median", 3)(Y)


def test_a_mixed_row_never_reads_a_faulty_one() -> None:
    X = rows(11, 17, np.float32)
    clean = np.delete(X, 4, axis=0)
    X[4] = np.nan
    W = np.array([[1 / 9 if j in near else 0.0 for j in range(10)] for near in
                  np.argsort(fg.sqdist(clean), axis=1, kind="stable")[:, :9].tolist()])  # fmt: skip
    np.testing.assert_allclose(
        np.delete(fg.nnm(X, f=2), 4, axis=0), W @ clean, rtol=1e-5, atol=1e-6
    )


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("length", [1e4, 1e8, 1e16, 1e30])
@pytest.mark.parametrize(
    "rule",
    ["krum(neighbours='n-f-1')", "geometric_median", "median", "mda", "smea", "caf", "phocas",
     "centered_clipping(tau=2.0, iters=3)", "nnm | krum(neighbours='n-f-1')", "nnm | median"],
)  # fmt: skip
def test_liars_who_cancel_each_other_in_a_bucket(rule: str, length: float, dtype: str) -> None:
    """x and -x in one bucket leave rounding behind, which is huge beside the honest rows."""
    rng = np.random.default_rng(0)
    together = 0
    for seed in range(24):
        X = rows(18, 12, np.float64, seed)
        lie = rng.normal(size=12) * length
        X[0], X[1] = lie, -lie + (X[5] if seed % 2 else 0.0)
        marks = np.zeros(18)
        marks[:2] = 1.5
        together += fg.bucketing(marks, s=3, seed=seed).max() == 1.0
        check_within_bound(f"bucketing(s=3, seed={seed}) | {rule}", X.astype(dtype), 2, [0, 1])
    assert together


# ---------------------------------------------------------------------- 5: the same bits, always


@pytest.mark.parametrize("spec", ROBUST)
def test_the_same_bits_for_any_number_of_threads(spec: str) -> None:
    X = rows(11, 5 * fg.CHUNK + 19, np.float32)
    X[3] *= 1e5
    found = set()
    before = fg.get_threads()
    try:
        for threads in (1, 2, 3, 2, 1):
            fg.set_threads(threads)
            found.add(aggregate(spec, X, 2).tobytes())
    finally:
        fg.set_threads(before)
    assert len(found) == 1


# ------------------------------------------------------------------- 6: errors before any work

BAD = [
    (np.arange(6).reshape(3, 2), TypeError),
    (np.ones((3, 2), complex), TypeError),
    ([1.0, 2.0, 3.0], TypeError),
    (np.ones((0, 4)), ValueError),
    ([], ValueError),
    (np.float64(3.0), (TypeError, ValueError)),
    ([np.ones(3), np.ones(4)], ValueError),
    ([np.ones(3), np.ones(3, np.float32)], TypeError),
    ([{"a": np.ones(2)}, {"b": np.ones(2)}], ValueError),
    ({"a": np.ones(2)}, TypeError),
    (None, TypeError),
    ("rows", TypeError),
]


@pytest.fixture
def no_work(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make any read of the data fail the test."""

    def refuse(*args: Any, **keywords: Any) -> None:
        raise AssertionError("the data was read before the error")

    for name in ("sqdist", "inner", "combine", "columns", "usage", "sqdist_to"):
        monkeypatch.setattr(f"fastgar.primitives.{name}", refuse)


@pytest.mark.usefixtures("no_work")
@pytest.mark.parametrize("spec", [*COLUMN, *DISTANCE, "nnm | krum"])
def test_bad_rows_are_refused_before_any_work(spec: str) -> None:
    for X, error in BAD:
        with pytest.raises(error):
            fg.rule(spec, 0 if fg.rules.lookup(fg.rule(spec, 0).stages[0].name) else None)(X)


@pytest.mark.usefixtures("no_work")
@pytest.mark.parametrize("f", [True, 1.0, "1", np.float64(2), [1], np.bool_(True)])
def test_f_of_a_wrong_type(f: Any) -> None:
    X = rows(11, 5, np.float32)
    for call in (fg.krum, fg.median, fg.nnm, fg.geometric_median, fg.trimmed_mean):
        with pytest.raises(TypeError, match="f must be an integer"):
            call(X, f)
    with pytest.raises(TypeError, match="f must be an integer"):
        fg.rule("krum", f)


@pytest.mark.usefixtures("no_work")
def test_f_out_of_range() -> None:
    X = rows(9, 5, np.float32)
    with pytest.raises(ValueError, match="f must be at least 0, got -1"):
        fg.krum(X, -1)
    message = r"bulyan needs n >= 4f \+ 3: with f=2 that is 11 rows, got 9"
    with pytest.raises(ValueError, match=message):
        fg.bulyan(X, f=2)
    for rule in fg.list_rules():
        spec = fg.rules.lookup(rule.name)
        if spec.f != "no" and spec.f == "required":
            with pytest.raises(ValueError, match=f"{rule.name} needs n >= "):
                fg.rule(rule.name, 9)(X)
    with pytest.raises(TypeError, match="krum needs f"):
        fg.rule("krum")


def test_f_may_be_a_numpy_integer() -> None:
    X = rows(9, 5, np.float32)
    np.testing.assert_array_equal(fg.krum(X, np.int64(2)), fg.krum(X, 2))
    assert fg.rule("krum", np.int32(2)) == fg.rule("krum", 2)
    assert type(fg.rule("krum", np.int32(2)).f) is int
