"""What a node on the simulated network sees of it, and what waits to be read."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from .node import Node
from .seals import Keys, Trial

__all__ = ["HELLO", "Port", "Sent", "port_of"]

HELLO = 64  # bytes of a message without a vector
ASKED = "?"  # the kind of a question


class Sent(NamedTuple):
    """What a node is to read of a peer; `take` says whether it is ready for it."""

    kind: str
    step: int
    take: Callable[[], bool]


class Port:
    """What one life of a node sees of the network: of twins, of the instance of this number."""

    lossy = True

    def __init__(self, network: Any, name: str, number: int, rate: float, offset: float) -> None:
        self.network, self.name, self.rate, self.offset = network, name, rate, offset
        self.number, self.instance = number, network.instances[name][number]
        self.keys: Keys = Trial(name)
        self.tick_at = float("inf")  # on the network's clock

    def now(self) -> float:
        """Return the seconds on the node's own clock."""
        now: float = self.network.now
        return now * self.rate + self.offset

    def post(self, node: Node, peer: str, kind: str, step: int, vector: Any) -> None:
        """Send a vector."""
        self.network.post(self, peer, kind, step, vector)

    def ask(self, node: Node, peer: str, kind: str, step: int) -> None:
        """Ask a peer for vectors."""
        network, name = self.network, self.name

        def asked(other: Node) -> None:
            def take() -> bool:
                other.ask(name, kind, step)
                return True

            network.read(other, self, Sent(ASKED, step, take))

        network.carry(self, peer, HELLO, asked)

    def hello(self, node: Node) -> None:
        """Tell everybody the step that the node is in, and hear theirs."""
        for peer in self.network.cluster.names:
            if peer != self.name:
                self.network.hello(node, peer, answer=True)

    def windows_moved(self, node: Node, kind: str) -> None:
        """Hand over what was to come later."""
        stalled = self.network.stalled
        for key in [key for key in stalled if key[0] == self.instance]:
            waiting = stalled.get(key)  # not if another was let speak by the one before it
            if waiting is not None and waiting[0].kind == kind:
                del stalled[key]
                while waiting and waiting[0].take():
                    del waiting[0]
                if waiting:
                    stalled[key] = waiting

    def computes(self, node: Node) -> bool:
        """Let a computation take its time."""
        takes_time: bool = self.network.compute(node)
        return takes_time


def port_of(node: Node) -> Port:
    """Return what a node on the simulated network sends through."""
    assert isinstance(node.transport, Port)
    return node.transport
