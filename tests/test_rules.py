"""Every rule against the written-out oracle, and against what theory says of it."""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
import pytest

import fastgar as fg
from fastgar import reference

TOLERANCE = {"float64": 2e-9, "float32": 3e-6, "float16": 2e-3, "bfloat16": 2e-2}
SIZES = (1, 17, 37, 199, fg.CHUNK + 3)
ROWS = ((5, 1), (7, 1), (7, 2), (11, 2), (12, 3), (15, 3))

COLUMN = [
    "mean", "nan_mean", "median", "median(middle='lower')", "median(middle='upper')",
    "trimmed_mean", "meamed", "meamed(middle='lower')", "meamed(variant='aggregathor')",
    "phocas", "condense", "condense(p=0.3, seed=7)",
    "condense(middle='lower')", "condense(middle='upper', p=0.5)", "sign_majority",
]  # fmt: skip
SELECTING = [
    "krum", "krum(neighbours='n-f-1')", "krum(squared=False)", "krum(variant='epfl')",
    "multi_krum", "multi_krum(m=2)", "multi_krum(variant='byzfl')",
    "bulyan", "bulyan(variant='epfl')", "bulyan(middle='lower')",
    "mda", "cge", "aksel", "aksel(mode='n-f')", "monna", "monna(pivot=3)",
    "aksel(variant='epfl')", "aksel(middle='upper', mode='n-f')",
]  # fmt: skip
WEIGHING = [
    "geometric_median", "rfa", "rfa(T=1, nu=3.0)", "rfa(relative=False)",
    "centered_clipping(tau=2.0)", "centered_clipping(tau=0.5, iters=20)", "caf", "dnc",
    "dnc(removal='at once')", "fltrust",
]  # fmt: skip
MIXING = ["nnm", "bucketing", "bucketing(s=3, seed=4)", "clip(c=3.0)", "arc"]
PIPELINES = [
    "nnm | krum", "nnm | trimmed_mean", "nnm | geometric_median", "arc | nnm | krum",
    "arc | nnm | phocas", "bucketing(s=2) | krum(neighbours='n-f-1')",
    "bucketing(seed=3) | geometric_median", "clip(c=2.0) | median", "clip(c=2.0) | caf",
    "clip(c=5.0) | bulyan", "nnm | mean", "nnm | nnm | multi_krum", "clip(c=3.0) | sign_majority",
    "nnm | nan_mean", "clip(c=5.0) | condense(p=0.5)", "arc | fltrust",
    "nnm | centered_clipping(tau=1.0, iters=3)", "bucketing(s=2) | nnm | rfa", "nnm | cge",
    "nnm | monna(pivot=1)", "arc | dnc", "clip(c=4.0) | bucketing(s=2)",
]  # fmt: skip
SEARCHING = ["mva", "smea", "arc | smea", "nnm | mva"]


def oracle(spec: str, X: Any, f: int | None, **at_call: Any) -> np.ndarray:
    """Run a pipeline through `reference`, on the vectors themselves."""
    rows = np.asarray(X, dtype=np.float64)
    for stage in fg.rule(spec, f).stages:
        options = dict(stage.options)
        for ours in ("tol", "max_iter", "work_limit", "on_limit"):
            options.pop(ours, None)
        if stage.name == "bulyan":
            options["variant"] = "epfl" if options.pop("selection") == "averaged" else "paper"
        if stage.name == "fltrust":
            options["reference"] = np.asarray(at_call["reference"], dtype=np.float64)
        if stage.name == "centered_clipping":
            options["start"] = at_call.get("start")
        rows = getattr(reference, stage.name)(rows, f=f, **options)
    return rows


def draw(n: int, d: int, dtype: Any, seed: int = 0) -> np.ndarray:
    """Draw rows about a common vector, so that lengths and angles differ but not wildly."""
    rng = np.random.default_rng([n, d, seed])
    return (rng.normal(size=(n, d)) + rng.normal(size=d)).astype(dtype)


def run(spec: str, X: np.ndarray, f: int) -> tuple[np.ndarray, np.ndarray]:
    """Return what we compute and what the oracle computes."""
    at_call = {}
    if "fltrust" in spec:
        at_call["reference"] = X.mean(axis=0, dtype=np.float64).astype(X.dtype)
    got = fg.rule(spec, f)(X, **at_call)
    assert got.dtype == X.dtype
    return np.asarray(got, dtype=np.float64), oracle(spec, X, f, **at_call)


def close(spec: str, X: np.ndarray, f: int) -> None:
    got, expected = run(spec, X, f)
    scale = np.abs(np.asarray(X, dtype=np.float64)).max(initial=0.0)
    assert got.shape == expected.shape
    tolerance = TOLERANCE[X.dtype.name] * (scale or 1.0)
    np.testing.assert_allclose(got, expected, rtol=0, atol=tolerance, err_msg=spec)


def fitting(spec: str, rows: tuple[tuple[int, int], ...] = ROWS) -> list[tuple[int, int]]:
    return [(n, f) for n, f in rows if fg.rule(spec, f).check(n) is None]


# --------------------------------------------------------------------------- against the oracle


@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("spec", COLUMN + SELECTING + WEIGHING + MIXING + PIPELINES)
def test_agrees_with_the_oracle(spec: str, dtype: str) -> None:
    cases = fitting(spec)
    assert cases, "the table must hold a case for every rule"
    # Sizes outside: a kernel for exactly n rows is compiled where n comes twice in a row.
    for d, (n, f) in itertools.product(SIZES, cases):
        if d > fg.CHUNK and (n, f) not in ((7, 1), (11, 2), (12, 3)):
            continue  # long vectors take the oracle long
        if d == 1 and "geometric_median" in spec and (n % 2 == 0 or "|" in spec):
            continue  # on a line, an even number of rows has many geometric medians
        if d == 1 and any(w in spec for w in ("nnm |", "arc | ", "squared=False", "epfl")):
            continue  # on a line these tie, and rounding breaks the tie
        close(spec, draw(n, d, dtype), f)


@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("spec", SEARCHING)
def test_subset_searches_agree_with_brute_force(spec: str, dtype: str) -> None:
    for (n, f), d in itertools.product(((5, 1), (7, 2), (9, 4)), (2, 17, 199)):
        close(spec, draw(n, d, dtype), f)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize(
    "spec",
    ["median", "trimmed_mean", "meamed", "krum", "multi_krum", "bulyan", "mda", "geometric_median",
     "centered_clipping(tau=2.0)", "nnm | trimmed_mean", "arc | krum", "caf"],
)  # fmt: skip
def test_halves_agree_with_the_oracle(spec: str, dtype: str) -> None:
    if dtype == "bfloat16":
        kind: Any = pytest.importorskip("ml_dtypes").bfloat16
    else:
        kind = np.float16
    for n, f in ((7, 1), (12, 2)):
        for d in (17, 199, fg.CHUNK + 3):
            close(spec, draw(n, d, kind), f)


@pytest.mark.parametrize("spec", ["median", "krum", "nnm | trimmed_mean", "geometric_median"])
@pytest.mark.parametrize(("n", "f"), [(33, 7), (64, 15), (100, 24), (130, 30)])
def test_many_rows(spec: str, n: int, f: int) -> None:
    close(spec, draw(n, 33, np.float64), f)
    close(spec, draw(n, 33, np.float32), f)


@pytest.mark.parametrize("spec", COLUMN + SELECTING + WEIGHING + MIXING)
def test_no_columns(spec: str) -> None:
    X = np.zeros((7, 0), dtype=np.float32)
    at_call = {"reference": X[0]} if spec == "fltrust" else {}
    assert fg.rule(spec, 1)(X, **at_call).shape[-1] == 0


def test_rows_may_be_numbers_but_a_vector_is_no_rows() -> None:
    X = np.array([1.0, 2.0, 3.0, 50.0, 2.5])
    assert fg.median(X[:, None]).shape == (1,)
    assert fg.krum(X[:, None], f=1) == [2.5]
    assert fg.krum([x.reshape(()) for x in np.split(X, 5)], f=1) == 2.5  # 0-d arrays, one per row
    for call in (fg.median, fg.sqdist, lambda x: fg.columns(x, "mean"), lambda x: fg.nnm(x, f=1)):
        with pytest.raises(ValueError, match=r"one vector and not rows: pass X\[:, None\] for 5"):
            call(X)


# These depend on which row is which, on a draw, or on ties (of the nearest pair: Bulyan).
ORDERED = ("monna", "bucketing", "condense", "fltrust", "bulyan")


@pytest.mark.parametrize(
    "spec",
    [
        spec
        for spec in [*SELECTING, *WEIGHING, *PIPELINES, "nnm", "arc", *SEARCHING]
        if not any(word in spec for word in ORDERED)
    ],
)
def test_row_order_does_not_matter(spec: str) -> None:
    X = draw(11, 37, np.float64, seed=5)
    order = np.random.default_rng(0).permutation(11)
    first, second = fg.rule(spec, 2)(X), fg.rule(spec, 2)(X[order])
    if first.ndim == 2:
        first = first[order]
    np.testing.assert_allclose(first, second, rtol=0, atol=1e-9)


@pytest.mark.parametrize(
    "spec",
    [
        spec
        for spec in [*SELECTING, *SEARCHING, "geometric_median", "caf", "dnc", "nnm"]
        if "arc" not in spec and spec != "cge"  # lengths change when everything moves
    ],
)
def test_moves_and_grows_with_the_rows(spec: str) -> None:
    X = draw(11, 37, np.float64, seed=6)
    shift = np.full(37, 3.0)
    moved = fg.rule(spec, 2)(X * 4.0 + shift)
    np.testing.assert_allclose(moved, fg.rule(spec, 2)(X) * 4.0 + shift, rtol=0, atol=1e-7)


# --------------------------------------------------------------------------------------- long rows


def long_rows(length: float, dtype: Any, n: int, f: int, d: int, kind: str) -> np.ndarray:
    rng = np.random.default_rng([n, d, len(kind)])
    X = draw(n, d, np.float64, seed=9)
    usual = np.linalg.norm(X[f:], axis=1).mean()
    for k in range(f):
        direction = rng.normal(size=d)
        away = direction / np.linalg.norm(direction)
        X[k] = away * usual * length ** (0.5 if kind == "mixed" and k else 1.0)
    if kind == "copies":
        X[:f] = X[0]
    order = np.concatenate([[f], rng.permutation(np.delete(np.arange(n), f))])
    return X[order].astype(dtype)  # row 0 is honest: MoNNA trusts it


@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("length", [1e4, 1e8, 1e16, 1e30])
@pytest.mark.parametrize(
    "spec",
    ["krum", "multi_krum", "bulyan", "mda", "mva", "smea", "geometric_median", "rfa",
     "centered_clipping(tau=2.0)", "centered_clipping(tau=2.0, iters=9)", "caf", "monna", "aksel",
     "fltrust", "cge", "clip(c=3.0)", "arc", "nnm | krum", "nnm | trimmed_mean", "nnm | median",
     "nnm | geometric_median", "arc | nnm | geometric_median", "clip(c=3.0) | krum",
     "arc | trimmed_mean", "arc | caf", "bucketing(s=2) | geometric_median", "arc | smea",
     "clip(c=3.0) | fltrust", "nnm | rfa", "nnm | nnm | centered_clipping(tau=1.0, iters=4)"],
)  # fmt: skip
def test_long_rows_cost_the_others_nothing(spec: str, length: float, dtype: str) -> None:
    for (n, f), d, kind in itertools.product(
        ((7, 1), (11, 2)), (5, 40), ("different", "copies", "mixed")
    ):
        if fg.rule(spec, f).check(n) is not None:
            continue
        X = long_rows(length, dtype, n, f, d, kind)
        at_call = {"reference": X[0]} if "fltrust" in spec else {}
        got = np.asarray(fg.rule(spec, f)(X, **at_call), dtype=np.float64)
        expected = oracle(spec, X, f, **at_call)
        # Measured in units of the honest rows, whatever became of the long ones.
        tolerance = {"float32": 1e-4, "float64": 1e-8}[dtype] * 3.0
        np.testing.assert_allclose(got, expected, rtol=0, atol=tolerance, err_msg=f"{n} {d} {kind}")


def test_a_long_common_part_is_no_long_row() -> None:
    """A shared vector of norm^2 501 and a spread of 1e-5: norms would lose everything."""
    rng = np.random.default_rng(0)
    shared = rng.normal(size=1000)
    shared *= math.sqrt(501) / np.linalg.norm(shared)
    X = (shared + 1e-5 * rng.normal(size=(11, 1000))).astype(np.float32)
    assert (fg.krum(X, f=2) == oracle("krum", X, 2).astype(np.float32)).all()
    got, expected = run("geometric_median", X, 2)
    assert np.linalg.norm(got - expected) < 1e-4
    assert fg.rule("geometric_median", 2).wants_inner(fg.sqdist(X)) is None


def test_float64_rows_whose_squares_overflow() -> None:
    X = draw(11, 20, np.float64)
    X[3] *= 1e300
    X[7] *= -1e200
    with np.errstate(over="raise", invalid="raise", divide="raise"):
        median = fg.geometric_median(X, f=2)
        clipped = fg.rule("clip(c=2.0) | median", 2)(X)
        assert np.isfinite(fg.rule("nnm | krum", 2)(X)).all()
        assert np.isfinite(fg.caf(X, f=2)).all()
        assert np.isfinite(fg.smea(X, f=2)).all()
    wide = X.astype(np.longdouble) - median
    pull = (wide / np.sqrt((wide * wide).sum(axis=1))[:, None]).sum(axis=0)
    assert np.sqrt((pull * pull).sum()) < 1e-7
    np.testing.assert_allclose(clipped, oracle("clip(c=2.0) | median", X, 2), atol=1e-9)


# ------------------------------------------------------------------------------ ties and copies


def test_ties_go_to_the_lowest_row() -> None:
    X = np.array([[0.0], [1.0], [2.0], [3.0], [4.0]])  # Krum: rows 1, 2, 3 tie with f=1
    report = fg.inspect("krum", X, f=1)
    assert report.scores is not None and report.scores[1] == report.scores[3]
    assert report.selected == (1,)
    assert fg.inspect("multi_krum(m=2)", X, f=1).selected == (1, 2)
    assert fg.inspect("mda", X, f=1).selected == (0, 1, 2, 3)
    assert fg.inspect("monna(pivot=2)", X, f=1).selected == (0, 1, 2, 3)
    np.testing.assert_array_equal(fg.cge(np.array([[1.0], [-1.0], [1.0], [1.0]]), f=2), [0.0])
    for X, kept in (([1, 1, 3, 3, 2], [1, 1, 2]), ([3, 1, 1, 3, 2], [3, 1, 2])):  # which are as far
        got = fg.aksel(np.array(X, float)[:, None], f=1)
        np.testing.assert_allclose(got, [np.mean(kept)])


@pytest.mark.parametrize(
    "spec",
    ["krum", "krum(neighbours='n-f-1')", "multi_krum", "multi_krum(m=2)", "bulyan", "mda", "mva",
     "bulyan(variant='epfl')", "cge", "monna", "aksel", "aksel(mode='n-f')", "meamed", "phocas",
     "nnm", "arc", "nnm | trimmed_mean"],
)  # fmt: skip
def test_small_integers_tie_as_the_oracle_says(spec: str) -> None:
    """Everything is exact among small integers, and ties are everywhere."""
    rng = np.random.default_rng(0)
    tested = 0
    for _ in range(80):
        n, d = int(rng.integers(5, 13)), int(rng.integers(1, 4))
        f = int(rng.integers(0, (n + 1) // 2))
        X = rng.integers(-2, 3, size=(n, d)).astype(rng.choice(["float32", "float64"]))
        if fg.rule(spec, f).check(n) is None:
            np.testing.assert_allclose(fg.rule(spec, f)(X), oracle(spec, X, f), atol=1e-6)
            tested += 1
    assert tested > 15


@pytest.mark.parametrize("spec", [*SELECTING, *WEIGHING[:-1], *SEARCHING, "nnm | krum"])
def test_equal_rows_give_that_row(spec: str) -> None:
    row = draw(1, 37, np.float32)[0]
    X = np.stack([row] * 11)
    got = fg.rule(spec, 2)(X)
    if "rfa" in spec or "clipping" in spec:
        length = float(np.linalg.norm(row))
        assert np.linalg.norm(got - row) <= length  # on the way from the origin to the row
    else:
        np.testing.assert_allclose(got, row, rtol=1e-6)


@pytest.mark.parametrize("length", [1e160, 1e250, 1e307])
def test_the_longest_row_still_pulls_the_geometric_median(length: float) -> None:
    """Its weight is about 1 / length, and its pull as strong as any other's."""
    for seed in range(40):
        X = np.random.default_rng(seed).standard_normal((22, 5))
        X[3] *= length / np.abs(X[3]).max()
        towards = X / length - fg.geometric_median(X, f=5) / length
        towards *= length / np.maximum(np.abs(X).max(axis=1), 1.0)[:, None]
        pull = (towards / np.linalg.norm(towards, axis=1)[:, None]).sum(axis=0)
        assert np.linalg.norm(pull) < 1e-4


def test_liars_that_cancel_do_not_spoil_the_geometric_median() -> None:
    """The products of rows mixed from x and -x may be negative by their rounding."""
    for seed in range(400):
        rng = np.random.default_rng(seed)
        v, far = rng.standard_normal((3, 2)), rng.standard_normal((1, 2)) * 1e6
        X = np.concatenate([v, -v, np.zeros((1, 2)), far, -far]) + rng.standard_normal(2)
        rule = fg.rule("bucketing(s=2) | geometric_median", f=1).at(seed)
        assert np.isfinite(rule(X)).all()


def test_a_majority_of_copies_is_the_geometric_median() -> None:
    X = draw(11, 37, np.float32)
    X[[1, 4, 5, 8, 9, 10]] = X[1]
    assert (fg.geometric_median(X) == X[1]).all()
    assert fg.inspect("geometric_median", X).selected == (1, 4, 5, 8, 9, 10)


def test_a_row_can_be_the_geometric_median() -> None:
    rng = np.random.default_rng(2)
    X = rng.normal(size=(9, 3))
    X[4] = fg.geometric_median(np.delete(X, 4, axis=0))  # now optimal among all nine as well
    assert (fg.geometric_median(X) == X[4]).all()


@pytest.mark.parametrize("shift", [1e-2, 1e-5, 1e-8])
def test_the_geometric_median_near_a_row(shift: float) -> None:
    """Where Weiszfeld's method crawls: the optimum is close to a row, but is not the row."""
    angles = np.arange(3) * 2 * math.pi / 3
    X = np.stack([np.cos(angles), np.sin(angles)], axis=1)
    X = np.concatenate([X, X[:1] + shift, [[2.0, 0.1]]])
    for rows in (X, np.concatenate([X, [[3.0, 0.3]]])):
        got, expected = fg.geometric_median(rows), reference.geometric_median(rows)
        np.testing.assert_allclose(got, expected, rtol=0, atol=2e-8)


def test_the_geometric_median_says_when_it_stops_early() -> None:
    X = draw(12, 5, np.float64)
    with pytest.warns(RuntimeWarning, match="stopped after 1 steps"):
        fg.geometric_median(X, max_iter=1, tol=1e-12)


# -------------------------------------------------------------------------------------- variants


def test_variants_are_presets_that_options_override() -> None:
    X = draw(9, 5, np.float64)
    assert (fg.krum(X, 2, variant="byzfl") == fg.krum(X, 2, neighbours="n-f-1")).all()
    rule = fg.rule("krum(variant='epfl', squared=True)", 2)
    assert rule.stages[0].options == {"neighbours": "n-f-1", "squared": True}
    assert rule == fg.rule("krum(neighbours='n-f-1')", 2)


def test_variants_differ() -> None:
    """A preset that changes nothing would be no variant."""
    specs = {
        "krum": ["krum", "krum(neighbours='n-f-1')", "krum(squared=False)"],
        "bulyan": ["bulyan", "bulyan(variant='epfl')"],
        "median": ["median", "median(middle='lower')", "median(middle='upper')"],
    }
    for variants in specs.values():
        found = {spec: set() for spec in variants}
        for seed in range(20):
            X = draw(12, 3, np.float64, seed=seed)
            X *= np.random.default_rng(seed).lognormal(sigma=2.0, size=(12, 1))
            for spec in variants:
                found[spec].add(fg.rule(spec, 2)(X).tobytes())
        for a, b in itertools.combinations(variants, 2):
            assert found[a] != found[b]


def test_centered_clipping_starts_where_it_is_told() -> None:
    X = draw(9, 21, np.float32)
    start = draw(1, 21, np.float32, seed=3)[0]
    got = fg.centered_clipping(X, tau=1.5, iters=3, start=start)
    expected = oracle("centered_clipping(tau=1.5, iters=3)", X, 2, start=start.astype(float))
    np.testing.assert_allclose(got, expected, atol=1e-5)


def test_randomised_rules_draw_by_seed_and_step() -> None:
    X = draw(9, 40, np.float64)
    for step in range(3):
        got = fg.bucketing(X, s=2, seed=5, step=step)
        np.testing.assert_allclose(got, reference.bucketing(X, s=2, seed=5, step=step))
        got = fg.condense(X, 2, p=0.5, seed=5, step=step)
        np.testing.assert_array_equal(got, reference.condense(X, 2, p=0.5, seed=5, step=step))
    rule = fg.rule("bucketing(s=2, seed=5)", 1)
    steps = [rule(X) for _ in range(3)]
    np.testing.assert_allclose(
        steps, [reference.bucketing(X, s=2, seed=5, step=k) for k in range(3)]
    )


# ---------------------------------------------------------------------------------------- theory


def test_variance_ratios_of_the_papers() -> None:
    published = {
        (51, 24): (0.0057, 0.192, 0.398), (51, 12): (0.0426, 0.160, 1.149),
        (25, 11): (0.0171, 0.267, 0.450), (25, 5): (0.0888, 0.224, 1.414),
    }  # fmt: skip
    for (n, f), ratios in published.items():
        for name, ratio in zip(("krum", "median", "mda"), ratios, strict=True):
            assert fg.variance_ratio(name, n, f) == pytest.approx(ratio, abs=5e-4)
    assert fg.variance_ratio("bulyan", 51, 12) == fg.variance_ratio("krum", 51, 12)


def test_kappa_formulas() -> None:
    assert fg.kappa("trimmed_mean", 11, 2) == 2 / 7
    assert fg.kappa("krum(neighbours='n-f-1')", 11, 2) == pytest.approx((18**0.5 + 2**0.5) ** 2 / 7)
    assert fg.kappa("krum", 11, 2) == pytest.approx((18**0.5 + 3**0.5) ** 2 / 6)
    assert fg.kappa("median", 11, 2) == pytest.approx(5 / 4)
    assert fg.kappa("geometric_median", 11, 2) == pytest.approx(4 * (9 / 7) ** 2)
    assert fg.kappa("smea", 11, 2) == pytest.approx(8 / 7)
    assert fg.kappa("nnm | median", 11, 2) == pytest.approx(16 / 9 * (5 / 4 + 1))
    assert fg.kappa("arc | median", 11, 2) == pytest.approx(5 / 4 + 4 / 7)
    for n, f in ((11, 2), (51, 12), (7, 3)):
        for name in ("trimmed_mean", "median", "nnm | median", "geometric_median"):
            assert fg.kappa(name, n, f) >= f / (n - 2 * f)
    with pytest.raises(ValueError, match="no bound of kappa is known for cge"):
        fg.kappa("cge", 11, 2)
    with pytest.raises(ValueError, match="2f \\+ 3"):
        fg.kappa("krum", 4, 1)


def lies(rng: np.random.Generator, honest: np.ndarray, f: int) -> np.ndarray:
    """Return f rows as the literature's attackers would send them."""
    mean, spread = honest.mean(axis=0), honest.std(axis=0)
    kind = rng.integers(6)
    direction = [spread, -mean, rng.normal(size=mean.shape), np.sign(mean), mean, honest[0] - mean]
    size = rng.choice([0.1, 1.0, 1.5, 10.0, 1e3])
    row = mean + size * direction[kind]
    return np.tile(row, (f, 1)) + 1e-3 * rng.normal(size=(f, len(mean))) * rng.integers(2)


@pytest.mark.filterwarnings("ignore:geometric_median stopped after 1 steps:RuntimeWarning")
@pytest.mark.parametrize(
    "spec",
    ["trimmed_mean", "krum(neighbours='n-f-1')", "krum(variant='epfl')", "median", "meamed",
     "median(middle='upper')", "phocas", "aksel", "aksel(mode='n-f')", "mda", "mva", "smea", "dnc",
     "multi_krum(neighbours='n-f-1', m=3)", "geometric_median", "geometric_median(max_iter=1)",
     "nnm | trimmed_mean", "nnm | krum(neighbours='n-f-1')", "nnm | median", "arc | median",
     "nnm | geometric_median", "arc | nnm | dnc"],
)  # fmt: skip
def test_kappa_bounds_hold(spec: str) -> None:
    rng = np.random.default_rng(1)
    worst = 0.0
    for n, f, d in itertools.chain.from_iterable([[(7, 2, 4), (6, 1, 2), (9, 3, 6)]] * 12):
        honest = rng.normal(size=(n - f, d)) + rng.normal(size=d) * rng.choice([0, 1, 10])
        X = np.concatenate([honest, lies(rng, honest, f)])
        aggregate = fg.rule(spec, f)(X)
        kappa = fg.kappa(spec, n, f)
        for subset in itertools.combinations(range(n), n - f):
            S = X[list(subset)]
            centred = S - S.mean(axis=0)
            if spec == "smea":
                spread = np.linalg.norm(centred, ord=2) ** 2 / len(S)
            else:
                spread = (centred**2).sum() / len(S)
            error = ((aggregate - S.mean(axis=0)) ** 2).sum()
            assert error <= kappa * spread * (1 + 1e-9) + 1e-12
            worst = max(worst, error / (kappa * spread))
    assert worst > 0.01, "an attack that moves nothing tests nothing"


def test_mda_stays_within_the_diameter() -> None:
    rng = np.random.default_rng(3)
    for n, f, d in ((7, 2, 3), (9, 4, 5), (11, 3, 2)):
        for _ in range(10):
            honest = rng.normal(size=(n - f, d))
            aggregate = fg.mda(np.concatenate([honest, lies(rng, honest, f)]), f=f)
            diameter = math.sqrt(fg.sqdist(honest).max())
            error = np.linalg.norm(aggregate - honest.mean(axis=0))
            assert error <= 2 * f / (n - f) * diameter * (1 + 1e-12)


def test_the_trimmed_mean_of_two_values() -> None:
    """f copies of a and n-f of b, nobody lying: off by exactly f/n of |a-b|."""
    for n, f in ((5, 1), (11, 2), (20, 7)):
        a, b = np.full(3, 7.0), np.full(3, -1.0)
        X = np.concatenate([np.tile(a, (f, 1)), np.tile(b, (n - f, 1))])
        error = np.abs(fg.trimmed_mean(X, f=f) - X.mean(axis=0))
        np.testing.assert_allclose(error, f / n * 8.0, rtol=1e-12)
        farthest = np.abs(X - X.mean(axis=0)).max()
        np.testing.assert_allclose(error, f / (n - f) * farthest, rtol=1e-12)


def test_column_rules_stay_in_the_honest_range() -> None:
    rng = np.random.default_rng(4)
    for n, f in ((3, 1), (7, 3), (11, 5), (12, 5)):
        honest = rng.normal(size=(n - f, 50))
        low, high = honest.min(axis=0), honest.max(axis=0)
        for lie in (1e30, -1e30, 0.0):
            X = np.concatenate([np.full((f, 50), lie), honest])
            for aggregate in (fg.median(X, f), fg.trimmed_mean(X, f)):
                assert (aggregate >= low).all() and (aggregate <= high).all()


def test_fall_of_empires_flips_the_median() -> None:
    honest = np.array([-0.3, 1.0, 2.0, 3.0, 4.0])
    assert honest.mean() == pytest.approx(1.94)
    seen = honest[:3]
    attacked = np.concatenate([seen, [-seen.mean()] * 2])
    assert attacked[-1] == pytest.approx(-0.9)
    assert fg.median(attacked[:, None]) == pytest.approx(-0.3)


@pytest.mark.parametrize("q", [1, 2, 4])
def test_fall_of_empires_beats_krum_where_noise_dominates(q: int) -> None:
    picked = 0
    for seed in range(10):
        rng = np.random.default_rng([q, seed])
        honest = rng.normal(size=(12 - q, 2000)) + 0.02
        attack = np.tile(-0.1 * honest.mean(axis=0), (q, 1))
        X = np.concatenate([honest, attack])
        picked += fg.inspect("krum", X, f=4).selected[0] >= 12 - q
    assert picked == 10


@pytest.mark.parametrize("seed", range(40))
def test_caf_takes_copies_of_the_longest_row_out_together(seed: int) -> None:
    """Their projections differ in the last bits, and what is left of a weight times 1e8 is not."""
    rng = np.random.default_rng(seed)
    X = rng.standard_normal((11, 40))
    X[[3, 8]] = rng.standard_normal(40) * 10.0 ** rng.integers(2, 8)
    np.testing.assert_allclose(fg.caf(X, 2), reference.caf(X, 2), atol=1e-9)


def test_a_rule_without_f_says_so():
    with pytest.raises(TypeError, match="mean takes no f"):
        fg.mean(np.ones((3, 4)), f=1)
