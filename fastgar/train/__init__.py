"""Distributed training under attack: in one process, or one rank per worker (extra `train`)."""

from __future__ import annotations

from ..errors import of_extra

with of_extra("train"):
    from .config import Config
    from .data import Data, load
    from .loop import Training, run
    from .result import Evaluation, Result
    from .rundir import Mismatch

__all__ = ["Config", "Data", "Evaluation", "Mismatch", "Result", "Training", "load", "run"]
