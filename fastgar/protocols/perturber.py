"""What is done to the processes of a cluster, at its time."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterable
from typing import Any, Protocol

from .perturb import SLOW, Perturbation
from .processes import Processes

__all__ = ["Perturber"]


class Target(Protocol):
    """A cluster that things are done to."""

    def start(self, name: str) -> None: ...

    def kill(self, name: str, *, lose: bool) -> None: ...


class Perturber:
    """Does what is to be done.

    Parameters
    ----------
    target : Target
    processes : Processes
    todo : iterable of Perturbation

    Attributes
    ----------
    todo : list of Perturbation
    done : list of str
    """

    def __init__(self, target: Target, processes: Processes, todo: Iterable[Perturbation]) -> None:
        self._target, self._processes = target, processes
        self.todo, self.done = list(todo), list[str]()
        self._later: list[tuple[float, Callable[[], None]]] = []
        self._cuts: list[dict[str, int]] = []

    def advance(self, elapsed: float, step: int) -> None:
        """Do what is due."""
        for it in list(self.todo):
            due = step >= it.step if it.step is not None else elapsed >= (it.time or 0.0)
            if due:
                self.todo.remove(it)
                self.done.append(str(it))
                self._do(it, elapsed + it.span)
        for at, call in list(self._later):
            if elapsed >= at:
                self._later.remove((at, call))
                call()

    def _do(self, it: Perturbation, end: float) -> None:
        for name in (name for group in it.groups for name in group):
            if it.what in ("kill", "lose"):
                self._target.kill(name, lose=it.what == "lose")
            elif it.what == "restart" and not self._processes.running(name):
                self._target.start(name)
            elif it.what == "pause":
                self._processes.signal(name, signal.SIGSTOP)
                self._at(end, self._processes.signal, name, signal.SIGCONT)
            elif it.what == "slow":
                self._processes.tell(name, slow=SLOW)
                self._at(end, lambda name: self._processes.tell(name, slow=1.0), name)
        if it.what == "partition":
            cut = {name: i for i, group in enumerate(it.groups) for name in group}
            self._cuts.append(cut)
            self._cut_all()
            self._at(end, self._heal, cut)

    def _at(self, end: float, call: Callable[..., None], *arguments: Any) -> None:
        self._later.append((end, lambda: call(*arguments)))

    def _heal(self, cut: dict[str, int]) -> None:
        self._cuts.remove(cut)
        self._cut_all()

    def _cut_all(self) -> None:
        """Tell every node whom it does not hear any more."""
        names = self._processes.cluster.names
        for name in names:
            gone = {o for cut in self._cuts for o in names if cut.get(o) != cut.get(name)}
            self._processes.tell(name, cut=sorted(gone))
