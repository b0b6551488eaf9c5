"""A whole cluster on this machine, each node a process, from the first step to what came of it."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np

from .cluster import Cluster
from .learning import spread
from .outcome import Outcome
from .perturb import Perturbation, read_perturbation
from .perturber import Perturber
from .processes import Processes
from .record import traffic_lines
from .reports import Reports, State
from .totals import Totals, latest

__all__ = ["Failed", "Launch"]

SAVES = 10.0  # seconds between two lines about what was counted so far


class Failed(RuntimeError):
    """A node ended before its last step, and nobody had asked it to."""


class Launch:
    """The processes of a cluster: a context, at whose end none is left.

    Parameters
    ----------
    cluster : Cluster
    folder : Path
        Where each node keeps its state and results.
    write : callable
        Takes each line of results as it comes.
    before : iterable of dict
        Lines that it took in an earlier run, which this one goes on with.
    through : callable
        Takes the name of a node and its port, and returns the port at which others look for it: of
        a relay, maybe.
    popen : callable
        What starts a process.

    Attributes
    ----------
    killed : set of str
        Who is dead by wish.
    """

    def __init__(
        self,
        cluster: Cluster,
        folder: Path,
        write: Callable[[dict[str, Any]], None] = lambda line: None,
        before: Iterable[dict[str, Any]] = (),
        *,
        through: Callable[[str, int], int] = lambda name, port: port,
        popen: Callable[..., Any] = subprocess.Popen,
    ) -> None:
        self.folder = folder
        self.processes = Processes(cluster, folder, through, popen)
        self.cluster = self.processes.cluster
        self._reports = Reports(self.cluster, write, before)
        totals = self._reports.totals
        self.killed = set(totals.killed) & set(cluster.names)
        todo = [read_perturbation(line, cluster.names) for line in cluster.perturb]
        self._perturber = Perturber(self, self.processes, todo)
        for line in totals.perturbed:
            ours = next((it for it in self._perturber.todo if str(it) == line), None)
            if ours is not None:
                self._perturber.todo.remove(ours)
                self._perturber.done.append(line)
        self._earlier, self._began, self._saved = totals.seconds, time.monotonic(), 0.0

    def __enter__(self) -> Self:
        self._began = time.monotonic()
        self._save()
        for name in self.cluster.names:
            if name not in self.killed:
                self.start(name)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        over = [name for name, state in self.states.items() if kind is None and state.over]
        try:
            self.processes.end(over)
        finally:
            self._hear(0.0)
            if kind is not None:
                self._save()

    @property
    def states(self) -> dict[str, State]:
        """How each node is."""
        return self._reports.states

    @property
    def lines(self) -> list[dict[str, Any]]:
        """The lines of results, from the beginning of the run."""
        return self._reports.lines

    @property
    def over(self) -> bool:
        """Whether all honest nodes that are not dead by wish have done all steps."""
        todo = self._perturber.todo
        return all(
            state.over
            for name, state in self.states.items()
            if name not in self.cluster.liars and not (name in self.killed and not todo)
        )

    @property
    def elapsed(self) -> float:
        """Seconds since the start, those of an earlier run included: those of perturbations."""
        return self._earlier + time.monotonic() - self._began

    def plan(self, it: Perturbation) -> None:
        """Have something more done, at its time."""
        self._perturber.todo.append(it)

    def advance(self, seconds: float) -> None:
        """Let things happen for some time: take what the nodes say, do what is to be done to them.

        Raises
        ------
        Failed
            If a node ended that should not have.
        """
        until = time.monotonic() + seconds
        while True:
            steps = (s.step for n, s in self.states.items() if n.startswith("ps"))
            self._perturber.advance(self.elapsed, max(steps, default=0))
            heard = self._hear(min(until - time.monotonic(), 0.05))
            if not heard and time.monotonic() >= until:
                break
        if time.monotonic() - self._saved > SAVES:
            self._save()
        for name, code in self.processes.ended().items():
            if name not in self.killed and not self.states[name].over:
                last = self.processes.last_word(name)
                raise Failed(f"{name} ended with status {code}: {last}")

    def outcome(self) -> Outcome:
        """Return what has come of it."""
        cluster, totals = self.cluster, self._totals()
        servers = self._reports.honest
        reported = [n for n in servers or cluster.of_role("server") if n not in self.killed]
        paths = [self.folder / name / "model.npy" for name in reported]
        models = [np.load(path, allow_pickle=False) for path in paths if path.exists()]
        between = spread(models) if len(models) > 1 else 0.0
        if len(models) == len(servers) and any(line["kind"] == "spread" for line in self.lines):
            self._reports.line({"kind": "spread", "step": cluster.steps, "spread": between})
        for line in traffic_lines(cluster, [totals.traffic]):
            self._reports.line(line)
        most = max(totals.used.values(), default=0)
        return Outcome(
            cluster,
            cluster.training.seed,
            {
                name: state.accuracy
                for name, state in self.states.items()
                if state.accuracy is not None and name in reported
            },
            between,
            totals.messages,
            totals.bytes,
            totals.seconds,
            False,
            {"skipped": totals.skipped},
            totals.crashed,
            totals.waited_for,
            {
                name: totals.used.get(name, 0) / most for name in cluster.of_role("worker")
            } if most else {},
            totals.not_finite,
            totals.convicted,
            latest(self.lines),
            totals.parts - 1,
        )  # fmt: skip

    # As what things are done to.

    def start(self, name: str) -> None:
        """Start a node."""
        self.processes.start(name)
        self.killed.discard(name)

    def kill(self, name: str, *, lose: bool) -> None:
        """Kill a node, and maybe its disk."""
        self.processes.kill(name)
        self._hear(0.0)  # what it had counted
        self.killed.add(name)
        self._reports.died(name)
        if lose:
            (self.folder / name / "state").unlink(missing_ok=True)

    def _hear(self, seconds: float) -> bool:
        """Take what the nodes say: wait for the first of it only; return whether there was any."""
        event = self.processes.event(seconds)
        heard = event is not None
        while event is not None:
            self._reports.take(event)
            event = self.processes.event(0.0)
        return heard

    def _totals(self) -> Totals:
        found = self._reports.all_lives()
        found.seconds, found.killed = self.elapsed, sorted(self.killed)
        found.perturbed = list(self._perturber.done)
        return found

    def _save(self) -> None:
        """Write what was counted so far, for who goes on with this run."""
        self._saved = time.monotonic()
        self._reports.write(self._totals().line())
