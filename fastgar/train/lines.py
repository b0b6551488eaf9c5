"""Files of JSON lines: whole at any moment, appended to as results come, and checked when read."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

__all__ = [
    "Check", "Kinds", "Lines", "Mismatch", "is_curve", "is_number", "is_table", "is_text",
    "is_whole", "line", "or_none", "plain", "records",
]  # fmt: skip

Record = Mapping[str, Any]
Check = Callable[[Any], bool]
Kinds = Mapping[str, Mapping[str, Check]]  # what the records of each kind have, among other things


class Mismatch(ValueError):
    """What is there is of another run or grid, or is damaged."""


def is_text(value: Any) -> bool:
    return isinstance(value, str)


def is_whole(value: Any) -> bool:
    return type(value) is int and 0 <= value < 1 << 63


def is_number(value: Any) -> bool:
    return is_whole(value) or (type(value) is float and math.isfinite(value))


def is_table(value: Any) -> bool:
    return isinstance(value, dict)


def is_curve(value: Any) -> bool:
    """Say whether these are pairs of a step and a number."""
    return isinstance(value, list) and all(
        isinstance(pair, list)
        and len(pair) == 2
        and is_whole(pair[0])
        and or_none(is_number)(pair[1])
        for pair in value
    )


def or_none(check: Check) -> Check:
    """Return the check that is content with None too, as NaN is written."""
    return lambda value: value is None or check(value)


def records(content: bytes, path: Path, kinds: Kinds) -> list[dict[str, Any]]:
    """Return the records of a file, of which a last line that was cut off is dropped.

    Raises
    ------
    Mismatch
        If another line is no record of one of these kinds.
    """
    lines = content.split(b"\n")
    cut = len(lines)  # the last line, unless it is empty: each record ends with a new line
    found: list[dict[str, Any]] = []
    for number, text in enumerate(lines, start=1):
        if number == cut and (found or not text):
            break
        try:
            record = json.loads(text)
            fields = kinds[record["kind"]]
            if not all(fits(record[name]) for name, fits in fields.items()):
                raise ValueError("a value that cannot be")
        except (ValueError, TypeError, KeyError, RecursionError):
            words = " or ".join(kinds)
            raise Mismatch(f"line {number} of {path} is no record of a {words}") from None
        found.append(record)
    return found


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
