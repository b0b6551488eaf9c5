"""Processes of nodes that cost little to start: forked from one that has imported everything.

From its first step on each is a process like any other, which may be stopped and killed. The one
that they come from has a single thread, so that nothing is lost in the fork.
"""

from __future__ import annotations

import ctypes
import json
import os
import random
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

__all__ = ["Forked", "nursery"]

ONE = dict.fromkeys(
    ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMBA_NUM_THREADS"), "1"
)
MOST = 1 << 16  # bytes of a request


class Nursery:
    """The process that others are forked from; `popen` takes what `subprocess.Popen` does."""

    def __init__(self) -> None:
        self.sock, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.lock = threading.Lock()
        self.process = subprocess.Popen(
            [sys.executable, __file__, str(theirs.fileno())],
            pass_fds=[theirs.fileno()], env={**os.environ, **ONE},
        )  # fmt: skip
        theirs.close()

    def ask(self, request: Mapping[str, Any], files: Sequence[int] = ()) -> Any:
        """Send a request and return the answer."""
        with self.lock:
            socket.send_fds(self.sock, [json.dumps(request).encode()], files)
            return json.loads(self.sock.recv(MOST))

    def popen(self, command: Sequence[str], **options: Any) -> Forked:
        """Start a node: the command is that of ``python -m fastgar.cli``.

        With ``machine`` it is in the network of that process, and has its clock.
        """
        machine = options.get("machine")
        return Forked(
            self, list(command[3:]), options.get("pass_fds", ()), options["stderr"], machine
        )

    def close(self) -> None:
        self.sock.close()
        self.process.wait()


class Forked:
    """A process, as far as `Launch` and tests look at one."""

    def __init__(
        self,
        it: Nursery,
        words: Sequence[str],
        passed: Sequence[int],
        errors: Any,
        machine: int | None,
    ) -> None:
        self.it = it
        (stdin, self_in), (self_out, stdout) = os.pipe(), os.pipe()
        log = stdout if errors == subprocess.STDOUT else errors.fileno()
        request = {"words": list(words), "passed": list(passed), "machine": machine}
        self.pid = it.ask(request, [stdin, stdout, log, *passed])
        self.stdin, self.stdout = os.fdopen(self_in, "w"), os.fdopen(self_out)
        os.close(stdin)
        os.close(stdout)
        self.returncode: int | None = None

    def poll(self) -> int | None:
        if self.returncode is None:
            self.returncode = self.it.ask({"poll": self.pid})
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        end = float("inf") if timeout is None else time.monotonic() + timeout
        while (code := self.poll()) is None:
            if time.monotonic() > end:
                raise subprocess.TimeoutExpired("a node", timeout or 0.0)
            time.sleep(0.02)
        return code

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


@contextmanager
def nursery() -> Iterator[Nursery]:
    """Yield a nursery; it ends with the block."""
    made = Nursery()
    try:
        yield made
    finally:
        made.close()


# ----------------------------------------------------------------------------- in the other process


def serve(sock: socket.socket) -> None:
    """Fork a node for each request, and say how the others do."""
    while True:
        data, files, _, _ = socket.recv_fds(sock, MOST, 16)
        if not data:
            return
        request = json.loads(data)
        if "poll" in request:
            pid, status = os.waitpid(request["poll"], os.WNOHANG)
            answer = os.waitstatus_to_exitcode(status) if pid else None
        else:
            answer = os.fork()
            if answer == 0:
                sock.close()
                live(request, files)
            for each in files:
                os.close(each)
        sock.send(json.dumps(answer).encode())


def live(request: Mapping[str, Any], files: Sequence[int]) -> None:
    """Run a node in a child, to its end."""
    code = 1
    try:
        os.setpgid(0, 0)
        wanted = dict(zip((0, 1, 2, *request["passed"]), files, strict=True))
        high = {to: os.dup2(each, 1000 + to, inheritable=False) for to, each in wanted.items()}
        for each in files:
            os.close(each)
        for to, each in high.items():
            os.dup2(each, to)
            os.close(each)
        random.seed()
        if request["machine"] is not None:
            enter(request["machine"])
        sys.stdout, sys.stderr = os.fdopen(1, "w"), os.fdopen(2, "w", buffering=1)
        code = main(request["words"])
    except SystemExit as end:
        code = int(end.code or 0)
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def enter(pid: int) -> None:
    """Go to where another process is: its network, and the clock of its children."""
    library = ctypes.CDLL(None, use_errno=True)
    for what in ("net", "time_for_children"):
        place = os.open(f"/proc/{pid}/ns/{what}", os.O_RDONLY)
        if library.setns(place, 0):
            raise OSError(ctypes.get_errno(), f"cannot enter {what}")
        os.close(place)


if __name__ == "__main__":
    import numpy as np

    import fastgar as fg
    from fastgar.cli.main import main
    from fastgar.protocols import member  # noqa: F401  (torch, and all else that a node needs)
    from fastgar.protocols.learning import Learning
    from fastgar.train.config import Config

    Learning(Config(model="logistic"))  # the data, and torch's own first time
    fg.mda(np.eye(7, 650, dtype=np.float32), f=2)
    fg.median(np.eye(4, 650, dtype=np.float32), f=1)
    assert threading.active_count() == len(os.listdir("/proc/self/task")) == 1
    serve(socket.socket(fileno=int(sys.argv[1])))
