"""The file of results of a grid: JSON lines, appended as runs end.

The first line says which grid it is. Then come lines of three kinds: ``session`` (when, with which
versions), ``run`` (one for each run that ended) and nothing else. A last line that was cut off
while it was written is dropped. A file can be taken up again, with more seeds too; the file of
another grid, or of the same grid with other numbers, is refused.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from ..lines import (
    Check,
    Kinds,
    Lines,
    Mismatch,
    is_table,
    is_text,
    is_whole,
    plain,
    records,
    require_same,
)  # fmt: skip
from .setting import Grid, Record, Run

__all__ = ["Mismatch", "Store", "read"]

RUN = {"name": is_text, "seed": is_whole, "tags": is_table, "config": is_table}
KINDS: Kinds = {"grid": {}, "session": {}, "run": RUN}


class Store(Lines):
    """An open file of results.

    Parameters
    ----------
    path : Path
        Its folder must exist.
    grid : Grid
    fresh : bool
        Whether to forget what the file has.

    Attributes
    ----------
    records : dict
        The record of each run that ended, by (name of its setting, seed).
    sources : dict or None
        Digests of the code that the first of its runs were made with.

    Raises
    ------
    Mismatch
        If the file holds results of another grid, or is damaged.
    OSError
        If it cannot be written.
    """

    def __init__(self, path: Path, grid: Grid, *, fresh: bool = False) -> None:
        head = _head(grid)
        lines = [] if fresh else _lines(path, grid.outcome)
        if lines:
            require_same(path, lines[0], head)
        settings = {setting.name: setting for setting in grid.settings}
        self.records: dict[tuple[str, int], Record] = {}
        self.sources = next((each["sources"] for each in lines if "sources" in each), None)
        for record in lines:
            if record["kind"] == "run":
                setting = settings.get(record["name"])
                if setting is None:
                    raise Mismatch(f"{path} has a setting {record['name']!r} that this grid lacks")
                for held, asked in (("config", setting.config), ("tags", setting.tags)):
                    require_same(path, record[held], plain(asked), of=setting.name)
                self.records[record["name"], record["seed"]] = record
        super().__init__(path, lines or [head])

    def missing(self, runs: Iterable[Run]) -> list[Run]:
        """Return the runs that have not ended yet."""
        return [run for run in runs if run.key not in self.records]

    def session(self, facts: Mapping[str, Any]) -> None:
        """Append what is known of the process that is about to work."""
        self.append({"kind": "session", **facts})
        self.sources = self.sources or facts.get("sources")

    def add(self, run: Run, outcome: Mapping[str, Any]) -> Record:
        """Append how a run ended, and return its record."""
        setting = run.setting
        record: Record = plain(
            {
                "kind": "run",
                "name": setting.name,
                "seed": run.seed,
                "tags": dict(setting.tags),
                "config": dict(setting.config),
                **outcome,
            }
        )
        self.append(record)
        self.records[run.key] = record
        return record


def read(path: Path) -> list[Record]:
    """Return the records of the runs in a file.

    Raises
    ------
    Mismatch
        If it is no file of results.
    """
    return [record for record in _lines(path, {}) if record["kind"] == "run"]


def _head(grid: Grid) -> Record:
    return {"kind": "grid", "name": grid.name, "data": grid.data, "variant": grid.variant}


def _lines(path: Path, outcome: Mapping[str, Check]) -> list[Record]:
    """Return every record of a file; a last line that was cut off is dropped."""
    if not path.exists():
        return []
    found = records(path.read_bytes(), path, {**KINDS, "run": {**RUN, **outcome}})
    if found and found[0]["kind"] != "grid":
        raise Mismatch(f"{path} does not begin with the name of its grid")
    return found
