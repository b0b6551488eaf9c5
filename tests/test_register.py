"""Rules of one's own, and what the registry says of all."""

from __future__ import annotations

import doctest
import importlib.metadata
import inspect
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

import fastgar as fg
from fastgar import registry
from fastgar.rules import column_rule, decorators, distance_rule, forget, mixing_rule


@pytest.fixture(autouse=True)
def leave_no_rule_behind() -> Iterator[None]:
    before = {spec.name for spec in fg.rules.registered()}
    yield
    for spec in fg.rules.registered():
        if spec.name not in before:
            forget(spec.name)


def rows(n: int = 9, d: int = 13) -> np.ndarray:
    return np.random.default_rng([n, d]).normal(size=(n, d)) + 1.0


# ------------------------------------------------------------------------------- one's own rules


def test_a_distance_rule_from_distances() -> None:
    @distance_rule(needs="2f + 1", paper="Rousseeuw, 1985", guarantee="(f, kappa)")
    def central_rows(D, f, *, power: float = 1.0):  # type: ignore[no-untyped-def]
        """Return the mean of the n-f rows with the least median distance to the others.

        Options
        -------
        power : float
            Of the distance.
        """
        n = len(D)
        best = np.argsort(np.median(D**power, axis=1), kind="stable")[: n - f]
        weights = np.zeros(n)
        weights[best] = 1.0 / (n - f)
        return weights

    X = rows()
    best = np.argsort(np.median(fg.sqdist(X), axis=1))[:7]
    np.testing.assert_allclose(central_rows(X, f=2), X[best].mean(axis=0))
    np.testing.assert_allclose(fg.rule("central_rows(power=2.0)", 2)(X), X[best].mean(axis=0))
    assert fg.inspect("nnm | central_rows", X, f=2).weights.sum() == pytest.approx(1.0)
    assert fg.min_n("central_rows", 3) == 7
    listed = {rule.name: rule for rule in fg.list_rules()}["central_rows"]
    assert listed.needs == "n >= 2f + 1" and listed.options == "power=1.0"
    assert listed.guarantee == "(f, kappa)" and listed.breakdown == "1/2"
    assert listed.summary.startswith("Return the mean of the n-f rows")
    streaming = fg.Streaming("central_rows", n=9, f=2)
    streaming.observe(X[:, :5])
    streaming.observe(X[:, 5:])
    np.testing.assert_allclose(streaming.apply(X), X[best].mean(axis=0))
    with pytest.raises(ValueError, match="central_rows needs n >= 2f"):
        central_rows(X, f=5)
    with pytest.raises(ValueError, match=r"unknown guarantee 'kappa': did you mean '\(f, kappa\)'"):
        distance_rule(guarantee="kappa")(lambda D: D[0])  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="power must be a finite number, got inf"):
        central_rows(X, 2, power=np.inf)
    X[3] = np.nan
    assert np.isfinite(central_rows(X, f=2)).all()


def test_a_distance_rule_from_geometry_and_the_origin() -> None:
    @distance_rule(references=("origin",))
    def half_of_the_longest(g):  # type: ignore[no-untyped-def]
        weights = np.zeros(g.n + 1)
        weights[g.distance_to("origin").argmax()] = 0.5
        weights[g.n] = 0.5
        return weights

    X = rows()
    longest = np.linalg.norm(X, axis=1).argmax()
    np.testing.assert_allclose(half_of_the_longest(X), X[longest] / 2)
    assert half_of_the_longest.spec.f == "no"


def test_a_mixing_rule() -> None:
    @mixing_rule(rows_after=lambda n, options: n - 1)
    def neighbours_in_line(D):  # type: ignore[no-untyped-def]
        n = len(D)
        return (np.eye(n)[:-1] + np.eye(n)[1:]) / 2

    X = rows()
    mixed = (X[:-1] + X[1:]) / 2
    np.testing.assert_allclose(neighbours_in_line(X), mixed)
    np.testing.assert_allclose(fg.rule("neighbours_in_line | median")(X), np.median(mixed, axis=0))
    np.testing.assert_allclose(
        fg.rule("neighbours_in_line | krum", 1)(X), fg.krum(mixed, 1), rtol=1e-12
    )
    assert fg.rule("neighbours_in_line | krum", 1).min_n == 6

    @mixing_rule(rows_after=lambda n, options: 2)
    def halves(D):  # type: ignore[no-untyped-def]
        return np.ones((2, len(D))) / len(D)

    with pytest.raises(ValueError, match="can aggregate no number of rows"):
        _ = fg.rule("halves | krum", 1).min_n


def test_column_rules() -> None:
    @column_rule(needs="2f + 1", guarantee="(f, kappa)")
    def tent(n: int, f: int) -> np.ndarray:
        """Weigh the middle values more."""
        weights = np.minimum(np.arange(n) - f + 1.0, n - f - np.arange(n))
        weights = np.maximum(weights, 0.0)
        return weights / weights.sum()

    @column_rule(needs="2f + 1")
    def around_the_lower_quartile(n: int, f: int) -> tuple[int, list[float]]:
        weights = [0.0] * n
        weights[n // 4] = 1.0
        return n - f, weights

    X = rows()
    ranked = np.sort(X, axis=0)
    weights = np.array([0, 0, 1, 2, 3, 2, 1, 0, 0]) / 9
    np.testing.assert_allclose(tent(X, f=2), weights @ ranked)
    np.testing.assert_allclose(fg.columns(X, "tent", 2), weights @ ranked)
    np.testing.assert_allclose(fg.rule("nnm | tent", 2)(X), tent(fg.nnm(X, 2), 2), rtol=1e-9)
    nearest = np.argsort(np.abs(ranked - ranked[2]), axis=0)[:7]
    expected = np.take_along_axis(ranked, nearest, axis=0).mean(axis=0)
    np.testing.assert_allclose(around_the_lower_quartile(X, f=2), expected)
    X[:2, 4] = np.nan
    assert np.isfinite(tent(X, f=2)).all()
    X[2, 4] = np.inf
    assert np.isnan(tent(X, f=2)[4])
    assert fg.inspect("tent", X, f=2).weights.shape == (9,)


def test_names_and_results_are_checked() -> None:
    with pytest.raises(ValueError, match="a rule named 'krum' is already registered"):

        @distance_rule()
        def krum(D):  # type: ignore[no-untyped-def]
            return np.ones(len(D))

    with pytest.raises(ValueError, match="needs='2g \\+ 1': odd_needs has no option 'g'"):

        @distance_rule(needs="2g + 1")
        def odd_needs(D):  # type: ignore[no-untyped-def]
            return np.ones(len(D))

    with pytest.raises(ValueError, match="needs must be a sum such as"):

        @distance_rule(needs="2*f")
        def odder_needs(D, f):  # type: ignore[no-untyped-def]
            return np.ones(len(D))

    results: dict[str, Any] = {}

    @distance_rule()
    def some(D):  # type: ignore[no-untyped-def]
        return results["some"]

    @mixing_rule()
    def stir(D):  # type: ignore[no-untyped-def]
        return results["stir"]

    @column_rule()
    def rank(n: int):  # type: ignore[no-untyped-def]
        return results["rank"]

    X = rows()
    for weights, message in (
        (np.ones(4) / 4, r"some must give 9 weights, got shape \(4,\)"),
        (np.ones(9), "the weights that some gives must sum to 1, not 9"),
        (np.full(9, np.nan), "some must give finite weights, and gave nan to row 0"),
    ):
        results["some"] = weights
        with pytest.raises(ValueError, match=message):
            some(X)
    results["stir"] = np.ones((4, 9))
    with pytest.raises(ValueError, match=r"stir must give a \(9, 9\) matrix, got shape \(4, 9\)"):
        stir(X)
    for weights, message in (
        (np.ones(9), "the weights that rank gives must sum to 1"),
        (np.ones(8) / 8, "rank must give 9 weights"),
        ((10, np.ones(9) / 9), "from 1 to 9 values can be closest, got 10"),
    ):
        results["rank"] = weights
        with pytest.raises(ValueError, match=message):
            rank(X)
    X[2] = np.inf
    results["some"] = np.ones(9) / 9
    with pytest.raises(ValueError, match="some gave a weight to a faulty row"):
        some(X)


def test_a_forgotten_rule_is_unknown() -> None:
    @distance_rule()
    def passing(D):  # type: ignore[no-untyped-def]
        return np.ones(len(D)) / len(D)

    passing(rows())
    forget("passing")
    with pytest.raises(ValueError, match="unknown rule 'passing'"):
        fg.rule("passing")
    with pytest.raises(ValueError, match="unknown rule 'passing'"):
        passing(rows())


def test_entry_points_load_once_when_a_name_is_unknown(monkeypatch: pytest.MonkeyPatch) -> None:
    loaded = []

    class Entry:
        def load(self) -> None:
            loaded.append(1)

            @distance_rule()
            def from_elsewhere(D):  # type: ignore[no-untyped-def]
                """Return the first row."""
                return np.eye(len(D))[0]

    def entry_points(group: str) -> list[Entry]:
        assert group == "fastgar.rules"
        return [Entry()]

    monkeypatch.setattr(importlib.metadata, "entry_points", entry_points)
    monkeypatch.setattr(registry, "_entry_points_loaded", False)
    X = rows()
    fg.rule("krum", 2)
    assert not loaded
    np.testing.assert_array_equal(fg.rule("from_elsewhere")(X), X[0])
    assert "from_elsewhere" in [rule.name for rule in fg.list_rules()]
    with pytest.raises(ValueError, match="unknown rule"):
        fg.rule("from_nowhere_at_all")
    assert loaded == [1]


# ------------------------------------------------------------------------------ the registry itself


def test_the_list_of_rules() -> None:
    listed = {rule.name: rule for rule in fg.list_rules()}
    assert list(listed) == [rule.__name__ for rule in fg.rules.RULES]
    assert listed["krum"].needs == "n >= 2f + 3"
    assert listed["bulyan"].breakdown == "1/4"
    assert listed["mean"].breakdown == "0" and listed["mean"].guarantee == "none"
    assert listed["krum"].reads == 2 and listed["median"].reads == 1
    assert listed["centered_clipping"].options == "tau, iters=1"
    for rule in listed.values():
        assert rule.summary.endswith(".") and rule.kind in ("column", "distance", "mixing")
        assert rule.paper or rule.name == "mean"


@pytest.mark.parametrize("rule", fg.rules.RULES, ids=lambda rule: rule.__name__)
def test_documentation(rule: Any) -> None:
    assert inspect.signature(rule).parameters["X"].default is inspect.Parameter.empty
    documentation = inspect.getdoc(rule)
    for section in ("Parameters", "Returns", "Raises", "Notes", "Examples"):
        assert f"\n{section}\n{'-' * len(section)}\n" in documentation
    described = documentation.split("Parameters")[1].split("Returns\n")[0]
    for name in inspect.signature(rule).parameters:
        assert f"\n{name} : " in described, name
    assert max(map(len, documentation.splitlines())) <= 100
    globs = {"fg": fg, "np": np}
    tests = doctest.DocTestParser().get_doctest(documentation, globs, rule.__name__, None, 0)
    assert tests.examples
    assert doctest.DocTestRunner().run(tests).failed == 0


def test_examples_elsewhere() -> None:
    import fastgar.api
    import fastgar.bounds
    import fastgar.pipeline
    import fastgar.report
    import fastgar.streaming

    for module in (fg, decorators, fastgar.api, fastgar.bounds, fastgar.pipeline, fastgar.report,
                   fastgar.streaming):  # fmt: skip
        result = doctest.testmod(module, extraglobs={"fg": fg, "np": np})
        assert result.failed == 0 and result.attempted > 0, module.__name__


def test_the_rules_of_the_package_stay() -> None:
    with pytest.raises(ValueError, match="krum is one of fastgar's own rules, which stay"):
        forget("krum")
    assert fg.krum(rows(), f=1).shape == rows()[0].shape
