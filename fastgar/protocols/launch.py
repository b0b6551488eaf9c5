"""A whole cluster on this machine: each node a process of its own, with keys that last as long."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from queue import Empty, Queue
from types import TracebackType
from typing import Any, Self

import numpy as np

from ..network import make_key, public_key
from .cluster import Address, Cluster
from .file import to_toml
from .learning import spread
from .outcome import Outcome
from .perturb import SLOW, Perturbation, read_perturbation
from .record import traffic_lines
from .room import cores_allowed

__all__ = ["Failed", "Launch", "State"]

PATIENCE = 4.0  # seconds for processes to end that were told to


class Failed(RuntimeError):
    """A node ended before its last step, and nobody had asked it to."""


@dataclass
class State:
    """What is known of a node.

    Attributes
    ----------
    step : int
    loss, accuracy : float or None
    waiting, believed : list of str
        Whom it waits for, and whose gradients had a weight.
    over : bool
        Whether it has done all steps.
    counts : dict
        Messages, bytes, reconnects, ...
    said : str
        Its last sentence.
    """

    step: int = 0
    loss: float | None = None
    accuracy: float | None = None
    waiting: list[str] = field(default_factory=list)
    believed: list[str] = field(default_factory=list)
    over: bool = False
    counts: dict[str, Any] = field(default_factory=dict)
    said: str = ""


class Launch:
    """The processes of a cluster: a context, at whose end none is left.

    Parameters
    ----------
    cluster : Cluster
    folder : Path
        Where each node keeps its state and results.
    write : callable
        Takes each evaluation as it comes.
    through : callable
        Takes the name of a node and its port, and returns the port at which others look for it: of
        a relay, maybe.
    popen : callable
        What starts a process.

    Attributes
    ----------
    states : dict of str to State
    killed : set of str
        Who is dead by wish.
    """

    def __init__(
        self,
        cluster: Cluster,
        folder: Path,
        write: Callable[[dict[str, Any]], None] = lambda line: None,
        *,
        through: Callable[[str, int], int] = lambda name, port: port,
        popen: Callable[..., Any] = subprocess.Popen,
    ) -> None:
        self.folder, self.write, self._popen = folder, write, popen
        self.states = {name: State() for name in cluster.names}
        self.crashed, self.began = 0, time.monotonic()
        self.lines: list[dict[str, Any]] = []
        self._events: Queue[dict[str, Any]] = Queue()
        self._processes: dict[str, subprocess.Popen[str]] = {}
        self._sketches: dict[int, dict[str, list[float]]] = {}
        self.killed: set[str] = set()
        self._convicted: set[str] = set()
        self._before: list[dict[str, Any]] = []  # counts of those that were killed
        self._cuts: list[dict[str, int]] = []
        self._keys = tempfile.TemporaryDirectory(prefix="fastgar-keys-")
        keys = Path(self._keys.name)
        self._sockets = {
            name: socket.create_server(("127.0.0.1", 0), backlog=128) for name in cluster.names
        }
        nodes = {}
        for name, sock in self._sockets.items():
            made, port = make_key(keys / f"{name}.pem", name), sock.getsockname()[1]
            signs = cluster.signs and name in cluster.of_role("server")
            public = public_key(keys / f"{name}.pem") if signs else ""
            nodes[name] = Address("127.0.0.1", through(name, port), made, public)
        self.cluster = replace(cluster, nodes=nodes)
        self._file = keys / "cluster.toml"
        self._file.write_text(to_toml(self.cluster))
        self._todo = [read_perturbation(line, cluster.names) for line in cluster.perturb]
        self._later: list[tuple[float, Callable[[], None]]] = []

    def __enter__(self) -> Self:
        self.began = time.monotonic()
        for name in self.cluster.names:
            self._start(name)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        try:
            for name in self._processes:
                self._signal(name, signal.SIGCONT)
                if kind is None and self.states[name].over:
                    self._tell(name, end=True)
                else:
                    self._signal(name, signal.SIGTERM)
            until = time.monotonic() + PATIENCE
            for process in self._processes.values():
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(max(0.0, until - time.monotonic()))
        finally:  # also after a second signal
            for name, process in self._processes.items():
                self._signal(name, signal.SIGKILL)
                process.wait()
                for pipe in (process.stdin, process.stdout):
                    if pipe is not None:
                        with contextlib.suppress(OSError):
                            pipe.close()
            for sock in self._sockets.values():
                sock.close()
            self._keys.cleanup()

    @property
    def over(self) -> bool:
        """Whether all honest nodes that are not dead by wish have done all steps."""
        return all(
            state.over
            for name, state in self.states.items()
            if name not in self.cluster.liars and not (name in self.killed and not self._todo)
        )

    @property
    def elapsed(self) -> float:
        """Seconds since the start: those of perturbations."""
        return time.monotonic() - self.began

    def plan(self, it: Perturbation) -> None:
        """Have something more done, at its time."""
        self._todo.append(it)

    def advance(self, seconds: float) -> None:
        """Let things happen for some time: take what the nodes say, do what is to be done to them.

        Raises
        ------
        Failed
            If a node ended that should not have.
        """
        until = time.monotonic() + seconds
        while True:
            self._perturb()
            try:
                event = self._events.get(timeout=max(0.0, min(until - time.monotonic(), 0.05)))
                self._take(event)
            except Empty:
                if time.monotonic() >= until:
                    break
        self._look_for_dead()

    def outcome(self) -> Outcome:
        """Return what has come of it."""
        cluster = self.cluster
        servers = [n for n in cluster.of_role("server") if n not in cluster.liars]
        models = []
        reported = [n for n in servers or cluster.of_role("server") if n not in self.killed]
        for name in reported:
            path = self.folder / name / "model.npy"
            if path.exists():
                models.append(np.load(path, allow_pickle=False))
        waited: Counter[str] = Counter()
        used: Counter[str] = Counter()
        not_finite: Counter[str] = Counter()
        counts = [*self._before, *(state.counts for state in self.states.values())]
        for count in counts:
            name = count.get("from", "")
            if name not in cluster.liars:
                waited.update(count.get("waited_for", {}))
                not_finite.update(count.get("not_finite", {}))
                used.update(count.get("used", {}) if name in servers else {})
        convicted = {
            name: step
            for count in counts
            if count.get("from", "") not in cluster.liars
            for name, step in count.get("convicted", {}).items()
        }
        most = max(used.values(), default=0)
        for line in traffic_lines(cluster, [count.get("traffic", {}) for count in counts]):
            self._line(line)
        return Outcome(
            cluster,
            cluster.training.seed,
            {
                name: state.accuracy
                for name, state in self.states.items()
                if state.accuracy is not None and name in reported
            },
            spread(models) if len(models) > 1 else 0.0,
            sum(count.get("messages", 0) for count in counts),
            sum(count.get("bytes", 0) for count in counts),
            self.elapsed,
            False,
            {"skipped": sum(count.get("skipped", 0) for count in counts)},
            self.crashed,
            dict(waited),
            {name: used[name] / most for name in cluster.of_role("worker")} if most else {},
            dict(not_finite),
            convicted,
            self.lines,
        )

    # Processes.

    def _start(self, name: str) -> None:
        sock = self._sockets[name]
        out = self.folder / name
        out.mkdir(parents=True, exist_ok=True)
        threads = str(max(1, int(cores_allowed() // len(self.cluster.names))))
        limits = dict.fromkeys(
            ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMBA_NUM_THREADS"),
            threads,
        )
        with (out / "log.txt").open("a") as log:
            process = self._popen(
                [
                    sys.executable, "-m", "fastgar.cli", "node", "--name", name,
                    "--cluster", str(self._file), "--key", f"{self._keys.name}/{name}.pem",
                    "--out", str(out), "--listen-fd", str(sock.fileno()), "--events",
                ],
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, text=True,
                # A group of its own hears no Ctrl-C, and is ended by the system if it is stopped
                # when this process dies; who is not stopped sees that its input is closed.
                pass_fds=[sock.fileno()], env={**os.environ, **limits}, process_group=0,
            )  # fmt: skip
        self._processes[name] = process
        self.killed.discard(name)
        threading.Thread(target=self._read, args=(name, process), daemon=True).start()

    def _read(self, name: str, process: subprocess.Popen[str]) -> None:
        assert process.stdout is not None
        with contextlib.suppress(ValueError, OSError):
            for text in process.stdout:
                with contextlib.suppress(ValueError):
                    event = json.loads(text)
                    if isinstance(event, dict):
                        self._events.put({**event, "from": name})

    def _tell(self, name: str, **order: Any) -> None:
        process = self._processes[name]
        if process.poll() is None and process.stdin is not None:
            with contextlib.suppress(OSError):
                process.stdin.write(json.dumps(order) + "\n")
                process.stdin.flush()

    def _signal(self, name: str, number: int) -> None:
        if self._processes[name].poll() is None:
            self._processes[name].send_signal(number)

    def _look_for_dead(self) -> None:
        for name, process in self._processes.items():
            code = process.poll()
            if code is None or name in self.killed or self.states[name].over:
                continue
            log = self.folder / name / "log.txt"
            last = (log.read_text().strip().splitlines() or ["it said nothing"])[-1]
            raise Failed(f"{name} ended with status {code}: {last}")

    # Events.

    def _take(self, event: dict[str, Any]) -> None:
        name, kind = event["from"], event["kind"]
        state = self.states[name]
        if kind == "said":
            state.said = event["what"]
        elif kind == "status":
            state.step, state.loss = event["step"], event["loss"]
            state.waiting, state.believed = event["waiting"], event["believed"]
        elif kind == "done":
            state.over, state.step, state.waiting = True, self.cluster.steps, []
        if kind in ("status", "done", "ended"):
            state.counts = event
        elif kind == "convicted":
            if name not in self.cluster.liars and event["node"] not in self._convicted:
                self._convicted.add(event["node"])
                self._line({key: value for key, value in event.items() if key != "from"})
        elif kind == "evaluation":
            state.accuracy = event["accuracy"]
            state.step = max(state.step, event["step"])
            sketch = event.pop("sketch", None)
            self._line({key: value for key, value in event.items() if key != "from"})
            if sketch is not None:
                self._spread(name, event["step"], sketch)

    def _spread(self, name: str, step: int, sketch: list[float]) -> None:
        """Write the spread of a step when all honest servers have been there."""
        honest = [n for n in self.cluster.of_role("server") if n not in self.cluster.liars]
        known = self._sketches.setdefault(step, {})
        known[name] = sketch
        if all(n in known for n in honest) and honest:
            about = spread([known[n] for n in honest])
            self._line({"kind": "spread", "step": step, "spread": about, "estimated": True})
            del self._sketches[step]

    def _line(self, line: dict[str, Any]) -> None:
        self.lines.append(line)
        self.write(line)

    # Perturbations.

    def _perturb(self) -> None:
        elapsed = self.elapsed
        step = max((s.step for n, s in self.states.items() if n.startswith("ps")), default=0)
        for it in list(self._todo):
            due = step >= it.step if it.step is not None else elapsed >= (it.time or 0.0)
            if due:
                self._todo.remove(it)
                self._do(it)
        for at, call in list(self._later):
            if elapsed >= at:
                self._later.remove((at, call))
                call()

    def _do(self, it: Perturbation) -> None:
        names = [name for group in it.groups for name in group]
        end = self.elapsed + it.span
        for name in names:
            if it.what in ("kill", "lose"):
                self._signal(name, signal.SIGKILL)
                self._processes[name].wait()
                self.killed.add(name)
                self._before.append(self.states[name].counts)
                self.states[name] = State(said=self.states[name].said)
                self.crashed += 1
                if it.what == "lose":
                    (self.folder / name / "state").unlink(missing_ok=True)
            elif it.what == "restart" and self._processes[name].poll() is not None:
                self._start(name)
            elif it.what == "pause":
                self._signal(name, signal.SIGSTOP)
                self._later.append((end, lambda name=name: self._signal(name, signal.SIGCONT)))  # type: ignore[misc]
            elif it.what == "slow":
                self._tell(name, slow=SLOW)
                self._later.append((end, lambda name=name: self._tell(name, slow=1.0)))  # type: ignore[misc]
        if it.what == "partition":
            cut = {name: i for i, group in enumerate(it.groups) for name in group}
            self._cuts.append(cut)
            self._cut_all()
            self._later.append((end, lambda: self._heal(cut)))

    def _heal(self, cut: dict[str, int]) -> None:
        self._cuts.remove(cut)
        self._cut_all()

    def _cut_all(self) -> None:
        """Tell every node whom it does not hear any more."""
        for name in self.cluster.names:
            gone = {
                other
                for cut in self._cuts
                for other in self.cluster.names
                if cut.get(other) != cut.get(name)
            }
            self._tell(name, cut=sorted(gone))
