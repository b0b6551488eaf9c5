"""Memory that all ranks of a group see, where they run on one machine.

Through gloo's sockets every number is copied four times on its way there and back; through memory,
twice. A window has a part for each rank, which that rank alone can write.

The memory never has a name, so that nothing is left behind when processes are killed, whenever that
is: a rank opens another's through the list of open files that Linux shows of each process. Where it
cannot (another machine, user or process namespace, as containers have), ranks talk through sockets.
"""

from __future__ import annotations

import logging
import mmap
import os
import secrets
import stat
import warnings
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from .group import Peers

__all__ = ["Window", "open_window"]

FOLDER = Path("/dev/shm")
TOKEN = 16  # bytes behind the memory of a rank, by which others know that it is what they want
log = logging.getLogger("fastgar.torch")


@dataclass(eq=False)
class Window:
    """Shared memory: `parts[r]` is what rank r writes and all may read, `size` bytes."""

    size: int
    parts: list[Tensor]


def open_window(peers: Peers, size: int) -> Window | None:
    """Return a new window, on every rank alike; None if ranks cannot have one: a collective."""
    if not peers.on_one_machine:
        return None
    token, cpu = secrets.token_bytes(TOKEN), torch.device("cpu")
    own = _make(size, token)
    try:
        words = np.frombuffer(token, np.uint32)
        where = [own is not None, os.getpid(), own or 0, *words]
        everyone = peers.exchange(np.array(where, np.float64), cpu)
        parts: list[Tensor] = []
        if everyone[:, 0].all():
            try:
                parts = [_map(*_read(row), size, r == peers.rank) for r, row in enumerate(everyone)]
            except OSError:  # it is not there, not ours to open, or something else
                parts = []
        opened = peers.exchange(np.array([float(len(parts))]), cpu)
    finally:
        if own is not None:
            os.close(own)
    peers.on_one_machine = bool((opened == peers.n).all())
    return Window(size, parts) if peers.on_one_machine else None


def _read(row: NDArray[np.float64]) -> tuple[Path, bytes]:
    """Return where a rank says that its memory is, and its token."""
    _, process, file, *words = row
    return Path(f"/proc/{process:.0f}/fd/{file:.0f}"), np.array(words, np.uint32).tobytes()


def _make(size: int, token: bytes) -> int | None:
    """Return an open file of memory for this rank; None if there is not enough."""
    wanted = os.environ.get("FASTGAR_SHARED_MEMORY", "1") != "0"
    if not (wanted and FOLDER.is_dir() and hasattr(os, "O_TMPFILE")):
        return None
    try:
        file = os.open(FOLDER, os.O_TMPFILE | os.O_RDWR, 0o600)
    except OSError:
        return None
    try:
        os.posix_fallocate(file, 0, size + TOKEN)
        os.pwrite(file, token, size)
    except OSError:  # a write to memory that is not there would kill the process later
        os.close(file)
        log.warning(
            "%s has no room for %d bytes more: ranks talk through sockets, which takes longer",
            FOLDER, size,
        )  # fmt: skip
        return None
    return file


def _map(path: Path, token: bytes, size: int, writable: bool) -> Tensor:
    """Return the memory of a rank; an OSError if what is there is not what it says.

    In another process namespace the same number is another process, whose files may be anything:
    nothing but a plain file is opened.
    """
    if not stat.S_ISREG(path.stat().st_mode):
        raise OSError(f"{path} is not memory")
    file = os.open(path, os.O_RDWR if writable else os.O_RDONLY)
    try:
        if os.pread(file, TOKEN, size) != token:
            raise OSError(f"{path} is not the memory of that rank")
        access = mmap.ACCESS_WRITE if writable else mmap.ACCESS_READ
        memory = mmap.mmap(file, size, access=access)
    finally:
        os.close(file)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of memory that must not be written
        return torch.frombuffer(memory, dtype=torch.uint8)
