"""What is known of the machine: processor, cores, versions, memory, and how busy others keep it."""

from __future__ import annotations

import os
import platform
import subprocess
from importlib.metadata import PackageNotFoundError, distributions, version
from pathlib import Path
from time import perf_counter

import fastgar as fg

__all__ = [
    "Others", "commit", "cores", "free_memory", "processor", "seconds_of_others", "versions",
]  # fmt: skip

OURS = {"python": platform.python_version(), "fastgar": fg.__version__}
SOON = 0.2  # seconds; in less the counters, which tick every 10 ms, say too little


def versions(*names: str) -> dict[str, str]:
    """Return the versions of packages, and of Python, that are there, in the order of their names.

    A name that ends in ``*`` stands for all packages whose names begin so.

    Examples
    --------
    >>> list(versions("python", "no-such-package", "numpy"))
    ['python', 'numpy']
    """
    found: dict[str, str] = {}
    for name in names:
        if name.endswith("*"):
            each = ((package.metadata["Name"] or "", package) for package in distributions())
            found |= {n.lower(): p.version for n, p in each if n.lower().startswith(name[:-1])}
        else:
            try:
                found[name] = OURS[name] if name in OURS else version(name)
            except PackageNotFoundError:
                continue
    return found


def commit(folder: Path) -> str:
    """Return the commit of the checkout in a folder, with a mark if files were changed, or ""."""
    if not (folder / ".git").exists():
        return ""
    command = ["git", "-C", str(folder), "describe", "--always", "--dirty"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=20)
    except (OSError, subprocess.SubprocessError):
        return ""
    return done.stdout.strip()


def processor() -> str:
    """Return what the processor calls itself."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def cores() -> set[int]:
    """Return the numbers of the cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return set(os.sched_getaffinity(0))
    return set(range(os.cpu_count() or 1))


def free_memory() -> int | None:
    """Return the bytes that can be had without swapping, None where nothing tells."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        return None
    found = [line.split()[1] for line in lines if line.startswith("MemAvailable:")]
    return int(found[0]) * 1024 if found else None


class Others:
    """How many of our cores other programs keep busy, from when this is made."""

    def __init__(self) -> None:
        self._began = perf_counter()
        self._before = self._read()

    def busy(self) -> float | None:
        """Return the mean number of cores; None where nothing tells, or too little time passed."""
        passed, now = perf_counter() - self._began, self._read()
        if self._before is None or now is None or passed < SOON:
            return None
        return max(0.0, (now - self._before) / passed)

    def _read(self) -> float | None:
        try:
            counters = Path("/proc/stat").read_text()
        except OSError:
            return None
        own = os.times()
        return seconds_of_others(counters, cores(), own.user + own.system)


def seconds_of_others(counters: str, ours: set[int], own: float) -> float | None:
    """Return the CPU seconds that others have had so far on some cores.

    Parameters
    ----------
    counters : str
        What /proc/stat holds.
    ours : set of int
        The cores that count.
    own : float
        CPU seconds of this process.
    """
    names = {f"cpu{core}" for core in ours}
    lines = [line.split() for line in counters.splitlines()]
    found = [[int(field) for field in line[1:9]] for line in lines if line and line[0] in names]
    if not found:
        return None
    # user nice system idle iowait irq softirq steal: all but the fourth and fifth is work, and the
    # last is what other virtual machines took.
    ticks = sum(sum(fields) - sum(fields[3:5]) for fields in found)
    return ticks / os.sysconf("SC_CLK_TCK") - own
