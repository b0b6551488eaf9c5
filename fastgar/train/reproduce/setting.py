"""What a grid is made of: settings, as plain values."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import prod
from typing import Any

from ...errors import shown
from ...progress import Kind

__all__ = ["Grid", "Run", "Setting", "read_seeds"]

SIZES = ("steps", "workers", "batch", "evaluations")
TRAIN = "fastgar.train.reproduce.execute:execute"
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


@dataclass(frozen=True)
class Grid:
    """Settings that belong together.

    Attributes
    ----------
    name : str
        momentum, zeno, resilience or kappa.
    data : str
        The data set, if there is one.
    settings : tuple of Setting
    variant : str
        What else tells it from other grids: "", "appendix", "parity", "quick" or some of them.
    execute : str
        ``module:function`` that does a run (see `runner.run_all`).
    """

    name: str
    data: str
    settings: tuple[Setting, ...]
    variant: str = ""
    execute: str = TRAIN

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
