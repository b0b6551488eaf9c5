"""Between the threads that read from the network and the one that runs a node."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Collection, Hashable, Mapping
from typing import Any

from numpy.typing import NDArray

from ..network import LATER, Heard, Later
from .encoding import land, landing
from .mailbox import Verdict
from .node import Node
from .pool import Pool

__all__ = ["ASKS", "AT", "CONTROL", "NodeInbox"]

Vector = NDArray[Any]

# Kinds beyond those of a protocol: messages without numbers, or the step that a hello tells.
ASK, OVER, AT = CONTROL = (0x1000, 0x1001, 0x1002)
ASKS = 0x2000  # more than the number of a kind that is only sent to who asks for it


class NodeInbox:
    """The inbox of a node: `fastgar.network.Inbox`.

    Parameters
    ----------
    kinds : mapping of int to str
        The names of a protocol's kinds.
    pools : mapping of str to Pool
        By kind: of vectors of its length.
    halves : collection of str
        The kinds whose numbers come as bfloat16.
    """

    def __init__(
        self, kinds: Mapping[int, str], pools: Mapping[str, Pool], halves: Collection[str] = ()
    ) -> None:
        self.kinds, self.pools, self.halves = dict(kinds), pools, frozenset(halves)
        self.node: Node | None = None  # set before links start
        self.over: set[str] = set()
        self.cut: frozenset[str] = frozenset()  # peers that are neither heard nor spoken to
        self._reading: dict[str, tuple[int, int, Vector]] = {}
        self._stalled: dict[str, set[str]] = {kind: set() for kind in kinds.values()}
        # By what they are about, of which the newest counts: peers cannot make them many.
        self._calls: dict[Hashable, Callable[[Node], None]] = {}
        self._changed = threading.Condition()

    # From the threads of the network.

    def slot(self, peer: str, kind: int, step: int) -> memoryview | Later | None:
        """Return where a message is to be written."""
        if kind in CONTROL or kind >= ASKS:
            return memoryview(bytearray(1))
        name, node = self.kinds[kind], self._node()
        if peer in self.cut:
            return LATER
        if peer not in node.mailbox.senders.get(name, ()):
            return None  # nothing that this peer has to say to this node
        verdict = node.verdict(peer, name, step)
        if verdict is Verdict.SKIP:
            return None
        if verdict is Verdict.LATER:
            self._stalled[name].add(peer)
            if node.verdict(peer, name, step) is Verdict.LATER:  # not moved in the meantime
                return LATER
            self._stalled[name].discard(peer)
            return self.slot(peer, kind, step)
        vector = self.pools[name].take()
        self._reading[peer] = kind, step, vector
        return memoryview((landing(vector) if name in self.halves else vector).data)

    def arrived(self, peer: str, kind: int, step: int, digest: bytes) -> None:
        """Hand a message to the node."""
        if kind == ASK:
            self._call((ASK, peer), lambda node: node.ask(peer, "model", step))
        elif kind == OVER:
            self._call((OVER, peer), lambda node: self.over.add(peer))
        elif kind >= ASKS:
            name = self.kinds[kind - ASKS]
            self._call((kind, peer), lambda node: node.ask(peer, name, step))
        elif kind not in CONTROL:
            _, _, vector = self._reading.pop(peer)
            name, node = self.kinds[kind], self._node()
            if name in self.halves:
                land(vector)
            with node.mailbox.lock:
                if node.verdict(peer, name, step) is not Verdict.TAKE:
                    return
                node.mailbox.put(peer, name, step, vector)
            self._call(name, lambda node: node.look(name))

    def lost(self, peer: str, kind: int, step: int) -> None:
        """Let go of a message that broke off."""
        self._reading.pop(peer, None)

    def hello(self, peer: str, heard: Heard) -> None:
        """Tell the node what a peer has heard from it, and where the peer is."""
        at = heard.get(AT, (0, ""))[0]
        known = {self.kinds[kind]: step for kind, (step, _) in heard.items() if kind in self.kinds}
        self._call((AT, peer), lambda node: node.greet(peer, at, known))

    def heard(self, peer: str) -> Heard:
        """Return the newest step of each kind from a peer, and the step of the node itself."""
        node, numbers = self._node(), {name: kind for kind, name in self.kinds.items()}
        said = {numbers[name]: (step, "") for name, step in node.heard(peer).items() if step >= 0}
        return {**said, AT: (node.at, "")}

    # From the thread of the node.

    def moved(self, kind: str) -> set[str]:
        """Return, once, the peers that were made to wait with messages of a kind."""
        stalled, self._stalled[kind] = self._stalled[kind], set()
        return stalled

    def call(self, call: Callable[[Node], None]) -> None:
        """Have something called in the node's thread."""
        self._call(object(), call)

    def wait(self, until: float) -> None:
        """Wait for something to happen, but no longer than to a time of `time.monotonic`."""
        with self._changed:
            if not self._calls:
                self._changed.wait(max(0.0, min(until - time.monotonic(), 1.0)))

    def work_off(self) -> None:
        """Do what has come in until now: who says more meanwhile does not put off a deadline."""
        node = self._node()
        with self._changed:
            calls, self._calls = self._calls, {}
        for call in calls.values():
            call(node)

    def _call(self, about: Hashable, call: Callable[[Node], None]) -> None:
        with self._changed:
            self._calls[about] = call
            self._changed.notify_all()

    def _node(self) -> Node:
        assert self.node is not None
        return self.node
