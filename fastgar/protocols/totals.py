"""What the nodes of a run have counted, in all their lives: a line of results, and its totals."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from .cluster import Cluster
from .record import add_traffic

__all__ = ["Totals", "latest"]

Line = dict[str, Any]


@dataclass
class Totals:
    """Totals from the beginning of a run.

    Attributes
    ----------
    parts : int
        How often it was begun, or taken up.
    seconds : float
    crashed : int
        How often a node was killed by wish.
    messages, bytes, skipped : int
    waited_for, not_finite, used, convicted : dict of str to int
        As `Record` has them; gradients that are used at honest servers alone, and what liars say of
        others left out.
    traffic : dict of int to list
    killed : list of str
        Who is dead by wish.
    perturbed : list of str
        What has been done to the cluster.
    """

    parts: int = 0
    seconds: float = 0.0
    crashed: int = 0
    messages: int = 0
    bytes: int = 0
    skipped: int = 0
    waited_for: dict[str, int] = field(default_factory=dict)
    not_finite: dict[str, int] = field(default_factory=dict)
    used: dict[str, int] = field(default_factory=dict)
    convicted: dict[str, int] = field(default_factory=dict)
    traffic: dict[int, list[int]] = field(default_factory=dict)
    killed: list[str] = field(default_factory=list)
    perturbed: list[str] = field(default_factory=list)

    @classmethod
    def of(cls, lines: Iterable[Mapping[str, Any]]) -> Totals:
        """Return the last that a run has written; an empty one if there is none."""
        found = cls()
        for line in lines:
            if line["kind"] == "so_far":
                found = cls(**{name: line[name] for name in cls.__dataclass_fields__})
        found.traffic = {int(until): counts for until, counts in found.traffic.items()}
        return found

    def line(self) -> Line:
        """Return it as a line of results."""
        return {"kind": "so_far", **asdict(self)}

    def with_lives(self, cluster: Cluster, lives: Mapping[str, Mapping[str, Any]]) -> Totals:
        """Return what it is with what nodes have counted in one life of each.

        Parameters
        ----------
        cluster : Cluster
        lives : mapping of str to dict
            By name: what `fastgar node` says of itself.
        """
        found = Totals(**{**vars(self), "convicted": dict(self.convicted)})
        sums = {name: Counter(getattr(self, name)) for name in ("waited_for", "not_finite", "used")}
        for name, counts in lives.items():
            for what in ("messages", "bytes", "skipped"):
                setattr(found, what, getattr(found, what) + counts.get(what, 0))
            if name not in cluster.liars:
                sums["waited_for"].update(counts.get("waited_for", {}))
                sums["not_finite"].update(counts.get("not_finite", {}))
                found.convicted.update(counts.get("convicted", {}))
                if cluster.role(name) == "server":
                    sums["used"].update(counts.get("used", {}))
        for what, sum_ in sums.items():
            setattr(found, what, dict(sum_))
        found.traffic = add_traffic([self.traffic, *(c.get("traffic", {}) for c in lives.values())])
        return found


def latest(lines: Iterable[Line]) -> list[Line]:
    """Return lines of results of which each is the last of its kind, node and step."""
    return list({(line["kind"], line.get("node"), line["step"]): line for line in lines}.values())
