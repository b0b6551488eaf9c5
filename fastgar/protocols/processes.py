"""The processes of a cluster on this machine: their keys, which last as long, sockets and pipes."""

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
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from queue import Empty, Queue
from typing import Any

from ..network import make_key, public_key
from .cluster import Address, Cluster
from .file import to_toml
from .room import cores_allowed

__all__ = ["Processes"]

PATIENCE = 4.0  # seconds for processes to end that were told to
Event = dict[str, Any]


class Processes:
    """A process for each node.

    Parameters
    ----------
    cluster : Cluster
    folder : Path
        Where each node keeps its state, results and log.
    through : callable
        Takes the name of a node and its port, and returns the port at which others look for it: of
        a relay, maybe.
    popen : callable
        What starts a process.

    Attributes
    ----------
    cluster : Cluster
        With addresses and keys.
    """

    def __init__(
        self,
        cluster: Cluster,
        folder: Path,
        through: Callable[[str, int], int],
        popen: Callable[..., Any],
    ) -> None:
        self.folder, self._popen = folder, popen
        self._events: Queue[Event] = Queue()
        self._processes: dict[str, subprocess.Popen[str]] = {}
        self._readers: dict[str, threading.Thread] = {}
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

    def start(self, name: str) -> None:
        """Start a node."""
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
        self._readers[name] = threading.Thread(target=self._read, args=(name, process), daemon=True)
        self._readers[name].start()

    def running(self, name: str) -> bool:
        """Return whether a node was started, and has not ended."""
        return name in self._processes and self._processes[name].poll() is None

    def ended(self) -> dict[str, int]:
        """Return the status of all that have ended."""
        codes = {name: process.poll() for name, process in self._processes.items()}
        return {name: code for name, code in codes.items() if code is not None}

    def last_word(self, name: str) -> str:
        """Return the last line of a node's log."""
        log = self.folder / name / "log.txt"
        return (log.read_text().strip().splitlines() or ["it said nothing"])[-1]

    def tell(self, name: str, **order: Any) -> None:
        """Have a node do something."""
        if self.running(name):
            stdin = self._processes[name].stdin
            assert stdin is not None
            with contextlib.suppress(OSError):
                stdin.write(json.dumps(order) + "\n")
                stdin.flush()

    def signal(self, name: str, number: int) -> None:
        """Send a signal to a node."""
        if self.running(name):
            self._processes[name].send_signal(number)

    def kill(self, name: str) -> None:
        """End a node at once; all that it has said can be heard then."""
        self.signal(name, signal.SIGKILL)
        if name in self._processes:
            self._processes[name].wait()
            self._readers[name].join(PATIENCE)

    def event(self, seconds: float) -> Event | None:
        """Return what a node says within some time."""
        try:
            return self._events.get(timeout=max(0.0, seconds))
        except Empty:
            return None

    def end(self, done: Iterable[str]) -> None:
        """End all nodes: those that are done are asked to, others told."""
        try:
            done = set(done)
            for name in self._processes:
                self.signal(name, signal.SIGCONT)
                if name in done:
                    self.tell(name, end=True)
                else:
                    self.signal(name, signal.SIGTERM)
            until = time.monotonic() + PATIENCE
            for process in self._processes.values():
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(max(0.0, until - time.monotonic()))
        finally:  # also after a second signal
            for name, process in self._processes.items():
                self.kill(name)
                for pipe in (process.stdin, process.stdout):
                    if pipe is not None:
                        with contextlib.suppress(OSError):
                            pipe.close()
            for sock in self._sockets.values():
                sock.close()
            self._keys.cleanup()

    def _read(self, name: str, process: subprocess.Popen[str]) -> None:
        assert process.stdout is not None
        with contextlib.suppress(ValueError, OSError):
            for text in process.stdout:
                with contextlib.suppress(ValueError):
                    event = json.loads(text)
                    if isinstance(event, dict):
                        self._events.put({**event, "from": name})
