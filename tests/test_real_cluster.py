"""Whole clusters of processes: what they learn, what is done to them, and how they end."""

from __future__ import annotations

import os
import random
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("cryptography")

from fastgar.cli.main import main
from fastgar.network import make_key
from fastgar.protocols.cluster import Address as Place
from fastgar.protocols.cluster import Group
from fastgar.protocols.file import cluster_of, hash_of, read_cluster, to_toml
from fastgar.protocols.inbox import ASK, NodeInbox
from fastgar.protocols.launch import Launch
from fastgar.protocols.learning import Learning
from fastgar.protocols.lies import work_of
from fastgar.protocols.one_process import in_one_process
from fastgar.protocols.outcome import Outcome
from fastgar.protocols.pool import Pool
from fastgar.protocols.process import NodeProcess
from fastgar.protocols.record import Record
from fastgar.protocols.simulated import Simulation
from fastgar.protocols.storage import Disk, Memory
from fastgar.protocols.totals import Totals
from fastgar.train.threads import threads_for

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")

PATIENCE = 400.0  # seconds for what takes a few on a machine that is not busy
COMMAND = [sys.executable, "-m", "fastgar.cli"]
VANILLA: dict[str, Any] = {
    "protocol": {"name": "vanilla"},
    "servers": {"count": 1},
    "workers": {"count": 2},
    "training": {"model": "logistic", "steps": 5},
}


def until(condition: Any, what: str) -> Any:
    """Wait until something holds, and return it."""
    end = time.monotonic() + PATIENCE
    while not (found := condition()):
        assert time.monotonic() < end, what
        time.sleep(0.05)
    return found


def processes(folder: Path) -> dict[int, str]:
    """Return the command lines of processes that name a folder, other than this one."""
    found = {}
    for entry in Path("/proc").iterdir():
        with suppress(OSError):
            line = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode()
            if entry.name.isdecimal() and str(folder) in line and int(entry.name) != os.getpid():
                found[int(entry.name)] = line
    return found


@contextmanager
def started(*arguments: Any, **environment: str) -> Iterator[subprocess.Popen[str]]:
    """Run a command in a session of its own, of which nothing is left afterwards."""
    process = subprocess.Popen(
        [*COMMAND, *map(str, arguments)], stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        text=True, env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
    )  # fmt: skip
    try:
        yield process
    finally:
        process.kill()
        process.wait()
        assert process.stdout is not None
        process.stdout.close()


def said(process: subprocess.Popen[str], words: str) -> str:
    """Return the first line that a process prints with some words in it."""
    assert process.stdout is not None
    lines = []
    for line in process.stdout:
        lines.append(line)
        if words in line:
            return line
    raise AssertionError(f"it ended without {words!r}: {lines}")


def rest(process: subprocess.Popen[str]) -> str:
    """Return what a process still prints, once it has ended."""
    text = process.communicate(timeout=PATIENCE)[0]
    assert "Traceback" not in text and "Fatal" not in text, text
    return text


# What is learned.


def test_the_same_bytes_in_one_process_simulated_real_and_stopped_in_the_middle(
    tmp_path: Path,
) -> None:
    cluster = cluster_of(
        {
            "protocol": {"gather_every": 7, "agreement": "rbtm"},
            "servers": {"count": 2},
            "workers": {"count": 2},
            "training": {"model": "logistic", "steps": 150, "evaluate_every": 5},
        }
    )
    assert cluster.training.momentum > 0
    learning = Learning(cluster.training)
    one = in_one_process(cluster, work_of(cluster, learning)("w0"))
    record = Record(cluster, learning)
    simulation = Simulation(cluster, 3, work_of(cluster, learning), record, lambda name: None)
    with threads_for(len(one), cluster.training):
        assert simulation.run(record.finished)
    want = dict.fromkeys(cluster.names, one.tobytes())
    assert {name: node.result.tobytes() for name, node in record.ended_nodes.items()} == want

    lines: list[dict[str, Any]] = []

    def run(folder: Path, steps: int) -> Outcome:
        end = time.monotonic() + PATIENCE
        with Launch(cluster, folder, lines.append, list(lines)) as launch:
            while max(state.step for state in launch.states.values()) < steps or (
                steps == cluster.steps and not launch.over
            ):
                launch.advance(0.02)
                assert time.monotonic() < end, launch.states
            if steps < cluster.steps:
                launch.__exit__(KeyboardInterrupt, None, None)
            return launch.outcome()

    def at(name: str) -> int:
        state = Disk(tmp_path / name / "state", f"{name} {hash_of(cluster).hex()}").read()
        return -1 if state is None else state.step

    run(tmp_path, 20)
    assert all(15 <= at(name) < cluster.steps for name in cluster.names)
    interrupted = Totals.of(lines)
    outcome = run(tmp_path, cluster.steps)
    found = {name: np.load(tmp_path / name / "model.npy").tobytes() for name in cluster.names}
    assert found == want
    assert not processes(tmp_path)

    # What is told is of the whole run: what was sent again only adds to it.
    assert outcome.taken_up == 1
    assert 0 < interrupted.seconds < outcome.seconds
    assert 0 < interrupted.messages < outcome.messages
    traffic = [line for line in outcome.lines if line["kind"] == "traffic"]
    assert [line["step"] for line in traffic] == list(range(5, 151, 5))
    assert all(line["messages"] >= 8 for line in traffic)  # 2 models and 2 gradients to 2 each
    assert outcome.messages >= 8 * cluster.steps
    evaluated = [
        (line["node"], line["step"], line["accuracy"])
        for lines in (record.lines, outcome.lines)
        for line in lines
        if line["kind"] == "evaluation"
    ]
    assert sorted(evaluated) == sorted(evaluated[: len(evaluated) // 2] * 2)
    assert max(outcome.shares.values()) == 1.0


def test_the_same_bytes_in_one_process_and_as_bfloat16_over_links(tmp_path: Path) -> None:
    """Two servers and two workers, each in a thread of this process."""
    cluster = cluster_of(
        {
            "protocol": {"gather_every": 3, "wire": "bfloat16"},
            "servers": {"count": 2},
            "workers": {"count": 2},
            "training": {"model": "logistic", "steps": 10},
        }
    )
    nodes = {
        name: Place("127.0.0.1", port, make_key(tmp_path / f"{name}.pem", name))
        for name, port in zip(cluster.names, ports(4), strict=True)
    }
    cluster = replace(cluster, nodes=nodes)
    learning = [Learning(cluster.training) for _ in cluster.names]
    one = in_one_process(cluster, work_of(cluster, learning[0])("w0"))
    processes = []
    for name, own in zip(cluster.names, learning, strict=True):
        key, record = tmp_path / f"{name}.pem", Record(cluster, own)
        processes.append(NodeProcess(cluster, name, key, own, record, Memory()))
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(NodeProcess.run, processes))
    assert {model.tobytes() for model in found} == {one.tobytes()}
    d = len(one)
    for process in processes:
        assert set(process.links.format.kinds.values()) == {(2 * d, "bfloat16"), (1, "bytes")}
        assert sum(count for _, count in process.watcher.traffic.values()) % (2 * d) == 0


# How it ends.


def test_less_than_a_quorum_for_good_ends_in_a_sentence(tmp_path: Path) -> None:
    file, out = tmp_path / "cluster.toml", tmp_path / "run"
    waits = {"give_up": 2.0, "deadline_ceiling": 0.5, "starting_deadline": PATIENCE}
    training = {**VANILLA["training"], "steps": 100_000}
    file.write_text(
        to_toml(
            cluster_of({**VANILLA, "protocol": {"name": "vanilla", **waits}, "training": training})
        )
    )
    with started(
        "cluster", "--cluster", file, "--out", out, "--quiet", "--perturb", "kill w1 @ step 3"
    ) as process:
        text = rest(process)
    assert process.returncode == 1
    assert text.count("\n") == 1
    assert "gave up" in text and ("gradient" in text or "model" in text)
    assert '"summary"' not in (out / "results.jsonl").read_text()
    assert not processes(out)


@pytest.mark.parametrize(
    ("number", "again"), [(signal.SIGINT, False), (signal.SIGTERM, True), (signal.SIGKILL, False)]
)
def test_a_cluster_that_is_told_to_end_leaves_no_process(
    tmp_path: Path, number: int, again: bool
) -> None:
    out = tmp_path / "run"
    with started(
        "cluster", "--protocol", "vanilla", "--workers", 1, "--byzantine-workers", 0,
        "--byzantine-servers", 0, "--f-workers", 0, "--model", "logistic", "--steps", 10**6,
        "--out", out,
    ) as process:  # fmt: skip
        until(lambda: len(processes(out / "nodes")) == 2, "the nodes did not start")
        names = sorted(line.split("--name ")[1].split()[0] for line in processes(out).values()
                       if "--name " in line)  # fmt: skip
        assert names == ["ps0", "w0"]
        if not again:  # else in the midst of starting
            until((out / "nodes" / "w0" / "state").exists, "no state")
        time.sleep(random.Random(number).uniform(0, 1))
        began = time.monotonic()
        process.send_signal(number)
        if again:
            time.sleep(0.2)
            process.send_signal(number)
        text = rest(process)
    # A second signal may come when nothing is left to do but to end: then it ends it at once.
    assert process.returncode in ([128 + number] * (number != signal.SIGKILL) + [-number] * (
        again or number == signal.SIGKILL
    ))  # fmt: skip
    until(lambda: not processes(out), "a process is left")
    assert time.monotonic() - began < PATIENCE / 4
    if number == signal.SIGINT:
        assert f"interrupted: {out} keeps what there is" in text
    if not again:
        assert (out / "nodes" / "w0" / "state").exists()
    for log in out.glob("nodes/*/log.txt"):
        assert "Traceback" not in log.read_text(), log.read_text()


def ports(count: int) -> list[int]:
    """Return ports that are free just now."""
    with_all = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    found: list[int] = [sock.getsockname()[1] for sock in with_all]
    for sock in with_all:
        sock.close()
    return found


def keys(tmp_path: Path, count: int = 3, **tables: Any) -> Path:
    """Make keys and a cluster file, and return the file."""
    draft = tmp_path / "draft.toml"
    wanted = {**VANILLA, **tables}
    draft.write_text(to_toml(cluster_of(wanted)))
    addresses = [f"127.0.0.1:{port}" for port in ports(count)]
    main(["keys", *addresses, "--cluster", str(draft), "--out", str(tmp_path / "keys")])
    return tmp_path / "keys" / "cluster.toml"


def node(file: Path, name: str, **more: Any) -> list[Any]:
    """Return the command of a node."""
    key = more.pop("key", file.parent / f"{name}.pem")
    out = more.pop("out", file.parent.parent / name)
    return ["node", "--cluster", file, "--key", key, "--out", out]


def test_three_nodes_by_hand(tmp_path: Path) -> None:
    """In any order, without the package that made the keys, where nothing can be cached."""
    without = tmp_path / "without" / "cryptography"
    without.mkdir(parents=True)
    (without / "__init__.py").write_text("raise ModuleNotFoundError(name='cryptography')")
    paths = os.pathsep.join([str(without.parent), os.environ.get("PYTHONPATH", "")])
    bare = {"PYTHONPATH": paths, "HOME": "/proc/nowhere"}
    file = keys(tmp_path)
    with started(*node(file, "w1"), **bare) as w1:
        assert "w1 waits to start: ps0" in said(w1, "waits to start")
        with started(*node(file, "ps0"), **bare) as ps0:
            assert "w0" in said(ps0, "waits to start")
            ps0.send_signal(signal.SIGINT)
            assert "the same command goes on" in rest(ps0)
            assert ps0.returncode == 130
        with started(*node(file, "ps0"), **bare) as ps0, started(*node(file, "w0"), **bare) as w0:
            ends = {name: rest(each) for name, each in (("ps0", ps0), ("w0", w0), ("w1", w1))}
            assert [w1.returncode, ps0.returncode, w0.returncode] == [0, 0, 0], ends
            assert all(f"{name} is done: 5 steps, accuracy" in ends[name] for name in ends)
    models = [(tmp_path / name / "model.npy").read_bytes() for name in ("ps0", "w0", "w1")]
    assert models[0] == models[1] == models[2]
    with started(*node(file, "ps0")) as late:  # alone: the others have gone
        assert "ps0 was done before: 5 steps, accuracy" in said(late, "done")
        late.send_signal(signal.SIGTERM)
        rest(late)
    assert late.returncode == 143
    assert (tmp_path / "ps0" / "model.npy").read_bytes() == models[0]


def test_a_node_that_was_done_before_ends_well(tmp_path: Path) -> None:
    file = keys(tmp_path, 2, workers={"count": 1}, protocol={"name": "vanilla", "linger": 0.5})
    with started(*node(file, "ps0")) as ps0, started(*node(file, "w0")) as w0:
        rest(ps0), rest(w0)
    model = (tmp_path / "w0" / "model.npy").read_bytes()
    with started(*node(file, "w0")) as w0:
        assert "w0 was done before" in rest(w0)
    assert w0.returncode == 0
    assert (tmp_path / "w0" / "model.npy").read_bytes() == model


def test_another_cluster_file_is_refused_at_both_ends(tmp_path: Path) -> None:
    file = keys(tmp_path, 2, workers={"count": 1})
    other = tmp_path / "other.toml"
    other.write_text(file.read_text().replace("steps = 5", "steps = 6"))
    assert hash_of(read_cluster(other)) != hash_of(read_cluster(file))
    command = node(file, "w0")
    command[2] = other
    with started(*node(file, "ps0")) as ps0, started(*command) as w0:
        lines = said(ps0, "not in the same run"), said(w0, "not in the same run")
        for process, line in zip((ps0, w0), lines, strict=True):
            assert line.count("\n") == 1
            process.send_signal(signal.SIGTERM)
            rest(process)


def test_another_key_is_refused_at_both_ends(tmp_path: Path) -> None:
    file = keys(tmp_path, 2, workers={"count": 1})
    stranger = tmp_path / "stranger"
    stranger.mkdir()
    theirs = keys(stranger, 2, workers={"count": 1})
    places, others = read_cluster(file).nodes, read_cluster(theirs).nodes
    text = theirs.read_text()
    for name in places:
        text = text.replace(f":{others[name].port}", f":{places[name].port}")
    theirs.write_text(text)
    with started(*node(file, "ps0")) as ps0, started(*node(theirs, "w0")) as w0:
        assert "refused" in said(ps0, "refused")
        assert "it may not know this key" in said(w0, "ps0 was not reached")
        for process in (ps0, w0):
            process.send_signal(signal.SIGTERM)
            rest(process)


def test_what_a_node_cannot_use_is_refused_in_a_sentence(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    file = keys(tmp_path)
    key = file.parent / "ps0.pem"
    (tmp_path / "other").mkdir()
    strange = keys(tmp_path / "other").parent / "ps0.pem"
    open_key = tmp_path / "open.pem"
    open_key.write_bytes(key.read_bytes())
    open_key.chmod(0o644)
    blank = tmp_path / "blank.toml"
    blank.write_text(to_toml(cluster_of(VANILLA)))
    model = tmp_path / "model.toml"
    model.write_text(file.read_text().replace('"logistic"', '"mlp(hiden=3)"'))
    twins = tmp_path / "twins.toml"
    twins.write_text(
        to_toml(replace(read_cluster(file), workers=Group(2, byzantine=1, attack="twins")))
    )
    cases = {
        "cannot be read: No such file": node(file, "ps0", key=tmp_path / "none.pem"),
        "others may read the key": node(file, "ps0", key=open_key),
        "is the key of no node of this cluster file": node(file, "ps0", key=strange),
        "cannot read": node(tmp_path / "none.toml", "ps0", key=key),
        "has no [nodes]: make one with fastgar keys": node(blank, "ps0", key=key),
        "nowhere/out: no file can be made there": node(file, "ps0", out="/proc/nowhere/out"),
        "Address already in use": node(file, "ps0"),
        "cannot write to --out": ["cluster", "--model", "logistic", "--out", "/proc/nowhere"],
        'pip install "fastgar[cluster]"': [
            "keys", "127.0.0.1:1", "127.0.0.1:2", "--out", tmp_path / "bare",
        ],
        "twins are for fastgar simulate": ["cluster", "--server-attack", "twins"],
        "option of mlp 'hiden': did you mean 'hidden'": node(model, "ps0", key=key),
        "refuse a second process with a key": node(twins, "ps0", key=key),
        "never comes: the run has 5 steps": [
            "cluster", "--steps", 5, "--perturb", "kill ps0 @ step 6",
        ],
    }  # fmt: skip
    port = read_cluster(file).nodes["ps0"].port
    with socket.create_server(("", port)):
        for sentence, command in cases.items():
            capfd.readouterr()
            if "bare" in str(command[-1]):
                monkeypatch.setitem(sys.modules, "cryptography", None)
            try:
                status = main([str(word) for word in command])
            except SystemExit as end:
                status = int(end.code or 0)
            monkeypatch.undo()
            error = capfd.readouterr().err
            assert sentence in error, (sentence, error)
            assert status in (1, 2) and error.count("\n") == 1, error


def test_a_loopback_address_among_machines_is_told(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    draft = tmp_path / "draft.toml"
    draft.write_text(to_toml(cluster_of(VANILLA)))
    out = str(tmp_path / "keys")
    addresses = ["10.0.0.1:7000", "127.0.0.1:7001", "10.0.0.3:7002"]
    main(["keys", *addresses, "--cluster", str(draft), "--out", out])
    assert "w0: reached on their own machine alone" in capfd.readouterr().out


def test_another_run_in_the_folder_is_refused(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "cluster.toml").write_text(to_toml(cluster_of(VANILLA)))
    with pytest.raises(SystemExit) as end:
        main(["cluster", "--model", "logistic", "--out", str(tmp_path)])
    assert end.value.code == 2
    assert "holds another run: take another --out" in capfd.readouterr().err
    assert (tmp_path / "cluster.toml").read_text() == to_toml(cluster_of(VANILLA))


# What peers ask for.


def test_what_waits_for_a_node_that_computes_does_not_grow() -> None:
    inbox = NodeInbox({0: "model", 1: "gradient"}, Pool(3))
    done: list[Any] = []

    class Asked:
        def ask(self, peer: str, kind: str, step: int) -> None:
            done.append((peer, kind, step))

    inbox.node = Asked()  # type: ignore[assignment]
    for step in range(1000):
        for peer in ("w0", "w1"):
            inbox.arrived(peer, ASK, step, b"")
    inbox.work_off()
    assert done == [("w0", "model", 999), ("w1", "model", 999)]
    inbox.work_off()
    assert len(done) == 2


def test_what_comes_meanwhile_is_left_for_the_next_time() -> None:
    """Else a peer that says something new for as long as it is heard would put off a deadline."""
    inbox, done = NodeInbox({}, {}), []
    inbox.node = object()  # type: ignore[assignment]

    def again(node: Any) -> None:
        done.append(node)
        if len(done) < 100:
            inbox.call(again)

    inbox.call(again)
    for count in (1, 2, 3):
        inbox.work_off()
        assert len(done) == count
