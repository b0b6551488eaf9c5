"""Torch's OpenMP threads, borrowed while they spin.

After an operation the threads of OpenMP keep their cores busy for some milliseconds, in case more
work comes. Threads of ours would wait behind them: right after a backward pass a call would run on
one core. So where torch is loaded, a computation on as many threads as torch has runs as a parallel
region of that same OpenMP.
"""

from __future__ import annotations

import ctypes
import os
import sys
import threading
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

__all__ = ["parallel"]


class _Team(NamedTuple):
    """What a parallel region takes. Nothing is looked up twice: between two reads of large arrays
    whatever Python touches comes from memory, which takes as long as 10,000 columns of a kernel."""

    enter: Callable[..., Any]  # GOMP_parallel(body, data, threads, flags) of GNU, LLVM or Intel
    size: Callable[[], int]  # torch.get_num_threads
    body: int  # address of the C function that each thread calls
    task: Callable[..., Any]  # what makes the data for it


_MAIN = threading.main_thread().ident
_team: _Team | bool | None = None  # None until torch is there, False if it cannot or must not be


def _find(torch: Any) -> _Team | bool:
    """Return the team of torch's OpenMP, or False."""
    from fastgar.cpu import region

    try:
        enter: Any = ctypes.CDLL(torch._C.__file__).GOMP_parallel  # as torch itself would call it
    except (OSError, AttributeError, TypeError):  # another kind of build
        return False
    enter.argtypes = (ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint)
    enter.restype = None
    body = region.thread()
    return False if body is None else _Team(enter, torch.get_num_threads, body, region.task)


def parallel(entry: Callable[..., bool], arguments: Sequence[int], threads: int) -> bool | None:
    """Call a kernel in that many threads of torch's OpenMP at once.

    Returns whether it returned True in all of them, or None if it cannot be called like that. Only
    for the main thread: any other would be given a team of its own.
    """
    global _team
    if _team is False or threading.get_ident() != _MAIN:
        return None
    if _team is None:
        size = getattr(sys.modules.get("torch"), "get_num_threads", None)
        if size is None or size() != threads:  # no torch, or still being imported
            return None
        _team = _find(sys.modules["torch"])
    if not isinstance(_team, _Team) or _team.size() != threads:
        return None  # a team of another size: OpenMP would end threads and start them again
    task = _team.task(entry, arguments)
    if task is None:
        return None
    _team.enter(_team.body, task, threads, 0)
    return not task[-1]


def _abandon() -> None:
    """In a forked child OpenMP waits for ever for threads that it does not have."""
    global _team
    _team = False


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_abandon)
