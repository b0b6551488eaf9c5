"""Whose line it is that does something, and how it is complained of."""

from __future__ import annotations

import os
import sys
from collections import Counter
from collections.abc import Iterator
from functools import cache
from typing import NoReturn, Protocol

import torch

__all__ = ["ACTIVE", "Seen", "Violation", "caller", "complain", "launched", "place", "within_here"]

TORCH = os.path.dirname(torch.__file__) + os.sep
OWN = os.path.dirname(__file__) + os.sep
# Methods of tensors that are written in Python: who calls them is the caller.
TENSOR = tuple(TORCH + name for name in ("overrides.py", "_tensor.py", "functional.py"))
SHOWN = 3  # lines of a stack


class Violation(AssertionError):
    """What a GPU, or NCCL, would not take, or would take and give wrong numbers.

    The message begins with the lines of the watched files that it comes from, innermost first.
    """


class Seen(Protocol):
    """What a watch knows."""

    calls: Counter[str]
    bytes: Counter[str]
    violations: list[str]

    def watches(self, file: str) -> bool:
        """Say whether a file is watched."""


ACTIVE: list[Seen] = []


@cache
def _inner(file: str) -> bool:
    return file.startswith((OWN, *TENSOR))


@cache
def _foreign(file: str) -> bool:
    return file.startswith((OWN, TORCH, "<"))


def _frames() -> Iterator[tuple[str, int]]:
    frame = sys._getframe(2)
    while frame is not None:
        yield frame.f_code.co_filename, frame.f_lineno
        frame = frame.f_back  # type: ignore[assignment]


def _named(file: str, line: int) -> str:
    return f"{'/'.join(file.split(os.sep)[-2:])}:{line}"


def caller() -> tuple[str, str]:
    """Return the file that called a function of torch, and the line as it is named."""
    for file, line in _frames():
        if not _inner(file):
            return file, _named(file, line)
    return "", ""


def within_here() -> bool:
    """Say whether the caller of the caller is in this package."""
    return sys._getframe(2).f_code.co_filename.startswith(OWN)


def place() -> str:
    """Return the watched lines that are running; without any, the nearest that is not torch's."""
    stack = [frame for frame in _frames() if not _foreign(frame[0])]
    watched = [frame for frame in stack if any(seen.watches(frame[0]) for seen in ACTIVE)]
    return " < ".join(_named(*frame) for frame in (watched[:SHOWN] or stack[:1]))


def launched(op: str, size: int) -> str:
    """Count a collective that watched files call; return where."""
    files = [file for file, _ in _frames()]
    for seen in ACTIVE:
        if any(map(seen.watches, files)):
            seen.calls[op] += 1
            seen.bytes[op] += size
    return place()


def complain(text: str) -> NoReturn:
    """Raise a violation, which the watches remember: the code may catch it."""
    error = Violation(f"{place()}: {text}")
    for seen in ACTIVE:
        seen.violations.append(str(error))
    raise error
