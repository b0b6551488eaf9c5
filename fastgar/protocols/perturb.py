"""What is done to a running cluster, in words: ``kill ps1 @ step 20``."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from ..errors import nearest, shown

__all__ = ["SLOW", "Perturbation", "killed_for_good", "read_perturbation"]

SLOW = 10.0  # times, if a node is said to be slow
WAYS = ("kill", "restart", "pause", "partition", "lose", "slow")
LINE = re.compile(
    r"\s*(?P<what>\w+)\s+(?P<whom>[^@]+?)\s*@\s*(?:step\s+(?P<step>\d+)|(?P<time>[\d.]+)\s*s)"
    r"(?:\s+for\s+(?P<span>[\d.]+)\s*s)?\s*",
)
FORMS = (
    "write 'kill ps1 @ step 20', 'restart ps1 @ 8 s', 'pause w3 @ 5 s for 2 s', "
    "'slow w3 @ step 5 for 10 s', 'lose ps1 @ step 20' (its disk, as it is killed), or "
    "'partition ps0,ps1 | rest @ step 30 for 3 s'"
)


@dataclass(frozen=True)
class Perturbation:
    """One thing that is done.

    Attributes
    ----------
    what : {"kill", "restart", "pause", "partition", "lose", "slow"}
    groups : tuple of tuple of str
        The names that it is done to; of a partition the groups that no longer hear each other.
    step : int or None
        When a server gets there.
    time : float or None
        Seconds after the start.
    span : float
        Seconds that it lasts, of a pause, a partition and slowness.
    """

    what: str
    groups: tuple[tuple[str, ...], ...]
    step: int | None
    time: float | None
    span: float

    def __str__(self) -> str:
        whom = " | ".join(",".join(group) for group in self.groups)
        when = f"{self.time:g} s" if self.step is None else f"step {self.step}"
        return f"{self.what} {whom} @ {when}" + f" for {self.span:g} s" * bool(self.span)


def read_perturbation(line: str, names: Sequence[str]) -> Perturbation:
    """Return what a line says, of nodes of these names.

    Raises
    ------
    ValueError
        If it says nothing that can be done.

    Examples
    --------
    >>> read_perturbation("partition ps0 | rest @ step 3 for 2 s", ["ps0", "ps1", "w0"]).groups
    (('ps0',), ('ps1', 'w0'))
    """
    match = LINE.fullmatch(line) if isinstance(line, str) else None
    if match is None or match["what"] not in WAYS:
        raise ValueError(f"{shown(line)} is no perturbation: {FORMS}")
    what, span = match["what"], float(match["span"] or 0)
    lasting = what in ("pause", "partition", "slow")
    if lasting != bool(span):
        needs = "needs a length, as in 'for 3 s'" if lasting else "takes no length"
        raise ValueError(f"{shown(line)}: {what} {needs}")
    parts = [[name.strip() for name in part.split(",")] for part in match["whom"].split("|")]
    if (len(parts) > 1) != (what == "partition"):
        raise ValueError(f"{shown(line)} is no perturbation: {FORMS}")
    named = [name for part in parts for name in part if name != "rest"]
    for name in named:
        if name not in names:
            close = nearest(name, names)
            meant = f"did you mean {close!r}?" if close else f"there are {', '.join(names[:12])}"
            raise ValueError(f"{shown(line)}: there is no node {shown(name)}: {meant}")
    if len(set(named)) < len(named):
        raise ValueError(f"{shown(line)} names a node twice")
    rest = tuple(name for name in names if name not in named)
    groups = tuple(
        tuple(other for name in part for other in (rest if name == "rest" else (name,)))
        for part in parts
    )
    step = None if match["step"] is None else int(match["step"])
    return Perturbation(
        what, groups, step, None if step is not None else float(match["time"]), span
    )


def killed_for_good(lines: Sequence[str], names: Sequence[str]) -> frozenset[str]:
    """Return who is killed more often than started again.

    Examples
    --------
    >>> sorted(killed_for_good(["kill ps0,ps1 @ step 3", "restart ps1 @ 8 s"], ["ps0", "ps1"]))
    ['ps0']
    """
    lives = dict.fromkeys(names, 0)
    for line in lines:
        it = read_perturbation(line, names)
        change = {"kill": -1, "lose": -1, "restart": 1}.get(it.what, 0)
        for group in it.groups:
            for name in group:
                lives[name] += change
    return frozenset(name for name, left in lives.items() if left < 0)
