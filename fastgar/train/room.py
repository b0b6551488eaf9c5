"""Whether the least that a run needs is in memory: before any of it is made.

Linux promises more than there is, and ends whoever then uses it.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable

import torch
from torch import nn

from .config import Config
from .data import Data

__all__ = ["require_room", "require_room_for_model"]

UNITS = ("bytes", "kB", "MB", "GB", "TB", "PB")


def require_room(config: Config, data: Data, model: nn.Module) -> None:
    """Raise a ValueError if the samples of a step, or the gradients, are more than memory."""
    if torch.device(config.device).type != "cpu":
        return
    honest = config.taking_part - config.byzantine  # who compute in every case
    samples = honest * config.batch * config.local_steps
    each = f"{config.batch} for each of {honest} workers"
    each += f" in {config.local_steps} local steps" if config.local_steps > 1 else ""
    _require(f"the samples of a step (batch: {each})", samples * data.x[:1].nbytes)
    size = sum(parameter.nbytes for parameter in model.parameters())
    _require(f"the gradients of {honest} workers", honest * size)


def require_room_for_model(name: str, make: Callable[[], nn.Module]) -> None:
    """Raise a ValueError if the parameters of a model that `make` returns are more than memory."""
    try:
        with torch.device("meta"):  # which has shapes, and no memory
            size: float = sum(parameter.nbytes for parameter in make().parameters())
    except RuntimeError:  # the product of a shape is no number of 64 bits
        size = math.inf
    _require(f"the parameters of {name}", size)


def _require(what: str, size: float) -> None:
    there = _memory()
    if size > there:
        raise ValueError(f"{what} take {_words(size)}, and this machine has {_words(there)}")


def _memory() -> float:
    """Return the bytes of this machine's memory; infinity where it does not say."""
    try:
        return float(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    except (AttributeError, ValueError, OSError):
        return math.inf


def _words(size: float) -> str:
    """Return a size in words.

    Examples
    --------
    >>> _words(17_179_869_184), _words(3e30), _words(math.inf)
    ('17.2 GB', '3e+15 PB', 'more bytes than can be counted')
    """
    if size == math.inf:
        return "more bytes than can be counted"
    power = min(len(UNITS) - 1, max(0, int(math.log10(max(size, 1)) // 3)))
    return f"{size / 1000**power:.3g} {UNITS[power]}"
