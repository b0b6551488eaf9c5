"""A network in one process and in virtual time: all that happens is drawn from a seed.

Same seed, same bytes: events are ordered by time and number, and nothing looks at a real clock.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterable
from typing import Any

from ..network.laws import Draws, Laws
from .cluster import Cluster
from .mailbox import Verdict
from .node import Node
from .perturb import Perturbation, read_perturbation
from .seals import Keys, Trial
from .storage import Memory

__all__ = ["Port", "Simulation"]

SLOW = 10.0  # times, if a node is said to be slow
HELLO = 64  # bytes of a message without a vector
HEADER = 96  # bytes before a vector


class Port:
    """What one life of a node sees of the network."""

    lossy = True

    def __init__(self, network: Simulation, name: str, rate: float, offset: float) -> None:
        self.network, self.name, self.rate, self.offset = network, name, rate, offset
        self.keys: Keys = Trial(name)
        self.tick_at = float("inf")  # on the network's clock

    def now(self) -> float:
        """Return the seconds on the node's own clock."""
        return self.network.now * self.rate + self.offset

    def post(self, node: Node, peer: str, kind: str, step: int, vector: Any) -> None:
        """Send a vector."""
        self.network.post(self.name, peer, kind, step, vector)

    def ask(self, node: Node, peer: str, kind: str, step: int) -> None:
        """Ask a peer for vectors."""
        network = self.network
        network.carry(self.name, peer, HELLO, lambda other: other.ask(self.name, kind, step))

    def hello(self, node: Node) -> None:
        """Tell everybody the step that the node is in, and hear theirs."""
        for peer in self.network.cluster.names:
            if peer != self.name:
                self.network.hello(node, peer, answer=True)

    def windows_moved(self, node: Node, kind: str) -> None:
        """Hand over what was to come later."""
        for peer, (step, vector) in self.network.stalled.pop((self.name, kind), {}).items():
            self.network.arrive(node, peer, kind, step, vector)

    def computes(self, node: Node) -> bool:
        """Let a computation take its time."""
        return self.network.compute(node)


class Simulation:
    """A cluster on a simulated network.

    Parameters
    ----------
    cluster : Cluster
    seed : int
        Of all that the network does.
    work : callable
        Takes a node's name and returns its work, see `Node`.
    watcher : Watcher
    lie_of : callable
        Takes a node's name and returns its lie, or None.

    Attributes
    ----------
    now : float
        Virtual seconds.
    messages, bytes : int
        That were sent.
    lost, skipped : int
        Messages that never came, and that came too late or twice.
    nodes : dict of str to Node
        Those that are alive.
    """

    def __init__(
        self,
        cluster: Cluster,
        seed: int,
        work: Callable[[str], Any],
        watcher: Any,
        lie_of: Callable[[str], Any] = lambda name: None,
    ) -> None:
        self.cluster, self.seed = cluster, seed
        self.laws = Laws.of(cluster.simulated)
        self.draws = Draws(seed)
        self.watcher, self._work, self._lie_of = watcher, work, lie_of
        self.now = 0.0
        self.messages = self.bytes = self.lost = self.skipped = self.crashes = 0
        self.nodes: dict[str, Node] = {}
        self.disks = {name: Memory() for name in cluster.names}
        self.stalled: dict[tuple[str, str], dict[str, tuple[int, Any]]] = {}
        self._heap: list[tuple[float, int, Callable[[], None]]] = []
        self._number = 0
        self._free = dict.fromkeys(cluster.names, 0.0)
        self._paused: dict[str, list[Callable[[], None]]] = {}
        self._cuts: list[dict[str, int]] = []
        self._slow: set[str] = set()
        self._on_step: list[Perturbation] = []
        skew = self.laws.skew
        self._clocks = {
            name: (1 + skew * (2 * self.draws.uniform() - 1), 1e6 * self.draws.uniform())
            for name in cluster.names
        }
        for line in cluster.perturb:
            perturbation = read_perturbation(line, cluster.names)
            if perturbation.step is not None:
                self._on_step.append(perturbation)
            else:
                self.at(perturbation.time or 0.0, lambda it=perturbation: self.perturb(it))  # type: ignore[misc]
        for name in cluster.names:
            self.at(0.0, lambda name=name: self.start(name))  # type: ignore[misc]

    # Time.

    def at(self, time: float, call: Callable[[], None]) -> None:
        """Call something at a time, after what was to be called then before."""
        self._number += 1
        heapq.heappush(self._heap, (time, self._number, call))

    def run(self, until: Callable[[], bool], limit: float = float("inf")) -> bool:
        """Let things happen until a condition holds; return whether it does.

        It does not if nothing more happens, or the virtual time passes the limit.
        """
        heap, pop = self._heap, heapq.heappop
        while not until():
            if not heap or heap[0][0] > limit:
                return False
            self.now, _, call = pop(heap)
            call()
        return True

    # What nodes do.

    def post(self, sender: str, peer: str, kind: str, step: int, vector: Any) -> None:
        """Send a vector."""
        self.watcher.posted(sender, peer, kind, step, vector)
        size = HEADER + vector.nbytes
        self.carry(sender, peer, size, lambda node: self.arrive(node, sender, kind, step, vector))
        if kind == "model" and self._on_step and sender not in self.cluster.liars:
            self._reached(self.cluster.step(step))

    def carry(self, sender: str, peer: str, size: int, call: Callable[[Node], None]) -> None:
        """Have something called with the peer's node when it gets there, if it does."""
        laws, draws = self.laws, self.draws
        self.messages += 1
        self.bytes += size
        free = max(self.now, self._free[sender]) + size / laws.bandwidth
        self._free[sender] = free
        times = 1
        if laws.loss and draws.uniform() < laws.loss:
            self.lost += 1
            return
        if laws.duplicate and draws.uniform() < laws.duplicate:
            times = 2
        for _ in range(times):
            slow = SLOW if sender in self._slow or peer in self._slow else 1.0
            latency = slow * draws.lognormal(laws.latency, laws.jitter)
            self.at(free + latency, lambda: self._deliver(sender, peer, call))

    def arrive(self, node: Node, peer: str, kind: str, step: int, vector: Any) -> None:
        """Give a vector to a node, now or when it will take it."""
        verdict = node.verdict(peer, kind, step)
        if verdict is Verdict.TAKE:
            self.watcher.taken(node, peer, kind, step, vector)
            node.receive(peer, kind, step, vector)
        elif verdict is Verdict.SKIP:
            self.skipped += 1
        else:
            waiting = self.stalled.setdefault((node.name, kind), {})
            if peer not in waiting or waiting[peer][0] < step:
                waiting[peer] = step, vector

    def hello(self, node: Node, peer: str, *, answer: bool) -> None:
        """Tell a peer the step that a node is in, and what it has heard from it."""
        at, heard, name = node.at, node.heard(peer), node.name

        def call(other: Node) -> None:
            other.greet(name, at, heard)
            if answer:
                self.hello(other, name, answer=False)
                other.send_again(name)

        self.carry(name, peer, HELLO, call)

    def compute(self, node: Node) -> bool:
        """Let a computation take its time."""
        if not self.laws.compute:
            return False
        slow = SLOW if node.name in self._slow else 1.0
        seconds = slow * self.draws.lognormal(self.laws.compute, self.laws.jitter / 2)
        self.at(self.now + seconds, lambda: self._awake(node, node.resume))
        return True

    # What happens to them.

    def start(self, name: str) -> None:
        """Start a node, or start it again from its disk."""
        if name in self.nodes:
            return
        port = Port(self, name, *self._clocks[name])
        node = Node(name, self.cluster, self._work(name), self.disks[name], port, self.watcher)
        node.lie = self._lie_of(name)
        self.nodes[name] = node
        node.begin()
        self._plan(node)

    def kill(self, name: str) -> None:
        """End a node at once: what is in its memory is lost, what it has sent is on its way."""
        if self.nodes.pop(name, None) is not None:
            self.crashes += 1
        self._paused.pop(name, None)
        for key in [key for key in self.stalled if key[0] == name]:
            del self.stalled[key]

    def perturb(self, it: Perturbation) -> None:
        """Do what a perturbation says."""
        names = [name for group in it.groups for name in group]
        if it.what in ("kill", "lose"):
            for name in names:
                self.kill(name)
                if it.what == "lose":
                    self.disks[name].lose()
        elif it.what == "restart":
            for name in names:
                self.start(name)
        elif it.what == "pause":
            for name in names:
                self._paused.setdefault(name, [])
            self.at(self.now + it.span, lambda: self._wake(names))
        elif it.what == "slow":
            self._slow.update(names)
            self.at(self.now + it.span, lambda: self._slow.difference_update(names))
        else:
            cut = {name: i for i, group in enumerate(it.groups) for name in group}
            self._cuts.append(cut)
            self.at(self.now + it.span, lambda: self._cuts.remove(cut))

    def _reached(self, step: int) -> None:
        due = [it for it in self._on_step if it.step is not None and it.step <= step]
        for it in due:
            self._on_step.remove(it)
            self.at(self.now, lambda it=it: self.perturb(it))  # type: ignore[misc]

    def _deliver(self, sender: str, peer: str, call: Callable[[Node], None]) -> None:
        if any(cut.get(sender) != cut.get(peer) for cut in self._cuts):
            self.lost += 1
            return
        node = self.nodes.get(peer)
        if node is None:
            self.lost += 1
            return
        self._awake(node, lambda: call(node))

    def _awake(self, node: Node, call: Callable[[], None]) -> None:
        """Call something of a node that is alive and awake; later, if it sleeps."""
        if self.nodes.get(node.name) is not node:
            return
        if node.name in self._paused:
            self._paused[node.name].append(lambda: self._awake(node, call))
            return
        call()
        self._plan(node)

    def _wake(self, names: Iterable[str]) -> None:
        for name in names:
            for call in self._paused.pop(name, []):
                call()

    def _plan(self, node: Node) -> None:
        """See to it that a node's tick comes when it is due."""
        port = node.transport
        assert isinstance(port, Port)
        due = (node.due - port.offset) / port.rate
        if due < port.tick_at:
            port.tick_at = due
            self.at(max(due, self.now), lambda: self._tick(node, port))

    def _tick(self, node: Node, port: Port) -> None:
        if self.nodes.get(node.name) is not node:
            return
        port.tick_at = float("inf")
        if node.done and port.now() - self.watcher.ended_at(node) > self.cluster.linger:
            return
        self._awake(node, node.tick)
