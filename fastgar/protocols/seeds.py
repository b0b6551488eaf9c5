"""Many seeds of a cluster on the simulated network, in one process or in several."""

from __future__ import annotations

import signal
import tomllib
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from multiprocessing import active_children, get_context
from typing import Any, NamedTuple

from .cluster import Cluster
from .file import cluster_of, to_toml
from .properties import Broken
from .virtual import simulate

__all__ = ["Ran", "run_seeds"]


class Ran(NamedTuple):
    """What came of a seed.

    Attributes
    ----------
    seed : int
    lines : list of dict
        Of results, each with the seed; the last is the summary, unless something broke.
    broken : str or None
        What did.
    """

    seed: int
    lines: list[dict[str, Any]]
    broken: str | None


def run_seeds(cluster: Cluster, seeds: Sequence[int], jobs: int = 1) -> Iterator[Ran]:
    """Yield what comes of each seed, in order.

    Parameters
    ----------
    cluster : Cluster
    seeds : sequence of int
    jobs : int
        How many run at a time, each in a process if there are several.
    """
    work = [(to_toml(cluster), seed) for seed in seeds]
    if jobs == 1 or len(work) < 2:
        yield from map(_run, work)
        return
    with ProcessPoolExecutor(min(jobs, len(work)), get_context("spawn")) as pool:
        try:
            with _deaf():
                found = [pool.submit(_run, each) for each in work]
            for future in found:
                yield future.result()
        except BaseException:  # also of who wants no more; none is cancelled, which a pool whose
            for process in active_children():  # processes end takes ill
                process.terminate()
            raise


@contextmanager
def _deaf() -> Iterator[None]:
    """Have processes that start in the block never hear Ctrl-C: who started them ends them."""
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _run(work: tuple[str, int]) -> Ran:
    """Run one seed."""
    text, seed = work
    lines: list[dict[str, Any]] = []
    broken = None
    try:
        outcome = simulate(cluster_of(tomllib.loads(text)), seed, write=lines.append)
        lines.append(outcome.summary())
    except Broken as error:
        broken = str(error)
    return Ran(seed, [{**line, "seed": seed} for line in lines], broken)
