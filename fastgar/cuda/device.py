"""What the backend needs of a GPU, and the text of its kernels.

Everything is queued on the caller's stream and waits for nothing, but for `Device.read` and
`Device.synchronise`.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any, Protocol

import numpy as np

__all__ = ["Device", "Kernel", "kernel", "source"]

Macros = tuple[tuple[str, Any], ...]
INCLUDE = re.compile(r'^#include "(\w+\.cuh)"$', re.MULTILINE)


class Kernel:
    """A kernel of a file in `kernels/`, with its macros. Make one with `kernel`: one is one object,
    so that a device finds what it has compiled at once.
    """

    __slots__ = ("defines", "file", "name")

    def __init__(self, file: str, name: str, defines: Macros) -> None:
        self.file, self.name, self.defines = file, name, defines


@cache
def kernel(file: str, name: str, defines: Macros = ()) -> Kernel:
    """Return the kernel of this name; the same arguments give the same object."""
    return Kernel(file, name, defines)


class Device(Protocol):
    """One GPU.

    Attributes
    ----------
    name : str
        Such as "cuda:0".
    processors : int
        Its multiprocessors.
    """

    name: str
    processors: int

    def launch(
        self, kernel: Kernel, grid: int, block: int, shared: int, args: Sequence[Any], stream: int
    ) -> None:
        """Run a kernel, which is compiled at its first use.

        Arguments are Python's own ints (of 64 bits; addresses too), floats (double precision), and
        `numpy.void`, whose bytes are a struct that is passed by value: CuPy takes nothing else.
        """

    def prepare(self, kernel: Kernel) -> None:
        """Compile and load a kernel that a graph may launch later, when it is too late for that."""

    def allocate(self, size: int, stream: int) -> tuple[int, Any]:
        """Return the address of fresh memory for work on this stream, and its owner."""

    def array(self, shape: tuple[int, ...], dtype: str, stream: int) -> tuple[int, Any]:
        """Return the address of a fresh array, and the array, which any library can import."""

    def read(self, address: int, into: np.ndarray, stream: int) -> None:
        """Copy from the device to the host, after all work on the stream."""

    def write(self, address: int, values: np.ndarray, stream: int) -> None:
        """Copy from the host to the device; nobody may change `values` any more."""

    def synchronise(self, stream: int) -> None:
        """Wait for all work on the stream."""

    def capturing(self, stream: int) -> bool:
        """Return whether work on this stream is recorded in a CUDA graph."""

    def keep(self, owner: Any) -> None:
        """Keep memory that a graph uses whenever it is replayed, as long as the process lives."""


def _folder() -> Path:
    package = Path(__file__).resolve().parent.parent
    for folder in (package / "kernels", package.parent / "kernels"):
        if (folder / "common.cuh").exists():
            return folder
    raise FileNotFoundError(f"the CUDA kernels are not beside fastgar in {package}: reinstall it")


def source(file: str, defines: Sequence[tuple[str, Any]]) -> str:
    """Return the text of a kernel file with its macros, which includes no other file."""
    folder, there = _folder(), set()

    def whole(name: str) -> str:
        if name in there:
            return ""
        there.add(name)
        text = (folder / name).read_text(encoding="utf-8").replace("#pragma once\n", "")
        return INCLUDE.sub(lambda found: whole(found[1]), text)

    return "".join(f"#define {name} {value}\n" for name, value in defines) + whole(file)
