"""A few helper threads that run compiled kernels beside the caller.

Kernels release the GIL and take their next piece of work from a shared counter, so a slow core
holds nobody up. This is not Numba's own parallel mode, whose thread layers abort when two Python
threads launch at once, or break forked children. Where torch's OpenMP has threads to lend, they
are taken instead. The result of a kernel never depends on how many threads ran it.
"""

from __future__ import annotations

import ctypes
import os
import threading
from collections.abc import Callable
from queue import SimpleQueue
from typing import Any

from fastgar.cpu import team

__all__ = ["get_threads", "run", "set_threads", "share"]

_counter, _addressof = ctypes.c_int64, ctypes.addressof
NO_MEMORY = "no memory for a kernel to work in"

Task = tuple[Callable[[], None], "SimpleQueue[None]"]


class _Pool:
    def __init__(self) -> None:
        self.tasks: SimpleQueue[Task] = SimpleQueue()
        self.lock = threading.Lock()
        self.size = 0

    def grow(self, size: int) -> None:
        with self.lock:
            while self.size < size:
                name = f"fastgar-{self.size}"
                threading.Thread(target=self._serve, name=name, daemon=True).start()
                self.size += 1

    def _serve(self) -> None:
        tasks = self.tasks
        while True:
            body, done = tasks.get()
            body()
            done.put(None)
            del body, done  # keep nobody's memory alive while waiting


_pool = _Pool()
_threads: int | None = None
_chosen = False  # by the caller, not by default
_sharers = 1  # processes of one job on the same cores, as far as is known


def _default_threads() -> int:
    if hasattr(os, "sched_getaffinity"):
        cores = len(os.sched_getaffinity(0))
    else:
        cores = os.cpu_count() or 1
    limits = [max(1, cores // _sharers)]
    started = os.environ.get("LOCAL_WORLD_SIZE", "")  # by torchrun, maybe each on its own cores
    if started.isdecimal() and int(started) > 0:
        limits.append(max(1, (os.cpu_count() or 1) // int(started)))
    for name in ("OMP_NUM_THREADS", "NUMBA_NUM_THREADS"):
        value = os.environ.get(name, "").split(",")[0]
        if value.isdecimal() and int(value) > 0:
            limits.append(int(value))
    return min(limits)


def get_threads() -> int:
    """Return how many threads a large computation uses on the CPU."""
    global _threads
    if _threads is None:
        _threads = _default_threads()
    return _threads


def set_threads(threads: int | None) -> None:
    """Set how many threads a large computation may use on the CPU.

    Parameters
    ----------
    threads : int or None
        At least 1. None restores the default: the cores this process may run on, divided by the
        ranks of a distributed job that share them, or ``OMP_NUM_THREADS`` or
        ``NUMBA_NUM_THREADS`` where they ask for fewer.

    Notes
    -----
    Results are bitwise the same for any number of threads.
    """
    global _threads, _chosen
    if threads is not None:
        if isinstance(threads, bool) or not isinstance(threads, int):
            raise TypeError(f"threads must be an integer or None, got {type(threads).__name__}")
        if threads < 1:
            raise ValueError(f"threads must be at least 1, got {threads}")
    _threads = threads
    _chosen = threads is not None


def share(processes: int) -> None:
    """Let the default be the share of one of several processes that run on the same cores."""
    global _threads, _sharers
    _sharers = max(_sharers, processes)
    if not _chosen:
        _threads = None


def run(function: Callable[..., bool], *arguments: Any, pieces: int) -> None:
    """Call `function(counter, *arguments)` in several threads at once and wait for all of them.

    `counter` is the address of an integer from which the threads take piece numbers, 0 upwards;
    the function returns True once it draws a number of at least `pieces`, or False at once if it
    finds no memory to work in.
    """
    counter = _counter()
    address = _addressof(counter)
    threads = 1 if pieces <= 1 else min(get_threads(), pieces)
    if threads == 1:
        if not function(address, *arguments):
            raise MemoryError(NO_MEMORY)
        return
    done = team.parallel(function, (address, *arguments), threads)
    if done is None:
        done = _beside(function, (address, *arguments), threads - 1, counter, pieces)
    if not done:
        raise MemoryError(NO_MEMORY)


def _beside(
    function: Callable[..., bool],
    arguments: tuple[Any, ...],
    helpers: int,
    counter: ctypes.c_int64,
    pieces: int,
) -> bool:
    """Call a kernel here and in helpers. They write into the caller's memory: wait for them all."""
    results: list[bool] = []
    errors: list[BaseException] = []
    done: SimpleQueue[None] = SimpleQueue()

    def body() -> None:
        try:
            results.append(function(*arguments))
        except BaseException as error:
            errors.append(error)

    _pool.grow(helpers)
    for _ in range(helpers):
        _pool.tasks.put((body, done))
    body()
    while helpers:
        try:
            done.get()
            helpers -= 1
        except KeyboardInterrupt as error:
            counter.value = pieces  # nothing more to take: helpers end with what they have taken
            errors.append(error)
    if errors:
        raise errors[0]
    return all(results)


def _forget() -> None:
    """In a forked child no helper is alive: start afresh."""
    global _pool
    _pool = _Pool()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget)
