"""Files of JSON lines: whole at any moment, and appended to as results come."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

__all__ = ["Lines", "line", "plain"]

Record = Mapping[str, Any]


def plain(value: Any) -> Any:
    """Return what a value becomes when it is written as JSON, which has no NaN, and read again."""
    if isinstance(value, Mapping):
        return {key: plain(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [plain(each) for each in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def line(record: Record) -> str:
    """Return a record as a line."""
    return json.dumps(plain(record), allow_nan=False, separators=(",", ":")) + "\n"


class Lines:
    """An open file of records, begun anew with those that are kept.

    Until all of these are written, the file is what it was before.
    """

    def __init__(self, path: Path, kept: Iterable[Record]) -> None:
        part = path.with_name(path.name + ".part")
        part.write_text("".join(map(line, kept)))
        os.replace(part, path)
        self._file = path.open("a")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._file.close()

    def append(self, record: Record) -> None:
        """Append a record, at once."""
        self._file.write(line(record))
        self._file.flush()
