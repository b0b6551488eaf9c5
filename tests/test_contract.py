"""The never-breaks contract: up to f rows may hold anything, for every rule with a guarantee."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import fastgar as fg
from fastgar.cpu import backend

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

# The rows are this far from the origin, so that what depends on their length is seen.
AWAY = 30.0
# How near the honest mean a result stays, in units of the farthest honest row's distance from it.
NEAR = 2.0
# How long it may be where something else bounds it. RFA's first step begins at the origin, from
# which each liar pulls as much as an honest row, and two more steps do not undo all of that.
LONGEST: dict[str, Callable[[np.ndarray], float]] = {
    "sign_majority": lambda honest: honest.shape[1] ** 0.5,
    "centered_clipping(tau=2.0)": lambda honest: 2.0,
    "centered_clipping(tau=2.0, iters=3)": lambda honest: 6.0,
    "centered_clipping(tau=1.0, iters=3)": lambda honest: 3.0,
    "clip(c=3.0) | median": lambda honest: 3.0 * 2**0.5,
    "clip(c=3.0) | geometric_median": lambda honest: 3.0,
    "fltrust": lambda honest: np.linalg.norm(honest[-1]),
    "cge": lambda honest: np.linalg.norm(honest, axis=1).max(),
    "rfa": lambda honest: 1.7 * np.linalg.norm(honest, axis=1).max(),
}
PROVED = [
    "median", "trimmed_mean", "krum", "geometric_median", "smea", "nnm | krum",
    "nnm | trimmed_mean", "nnm | median", "nnm | geometric_median",
]  # fmt: skip


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


def check_within_bound(spec: str, X: np.ndarray, f: int, liars: Sequence[int]) -> None:
    """Check what the rule guarantees where f rows lie."""
    assert len(liars) == f
    got = aggregate(spec, X, f).astype(np.float64)
    assert np.isfinite(got).all(), spec
    honest = np.delete(X, liars, axis=0).astype(np.float64)
    slack = 4 * np.finfo(X.dtype).eps * np.linalg.norm(honest, axis=1).max()
    if spec == "fltrust" or fg.rule(spec, f).guarantee == "bounded":
        longest = LONGEST[re.sub(r"^(bucketing\(.*?\)|nnm|arc) \| ", "", spec)](honest)
        assert np.linalg.norm(got) <= longest + slack, spec
        return
    deviations = honest - honest.mean(axis=0)
    error = np.linalg.norm(got - honest.mean(axis=0)) - slack
    assert error <= NEAR * np.linalg.norm(deviations, axis=1).max(), spec
    if spec in PROVED:
        spread = np.linalg.norm(deviations, 2 if spec == "smea" else None) / len(honest) ** 0.5
        assert error <= fg.kappa(spec, len(X), f) ** 0.5 * spread, spec


def rows(n: int, d: int, dtype: Any, seed: int = 0, shift: float = 1.0) -> np.ndarray:
    return (np.random.default_rng([n, d, seed]).normal(size=(n, d)) + shift).astype(dtype)


# ------------------------------------------------------------------------- 1: up to f of anything


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("spec", ROBUST)
def test_f_liars_of_one_kind(spec: str, kind: str) -> None:
    rng = np.random.default_rng(0)
    for n, f, d in ((11, 2, 17), (12, 2, 5)):
        X = rows(n, d, np.float32, shift=AWAY)
        liars = [first_liar(spec), 4]
        for liar in liars:
            poison(kind, X, liar, rng)
        check_within_bound(spec, X, f, liars)


@settings(max_examples=12, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
@pytest.mark.parametrize("spec", ROBUST)
def test_f_liars_of_any_kinds(spec: str, data: st.DataObject) -> None:
    n = data.draw(st.integers(max(5, fg.min_n(spec, 1)), 13), "n")
    f = data.draw(st.integers(1, fg.max_f(spec, n)), "f")
    dtype = data.draw(st.sampled_from(["float32", "float64", "float16"]), "dtype")
    d, seed = data.draw(st.sampled_from([1, 3, 16]), "d"), data.draw(st.integers(0, 99), "seed")
    X = rows(n, d, dtype, seed, AWAY)
    # The last row stays honest: copies and references are taken from it.
    liars = data.draw(st.permutations(range(first_liar(spec), n - 1)), "liars")[:f]
    rng = np.random.default_rng(0)
    for liar in liars:
        poison(data.draw(st.sampled_from(KINDS), "kind"), X, liar, rng)
    with np.errstate(all="ignore"), pytest.MonkeyPatch.context() as patch:
        patch.setattr(backend, "FIXED_ROWS", 0)  # so that not every n is compiled
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


def test_fltrust_knows_the_lengths_of_rows_among_very_long_ones() -> None:
    """Most rows lie, and the distances of some overflow: those of the others are exact."""
    X = np.array([[1e9, 0], [1e200, 0], [-1e200, 1], [1e200, 2], [1.1e9, 3], [30, 1], [31, 0]])
    assert np.linalg.norm(fg.fltrust(X, 5, reference=X[-1])) <= 31.0 * (1 + 1e-12)


def test_fltrust_lengthens_no_row_beyond_float32() -> None:
    """A row of 1e-45 has a length where most lie, as distances are then formed in float64."""
    X = np.array([[1e-45], [-np.inf], [31.0], [np.nan], [3e38], [30.0]], np.float32)
    for reference in (X[-1], X[2]):
        np.testing.assert_allclose(fg.fltrust(X, 5, reference=reference), reference, rtol=1e-6)


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
    rule, Y = fg.rule("bucketing(s=1) | median", 3), X.copy()
    Y[:2] = np.nan
    assert np.isfinite(rule(Y)).all()
    Y[2] = np.nan
    with pytest.raises(fg.TooManyFaults) as raised:
        rule(Y)
    assert len(raised.value.rows) == 4


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
        X = rows(18, 12, np.float64, seed, AWAY)
        lie = rng.normal(size=12) * length
        X[0], X[1] = lie, -lie + (X[5] if seed % 2 else 0.0)
        marks = np.zeros(18)
        marks[:2] = 1.5
        together += fg.bucketing(marks[:, None], s=3, seed=seed).max() == 1.0
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
    (np.arange(6).reshape(3, 2), TypeError, "X is int64, but only"),
    (np.ones((3, 2), complex), TypeError, "X is complex128, but only"),
    ([1.0, 2.0, 3.0], TypeError, "X is a list of numbers"),
    (np.ones((0, 4)), ValueError, "n = 0"),
    ([], ValueError, "n = 0"),
    (np.float64(3.0), TypeError, "X is a float64, not an array"),
    ([np.ones(3), np.ones(4)], ValueError, "row 1 has shape"),
    ([np.ones(3), np.ones(3, np.float32)], TypeError, "row 1 is float32, row 0 is float64"),
    ([{"a": np.ones(2)}, {"b": np.ones(2)}], ValueError, "must have one structure"),
    ({"a": np.ones(2)}, TypeError, "X is one dict"),
    (None, TypeError, "X is a NoneType, not an array"),
    ("rows", TypeError, "X is a str, not an array"),
]
EVERY = [*ROBUST, *FRAIL, *specs("mixing")]


@pytest.fixture
def no_work(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make any read of the data fail the test: whatever reads asks for a backend first."""

    def refuse(T: Any) -> None:
        raise AssertionError("the data was read before the error")

    monkeypatch.setattr("fastgar.primitives._on", refuse)


@pytest.mark.usefixtures("no_work")
@pytest.mark.parametrize("spec", EVERY)
def test_a_read_before_an_error_would_be_noticed(spec: str) -> None:
    """With rows that are right there is work, and none that the fixture does not see."""
    X = rows(11, 5, np.float32)
    at_call = {"reference": X[-1]} if "fltrust" in spec else {}
    for call in (fg.rule(spec, 2), lambda X, **more: fg.inspect(spec, X, 2, **more)):
        with pytest.raises(AssertionError, match="the data was read"):
            call(X, **at_call)


@pytest.mark.usefixtures("no_work")
@pytest.mark.parametrize("spec", EVERY)
def test_bad_rows_are_refused_before_any_work(spec: str) -> None:
    for X, error, message in BAD:
        with pytest.raises(error, match=message):
            fg.rule(spec, 0)(X)


@pytest.mark.usefixtures("no_work")
@pytest.mark.parametrize("spec", EVERY)
def test_calls_that_do_not_fit_the_rule_are_refused_before_any_work(spec: str) -> None:
    rule, X = fg.rule(spec, 2), rows(11, 5, np.float32)
    few = X[: rule.min_n - 1] if rule.min_n > 1 else X[:0]
    with pytest.raises(ValueError, match=r"needs n >= |n = 0"):
        rule(few)
    for name in ("start", "reference"):
        wrong = "has shape" if name in rule.refs else f"takes no {name}"
        with pytest.raises(ValueError, match=wrong):
            rule(X, **{name: X[0, :3]})
    if "reference" in rule.refs:
        with pytest.raises(TypeError, match="needs reference="):
            rule(X)


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
