"""Memory that all ranks of a group see, where they run on one machine.

Through gloo's sockets every number is copied four times on its way there and back; through memory,
twice. A window has a part for each rank, which that rank alone can write.
"""

from __future__ import annotations

import logging
import mmap
import os
import uuid
import warnings
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from .group import Peers

__all__ = ["Window", "open_window"]

FOLDER = Path("/dev/shm")
log = logging.getLogger("fastgar.torch")


@dataclass(eq=False)
class Window:
    """Shared memory: `parts[r]` is what rank r writes and all may read, `size` bytes."""

    size: int
    parts: list[Tensor]


def open_window(peers: Peers, size: int) -> Window | None:
    """Return a new window, on every rank alike; None if the ranks cannot have one: a collective.

    Nothing is left behind when a process is killed: the names are gone as soon as all ranks have
    opened the memory.
    """
    if not peers.on_one_machine:
        return None
    name, cpu = uuid.uuid4().bytes, torch.device("cpu")
    path = _path(name)
    try:
        words = np.frombuffer(name, np.uint32).astype(np.float64)
        everyone = peers.exchange(np.append(words, _make(path, size)), cpu)
        parts: list[Tensor] = []
        if everyone[:, -1].all():
            names = [row[:-1].astype(np.uint32).tobytes() for row in everyone]
            try:
                parts = [_map(_path(each), size, each == name) for each in names]
            except OSError:  # the name is of another machine, or of another user
                parts = []
        opened = peers.exchange(np.array([float(len(parts))]), cpu)
    finally:
        path.unlink(missing_ok=True)
    peers.on_one_machine = bool((opened == peers.n).all())
    return Window(size, parts) if peers.on_one_machine else None


def _path(name: bytes) -> Path:
    return FOLDER / f"fastgar-{name.hex()}"


def _make(path: Path, size: int) -> bool:
    """Reserve memory of its own for this rank; say whether there is enough."""
    wanted = os.environ.get("FASTGAR_SHARED_MEMORY", "1") != "0"
    if not (wanted and FOLDER.is_dir() and hasattr(os, "posix_fallocate")):
        return False
    try:
        file = os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600)
    except OSError:
        return False
    try:
        os.posix_fallocate(file, 0, size)
    except OSError:  # a write to memory that is not there would kill the process later
        log.warning(
            "%s has no room for %d bytes more: ranks talk through sockets, which takes longer",
            FOLDER, size,
        )  # fmt: skip
        return False
    finally:
        os.close(file)
    return True


def _map(path: Path, size: int, writable: bool) -> Tensor:
    file = os.open(path, os.O_RDWR if writable else os.O_RDONLY)
    try:
        access = mmap.ACCESS_WRITE if writable else mmap.ACCESS_READ
        memory = mmap.mmap(file, size, access=access)
    finally:
        os.close(file)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of memory that must not be written
        return torch.frombuffer(memory, dtype=torch.uint8)
