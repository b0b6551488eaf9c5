"""What a machine or a container lets a node have, and how a process is told to end."""

from __future__ import annotations

import resource
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch")

from fastgar.protocols import room
from fastgar.protocols.file import cluster_of
from fastgar.protocols.launch import Launch
from fastgar.protocols.mailbox import WINDOW

TWO: dict[str, Any] = {
    "protocol": {"name": "vanilla"}, "servers": {"count": 1}, "workers": {"count": 4},
}  # fmt: skip


def groups(folder: Path, monkeypatch: pytest.MonkeyPatch, own: str, **files: str) -> None:
    """Put control groups that say what they are told to in the place of this machine's."""
    monkeypatch.setattr(room, "GROUPS", folder)
    monkeypatch.setattr(room, "OWN", folder / "own")
    (folder / "own").write_text(own)
    for name, text in files.items():
        path = folder / name.replace("__", "/").replace("_DOT_", ".")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


V1 = "3:cpu,cpuacct:/a/b\n2:memory:/a\n1:name=systemd:/\n"


@pytest.mark.parametrize(
    ("own", "files", "cores", "memory"),
    [
        ("0::/\n", {"cpu_DOT_max": "50000 100000\n", "memory_DOT_max": "1000000\n"}, 0.5, 1e6),
        ("0::/a/b\n", {"a__b__cpu_DOT_max": "max 100000", "a__cpu_DOT_max": "150000 100000"}, 1.5,
         1e12),
        (V1, {"cpu__cpu_DOT_cfs_quota_us": "25000", "cpu__cpu_DOT_cfs_period_us": "100000",
              "memory__a__memory_DOT_limit_in_bytes": "5000"}, 0.25, 5e3),
        (V1, {"cpu__cpu_DOT_cfs_quota_us": "-1", "cpu__cpu_DOT_cfs_period_us": "100000"}, 8, 1e12),
        ("", {}, 8, 1e12),
        ("nonsense", {}, 8, 1e12),
    ],
)  # fmt: skip
def test_a_quota_of_a_container_is_what_there_is(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    own: str,
    files: dict[str, str],
    cores: float,
    memory: float,
) -> None:
    groups(tmp_path, monkeypatch, own, **files)
    monkeypatch.setattr(room, "cores", lambda: range(8))
    monkeypatch.setattr(room.os, "sysconf", lambda name: 10**6)
    assert (room.cores_allowed(), room.memory_allowed()) == (cores, memory)


def test_the_processes_of_a_cluster_share_the_cores_of_the_quota(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("cryptography")
    started: list[dict[str, str]] = []

    def popen(command: Any, *, env: dict[str, str], **options: Any) -> Any:
        started.append(env)
        raise OSError("not in this test")

    monkeypatch.setattr(room, "cores", lambda: range(64))
    for quota, threads in (("max 100000", "12"), ("1100000 100000", "2"), ("50000 100000", "1")):
        groups(tmp_path, monkeypatch, "0::/\n", cpu_DOT_max=quota)
        with pytest.raises(OSError), Launch(cluster_of(TWO), tmp_path / "nodes", popen=popen):
            pass
        assert started.pop()["OMP_NUM_THREADS"] == threads


def test_more_memory_than_the_container_has_is_refused_in_a_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cluster, d = cluster_of(TWO), 1_000_000
    held = room.memory_held(cluster, "ps0", d)
    assert held == 4 * d * ((WINDOW + 1) * 4 + WINDOW)  # peers x kinds x window, and its own
    assert room.memory_held(cluster, "w0", d) == 4 * d * (WINDOW + 1 + WINDOW)
    groups(tmp_path, monkeypatch, "0::/\n", memory_DOT_max=str(held))
    room.require_memory(cluster, ["ps0"], d)
    sentence = r"that ps0, w0, w1, w2, ... may hold take 136.0 MB, and there are 56.0 MB$"
    with pytest.raises(ValueError, match=sentence):
        room.require_memory(cluster, cluster.names, d)


def test_open_files_are_asked_for_or_refused_in_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    limits: list[Any] = [(64, 300)]
    monkeypatch.setattr(resource, "getrlimit", lambda what: limits[-1])
    monkeypatch.setattr(resource, "setrlimit", lambda what, new: limits.append(new))
    room.require_files(100)
    assert limits == [(64, 300), (264, 300)]
    room.require_files(50)
    assert len(limits) == 2
    with pytest.raises(ValueError, match="with 119 peers needs 302 open files, and may have 300"):
        room.require_files(119)


# How a process is told to end.

STEPS = """
import hashlib, sys
from fastgar.protocols.ending import Ended, ending
try:
    with ending(0.3):
        print("in", flush=True)
        if sys.argv[1] == "long":
            hashlib.pbkdf2_hmac("sha256", b"", b"", 10**9)  # minutes, no instruction of Python's
        while True:
            pass
except Ended as end:
    print("kept", flush=True)
    sys.exit(128 + end.number)
"""


@pytest.mark.parametrize(
    ("number", "step", "rest"), [(signal.SIGTERM, "long", ""), (signal.SIGHUP, "short", "kept\n")]
)
def test_a_signal_ends_a_process_also_in_the_middle_of_a_long_step(
    number: int, step: str, rest: str
) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", STEPS, step], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "in\n"
    time.sleep(0.1)
    process.send_signal(number)
    assert process.communicate(timeout=60)[0] == rest
    assert process.returncode == 128 + number
