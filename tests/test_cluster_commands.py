"""What ``cluster``, ``simulate``, ``keys`` and ``node`` say: tables, views, notes and refusals."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch")
pytest.importorskip("cryptography")

from fastgar.cli.cluster_report import drawn, harmless, status, table_of_protocols
from fastgar.cli.main import main
from fastgar.cli.refuse import alone
from fastgar.progress import Scene
from fastgar.protocols.cluster import Cluster
from fastgar.protocols.file import cluster_of, to_toml
from fastgar.protocols.launch import Launch
from fastgar.protocols.names import DATA, MODELS
from fastgar.protocols.outcome import Outcome
from fastgar.protocols.registry import PROTOCOLS
from fastgar.protocols.reports import Reports
from fastgar.protocols.results import Results
from fastgar.train import data, models

SMALL: dict[str, Any] = {
    "servers": {"count": 5, "f": 1, "byzantine": 1, "attack": "reverse"},
    "workers": {"count": 4, "f": 1},
    "training": {"model": "logistic", "steps": 20},
}
ONE = {"servers": {"count": 1}, "protocol": {"name": "vanilla"}}


def refused(capfd: pytest.CaptureFixture[str], *words: Any) -> str:
    """Return the one sentence with which a command is refused."""
    capfd.readouterr()
    with pytest.raises(SystemExit) as end:
        main([str(word) for word in words])
    error = capfd.readouterr().err
    assert end.value.code == 2 and error.count("\n") == 1, error
    return error


# Refusals.


MISSPELLED = {
    "cluster --protocol byzsdg": "unknown protocol 'byzsdg': did you mean 'byzsgd'?",
    "cluster --rule krmu": "unknown rule 'krmu': did you mean 'krum'?",
    "simulate --model mpl": "unknown model 'mpl': did you mean 'mlp'?",
    "simulate --data mnits": "unknown data set 'mnits': did you mean 'mnist'?",
    "cluster --split idi": "unknown split 'idi': did you mean 'iid'?",
    "cluster --attack littel": "unknown attack 'littel': did you mean 'little'?",
    "cluster --out file": "cannot write to --out file",
    "keys a:1 a:1 --out keys": "addresses 1 and 2 are the same",
    "node --cluster none.toml --key none.pem": "cannot read none.toml",
}


def test_what_is_misspelled_is_refused_before_torch_is_imported(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    code = f"""
import sys
from fastgar.cli import main
for words in {list(MISSPELLED)!r}:
    try:
        main(words.split())
    except SystemExit as end:
        print(end.code, *{{"torch", "numba", "matplotlib", "scipy"}} & set(sys.modules))
"""
    root = str(Path(__file__).parent.parent)
    result = subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, "PYTHONPATH": root}, cwd=tmp_path,
        capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert result.stdout == "2\n" * len(MISSPELLED), result
    for line, sentence in zip(result.stderr.splitlines(), MISSPELLED.values(), strict=True):
        assert sentence in line


def test_names_are_those_of_what_can_be_built() -> None:
    assert (models.MODELS, data.DATA) == (MODELS, DATA)


@pytest.mark.parametrize("command", ["cluster", "simulate"])
def test_what_does_not_fit_is_refused_in_a_sentence(
    command: str, capfd: pytest.CaptureFixture[str]
) -> None:
    assert "cnn-cifar needs samples of shape" in refused(capfd, command, "--model", "cnn-cifar")
    assert "option of mlp 'hiden'" in refused(capfd, command, "--model", "mlp(hiden=3)")


def test_a_cluster_file_that_is_wrong_is_named(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "own.toml"
    node = ["node", "--key", tmp_path / "none.pem"]
    keys = ["keys", "a:1", "b:1", "c:1", "--out", tmp_path / "keys"]
    for content, sentence in {
        b"steps = 3\n[servers\n": "no TOML document: Expected ']'",
        b"[servers]\ncuont = 5\n": "unknown setting of [servers] 'cuont': did you mean 'count'?",
        b"[servers]\ncount = 'a'\n": "count of [servers] must be an integer, got 'a'",
        b"\xff": "can't decode byte 0xff",
    }.items():
        file.write_bytes(content)
        for command in (["cluster"], ["simulate"], node, keys):
            error = refused(capfd, *command, "--cluster", file)
            assert f"fastgar {command[0]}: {file}: " in error and sentence in error
    file.write_bytes(b"[servers\n")
    assert "at line 1, column 9" in refused(capfd, "cluster", "--cluster", file)
    file.write_text(to_toml(cluster_of(SMALL)))
    error = refused(capfd, "simulate", "--cluster", file, "--servers", 4)  # no fault of the file
    assert error.startswith("fastgar simulate: byzsgd needs n_s >=")


@pytest.mark.parametrize(
    "command", ["cluster --protocol vanilla", "simulate", "train", "reproduce zeno"]
)
def test_an_out_that_another_command_writes_to_is_refused(
    command: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    with alone(tmp_path, "--out"):
        error = refused(capfd, *command.split(), "--out", tmp_path)
        assert f"cannot write to --out {tmp_path}: another command writes there now" in error
        assert not (tmp_path / "results.jsonl").exists()
    with alone(tmp_path, "--out"):
        pass


@pytest.mark.parametrize("command", ["cluster", "simulate", "keys"])
def test_an_out_that_cannot_be_written_to_is_refused(
    command: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").touch()
    words = [command, *["a:1", "b:1"] * (command == "keys"), "--out"]
    for out, why in {
        tmp_path / "file": f"{tmp_path / 'file'} is no folder",
        tmp_path / "file" / "in": f"{tmp_path / 'file'} is no folder",
        Path("/proc/nowhere"): "no file can be made there",
        Path("/proc/self"): "no file can be made there",
    }.items():
        assert f"cannot write to --out {out}" in (error := refused(capfd, *words, out))
        assert error.endswith(f": {why}\n")
    closed = tmp_path / "closed"
    closed.mkdir(0o500)
    if os.geteuid():  # nothing is closed to root
        assert "Permission denied" in refused(capfd, *words, closed)
    assert not list(closed.iterdir())


def test_two_equal_addresses_are_named(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "keys"
    error = refused(capfd, "keys", "a:1", "b:1", "[::1]:7", "b:1", "c:1", "--out", out)
    assert "addresses 2 and 4 are the same, b:1: w0 and w2 need one each" in error
    assert not out.exists()


# Notes.


def test_who_withstands_no_liar_is_told(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    none = "no lying server (f = 0 of 2: f = 1 takes 5)"
    main(["keys", "a:1", "b:1", "c:1", "--servers", "2", "--out", str(tmp_path / "keys")])
    said = capfd.readouterr()
    assert said.err == (
        f"note: this byzsgd withstands {none} and no lying worker (f = 0 of 1: f = 1 takes 4)\n"
    )
    assert "(byzsgd; 2 servers, f = 0; 1 worker, f = 0)" in said.out
    few = {"servers": {"count": 2}, "workers": {"count": 4, "f": 1}}
    assert harmless(cluster_of(few)) == f"this byzsgd withstands {none}"
    assert harmless(cluster_of(SMALL)) == ""
    for name in ("vanilla", "crash_tolerant"):  # which do not claim to
        assert harmless(cluster_of({**ONE, "protocol": {"name": name}})) == ""
    for resilience, least in (("weak", 5), ("strong", 7)):
        thor = {"name": "aggregathor", "resilience": resilience}
        cluster = cluster_of({**ONE, "protocol": thor, "workers": {"count": 4}})
        assert harmless(cluster) == (
            f"this aggregathor withstands no lying worker (f = 0 of 4: f = 1 takes {least})"
        )


def test_the_least_number_that_is_told_is_the_least_that_is_accepted() -> None:
    for name in ("byzsgd", "aggregathor"):
        for resilience in ("weak", "strong")[: 1 + (name == "aggregathor")]:
            protocol = {"name": name, **({"resilience": resilience} if name != "byzsgd" else {})}
            servers = {"count": 5, "f": 1} if name == "byzsgd" else {"count": 1}
            tables: dict[str, Any] = {"protocol": protocol, "servers": servers}
            told = harmless(cluster_of({**tables, "workers": {"count": 3}}))
            least = int(told.removesuffix(")").split()[-1])
            cluster_of({**tables, "workers": {"count": least, "f": 1}})
            with pytest.raises(ValueError, match="n_w >="):
                cluster_of({**tables, "workers": {"count": least - 1, "f": 1}})


# The table and the view.


def outcome(cluster: Cluster, **more: Any) -> Outcome:
    names = [n for n in cluster.of_role("server") if n not in cluster.liars]
    shares = dict.fromkeys(cluster.of_role("worker"), 1.0)
    found = Outcome(
        cluster, 0, dict.fromkeys(names, 1.0), 0.0123456, 10**7, 10**10, 12345.6, False,
        {"skipped": 0}, 0, {}, shares, {}, {},
    )  # fmt: skip
    return replace(found, **more)


def test_the_table_fits_80_columns() -> None:
    tables = {"servers": {"count": 11, "f": 3}, "workers": {"count": 10, "byzantine": 3}}
    clusters = [
        cluster_of({**tables, **ONE, "protocol": {"name": name}, "training": {"steps": 100}})
        if name in ("vanilla", "aggregathor")
        else cluster_of({**tables, "protocol": {"name": name}, "training": {"steps": 100}})
        for name in PROTOCOLS
    ]
    table = table_of_protocols([outcome(cluster) for cluster in clusters])
    assert max(map(len, table.splitlines())) <= 80
    assert all(word in table for word in ("crash_tolerant", "10, 3 lie", "100000", "12345.6"))


def test_a_summary_says_again_what_it_was_written_from(tmp_path: Path) -> None:
    cluster = cluster_of(SMALL)
    found = outcome(cluster, taken_up=2, accuracy={"ps0": 0.5, "ps1": float("nan")})
    with Results(tmp_path, cluster) as results:
        results.append(found.summary())
    with Results(tmp_path, cluster) as results:
        (line,) = results.of_processes()
    again = Outcome.of_summary(cluster, line)
    assert str(again) == str(found)
    assert table_of_protocols([again]) == table_of_protocols([found])


class Fake:
    """As much of a launch as is drawn."""

    elapsed = 12.0

    def __init__(self, cluster: Cluster, before: list[dict[str, Any]] | None = None) -> None:
        self.cluster, self.written = cluster, list[dict[str, Any]]()
        self.killed = set[str]()
        self.reports = Reports(cluster, self.written.append, before or [])
        self.states, self.lines = self.reports.states, self.reports.lines

    def take(self, name: str, kind: str, **event: Any) -> None:
        self.reports.take({"from": name, "kind": kind, **event})

    def status(self, name: str, **event: Any) -> None:
        silent = {"step": 0, "loss": 0.5, "waiting": [], "believed": []}
        self.take(name, "status", **{**silent, **event})

    @property
    def head(self) -> str:
        launch: Any = self
        return drawn(launch)[0]


def test_the_view_says_what_a_start_waits_for() -> None:
    launch = Fake(cluster_of(SMALL))
    head = "byzsgd 12 s, step 0 of 20, starting: "
    assert launch.head == head + "all 9 nodes importing"
    for name in ("ps0", "w0"):
        launch.take(name, "starts", what="loading data")
    assert launch.head == head + "ps0, w0 loading data, 7 of 9 nodes importing"
    for name in launch.cluster.names[:-1]:
        launch.status(name)
    assert launch.head == head + "w3 importing"
    launch.status("w3")
    assert launch.head == head + "all nodes are up"
    launch.take("ps0", "evaluation", node="ps0", step=0, accuracy=0.25)
    assert launch.head == "byzsgd 12 s, step 0 of 20, accuracy 25.0 %"


def test_the_view_names_an_estimate_and_fits_a_screen() -> None:
    launch: Any = Fake(cluster_of(SMALL))
    for i, name in enumerate(launch.cluster.names):
        waits = [n for n in launch.cluster.names if n != name]
        launch.status(name, step=i, waiting=waits, believed=["w0"], reconnects={"w1": 2})
    for name in ("ps0", "ps1", "ps2", "ps3"):
        launch.take(name, "evaluation", node=name, step=3, accuracy=0.5, sketch=[float(name[2])])
    assert launch.head == "byzsgd 12 s, step 3 of 20, accuracy 50.0 %, spread about 3"
    launch.reports.line({"kind": "spread", "step": 20, "spread": 2.5})
    assert launch.head.endswith("spread 2.5")
    assert status(launch).endswith("waits for ps0, ps1, ps2, ps3, ps4, w0, w1, w2, ...")
    assert "left out w1, w2, w3  reconnects 2" in drawn(launch)[1]
    assert all(len(line) < 80 for line in drawn(launch))


def test_a_scene_is_never_higher_than_the_screen(monkeypatch: pytest.MonkeyPatch) -> None:
    """What has scrolled away cannot be drawn over."""
    written: list[str] = []
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    monkeypatch.setattr("sys.stderr.write", written.append)
    monkeypatch.setattr("shutil.get_terminal_size", lambda: os.terminal_size((80, 24)))
    scene = Scene()
    for _ in range(2):
        scene.show("", [f"line {i}" for i in range(40)])
    assert written[1].count("\n") == 23 and written[1].startswith("\x1b[23A")
    assert written[1].endswith("line 21\n... and 18 lines more\n")


# A run that is taken up.


def test_what_was_counted_before_an_interruption_counts(tmp_path: Path) -> None:
    cluster = cluster_of(SMALL)
    counts = {
        "messages": 10, "bytes": 1000, "skipped": 1, "waited_for": {"w1": 2}, "used": {"w0": 3},
        "not_finite": {"w2": 1}, "convicted": {"ps4": 7}, "traffic": {"5": [8, 800]},
    }  # fmt: skip
    first = Fake(cluster)
    first.take("ps0", "evaluation", node="ps0", step=5, accuracy=0.25)
    for name in ("ps0", "ps4", "w0"):
        first.status(name, **counts)
    first.reports.died("w0")  # and does not come back
    first.take("ps0", "ended", step=5, **{**counts, "messages": 11})
    totals = first.reports.all_lives()
    assert (totals.messages, totals.bytes, totals.crashed, totals.parts) == (31, 3000, 1, 1)
    assert (totals.used, totals.waited_for) == ({"w0": 3}, {"w1": 4})  # liars and workers left out
    totals.seconds, totals.killed = 9.0, ["w0"]
    with Results(tmp_path / "run", cluster) as results:
        for line in (*first.written, totals.line()):
            results.append(line)
        results.append({"kind": "so_far", "parts": "1"})  # damaged
    with Results(tmp_path / "run", cluster) as results:
        lines = results.of_processes()
        assert results.of_seeds() == []
    second = Fake(cluster, lines)
    assert second.states["ps0"].accuracy == 0.25 and second.states["ps0"].step == 5
    second.status("ps0", **counts)
    second.take("ps0", "convicted", node="ps4", step=7)
    second.take("ps0", "evaluation", node="ps0", step=5, accuracy=0.25)  # said again
    totals = second.reports.all_lives()
    assert (totals.messages, totals.parts, totals.traffic) == (41, 2, {5: [32, 3200]})
    assert (totals.seconds, totals.crashed, totals.convicted) == (9.0, 1, {"ps4": 7})
    launch = Launch(cluster, tmp_path, before=lines)
    launch.processes.end(())
    assert launch.elapsed >= 9.0 and launch.killed == {"w0"}


def test_what_was_done_to_a_cluster_is_not_done_again(tmp_path: Path) -> None:
    cluster = cluster_of({**SMALL, "perturb": ["kill w1 @ step 2", "pause w0 @ 99 s for 1 s"]})
    first = Launch(cluster, tmp_path)
    first.processes.end(())
    first.states["ps0"].step = 3
    first.advance(0.0)
    line = first._totals().line()
    assert line["killed"] == ["w1"] and line["perturbed"] == ["kill w1 @ step 2"]
    second = Launch(cluster, tmp_path, before=[line])
    second.processes.end(())
    second.states["ps0"].step = 3
    second.advance(0.0)
    assert second._totals().crashed == 1 and second.killed == {"w1"}
