"""Training under attack: the loop, its results file, the command, and the attacks."""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from statistics import NormalDist

import numpy as np
import pytest

import fastgar as fg
from fastgar.attacks import attack, empire, list_attacks, little, sign_flip
from fastgar.cli import main

torch = pytest.importorskip("torch")
pytest.importorskip("sklearn")
pytest.importorskip("matplotlib")

from fastgar.train import Config, load, prepare, train  # noqa: E402
from fastgar.train.results import Mismatch, Results  # noqa: E402


@pytest.fixture(autouse=True, scope="module")
def _one_thread() -> Iterator[None]:
    """Let torch use one thread, as the command does: the matrices are small."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


HONEST = np.random.default_rng(1).standard_normal((9, 37)).astype(np.float32) + 0.5


# ----------------------------------------------------------------------------------- attacks


@pytest.mark.parametrize("name", list_attacks())
def test_attacks_are_the_same_on_numpy_and_torch(name: str) -> None:
    before = HONEST.copy()
    ours = attack(name)(HONEST, 2)
    theirs = attack(name)(torch.from_numpy(HONEST), 2)
    assert ours.shape == (37,) and ours.dtype == np.float32
    assert isinstance(theirs, torch.Tensor) and theirs.dtype == torch.float32
    np.testing.assert_allclose(ours, theirs.numpy(), rtol=1e-5, atol=1e-6)
    assert np.array_equal(HONEST, before)


def test_attacks_send_what_the_papers_say() -> None:
    mean, deviation = HONEST.mean(0), HONEST.std(0)
    np.testing.assert_allclose(little(HONEST), mean - 1.5 * deviation, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(little(HONEST, k=-2), mean + 2 * deviation, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(empire(HONEST), -0.1 * mean, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(sign_flip(HONEST), -mean)


def test_little_can_choose_its_factor() -> None:
    # 11 rows: 6 make a majority, so that 5 of the 9 honest ones may lie further in.
    k = NormalDist().inv_cdf(5 / 9)
    np.testing.assert_allclose(little(HONEST, 2, k="auto"), little(HONEST, k=k), rtol=1e-6)
    with pytest.raises(ValueError, match="minority"):
        little(HONEST, 12, k="auto")


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("litle", "unknown attack 'litle': did you mean 'little'"),
        ("little(kk=2)", "unknown option of little 'kk'"),
        ("little(2)", "is no attack"),
        ("little | empire", "is no attack"),
        ("little(k=open)", "is no attack"),
        ("little(k='most')", "k must be"),
        ("", "is no attack"),
    ],
)
def test_an_attack_that_cannot_be_is_refused(spec: str, message: str) -> None:
    with pytest.raises(ValueError, match=message.replace("(", r"\(")):
        attack(spec)


def test_an_attack_prints_as_it_was_written() -> None:
    for spec in (" little ", "empire(k=10)", "little(k='auto')"):
        assert attack(str(attack(spec))) == attack(spec)
    assert str(attack(" little ")) == "little"


# -------------------------------------------------------------------------------------- loop


def finished(rule: str, against: str, config: Config) -> object:
    run = prepare(rule, against, config)
    for _ in train(run, config, load("digits")):
        pass
    return run


def test_averaging_falls_and_robust_rules_do_not() -> None:
    # Nine gradients g and two of -9 g: their mean is -9/11 g, so that averaging climbs.
    config = Config(steps=100)
    mean = finished("mean", "empire(k=10)", config)
    assert max(mean.late) < 0.3
    for rule in ("multi_krum", "geometric_median", "nnm | trimmed_mean"):
        assert min(finished(rule, "empire(k=10)", config).late) > 0.9
    assert min(finished("mean", "none", config).late) > 0.9


def test_mean_has_the_same_trajectory_with_momentum_at_workers_and_server() -> None:
    # The mean is linear; Krum picks one row and is not.
    losses = {}
    for rule in ("mean", "krum"):
        for where in ("worker", "server"):
            config = Config(steps=20, momentum_at=where)
            losses[rule, where] = [e.loss for e in finished(rule, "none", config).evaluations]
    np.testing.assert_allclose(losses["mean", "worker"], losses["mean", "server"], rtol=1e-3)
    assert not np.allclose(losses["krum", "worker"], losses["krum", "server"], rtol=1e-3)


def test_a_run_depends_on_its_seed_alone() -> None:
    config = Config(steps=5, declared=3)
    first, again = (finished("krum", "little", config).evaluations for _ in range(2))
    other = finished("krum", "little", Config(steps=5, declared=3, seed=1)).evaluations
    assert first == again
    assert first != other


def test_liars_weigh_in_the_mean_as_many_as_they_are() -> None:
    run = finished("mean", "little", Config(steps=4, workers=8, byzantine=3))
    assert run.weight == pytest.approx(3 / 8)
    assert finished("mean", "none", Config(steps=2)).weight is None
    assert finished("krum", "empire(k=1e6)", Config(steps=2)).weight == 0


def test_liars_never_sit_in_the_trusted_row() -> None:
    for seed in range(5):
        config = Config(steps=2, seed=seed, workers=5, byzantine=2)
        assert finished("monna", "empire(k=1e6)", config).weight == 0


def test_centred_clipping_starts_at_the_last_aggregate() -> None:
    seen = []
    run = prepare("centered_clipping(tau=1.0)", "little", Config(steps=3))
    rule = run.rule

    class Spy:
        refs, step = rule.refs, 0

        def at(self, step: int) -> fg.Rule:
            return rule.at(step)

        def __call__(self, X: object, *, start: object) -> object:
            aggregate = rule(X, start=start)
            seen.append((start, aggregate))
            return aggregate

    run.rule = Spy()  # type: ignore[assignment]
    list(train(run, Config(steps=3), load("digits")))
    assert torch.equal(seen[0][0], torch.zeros_like(seen[0][0]))
    assert torch.equal(seen[1][0], seen[0][1]) and torch.equal(seen[2][0], seen[1][1])


def test_a_run_ends_when_its_loss_is_not_finite() -> None:
    run = finished("mean", "none", Config(steps=50, lr=1e30))
    assert run.stopped is not None and run.stopped.startswith("loss not finite at step")
    assert len(run.seconds) < 50
    assert not math.isfinite(run.evaluations[-1].loss)


def test_the_loop_is_short_enough_to_read_aloud() -> None:
    assert len(Path(sys.modules[train.__module__].__file__).read_text().splitlines()) <= 250


# ----------------------------------------------------------------------------------- results


def lines(folder: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in (folder / "results.jsonl").read_text().splitlines()]


SMALL = ["train", "--steps", "6", "--rule", "mean", "--rule", "krum", "--attack", "little"]


def test_the_command_writes_results_a_table_and_a_picture(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "deep" / "out"
    threads = torch.get_num_threads()
    assert main([*SMALL, "--attack", "empire", "--out", str(out)]) == 0
    assert torch.get_num_threads() == threads
    records = lines(out)
    assert [r["kind"] for r in records] == ["config", *(["evaluation"] * 6 + ["run"]) * 4]
    assert records[0]["steps"] == 6 and records[0]["fastgar"] == fg.__version__
    runs = [r for r in records if r["kind"] == "run"]
    assert [(r["rule"], r["attack"]) for r in runs] == [
        ("mean", "little"), ("krum", "little"), ("mean", "empire"), ("krum", "empire"),
    ]  # fmt: skip
    assert runs[0]["weight"] == pytest.approx(2 / 11)
    assert all(r["milliseconds"] > 0 and 0 <= r["accuracy"] <= 1 for r in runs)
    assert (out / "accuracy.png").read_bytes().startswith(b"\x89PNG")
    printed = capsys.readouterr()
    assert "weight of liars" in printed.out and "18.2%" in printed.out
    assert "[4/4] krum, empire" in printed.err  # plain lines where there is no terminal


def test_a_second_call_takes_up_where_the_first_ended(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = ["--out", str(tmp_path)]
    assert main([*SMALL, *out, "--quiet"]) == 0
    before = lines(tmp_path)
    table = capsys.readouterr()
    assert table.err == ""
    assert main([*SMALL, *out]) == 0
    again = capsys.readouterr()
    assert lines(tmp_path) == before
    assert "from an earlier run" in again.err
    assert again.out == table.out
    assert main([*SMALL, *out, "--rule", "median", "--quiet"]) == 0
    assert lines(tmp_path)[: len(before)] == before and len(lines(tmp_path)) > len(before)


def test_what_an_interrupted_run_left_is_dropped(tmp_path: Path) -> None:
    assert main([*SMALL, "--out", str(tmp_path), "--quiet"]) == 0
    path = tmp_path / "results.jsonl"
    whole = path.read_text().splitlines(keepends=True)
    path.write_text("".join(whole[:11]) + '{"kind": "evalu')  # in the midst of krum's run
    config = Config(steps=6)
    with Results(path, config) as results:
        assert [run["rule"] for run in results.runs] == ["mean"]
    assert len(lines(tmp_path)) == 8
    assert main([*SMALL, "--out", str(tmp_path), "--quiet"]) == 0
    records = lines(tmp_path)
    losses = [r.get("loss") for r in records]
    assert losses == [json.loads(line).get("loss") for line in whole]


def test_results_of_other_settings_are_not_mixed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*SMALL, "--out", str(tmp_path), "--quiet"]) == 0
    before = lines(tmp_path)
    with pytest.raises(SystemExit) as refused:
        main([*SMALL, "--out", str(tmp_path), "--lr", "0.2"])
    assert refused.value.code == 2
    message = capsys.readouterr().err
    assert "lr=0.05" in message and "lr=0.2" in message and "--fresh" in message
    assert lines(tmp_path) == before
    assert main([*SMALL, "--out", str(tmp_path), "--lr", "0.2", "--fresh", "--quiet"]) == 0
    assert lines(tmp_path)[0]["lr"] == 0.2


@pytest.mark.parametrize("text", ["my notes\nof last week\n", "one line", '{"kind": "run"}\n'])
def test_a_file_of_something_else_is_left_alone(text: str, tmp_path: Path) -> None:
    path = tmp_path / "results.jsonl"
    path.write_text(text)
    with pytest.raises(Mismatch, match=r"is no record|does not begin"):
        Results(path, Config())
    assert path.read_text() == text


def test_a_loss_that_is_not_finite_keeps_the_results(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["train", "--steps", "30", "--lr", "1e30", "--rule", "mean", "--attack", "none"]
    assert main([*command, "--out", str(tmp_path)]) == 0
    records = lines(tmp_path)
    assert records[-2]["loss"] is None and "not finite" in records[-1]["stopped"]
    assert "loss not finite at step" in capsys.readouterr().out
    assert (tmp_path / "accuracy.png").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--rule", "krumm"], "unknown rule 'krumm': did you mean 'krum'"),
        (["--rule", "krum(m=2)"], "unknown option of krum 'm'"),
        (["--rule", "nnm"], "put a rule after it, as in nnm | krum"),
        (["--rule", "fltrust"], "needs a trusted gradient"),
        (["--attack", "empier"], "unknown attack 'empier': did you mean 'empire'"),
        (["--declared", "5"], "multi_krum needs n >= 2f + 3: with f=5 that is 13 rows, got 11"),
        (["--declared", "-1"], "declared must be at least 0, got -1"),
        (["--byzantine", "11"], "must leave an honest worker"),
        (["--workers", "0"], "workers must be at least 1, got 0"),
        (["--workers", "2000"], "workers must be at most 1437"),
        (["--steps", "0"], "steps must be at least 1"),
        (["--lr", "nan"], "lr must be a finite number above 0, got nan"),
        (["--momentum", "1"], "momentum must be at least 0 and below 1, got 1.0"),
        (["--batch", "0"], "batch must be at least 1"),
        (["--data", "digit"], "unknown data set 'digit': did you mean 'digits'"),
    ],
)
def test_bad_input_is_refused_before_anything_is_written(
    arguments: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    with pytest.raises(SystemExit) as refused:
        main(["train", *arguments, "--out", str(out)])
    assert refused.value.code == 2
    assert message in capsys.readouterr().err
    assert not out.exists()


def test_a_folder_that_cannot_be_written_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(SystemExit):
        main([*SMALL, "--out", str(tmp_path / "file" / "out")])
    assert "cannot write to --out" in capsys.readouterr().err


def test_more_liars_than_declared_is_possible_and_noted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--byzantine", "4", "--declared", "1", "--out", str(tmp_path)]
    assert main([*SMALL, *arguments]) == 0
    assert "note: 4 workers attack and the rules expect 1" in capsys.readouterr().err


@pytest.mark.skipif(os.name != "posix", reason="signals as on POSIX")
def test_ctrl_c_keeps_what_there_is(tmp_path: Path) -> None:
    root = Path(fg.__file__).parent.parent
    arguments = ["train", "--steps", "20000", "--rule", "mean", "--attack", "none"]
    code = (  # a process started in the background may have been told to ignore the signal
        "import signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        f"from fastgar.cli import main; sys.exit(main({[*arguments, '--out', str(tmp_path)]!r}))"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": str(root)},
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    path = tmp_path / "results.jsonl"
    deadline = time.monotonic() + 60
    while not (path.exists() and path.read_text().count("\n") > 1):
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "interrupted at step" in out and "interrupted" in err and "Traceback" not in err
    assert (tmp_path / "accuracy.png").exists()
    assert lines(tmp_path)[-1]["kind"] == "evaluation"
