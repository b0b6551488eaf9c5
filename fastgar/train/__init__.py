"""Distributed training under attack, simulated in one process (needs the extra `train`)."""

from __future__ import annotations

from .data import Data, load
from .loop import Config, Evaluation, Run, prepare, train

__all__ = ["Config", "Data", "Evaluation", "Run", "load", "prepare", "train"]
