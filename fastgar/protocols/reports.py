"""What the nodes of a cluster say of themselves, put together."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

from .cluster import Cluster
from .learning import spread
from .totals import Totals, latest

__all__ = ["Reports", "State"]

Line = dict[str, Any]
STARTS = "importing"  # what a process does of which nothing was heard


@dataclass
class State:
    """What is known of a node.

    Attributes
    ----------
    starts : str
        What it does before it looks for the others: "importing", "loading data"; then nothing.
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

    starts: str = STARTS
    step: int = 0
    loss: float | None = None
    accuracy: float | None = None
    waiting: list[str] = field(default_factory=list)
    believed: list[str] = field(default_factory=list)
    over: bool = False
    counts: dict[str, Any] = field(default_factory=dict)
    said: str = ""


class Reports:
    """How the nodes are, and what has been evaluated.

    Parameters
    ----------
    cluster : Cluster
    write : callable
        Takes each line of results as it comes.
    before : iterable of dict
        Lines of a run that is taken up.

    Attributes
    ----------
    states : dict of str to State
    lines : list of dict
        Of results, from the beginning of the run.
    totals : Totals
        Of all lives that are over; `all_lives` has those of now, too.
    """

    def __init__(
        self, cluster: Cluster, write: Callable[[Line], None], before: Iterable[Line]
    ) -> None:
        before = list(before)
        self.cluster, self.write = cluster, write
        self.states = {name: State() for name in cluster.names}
        self.lines = latest(
            line for line in before if line["kind"] in ("evaluation", "spread", "convicted")
        )
        for line in self.lines:
            if line["kind"] == "evaluation" and line["node"] in self.states:
                state = self.states[line["node"]]
                state.accuracy, state.step = line["accuracy"], max(state.step, line["step"])
        self.totals = Totals.of(before)
        self.totals.parts += 1
        self._sketches: dict[int, dict[str, list[float]]] = {}

    @property
    def honest(self) -> list[str]:
        """The servers that do not lie."""
        return [n for n in self.cluster.of_role("server") if n not in self.cluster.liars]

    def all_lives(self) -> Totals:
        """Return all that was counted, also in the lives that are not over."""
        lives = {name: state.counts for name, state in self.states.items()}
        return self.totals.with_lives(self.cluster, lives)

    def died(self, name: str) -> None:
        """Take note that a node was killed."""
        self.totals = self.totals.with_lives(self.cluster, {name: self.states[name].counts})
        self.totals.crashed += 1
        self.states[name] = State(said=self.states[name].said)

    def take(self, event: Line) -> None:
        """Take note of what a node says."""
        name, kind = event["from"], event["kind"]
        state = self.states[name]
        if kind == "starts":
            state.starts = event["what"]
        elif kind == "said":
            state.said = event["what"]
        elif kind == "status":
            state.step, state.loss = event["step"], event["loss"]
            state.waiting, state.believed = event["waiting"], event["believed"]
        elif kind == "done":
            state.over, state.step, state.waiting = True, self.cluster.steps, []
        if kind in ("status", "done", "ended"):
            state.counts, state.starts = event, ""
        elif kind == "convicted":
            known = {line["node"] for line in self.lines if line["kind"] == "convicted"}
            if name not in self.cluster.liars and event["node"] not in known:
                self.line({key: value for key, value in event.items() if key != "from"})
        elif kind == "evaluation":
            state.accuracy = event["accuracy"]
            state.step = max(state.step, event["step"])
            sketch = event.pop("sketch", None)
            self.line({key: value for key, value in event.items() if key != "from"})
            if sketch is not None:
                self._spread(name, event["step"], sketch)

    def line(self, line: Line) -> None:
        """Write a line of results."""
        self.lines.append(line)
        self.write(line)

    def _spread(self, name: str, step: int, sketch: list[float]) -> None:
        """Write about what the spread of a step is when all honest servers have been there."""
        known = self._sketches.setdefault(step, {})
        known[name] = sketch
        if self.honest and all(n in known for n in self.honest):
            about = spread([known[n] for n in self.honest])
            self.line({"kind": "spread", "step": step, "spread": about, "estimated": True})
            del self._sketches[step]
