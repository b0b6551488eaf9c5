"""A search against what every rule promises; and whether it would find what does not hold."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import fastgar as fg
from fastgar.attacks.climb import climb
from fastgar.attacks.promise import Promise, quietly
from fastgar.attacks.witness import Witness
from fastgar.cli import main
from fastgar.rules import column_rule, distance_rule
from fastgar.statistic import Statistic

WITNESSES = sorted((Path(__file__).parent / "witnesses").glob("*.json"))
OPTIONS = {"centered_clipping": "(tau=2.0, iters=2)"}  # of rules that cannot be called without
RULES = [
    *[rule.name + OPTIONS.get(rule.name, "") for rule in fg.list_rules()
      if rule.guarantee != "none" and rule.kind != "mixing"],
    "median(middle='lower')", "condense(p=1.0)", "krum(neighbours='n-f-1')",
    "krum(squared=False)", "krum(variant='epfl')", "multi_krum(m=1)", "bulyan(variant='epfl')",
    "geometric_median(max_iter=1)", "geometric_median(tol=0.1)", "aksel(mode='n-f')",
    "rfa(relative=False)", "monna(pivot=3)",
    "nnm | krum", "nnm | trimmed_mean", "nnm | dnc", "nnm | caf", "nnm | nnm | phocas",
    "nnm | monna", "arc | median", "arc | krum(squared=False)", "arc | nnm | trimmed_mean",
    "bucketing(s=2) | median", "bucketing(s=2) | geometric_median", "bucketing(s=3) | meamed",
    "bucketing(s=2) | nnm | median", "clip(c=3.0) | krum", "nnm | clip(c=3.0) | rfa",
]  # fmt: skip
# No constant has been proved for these; three times what 3000 evaluations found, or more.
UNPROVED = {"caf": 30.0, "nnm | caf": 60.0, "bulyan(variant='epfl')": 8.0}


def limit(promise: Promise) -> float:
    bound = UNPROVED[promise.rule] if promise.bound is None else promise.bound
    return bound * (1 + 1e-8)  # rounding, of honest rows that spread by 1e-6 of their length


def sizes(rule: str) -> list[tuple[int, int]]:
    """Return numbers of rows and liars: as few rows as can be, and as many liars."""
    n = max(5, fg.min_n(rule, 2))
    more = max(n, 11)
    return [(n, 2), (more, min(fg.max_f(rule, more), (more - 1) // 2))]


# ------------------------------------------------------------------------------ promises are kept


@pytest.mark.parametrize("rule", RULES)
def test_a_search_finds_nothing_beyond_the_bound(rule: str) -> None:
    for n, f in sizes(rule):
        promise = Promise(rule, n, f)
        found = climb(promise, 200, seed=1)
        assert 0.0 < found.recorded <= limit(promise), found.plain()


@pytest.mark.parametrize("rule", RULES)
def test_liars_of_several_lengths_in_orthogonal_directions(rule: str) -> None:
    rng = np.random.default_rng(0)
    for n, f in sizes(rule):
        promise = Promise(rule, n, f)
        for spread in (1.0, 1e-5):
            for _ in range(5):
                rows = 1.0 + spread * rng.normal(size=(n, f + 1))
                liars = rng.choice(n, f, replace=False)
                rows[liars, np.arange(f)] += 10.0 ** rng.permutation(np.linspace(0, 12, f))
                honest = np.ones(n, bool)
                honest[liars] = False
                with quietly():
                    assert promise.ratio(rows, honest) <= limit(promise)


@pytest.mark.parametrize("path", WITNESSES, ids=lambda path: path.stem)
def test_what_a_search_found_before_is_still_so(path: Path) -> None:
    found = Witness.read(path)
    assert found.holds and not found.refutation


def test_the_table_has_the_bounds_of_today() -> None:
    lines = (Path(__file__).parents[1] / "docs" / "kappa.md").read_text().splitlines()
    rows = [re.split(r" (?<!\\)\| ", line.strip("| ")) for line in lines if line.startswith("| ")]
    assert len(rows) > 300
    for rule, guarantee, n, f, _, found, bound, _ in rows[2:]:
        promise = Promise(rule.replace("\\|", "|"), int(n), int(f))
        assert guarantee == promise.guarantee
        assert bound == ("none known" if promise.bound is None else f"{promise.bound:.5g}")
        if guarantee != "none":
            assert float(found) <= limit(promise) * (1 + 1e-4)  # five digits


def test_there_is_a_witness_for_every_rule() -> None:
    promised = {rule.name for rule in fg.list_rules() if rule.kind != "mixing"}
    shown = {Witness.read(path).promise.rule.split("(")[0] for path in WITNESSES}
    assert promised - shown <= {"nan_mean"}


# ------------------------------------------------------------------ what is not kept would be found


def mean_of(D: np.ndarray, scores: np.ndarray, count: int) -> np.ndarray:
    """Return the weights of the mean of the best rows, of those that are finite."""
    best = np.isin(np.arange(len(D)), scores.argsort(kind="stable")[:count])
    best &= np.isfinite(D.diagonal())
    return best / best.sum()


@pytest.fixture
def faulty() -> Iterator[None]:
    """Declare rules that promise more than they keep."""
    old_rfa = fg.rules.lookup("rfa").mathematics

    @distance_rule(needs="2f + 1", guarantee="bounded", references=("origin",), inner=True)
    def long_rfa(g: Any, f: int) -> Any:
        """Count every distance below 0.1 as 0.1, however short the rows are."""
        return old_rfa(g, relative=False)

    @distance_rule(needs="2f + 1", guarantee="(f, kappa)")
    def trusting(D: Any, f: int) -> Any:
        """Trust the first row, or the first bucket of rows."""
        return mean_of(D, D[0], len(D) - f)

    @distance_rule(needs="2f + 1", guarantee="(f, kappa)")
    def all_but_one(D: Any, f: int) -> Any:
        """Leave out one row too few."""
        return mean_of(D, np.sort(D, axis=1)[:, : len(D) - f].sum(axis=1), len(D) - f + 1)

    @column_rule(needs="2f + 1", guarantee="(f, kappa)")
    def trimmed_once(n: int, f: int) -> Statistic:
        """Leave out f-1 values on each side."""
        return Statistic.between(n, f - 1, n - f + 1, f)

    yield
    for name in ("long_rfa", "trusting", "all_but_one", "trimmed_once"):
        fg.rules.forget(name)


@pytest.mark.parametrize(
    ("rule", "n", "f", "claimed"),
    [
        ("dnc(variant='paper')", 11, 2, fg.kappa("dnc", 11, 2)),
        ("krum(squared=False)", 43, 20, 46.0),  # what krum was once said to keep: 6(1 + f/(n-2f))
        ("krum(variant='epfl')", 41, 20, 126.0),
        ("krum(variant='epfl')", 5, 2, 18.0),
        # Beyond eight times what is found for the converged one, (n-f-1)/(n-2f) for n = 43, f = 20.
        ("geometric_median(max_iter=1)", 43, 20, 30.0),
        ("long_rfa", 11, 2, 1.0),
        ("bucketing(s=2) | trusting", 11, 2, 1e9),
        ("all_but_one", 11, 2, 1e9),
        ("trimmed_once", 11, 2, 1e9),
        ("mean", 11, 2, 1e9),
    ],
)
def test_a_short_search_finds_what_does_not_hold(
    faulty: None, rule: str, n: int, f: int, claimed: float
) -> None:
    promise = Promise(rule, n, f)
    assert any(climb(promise, 2000, seed).recorded > claimed for seed in range(6))


# ------------------------------------------------------------------------------ files and command


def test_a_seed_finds_the_same_again() -> None:
    one, same, other = (climb(Promise("krum", 7, 2), 200, seed).plain() for seed in (1, 1, 2))
    assert one == same != other
    assert climb(Promise("mean", 7, 2), 200, 0).plain()["ratio"] == "inf"


def test_a_ratio_is_that_computed_by_hand() -> None:
    promise = Promise("median", 3, 1)
    rows, honest = np.array([[0.0], [2.0], [9.0]]), np.array([True, True, False])
    assert promise.ratio(rows, honest) == 1.0  # 2 is 1 from the mean, and so are both
    assert promise.ratio(rows * 1e-20, honest) == 0.0  # too short for a judgement
    assert promise.ratio(1.0 + rows * 1e-8, honest) == 0.0  # too near each other
    assert Promise("monna", 3, 1).ratio(rows, honest[::-1].copy()) == 0.0  # a liar is trusted


def test_a_file_is_read_as_it_was_written(tmp_path: Path) -> None:
    rows = np.array([[0.1, 0.0], [1 / 3, -0.0], [np.nan, -np.inf]])
    promise, honest = Promise("median", 3, 1), np.array([True, True, False])
    ratio = promise.ratio(rows, honest)
    Witness(promise, rows, honest, ratio).write(tmp_path / "one.json")
    again = Witness.read(tmp_path / "one.json")
    assert again.rows.tobytes() == rows.tobytes()
    assert again.promise == promise and again.recorded == ratio and again.holds


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"rows": [[0.0]]}, "n=3, f=1"), ({"liars": [0, 1]}, "n=3, f=1"),
        ({"liars": [7]}, "IndexError"), ({"rule": "medain"}, "did you mean"),
        ({"f": 2}, "median needs n"), ({"rows": None}, "TypeError"),
    ],
)  # fmt: skip
def test_a_file_that_is_none_is_refused(
    change: dict[str, Any], complaint: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    good = {"rule": "median", "n": 3, "f": 1, "ratio": 1, "liars": [2], "rows": [[0], [2], [9]]}
    path = tmp_path / "one.json"
    path.write_text(json.dumps(good))
    assert main(["reproduce", "kappa", "--check", str(path)]) == 0
    path.write_text(json.dumps({**good, **change}))
    with pytest.raises(SystemExit) as end:
        main(["reproduce", "kappa", "--check", str(path)])
    assert end.value.code == 2
    assert complaint in capsys.readouterr().err


def test_a_broken_promise_is_said_aloud(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "one.json"
    lines = {"rule": "median", "n": 3, "f": 1, "ratio": 1, "liars": [2], "rows": [[0], [2], [9]]}
    path.write_text(json.dumps({**lines, "ratio": 2}))
    assert main(["reproduce", "kappa", "--check", str(path)]) == 1
    assert f"BROKEN: {path} is not what it was" in capsys.readouterr().err
    path.write_text(json.dumps(lines))
    monkeypatch.setattr("fastgar.attacks.promise.kappa", lambda *arguments: 0.5)
    assert main(["reproduce", "kappa", "--check", str(path)]) == 1
    assert "BROKEN: median with n=3, f=1: 1, and its bound is 0.5" in capsys.readouterr().err


def test_the_command_from_search_to_witness(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("torch")
    pytest.importorskip("matplotlib")
    from fastgar.train.reproduce.grids import kappa

    listed = {stage.name for rule in kappa.RULES for stage in fg.rule(rule, 1).stages}
    assert listed == {rule.name for rule in fg.list_rules()} - {"nan_mean"}
    monkeypatch.setattr(kappa, "RULES", ("median", "nnm | krum"))
    command = ["reproduce", "kappa", "--quick", "--out", str(tmp_path), "--processes", "1"]
    assert main(command) == 0
    printed = capsys.readouterr()
    assert "[4/4]" in printed.err and "none known" not in printed.out
    files = sorted((tmp_path / "witnesses").iterdir())
    assert [path.name for path in files] == [
        "median-11-4.json", "median-5-1.json", "nnm-krum-11-4.json", "nnm-krum-5-1.json",
    ]  # fmt: skip
    assert main(["reproduce", "kappa", "--check", *map(str, files)]) == 0
    capsys.readouterr()
    assert main(command) == 0  # once more: nothing is left to do
    assert capsys.readouterr().out == printed.out
    monkeypatch.setattr("fastgar.attacks.promise.kappa", lambda *arguments: 0.5)
    assert main(command) == 1
    broken = capsys.readouterr()
    assert "ABOVE THE BOUND" in broken.out and "BROKEN: median with n=5, f=1" in broken.err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["kappa", "--data", "mnist"], "kappa takes no --data"),
        (["kappa", "--parity"], "--parity is for momentum, not for kappa"),
        (["kappa", "--evaluations", "5"], "evaluations must be at least 100, got 5"),
        (["zeno", "--check", "x"], "--check is for kappa, not for zeno"),
    ],
)
def test_bad_input_is_refused(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as end:
        main(["reproduce", *arguments])
    assert end.value.code == 2
    assert message in capsys.readouterr().err
