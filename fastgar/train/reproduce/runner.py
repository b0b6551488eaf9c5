"""Runs in parallel processes, each with its share of the cores.

The parent hands out one run at a time, and writes down what comes back as it comes. The processes
are fresh interpreters ("spawn"), deaf to Ctrl-C: the terminal sends it to all of them, and it is
for the parent to act on it. They end with the parent, however that ends.
"""

from __future__ import annotations

import importlib
import os
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from multiprocessing import get_context, parent_process, resource_tracker
from multiprocessing.connection import Connection, wait
from typing import Any

from ...machine import cores
from .setting import Run

__all__ = ["Outcome", "ProcessesDied", "run_all"]

THREAD_VARIABLES = (
    "OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMBA_NUM_THREADS",
)  # fmt: skip
ATTENTION = 1.0  # seconds after which Ctrl-C is seen at the latest
GIVE_UP = 3  # processes that died in a row, without any run that ended in between

Execute = Callable[[Mapping[str, Any], int], Mapping[str, Any]]


class ProcessesDied(RuntimeError):
    """Processes die again and again without getting anything done."""


@dataclass(frozen=True)
class Outcome:
    """How a run ended.

    Attributes
    ----------
    run : Run
    result : mapping or None
        What the function gave; None if there is nothing.
    failure : str
        Why there is nothing.
    """

    run: Run
    result: Mapping[str, Any] | None
    failure: str = ""


def run_all(runs: Sequence[Run], execute: str, processes: int) -> Iterator[Outcome]:
    """Yield how each run ended, in the order in which they end.

    Closing the iterator, by an exception or by Ctrl-C, kills the processes at once.

    Parameters
    ----------
    runs : sequence of Run
    execute : str
        ``module:function``, a function of (config, seed) that returns what JSON can hold.
    processes : int
        How many at a time.

    Raises
    ------
    ProcessesDied
        If processes die again and again without getting anything done.
    """
    waiting = list(reversed(runs))
    processes = max(1, min(processes, len(runs)))
    threads = max(1, len(cores()) // processes)
    team = _Team(execute, threads)
    deaths = 0
    try:
        while waiting or team.busy:
            while waiting and len(team.busy) < processes:
                team.start(waiting.pop())
            for outcome, died in team.wait():
                deaths = deaths + 1 if died else 0
                yield outcome
                if deaths >= GIVE_UP:
                    raise ProcessesDied(
                        f"{deaths} processes died one after the other, the last: {outcome.failure}"
                    )
    finally:
        team.kill()


class _Team:
    """The processes, idle or at work on a run."""

    def __init__(self, execute: str, threads: int) -> None:
        self.busy: dict[Connection, tuple[Any, Run]] = {}
        self._idle: list[tuple[Connection, Any]] = []
        self._execute, self._threads = execute, threads

    def start(self, run: Run) -> None:
        """Give a run to an idle process, or to a new one."""
        connection, process = self._idle.pop() if self._idle else self._hire()
        self.busy[connection] = (process, run)
        with suppress(OSError):  # if it died while idle: `wait` will see that
            connection.send((dict(run.setting.config), run.seed))

    def wait(self) -> Iterator[tuple[Outcome, bool]]:
        """Wait for processes to answer or die; yield what became of runs, and who died."""
        # Not for ever: Ctrl-C does not end a wait that begins at the same moment, nor one that
        # another thread than this is told of; then it is seen when the wait is over.
        for ready in wait(list(self.busy), ATTENTION):
            assert isinstance(ready, Connection)
            process, run = self.busy.pop(ready)
            try:
                result, failure = ready.recv()
            except (EOFError, OSError):
                process.join()
                ready.close()
                yield Outcome(run, None, f"its process {_ended(process.exitcode)}"), True
            else:
                self._idle.append((ready, process))
                yield Outcome(run, result, failure), False

    def kill(self) -> None:
        """End all processes now."""
        members = [*self._idle, *((c, process) for c, (process, _) in self.busy.items())]
        for _, process in members:
            process.kill()
        for connection, process in members:
            process.join()
            connection.close()
        self._idle, self.busy = [], {}

    def _hire(self) -> tuple[Connection, Any]:
        context = get_context("spawn")
        ours, theirs = context.Pipe()
        process = context.Process(
            target=_serve, args=(theirs, self._execute, self._threads), daemon=True
        )
        with _environment(self._threads), _interrupts_blocked():
            process.start()
        theirs.close()  # so that its death closes the pipe
        return ours, process


def _ended(code: int | None) -> str:
    if code is not None and code < 0:
        return f"was killed by {signal.Signals(-code).name}"
    return f"ended with status {code}"


@contextmanager
def _environment(threads: int) -> Iterator[None]:
    """Let processes that start inside the block read how many threads they may have.

    Libraries read that once, when they are loaded, so that a call in the process comes too late.
    """
    before = {name: os.environ.get(name) for name in THREAD_VARIABLES}
    os.environ.update(dict.fromkeys(THREAD_VARIABLES, str(threads)))
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


@contextmanager
def _interrupts_blocked() -> Iterator[None]:
    """Start processes inside the block deaf to Ctrl-C; one that comes meanwhile is not lost."""
    resource_tracker.ensure_running()  # which unblocks signals when it starts
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _serve(connection: Connection, execute: str, threads: int) -> None:
    """Do the runs that come, until the parent hangs up: what a process is for."""
    threading.Thread(target=_end_with_parent, daemon=True).start()
    sys.stdout = sys.stderr  # the parent's standard output holds the tables alone
    _use(threads)
    module, _, name = execute.partition(":")
    function: Execute = getattr(importlib.import_module(module), name)
    while True:
        try:
            config, seed = connection.recv()
        except EOFError:
            return
        try:
            answer: tuple[Any, str] = function(config, seed), ""
        except Exception:
            answer = None, traceback.format_exc()
        connection.send(answer)


def _use(threads: int) -> None:
    import torch

    import fastgar as fg

    torch.set_num_threads(threads)
    fg.set_threads(threads)


def _end_with_parent() -> None:
    parent = parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
