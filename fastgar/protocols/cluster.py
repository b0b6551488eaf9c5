"""A cluster: who is in it, how many may lie, what they run, and how long they wait."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import fastgar as fg

from ..errors import require_name, shown
from ..train.config import Config
from ..train.rates import schedule
from .encoding import WIRES, encoded
from .mailbox import Want
from .pool import Pool
from .text import Kind, Text

__all__ = ["TWINS", "Address", "Cluster", "Group"]

TWINS = "twins"  # the attack that is none: see `fastgar.protocols.twins`
PREFIXES = {"server": "ps", "worker": "w"}
PIECES, PIECE = 8, 1 << 14  # into how many a gradient goes, if each has so many numbers


@dataclass(frozen=True)
class Group:
    """The servers, or the workers.

    Attributes
    ----------
    count : int
    f : int
        How many may lie or be gone without harm.
    byzantine : int
        How many lie in fact: the last ones.
    attack : str
    """

    count: int = 1
    f: int = 0
    byzantine: int = 0
    attack: str = "none"


@dataclass(frozen=True)
class Address:
    """Where a node is, the SHA-256 of its certificate, and the key that signs in it."""

    host: str
    port: int
    fingerprint: str = ""
    public_key: str = ""


@dataclass(frozen=True)
class Cluster:
    """Everything that a run of a protocol depends on.

    Attributes
    ----------
    text : Text
        The protocol.
    training : Config
        What is learned: model, data, batch, steps, learning rate, momentum (at the workers), seed.
    servers, workers : Group
    gather_every : int
        Steps from one exchange of models between servers to the next.
    quorum_servers, quorum_workers : int
        How many messages a node waits for; by default of all that are not expected to lie.
    agreement : {"dmc", "rbtm"}
        Of byzsgd: how servers come to an agreement when they gather, by the median of what each has
        heard, or by reliable broadcast and the trimmed mean.
    resilience : {"weak", "strong"}
        Of aggregathor: which rule it takes if none is named.
    holes : {"nan", "zero", "previous"}
        Of aggregathor: what stands where a piece of a gradient has not come by the deadline.
    pieces : int
        Of aggregathor: in how many a gradient goes; 0: up to 8, each of 16,384 numbers at least.
    wire : {"float32", "bfloat16"}
        As what models and gradients travel. What is not sent, such as a server's model between two
        gathers, is float32.
    deadline_floor, deadline_ceiling : float
        Seconds between which the adaptive deadlines lie.
    starting_deadline : float
        Seconds until a node that waits for the others to start says so.
    give_up : float
        Seconds of one wait after which a node ends.
    linger : float
        Seconds for which a node that is done still answers, if it was started by hand; those of
        `fastgar cluster` answer until all are done.

    Raises
    ------
    ValueError
        If numbers cannot be right; the message gives the smallest that would.
    """

    text: Text
    training: Config
    servers: Group
    workers: Group
    gather_every: int = 10
    quorum_servers: int = 0
    quorum_workers: int = 0
    agreement: str = "dmc"
    resilience: str = "weak"
    holes: str = "nan"
    pieces: int = 0
    wire: str = "float32"
    deadline_floor: float = 0.2
    deadline_ceiling: float = 10.0
    starting_deadline: float = 30.0
    give_up: float = 300.0
    linger: float = 30.0
    perturb: tuple[str, ...] = ()
    simulated: Mapping[str, Any] = field(default_factory=dict)
    nodes: Mapping[str, Address] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for what, group in (("servers", self.servers), ("workers", self.workers)):
            if group.count < 1:
                raise ValueError(f"there must be at least one of the {what}, got {group.count}")
            alone = what == "servers" and group.count == 1  # it may lie, to see what happens
            if not 0 <= group.byzantine < group.count + alone:
                raise ValueError(
                    f"byzantine {what} must be at least 0 and fewer than all {group.count}, "
                    f"got {group.byzantine}"
                )
            if group.f < 0:
                raise ValueError(f"f of the {what} must be at least 0, got {group.f}")
        if self.gather_every < 1:
            raise ValueError(f"gather_every must be at least 1, got {self.gather_every}")
        require_name("wire of [protocol]", self.wire, WIRES)
        if self.training.momentum and self.training.momentum_at != "worker":
            raise ValueError(
                "momentum is accumulated at the workers, as a server that catches up has no past: "
                'set momentum_at = "worker" or momentum = 0, '
                f"got {shown(self.training.momentum_at)}"
            )
        complaint = self.text.complaint(self)
        if complaint is None:
            complaint = self.aggregation.check(
                self.workers.count if self.text.everybody else self.q_w
            )
        if complaint is not None:
            raise ValueError(complaint)

    # Who.

    @cached_property
    def groups(self) -> dict[str, Group]:
        """Return the groups by role."""
        return {"server": self.servers, "worker": self.workers}

    @cached_property
    def names(self) -> tuple[str, ...]:
        """Return the names of all nodes: ps0, ps1, ..., w0, w1, ..."""
        return self.of_role("server") + self.of_role("worker")

    def of_role(self, role: str) -> tuple[str, ...]:
        """Return the names of all servers, or of all workers."""
        return self._by_role[role]

    def role(self, name: str) -> str:
        """Return whether a name is that of a server or of a worker."""
        return "server" if name in self._by_role["server"] else "worker"

    @cached_property
    def liars(self) -> frozenset[str]:
        """Return the names of the nodes that lie."""
        return frozenset(
            name
            for role, group in self.groups.items()
            for name in self.of_role(role)[group.count - group.byzantine :]
            if group.attack != "none"
        )

    @cached_property
    def twins(self) -> frozenset[str]:
        """Return the names of the liars of which each is two correct instances."""
        return frozenset(
            name for name in self.liars if self.groups[self.role(name)].attack == TWINS
        )

    @cached_property
    def ways(self) -> dict[str, Kind]:
        """Return the kinds of messages by their names in the protocol's text."""
        return {**self.text.kinds, **self.text.agreements.get(self.agreement, {})}

    @cached_property
    def parts(self) -> dict[str, tuple[str, ...]]:
        """Return, for each kind that goes in pieces, the kinds of the pieces."""
        return {kind: self.family(kind) for kind, way in self.ways.items() if way.pieces}

    def family(self, kind: str) -> tuple[str, ...]:
        """Return the kinds as which a kind travels: itself, or its pieces or copies."""
        way = self.ways[kind]
        count = {"": 0, "f": self.f_s + 1, "n": self.servers.count}[way.copies]
        count = self.pieces or 1 if way.pieces else count
        return tuple(f"{kind}/{i}" for i in range(count)) or (kind,)

    @cached_property
    def kinds(self) -> dict[str, Kind]:
        """Return the kinds of messages as they travel."""
        return {part: way for kind, way in self.ways.items() for part in self.family(kind)}

    def length(self, kind: str, d: int) -> int:
        """Return how many numbers a message of a kind holds, if a model has d."""
        whole, _, piece = kind.partition("/")
        way = self.ways[whole]
        if way.pieces and piece:
            start, stop = self.ends(d)[int(piece)]
            return stop - start
        return d * way.model + way.more + way.each * self.servers.count

    def dtype(self, kind: str) -> str:
        """Return as what the numbers of a kind travel: what is no model or gradient as float32."""
        way = self.ways[kind.partition("/")[0]]
        return self.wire if way.model and not (way.more or way.each) else "float32"

    def encoded(self, kind: str, vector: Any, pool: Pool | None = None) -> Any:
        """Return a vector as it travels in a message of a kind."""
        return encoded(vector, self.dtype(kind), pool)

    def ends(self, d: int) -> list[tuple[int, int]]:
        """Return where each piece of d numbers begins and ends."""
        count = self.pieces or 1
        return [(i * d // count, (i + 1) * d // count) for i in range(count)]

    def fitted(self, d: int) -> Cluster:
        """Return the cluster with a number of pieces for models of d numbers.

        A piece of a small gradient is no earlier than the whole, and a message costs as much.
        """
        return self if self.pieces else replace(self, pieces=min(PIECES, max(1, d // PIECE)))

    def talks(self, role: str, other: str) -> bool:
        """Return whether nodes of two roles have something to say to each other."""
        return any(
            (way.senders, receiver) in ((role, other), (other, role))
            for way in self.ways.values()
            for receiver in way.receivers
        )

    def enough(self, role: str, others: str) -> int:
        """Return how many of a role a node of a role must have heard of to start."""
        group = self.groups[others]
        return group.count - group.f if self.talks(role, others) else 0

    # What the texts use, by the names of the papers.

    @property
    def steps(self) -> int:
        """Return how many steps a run has."""
        return self.training.steps

    @property
    def f_s(self) -> int:
        """Return how many servers may lie."""
        return self.servers.f

    @property
    def f_w(self) -> int:
        """Return how many workers may lie."""
        return self.workers.f

    @property
    def q_s(self) -> int:
        """Return how many servers a node waits for."""
        return self.quorum_servers or self.servers.count - self.servers.f

    @property
    def q_w(self) -> int:
        """Return how many workers a server waits for."""
        return self.quorum_workers or self.workers.count - self.workers.f

    @property
    def signs(self) -> bool:
        """Return whether servers sign what they say."""
        return any(way.sealed for way in self.ways.values())

    @property
    def n_w(self) -> int:
        """Return how many workers there are."""
        return self.workers.count

    @property
    def span(self) -> int:
        """Return how many numbers a term of a leader has: one for each step, and one to spare."""
        return self.steps + 2

    def step(self, number: int) -> int:
        """Return the step of a number that messages carry: of terms after the first, the rest."""
        return min(number % self.span, self.steps)

    def leader(self, number: int) -> str:
        """Return who leads in the term of a number: each server in turn."""
        return self.of_role("server")[number // self.span % self.servers.count]

    def lr(self, t: int) -> float:
        """Return the learning rate of a step."""
        return float(self.training.lr * self._schedule(t))

    def rule(self, rows: Sequence[Any], t: int) -> Any:
        """Return what the rule makes of gradients."""
        rule = self.aggregation
        rule.step = t  # so that what is drawn depends on the step, not on how often it was called
        return rule(rows)

    def of_later_models(self, t: int) -> Want:
        """Return the want of a server that is behind: models of one later step.

        Of 2 f_s + 1 models the median lies within those of honest servers, in each coordinate. So
        many may never come, nor q_s: of liars that took part, and then fell silent. After some
        deadlines f_s + 2 will do, see `fastgar.protocols.byzsgd`.
        """
        most, least = 2 * self.f_s + 1, self.f_s + 2
        enough = least if least < most else None
        return Want("model", t + 1, most, self.f_s, later=True, enough=enough)

    @cached_property
    def aggregation(self) -> fg.Rule:
        """Return the rule."""
        return fg.rule(self.training.rule, f=self.f_w)

    @cached_property
    def _schedule(self) -> Any:
        return schedule(self.training.schedule)

    @cached_property
    def _by_role(self) -> dict[str, tuple[str, ...]]:
        return {
            role: tuple(f"{PREFIXES[role]}{i}" for i in range(group.count))
            for role, group in self.groups.items()
        }
