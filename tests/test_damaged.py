"""Strings and files that nobody would write: one sentence each, soon, and no traceback."""

from __future__ import annotations

import io
import json
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import fastgar as fg
from fastgar.attacks import attack

pytest.importorskip("torch")

import torch

from fastgar.cli import main
from fastgar.train.config import Config
from fastgar.train.data import load
from fastgar.train.models import check as check_model
from fastgar.train.rates import schedule
from fastgar.train.split import check as check_split
from fastgar.train.zeno import parse

X = np.ones((11, 5), np.float32)
MANY = int("9" * 400)  # beyond float64
MORE = 1 << 20_000  # of more digits than Python writes
LONG = "9" * 100_000


# --------------------------------------------------------------------------- numbers and strings

REFUSED: dict[str, tuple[Callable[[], Any], str]] = {
    "hex": (lambda: fg.rule("clip(c=0x" + "f" * 1900 + ")", f=2), "c must be a finite number"),
    "c": (lambda: fg.clip(X, f=2, c=MANY), "a finite number above 0, got an integer of 13"),
    "more": (lambda: fg.clip(X, f=2, c=MORE), "above 0, got an integer of 20001 bits"),
    "list": (lambda: fg.clip(X, f=2, c=[MORE]), r"above 0, got \[an integer of 20001 bits\]"),
    "m": (lambda: fg.multi_krum(X, f=2, m=MORE), "m must be an integer at least 1"),
    "work": (lambda: fg.mda(X, f=2, work_limit=1 << 63), "work_limit must be an integer"),
    "steps": (lambda: fg.geometric_median(X, max_iter=MANY), "max_iter must be an integer"),
    "T": (lambda: fg.rfa(X, T=1001), "T must be an integer between 1 and 1000, got 1001"),
    "iters": (lambda: fg.centered_clipping(X, tau=1.0, iters=10**9), "between 1 and 1000"),
    "evaluations": (lambda: attack("optimal(evaluations=1001)"), "between 1 and 1000, got 1001"),
    "f": (lambda: fg.krum(X, f=MORE), "f must be below 2.63, got an integer of 20001 bits"),
    "seed": (lambda: fg.bucketing(X, seed=MANY), "seed must be an integer between 0 and"),
    "attack": (lambda: attack(f"empire(k={MANY})"), "k must be a finite number, got an integer of"),
    "long rule": (lambda: fg.rule("krum" + " " * 10**6, f=2), "at most 2000 characters"),
    "long attack": (lambda: attack("empire" + " " * 10**6), "at most 2000 characters"),
    "long model": (lambda: check_model(f"mlp({LONG})"), "at most 2000 characters"),
    "long split": (lambda: check_split(f"gamma({LONG})"), "at most 2000 characters"),
    "long schedule": (lambda: schedule(f"inverse({LONG})"), "at most 2000 characters"),
    "long zeno": (lambda: parse(f"zeno(b={LONG})"), "at most 2000 characters"),
    "long data": (lambda: load(LONG), "unknown data set"),
    "unknown": (lambda: fg.rule("x" * 2000, f=2), r"unknown rule 'x{9,99}\.\.\.x{9,99}'"),
    "brackets": (lambda: fg.rule("(" * 1999, f=2), r"'\({9,99}\.\.\.\({9,99}' is no rule"),
    "lr": (lambda: Config(lr=MANY), "lr must lie between .*, got an integer of 1329 bits"),
    "workers": (lambda: Config(workers=MORE), "workers must lie between"),
    "long toml": (lambda: Config.from_toml("a." * 50_000 + "a = 1"), "at most 16,000 characters"),
    "deep toml": (lambda: Config.from_toml("lr = " + "[" * 9000), "no TOML document"),
    "digits": (lambda: Config.from_toml("lr = " + LONG[:9000]), "no TOML document"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_numbers_and_strings_without_measure(name: str) -> None:
    call, message = REFUSED[name]
    began = time.process_time()
    with pytest.raises((ValueError, TypeError), match=message) as refused:
        call()
    assert len(str(refused.value)) < 500
    assert time.process_time() - began < 5


def test_the_greatest_numbers_of_steps_end_soon() -> None:
    rows = np.random.default_rng(0).normal(size=(50, 9))
    began = time.process_time()
    assert np.isfinite(fg.rfa(rows, T=1000)).all()
    assert np.isfinite(fg.centered_clipping(rows, tau=1.0, iters=1000)).all()
    assert time.process_time() - began < 10
    assert schedule("steps(factor=10, every=1)")(400) == float("inf")


# --------------------------------------------------------------------------------------- files

TRAIN = [
    "train",
    "--steps",
    "4",
    "--evaluate-every",
    "2",
    "--rule",
    "median",
    "--attack",
    "empire",
    "--quiet",
    "--out",
]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("trained")
    assert main([*TRAIN, str(out)]) == 0
    return out


def refused(capsys: pytest.CaptureFixture[str], *command: str) -> str:
    """Return the one sentence with which a command ends, status 2."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as ended:
        main(command)
    assert ended.value.code == 2
    said = capsys.readouterr().err
    assert said.startswith(f"fastgar {command[0]}: ") and said.count("\n") == 1
    return said


def swap(old: str, new: str) -> Callable[[bytes], bytes]:
    def swapped(content: bytes) -> bytes:
        assert old.encode() in content
        return content.replace(old.encode(), new.encode(), 1)

    return swapped


def resaved(**changes: Any) -> Callable[[bytes], bytes]:
    """Return the change that gives a checkpoint other values."""

    def changed(content: bytes) -> bytes:
        state = torch.load(io.BytesIO(content), weights_only=True)
        buffer = io.BytesIO()
        torch.save({**state, **changes}, buffer)
        return buffer.getvalue()

    return changed


NOT_UTF8 = lambda content: b"\xff\xfe" + content[2:]  # noqa: E731
DEEP = b"[" * 100_000
RUN = "median-vs-empire"
DAMAGES: dict[str, tuple[str, Callable[[bytes], bytes], str]] = {
    "metrics, overwritten": (
        f"{RUN}/metrics.jsonl", lambda content: b"\0" * 40 + content[40:], "line 1 of .*jsonl is",
    ),
    "metrics, no text": (f"{RUN}/metrics.jsonl", NOT_UTF8, "line 1 of .*metrics.jsonl is no"),
    "metrics, a number as text": (
        f"{RUN}/metrics.jsonl", swap('"loss":', '"lots":'), "line 1 of .*metrics.jsonl is no",
    ),
    "environment, a list": (
        f"{RUN}/environment.json", lambda _: b"[1, 2]", "environment.json is damaged: delete it",
    ),
    "environment, deep": (f"{RUN}/environment.json", lambda _: DEEP, "environment.json is damaged"),
    "environment, versions": (
        f"{RUN}/environment.json", lambda _: b'{"versions": 3}', "environment.json is damaged",
    ),
    "environment, no text": (f"{RUN}/environment.json", NOT_UTF8, "environment.json is damaged"),
    "settings, no text": (f"{RUN}/config.toml", NOT_UTF8, "config.toml cannot be read"),
    "settings, deep": (f"{RUN}/config.toml", lambda _: b"lr = " + DEEP, "config.toml cannot be"),
    "checkpoint, a step": (f"{RUN}/checkpoint.pt", resaved(step="2"), "no checkpoint of this run"),
    "checkpoint, too far": (f"{RUN}/checkpoint.pt", resaved(step=99), "it is of step 99"),
    "checkpoint, no vectors": (f"{RUN}/checkpoint.pt", resaved(momentum=None), "no checkpoint of"),
    "checkpoint, odd times": (
        f"{RUN}/checkpoint.pt", resaved(times=torch.zeros(3, 7)), "no checkpoint of this run",
    ),
    "checkpoint, a length": (
        f"{RUN}/checkpoint.pt", resaved(metrics=-1), "damaged or no checkpoint",
    ),
    "results, no text": ("results.jsonl", NOT_UTF8, "line 1 of .*results.jsonl is no record of"),
    "results, deep": ("results.jsonl", lambda c: c + DEEP + b"\n", "line 5 of .*results.jsonl"),
    "results, a name": ("results.jsonl", swap('"rule":"median"', '"rule":["x"]'), "line 2 of"),
    "results, an accuracy": ("results.jsonl", swap('"lowest":', '"lost":'), "line 4 of"),
}  # fmt: skip


@pytest.mark.parametrize("name", DAMAGES)
def test_damaged_files_of_a_run(
    name: str, trained: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file, change, message = DAMAGES[name]
    path, results = trained / file, trained / "results.jsonl"
    whole, lines = path.read_bytes(), results.read_bytes()
    if path != results:  # else the run has ended, and its directory is not looked at
        results.unlink()
    path.write_bytes(change(whole))
    try:
        assert re.search(message, refused(capsys, *TRAIN, str(trained)))
    finally:
        path.write_bytes(whole)
        results.write_bytes(lines)


@pytest.mark.parametrize("text", [b"\xff\xfe", b"lr = " + DEEP, b"a." * 50_000 + b"a = 1", b"[1"])
def test_damaged_settings(text: bytes, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "settings.toml").write_bytes(text)
    command = ["train", "--config", str(tmp_path / "settings.toml"), "--out", str(tmp_path)]
    assert "settings.toml cannot be read: " in refused(capsys, *command)
    assert "cannot be read: " in refused(capsys, "train", "--config", "/dev/zero", *command[3:])


def test_damaged_results_of_a_grid(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from fastgar.train.lines import line, plain
    from fastgar.train.reproduce.grids import zeno

    grid = zeno.grid("digits", quick=True)
    setting = grid.settings[0]
    head = {"kind": "grid", "name": grid.name, "data": grid.data, "variant": grid.variant}
    run: dict[str, Any] = {
        "kind": "run", "name": setting.name, "seed": 1, "tags": plain(dict(setting.tags)),
        "config": plain(dict(setting.config)), "best": 0.5, "late": 0.5, "accuracy": [[2, 0.5]],
        "loss": [[2, None]], "ratio": [], "sampled_ratio": [], "steps": 2, "stopped": None,
        "seconds": 1.0, "aggregation": 0.1,
    }  # fmt: skip
    path = tmp_path / "results.jsonl"
    command = ("reproduce", "zeno", "--quick", "--out", str(tmp_path))
    changes: list[dict[str, Any]] = [
        {"name": ["x"]}, {"seed": "1"}, {"config": 3}, {"tags": []}, {"best": "high"},
        {"accuracy": [1, 2]}, {"loss": [[1, "x"]]}, {"stopped": 1}, {"seconds": None},
    ]  # fmt: skip
    for change in changes:
        path.write_text(line(head) + json.dumps({**run, **change}) + "\n")
        assert "line 2 of " in refused(capsys, *command), change
    path.write_text(line(head) + line({**run, "tags": {}}))
    assert "holds results of " in refused(capsys, *command)
    path.write_bytes(line(head).encode() + b"\xff\xfe\n")
    assert "line 2 of " in refused(capsys, *command)
