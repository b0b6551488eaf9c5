"""What a grid is: settings, as plain values, what does a run, and what is made of the results.

To add a grid, put a file into the folder `grids`. Its name is that of the grid, and its function
``grid`` returns it; the parameters of that function are options of ``fastgar reproduce``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import prod
from pathlib import Path
from typing import Any, NamedTuple

from ...errors import shown
from ...progress import Kind
from ..lines import Check, is_curve, is_number, is_text, is_whole, or_none
from ..origin import Origin

__all__ = ["TRAIN", "Grid", "Record", "Records", "Run", "Setting", "Table", "read_seeds"]

SIZES = ("steps", "workers", "batch", "evaluations")
TRAIN = "fastgar.train.reproduce.execute:execute"
TRAINED: dict[str, Check] = {  # what that returns, and how to tell that it is that
    **dict.fromkeys(("best", "late"), or_none(is_number)),
    **dict.fromkeys(("accuracy", "loss", "ratio", "sampled_ratio"), is_curve),
    "steps": is_whole,
    "stopped": or_none(is_text),
    **dict.fromkeys(("seconds", "aggregation"), is_number),
}
Record = dict[str, Any]
Records = Sequence[Record]
Plain = str | int | float | bool | None


@dataclass(frozen=True)
class Setting:
    """Everything about a run but its seed.

    Attributes
    ----------
    name : str
        As no other setting of the grid.
    config : mapping
        What `fastgar.train.run`, or another function, is to be told: model, data, rule, attack and
        further options.
    tags : mapping
        What tables and figures sort by, such as rule, attack, f, momentum_at.
    """

    name: str
    config: Mapping[str, Plain] = field(hash=False)
    tags: Mapping[str, Plain] = field(hash=False)

    @property
    def attacked(self) -> bool:
        """Whether anybody attacks."""
        return self.config.get("attack") != "none"


@dataclass(frozen=True)
class Run:
    """A setting with a seed."""

    setting: Setting
    seed: int

    @property
    def key(self) -> tuple[str, int]:
        """What tells it from all other runs of the grid."""
        return self.setting.name, self.seed

    @property
    def work(self) -> tuple[Kind, float]:
        """What its time depends on: of which kind it is, and how many samples or rows it takes."""
        config: Mapping[str, Any] = self.setting.config
        kind = Kind(str(config.get("rule")), str(config.get("attack", config.get("n"))))
        return kind, float(prod(config.get(name, 1) for name in SIZES))


class Table(NamedTuple):
    """A table as text, for whoever prints it.

    Attributes
    ----------
    title : str
    heads, rows : lists of str
    left : int
        How many columns are aligned at the left; the others hold numbers.
    note : str
        What is to be known to read it.
    """

    title: str
    heads: list[str]
    rows: list[list[str]]
    left: int
    note: str = ""


def words(record: Record) -> str:
    """Return what came of a run that trained."""
    stopped = f", stopped: {record['stopped']}" if record["stopped"] else ""
    best = "-" if record["best"] is None else f"{100 * record['best']:.1f} %"
    return f"{best} in {record['seconds']:.1f} s{stopped}"


@dataclass(frozen=True)
class Grid:
    """Settings that belong together.

    Attributes
    ----------
    name : str
        That of its file.
    data : str
        The data set; "" if nothing is trained.
    settings : tuple of Setting
    variant : str
        What else tells it from other grids: "", "appendix", "parity", "quick" or some of them.
    seeds : str
        Unless others are asked for, as `read_seeds` takes them.
    execute : str
        ``module:function`` that does a run (see `runner.run_all`).
    outcome : mapping
        What that returns, and how to tell that it is that.
    words : callable
        From a record to what came of the run, in a few words.
    tables : callable
        From records, of as many runs as there are, to tables.
    figures : callable
        From records, a folder and where they come from to the pictures: each as PNG and SVG.
    finish : callable
        From records and a folder to a sentence on what else it wrote, and the promises that are
        broken.
    published : callable
        To grids by name, which are counted beside this one.
    """

    name: str
    data: str
    settings: tuple[Setting, ...]
    variant: str = ""
    seeds: str = "1..5"
    execute: str = TRAIN
    outcome: Mapping[str, Check] = field(default_factory=lambda: TRAINED, hash=False)
    words: Callable[[Record], str] = words
    tables: Callable[[Records], list[Table]] = lambda records: []
    figures: Callable[[Records, Path, Origin], list[Path]] = lambda records, folder, origin: []
    finish: Callable[[Records, Path], tuple[str, list[str]]] = lambda records, folder: ("", [])
    published: Callable[[], Mapping[str, Sequence[Grid]]] = dict

    def __post_init__(self) -> None:
        names = [setting.name for setting in self.settings]
        if len(set(names)) < len(names):
            twice = next(name for name in names if names.count(name) > 1)
            raise ValueError(f"two settings are named {twice!r}")

    @property
    def title(self) -> str:
        """The grid in a few words."""
        variant = f" ({self.variant})" if self.variant else ""
        return f"{self.name} on {self.data}{variant}" if self.data else f"{self.name}{variant}"

    @property
    def command(self) -> str:
        """What does its runs."""
        flags = [f"--{word}" for word in self.variant.split()]
        data = [] if self.data == "digits" or "--appendix" in flags else ["--data", self.data]
        return " ".join(["fastgar", "reproduce", self.name, *data, *flags])

    def with_option(self, name: str, value: Plain) -> Grid:
        """Return the same settings, with one more option."""
        changed = (replace(each, config={**each.config, name: value}) for each in self.settings)
        return replace(self, settings=tuple(changed))

    def runs(self, seeds: Iterable[int]) -> list[Run]:
        """Return every setting with every seed; all settings with one seed before the next."""
        return [Run(setting, seed) for seed in seeds for setting in self.settings]


def read_seeds(text: str) -> Sequence[int]:
    """Return the seeds that a string such as ``1..5`` or ``1,2,7`` stands for.

    Raises
    ------
    ValueError
        If it is neither.

    Examples
    --------
    >>> list(read_seeds("1..3")), list(read_seeds("4,2"))
    ([1, 2, 3], [4, 2])
    """
    wanted = f"seeds are written 1..5 or 1,2,7, got {shown(text)}"
    first, dots, last = text.partition("..")
    try:
        seeds = (
            list(range(int(first), int(last) + 1)) if dots else [int(s) for s in text.split(",")]
        )
    except ValueError:
        raise ValueError(wanted) from None
    if not seeds:
        raise ValueError(f"{wanted}, where none is left")
    if min(seeds) < 0:
        raise ValueError(f"seeds must be at least 0, got {min(seeds)}")
    if len(set(seeds)) < len(seeds):
        raise ValueError(f"{wanted}, where one comes twice")
    return seeds
