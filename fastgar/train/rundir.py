"""The run directory: what was asked for, what came of it, and from where to go on.

===================== ========================================================================
``config.toml``       the settings; the run can be done again from it
``environment.json``  versions and machine of the process that began the run
``metrics.jsonl``     a line for each evaluation and each step that is recorded, as they come
``checkpoint.pt``     all that later steps depend on; tensors and plain values, nothing else
``log.txt``           what happened when
===================== ========================================================================

A checkpoint is whole or not there, and knows how long ``metrics.jsonl`` was when it was taken. So a
process may be killed at any moment: the next one cuts that file to this length and goes on from the
checkpoint, and what the two leave behind is what one alone would have left.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import platform
import re
from datetime import datetime
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any

import torch

import fastgar as fg

from ..machine import versions
from .config import Config, read_settings
from .lines import (
    Kinds,
    Lines,
    Mismatch,
    is_number,
    is_table,
    is_whole,
    or_none,
    records,
    require_same,
    write_whole,
)  # fmt: skip
from .ranks import Ranks

__all__ = ["Mismatch", "RunDirectory", "environment", "name_of", "open_directory"]

CONFIG, ENVIRONMENT, METRICS, CHECKPOINT, LOG = FILES = (
    "config.toml", "environment.json", "metrics.jsonl", "checkpoint.pt", "log.txt",
)  # fmt: skip

LONGEST_NAME = 100  # characters of a name
KINDS: Kinds = {
    "step": {"step": is_whole, "loss": or_none(is_number)},
    "evaluation": {
        "step": is_whole, "loss": or_none(is_number), "accuracy": is_number,
        "weight": or_none(is_number),
    },
}  # fmt: skip

Record = dict[str, Any]


class RunDirectory:
    """A directory of a run, new or taken up again.

    Parameters
    ----------
    path : Path
        Made if it is not there.
    config : Config
    fresh : bool
        Whether to forget what it has.

    Raises
    ------
    Mismatch
        If it holds a run with other settings, or damaged or unknown files.
    OSError
        If it cannot be written.
    """

    def __init__(self, path: Path, config: Config, *, fresh: bool = False) -> None:
        self.path = path
        path.mkdir(parents=True, exist_ok=True)
        with TemporaryFile(dir=path):  # an OSError if the directory cannot be written
            pass
        known = (path / CONFIG).exists()
        found = [name for name in (METRICS, CHECKPOINT) if (path / name).exists()]
        if found and not known:
            raise Mismatch(f"{path} has {found[0]} but no {CONFIG}: take another directory")
        if fresh:
            for name in reversed(FILES):  # the settings last: until then it is a run
                (path / name).unlink(missing_ok=True)
        if known and not fresh:
            self._compare(config)
            self._compare_versions()
        else:
            facts = json.dumps(environment(), indent=2) + "\n"
            write_whole(path / ENVIRONMENT, facts.encode())
            write_whole(path / CONFIG, config.to_toml().encode())
        self._metrics = Lines(path / METRICS)

    def _compare(self, config: Config) -> None:
        try:
            before = Config.of(read_settings(self.path / CONFIG))
        except (TypeError, ValueError) as error:
            raise Mismatch(f"{self.path / CONFIG} cannot be read: {error}") from error
        differing = config.difference(before)
        ours, theirs = ({name: pair[i] for name, pair in differing.items()} for i in (0, 1))
        require_same(self.path, theirs, ours)

    def _compare_versions(self) -> None:
        """Write down that the run goes on with other versions, which may round otherwise."""
        path = self.path / ENVIRONMENT
        if not path.exists():
            return
        try:
            before = json.loads(path.read_bytes())["versions"]
            if not is_table(before):
                raise ValueError("no versions")
        except (ValueError, TypeError, KeyError, RecursionError) as error:
            raise Mismatch(f"{path} is damaged: delete it, and the run goes on") from error
        for name, now in environment()["versions"].items():
            if before.get(name) != now:
                self.log(f"{name} is {now}, and was {before.get(name)} when the run began")

    def close(self) -> None:
        """Close the file of metrics."""
        self._metrics.close()

    def log(self, text: str) -> None:
        """Write down what happened, with the time."""
        with (self.path / LOG).open("a") as file:
            file.write(f"{datetime.now().isoformat(sep=' ', timespec='seconds')}  {text}\n")

    def append(self, record: Record) -> None:
        """Append a line of metrics."""
        self._metrics.append(record)

    def save(self, state: Record) -> None:
        """Write a checkpoint: the last one stays until this one is whole."""
        length, buffer = self._metrics.length(), io.BytesIO()
        torch.save({**state, "metrics": length}, buffer)
        write_whole(self.path / CHECKPOINT, buffer.getvalue())

    def last(self) -> tuple[bytes, bytes]:
        """Return the last checkpoint and the metrics until then; later lines are cut off."""
        path = self.path / CHECKPOINT
        state, length = b"", 0
        if path.exists():
            state = path.read_bytes()
            length = load(state, path)["metrics"]
        return state, self._metrics.cut(length)


def open_directory(
    path: Path, config: Config, fresh: bool, ranks: Ranks
) -> tuple[RunDirectory | None, Record, list[Record]]:
    """Return the directory (on rank 0 alone), the last checkpoint and the lines of metrics.

    Raises
    ------
    Mismatch, OSError
        As `RunDirectory` does; on all ranks.
    """
    directory: RunDirectory | None = None
    found = (b"", b"")

    def begin() -> bytes:
        nonlocal directory, found
        try:
            directory = RunDirectory(path, config, fresh=fresh)
            found = directory.last()
        except (OSError, Mismatch) as error:
            if ranks.alone:
                raise
            return str(error).encode()
        return b""

    complaint = ranks.share(begin).decode()
    if complaint:
        raise Mismatch(complaint)
    state, lines = ranks.share(lambda: found[0]), ranks.share(lambda: found[1])
    return directory, load(state) if state else {}, records(lines, path / METRICS, KINDS)


def name_of(config: Config) -> str:
    """Return a directory's name for a run, by rule and attack: readable, and safe everywhere.

    Examples
    --------
    >>> name_of(Config(rule="nnm | trimmed_mean", attack="empire(k=10)"))
    'nnm+trimmed_mean-vs-empire-k=10'
    """
    exact = f"{config.rule}-vs-{config.attack}"
    short = re.sub(r"\s*\|\s*", "+", exact.replace("(", "-").replace(")", ""))
    name = re.sub(r"[^A-Za-z0-9._+=,-]+", "", short)
    if name == short and len(name) <= LONGEST_NAME:
        return name
    # Something had to go, which may be all that tells two runs apart.
    return f"{name[:LONGEST_NAME]}-{hashlib.sha256(exact.encode()).hexdigest()[:8]}"


def load(blob: bytes, path: str | Path = CHECKPOINT) -> Record:
    """Return what the checkpoint at `path` holds; nothing but tensors and plain values is read.

    Raises
    ------
    Mismatch
        If it is no checkpoint.
    """
    try:
        state: Record = torch.load(io.BytesIO(blob), weights_only=True)
        if not is_whole(state["metrics"]):
            raise ValueError("no length of the metrics")
    except Exception as error:  # of many kinds, from the zip file to the last tensor
        reason = str(error).split("\n")[0].split(". ")[0].rstrip(".")
        raise Mismatch(
            f"{path} is damaged or no checkpoint ({reason}): delete it, and that run starts again"
        ) from error
    return state


def environment() -> Record:
    """Return versions and machine of this process."""
    return {
        "versions": versions("python", "fastgar", "torch", "numpy", "numba", "scikit-learn"),
        "platform": platform.platform(),
        "cpus": os.cpu_count(),
        "threads": {"torch": torch.get_num_threads(), "fastgar": fg.get_threads()},
        "cuda": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
    }
