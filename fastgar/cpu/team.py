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
from typing import Any

__all__ = ["parallel"]

# GOMP_parallel(body, data, threads, flags), which GNU's, LLVM's and Intel's libraries all have:
# None until torch is there, False where there is none or it must not be used.
_enter: Callable[..., Any] | bool | None = None


def _find(torch: Any) -> Callable[..., Any] | bool:
    """Return GOMP_parallel as torch itself would call it, or False."""
    try:
        enter: Any = ctypes.CDLL(torch._C.__file__).GOMP_parallel
    except (OSError, AttributeError, TypeError):  # another kind of build
        return False
    enter.argtypes = (ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint)
    enter.restype = None
    return enter  # type: ignore[no-any-return]


def parallel(entry: Callable[..., bool], arguments: Sequence[int], threads: int) -> bool | None:
    """Call a kernel in that many threads of torch's OpenMP at once.

    Returns whether it returned True in all of them, or None if it cannot be called like that. Only
    for the main thread: any other would be given a team of its own.
    """
    global _enter
    if _enter is False:
        return None
    torch = sys.modules.get("torch")
    if torch is None or threading.get_ident() != threading.main_thread().ident:
        return None
    if _enter is None:
        if not hasattr(torch, "get_num_threads"):  # still being imported
            return None
        _enter = _find(torch)
    if not callable(_enter) or torch.get_num_threads() != threads:
        return None  # a team of another size: OpenMP would end threads and start them again
    from fastgar.cpu import region

    task = region.task(entry, arguments)
    if task is None:
        return None
    _enter(region.thread(), task.ctypes.data, threads, 0)
    return not region.failed(task)


def _abandon() -> None:
    """In a forked child OpenMP waits for ever for threads that it does not have."""
    global _enter
    _enter = False


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_abandon)
