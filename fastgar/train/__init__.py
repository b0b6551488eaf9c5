"""Distributed training under attack: in one process, or one rank per worker (extra `train`)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ..later import later
from .config import Config

if TYPE_CHECKING:
    from .data import Data, load
    from .loop import Training, run
    from .result import Evaluation, Result
    from .rundir import Mismatch

__all__ = ["Config", "Data", "Evaluation", "Mismatch", "Result", "Training", "load", "run"]

LATER = {  # where to find what needs torch, which the settings do not: the command line has them
    "Data": "data", "load": "data", "Training": "loop", "run": "loop", "Evaluation": "result",
    "Result": "result", "Mismatch": "rundir",
}  # fmt: skip


def __getattr__(name: str) -> Any:
    """Import what is imported when it is first asked for."""
    return later(__name__, name, LATER, extra="train")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
