"""Rules as objects: what a string means, what is refused, what a call does, what a report says."""

from __future__ import annotations

import pickle
import subprocess
import sys
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import fastgar as fg
from fastgar import primitives
from fastgar.arrays import table
from fastgar.cpu import backend
from fastgar.search.mixed import ROWS
from fastgar.search.selection import choose, makes
from fastgar.search.subsets import every
from fastgar.statistic import Bulyan


def rows(n: int = 11, d: int = 17, seed: int = 0, dtype: Any = np.float64) -> np.ndarray:
    return (np.random.default_rng([n, d, seed]).normal(size=(n, d)) + 1.0).astype(dtype)


# ------------------------------------------------------------------------------------ the string


def test_a_string_is_stages_with_literals() -> None:
    rule = fg.rule(" bucketing( s = 2 ,seed=7)|krum(neighbours='n-f-1') ", f=1)
    assert [stage.name for stage in rule.stages] == ["bucketing", "krum"]
    assert rule.stages[0].options == {"s": 2, "seed": 7}
    assert rule.stages[1].options == {"neighbours": "n-f-1", "squared": True}
    assert repr(rule) == "fastgar.rule(\"bucketing(s=2, seed=7) | krum(neighbours='n-f-1')\", f=1)"
    assert eval(repr(rule), {"fastgar": fg}) == rule


def test_a_string_is_the_call() -> None:
    X = rows()
    np.testing.assert_array_equal(fg.rule("krum", 2)(X), fg.krum(X, 2))
    np.testing.assert_array_equal(
        fg.rule("nnm | trimmed_mean", 2)(X), fg.rule("nnm|trimmed_mean", f=2)(X)
    )
    np.testing.assert_allclose(
        fg.rule("nnm | trimmed_mean", 2)(X), fg.trimmed_mean(fg.nnm(X, 2), 2), rtol=1e-12
    )
    np.testing.assert_allclose(
        fg.rule("arc | nnm | krum", 2)(X), fg.krum(fg.nnm(fg.arc(X, 2), 2), 2), rtol=1e-12
    )


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("krumm", "unknown rule 'krumm': did you mean 'krum'"),
        ("nnm | trimed_mean", "did you mean 'trimmed_mean'"),
        (
            "krum(neighbors='n-f-2')",
            "unknown option of krum 'neighbors': did you mean 'neighbours'",
        ),
        ("krum(neighbours='n-f-3')", "neighbours must be 'n-f-2' or 'n-f-1', got 'n-f-3'"),
        ("krum(variant='byzf')", "unknown variant of krum 'byzf': did you mean 'byzfl'"),
        ("krum(n-f-2)", "name the options of krum"),
        ("krum(**{'squared': True})", "name the options of krum"),
        ("krum(f=2)", "f is not an option"),
        ("multi_krum(m=2, m=3)", "multi_krum has m twice"),
        ("multi_krum(m=m)", r"multi_krum\(m=...\) must be a literal"),
        ("multi_krum(m=__import__('os'))", "must be a literal"),
        ("multi_krum(m=0)", "m must be an integer at least 1 or None, got 0"),
        ("clip(c=-1.0)", "c must be a finite number above 0, got -1.0"),
        ("clip(c=1e999)", "c must be a finite number above 0, got inf"),
        ("condense(p=1.5)", "p must be a finite number between 0 and 1, got 1.5"),
        ("bucketing(s=0)", "s must be an integer at least 1, got 0"),
        ("monna(pivot=-1)", "pivot must be an integer at least 0"),
        ("", "is no rule"),
        ("nnm |", "is no rule"),
        ("| krum", "is no rule"),
        ("nnm || krum", "is no rule"),
        ("nnm & krum", "is no rule"),
        ("nnm | 'krum'", "is no rule"),
        ("fg.krum", "is no rule"),
        ("krum()()", "is no rule"),
        ("(" * 1500, "is no rule"),
        ("krum" * 1000, "at most 2000"),
        ("krum | nnm", "krum gives one row, so it must be the last"),
        ("median | krum", "median gives one row"),
        ("nnm | aksel", "aksel looks at the rows themselves"),
        ("nnm\x00", "is no rule"),
    ],
)
def test_a_string_that_is_none(spec: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        fg.rule(spec, f=1)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("krum(squared=1)", "squared must be True or False, got 1"),
        ("krum(neighbours=2)", "neighbours must be 'n-f-2' or 'n-f-1', got 2"),
        ("multi_krum(m=2.0)", "m must be an integer at least 1 or None, got 2.0"),
        ("multi_krum(m=True)", "m must be an integer"),
        ("multi_krum(m='2')", "m must be an integer"),
        ("clip(c='1')", "c must be a finite number"),
        ("clip(c=True)", "c must be a finite number"),
        ("clip(c=None)", "c must be a finite number"),
        ("clip", "clip needs the option c"),
        ("centered_clipping", "centered_clipping needs the option tau"),
    ],
)
def test_an_option_of_a_wrong_type(spec: str, message: str) -> None:
    with pytest.raises(TypeError, match=message):
        fg.rule(spec, f=1)


def test_options_of_a_call_are_checked_alike() -> None:
    X = rows()
    with pytest.raises(ValueError, match="did you mean 'neighbours'"):
        fg.krum(X, 2, neighbors="n-f-1")
    with pytest.raises(TypeError, match="squared must be True or False"):
        fg.krum(X, 2, squared=[])
    with pytest.raises(ValueError, match="unknown option of krum 'step'"):
        fg.krum(X, 2, step=3)
    with pytest.raises(TypeError):
        fg.krum(X, 2, "n-f-1")  # type: ignore[call-arg]
    with pytest.raises(TypeError):
        fg.mean(X, 2)
    with pytest.raises(TypeError, match="needs the option tau"):
        fg.centered_clipping(X)
    assert (fg.multi_krum(X, 2, m=np.int64(3)) == fg.multi_krum(X, 2, m=3)).all()
    assert (fg.clip(X, c=np.float32(2.0)) == fg.clip(X, c=2)).all()


def test_a_rule_may_be_given_as_a_rule() -> None:
    rule = fg.rule("krum", 2)
    assert fg.rule(rule) is rule
    assert fg.rule(rule, 3) == fg.rule("krum", 3)
    with pytest.raises(TypeError, match="described by a string, got 3"):
        fg.rule(3)  # type: ignore[arg-type]


# ------------------------------------------------------------------------------------ what it is


def test_equality_hash_and_pickle() -> None:
    rule = fg.rule("krum(variant='byzfl')", 2)
    same = fg.rule("krum(neighbours='n-f-1')", 2)
    assert rule == same and hash(rule) == hash(same)
    assert rule != fg.rule("krum", 2)
    assert rule != fg.rule("krum(variant='byzfl')", 3)
    assert rule != "krum"
    randomised = fg.rule("bucketing(s=2, seed=3) | median", 1)
    X = rows()
    randomised(X)
    copy = pickle.loads(pickle.dumps(randomised))
    assert copy == randomised and copy.step == 1
    np.testing.assert_array_equal(copy(X), randomised(X))


def test_randomised_stages_draw_anew_at_each_step() -> None:
    X = rows(12, 40)
    rule = fg.rule("bucketing(s=3)", 1)
    first, second = rule(X), rule(X)
    assert rule.step == 2
    assert not np.array_equal(first, second)
    np.testing.assert_array_equal(rule.at(0)(X), first)
    np.testing.assert_array_equal(rule.at(1)(X), second)
    np.testing.assert_array_equal(fg.bucketing(X, s=3, step=1), second)
    np.testing.assert_array_equal(fg.bucketing(X, s=3), first)
    np.testing.assert_array_equal(fg.bucketing(X, s=3), first)


def test_a_refused_call_is_no_step() -> None:
    rule = fg.rule("bucketing(s=2) | median", 1)
    X = rows()
    X[:2] = np.nan
    with pytest.raises(fg.TooManyFaults):
        rule(X)
    assert rule.step == 0


def test_check_and_min_n() -> None:
    assert fg.rule("bulyan", 2).check(11) is None
    sentence = "bulyan needs n >= 4f + 3: with f=2 that is 11 rows, got 9"
    assert fg.rule("bulyan", 2).check(9) == sentence
    assert fg.rule("bulyan", 2).min_n == 11
    bucketed = fg.rule("bucketing(s=3) | krum", 1)
    assert bucketed.min_n == 13
    assert bucketed.check(13) is None
    assert bucketed.check(12) == (
        "bucketing(s=3) makes 4 of 12 rows, and krum needs n >= 2f + 3: with f=1 that is 5 rows, "
        "got 4"
    )
    assert fg.rule("multi_krum(m=5)", 2).check(8) == (
        "multi_krum needs n >= m + f + 2: with m=5, f=2 that is 9 rows, got 8"
    )
    assert fg.rule("multi_krum(m=7, neighbours='n-f-1')", 2).min_n == 9
    assert fg.rule("monna(pivot=8)", 1).check(5) == (
        "monna needs n >= pivot + 1: with pivot=8 that is 9 rows, got 5"
    )
    assert fg.rule("mean").min_n == 1
    assert fg.rule("median").min_n == 1
    with pytest.raises(ValueError, match="krum needs n >= 2f"):
        fg.rule("krum", 2)(rows(6))


def test_too_many_faults_cost_no_third_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(primitives, "inner")
    X = rows()
    X[0] *= 1e9
    X[1:4] = np.nan
    with pytest.raises(fg.TooManyFaults):
        fg.geometric_median(X, 2)


def test_min_n_and_max_f_agree() -> None:
    specs = ["krum", "multi_krum", "bulyan", "median", "trimmed_mean", "mda", "cge", "condense",
             "nnm | krum", "bucketing(s=2) | trimmed_mean", "geometric_median", "fltrust",
             "krum(neighbours='n-f-1')"]  # fmt: skip
    for spec in specs:
        for f in range(6):
            n = fg.min_n(spec, f)
            assert fg.rule(spec, f).check(n) is None
            if n > 1:
                assert fg.rule(spec, f).check(n - 1) is not None
            assert fg.max_f(spec, n) >= f
            assert fg.rule(spec, fg.max_f(spec, n) + 1).check(n) is not None
    assert fg.max_f("krum", n=11) == 4 and fg.min_n("krum", f=4) == 11
    assert fg.max_f("mean", n=7) == 0
    for n in range(3):  # too few, which the rule says by itself
        assert fg.max_f("krum", n) == fg.max_f("mean", n) == 0


SELECTING = (
    "krum", "multi_krum", "cge", "bulyan", "nnm", "mda", "mva", "centered_clipping",
    "geometric_median", "monna", "nnm | krum", "nnm | multi_krum", "nnm | bulyan", "nnm | mda",
    "nnm | mva", "nnm | monna",
)  # fmt: skip


# What the choice is left to the rule for, as it needs more than distances.
LEFT = {
    "nothing": (),
    "faulty rows": ("mda", "mva", "geometric_median", *(s for s in SELECTING if "|" in s)),
    "far rows": (
        "mda", "mva", "geometric_median", "centered_clipping", *(s for s in SELECTING if "nnm" in s)
    ),
}  # fmt: skip
WILD = {"nothing": (1.0,), "faulty rows": (np.nan, np.inf, -np.inf), "far rows": (1e200, -1e160)}


def of_kind(kind: str, options: str = "", tau: float = 3.0) -> str:
    """Return the description of a rule of that kind, with what it needs."""
    if kind == "nnm":
        return "nnm | trimmed_mean"
    return f"centered_clipping(tau={tau})" if kind == "centered_clipping" else kind + options


@pytest.mark.parametrize("wild", LEFT)
@pytest.mark.parametrize("kind", SELECTING)
@given(data=st.data())
@settings(max_examples=6, deadline=None)
def test_the_compiled_choice_is_the_rule_s(kind: str, wild: str, data: st.DataObject) -> None:
    n = data.draw(st.integers(7, 11 if kind[-3:] in ("mda", "mva") else ROWS), label="n")
    options, pivot = "", data.draw(st.integers(0, n - 1), label="pivot")
    if "krum" in kind:
        neighbours = data.draw(st.sampled_from(["n-f-2", "n-f-1"]))
        squared = data.draw(st.booleans(), label="squared")
        options = f"(neighbours={neighbours!r}, squared={squared})"
    if "monna" in kind:
        options = f"(pivot={pivot})"
    tau = data.draw(st.sampled_from([0.01, 3.0, 1000.0]), label="tau")
    spec = of_kind(kind, options, tau)
    f = data.draw(st.integers(1, fg.max_f(spec, n)), label="f")
    rng = np.random.default_rng(data.draw(st.integers(0, 1000), label="seed"))
    near = 1000 if kind == "geometric_median" else data.draw(st.sampled_from([2, 1000]))
    X = rng.integers(0, near, (n, 3)) / 7  # that tie, or not
    several = 1 if wild == "nothing" else data.draw(st.integers(1, f), label="how many")
    for row in rng.permutation(np.delete(np.arange(n), pivot))[:several]:
        X[row] = data.draw(st.sampled_from(WILD[wild]))
    rule = fg.rule(spec, f)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(backend, "FIXED_ROWS", 0)  # so that not every n is compiled
        np.testing.assert_array_equal(rule(X), rule(X, check=True))
    assert (chosen(rule, X) is None) == (kind in LEFT[wild])


def chosen(rule: fg.Rule, X: np.ndarray) -> np.ndarray | None:
    """Return what is chosen at once, which must be what the rule decides, or None."""
    T = table(X)
    selection = rule._plan(T.n).selection
    assert selection is not None
    decision = rule.explain(X).decision
    made, whole = choose(primitives.sqdist(T, rule.references(T)), selection)
    if made is None:
        return None
    if isinstance(selection, Bulyan):
        assert decision.mix is not None
        np.testing.assert_array_equal(made, decision.mix.argmax(axis=1))
    elif decision.mix is not None:
        np.testing.assert_array_equal(made, decision.mix)
        assert not whole or (made != 0).any(axis=0).all()
    else:
        assert decision.weights is not None
        np.testing.assert_array_equal(made[0], decision.weights[: made.size])
    return made


@pytest.mark.parametrize("kind", SELECTING)
def test_the_compiled_choice_among_copies_is_the_rule_s(kind: str) -> None:
    options = "(pivot=10)" if "monna" in kind else ""  # which comes before the rows below it
    made = chosen(fg.rule(of_kind(kind, options), 2), np.ones((11, 3)))
    assert (made is None) == (kind == "geometric_median")


@pytest.mark.parametrize("kind", SELECTING)
def test_a_choice_fails_as_the_rule_does(kind: str) -> None:
    X = rows(11, 5)
    X[[2, 5, 7]] = np.nan
    rule = fg.rule(of_kind(kind), 2)
    errors = []
    for check in (True, False):
        with pytest.raises(fg.TooManyFaults) as raised:
            rule(X, check=check)
        errors.append((raised.value.rows, str(raised.value)))
    assert errors[0] == errors[1] and errors[0][0] == (2, 5, 7)
    if "monna" in kind:
        rule = fg.rule(of_kind(kind, "(pivot=5)"), 3)
        for check in (True, False):
            with pytest.raises(ValueError, match="monna trusts row 5") as refused:
                rule(X, check=check)
            errors.append(str(refused.value))
        assert errors[2] == errors[3]


@pytest.mark.parametrize("kind", SELECTING)
def test_which_rows_a_choice_is_made_among(kind: str) -> None:
    """Among few; and of few subsets."""
    cases = [(ROWS, 0, True), (ROWS + 1, 0, False)]
    if kind[-3:] in ("mda", "mva"):
        assert every(15, 13) is not None and every(15, 12) is None
        cases += [(15, 2, True), (15, 3, False)]
    for n, f, made in cases:
        X, rule = rows(n, 5), fg.rule(of_kind(kind), f)
        assert makes(rule._plan(n).selection, n) == made
        np.testing.assert_array_equal(rule(X), rule(X, check=True))


def test_mixing_after_mixing_gives_every_row() -> None:
    X = rows()
    for spec in ("nnm | nnm", "nnm | nnm | nnm", "nnm | clip(c=1.0)", "nnm | arc"):
        rule = fg.rule(spec, 2)
        assert rule(X).shape == X.shape
        np.testing.assert_array_equal(rule(X), rule(X, check=True))
    once = fg.rule("nnm", 2)
    np.testing.assert_allclose(fg.rule("nnm | nnm", 2)(X), once(once(X)), rtol=1e-12)


def test_reads() -> None:
    expected = {"median": 1, "mean": 1, "krum": 2, "nnm | trimmed_mean": 2, "arc | nnm | krum": 2,
                "aksel": 2, "nnm": 2, "bulyan": 2}  # fmt: skip
    for spec, reads in expected.items():
        assert fg.rule(spec, None if spec == "mean" else 1).reads == reads


@pytest.mark.parametrize(
    "spec",
    ["median", "mean", "nan_mean", "krum", "bulyan", "mda", "geometric_median", "nnm | krum",
     "nnm | trimmed_mean", "arc | nnm | geometric_median", "aksel", "fltrust", "caf", "arc",
     "centered_clipping(tau=1.0, iters=3)"],
)  # fmt: skip
def test_the_data_is_read_as_often_as_promised(spec: str, monkeypatch: pytest.MonkeyPatch) -> None:
    counted = []
    for name in ("sqdist", "inner", "combine", "columns", "values", "sqdist_to", "select"):
        original = getattr(primitives, name)

        def counting(
            *args: Any, name: str = name, original: Any = original, **keywords: Any
        ) -> Any:
            result = original(*args, **keywords)
            counted.append(name)
            if name == "select" and result is None:  # else it read the distances, and no more
                counted.append("combine")
            return result

        monkeypatch.setattr(primitives, name, counting)
    X = rows()
    at_call = {"reference": X[0]} if spec == "fltrust" else {}
    rule = fg.rule(spec, None if "mean" in spec and "|" not in spec else 2)
    rule(X, **at_call)
    assert len(counted) == rule.reads
    counted.clear()
    X[3] *= 1e6
    rule(X, **at_call)
    assert len(counted) == rule.reads + ("inner" in counted)
    selecting = ("median", "mean", "nan_mean", "krum", "bulyan", "mda", "nnm | krum", "aksel",
                 "nnm | trimmed_mean")  # fmt: skip
    assert ("inner" in counted) == (spec not in selecting)


def test_refs() -> None:
    assert fg.rule("krum", 1).refs == ()
    assert fg.rule("arc | nnm | krum", 1).refs == ("origin",)
    assert fg.rule("arc | centered_clipping(tau=1.0)", 1).refs == ("origin", "start")
    assert fg.rule("fltrust").refs == ("origin", "reference")
    assert fg.rule("aksel", 1).refs == ()


# ------------------------------------------------------------------------------------ what it does


def test_references_are_checked() -> None:
    X = rows(dtype=np.float32)
    with pytest.raises(ValueError, match="krum takes no reference"):
        fg.rule("krum", 2)(X, reference=X[0])
    with pytest.raises(ValueError, match="median takes no start"):
        fg.rule("median", 2)(X, start=X[0])
    with pytest.raises(TypeError, match="needs reference="):
        fg.rule("fltrust")(X)
    with pytest.raises(ValueError, match="shape"):
        fg.fltrust(X, reference=X[0, :5])
    with pytest.raises(TypeError, match="float64"):
        fg.fltrust(X, reference=X[0].astype(np.float64))
    with pytest.raises(ValueError, match="shape"):
        fg.centered_clipping(X, tau=1.0, start=X)


def test_decide_reads_no_data() -> None:
    X = rows()
    rule = fg.rule("nnm | geometric_median", 2)
    decision = rule.decide(fg.sqdist(X))
    assert decision.weights is not None
    np.testing.assert_allclose(fg.combine(decision.weights, X), rule(X), rtol=1e-12)
    assert decision.weights.sum() == pytest.approx(1.0)
    column = fg.rule("trimmed_mean", 2).decide(n=11)
    assert column.statistic is not None and column.statistic.faults == 2
    with pytest.raises(ValueError, match="needs the distances"):
        fg.rule("krum", 2).decide(n=11)
    with pytest.raises(ValueError, match="2f \\+ 3"):
        fg.rule("krum", 5).decide(fg.sqdist(X))


@pytest.mark.parametrize(
    "spec",
    ["krum", "bulyan", "nnm | median", "cge", "aksel", "bucketing(s=2) | median", "condense"],
)
def test_what_is_explained_is_what_a_call_does(spec: str) -> None:
    X = rows()
    rule, other = fg.rule(spec, 2), fg.rule(spec, 2)
    for _ in range(2):  # some draw anew each time
        explained = rule.explain(X)
        assert explained.aggregate.tobytes() == other(X).tobytes()
        again = rule.apply(explained.decision, explained.rows, explained.refs)
        assert again.value().tobytes() == explained.aggregate.tobytes()
    assert rule.step == other.step == 2
    if spec in ("aksel", "condense"):  # which look at columns
        assert explained.distances is None
    else:
        np.testing.assert_array_equal(explained.distances, fg.sqdist(X, rule.refs))


def test_what_is_measured_beside_decides_on_nothing() -> None:
    X = rows()
    start = X[3] * 1e6
    for spec, refs in [("krum", []), ("centered_clipping(tau=1.0)", [start])]:
        rule = fg.rule(spec, 2)
        keywords = {"start": start} if refs else {}
        explained = rule.explain(X, beside=("origin",), **keywords)
        assert explained.aggregate.tobytes() == rule(X, **keywords).tobytes()
        np.testing.assert_array_equal(explained.distances, fg.sqdist(X, [*refs, "origin"]))


def test_parts_of_rows_conclude_as_the_whole() -> None:
    """Also where some row is so long that all must be read once more."""
    X = rows(11, 2 * fg.CHUNK + 5)
    for length in (1.0, 1e9):
        X[4] *= length
        for spec in ("nnm | krum", "geometric_median", "caf"):
            rule, D, parts = fg.rule(spec, 2), None, []
            for begin in (0, fg.CHUNK, 2 * fg.CHUNK):
                T = table(X[:, begin : begin + fg.CHUNK])
                parts.append((T, rule.references(T)))
                D = rule.measure(*parts[-1], D)
            assert D is not None
            asked: list[np.ndarray] = []
            decision = rule.conclude(
                D, parts, lambda inner, asked=asked: asked.append(inner) or inner
            )
            want = rule.explain(X).decision.weights
            np.testing.assert_array_equal(decision.weights, want)
            assert len(asked) == (length > 1 and spec != "nnm | krum")


def test_a_decision_survives_without_the_third_read() -> None:
    """A caller that cannot read again gets a finite decision, only a coarser one."""
    X = rows()
    X[2] *= 1e200
    for spec in ("geometric_median", "caf", "nnm | krum", "bucketing(s=2) | median", "dnc"):
        decision = fg.rule(spec, 2).decide(fg.sqdist(X))
        chosen = decision.weights if decision.weights is not None else decision.mix
        assert chosen is not None and np.isfinite(chosen).all()


def test_partial_distances_add_up() -> None:
    X = rows(9, 60)
    for spec in ("krum", "aksel", "arc | krum"):
        rule = fg.rule(spec, 2)
        parts = []
        for part in (X[:, :25], X[:, 25:]):
            T = table(np.ascontiguousarray(part))
            D = rule.measure(T, rule.references(T))
            assert D is not None
            parts.append(D)
        decision = rule.decide(parts[0] + parts[1])
        assert decision.weights is not None
        refs = ("origin",) if "origin" in rule.refs else ()
        np.testing.assert_allclose(fg.combine(decision.weights, X, refs), rule(X), rtol=1e-12)


def structure(seed: int) -> dict[str, Any]:
    rng = np.random.default_rng(seed)
    return {
        "head": {"weight": rng.normal(size=(3, 2)), "steps": np.array(seed)},
        "body": [rng.normal(size=4).astype(np.float32), rng.normal(size=0)],
    }


def test_structures_are_one_long_vector() -> None:
    X = [structure(seed) for seed in range(9)]
    flat = np.stack(
        [np.concatenate([x["head"]["weight"].ravel(), x["body"][0].astype(float)]) for x in X]
    )
    for spec in ("median", "krum", "geometric_median", "nnm | trimmed_mean", "bulyan"):
        f = 1 if spec == "bulyan" else 2
        got, expected = fg.rule(spec, f)(X), fg.rule(spec, f)(flat)
        np.testing.assert_allclose(got["head"]["weight"].ravel(), expected[:6], rtol=1e-6)
        np.testing.assert_allclose(got["body"][0], expected[6:], rtol=1e-5, atol=1e-6)
        assert got["body"][0].dtype == np.float32
        chosen = fg.inspect("krum", X, 2).selected[0]  # the others believe every row
        assert got["head"]["steps"] == (chosen if spec == "krum" else 4)
    mixed = fg.nnm(X, 2)
    assert len(mixed) == 9 and mixed[0]["head"]["weight"].shape == (3, 2)


def test_distance_on_some_leaves() -> None:
    X = [structure(seed) for seed in range(9)]
    for x in X[:3]:
        x["body"][0] += 100.0
    by_head = fg.rule("krum", 2)(X, distance_on=lambda path: path.startswith("head"))
    heads = np.stack([x["head"]["weight"].ravel() for x in X])
    chosen = fg.inspect("krum", heads, 2).selected[0]
    np.testing.assert_array_equal(by_head["head"]["weight"], X[chosen]["head"]["weight"])
    np.testing.assert_array_equal(by_head["body"][0], X[chosen]["body"][0])
    X[chosen]["body"][0][1] = np.nan  # faulty, though not where distances look
    again = fg.krum(X, 2, distance_on=lambda path: path.startswith("head"))
    assert np.isfinite(again["body"][0]).all()
    assert fg.inspect("krum", X, 2, distance_on=lambda p: p.startswith("head")).faulty == (chosen,)
    with pytest.raises(ValueError, match="no leaf is selected"):
        fg.krum(X, 2, distance_on=lambda path: False)
    with pytest.raises(TypeError, match="distance_on must be 'all' or a function"):
        fg.krum(X, 2, distance_on="head")


def test_a_sequence_of_arrays() -> None:
    X = rows()
    for spec in ("median", "krum", "nnm | median", "arc"):
        np.testing.assert_array_equal(fg.rule(spec, 2)(list(X)), fg.rule(spec, 2)(X))


# -------------------------------------------------------------------------------- who was believed


def test_a_report_on_a_distance_rule() -> None:
    X = rows()
    X[4] += 50.0
    report = fg.inspect("multi_krum", X, f=2)
    np.testing.assert_array_equal(report.aggregate, fg.multi_krum(X, 2))
    assert report.weights.sum() == pytest.approx(1.0)
    assert set(report.selected) | set(report.excluded) == set(range(11))
    assert not set(report.selected) & set(report.excluded)
    assert 4 in report.excluded
    assert report.scores is not None and report.scores.argmax() == 4
    lines = str(report).splitlines()
    assert lines[0] == "multi_krum, n = 11, f = 2"
    assert len(lines) == 13
    assert lines[6].split()[:2] == ["4", "0.000"] and "rank 11 of 11" in lines[6]
    assert repr(report) == str(report)


def test_a_report_on_a_column_rule_counts_coordinates() -> None:
    X = rows(5, 400)
    X[3] = 1e9
    report = fg.inspect("median", X)
    order = np.argsort(X, axis=0)[2]
    np.testing.assert_allclose(report.weights, np.bincount(order, minlength=5) / 400)
    assert report.weights[3] == 0 and report.excluded == (3,)
    assert report.scores is None
    assert fg.inspect("trimmed_mean", X, f=1).weights.sum() == pytest.approx(3.0)
    np.testing.assert_allclose(fg.inspect("mean", X).weights, 1.0)
    lost = X.copy()
    lost[1, :100] = np.nan
    assert fg.inspect("nan_mean", lost).weights[1] == pytest.approx(0.75)


def test_a_report_maps_mixing_back_to_rows() -> None:
    X = rows()
    X[2] += 40.0
    for spec in ("nnm | krum", "nnm | trimmed_mean", "nnm | mean", "nnm", "bulyan", "arc | mda",
                 "bucketing(s=2) | median", "clip(c=3.0) | geometric_median"):  # fmt: skip
        report = fg.inspect(spec, X, f=2)
        total = report.weights.sum() + sum(report.references.values())
        assert total == pytest.approx(1.0), spec
    report = fg.inspect("nnm | krum", X, f=2)
    np.testing.assert_allclose(report.weights @ X, report.aggregate)
    assert 2 in report.excluded
    assert fg.inspect("bucketing(s=2) | krum(neighbours='n-f-1')", X, f=2).scores is None


@pytest.mark.parametrize(
    "spec",
    ["median", "trimmed_mean", "phocas", "condense(p=0.5)", "krum", "multi_krum(m=1)", "mda", "cge",
     "dnc", "monna", "bulyan", "nnm | krum", "nnm | median", "bucketing(s=2) | mda"],
)  # fmt: skip
def test_a_row_that_equals_a_believed_one_is_believed(spec: str) -> None:
    same = fg.inspect(spec, np.ones((7, 10)), f=1)
    assert same.excluded == () and "not used" not in str(same)
    np.testing.assert_allclose(same.weights, same.weights[0])
    X = rows(8, 10)
    X[3] = X[5] = X[6]
    X[1] = 1e9
    report = fg.inspect(spec, X, f=1)
    assert report.weights[3] == report.weights[5] == report.weights[6]
    if fg.rule(spec, 1).explain(X).decision.statistic is None:
        np.testing.assert_allclose(report.weights @ X, report.aggregate, rtol=1e-6)


def test_rows_that_are_equal_in_some_leaves_are_not_equal() -> None:
    X = [{"a": np.ones(3), "b": np.full(2, float(i))} for i in range(5)]
    report = fg.inspect("krum", X, f=1, distance_on=lambda path: path == "a")
    assert report.selected == (0,) and fg.inspect("krum", X, f=1).selected != (0,)


def test_a_report_names_references_and_faults() -> None:
    X = rows()
    X[6, 2] = np.inf
    report = fg.inspect("centered_clipping(tau=0.5)", X, f=2, start=X[0])
    assert report.references["start"] > 0.1
    assert report.faulty == (6,)
    assert "not finite" in str(report).splitlines()[8]
    assert str(report).splitlines()[-1].startswith("start: ")
    rule = fg.rule("krum", 2)
    assert fg.inspect(rule, X).rule is rule


# ----------------------------------------------------------------------- the public primitives


def test_combine_checks_its_weights() -> None:
    X = rows(3, 4)
    np.testing.assert_allclose(fg.combine([[1, 0, -2.0], [0, 0, 0]], X)[0], X[0] - 2 * X[2])
    assert fg.combine(np.array([1, 0, 0]), X).shape == (4,)
    for W in (np.ones(4), np.ones((2, 4)), np.ones((1, 1, 3)), 3.0, np.ones((0, 3))):
        with pytest.raises(ValueError, match=r"W must have shape \(3,\) or \(k, 3\), got"):
            fg.combine(W, X)
    for bad in (np.nan, np.inf):
        with pytest.raises(ValueError, match="W must be finite; to leave a row out"):
            fg.combine([1.0, bad, 0.0], X)
    with pytest.raises(ValueError, match="W must be finite as float32"):
        fg.combine([1e300, 0.0, 0.0], X.astype(np.float32))
    with pytest.raises(TypeError, match=r"W must be .*real numbers are needed, got complex128"):
        fg.combine([1j, 0.0, 0.0], X)
    with pytest.raises(ValueError, match=r"W must be an array of real numbers: .*inhomogeneous"):
        fg.combine([[1.0], [0.0, 1.0]], X)
    with pytest.raises(ValueError, match=r"and then X: combine\(W, X\)"):
        fg.combine(X, np.ones(3))
    shifted = fg.combine([0.5, 0, 0, 0.25, 0.25], X, refs=["origin", X[1]])
    np.testing.assert_allclose(shifted, 0.5 * X[0] + 0.25 * X[1])


def test_weights_come_from_any_library() -> None:
    torch = pytest.importorskip("torch")
    X = rows(3, 4)
    W = torch.tensor([0.5, 0.25, 0.25], requires_grad=True)
    expected = fg.combine([0.5, 0.25, 0.25], X)
    np.testing.assert_array_equal(fg.combine(W, X), expected)
    np.testing.assert_array_equal(fg.combine(W.detach().bfloat16(), X), expected)


def test_columns_of_a_mixture() -> None:
    X = rows(7, 33)
    W = np.abs(np.random.default_rng(0).normal(size=(5, 7)))
    W[:, 2] = 0.0
    clean = np.sort(W @ X, axis=0)
    X[2] = np.nan  # read by nobody
    np.testing.assert_allclose(fg.columns(X, "median", W=W), clean[2])
    np.testing.assert_allclose(fg.columns(X, "trimmed_mean", 1, W=W), clean[1:4].mean(axis=0))
    np.testing.assert_array_equal(fg.columns(X, "median", 2), fg.median(X, 2))
    np.testing.assert_array_equal(
        fg.columns(X, "median", 2, middle="lower"), fg.median(X, 2, middle="lower")
    )
    W[4, 2] = 0.5  # read by one mixed row, which is NaN and ranks as the greatest
    clean = np.sort(W[:4] @ np.nan_to_num(X), axis=0)
    np.testing.assert_allclose(fg.columns(X, "median", W=W), clean[2])
    with pytest.raises(ValueError, match="unknown column rule 'krum'"):
        fg.columns(X, "krum", 1)
    with pytest.raises(ValueError, match="W must be finite"):
        fg.columns(X, "median", W=np.full((2, 7), np.nan))
    with pytest.raises(ValueError, match=r"W must have shape \(k, 7\)"):
        fg.columns(X, "median", W=np.ones(7))
    with pytest.raises(ValueError, match="trimmed_mean needs n >= 2f"):
        fg.columns(X, "trimmed_mean", 3, W=np.ones((5, 7)))


def test_sqdist_checks_its_references() -> None:
    X = rows(3, 4)
    with pytest.raises(ValueError, match="unknown point 'orgin': did you mean 'origin'"):
        fg.sqdist(X, refs=["orgin"])
    with pytest.raises(ValueError, match=r"refs\[1\]"):
        fg.sqdist(X, refs=["origin", X[0, :2]])


# ------------------------------------------------------------------------------------- the import


def test_the_import_is_light() -> None:
    code = (
        "import sys, fastgar; "
        "print([m for m in ('numba', 'llvmlite', 'torch', 'jax', 'tensorflow', 'sklearn', "
        "'matplotlib') if m in sys.modules])"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"


def test_every_public_name_exists() -> None:
    for name in fg.__all__:
        assert hasattr(fg, name)
    for rule in fg.list_rules():
        assert rule.name in fg.__all__
    assert fg.__version__ == "0.1.0"


@pytest.mark.parametrize(
    ("call", "complaint"),
    [
        (lambda: fg.rule("krum", f=2).waits("x"), "n must be an integer, got 'x'"),
        (lambda: fg.rule("median").waits(7.5), "n must be an integer, got 7.5"),
        (lambda: fg.rule("median").waits(None), "n must be an integer and dtype one of float16"),
        (lambda: fg.rule("krum", f=2).waits(11, "int8"), "dtype one of float16, bfloat16"),
        (lambda: fg.rule("krum", f=2).waits(2), "that is 7 rows, got 2"),
    ],
)
def test_what_cannot_wait_is_refused(call, complaint) -> None:
    with pytest.raises((TypeError, ValueError), match=complaint):
        call()


def test_some_rules_wait_on_a_gpu() -> None:
    assert not fg.rule("krum", f=2).waits(1024) and fg.rule("krum", f=2).waits(1025)
    assert not fg.rule("median").waits(10**6) and fg.rule("nnm | krum", f=1).waits(9)
    assert fg.rule("nnm | median", f=1).waits(9, "float64")
