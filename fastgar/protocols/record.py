"""What is kept of a run: accuracy of servers, spread between them, who was waited for."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .cluster import Cluster
from .encoding import numbers
from .learning import Learning, spread
from .mailbox import Received, Want
from .node import Node

__all__ = ["Record", "add_traffic", "traffic_lines"]

Vector = NDArray[Any]
Line = dict[str, Any]
Traffic = Mapping[int, Sequence[int]]


class Record:
    """Watches a run, and writes a line for each evaluation.

    Parameters
    ----------
    cluster : Cluster
    learning : Learning
    write : callable
        Takes each line as it comes.

    Attributes
    ----------
    accuracy : dict of str to float
        Of each honest server, the last; of a single one that lies, what it sends.
    spread : float or None
        The largest distance of two honest servers' models, the last that is known.
    waited_for : Counter
        How often a deadline passed, by whom it was waited for.
    used : Counter
        In how many steps a worker's gradient was used, over all honest servers.
    not_finite : Counter
        In how many steps a node sent NaN or infinity, as one honest node or another has seen.
    convictions : dict of str to int
        Who has been proved to have said two things, and of which step.
    traffic : dict of int to list
        Messages and bytes of vectors that were sent for the steps from one evaluation to the next,
        by the step of the latter.
    """

    def __init__(
        self,
        cluster: Cluster,
        learning: Learning,
        write: Callable[[Line], None] = lambda line: None,
    ) -> None:
        self.cluster, self.learning, self.write = cluster, learning, write
        servers = cluster.of_role("server")
        # Of a server that lies and is the only one: what it sends.
        self.honest = [name for name in servers if name not in cluster.liars] or list(servers)
        self.accuracy: dict[str, float] = {}
        self.spread: float | None = None
        self.waited_for: Counter[str] = Counter()
        self.used: Counter[str] = Counter()
        self.not_finite: Counter[str] = Counter()
        self.convictions: dict[str, int] = {}
        self.traffic: dict[int, list[int]] = {}
        self.lines: list[Line] = []
        self.ended_nodes: dict[str, Node] = {}
        self._ends: dict[int, float] = {}
        self._models: dict[int, dict[str, Vector]] = {}
        self._evaluated: tuple[Vector, float] | None = None

    def posted(self, sender: str, peer: str, kind: str, step: int, vector: Vector) -> None:
        """Take note of a message that is sent."""
        step, every = self.cluster.step(step), self.cluster.training.evaluation_interval
        if 0 <= step < self.cluster.steps:
            until = min((step // every + 1) * every, self.cluster.steps)
            traffic = self.traffic.setdefault(until, [0, 0])
            traffic[0] += 1
            traffic[1] += vector.nbytes
        if kind not in ("model", "final") or sender not in self.honest:
            return
        if step % every and step != self.cluster.steps:
            return
        models = self._models.setdefault(step, {})
        if sender not in models:
            vector = models[sender] = numbers(vector)
            self.accuracy[sender] = self._accuracy(vector)
            line = {"kind": "evaluation", "node": sender, "step": step}
            self._write({**line, "accuracy": self.accuracy[sender]})
            if len(models) == len(self.honest):
                self.spread = spread(list(models.values()))
                self._write({"kind": "spread", "step": step, "spread": self.spread})
                del self._models[step]
                self._models.update({step: dict.fromkeys(self.honest, vector)})

    def taken(self, node: Node, peer: str, kind: str, step: int, vector: Vector) -> None:
        """Take note of a message that a node accepts."""

    def collected(self, node: Node, want: Want, received: Received, seconds: float) -> None:
        """Take note of a quorum."""
        if received.faulty and node.name not in self.cluster.liars:
            self.not_finite.update(received.faulty)
        if received.kind == "gradient" and node.name in self.honest:
            self.used.update(name for name in received.names if name not in received.holes)

    def late(self, node: Node, want: Want, lacking: Sequence[str]) -> None:
        """Take note of a deadline that passed."""
        if node.name not in self.cluster.liars:
            self.waited_for.update(lacking)

    def convicted(self, node: Node, name: str, step: int) -> None:
        """Write whom an honest node has convicted, and of which step: once."""
        if name not in self.convictions and node.name not in self.cluster.liars:
            self.convictions[name] = step
            self._write({"kind": "convicted", "node": name, "step": step})

    def ended(self, node: Node) -> None:
        """Take note of a node's end."""
        self.ended_nodes[node.name] = node
        self._ends[id(node)] = node.transport.now()

    def ended_at(self, node: Node) -> float:
        """Return when a node ended."""
        return self._ends[id(node)]

    def finish(self) -> None:
        """Write what was sent."""
        for line in traffic_lines(self.cluster, [self.traffic]):
            self._write(line)

    def finished(self) -> bool:
        """Return whether all honest nodes have done all steps."""
        return all(
            name in self.ended_nodes
            for name in self.cluster.names
            if name not in self.cluster.liars
        )

    def _write(self, line: Line) -> None:
        self.lines.append(line)
        self.write(line)

    def _accuracy(self, model: Vector) -> float:
        """Return a model's accuracy; servers that agree are evaluated once."""
        if self._evaluated is None or not np.array_equal(self._evaluated[0], model):
            self._evaluated = model, self.learning.accuracy(model)
        return self._evaluated[1]


def add_traffic(parts: Iterable[Traffic]) -> dict[int, list[int]]:
    """Return the sums of what several records have of the steps up to each evaluation."""
    sums: dict[int, list[int]] = {}
    for part in parts:
        for until, counts in part.items():
            before = sums.get(int(until), [0, 0])
            sums[int(until)] = [a + b for a, b in zip(before, counts, strict=True)]
    return sums


def traffic_lines(cluster: Cluster, parts: Iterable[Traffic]) -> list[Line]:
    """Return what was sent, in a step of each time between evaluations, as lines of results.

    Parameters
    ----------
    cluster : Cluster
    parts : iterable of dict
        The `Record.traffic` of one record, or of each node's.
    """
    every = cluster.training.evaluation_interval
    lines = []
    for until, (messages, sent) in sorted(add_traffic(parts).items()):
        steps = (until - 1) % every + 1
        line = {"step": until, "messages": messages / steps, "bytes": sent / steps}
        lines.append({"kind": "traffic", **line})
    return lines
