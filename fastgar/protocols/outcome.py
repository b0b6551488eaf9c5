"""What a run has come to."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from .cluster import Cluster

__all__ = ["Outcome"]


@dataclass
class Outcome:
    """The end of a run.

    Attributes
    ----------
    cluster : Cluster
    seed : int
    accuracy : dict of str to float
        On the test set, of each honest server's last model; on the simulated network without those
        that were killed for good.
    spread : float or None
        The largest distance of two honest servers' last models.
    messages, bytes : int
        That were sent.
    seconds : float
        Virtual ones on the simulated network.
    simulated : bool
    dropped : dict of str to int
        Messages that never came or were not used, by cause.
    crashed : int
        How often a node was killed.
    waited_for : dict of str to int
        How often a deadline passed while somebody waited for a node.
    shares : dict of str to float
        Of each worker, in how many of the honest servers' steps its gradient was used (0 to 1).
    not_finite : dict of str to int
        How often an honest node had NaN or infinity from a node.
    convicted : dict of str to int
        Who has been proved to have said two things, and of which step.
    lines : list of dict
        Evaluations and spreads as they came, and what a step sent.
    taken_up : int
        How often a run of processes went on after it was interrupted; all counts and seconds are
        those of the whole.
    """

    cluster: Cluster = field(repr=False)
    seed: int
    accuracy: dict[str, float]
    spread: float | None
    messages: int
    bytes: int
    seconds: float
    simulated: bool
    dropped: dict[str, int]
    crashed: int
    waited_for: dict[str, int]
    shares: dict[str, float]
    not_finite: dict[str, int]
    convicted: dict[str, int]
    lines: list[dict[str, Any]] = field(default_factory=list, repr=False)
    taken_up: int = 0

    @classmethod
    def of_summary(cls, cluster: Cluster, line: Mapping[str, Any]) -> Outcome:
        """Return what a line of ``results.jsonl`` says, as `summary` has made it."""
        simulated = "virtual_seconds" in line
        known = {each.name for each in fields(cls)}
        found = {name: value for name, value in line.items() if name in known}
        nan = float("nan")
        found["accuracy"] = {n: nan if a is None else a for n, a in line["accuracy"].items()}
        found["seconds"] = line["virtual_seconds" if simulated else "seconds"]
        return cls(cluster=cluster, simulated=simulated, **found)

    @property
    def lowest(self) -> float:
        """The accuracy of the worst honest server."""
        return min(self.accuracy.values(), default=float("nan"))

    def summary(self) -> dict[str, Any]:
        """Return the last line of ``results.jsonl``."""
        clock = "virtual_seconds" if self.simulated else "seconds"
        return {
            "kind": "summary",
            "protocol": self.cluster.text.name,
            "steps": self.cluster.steps,
            "seed": self.seed,
            "accuracy": self.accuracy,
            "spread": self.spread,
            "messages": self.messages,
            "bytes": self.bytes,
            clock: self.seconds,
            "dropped": self.dropped,
            "crashed": self.crashed,
            "waited_for": self.waited_for,
            "shares": self.shares,
            "not_finite": self.not_finite,
            "convicted": self.convicted,
            **({} if self.simulated else {"taken_up": self.taken_up}),
        }
