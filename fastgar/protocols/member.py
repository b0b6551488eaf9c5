"""One node of a cluster as a command: its folder, its lines, its signals."""

from __future__ import annotations

import json
import os
import signal
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

import fastgar as fg

from ..network import expiry
from ..train.lines import line as as_line
from ..train.threads import threads_for
from .addresses import name_of
from .cluster import Cluster
from .file import hash_of
from .learning import Learning, sketch
from .lies import check_machines
from .mailbox import Received, Want
from .node import Node
from .process import NodeProcess
from .record import Record
from .room import in_megabytes, memory_held, require_files, require_memory
from .storage import Disk

__all__ = ["member"]

EVERY = 0.5  # seconds between two lines about how a node is


def member(
    cluster: Cluster,
    key: Path,
    folder: Path,
    *,
    listen: Any = None,
    say: Callable[[str], None] = print,
    events: bool = False,
) -> None:
    """Run a node to the end of its last step.

    Parameters
    ----------
    cluster : Cluster
        With addresses.
    key : Path
    folder : Path
        For ``state``, ``results.jsonl`` and ``model.npy``. What it holds of this run is taken up.
    listen : (host, port) or socket, optional
    say : callable
        Takes sentences.
    events : bool
        Whether lines of JSON are printed instead, for who started this process.

    Raises
    ------
    ValueError, OSError, RuntimeError
        What ended the node before its last step, in one sentence.
    """
    check_machines(cluster)
    name = name_of(cluster, key)
    if events:
        _event({"kind": "starts", "from": name, "what": "loading data"})
    folder.mkdir(parents=True, exist_ok=True)
    disk = Disk(folder / "state", f"{name} {hash_of(cluster).hex()}")
    found, kept = folder / "model.npy", disk.read()
    final = None
    if kept is not None and kept.step >= cluster.steps and found.exists():
        final = np.load(found, allow_pickle=False)
    learning = Learning(cluster.training)
    d = len(learning.initial)
    require_files(len(cluster.names) - 1)
    require_memory(cluster, cluster.names if events else (name,), d)
    if not events:
        held = in_megabytes(memory_held(cluster, name, d))
        say(f"{name} holds at most {held} of messages, and is certified until {expiry(key)}")
    if cluster.role(name) == "server":  # imports and compiles, before any other thread might
        rows = cluster.n_w if cluster.text.everybody else cluster.q_w
        cluster.rule([learning.initial] * rows, 0)
    with (folder / "results.jsonl").open("a") as file:

        def write(line: dict[str, Any]) -> None:
            file.write(as_line(line))
            file.flush()
            if events:
                _event({**line, "from": name})

        def done(model: Any) -> None:
            part = folder / "model.npy.part"
            with part.open("wb") as out:
                np.save(out, model, allow_pickle=False)
            os.replace(part, found)
            watcher.over.set()
            if events:
                _event({"kind": "done", "from": name, **watcher.state()})
            else:
                accuracy = learning.accuracy(model)
                how = "is done" if final is None else "was done before"
                say(f"{name} {how}: {cluster.steps} steps, accuracy {accuracy:.1%}")

        watcher = _Watcher(cluster, name, learning, write, say, quiet=events)
        process = NodeProcess(
            cluster, name, key, learning, watcher, disk, listen=listen, led=events
        )
        watcher.process = process
        reporter = threading.Thread(target=watcher.report, daemon=True)
        if events:
            reporter.start()
            threading.Thread(target=_obey, args=(process,), daemon=True).start()
        try:
            with threads_for(d, cluster.training):
                process.run(
                    final=final, say=lambda sentence: watcher.say(f"{name} {sentence}"), done=done
                )
        finally:
            watcher.over.set()
            if events:
                reporter.join()  # nothing runs any more when the interpreter ends
            step = cluster.steps if process.node.done else cluster.step(process.node.at)
            write({"kind": "ended", "node": name, "step": step, **watcher.counts()})


class _Watcher(Record):
    """Watches one node, and tells about it."""

    def __init__(
        self,
        cluster: Cluster,
        name: str,
        learning: Learning,
        write: Callable[[dict[str, Any]], None],
        say: Callable[[str], None],
        *,
        quiet: bool,
    ) -> None:
        super().__init__(cluster, learning, write)
        self.name, self._say, self.quiet, self.over = name, say, quiet, threading.Event()
        self.process: NodeProcess | None = None
        self.messages = 0
        self.bytes = 0

    def say(self, sentence: str) -> None:
        """Say a sentence, to a person or as an event."""
        if self.quiet:
            _event({"kind": "said", "from": self.name, "what": sentence})
        else:
            self._say(sentence)

    def posted(self, sender: str, peer: str, kind: str, step: int, vector: Any) -> None:
        """Take note of a message that is sent."""
        self.messages += 1
        self.bytes += vector.nbytes
        super().posted(sender, peer, kind, step, vector)

    def late(self, node: Node, want: Want, lacking: Sequence[str]) -> None:
        """Say who is late."""
        super().late(node, want, lacking)
        self.say(f"{self.name} waits for {want.kind} of step {want.step} from {', '.join(lacking)}")

    def collected(self, node: Node, want: Want, received: Received, seconds: float) -> None:
        """Take note of a quorum, and say who sends nonsense: each once."""
        for peer in received.faulty:
            if peer not in self.not_finite:
                what = f"{received.kind} of step {received.step}"
                self.say(f"{self.name}: {peer} sent NaN or infinity as {what}")
        super().collected(node, want, received, seconds)

    def convicted(self, node: Node, name: str, step: int) -> None:
        """Say who is convicted."""
        super().convicted(node, name, step)
        self.say(f"{self.name} has proof that {name} sealed two models of step {step}: excluded")

    def _write(self, line: dict[str, Any]) -> None:
        if line["kind"] == "spread":  # of one server, which says nothing
            return
        if line["kind"] == "convicted":
            super()._write(line)
            return
        models = self._models.get(line["step"], {})
        if self.name in models:
            line["sketch"] = sketch(models[self.name])
        super()._write(line)
        if not self.quiet:
            self._say(f"{self.name} step {line['step']}: accuracy {line['accuracy']:.1%}")

    def counts(self) -> dict[str, Any]:
        """Return what was sent, dropped, and who was waited for."""
        assert self.process is not None
        status = self.process.links.status()
        return {
            "traffic": self.traffic,
            "messages": self.messages,
            "bytes": self.bytes,
            "skipped": sum(state.skipped for state in status.values()),
            "reconnects": {peer: s.reconnects for peer, s in status.items() if s.reconnects},
            "refused": self.process.links.strangers(),
            "waited_for": dict(self.waited_for),
            "not_finite": dict(self.not_finite),
            "used": dict(self.used),
            "convicted": dict(self.convictions),
        }

    def report(self) -> None:
        """Print how the node is, twice a second: for who started this process."""
        while not self.over.wait(EVERY):
            _event({"kind": "status", "from": self.name, **self.state()})

    def state(self) -> dict[str, Any]:
        """Return how the node is."""
        assert self.process is not None
        node = self.process.node
        want = node.waiting
        return {
            "step": self.cluster.step(node.at),
            "done": node.done,
            "loss": float(self.learning.losses.mean()),
            "waiting": [] if want is None else node.mailbox.lacking(want),
            "believed": self._believed(node.collected.get("gradient")),
            **self.counts(),
        }

    def _believed(self, got: Received | None) -> list[str]:
        """Return whose gradients had a weight in the last step."""
        if got is None:
            return []
        try:
            weights = fg.inspect(self.cluster.aggregation.at(got.step), got.rows).weights
        except (ValueError, RuntimeError):
            return []
        return [name for name, weight in zip(got.names, weights, strict=True) if weight > 0]


def _obey(process: NodeProcess) -> None:
    """Do what the process that started this one asks for, a line of JSON each, until it is gone.

    Neither this nor `_event` uses Python's own streams, whose locks a thread must not hold while
    the interpreter ends.
    """
    rest = b""
    while some := os.read(0, 1 << 16):
        *lines, rest = (rest + some).split(b"\n")
        for order in map(json.loads, lines):
            if "cut" in order:
                process.cut(order["cut"])
            if "slow" in order:
                process.slow = order["slow"]
            if "end" in order:
                process.release()
    if not process.released.is_set():
        os.kill(os.getpid(), signal.SIGHUP)  # nobody is there any more to work for


_writing = threading.Lock()


def _event(line: dict[str, Any]) -> None:
    """Write a line for the process that started this one, which may be gone."""
    with _writing, suppress(BrokenPipeError):
        text = json.dumps(line).encode() + b"\n"
        while text:
            text = text[os.write(1, text) :]
