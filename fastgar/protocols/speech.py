"""What a node says: each message is written to disk before it is sent, and never sent otherwise."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .cluster import Cluster
from .driver import Transport
from .encoding import BITS, numbers
from .greetings import is_own_word
from .mailbox import WINDOW
from .pool import Pool
from .storage import State, Storage

__all__ = ["Speaker"]

Vector = NDArray[Any]

FOLLOWED = 8  # steps for which a node that asked gets what it asked for


class Speaker:
    """The half of a node that speaks.

    Parameters
    ----------
    name : str
    cluster : Cluster
    storage : Storage
    transport : Transport

    Attributes
    ----------
    at : int
        The step that it is in.
    arrays : dict of str to array
        Of the text and of the node's work: saved with every message.
    kept : dict
        By kind and step: what was sent, and to whom.
    muted : int
        No message of this step or an earlier one is sent.
    lie : callable or None
        What a liar makes of what it sends: see `fastgar.protocols.lies`.
    """

    def __init__(self, name: str, cluster: Cluster, storage: Storage, transport: Transport) -> None:
        self.name, self.cluster, self.storage, self.transport = name, cluster, storage, transport
        self.role = cluster.role(name)
        self.at, self.muted = 0, -1
        self.arrays: dict[str, Vector] = {}
        self.kept: dict[str, dict[int, tuple[Vector, tuple[str, ...]]]] = {}
        self.lie: Any = None
        self._pools: dict[int, Pool] = {}  # by length: of what is sent as bfloat16
        self._place = cluster.of_role(self.role).index(name) % (cluster.pieces or 1)
        self._followers: dict[tuple[str, str], int] = {}
        self._answered: dict[tuple[str, bool], float] = {}
        state = storage.read()
        if state is not None:
            self.at, self.arrays, self.kept = state.step, dict(state.arrays), state.kept

    # For the text.

    def restore(self, **initial: Vector) -> Any:
        """Return the step to go on at, and the arrays of these names: saved, or as given."""
        self.arrays = {**initial, **self.arrays}
        values = [self.arrays[name] for name in initial]
        return (self.at, *values) if values else self.at

    def save(self, step: int, **arrays: Vector) -> None:
        """Set the step and arrays that a restart goes on from; the next message writes them."""
        self.at = step
        self.arrays.update(arrays)

    def send(self, peers: Sequence[str], kind: str, step: int, vector: Vector) -> Vector:
        """Send a vector to peers, and return what was sent.

        That is another one if a vector was sent for this step before, perhaps in an earlier life:
        nobody ever hears two. And it is rounded as the cluster's `wire` says: the numbers returned
        are those that others get.
        """
        kept = self.kept.setdefault(kind, {})
        if step not in kept:
            if self._is_silent(kind, step):  # what is kept is said in another life
                return numbers(self.cluster.encoded(kind, vector))
            others = tuple(peer for peer in peers if peer != self.name)
            pool = self._pools.setdefault(len(vector), Pool(len(vector), BITS))
            kept[step] = (self.cluster.encoded(kind, vector, pool), others)
            while len(kept) > WINDOW:
                del kept[min(kept)]
            self.write()
        vector, peers = kept[step]
        followers = [
            peer
            for (what, peer), until in self._followers.items()
            if what == kind and until >= step
        ]
        self._post(kind, step, vector, [*peers, *(f for f in followers if f not in peers)])
        return numbers(vector)

    def write(self) -> None:
        """Write to disk what must not be lost."""
        self.storage.write(State(self.at, self.arrays, self.kept))

    # For the driver, and for lies.

    def send_again(self, peer: str | None = None) -> None:
        """Post what is kept once more, to everybody or to one peer."""
        for kind, steps in self.kept.items():
            for step, (vector, peers) in sorted(steps.items()):
                if peer is None:
                    self._post(kind, step, vector, peers)
                elif peer in peers:
                    self._post(kind, step, vector, (peer,))

    def post(self, peer: str, kind: str, step: int, vector: Vector) -> None:
        """Post what goes to a peer; each node begins with another piece of what goes in pieces."""
        vector = self.cluster.encoded(kind, vector)
        parts = self.cluster.parts.get(kind)
        if parts is None:
            self.transport.post(self, peer, kind, step, vector)
            return
        ends, first = self.cluster.ends(len(vector)), self._place
        for i in (*range(first, len(parts)), *range(first)):
            start, stop = ends[i]
            self.transport.post(self, peer, parts[i], step, vector[start:stop])

    # Inside.

    def _answer(self, peer: str, kind: str, step: int, seconds: float) -> None:
        """Send a peer that is behind what it asks for: what is kept, and what comes in some steps.

        A peer that asks for ever costs what one more receiver costs: it is answered once in so many
        seconds.
        """
        now = self.transport.now()
        way = self.cluster.ways.get(kind.partition("/")[0])
        asked = way is not None and way.asked
        if not asked:
            self._followers[kind, peer] = self.at + FOLLOWED
        if now - self._answered.get((peer, asked), -np.inf) < seconds:
            return
        self._answered[peer, asked] = now
        if asked:  # one of a step, which is there or is not
            vector = self.arrays.get(f"{kind}/{step}")
            if vector is not None:
                self._post(kind, step, vector, (peer,))
            return
        for kept, (vector, _) in sorted(self.kept.get(kind, {}).items()):
            if kept >= step:
                self._post(kind, kept, vector, (peer,))

    def _is_silent(self, kind: str, step: int) -> bool:
        return step <= self.muted and is_own_word(kind)

    def _post(self, kind: str, step: int, vector: Vector, peers: Sequence[str]) -> None:
        if self._is_silent(kind, step):
            return
        for peer in peers:
            said = vector
            if self.lie is not None:
                said = self.lie(self, kind, step, numbers(vector), peer)
            if said is not None:
                self.post(peer, kind, step, said)
