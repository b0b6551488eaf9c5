"""What one server knows of one gather by reliable broadcast, and what it has to say: see `rbtm`."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import TooManyFaults
from .cluster import Cluster
from .mailbox import is_finite
from .node import Node
from .seals import HASH, SEAL, as_bytes, as_numbers, is_sealed, opened, statement

__all__ = ["ENTRY", "NEWS", "Gathering"]

Vector = NDArray[Any]

ENTRY = HASH + 2 * SEAL  # numbers of a list for each server: hash, its seal, and who vouches for it
NEWS = ("gather", "echo", "core", "relay")
NOTHING = bytes(2 * HASH)
KEPT = 2  # gathers of which models are kept for others


class Gathering:
    """What one server knows of one gather."""

    def __init__(self, me: Node, c: Cluster, t: int) -> None:
        assert me.court is not None
        self.me, self.t, self.f, self.court = me, t, c.f_s, me.court
        self.keys = me.transport.keys
        self.servers = c.of_role("server")
        self.enough = len(self.servers) - c.f_s
        self.models: dict[tuple[str, bytes], Vector] = {}  # by sender and hash, with the seal
        self.seals: dict[tuple[str, bytes], bytes] = {}
        self.vouched: dict[str, tuple[bytes, bytes]] = {}  # by this server: hash, and its signature
        self.vouchers: dict[tuple[str, bytes], dict[str, bytes]] = {}
        self.said: dict[str, frozenset[str]] = {}  # whose models each server has accepted
        self.holes: set[str] = set()
        self.listed = 0  # how many a list has named that was sent
        self._read: set[tuple[str, str]] = set()
        self._restore()

    def go_on(self) -> None:
        """Read what has come, and say what there is to say now."""
        self.read()
        for kind, vector in self.to_say():
            self.me.send(self.servers, kind, self.t, vector)
            self.supersede(kind)

    # What comes.

    def read(self) -> None:
        """Read the messages that are new."""
        take = {"gather": self.model, "core": self._core}
        for kind in NEWS:
            for each in self.me.mailbox.family(kind):
                for peer, vector in self.me.mailbox.held(each, self.t).items():
                    if (each, peer) in self._read:
                        continue
                    self._read.add((each, peer))
                    if kind == "echo":
                        self._list(peer, vector)
                    elif kind == "relay":
                        self._relay(self.servers[int(each.partition("/")[2])], vector)
                    else:
                        take[kind](peer, vector)

    def model(self, sender: str, said: Vector) -> None:
        """Take a model from its sender, and vouch for it if it is the first."""
        found = opened(self.keys, sender, "gather", self.t, said)
        if found is None:
            return
        digest, seal = found
        self._sealed(sender, digest, seal)
        self.models[sender, digest] = said
        if not is_finite(said):
            self.holes.add(sender)
            if len(self.holes) > self.f and len(self._senders()) == len(self.servers):
                raise TooManyFaults(sorted(map(self.servers.index, self.holes)), self.f)
        elif sender not in self.vouched and sender not in self.court.convicted:
            signature = self.keys.sign(self._received(sender, digest))
            self.vouched[sender] = digest, signature
            self._vouch(self.me.name, sender, digest, signature)

    def _list(self, peer: str, vector: Vector) -> None:
        """Take the list of what a peer vouches for."""
        data = as_bytes(vector)
        if data is None:
            return
        for i, sender in enumerate(self.servers):
            entry = data[2 * ENTRY * i : 2 * ENTRY * (i + 1)]
            digest, seal, signature = entry[:32], entry[32:96], entry[96:]
            if digest == NOTHING or peer in self.vouchers.get((sender, digest), ()):
                continue
            if self._is_sealed(sender, digest, seal) and self.keys.signed(
                peer, self._received(sender, digest), signature
            ):
                self._sealed(sender, digest, seal)
                self._vouch(peer, sender, digest, signature)

    def _relay(self, sender: str, vector: Vector) -> None:
        """Take a model from somebody else, if enough vouch for it."""
        ends = len(vector) - SEAL * len(self.servers)
        said = vector[:ends]
        found = opened(self.keys, sender, "gather", self.t, said)
        if found is None:
            return
        digest, seal = found
        data = as_bytes(vector[ends:]) or b""
        each = [data[i : i + 64] for i in range(0, len(data), 64)]
        signatures = {
            peer: signature
            for peer, signature in zip(self.servers, each, strict=False)
            if self.keys.signed(peer, self._received(sender, digest), signature)
        }
        if len(signatures) < self.enough:
            return
        self._sealed(sender, digest, seal)
        self.models[sender, digest] = said
        for peer, signature in signatures.items():
            self._vouch(peer, sender, digest, signature)

    def _core(self, peer: str, vector: Vector) -> None:
        """Take note of whose models a peer has accepted."""
        names = frozenset(
            name for name, one in zip(self.servers, vector, strict=True) if one == 1.0
        )
        if len(names) >= self.enough:
            self.said[peer] = names

    # What comes of it.

    def to_say(self) -> Iterator[tuple[str, Vector]]:
        """Return what there is to say now: a longer list, and what is accepted, once."""
        if len(self.vouched) >= max(self.enough, self.listed + 1):
            self.listed = len(self.vouched)
            yield f"echo/{self.listed - self.enough}", self._as_list()
        accepted = self.accepted()
        if len(accepted) >= self.enough and self.me.name not in self.said:
            self._keep(accepted)
            self.said[self.me.name] = frozenset(accepted)
            yield "core", np.array([name in accepted for name in self.servers], np.float32)

    def supersede(self, kind: str) -> None:
        """Send no shorter list again: a longer one says all that it said."""
        whole, _, number = kind.partition("/")
        for i in range(int(number or 0)):
            self.me.kept.get(f"{whole}/{i}", {}).pop(self.t, None)

    def accepted(self) -> dict[str, Vector]:
        """Return the models that are accepted, with their seals, in the order of names."""
        found = {}
        for (sender, digest), vouchers in self.vouchers.items():
            if len(vouchers) >= self.enough and (sender, digest) in self.models:
                found[sender] = self.models[sender, digest]
        return {name: found[name] for name in self.servers if name in found}

    def agreed(self) -> dict[str, Vector] | None:
        """Return the models by sender if enough servers have accepted nothing else."""
        if self.me.name not in self.said:
            return None
        accepted = self.accepted()
        if sum(names <= accepted.keys() for names in self.said.values()) < self.enough:
            return None
        return {name: said[:-SEAL] for name, said in accepted.items()}

    def lacking(self) -> Iterator[tuple[int, list[str]]]:
        """Return whose models others have accepted and this server has not, and who these are."""
        accepted = self.accepted()
        for i, name in enumerate(self.servers):
            if name not in accepted:
                peers = [peer for peer in self.servers if name in self.said.get(peer, ())]
                if peers:
                    yield i, peers

    # Inside.

    def _restore(self) -> None:
        """Take up what this server has said of this gather in an earlier life."""
        kept, own = self.me.kept, self.me.name
        for i in range(self.f + 1):
            said = kept.get(f"echo/{i}", {}).get(self.t)
            if said is None:
                continue
            self._list(own, said[0])
            self.listed = self.enough + i
        for i, name in enumerate(self.servers):
            relayed = self.me.arrays.get(f"relay/{i}/{self.t}")
            if relayed is not None:
                self._relay(name, relayed)
        for (sender, digest), vouchers in self.vouchers.items():
            if own in vouchers:
                self.vouched[sender] = digest, vouchers[own]
        if self.t in kept.get("core", {}):
            self._core(own, kept["core"][self.t][0])

    def _keep(self, accepted: dict[str, Vector]) -> None:
        """Have what is accepted written to disk with the next message, for those who lack it."""
        arrays = self.me.arrays
        steps = {int(key.split("/")[2]) for key in arrays if key.startswith("relay/")} | {self.t}
        old = sorted(steps)[:-KEPT]
        for key in [key for key in arrays if key.startswith("relay/")]:
            if int(key.split("/")[2]) in old:
                del arrays[key]
        for i, name in enumerate(self.servers):
            if name in accepted:
                said = accepted[name]
                digest = next(d for (who, d), each in self.models.items() if each is said)
                vouchers = self.vouchers[name, digest]
                signatures = b"".join(vouchers.get(peer, bytes(64)) for peer in self.servers)
                arrays[f"relay/{i}/{self.t}"] = np.concatenate([said, as_numbers(signatures)])

    def _as_list(self) -> Vector:
        entries = []
        for name in self.servers:
            digest, signature = self.vouched.get(name, (NOTHING, bytes(64)))
            entries.append(digest + self.seals.get((name, digest), bytes(64)) + signature)
        return as_numbers(b"".join(entries))

    def _senders(self) -> set[str]:
        return {sender for sender, _ in self.models}

    def _received(self, sender: str, digest: bytes) -> bytes:
        return statement("received", sender, "gather", self.t, digest)

    def _is_sealed(self, sender: str, digest: bytes, seal: bytes) -> bool:
        return (sender, digest) in self.seals or is_sealed(
            self.keys, sender, "gather", self.t, digest, seal
        )

    def _sealed(self, sender: str, digest: bytes, seal: bytes) -> None:
        """Take note of a seal that has been checked."""
        if (sender, digest) not in self.seals:
            self.seals[sender, digest] = seal
            self.court.hear(sender, self.t, digest, seal)

    def _vouch(self, peer: str, sender: str, digest: bytes, signature: bytes) -> None:
        self.vouchers.setdefault((sender, digest), {})[peer] = signature
