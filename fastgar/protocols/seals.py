"""What a node signs, and how signatures travel among numbers.

A *statement* is that somebody sent a vector of this hash for a step. Its sender *seals* it; another
server that has received it *vouches* for it. What signs is an object that the driver gives: on the
real network the node's own key (`fastgar.network.signing`), in a simulation `Trial`.

Bytes travel two in a number, 0 to 65535: so a message is finite, and of one type.
"""

from __future__ import annotations

import hashlib
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

__all__ = [
    "HASH", "SEAL", "Keys", "Trial", "as_bytes", "as_numbers", "digest_of", "is_sealed", "opened",
    "sealed", "seal_of", "statement",
]  # fmt: skip

Vector = NDArray[Any]

HASH, SEAL = 16, 32  # numbers of a SHA-256, and of a signature of 64 bytes


class Keys(Protocol):
    """What signs as one node, and knows the signatures of all."""

    def sign(self, what: bytes) -> bytes:
        """Return this node's signature, of 64 bytes."""

    def signed(self, name: str, what: bytes, signature: bytes) -> bool:
        """Return whether a signature is the node's of that name."""


class Trial:
    """Signatures for a simulation: a hash with a secret that no lie makes use of.

    Parameters
    ----------
    name : str
    """

    def __init__(self, name: str) -> None:
        self.name = name

    def sign(self, what: bytes) -> bytes:
        """Return this node's signature."""
        return hashlib.sha512(f"{self.name}'s secret".encode() + what).digest()

    def signed(self, name: str, what: bytes, signature: bytes) -> bool:
        """Return whether a signature is the node's of that name."""
        return Trial(name).sign(what) == signature


def statement(what: str, sender: str, kind: str, step: int, digest: bytes) -> bytes:
    """Return what is signed: ``what`` is "sent" or "received"."""
    return f"{what} {sender} {kind} {step} ".encode() + digest


def digest_of(vector: Vector) -> bytes:
    """Return the SHA-256 of a vector's numbers."""
    return hashlib.sha256(np.ascontiguousarray(vector, "<f4").data).digest()


def as_numbers(data: bytes) -> Vector:
    """Return bytes as numbers, two in each.

    >>> as_numbers(bytes([1, 2, 255, 255])).tolist()
    [258.0, 65535.0]
    """
    return np.frombuffer(data, ">u2").astype(np.float32)


def as_bytes(numbers: Vector) -> bytes | None:
    """Return the bytes that numbers stand for, or None if they stand for none."""
    with np.errstate(invalid="ignore"):
        if not ((numbers >= 0) & (numbers <= 65535) & (numbers == np.floor(numbers))).all():
            return None
    return numbers.astype(">u2").tobytes()


def sealed(keys: Keys, sender: str, kind: str, step: int, vector: Vector) -> Vector:
    """Return a vector with its sender's seal after it."""
    seal = keys.sign(statement("sent", sender, kind, step, digest_of(vector)))
    return np.concatenate([np.asarray(vector, np.float32), as_numbers(seal)])


def opened(
    keys: Keys, sender: str, kind: str, step: int, said: Vector
) -> tuple[bytes, bytes] | None:
    """Return the hash and the seal of a vector with its seal, or None if it is not its sender's."""
    digest, seal = digest_of(said[:-SEAL]), as_bytes(said[-SEAL:])
    if seal is None or not is_sealed(keys, sender, kind, step, digest, seal):
        return None
    return digest, seal


def is_sealed(keys: Keys, sender: str, kind: str, step: int, digest: bytes, seal: bytes) -> bool:
    """Return whether a seal is that of a sender for this hash."""
    return keys.signed(sender, statement("sent", sender, kind, step, digest), seal)


def seal_of(said: Vector) -> Vector:
    """Return the numbers of the seal after a vector."""
    return said[-SEAL:]
