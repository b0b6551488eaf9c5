"""What a node must not lose: its step, its arrays, and what it has sent, as one file.

A file is whole or not there: written beside the old one, synced, renamed, and the folder synced.
It is a header in JSON, the numbers as they lie in memory, and a SHA-256 of both; nothing in it is
ever executed.
"""

from __future__ import annotations

import hashlib
import json
import os
import struct
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

__all__ = ["Damaged", "Disk", "Memory", "State", "Storage"]

Vector = NDArray[Any]
Kept = dict[str, dict[int, tuple[Vector, tuple[str, ...]]]]

MAGIC = b"fastgar1"
LENGTH = struct.Struct("<Q")
LONGEST_HEADER = 1 << 20  # bytes of a header
DTYPES = ("<f4", "<f8", "<u2")


class Damaged(ValueError):
    """A file that is no saved state, or not that of this run."""


@dataclass(frozen=True)
class State:
    """What is saved.

    Attributes
    ----------
    step : int
    arrays : dict of str to array
    kept : dict
        By kind and step: a vector that was sent, and to whom.
    """

    step: int
    arrays: dict[str, Vector] = field(default_factory=dict)
    kept: Kept = field(default_factory=dict)


class Storage(Protocol):
    """Where a node's state is."""

    def read(self) -> State | None:
        """Return what was written last, or None if there is nothing."""

    def write(self, state: State) -> None:
        """Keep a state; when this returns it will survive the end of the process."""


class Memory:
    """A simulated disk, which may lose what it has.

    Attributes
    ----------
    writes : int
    """

    def __init__(self) -> None:
        self._state: State | None = None
        self.writes = 0

    def read(self) -> State | None:
        """Return what was written last, or None."""
        return self._state

    def write(self, state: State) -> None:
        """Keep a state: arrays are never written to, so that it needs no copies of them."""
        kept = {kind: dict(steps) for kind, steps in state.kept.items()}
        self._state = State(state.step, dict(state.arrays), kept)
        self.writes += 1

    def lose(self) -> None:
        """Forget everything."""
        self._state = None


class Disk:
    """A file.

    Parameters
    ----------
    path : Path
    run : str
        What identifies the run and the node: a file of another one is refused.

    Raises
    ------
    Damaged
        On reading, if the file is damaged or another run's.
    OSError
        If it cannot be read or written.
    """

    def __init__(self, path: Path, run: str) -> None:
        self.path, self.run = path, run

    def read(self) -> State | None:
        """Return what was written last, or None if there is no file."""
        try:
            content = self.path.read_bytes()
        except FileNotFoundError:
            return None
        try:
            return unpack(content, self.run)
        except Damaged as error:
            raise Damaged(f"{self.path} {error}") from None

    def write(self, state: State) -> None:
        """Write a state, so that at any moment this one or the one before is there."""
        part = self.path.with_name(self.path.name + ".part")
        with part.open("wb") as file:
            for piece in pack(state, self.run):
                file.write(piece)
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, self.path)
        if os.name == "posix":
            folder = os.open(self.path.parent, os.O_RDONLY)
            try:
                os.fsync(folder)
            finally:
                os.close(folder)


def pack(state: State, run: str) -> list[Any]:
    """Return a state as pieces of bytes; a vector that stands in several places is there once."""
    vectors: list[Vector] = []
    places: dict[int, int] = {}

    def place(vector: Vector) -> int:
        if id(vector) not in places:
            places[id(vector)] = len(vectors)
            vectors.append(np.ascontiguousarray(vector))
        return places[id(vector)]

    arrays = {name: place(vector) for name, vector in state.arrays.items()}
    kept = [
        [kind, step, place(vector), list(peers)]
        for kind, steps in state.kept.items()
        for step, (vector, peers) in steps.items()
    ]
    shapes = [[vector.dtype.newbyteorder("<").str, list(vector.shape)] for vector in vectors]
    head = {"run": run, "step": state.step, "arrays": arrays, "kept": kept, "vectors": shapes}
    text = json.dumps(head).encode()
    pieces: list[Any] = [MAGIC, LENGTH.pack(len(text)), text, *(vector.data for vector in vectors)]
    digest = hashlib.sha256()
    for piece in pieces:
        digest.update(piece)
    return [*pieces, digest.digest()]


def unpack(content: bytes, run: str) -> State:
    """Return the state in a file's content.

    Raises
    ------
    Damaged
        If it is damaged, or another run's.
    """
    start = len(MAGIC) + LENGTH.size
    if len(content) < start + 32 or not content.startswith(MAGIC):
        raise Damaged("is no saved state of a node")
    if hashlib.sha256(content[:-32]).digest() != content[-32:]:
        raise Damaged("is damaged: its checksum is not that of its content")
    (length,) = LENGTH.unpack_from(content, len(MAGIC))
    if length > LONGEST_HEADER:
        raise Damaged("is no saved state of a node")
    head = json.loads(content[start : start + length])
    if head["run"] != run:
        raise Damaged(
            "belongs to another run, node or cluster file: take another --out, or delete it"
        )
    vectors, at = [], start + length
    for dtype, shape in head["vectors"]:
        if dtype not in DTYPES:
            raise Damaged(f"holds numbers of an unknown type {dtype!r}")
        count = int(np.prod(shape))
        vectors.append(np.frombuffer(content, dtype, count, at).reshape(shape).copy())
        at += vectors[-1].nbytes
    kept: Kept = {}
    for kind, step, index, peers in head["kept"]:
        kept.setdefault(kind, {})[step] = (vectors[index], tuple(peers))
    arrays = {name: vectors[index] for name, index in head["arrays"].items()}
    return State(head["step"], arrays, kept)
