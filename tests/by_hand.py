"""Nodes that are started by hand, each with the command of one: their keys, and what they say."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path
from typing import Any

from nursery import Forked, Nursery

from fastgar.cli.main import main
from fastgar.protocols.cluster import Cluster
from fastgar.protocols.file import cluster_of, to_toml
from fastgar.protocols.learning import Learning
from fastgar.protocols.lies import work_of
from fastgar.protocols.one_process import in_one_process
from fastgar.train.threads import threads_for

__all__ = ["PATIENCE", "computed", "keys", "said", "start", "until"]

PATIENCE = 400.0  # seconds for what takes a few on a machine that is not busy


def keys(folder: Path, document: Mapping[str, Any], addresses: Sequence[str] = ()) -> Path:
    """Make keys and the file of a cluster, and return the file; its addresses are free ports."""
    draft = cluster_of(document)
    if not addresses:
        held = [socket.create_server(("127.0.0.1", 0)) for _ in draft.names]
        addresses = [f"127.0.0.1:{sock.getsockname()[1]}" for sock in held]
        for sock in held:
            sock.close()
    (folder / "draft.toml").write_text(to_toml(draft))
    command = ["keys", *addresses, "--cluster", str(folder / "draft.toml")]
    with redirect_stdout(StringIO()):
        assert main([*command, "--out", str(folder / "keys")]) == 0
    return folder / "keys" / "cluster.toml"


def start(forks: Nursery, file: Path, name: str, *more: str, **options: Any) -> Forked:
    """Start a node, whose errors go to a file."""
    folder = file.parent.parent / name
    command = ["node", "--cluster", str(file), "--key", str(file.parent / f"{name}.pem")]
    with (file.parent.parent / f"{name}.log").open("a") as log:
        words = ["", "", "", *command, "--out", str(folder), *more]
        return forks.popen(words, stderr=log, **options)


def until(condition: Callable[[], Any], what: str) -> None:
    """Wait until something holds."""
    end = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < end, what
        time.sleep(0.01)


def said(forked: Forked, words: str) -> str:
    """Return the first line that a node prints with some words in it."""
    lines = []
    for line in forked.stdout:
        lines.append(line)
        if words in line:
            return line
    raise AssertionError(f"it ended without {words!r}: {lines}")


def computed(cluster: Cluster, learning: Learning) -> Any:
    """Return the model that a cluster in which everybody is waited for must end with."""
    with threads_for(len(learning.initial), cluster.training):
        return in_one_process(cluster, work_of(cluster, learning)("w0"))
