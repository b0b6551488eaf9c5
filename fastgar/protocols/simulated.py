"""A network in one process and in virtual time: all that happens is drawn from a seed.

Same seed, same bytes: events are ordered by time and number, and nothing looks at a real clock.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterable
from itertools import permutations
from typing import Any

from ..network.laws import Draws, Laws
from ..statistic import hash_key
from .cluster import Cluster
from .encoding import numbers
from .mailbox import WINDOW, Verdict
from .node import Node
from .perturb import SLOW, Perturbation, read_perturbation
from .port import HELLO, Port, Sent, port_of
from .storage import Memory
from .twins import Split

__all__ = ["Simulation"]

HEADER = 96  # bytes before a vector
REDIAL = 4.0  # seconds until who did not hear each other do again, at most


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
        Those that are alive, by instance: the first of a name has that name.
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
        self.instances = {
            name: (name, f"{name}'") if name in cluster.twins else (name,) for name in cluster.names
        }
        every = [instance for instances in self.instances.values() for instance in instances]
        self.disks = {instance: Memory() for instance in every}
        self.stalled: dict[tuple[str, str], list[Sent]] = {}  # of who reads, and who sent
        self._heap: list[tuple[float, int, Callable[[], None]]] = []
        self._number = 0
        self._free = dict.fromkeys(every, 0.0)
        self._paused: dict[str, list[Callable[[], None]]] = {}
        self._cuts: list[dict[str, int]] = []
        self._slow: set[str] = set()
        self._on_step: list[Perturbation] = []
        skew = self.laws.skew
        self._clocks = {
            name: (1 + skew * (2 * self.draws.uniform() - 1), 1e6 * self.draws.uniform())
            for name in cluster.names
        }
        self._splits = {
            name: Split(
                [other for other in cluster.names if other != name],
                hash_key(seed, number),
                self.laws.latency + self.laws.compute,
            )
            for number, name in enumerate(cluster.names)
            if name in cluster.twins
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

    def post(self, port: Port, peer: str, kind: str, step: int, vector: Any) -> None:
        """Send a vector."""
        sender = port.name
        self.watcher.posted(sender, peer, kind, step, vector)
        size = HEADER + vector.nbytes
        self.carry(port, peer, size, lambda node: self.arrive(node, port, kind, step, vector))
        if kind == "model" and self._on_step and sender not in self.cluster.liars:
            self._reached(self.cluster.step(step))

    def carry(self, port: Port, peer: str, size: int, call: Callable[[Node], None]) -> None:
        """Have something called with the peer's node when it gets there, if it does."""
        laws, draws, sender = self.laws, self.draws, port.name
        self.messages += 1
        self.bytes += size
        free = max(self.now, self._free[port.instance]) + size / laws.bandwidth
        self._free[port.instance] = free
        times = 1
        if laws.loss and draws.uniform() < laws.loss:
            self.lost += 1
            return
        if laws.duplicate and draws.uniform() < laws.duplicate:
            times = 2
        for instance in times * self.instances[peer]:
            slow = SLOW if sender in self._slow or peer in self._slow else 1.0
            latency = slow * draws.lognormal(laws.latency, laws.jitter)
            self.at(free + latency, lambda to=instance: self._deliver(port, peer, to, call))  # type: ignore[misc]

    def arrive(self, node: Node, port: Port, kind: str, step: int, vector: Any) -> None:
        """Give a vector to a node, now or when it will take it."""

        peer = port.name

        def take() -> bool:
            verdict = node.verdict(peer, kind, step)
            if verdict is Verdict.TAKE:
                values = numbers(vector)
                self.watcher.taken(node, peer, kind, step, values)
                node.receive(peer, kind, step, values)
            elif verdict is Verdict.SKIP:
                self.skipped += 1
            return verdict is not Verdict.LATER

        self.read(node, port, Sent(kind, step, take))

    def read(self, node: Node, port: Port, sent: Sent) -> None:
        """Have a node read what a peer sent, behind what it has not read of it.

        So a message that is to come later holds up all that its sender says after it, as on one
        connection. Of each kind the two newest steps wait there.
        """
        link = port_of(node).instance, port.instance
        waiting = self.stalled.get(link)
        if waiting is None:
            if not sent.take():
                self.stalled[link] = [sent]
            return
        same = [each for each in waiting[1:] if each.kind == sent.kind]
        if all(each.step != sent.step for each in same):
            waiting.append(sent)
            if len(same) == WINDOW:
                waiting.remove(min(*same, sent, key=lambda each: each.step))

    def hello(self, node: Node, peer: str, *, answer: bool) -> None:
        """Tell a peer the step that a node is in, and what it has heard from it."""
        at, heard, name = node.at, node.heard(peer), node.name

        def call(other: Node) -> None:
            other.greet(name, at, heard)
            if answer:
                self.hello(other, name, answer=False)
                other.send_again(name)

        self.carry(port_of(node), peer, HELLO, call)

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
        for number, instance in enumerate(self.instances[name]):
            if instance in self.nodes:
                continue
            port, disk = Port(self, name, number, *self._clocks[name]), self.disks[instance]
            node = Node(name, self.cluster, self._work(name), disk, port, self.watcher)
            node.lie = self._lie_of(name)
            self.nodes[instance] = node
            node.begin()
            self._plan(node)

    def kill(self, name: str) -> None:
        """End a node at once: what is in its memory is lost, what it has sent is on its way."""
        self.crashes += name in self.nodes
        self._paused.pop(name, None)
        for instance in self.instances[name]:
            self.nodes.pop(instance, None)
            for link in [link for link in self.stalled if instance in link]:  # connections break
                del self.stalled[link]

    def perturb(self, it: Perturbation) -> None:
        """Do what a perturbation says."""
        names = [name for group in it.groups for name in group]
        if it.what in ("kill", "lose"):
            for name in names:
                self.kill(name)
                if it.what == "lose":
                    for instance in self.instances[name]:
                        self.disks[instance].lose()
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
            self.at(self.now + it.span, lambda: self._heal(cut))

    def _heal(self, cut: dict[str, int]) -> None:
        """Let those hear each other again who did not, once they have dialled again."""
        self._cuts.remove(cut)
        for name, peer in permutations(self.cluster.names, 2):
            if cut.get(name) != cut.get(peer):

                def dial(name: str = name, peer: str = peer) -> None:
                    for instance in self.instances[name]:
                        if instance in self.nodes:
                            self.hello(self.nodes[instance], peer, answer=True)

                self.at(self.now + REDIAL * self.draws.uniform(), dial)

    def _reached(self, step: int) -> None:
        due = [it for it in self._on_step if it.step is not None and it.step <= step]
        for it in due:
            self._on_step.remove(it)
            self.at(self.now, lambda it=it: self.perturb(it))  # type: ignore[misc]

    def _deliver(self, port: Port, peer: str, to: str, call: Callable[[Node], None]) -> None:
        if any(cut.get(port.name) != cut.get(peer) for cut in self._cuts):
            self.lost += 1
            return
        split, node = self._splits.get(port.name), self.nodes.get(to)
        if node is None or (split is not None and split.heard(peer, self.now) != port.number):
            self.lost += 1
            return
        self._awake(node, lambda: call(node))

    def _awake(self, node: Node, call: Callable[[], None]) -> None:
        """Call something of a node that is alive and awake; later, if it sleeps."""
        if self.nodes.get(port_of(node).instance) is not node:
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
        port = port_of(node)
        due = (node.due - port.offset) / port.rate
        if due < port.tick_at:
            port.tick_at = due
            self.at(max(due, self.now), lambda: self._tick(node, port))

    def _tick(self, node: Node, port: Port) -> None:
        if self.nodes.get(port.instance) is not node:
            return
        port.tick_at = float("inf")
        if node.done and port.now() - self.watcher.ended_at(node) > self.cluster.linger:
            return
        self._awake(node, node.tick)
