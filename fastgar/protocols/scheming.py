"""A lying server that knows the agreement "rbtm", and does what could hurt most, to each peer anew.

It seals two models and shows each peer one or none; vouches for either, and for others to some
alone; says that it has accepted what it has not, hands on nonsense, and shows proofs that are none.
"""

from __future__ import annotations

import random
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .evidence import PROOF
from .gathering import ENTRY
from .lies import relisted
from .node import Node
from .seals import SEAL, as_numbers, sealed, statement

__all__ = ["scheme"]

Vector = NDArray[Any]


def scheme(node: Node, kind: str, step: int, vector: Vector, peer: str) -> Vector | None:
    """Return what a scheming server says to a peer."""
    draw = random.Random(f"{node.cluster.training.seed} {node.name} {kind} {step} {peer}")
    whole = kind.partition("/")[0]
    signs = node.cluster.signs
    if draw.random() < 0.2:
        return None
    if whole == "gather":
        if not signs:
            return _faces(node, step, vector)[draw.randrange(2)]
        face = _faces(node, step, vector[:-SEAL])[draw.randrange(2)]
        _slander(node, peer, draw)
        return sealed(node.transport.keys, node.name, "gather", step, face)
    if whole == "echo":
        return _other_list(node, step, vector.copy(), draw)
    if whole == "core":
        return np.array([draw.random() < 0.9 for _ in vector], np.float32)
    if whole == "relay":
        return vector + np.float32(1) if draw.random() < 0.5 else None
    if whole in ("model", "gradient"):
        return _faces(node, step, vector)[draw.randrange(2)]
    return vector


def _faces(node: Node, step: int, model: Vector) -> tuple[Vector, Vector]:
    big = np.float32(random.Random(f"{node.name} {step}").choice((1e-3, 1.0, 1e6)))
    return model, (model - big).astype(np.float32)


def _other_list(node: Node, step: int, vector: Vector, draw: random.Random) -> Vector:
    """Leave out some of a list, and vouch for the other one of the own models."""
    kept = node.kept["gather"].get(step)
    if kept is not None and draw.random() < 0.7:
        vector = relisted(
            node, step, vector, _faces(node, step, kept[0][:-SEAL])[draw.randrange(2)]
        )
    for i, name in enumerate(node.cluster.of_role("server")):
        entry = vector[i * ENTRY : (i + 1) * ENTRY]
        if name != node.name and draw.random() < 0.3:
            entry[:] = 0
        if draw.random() < 0.01:
            entry[draw.randrange(ENTRY)] += 1  # another hash, seal or signature
    return vector


def _slander(node: Node, peer: str, draw: random.Random) -> None:
    """Show proofs that are none against somebody: noise, or its own signatures under two hashes."""
    servers, keys = node.cluster.of_role("server"), node.transport.keys
    i = draw.randrange(len(servers))
    digests = [bytes([draw.randrange(256)] * 32) for _ in range(2)]
    pairs = b"".join(
        digest + keys.sign(statement("sent", servers[i], "gather", 3, digest)) for digest in digests
    )
    noise = bytes(draw.randrange(256) for _ in range(2 * PROOF))
    if servers[i] != node.name:
        forged = (3).to_bytes(8, "big") + pairs if draw.random() < 0.5 else noise
        node.post(peer, f"proof/{i}", 0, as_numbers(forged))
