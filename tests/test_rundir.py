"""The run directory: what it holds, and that a run can be killed at any moment."""

from __future__ import annotations

import itertools
import json
import os
import random
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import fastgar as fg

torch = pytest.importorskip("torch")
pytest.importorskip("sklearn")

from torch import nn  # noqa: E402

from fastgar.train import Config, Mismatch, Training, load, run  # noqa: E402
from fastgar.train.rundir import RunDirectory, environment, name_of  # noqa: E402

ROOT = Path(fg.__file__).parent.parent
DIGITS = load("digits")


@pytest.fixture(autouse=True, scope="module")
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def digits(out: Path | None, **options: Any) -> Any:
    return run("mlp", DIGITS, out=out, **options)


def test_it_holds_what_was_asked_for_and_what_came_of_it(tmp_path: Path) -> None:
    out = tmp_path / "deep" / "run"
    result = run("mlp(hidden=9)", "digits", out=out, rule="krum", attack="little", steps=4,
                 evaluate_every=2, metrics=True)  # fmt: skip
    assert result.path == out
    assert {path.name for path in out.iterdir()} == {
        "config.toml", "environment.json", "metrics.jsonl", "checkpoint.pt", "log.txt",
    }  # fmt: skip
    assert Config.from_toml((out / "config.toml").read_text()) == result.config
    facts = json.loads((out / "environment.json").read_text())
    assert facts["versions"]["numpy"] == np.__version__
    assert facts["versions"].keys() >= {"python", "fastgar", "torch", "numpy", "numba"}
    assert facts == json.loads(json.dumps(environment()))
    records = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert [(r["kind"], r["step"]) for r in records] == [
        ("step", 1), ("step", 2), ("evaluation", 2), ("step", 3), ("step", 4), ("evaluation", 4),
    ]  # fmt: skip
    assert records[0]["attack_norm"] == result.metrics[0]["attack_norm"] > 0
    log = (out / "log.txt").read_text()
    assert "from step 0 of 4; gradients for all workers in one pass" in log
    assert "all 4 steps done" in log
    state = torch.load(out / "checkpoint.pt", weights_only=True)
    assert torch.equal(state["theta"], result.parameters)


def test_a_run_that_ended_is_not_done_again(tmp_path: Path) -> None:
    options: dict[str, Any] = {"attack": "little", "rule": "median", "steps": 6, "metrics": True}
    first = digits(tmp_path, **options)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    again = digits(tmp_path, **options)
    assert torch.equal(first.parameters, again.parameters)
    assert again.evaluations == first.evaluations and again.metrics == first.metrics
    assert again.losses == first.losses and again.times == first.times
    assert torch.equal(again.model(DIGITS.x_test), first.model(DIGITS.x_test))
    after = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    del before["log.txt"], after["log.txt"]
    assert before == after


def test_other_versions_are_noted(tmp_path: Path) -> None:
    digits(tmp_path, steps=2)
    path = tmp_path / "environment.json"
    path.write_text(path.read_text().replace(f'"numpy": "{np.__version__}"', '"numpy": "0.9"'))
    digits(tmp_path, steps=2)
    log = (tmp_path / "log.txt").read_text()
    assert f"numpy is {np.__version__}, and was 0.9 when the run began" in log
    assert "torch is" not in log


def test_a_run_that_stopped_stays_stopped(tmp_path: Path) -> None:
    first = digits(tmp_path, lr=1e30, steps=30)
    again = digits(tmp_path, lr=1e30, steps=30)
    assert again.stopped == first.stopped is not None
    assert len(again.losses) == len(first.losses) < 30
    assert [e.step for e in again.evaluations] == [e.step for e in first.evaluations]


# Everything that has a state: momentum of each worker, a rule that draws and one that starts at the
# last aggregate, the server's own samples, statistics of batches, dropout, who takes part.
CASES: dict[str, dict[str, Any]] = {
    "workers": {
        "rule": "bucketing(s=2) | median", "attack": "gaussian", "momentum_at": "worker",
        "nesterov": True, "participation": 0.7, "declared": 1,
    },
    "server": {"rule": "centered_clipping(tau=1.0)", "attack": "little", "nesterov": True},
    "oracle": {"rule": "zeno(b=4)", "attack": "bit_flip", "validation": 0.2, "momentum": 0.0},
    "trusted": {"rule": "fltrust", "attack": "label_flip", "validation": 0.2},
    "mixed": {"rule": "krum", "attack": "optimal(empire)", "momentum_at": "mixed"},
}  # fmt: skip


def network() -> nn.Module:
    torch.manual_seed(3)
    return nn.Sequential(
        nn.Flatten(), nn.Linear(64, 20), nn.BatchNorm1d(20), nn.ReLU(), nn.Dropout(0.3),
        nn.Linear(20, 10),
    )  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_a_run_goes_on_from_its_checkpoint_bit_for_bit(name: str, tmp_path: Path) -> None:
    options = {**CASES[name], "steps": 17, "checkpoint_every": 5, "metrics": True, "seed": 2}
    config = Config(evaluate_every=4, **options)
    whole = Training(config, network(), DIGITS, out=tmp_path / "whole")
    list(whole)
    for steps in (3, 7, 4):  # each leaves some steps that no checkpoint has
        part = Training(config, network(), DIGITS, out=tmp_path / "parts")
        done = part.done
        assert done % 5 == 0
        assert len(list(itertools.islice(part, steps))) == steps
    rest = Training(config, network(), DIGITS, out=tmp_path / "parts")
    assert 0 < rest.done < 17
    list(rest)
    assert torch.equal(rest.theta, whole.theta)
    for key, tensor in whole.workers.module.state_dict().items():
        assert torch.equal(rest.workers.module.state_dict()[key], tensor), key
    assert rest.result.losses == whole.result.losses
    assert rest.result.evaluations == whole.result.evaluations
    assert rest.result.metrics == whole.result.metrics
    lines = [(tmp_path / which / "metrics.jsonl").read_bytes() for which in ("whole", "parts")]
    assert lines[0] == lines[1]


CODE = """
import sys, torch
torch.set_num_threads(1)
from fastgar.train import Data, run
data = Data(**torch.load(sys.argv[1], weights_only=True))
run("mlp", data, out=sys.argv[2], **OPTIONS)
"""


@pytest.mark.skipif(os.name != "posix", reason="kill -9")
def test_a_run_that_is_killed_again_and_again_ends_as_one_that_is_not(tmp_path: Path) -> None:
    options: dict[str, Any] = {
        "rule": "bucketing(s=2) | median", "attack": "little", "momentum_at": "worker",
        "steps": 700, "checkpoint_every": 3, "metrics": True, "evaluate_every": 10,
    }  # fmt: skip
    torch.save(DIGITS._asdict(), tmp_path / "data.pt")
    out, chance = tmp_path / "run", random.Random(5)
    reached = 0
    for _ in range(3):
        process = subprocess.Popen(
            [sys.executable, "-c", f"OPTIONS = {options}\n{CODE}", tmp_path / "data.pt", out],
            env={**os.environ, "PYTHONPATH": str(ROOT)}, stderr=subprocess.PIPE,
        )  # fmt: skip
        deadline = time.monotonic() + 60
        while not (out / "log.txt").exists() or (out / "log.txt").stat().st_size <= reached:
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.01)
        reached = (out / "log.txt").stat().st_size
        time.sleep(chance.uniform(0.05, 0.6))
        process.kill()
        process.communicate()
        assert process.returncode == -9, "the run ended too soon to be killed"
    with (out / "metrics.jsonl").open("a") as file:
        file.write('{"kind": "st')  # as a full disk or a crash of the machine may leave it
    assert (out / "log.txt").read_text().count("from step") == 3
    resumed = digits(out, **options)
    whole = digits(tmp_path / "whole", **options)
    assert torch.equal(resumed.parameters, whole.parameters)
    assert resumed.losses == whole.losses and resumed.metrics == whole.metrics
    assert (out / "metrics.jsonl").read_bytes() == (
        tmp_path / "whole" / "metrics.jsonl"
    ).read_bytes()


def test_a_checkpoint_is_whole_or_not_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    training = Training(Config(steps=9, checkpoint_every=2), None, DIGITS, out=tmp_path)
    steps = iter(training)
    for _ in range(2):
        next(steps)
    before = (tmp_path / "checkpoint.pt").read_bytes()

    def killed(*_: Any) -> None:
        raise SystemError("killed")

    monkeypatch.setattr(os, "replace", killed)
    next(steps)
    with pytest.raises(SystemError):
        next(steps)
    monkeypatch.undo()
    assert (tmp_path / "checkpoint.pt").read_bytes() == before
    assert Training(Config(steps=9, checkpoint_every=2), None, DIGITS, out=tmp_path).done == 2


def test_checkpoints_come_with_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    saved: list[int] = []
    monkeypatch.setattr(RunDirectory, "save", lambda self, state: saved.append(state["step"]))
    digits(tmp_path / "quick", steps=5)
    assert saved == [5]
    monkeypatch.setattr("fastgar.train.loop.PATIENCE", 0.0)
    saved.clear()
    digits(tmp_path / "slow", steps=4)
    assert saved == [1, 2, 3, 4]
    saved.clear()
    digits(tmp_path / "said", steps=5, checkpoint_every=2)
    assert saved == [2, 4, 5]


# ------------------------------------------------------------------------------------- bad input


def test_another_run_s_directory_is_refused_with_the_difference(tmp_path: Path) -> None:
    digits(tmp_path, steps=3, clip=2)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    with pytest.raises(Mismatch) as refused:
        digits(tmp_path, steps=3, lr=0.2, attack="little")
    assert str(refused.value) == (
        f"{tmp_path} holds results of attack='none', lr=0.05, clip=2.0; asked for: "
        "attack='little', lr=0.2, clip=None"
    )
    assert before == {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    result = digits(tmp_path, steps=3, lr=0.2, attack="little", fresh=True)
    assert len(result.losses) == 3
    assert Config.from_toml((tmp_path / "config.toml").read_text()) == result.config


def test_another_model_of_the_same_name_is_refused(tmp_path: Path) -> None:
    run(nn.Sequential(nn.Flatten(), nn.Linear(64, 10)), DIGITS, out=tmp_path, steps=2)
    wider = nn.Sequential(nn.Flatten(), nn.Linear(64, 20), nn.Linear(20, 10))
    with pytest.raises(Mismatch, match="a model of 650 parameters, and this one has 1510"):
        run(wider, DIGITS, out=tmp_path, steps=2)


@pytest.mark.parametrize("name", ["metrics.jsonl", "checkpoint.pt"])
@pytest.mark.parametrize("fresh", [False, True])
def test_files_of_something_else_are_left_alone(name: str, fresh: bool, tmp_path: Path) -> None:
    (tmp_path / name).write_text("mine")
    with pytest.raises(Mismatch, match=f"has {name} but no config.toml"):
        digits(tmp_path, steps=2, fresh=fresh)
    assert [path.name for path in tmp_path.iterdir()] == [name]
    assert (tmp_path / name).read_text() == "mine"


def test_damaged_files_are_refused(tmp_path: Path) -> None:
    digits(tmp_path, steps=2)
    checkpoint, config = tmp_path / "checkpoint.pt", tmp_path / "config.toml"
    whole = checkpoint.read_bytes()
    for blob in (whole[: len(whole) // 2], b"", b"not a zip", whole[:-500] + bytes(500)):
        checkpoint.write_bytes(blob)
        with pytest.raises(Mismatch, match=r"checkpoint\.pt is damaged or no checkpoint"):
            digits(tmp_path, steps=2)
    torch.save({"theta": torch.zeros(3)}, checkpoint)
    with pytest.raises(Mismatch, match=r"checkpoint\.pt is damaged or no checkpoint"):
        digits(tmp_path, steps=2)
    checkpoint.write_bytes(whole)
    (tmp_path / "metrics.jsonl").write_text("")
    with pytest.raises(Mismatch, match=r"metrics\.jsonl is shorter than it was"):
        digits(tmp_path, steps=2)
    config.write_text("lr = fast")
    with pytest.raises(Mismatch, match="cannot be read: this is no TOML document"):
        digits(tmp_path, steps=2)
    assert len(digits(tmp_path, steps=2, fresh=True).losses) == 2


def test_a_checkpoint_holds_no_code(tmp_path: Path) -> None:
    digits(tmp_path, steps=2)

    class Evil:
        def __reduce__(self) -> Any:
            return print, ("ran",)

    torch.save({"metrics": 0, "theta": Evil()}, tmp_path / "checkpoint.pt")
    with pytest.raises(Mismatch, match="damaged or no checkpoint"):
        digits(tmp_path, steps=2)


def test_a_directory_that_cannot_be_written_is_refused_before_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Training, "_step", lambda *_: pytest.fail("it trains"))
    (tmp_path / "file").write_text("")
    with pytest.raises(NotADirectoryError):
        digits(tmp_path / "file" / "run", steps=2)


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="root may write anywhere")
def test_a_directory_of_somebody_else_s_is_refused_before_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Training, "_step", lambda *_: pytest.fail("it trains"))
    tmp_path.chmod(0o500)
    with pytest.raises(PermissionError):
        digits(tmp_path, steps=2)


def test_nothing_is_written_for_a_run_that_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="unknown attack"):
        digits(tmp_path / "out", attack="litle")
    with pytest.raises(ValueError, match="coordinate"):
        digits(tmp_path / "out", attack="bulyan(coordinate=123456)")
    assert not (tmp_path / "out").exists()


def test_names_are_safe_readable_and_different() -> None:
    runs = [
        ("krum", "little"), ("nnm | krum", "little"), ("nnm|krum", "empire(k=10)"),
        ("krum", "drop(lost='nan')"), ("krum", "drop(lost=nan)"), ("krum", "a/../b"),
        ("krum", "a.b"), ("krum", "../../b"), ("x" * 400, "little"), ("x" * 401, "little"),
    ]  # fmt: skip
    names = [name_of(Config(rule=rule, attack=attack)) for rule, attack in runs]
    assert names[:3] == ["krum-vs-little", "nnm+krum-vs-little", "nnm+krum-vs-empire-k=10"]
    assert len(set(names)) == len(names)
    for name in names:
        assert len(name) <= 120 and not set(name) & set("/\\:*?\"<>| '()\0")
        assert not name.startswith((".", "-"))
