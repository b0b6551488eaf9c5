"""Who is convicted of having said two things: by two seals of one node, step and kind that differ.

Nobody else can make such a pair, and a node that keeps its word never makes one: it writes what it
sends before it sends it (`fastgar.protocols.speech`). So a proof needs no vote. Who finds one shows
it to everybody; whoever has checked it takes nothing from that node any more, and keeps the proof.

Keys and disk belong together. A node whose disk is lost is silent for the steps of which more than
f others say that they have heard from it. As f may lie, what no more than f know of can convict it:
where all were killed in their first gather, say. And who begins a run anew, without what the disks
held, but with the same keys and the same cluster file, can be shown what it said before.
`fastgar cluster` makes new keys.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from .seals import HASH, SEAL, Keys, as_bytes, as_numbers, is_sealed, opened, sealed

__all__ = ["PROOF", "Court", "Proof", "proof_of", "proved"]

Vector = NDArray[Any]

STEP = 4  # numbers of a step
PROOF = STEP + 2 * (HASH + SEAL)  # numbers of a proof
SIGNED = ("echo", "core", "proof")
REMEMBERED = 4  # steps of which a node knows what each other has sealed


class Proof(NamedTuple):
    """Two seals of one node."""

    step: int
    first: tuple[bytes, bytes]  # hash and seal
    second: tuple[bytes, bytes]


def proof_of(proof: Proof) -> Vector:
    """Return a proof as numbers."""
    step = proof.step.to_bytes(2 * STEP, "big")
    return as_numbers(b"".join((step, *proof.first, *proof.second)))


def proved(keys: Keys, name: str, kind: str, numbers: Vector) -> Proof | None:
    """Return what numbers prove against a node, or None if that is nothing."""
    data = as_bytes(numbers)
    if data is None:
        return None
    ends = np.cumsum([2 * STEP, 2 * HASH, 2 * SEAL, 2 * HASH, 2 * SEAL])
    step, *rest = (bytes(part) for part in np.split(np.frombuffer(data, np.uint8), ends[:-1]))
    proof = Proof(int.from_bytes(step, "big"), (rest[0], rest[1]), (rest[2], rest[3]))
    if proof.first[0] == proof.second[0]:
        return None
    both = (proof.first, proof.second)
    if all(is_sealed(keys, name, kind, proof.step, *each) for each in both):
        return proof
    return None


class Court:
    """What a node knows of seals, and whom it has convicted.

    Parameters
    ----------
    node : Node
        Whose court it is: what it has kept of proofs is in its arrays.
    kind : str
        That is sealed.

    Attributes
    ----------
    convicted : dict of str to int
        For which step each has said two things.
    """

    def __init__(self, node: Any, kind: str = "gather") -> None:
        self.node, self.kind = node, kind
        self.servers: tuple[str, ...] = node.cluster.of_role("server")
        self.convicted: dict[str, int] = {}
        self._heard: dict[str, dict[int, tuple[bytes, bytes]]] = {}
        self._looked: set[tuple[str, str]] = set()  # at whose proofs of whom: each has one try
        for i, name in enumerate(self.servers):
            if f"proof/{i}" in node.arrays:  # which was checked, perhaps with other keys
                head = as_bytes(node.arrays[f"proof/{i}"][:STEP]) or b""
                self.convicted[name] = int.from_bytes(head, "big")
                node.mailbox.exclude(name)
        self._recall()
        self._renew()

    def hear(self, name: str, step: int, digest: bytes, seal: bytes) -> None:
        """Take note of a seal that has been checked, and convict if it contradicts another."""
        heard = self._heard.setdefault(name, {})
        first = heard.setdefault(step, (digest, seal))
        while len(heard) > REMEMBERED:
            del heard[min(heard)]
        if first[0] != digest:
            self.accuse(name, proof_of(Proof(step, first, (digest, seal))))

    def look(self, kind: str) -> None:
        """Look at what has come as proofs against a node."""
        name = self.servers[int(kind.partition("/")[2])]
        for peer, numbers in self.node.mailbox.held(kind, 0).items():
            if (peer, name) not in self._looked:
                self._looked.add((peer, name))
                self.accuse(name, numbers)

    def accuse(self, name: str, numbers: Vector) -> None:
        """Convict a node if a proof is one: keep it, and show it to everybody."""
        node = self.node
        if name in (node.name, *self.convicted) or not self._drop(name, numbers):
            return
        kind = f"proof/{self.servers.index(name)}"
        node.arrays[kind] = numbers
        node.watcher.convicted(node, name, self.convicted[name])
        if node.role == "server":
            node.send(node.cluster.names, kind, 0, numbers)
        else:
            node.write()

    def _recall(self) -> None:
        """Know of what this node has vouched for in an earlier life that it has heard it.

        It is asked that by who has lost its disk. Else such a one, of a cluster of which all were
        killed, would seal another model of a step that others have its seal of.
        """
        newest = self.node.mailbox.newest.get(self.kind, {})
        for kind, steps in self.node.kept.items():
            if kind.partition("/")[0] == "echo":
                for step, (numbers, _) in steps.items():
                    entries = numbers.reshape(len(self.servers), -1)
                    for name, entry in zip(self.servers, entries, strict=True):
                        if name != self.node.name and entry.any():
                            newest[name] = max(newest[name], step)

    def _renew(self) -> None:
        """Seal again what was sealed with another key, and take back what else was signed with it.

        A run may go on with new keys, of all nodes: nobody can check then what the old ones signed.
        """
        node, keys = self.node, self.node.transport.keys
        kept = node.kept.get(self.kind, {})
        old = [
            step
            for step, (said, _) in kept.items()
            if opened(keys, node.name, self.kind, step, said) is None
        ]
        if not old:
            return
        for step in old:
            said, peers = kept[step]
            kept[step] = sealed(keys, node.name, self.kind, step, said[:-SEAL]), peers
        for kind in [kind for kind in node.kept if kind.partition("/")[0] in SIGNED]:
            del node.kept[kind]
        for key in [key for key in node.arrays if key.startswith("relay/")]:
            del node.arrays[key]

    def _drop(self, name: str, numbers: Vector) -> bool:
        """Take nothing from a node any more, if that is what numbers prove."""
        proof = proved(self.node.transport.keys, name, self.kind, numbers)
        if proof is None:
            return False
        self.convicted[name] = proof.step
        self.node.mailbox.exclude(name)
        return True
