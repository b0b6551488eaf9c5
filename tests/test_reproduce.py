"""Grids, their runner and results, tables and figures, and the command ``fastgar reproduce``."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import fastgar as fg
from fastgar.cli import main, reproduce

torch = pytest.importorskip("torch")
pytest.importorskip("sklearn")
pytest.importorskip("matplotlib")

from fastgar import train  # noqa: E402
from fastgar.train import origin  # noqa: E402
from fastgar.train.figures import band, legend_below, panels  # noqa: E402
from fastgar.train.lines import Lines  # noqa: E402
from fastgar.train.reproduce import grids, momentum_figures  # noqa: E402
from fastgar.train.reproduce.execute import check, execute  # noqa: E402
from fastgar.train.reproduce.grids import momentum, resilience, zeno  # noqa: E402
from fastgar.train.reproduce.momentum_tables import (  # noqa: E402
    Pair,
    by_rule,
    overview,
    pairs,
    summary,
)  # fmt: skip
from fastgar.train.reproduce.runner import ProcessesDied, run_all  # noqa: E402
from fastgar.train.reproduce.setting import Grid, Run, Setting, read_seeds  # noqa: E402
from fastgar.train.reproduce.store import Mismatch, Store, read  # noqa: E402
from fastgar.train.reproduce.wide_resnet import WideResNet, wide_resnet_28_10  # noqa: E402
from fastgar.train.sources import sources  # noqa: E402

# What processes of a test do instead of training: `n` is what decides.
FAKES = """
import os, signal, time

def quick(config, seed):
    return {"best": config["x"] + seed, "stopped": None, "seconds": 0.0}

def slow(config, seed):
    time.sleep(0 if config["x"] < 3 else 60)
    return quick(config, seed)

def moody(config, seed):
    if config["x"] == 1:
        raise ArithmeticError("one is too few")
    if config["x"] == 2:
        os.kill(os.getpid(), signal.SIGKILL)
    return quick(config, seed)

def hopeless(config, seed):
    os._exit(7)

def environment(config, seed):
    import torch, fastgar
    return {"omp": os.environ["OMP_NUM_THREADS"], "torch": torch.get_num_threads(),
            "fastgar": fastgar.get_threads(), "pid": os.getpid(), **quick(config, seed)}
"""


@pytest.fixture
def fakes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Put the module `fakes` where processes of this one find it."""
    folder = tmp_path / "modules"
    folder.mkdir()
    (folder / "fakes.py").write_text(FAKES)
    monkeypatch.syspath_prepend(folder)
    return folder


@pytest.fixture(autouse=True)
def _forget() -> Iterator[None]:
    """Leave the list of rules as it was: parity adds one."""
    yield
    if any(rule.name == "bulyan_published" for rule in fg.list_rules()):
        fg.rules.forget("bulyan_published")


def small(count: int, name: str = "momentum") -> Grid:
    settings = [Setting(f"s{x}", {"x": x, "attack": "none"}, {"x": x}) for x in range(count)]
    return Grid(name, "digits", tuple(settings), outcome={})


# ------------------------------------------------------------------------------------- grids


@pytest.mark.parametrize("data", ["mnist", "fashion-mnist", "cifar10", "cifar100"])
def test_the_papers_grids_have_184_settings_each(data: str) -> None:
    grid = momentum.grid(data)
    attacked = [setting for setting in grid.settings if setting.attacked]
    assert (len(grid.settings), len(attacked)) == (184, 176)
    assert len(grid.runs(range(1, 6))) == 920
    # Counted another way: 16 for each rule and f, where Bulyan has one f alone.
    rules = Counter(setting.tags["rule"] for setting in attacked)
    assert rules.pop("bulyan") == 16
    assert rules == dict.fromkeys(("krum", "median", "trimmed_mean", "phocas", "meamed"), 32)
    assert {s.tags["f"] for s in attacked if s.tags["rule"] == "bulyan"} == {min(_sizes(grid))}


def test_parity_takes_the_published_deviation_in_little() -> None:
    for parity, given in ((False, "k=1.5"), (True, "k=1.5, ddof=1")):
        for made in (
            momentum.grid("mnist", parity=parity),
            momentum.grid(appendix=True, parity=parity),
        ):
            attacks = {s.config["attack"] for s in made.settings if s.tags["attack"] == "little"}
            assert attacks == {f"little({given})"}


def test_the_paper_has_736_settings_and_its_appendix_22() -> None:
    assert sum(len(momentum.grid(data).settings) for data in momentum.PAPER) == 736
    appendix = momentum.grid(appendix=True)
    assert len(appendix.settings) == 22
    assert sum(setting.attacked for setting in appendix.settings) == 20
    assert {setting.config["workers"] for setting in appendix.settings} == {11, 9, 7}
    assert Counter(s.tags["rule"] for s in appendix.settings) == {
        "mean": 2, "krum": 8, "median": 8, "bulyan": 4,
    }  # fmt: skip


def _sizes(grid: Grid) -> set[Any]:
    return {setting.tags["f"] for setting in grid.settings}


def test_settings_have_the_papers_numbers() -> None:
    found = {setting.name: setting.config for setting in momentum.grid("mnist").settings}
    config = found["little-krum-f_24-lr_0.5-at_worker"]
    assert config.items() >= {
        "data": "mnist", "model": "mlp", "workers": 51, "byzantine": 24, "declared": 24,
        "batch": 83, "clip": 2.0, "weight_decay": 1e-4, "momentum": 0.9, "lr": 0.5, "steps": 300,
        "evaluate_every": 5, "nesterov": False, "momentum_at": "worker", "rule": "multi_krum",
        "attack": "little(k=1.5)",
    }.items()  # fmt: skip
    clean = found["clean-f_12-lr_0.02-nesterov"]
    assert clean.items() >= {
        "workers": 39, "byzantine": 0, "rule": "mean", "attack": "none", "lr": 0.02,
        "nesterov": True, "batch": 83,
    }.items()  # fmt: skip
    found = {setting.name: setting.config for setting in momentum.grid("cifar10").settings}
    config = found["empire-bulyan-f_5-lr_0.01-nesterov-at_server"]
    assert config.items() >= {
        "model": "cnn-cifar", "workers": 25, "byzantine": 5, "batch": 50, "clip": 5.0,
        "weight_decay": 1e-2, "momentum": 0.99, "lr": 0.01, "steps": 3000, "evaluate_every": 100,
        "attack": "empire(k=1.1)", "rule": "bulyan", "momentum_at": "server",
    }.items()  # fmt: skip


def test_every_setting_of_every_grid_could_run() -> None:
    grids = [momentum.grid(data) for data in momentum.DATA]
    grids += [
        momentum.grid("digits", parity=True),
        momentum.grid(appendix=True),
        momentum.grid(appendix=True, parity=True),
    ]
    grids += [zeno.grid(data) for data in zeno.DATA] + [resilience.grid()]
    for grid in grids:
        check((setting.config for setting in grid.settings), data=False)


def test_a_device_that_is_not_there_is_refused_before_any_run() -> None:
    settings = zeno.grid("digits").with_option("device", "cuda:99").settings
    with pytest.raises(ValueError, match="torch sees"):
        check((setting.config for setting in settings), data=False)


def test_resilience_has_every_robust_rule_and_every_attack() -> None:
    from fastgar.attacks import list_attacks

    rules = [rule for rule in fg.list_rules() if rule.kind != "mixing"]
    robust = {rule.name for rule in rules if rule.guarantee == "(f, kappa)"}
    words = set(re.findall(r"\w+", " ".join(resilience.RULES)))
    assert robust <= words
    assert set(list_attacks()) <= set(re.findall(r"\w+", " ".join(resilience.ATTACKS)))


def test_seeds_are_read() -> None:
    assert list(read_seeds("1..5")) == [1, 2, 3, 4, 5] and list(read_seeds("7")) == [7]
    for wrong in ("", "1..", "5..1", "a", "1,1", "-1", "1...3", "1.5"):
        with pytest.raises(ValueError, match="seeds"):
            read_seeds(wrong)


def test_published_bulyan_is_that_of_the_published_code() -> None:
    momentum.register()
    momentum.register()  # once more does no harm

    def transcribed(X: np.ndarray, f: int) -> np.ndarray:
        """aggregators/bulyan.py, step by step; its update of scores never happens."""
        n = len(X)
        m = m_max = n - f - 2
        scores = []
        for i in range(n):
            others = sorted(np.linalg.norm(X[i] - X[j]) for j in range(n) if j != i)
            scores.append((sum(others[:m]), i))
        selected = []
        for i in range(n - 2 * f - 2):
            m = min(m, m_max - i)
            scores.sort(key=lambda x: x[0])
            selected.append(sum(X[j] for _, j in scores[:m]) / m)
            scores[0] = (np.inf, None)
        S = np.array(selected)
        middle = np.sort(S, axis=0)[(len(S) - 1) // 2]  # torch's median is the lower
        closest = np.argsort(abs(S - middle), axis=0)[: len(S) - 2 * f]
        return np.take_along_axis(S, closest, axis=0).mean(0)

    for n, f in ((11, 2), (25, 5), (23, 5)):
        X = np.random.default_rng(n).standard_normal((n, 41))
        ours = fg.rule("bulyan_published", f=f)(X)
        np.testing.assert_allclose(ours, transcribed(X, f), rtol=1e-12)


def test_wide_resnet_has_36_million_parameters() -> None:
    model = wide_resnet_28_10((3, 32, 32), 10)
    count = sum(parameter.numel() for parameter in model.parameters())
    # 36,479,194 in the paper's Torch code, whose convolutions have no biases.
    biases = 16 + (2 * 4 + 1) * (160 + 320 + 640)
    assert count == 36_479_194 + biases == 36_489_290
    tiny = WideResNet((3, 8, 8), 7, depth=10, widen=1)
    assert tiny(torch.zeros(2, 3, 8, 8)).shape == (2, 7)
    with pytest.raises(ValueError, match="depth must be 6 k \\+ 4"):
        WideResNet((3, 8, 8), 7, depth=12)


# ------------------------------------------------------------------------------------- store


def filled(path: Path, grid: Grid, seeds: str = "1..2") -> None:
    with Store(path, grid) as store:
        for run in grid.runs(read_seeds(seeds)):
            store.add(run, {"best": float("nan"), "stopped": None})


def test_results_survive_a_line_that_was_cut_off(tmp_path: Path) -> None:
    path = tmp_path / "results.jsonl"
    filled(path, small(3))
    whole = path.read_bytes()
    path.write_bytes(whole[:-7])
    with Store(path, small(3)) as store:
        assert [run.key for run in store.missing(small(3).runs((1, 2)))] == [("s2", 2)]
        store.add(Run(small(3).settings[2], 2), {"best": float("nan"), "stopped": None})
    assert path.read_bytes() == whole
    assert [record["best"] for record in read(path)] == [None] * 6  # JSON has no NaN


def test_a_file_is_what_it_was_until_the_new_one_is_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "results.jsonl"
    filled(path, small(3))
    before = path.read_bytes()

    def full(*arguments: Any) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(os, "replace", full)
        with pytest.raises(OSError, match="No space"):
            Store(path, small(3), fresh=True)
    assert path.read_bytes() == before and [each.name for each in tmp_path.iterdir()] == [path.name]
    with Lines(path) as lines:  # goes on behind what is there
        lines.append({"kind": "session"})
        assert lines.length() == len(path.read_bytes()) > len(before)
        assert lines.cut(len(before)) == path.read_bytes() == before
        with pytest.raises(Mismatch, match="is shorter than it was"):
            lines.cut(len(before) + 1)


def test_results_take_more_seeds(tmp_path: Path) -> None:
    path = tmp_path / "results.jsonl"
    filled(path, small(3))
    with Store(path, small(3)) as store:
        assert len(store.missing(small(3).runs(range(1, 6)))) == 9


def test_results_of_another_grid_are_refused_with_the_difference(tmp_path: Path) -> None:
    path = tmp_path / "results.jsonl"
    filled(path, small(3))
    with pytest.raises(Mismatch, match="name='momentum'; asked for: name='zeno'"):
        Store(path, small(3, "zeno"))
    other = Grid("momentum", "digits", (Setting("s0", {"x": 7, "attack": "none"}, {}),), outcome={})
    with pytest.raises(Mismatch, match="s0: x=0; asked for: x=7"):
        Store(path, other)
    with pytest.raises(Mismatch, match="setting 's2' that this grid lacks"):
        Store(path, small(2))
    assert len(read(path)) == 6
    with Store(path, small(3, "zeno"), fresh=True) as store:
        assert not store.records


@pytest.mark.parametrize(
    ("text", "message"),
    [("hello\n", "line 1"), ('{"kind": "run"}\n', "line 1"), ('{"kind": "session"}\n', "begin")],
)
def test_a_file_that_is_no_results_is_refused(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "results.jsonl"
    path.write_text(text)
    with pytest.raises(Mismatch, match=message):
        Store(path, small(3))
    assert path.read_text() == text


# ------------------------------------------------------------------------------------ runner


def test_runs_come_back_from_processes_that_share_the_cores(
    fakes: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fastgar.train.reproduce.runner.cores", lambda: set(range(6)))
    before = os.environ.get("OMP_NUM_THREADS")
    runs = small(3).runs((1, 2))
    outcomes = list(run_all(runs, "fakes:environment", 2))
    found = {outcome.run.key: outcome.result for outcome in outcomes if outcome.result}
    assert {key: r["best"] for key, r in found.items()} == {
        run.key: run.setting.config["x"] + run.seed for run in runs
    }
    assert {(r["omp"], r["torch"], r["fastgar"]) for r in found.values()} == {("3", 3, 3)}
    assert len({r["pid"] for r in found.values()} - {os.getpid()}) <= 2
    assert os.environ.get("OMP_NUM_THREADS") == before


def test_a_failure_or_a_dead_process_does_not_stop_the_others(
    fakes: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    grid = replace(small(5), execute="fakes:moody")
    monkeypatch.setattr(reproduce, "_grid", lambda options: grid)
    monkeypatch.setattr(reproduce, "_report", lambda *arguments: None)
    monkeypatch.setattr("fastgar.train.reproduce.execute.check", lambda configs: None)
    out = tmp_path / "out"
    command = ["reproduce", "momentum", "--seeds", "1", "--processes", "2", "--out", str(out)]
    assert main(command) == 1
    assert {each["name"] for each in read(out / "results.jsonl")} == {"s0", "s3", "s4"}
    errors = capsys.readouterr().err
    assert "s1, seed 1: failed, ArithmeticError: one is too few" in errors
    assert "s2, seed 1: failed, its process was killed by SIGKILL" in errors
    assert "2 runs failed; the same command tries them again" in errors
    assert "Traceback" in errors


def test_processes_that_all_die_are_given_up(fakes: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fastgar.train.reproduce.runner.GIVE_UP", 2)
    with pytest.raises(ProcessesDied, match=r"2 processes died one after the other.*status 7"):
        list(run_all(small(9).runs([1]), "fakes:hopeless", 1))


SHORT = {
    "workers": 11, "byzantine": 2, "declared": 2, "rule": "mean", "attack": "little",
    "model": "logistic", "data": "digits", "steps": 12, "evaluate_every": 4, "metrics": True,
    "momentum_at": "worker",
}  # fmt: skip


def test_what_is_kept_of_a_run() -> None:
    kept = execute(SHORT, seed=3)
    result = train.run(**{**SHORT, "seed": 3})
    assert kept["stopped"] is None and kept["steps"] == 12
    assert kept["accuracy"] == [(e.step, e.accuracy) for e in result.evaluations]
    assert kept["best"] == max(accuracy for _, accuracy in kept["accuracy"])
    assert kept["late"] == kept["accuracy"][-1][1]  # the last third of three
    for key, rows in (("ratio", "honest"), ("sampled_ratio", "sampled")):
        ratios = [m[f"{rows}_deviation"] / m[f"{rows}_norm"] for m in result.metrics]
        assert [step for step, _ in kept[key]] == [4, 8, 12]
        expected = [np.median(ratios[k : k + 4]) for k in (0, 4, 8)]
        assert [value for _, value in kept[key]] == pytest.approx(expected)
    assert kept["ratio"] != kept["sampled_ratio"]
    assert execute(SHORT, seed=4)["accuracy"] != kept["accuracy"]


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"lr": 1e30, "model": "mlp"}, "loss not finite at step"),
        ({"rule": "mda(work_limit=1)", "workers": 40, "declared": 15}, r"step \d+: mda is exact"),
    ],
)
def test_a_run_that_stops_is_kept_with_its_reason(changes: dict[str, Any], reason: str) -> None:
    kept = execute({**SHORT, **changes}, seed=1)
    assert re.match(reason, kept["stopped"]) and kept["steps"] < 12
    json.dumps(kept)


DRIVER = """
import signal, sys, threading, time
from multiprocessing import resource_tracker
sys.path.insert(0, {folder!r})
from fastgar.cli import main, reproduce
from fastgar.train.reproduce.setting import Grid, Setting
if __name__ == "__main__":
    settings = [Setting("s%d" % x, {{"x": x, "attack": "none"}}, {{"x": x}}) for x in range(5)]
    grid = Grid("momentum", "digits", tuple(settings), execute="fakes:slow")
    reproduce._grid = lambda options: grid
    reproduce._report = lambda *arguments: None
    import fastgar.train.reproduce.execute as execute
    execute.check = lambda configs: None
    signal.signal(signal.SIGINT, signal.default_int_handler)  # shells start jobs deaf to it
    if {elsewhere}:
        resource_tracker.ensure_running()  # which would let the signal in again later
        threading.Thread(target=time.sleep, args=(60,), daemon=True).start()
        signal.pthread_sigmask(signal.SIG_BLOCK, {{signal.SIGINT}})
    sys.exit(main(["reproduce", "momentum", "--seeds", "1", "--processes", "2", "--out", {out!r}]))
"""


@pytest.fixture(params=[False])
def driver(
    request: pytest.FixtureRequest, fakes: Path, tmp_path: Path
) -> Iterator[subprocess.Popen[str]]:
    """Start the command on five runs, of which two never end, and wait until they are reached."""
    script = tmp_path / "driver.py"
    places = {"folder": str(fakes), "out": str(tmp_path / "out")}
    script.write_text(DRIVER.format(**places, elsewhere=request.param))
    process = subprocess.Popen(
        [sys.executable, str(script)], stderr=subprocess.PIPE, text=True, start_new_session=True,
        env={**os.environ, "PYTHONPATH": str(Path(fg.__file__).parent.parent)},
    )  # fmt: skip
    path, deadline = tmp_path / "out" / "results.jsonl", time.monotonic() + 60
    try:
        while not (path.exists() and path.read_text().count('"kind":"run"') == 3):
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.05)
        time.sleep(0.3)  # for the last two to be handed out
        yield process
    finally:
        process.kill()
        process.wait()


def _members(group: int) -> list[int]:
    """Return the processes of a session that live."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            state, _, _, session = (folder / "stat").read_text().rsplit(")", 1)[1].split()[:4]
        except OSError:
            continue
        if int(session) == group and state != "Z":
            found.append(int(folder.name))
    return found


def _wait_for_the_end(group: int) -> None:
    """Fail unless all processes of a session end within seconds."""
    for _ in range(100):
        if not _members(group):
            return
        time.sleep(0.05)
    pytest.fail(f"still there: {_members(group)}")


@pytest.mark.parametrize("driver", [False, True], indirect=True, ids=["", "another thread is told"])
def test_ctrl_c_ends_all_processes_and_keeps_what_is_done(
    driver: subprocess.Popen[str], tmp_path: Path
) -> None:
    assert len(_members(driver.pid)) >= 3
    os.killpg(driver.pid, signal.SIGINT)  # as a terminal does
    began = time.monotonic()
    _, errors = driver.communicate(timeout=20)
    assert driver.returncode == 130 and time.monotonic() - began < 5
    assert "keeps the 3 runs that ended" in errors and "Traceback" not in errors
    _wait_for_the_end(driver.pid)
    assert {record["name"] for record in read(tmp_path / "out" / "results.jsonl")} == {
        "s0", "s1", "s2",
    }  # fmt: skip


def test_processes_end_with_a_parent_that_was_killed(driver: subprocess.Popen[str]) -> None:
    assert len(_members(driver.pid)) >= 3
    os.kill(driver.pid, signal.SIGKILL)
    driver.wait()
    _wait_for_the_end(driver.pid)


# ------------------------------------------------------------------------------------ tables


def record(
    name: str, place: str, best: float | None, *, attack: str = "little", f: int = 5, seed: int = 1,
    rule: str = "krum", rate: str = "0.1", ratio: float = 1.0,
) -> dict[str, Any]:  # fmt: skip
    tags = {
        "n": 25, "f": f, "rate": rate, "nesterov": False, "rule": rule, "attack": attack,
        "momentum_at": place,
    }  # fmt: skip
    curve = [[0, 0.1], [10, best]]
    return {
        "kind": "run", "name": name, "seed": seed, "tags": tags, "config": {}, "best": best,
        "late": best, "accuracy": curve, "ratio": [[0, ratio], [10, 2 * ratio]], "stopped": None,
        "sampled_ratio": [[0, 9.0]],
        "seconds": 1.0,
    }  # fmt: skip


def clean(best: float, **options: Any) -> dict[str, Any]:
    return record("clean", "server", best, attack="none", rule="mean", **options)


# f = 5: hurt by 25 and regains 20; hurt by exactly 10 and regains 12; hurt by 5 and loses 3.
# f = 11: hurt by 60, regains 25.
RECORDS = [
    clean(0.95), clean(0.9, seed=2), clean(0.9, f=11),
    record("a", "server", 0.7), record("a", "worker", 0.9),
    record("b", "server", 0.85, rule="median"), record("b", "worker", 0.97, rule="median"),
    record("c", "server", 0.85, seed=2), record("c", "worker", 0.82, seed=2),
    record("d", "server", 0.3, f=11), record("d", "worker", 0.55, f=11),
    # no pairs: one half is missing, one has no reference, one never was evaluated
    record("e", "server", 0.1, rule="phocas"),
    record("g", "server", 0.1, rate="7"), record("g", "worker", 0.2, rate="7"),
    record("h", "server", None, rule="meamed"), record("h", "worker", 0.2, rule="meamed"),
]  # fmt: skip


def test_shares_are_those_computed_by_hand() -> None:
    found = pairs(RECORDS)
    assert len(found) == 4
    overall, five = summary(found), summary([pair for pair in found if pair.f == 5])
    assert overall.hurt == {0.1: 3 / 4, 0.2: 2 / 4}
    assert overall.hurt_at_worker == {0.1: 1 / 4, 0.2: 1 / 4}
    assert overall.recovered == {0.1: 1.0, 0.2: 1.0}
    assert five.recovered == {0.1: 1.0, 0.2: 1.0} and five.hurt[0.2] == pytest.approx(1 / 3)
    assert overall.worse == {0.0: 1, 0.02: 1, 0.05: 0}
    gains = sorted([0.20, 0.12, -0.03, 0.25])  # quartiles of four lie between neighbours
    expected = (
        gains[0] + 0.75 * (gains[1] - gains[0]),
        (gains[1] + gains[2]) / 2,
        gains[2] + 0.25 * (gains[3] - gains[2]),
    )
    assert overall.gain == pytest.approx(expected)
    nothing = summary([])
    assert nothing.hurt[0.1] is None and nothing.gain is None


def test_a_pair_hurt_by_less_is_not_asked_what_it_recovers() -> None:
    shares = summary(
        [
            Pair(5, "krum", "little", clean=0.9, server=0.85, worker=0.9),
            Pair(5, "krum", "little", clean=0.9, server=0.78, worker=0.85),
            Pair(5, "krum", "little", clean=0.9, server=0.5, worker=0.65),
        ]
    )
    assert shares.hurt == {0.1: pytest.approx(2 / 3), 0.2: pytest.approx(1 / 3)}
    assert shares.recovered == {0.1: 0.5, 0.2: 0.0}


def test_the_overview_has_our_figures_beside_the_published() -> None:
    table = overview(RECORDS)
    rows = {row[0].strip(): dict(zip(table.heads, row, strict=True)) for row in table.rows}
    assert table.heads[1:4] == ["f = 11", "f = 5", "both"]
    assert rows["pairs of attacked runs"]["both"] == "4"
    hurt = rows["hurt by 20 % or more"]
    assert (hurt["f = 11"], hurt["f = 5"], hurt["both"]) == ("100.0 %", "33.3 %", "50.0 %")
    assert (hurt["MLP"], hurt["CNN"], hurt["CNN, n/4"]) == ("25.8 %", "70.8 %", "46.46 %")
    assert rows["recovered 10 %, of hurt by 10 %"]["CNN, n/2"] == "79.75 %"
    assert rows["recovered 20 %, of hurt by 20 %"]["CNN, n/4"] == "95.07 %"
    assert rows["worse by worker momentum"]["paper"] == "4 (0.23 %)"
    assert rows["worse by worker momentum"]["f = 5"] == "1 (33.3 %)"
    assert rows["gain by worker momentum, median"]["f = 11"] == "+25.0"
    detail = {tuple(row[:3]): row[3:] for row in by_rule(RECORDS).rows}
    assert detail["11", "little", "krum"][:5] == ["1", "90.0 %", "30.0 %", "55.0 %", "+25.0"]


def test_published_shares_are_whole_numbers_of_pairs() -> None:
    """What the paper rounds are counts of 880 or 1,760 pairs; so the columns have the right n."""
    for share, count in ((25.8, 880), (70.8, 880), (79.75, 400), (49.25, 400), (46.46, 480),
                         (0.23, 1760)):  # fmt: skip
        digits = len(str(share).split(".")[1])
        assert round(100 * round(share / 100 * count) / count, digits) == share


# ----------------------------------------------------------------------------------- figures


def test_bands_are_mean_and_deviation_or_median_and_quartiles() -> None:
    curves = [[(0, 1.0), (5, 2.0), (7, 9.0)], [(0, 3.0), (5, None)], [(0, 8.0), (5, 4.0)]]
    line = band(curves)
    values = np.array([1.0, 3.0, 8.0])
    assert line.steps.tolist() == [0, 5]  # one curve of three has a step 7
    np.testing.assert_allclose(line.middle, [4.0, 3.0])
    np.testing.assert_allclose(line.high, [4.0 + values.std(), 4.0])
    line = band(curves, "quartiles")
    assert (line.low[0], line.middle[0], line.high[0]) == (2.0, 3.0, 5.5)


def drawn(grid: Grid, records: list[dict[str, Any]], folder: Path) -> list[Path]:
    seeds = tuple(sorted({record["seed"] for record in records}))
    return grid.figures(records, folder, origin.Origin(grid.title, grid.command, seeds))


def text_of(path: Path) -> str:
    return " ".join(re.findall(r"<text[^>]*>([^<]*)</text>", path.read_text()))


def test_figures_of_the_momentum_grid_show_all_that_it_has() -> None:
    assert tuple(momentum_figures.NAMES) == tuple(momentum.RULES)
    assert tuple(momentum.ATTACKS) == momentum_figures.ATTACKS
    assert tuple(momentum_figures.WHERE) == momentum.PLACES


def test_figures_of_the_momentum_grid_are_written_with_their_labels(tmp_path: Path) -> None:
    paths = drawn(momentum.grid(), RECORDS, tmp_path)
    names = {path.name for path in paths}
    for stem in ("accuracy-lr_0.1", "best-accuracy", "ratio-lr_0.1"):
        assert {f"{stem}.png", f"{stem}.svg"} <= names
    assert all(path.stat().st_size > 5000 for path in paths)
    text = text_of(tmp_path / "accuracy-lr_0.1.svg")
    for label in ("step", "test accuracy (%)", "f = 11", "f = 5", "Multi-Krum", "median",
                  "no attack", "momentum at the server", "momentum at the workers"):  # fmt: skip
        assert label in text
    text = text_of(tmp_path / "best-accuracy.svg")
    for label in ("little", "highest test accuracy (%)", "momentum at the workers", "no attack"):
        assert label in text
    text = text_of(tmp_path / "ratio-lr_0.1.svg")
    for label in ("variance-to-norm ratio", "bound", "Multi-Krum", "median"):
        assert label in text


def test_the_zeno_curves_and_their_table(tmp_path: Path) -> None:
    grid = zeno.grid()
    assert len(grid.settings) == 7 * 5
    assert len(zeno.grid("cifar10").settings) == 7 * 4  # with the paper's number of samples alone
    best = "zeno (64 samples)"
    records = [
        {"tags": s.tags, "late": 0.9 if s.tags["rule"] == best else 0.5, "stopped": None, "seed": 1,
         "accuracy": [[0, 0.1], [10, 0.9]], "best": 0.9}
        for s in reversed(grid.settings)  # as runs may end
    ]  # fmt: skip
    (table,) = grid.tables(records)
    assert table.heads == ["", "mean", "krum", "median", "zeno (4 samples)", best]
    assert [row[0] for row in table.rows] == [
        "no attack", "label flip, 8 of 20", "label flip, 12 of 20", "bit flip, 8 of 20",
        "bit flip, 12 of 20", "sign flip, 8 of 20", "sign flip, 12 of 20",
    ]  # fmt: skip
    for row in table.rows:
        cells = dict(zip(table.heads, row, strict=True))
        assert (cells[best], cells["zeno (4 samples)"]) == ("90.0 ± 0.0", "50.0 ± 0.0")
    png, svg = drawn(grid, records, tmp_path)
    text = text_of(svg)
    assert png.exists() and all(word in text for word in (best, "bit flip, 12 of 20", "krum"))


def test_the_heat_map_has_the_worst_case_in_its_margin(tmp_path: Path) -> None:
    grid = resilience.grid(quick=True)
    late = {"little": 0.2, "sign_flip": 0.77, "none": 0.9, "nan": None}
    records: list[dict[str, Any]] = [
        {"tags": s.tags, "seed": seed, "late": late[str(s.tags["attack"])], "stopped": None}
        for s in grid.settings
        for seed in (1, 2)
    ]
    for record in records:
        if record["tags"]["attack"] == "little" and record["seed"] == 2:
            record["late"] = 0.1
        if record["late"] is None and record["tags"]["rule"] == "mean":
            record["stopped"] = "loss not finite at step 2"  # it learnt nothing
        elif record["late"] is None:
            record["stopped"] = "step 1: the search came to its limit"  # and nobody knows
    (table,) = grid.tables(records)
    assert table.heads == ["rule", "f = 2, iid", "f = 2, extreme"]
    cells = {row[0]: row[1:] for row in table.rows}
    assert cells["median"] == ["15 ± 5 (little)"] * 2
    assert cells["mean"] == ["0 ± 0 (nan)"] * 2
    assert "Could not run, and do not count: median under nan, nnm | krum under nan." in table.note
    png, svg, _, whole = drawn(grid, records, tmp_path)
    for label in ("worst", "nnm | krum", "sign_flip", "f = 2, extreme", "77", "15", "grey: not"):
        assert label in text_of(whole)
    for label in ("worst attack by f = 2 of 20", "no attack", "nnm | krum", "extreme"):
        assert label in text_of(svg)
    facts = json.loads(png.with_suffix(".json").read_text())
    assert facts["command"] == "fastgar reproduce resilience --quick" and facts["seeds"] == [1, 2]


@pytest.mark.parametrize("columns", [1, 2, 4])
def test_no_legend_is_cut_off(columns: int) -> None:
    figure, axes = panels(2, columns, width=2.3)
    (line,) = axes[0, 0].plot([0, 1])
    names = ("bound under which the rule is proved to resist", "what they send: momentum", "mean")
    legend_below(figure, dict.fromkeys(names, line))
    figure.draw_without_rendering()
    box = figure.legends[0].get_window_extent()
    assert box.x0 >= 0 and box.x1 <= figure.bbox.x1
    assert all(panel.get_tightbbox().y0 >= box.y1 for panel in axes.flat)


def test_a_picture_says_where_it_comes_from_and_whether_its_code_has_changed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    old = {**sources(drawing=False), "krum": "before", "gone": "before"}
    for name, ran in (("new", None), ("old", old)):
        figure, _ = panels(1, 1)
        origin.Origin("title", "fastgar reproduce zeno", (1, 2, 7), ran).save(
            figure, tmp_path / f"{name}.png", "bands"
        )
    assert origin.changed(tmp_path / "new.png") == []
    assert origin.changed(tmp_path / "old.png") == ["gone", "krum"]
    assert origin.main([str(tmp_path)]) == 1
    assert capsys.readouterr().out.splitlines() == [
        f"{tmp_path / 'new.png'}: as new as its code",
        f"{tmp_path / 'old.png'}: older than gone, krum",
    ]
    assert origin.holds(tmp_path / "new.png")
    with (tmp_path / "new.png").open("ab") as picture:
        picture.write(b"other")
    (tmp_path / "old.json").unlink()
    assert not origin.holds(tmp_path / "new.png") and not origin.holds(tmp_path / "old.png")
    caption = origin.Origin("title", "fastgar reproduce zeno", (1, 2, 7)).caption("bands")
    assert re.fullmatch(
        rf"fastgar reproduce zeno   fastgar {re.escape(fg.__version__)}( \(\S+\))?   "
        r"seeds 1, 2, 7: bands",
        caption,
    )


# ----------------------------------------------------------------------------------- command


FIRST = """
from .krum import score
HALF = 0.5
@register
def rule(D):
    \"\"\"Return what counts.\"\"\"
    return HALF * score(D)
"""
GRID = """
SIZES = (1, 2)
TITLE = "curves"
def grid(): return Grid(_settings(), tables=tables, figures=figures)
def _settings(): return SIZES
def tables(records): return [TITLE]
def figures(records): return _draw(SIZES)
def _draw(sizes): return sizes
"""


def package(folder: Path, **files: str) -> Path:
    for name, text in files.items():
        path = folder.joinpath(*name.split("__")).with_suffix(".py")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return folder


def test_code_that_only_moves_is_no_other_code(tmp_path: Path) -> None:
    before = sources(drawing=False, package=package(tmp_path / "a", rules__one=FIRST))
    assert before.keys() == {"HALF", "rule"}
    _, half, rest = FIRST.partition("HALF = 0.5\n")
    moved = package(tmp_path / "b", rules__two=rest, train__other=f"import math\n{half}")
    assert sources(drawing=False, package=moved) == before
    for number, (old, new) in enumerate((("0.5", "0.6"), ("@register\n", ""), ("* score", "/ s"))):
        other = package(tmp_path / str(number), rules__one=FIRST.replace(old, new))
        assert sources(drawing=False, package=other) != before
    twice = package(tmp_path / "c", rules__one=FIRST, rules__two=half)
    assert sources(drawing=False, package=twice)["rule"] == before["rule"]
    assert sources(drawing=False, package=twice)["HALF"] == " ".join([before["HALF"]] * 2)
    mine = package(tmp_path / "d", rules__one=FIRST, protocols__mine="async def server(me): t = 1")
    assert sources(drawing=False, package=mine) == before
    assert sources(drawing=False, cluster=True, package=mine).keys() - before.keys() == {"server"}


def test_of_a_grid_s_file_the_runs_rest_on_what_they_need(tmp_path: Path) -> None:
    made = package(tmp_path, train__reproduce__grids__mine=GRID, train__figures="def band(): 1")
    assert sources(drawing=False, package=made).keys() == {"SIZES", "grid", "_settings"}
    assert sources(drawing=True, package=made).keys() == {
        "TITLE", "tables", "figures", "_draw", "band",
    }  # fmt: skip


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let every use of a network fail."""

    def refuse(*arguments: Any, **options: Any) -> None:
        raise AssertionError("a socket was opened")

    monkeypatch.setattr(socket, "socket", refuse)
    monkeypatch.setattr(socket, "create_connection", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


@pytest.mark.parametrize("data", ["digits", "mnist", "cifar100"])
def test_a_dry_run_counts_and_does_nothing(
    data: str,
    offline: None,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["reproduce", "momentum", "--data", data, "--dry-run"]) == 0
    rows = capsys.readouterr().out.splitlines()
    counts = {re.split(r"\s{2,}", row)[0]: row.split()[-4:] for row in rows[2:]}
    assert counts[f"momentum on {data}"] == ["176", "8", "184", "920"]
    assert counts["paper: all four"] == ["704", "32", "736", "3,680"]
    assert counts["paper: appendix"] == ["20", "2", "22", "110"]
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["momentum", "--data", "mnits"], "did you mean 'mnist'"),
        (["zeno", "--data", "cifra10"], "did you mean 'cifar10'"),
        (["momentum", "--seeds", "1-5"], "seeds are written 1..5 or 1,2,7, got '1-5'"),
        (["momentum", "--processes", "0"], "--processes must be at least 1, got 0"),
        (["zeno", "--parity"], "--parity is for momentum, not for zeno"),
        (["resilience", "--appendix"], "--appendix is for momentum"),
        (["momentum", "--appendix", "--data", "mnist"], "--appendix is on cifar10, not on mnist"),
    ],
)
def test_bad_input_is_refused(
    arguments: list[str],
    message: str,
    offline: None,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    out = tmp_path / "out"
    with pytest.raises(SystemExit) as end:
        main(["reproduce", *arguments, "--out", str(out)])
    assert end.value.code == 2
    assert message in capsys.readouterr().err
    assert not out.exists()


def test_an_output_folder_that_cannot_be_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(SystemExit) as end:
        main(["reproduce", "zeno", "--quick", "--out", str(tmp_path / "file" / "out")])
    assert end.value.code == 2
    assert "cannot write to --out" in capsys.readouterr().err


def test_the_results_of_another_grid_are_refused_by_the_command(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Store(tmp_path / "results.jsonl", zeno.grid(quick=True)).__exit__(None, None, None)
    with pytest.raises(SystemExit) as end:
        main(["reproduce", "momentum", "--quick", "--out", str(tmp_path)])
    assert end.value.code == 2
    message = capsys.readouterr().err
    assert "name='zeno'; asked for: name='momentum'" in message and "--fresh" in message


ONE_FILE = """
from fastgar.train.reproduce.setting import Grid, Setting, Table

def grid(data="digits", *, quick=False):
    settings = [Setting(f"s{x}", {"x": x}, {"x": x}) for x in range(2 if quick else 9)]
    return Grid("mine", "", tuple(settings), "", "2..3", "mine:work", {}, words, tables)

def work(config, seed):
    return {"sum": config["x"] + seed, "seconds": 0.0}

def words(record):
    return f"sum {record['sum']}"

def tables(records):
    return [Table("Sums", ["x", "sum"], sorted([r["name"], str(r["sum"])] for r in records), 1)]
"""


def test_a_grid_is_one_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "mine.py").write_text(ONE_FILE)
    monkeypatch.setattr(reproduce, "FOLDER", tmp_path)
    monkeypatch.setattr(grids, "__path__", [str(tmp_path)])
    monkeypatch.syspath_prepend(tmp_path)  # where its processes find it
    command = ["reproduce", "mine", "--quick", "--processes", "1", "--out", str(tmp_path / "out")]
    assert main(command) == 0
    printed = capsys.readouterr()
    assert "[4/4] s1, seed 3: sum 4" in printed.err
    assert [row.split() for row in printed.out.splitlines() if row.startswith("s")] == [
        ["s0", "2"], ["s0", "3"], ["s1", "3"], ["s1", "4"],
    ]  # fmt: skip
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"results.jsonl", "tables.md"}
    with pytest.raises(SystemExit):
        main(["reproduce", "mine", "--parity"])
    assert "--parity is for momentum, not for mine" in capsys.readouterr().err


def test_a_quick_grid_from_the_command_to_its_figures(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    command = ["reproduce", "momentum", "--quick", "--out", str(out), "--seeds", "3"]
    assert main(command) == 0
    printed = capsys.readouterr()
    assert "What attacks cost" in printed.out and "[14/14]" in printed.err
    records = read(out / "results.jsonl")
    assert len(records) == 14 and all(record["stopped"] is None for record in records)
    for each in records:
        steps = [step for step, _ in each["accuracy"]]
        assert steps == [5, 10, 15, 20]
        assert each["best"] == max(accuracy for _, accuracy in each["accuracy"])
        assert len(each["ratio"]) == 4 and all(ratio > 0 for _, ratio in each["ratio"])
    assert (out / "tables.md").read_text().startswith("## What attacks cost")
    assert {path.name for path in out.glob("*.png")} == {
        "accuracy-lr_0.2.png", "best-accuracy.png", "ratio-lr_0.2.png",
    }  # fmt: skip
    # Once more: nothing is left to do, and the tables come again.
    before = (out / "results.jsonl").read_text()
    assert main(command) == 0
    again = capsys.readouterr()
    assert again.out == printed.out and again.err == ""
    assert (out / "results.jsonl").read_text() == before
    heads = [json.loads(line)["kind"] for line in before.splitlines()]
    assert heads == ["grid", "session", *["run"] * 14]
