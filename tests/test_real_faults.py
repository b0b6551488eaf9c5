"""Clusters of processes to which everything is done at once, or one thing that must not matter."""

from __future__ import annotations

import json
import os
import signal
import socket
import sys
import threading
from collections.abc import Iterator
from itertools import cycle
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("cryptography")

from by_hand import PATIENCE, computed, keys, said, start, until
from liar import Liar, header
from nursery import Forked, Nursery, nursery

from fastgar.network import Address, wire
from fastgar.network.hello import Hello, agree, exchange
from fastgar.protocols.file import cluster_of, hash_of, read_cluster
from fastgar.protocols.inbox import ASK, CONTROL
from fastgar.protocols.launch import Launch
from fastgar.protocols.learning import Learning
from fastgar.protocols.process import _about

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="forks, and passes files on")

ROOT = Path(__file__).parent.parent
PLAIN: dict[str, Any] = {
    "protocol": {"name": "vanilla"}, "servers": {"count": 1}, "workers": {"count": 2},
}  # fmt: skip


@pytest.fixture(scope="module")
def forks() -> Iterator[Nursery]:
    with nursery() as made:
        yield made


def finish(launch: Launch) -> Any:
    """Wait until a cluster is done, and return what has come of it."""
    with launch:
        while not launch.over:
            launch.advance(0.05)
            assert launch.elapsed < PATIENCE, launch.states
        return launch.outcome()


def test_correct_nodes_learn_among_liars_crashes_stops_and_cuts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, forks: Nursery
) -> None:
    monkeypatch.syspath_prepend(str(ROOT))
    from asv_benchmarks import faults

    monkeypatch.setattr(faults, "PATIENCE", PATIENCE)
    document, plan, _ = faults.drawn("byzsgd", 0, 200)
    groups = [document[what] for what in ("servers", "workers")]
    assert [(each["count"], each["f"], each["byzantine"]) for each in groups] == [
        (5, 1, 1), (7, 2, 2)
    ]  # fmt: skip
    assert sorted(what for _, what, _, _ in plan) == sorted(faults.FAULTS)
    found = faults.run("byzsgd", 0, 200, tmp_path, forks.popen)
    assert found["error"] is None
    assert min(found["accuracy"].values()) > 0.9 and len(found["accuracy"]) == 4
    assert found["crashed"] == 2 and found["reconnects"] > 10


@pytest.mark.parametrize(("kind", "steps"), [("vanilla", 60), ("rbtm", 30)])
def test_nodes_are_killed_and_told_to_end_at_any_moment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, forks: Nursery, kind: str, steps: int
) -> None:
    monkeypatch.syspath_prepend(str(ROOT))
    from asv_benchmarks import kills

    monkeypatch.setattr(kills, "PATIENCE", PATIENCE)
    monkeypatch.setattr(kills, "EXITS", 0.5)  # the draws of this seed begin with a kill and an end
    found = kills.run(kind, 12, steps, tmp_path, forks, least=4)
    assert found["error"] is None and found["accuracy"] > 0.8
    assert found["kills"] and found["exits"]


def test_a_server_that_was_away_for_many_gathers_catches_up(tmp_path: Path, forks: Nursery) -> None:
    """And is then needed: the other two honest ones and the liar are no quorum without it."""
    document = {
        "protocol": {"gather_every": 1, "deadline_floor": 1.0},
        "servers": {"count": 5, "f": 1, "byzantine": 1, "attack": "reverse"},
        "workers": {"count": 4, "f": 1},
        "training": {"model": "logistic", "steps": 150, "evaluate_every": 10},
        "perturb": [
            "kill ps1 @ step 20", "restart ps1 @ step 60", "kill ps2 @ step 100",
            "restart ps2 @ step 150",
        ],
    }  # fmt: skip
    outcome = finish(Launch(cluster_of(document), tmp_path, popen=forks.popen))
    assert set(outcome.accuracy) == {"ps0", "ps1", "ps2", "ps3"} and outcome.lowest > 0.85


def test_a_leader_that_is_killed_is_succeeded(tmp_path: Path, forks: Nursery) -> None:
    document = {
        "protocol": {"name": "crash_tolerant"},
        "servers": {"count": 3, "f": 1},
        "workers": {"count": 2},
        "training": {"model": "logistic", "steps": 60, "evaluate_every": 5},
        "perturb": ["kill ps0 @ step 20"],
    }
    outcome = finish(Launch(cluster_of(document), tmp_path, popen=forks.popen))
    shown = [(line["step"], line["node"]) for line in outcome.lines if line["kind"] == "evaluation"]
    assert (5, "ps0") in shown
    assert {"ps1"} <= {node for step, node in shown if step >= 40} <= {"ps1", "ps2"}
    assert set(outcome.accuracy) == {"ps1", "ps2"} and outcome.lowest > 0.85
    models = [(tmp_path / name / "model.npy").read_bytes() for name in ("ps1", "ps2", "w0", "w1")]
    assert len(set(models)) == 1 and outcome.crashed == 1


def test_aggregathor_goes_on_without_a_worker(tmp_path: Path, forks: Nursery) -> None:
    document = {
        "protocol": {"name": "aggregathor", "pieces": 8},
        "servers": {"count": 1},
        "workers": {"count": 5, "f": 1},
        "training": {"model": "logistic", "steps": 30, "evaluate_every": 10},
        "perturb": ["kill w0 @ step 10"],
    }
    outcome = finish(Launch(cluster_of(document), tmp_path, popen=forks.popen))
    assert outcome.lowest > 0.85 and outcome.shares["w0"] < 1


def test_who_was_stopped_for_longer_than_it_waits_gives_nobody_up(
    tmp_path: Path, forks: Nursery
) -> None:
    document = {
        **PLAIN,
        "protocol": {"name": "vanilla", "give_up": 5.0, "starting_deadline": PATIENCE},
        "training": {"model": "logistic", "steps": 20},
        "perturb": ["pause ps0,w0,w1 @ step 5 for 8 s"],
    }
    outcome = finish(Launch(cluster_of(document), tmp_path, popen=forks.popen))
    assert outcome.seconds > 8 and outcome.lowest > 0.5


def test_nodes_with_a_part_of_a_core_are_late_and_no_more(tmp_path: Path, forks: Nursery) -> None:
    """Two servers and two workers run for 100 ms of 300, as under a quota that is used up.

    The others are no quorum without them.
    """
    document = {
        "protocol": {"agreement": "rbtm", "gather_every": 5},
        "servers": {"count": 5, "f": 1},
        "workers": {"count": 4, "f": 1},
        "training": {"model": "logistic", "steps": 20, "evaluate_every": 20},
    }
    slow, throttled, over = ("ps0", "ps1", "w0", "w1"), [], threading.Event()

    def popen(command: Any, **options: Any) -> Forked:
        made = forks.popen(command, **options)
        if any(Path(word).stem in slow for word in command):
            throttled.append(made)
        return made

    def throttle() -> None:
        for number, seconds in cycle(((signal.SIGSTOP, 0.1), (signal.SIGCONT, 0.2))):
            if over.wait(seconds) and number == signal.SIGSTOP:
                return  # all of them run
            for each in throttled:
                each.send_signal(number)

    thread = threading.Thread(target=throttle)
    launch = Launch(cluster_of(document), tmp_path, popen=popen)
    thread.start()
    try:
        outcome = finish(launch)
    finally:
        over.set()
        thread.join()
    assert len(throttled) == 4 and outcome.crashed == 0 and not outcome.convicted
    assert len(outcome.accuracy) == 5 and outcome.lowest > 0.75
    for name in slow:
        assert np.load(tmp_path / name / "model.npy").shape == (650,)


# Nodes by hand.


def test_who_leaves_is_waited_for_and_goes_on_and_a_second_one_ends(
    tmp_path: Path, forks: Nursery
) -> None:
    """One that is there is no obstacle to the end of the other, and all is as if none had left."""
    steps = 150
    document = {
        **PLAIN,
        "protocol": {"name": "vanilla", "deadline_ceiling": 1.0},
        "training": {"model": "logistic", "steps": steps, "evaluate_every": 50},
    }
    file = keys(tmp_path, document)
    ps0, w1 = (start(forks, file, name) for name in ("ps0", "w1"))
    started = [ps0, w1]
    try:
        assert "MB of messages, and is certified until" in said(ps0, "ps0 holds at most")
        said(ps0, "waits to start: w0\n")
        port = socket.create_server(("127.0.0.1", 0))
        free = f"127.0.0.1:{port.getsockname()[1]}"
        port.close()
        twin = start(forks, file, "w1", "--listen", free)
        assert twin.wait(PATIENCE) == 1
        log = (tmp_path / "w1.log").read_text()
        assert "another process uses the key of w1, says ps0: end it first" in log
        w0 = start(forks, file, "w0")
        started.append(w0)
        until((tmp_path / "w1" / "state").exists, "w1 did not begin")
        w1.send_signal(signal.SIGTERM)
        assert w1.wait(PATIENCE) == 143
        line = said(ps0, "ps0 waits for gradient of step")
        at = int(line.split("step ")[1].split()[0])
        assert line.endswith("from w1\n") and 0 < at < steps
        w1 = start(forks, file, "w1")
        started.append(w1)
        assert [each.wait(PATIENCE) for each in (ps0, w0, w1)] == [0, 0, 0]
    finally:
        for each in started:
            each.kill()
    cluster = read_cluster(file)
    learned = computed(cluster, Learning(cluster.training))
    for name in ("ps0", "w0", "w1"):
        assert np.load(tmp_path / name / "model.npy").tobytes() == learned.tobytes()


def memory(pid: int) -> int:
    """Return the bytes that a process has in memory."""
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def test_a_server_under_a_flood_goes_on_and_its_memory_stays(
    tmp_path: Path, forks: Nursery
) -> None:
    """Of 20,000 gradients that it had or cannot use, as fast as it reads them, and questions."""
    document = {
        "protocol": {"name": "vanilla", "rule": "median"},
        "servers": {"count": 1},
        "workers": {"count": 4, "f": 1},
        "training": {"model": "logistic", "steps": 10**6, "evaluate_every": 50},
    }
    file = keys(tmp_path, document)
    cluster = read_cluster(file)
    learning = Learning(cluster.training)
    d, run = len(learning.initial), wire.run_id(hash_of(cluster))
    results = tmp_path / "ps0" / "results.jsonl"

    def step() -> int:
        lines = results.read_text().splitlines() if results.exists() else []
        return int(json.loads(lines[-1])["step"]) if lines else -1

    started = [start(forks, file, name) for name in ("ps0", "w0", "w1", "w2")]
    try:
        until(lambda: step() >= 50, "the run did not begin")
        ps0 = cluster.nodes["ps0"]
        liar = Liar(file.parent, "w3", "ps0", Address(ps0.host, ps0.port, ps0.fingerprint))
        hello = Hello("w3", "ps0", run.hex(), "1" * 32, _about(d, "float32", learning))
        exchange(liar.channel, hello, [*range(len(cluster.kinds)), *CONTROL])
        agree(liar.channel, "ps0", None)
        gradient = list(cluster.kinds).index("gradient")
        asks = header(kind=ASK, dtype=0, run=run, length=1) + b"?"
        batch = b"".join(
            header(kind=gradient, run=run, step=at, length=4 * d) + poison + asks
            for at in range(25)
            for poison in (
                np.full(d, np.nan, np.float32).tobytes(), np.full(d, 3e38, np.float32).tobytes(),
            )
        )  # fmt: skip
        before = after = 0
        for turn in range(400):
            liar.send(batch)
            if turn == 40:
                before = memory(started[0].pid)
        after, at = memory(started[0].pid), step()
        assert not liar.is_closed(0.5)
        assert after - before < before // 10, (before, after)
        until(lambda: step() > at, "the run stands still")
        assert json.loads(results.read_text().splitlines()[-1])["accuracy"] > 0.5
        assert started[0].poll() is None
        liar.close()
    finally:
        for each in started:
            each.kill()
