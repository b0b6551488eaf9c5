"""The file of results: one line of JSON per evaluation and one per run, written as they come.

The first line holds what all runs share. A file can be taken up again: finished runs are kept,
what an interrupted run left is dropped until that run is taken up.
"""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import fastgar as fg

from .config import Config
from .lines import (
    Kinds,
    Lines,
    Mismatch,
    is_number,
    is_text,
    is_whole,
    or_none,
    records,
    require_same,
)  # fmt: skip
from .result import Evaluation, Result

__all__ = ["Results", "summary"]

WHICH = {"rule": is_text, "attack": is_text}
NUMBERS = ("accuracy", "lowest", "best", "final", "milliseconds", "weight")
KINDS: Kinds = {
    "config": {},
    "evaluation": {
        **WHICH, "step": is_whole,
        **dict.fromkeys(("loss", "accuracy", "weight"), or_none(is_number)),
    },
    "run": {**WHICH, "stopped": or_none(is_text), **dict.fromkeys(NUMBERS, or_none(is_number))},
}  # fmt: skip


class Results(Lines):
    """An open file of results.

    Parameters
    ----------
    path : Path
    config : Config
        Of any of the runs, which differ in rule and attack alone.
    fresh : bool
        Whether to forget what the file has.

    Attributes
    ----------
    runs : list of dict
        The lines of finished runs, in the order of the file.
    evaluations : list of dict
        The lines of all evaluations.

    Raises
    ------
    Mismatch
        If the file holds results of other settings, or is no file of results.
    OSError
        If it cannot be written.
    """

    def __init__(self, path: Path, config: Config, *, fresh: bool = False) -> None:
        shared = {**asdict(config), "declared": config.f}
        del shared["rule"], shared["attack"]
        head = {"kind": "config", "fastgar": fg.__version__, **shared}
        kept = [] if fresh or not path.exists() else records(path.read_bytes(), path, KINDS)
        if kept:
            if kept[0]["kind"] != "config":
                raise Mismatch(f"{path} does not begin with the settings of its runs")
            require_same(path, {key: kept[0].get(key) for key in head}, head)
        finished = {_key(line) for line in kept if line["kind"] == "run"}
        kept = [head, *(line for line in kept[1:] if _key(line) in finished)]
        self.runs = [line for line in kept if line["kind"] == "run"]
        self.evaluations = [line for line in kept if line["kind"] == "evaluation"]
        super().__init__(path, kept)

    def finished(self, rule: str, attack: str) -> dict[str, Any] | None:
        """Return the line of a finished run, or None."""
        found = [run for run in self.runs if _key(run) == (rule, attack)]
        return found[0] if found else None

    def evaluation(self, config: Config, evaluation: Evaluation) -> None:
        """Append one evaluation."""
        which = {"rule": config.rule, "attack": config.attack}
        line = {"kind": "evaluation", **which, **asdict(evaluation)}
        self.evaluations.append(line)
        self.append(line)

    def run(self, result: Result) -> dict[str, Any]:
        """Append a finished run, and return its line."""
        line = summary(result)
        self.runs.append(line)
        self.append(line)
        return line


def summary(result: Result) -> dict[str, Any]:
    """Return what a run has come to, finished or not."""
    last = result.evaluations[-1] if result.evaluations else None
    return {
        "kind": "run",
        "rule": result.config.rule,
        "attack": result.config.attack,
        "steps": last.step if last else 0,
        "accuracy": result.accuracy if last else None,  # mean over the last third
        "lowest": min(result.late) if last else None,
        "best": result.best if last else None,
        "final": last.accuracy if last else None,
        "milliseconds": result.milliseconds,
        "weight": result.weight,
        **{f"{name}_seconds": spent for name, spent in result.seconds._asdict().items()},
        "stopped": result.stopped,
    }


def _key(line: dict[str, Any]) -> tuple[Any, Any]:
    return line.get("rule"), line.get("attack")
