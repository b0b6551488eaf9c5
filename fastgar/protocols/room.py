"""What this machine, or the container, lets a node have: cores, memory, open files."""

from __future__ import annotations

import os
import resource
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path

from ..machine import cores
from .cluster import Cluster
from .mailbox import WINDOW

__all__ = [
    "cores_allowed", "memory_allowed", "memory_held",
    "in_megabytes", "require_files", "require_memory",
]  # fmt: skip

GROUPS, OWN = Path("/sys/fs/cgroup"), Path("/proc/self/cgroup")
SPARE = 64  # files that a node has open besides two connections to each peer


def cores_allowed() -> float:
    """Return how many cores this process may use: those that it may run on, or its quota of them.

    The quota of a container may be a part of a core.
    """
    found = float(len(cores()))
    for text in _settings("cpu", "cpu.max"):
        quota, period = text.split()[:2]
        if quota != "max":
            found = min(found, int(quota) / int(period))
    quotas, periods = (_settings("cpu", f"cpu.cfs_{what}_us") for what in ("quota", "period"))
    for quota, period in zip(quotas, periods, strict=False):
        if int(quota) > 0:
            found = min(found, int(quota) / int(period))
    return found


def memory_allowed() -> float:
    """Return the bytes of memory that this process may have: the machine's, or its container's."""
    found = float(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    for name in ("memory.max", "memory.limit_in_bytes"):
        for text in _settings("memory", name):
            if text.strip() != "max":
                found = min(found, float(text))
    return found


def memory_held(cluster: Cluster, name: str, d: int) -> int:
    """Return the bytes of messages that a node of a model of d numbers holds at most.

    Of each kind that it receives, those of two steps and the one that is just coming from each
    peer; of each kind that it sends, those of two steps.
    """
    role, held = cluster.role(name), 0
    for kind, way in cluster.kinds.items():
        size = 4 * cluster.length(kind, d)
        if role in way.receivers:
            peers = [peer for peer in cluster.of_role(way.senders) if peer != name]
            held += (WINDOW + 1) * len(peers) * size
        held += WINDOW * size * (role == way.senders)
    return held


def require_memory(cluster: Cluster, names: Iterable[str], d: int) -> None:
    """Raise a ValueError if what nodes hold is more than this machine, or container, lets them."""
    names = list(names)
    held, allowed = sum(memory_held(cluster, name, d) for name in names), memory_allowed()
    if held > allowed:
        raise ValueError(
            f"the messages that {', '.join(names[:4])}{', ...' if len(names) > 4 else ''} may hold "
            f"take {in_megabytes(held)}, and there are {in_megabytes(allowed)}"
        )


def require_files(peers: int) -> None:
    """Have a node open as many files as it needs; raise a ValueError if it may not."""
    needed = 2 * peers + SPARE
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY and soft < needed:
        if hard != resource.RLIM_INFINITY and hard < needed:
            raise ValueError(
                f"a node with {peers} peers needs {needed} open files, and may have {hard}: "
                f"ulimit -n {needed}"
            )
        resource.setrlimit(resource.RLIMIT_NOFILE, (needed, hard))


def in_megabytes(size: float) -> str:
    """Return a size in words.

    Examples
    --------
    >>> in_megabytes(30_040_000), in_megabytes(1.5e10)
    ('30.0 MB', '15,000.0 MB')
    """
    return f"{size / 1e6:,.1f} MB"


def _settings(controller: str, name: str) -> Iterator[str]:
    """Return what a file of the control groups of this process says, the innermost first."""
    with suppress(OSError, ValueError):
        for line in OWN.read_text().splitlines():
            _, controllers, path = line.split(":", 2)
            if controllers and controller not in controllers.split(","):
                continue
            root = GROUPS / controller if controllers else GROUPS
            inner = Path(path.lstrip("/"))
            for group in (inner, *inner.parents):
                with suppress(OSError):
                    yield (root / group / name).read_text()
