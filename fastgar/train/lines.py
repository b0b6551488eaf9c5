"""Files of JSON lines: whole at any moment, appended to as results come, and checked when read.

Whatever is begun anew is written beside the old, and takes its place at once when it is whole.
"""

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
    "is_whole", "line", "or_none", "plain", "records", "require_same", "write_whole",
]  # fmt: skip

Record = Mapping[str, Any]
Check = Callable[[Any], bool]
Kinds = Mapping[str, Mapping[str, Check]]  # what the records of each kind have, among other things


class Mismatch(ValueError):
    """What is there is of another run or grid, or is damaged."""


def require_same(
    place: Path, held: Mapping[str, Any], asked: Mapping[str, Any], *, of: str = ""
) -> None:
    """Raise an error that names all that differs, if anything does.

    Parameters
    ----------
    place : Path
        A file or a folder.
    held, asked : mapping
        Settings of the results that are there, and of those that are to come.
    of : str
        What of these results it is about, if not about all.

    Raises
    ------
    Mismatch
    """
    keys = [key for key in {**asked, **held} if held.get(key) != asked.get(key)]
    if keys:
        theirs, ours = (
            ", ".join(f"{key}={each.get(key)!r}" for key in keys) for each in (held, asked)
        )
        about = f"{of}: " if of else ""
        raise Mismatch(f"{place} holds results of {about}{theirs}; asked for: {ours}")


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


def records(
    content: bytes, path: Path, kinds: Kinds, *, skip: bool = False
) -> list[dict[str, Any]]:
    """Return the records of a file, of which a last line that was cut off is dropped.

    Parameters
    ----------
    content : bytes
    path : Path
        Where it is from, for the error.
    kinds : mapping
    skip : bool
        Whether lines that are no such records are passed over, as they can be done without.

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
            if skip:
                continue
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


def write_whole(path: Path, content: bytes) -> None:
    """Write a file so that at any moment it is there as it was, or as it is to be."""
    part = path.with_name(path.name + ".part")
    try:
        with part.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, path)
    except OSError:
        part.unlink(missing_ok=True)
        raise
    if os.name == "posix":
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


class Lines:
    """An open file of records.

    Parameters
    ----------
    path : Path
    kept : iterable of records, optional
        What it is to begin anew with; until all of them are written it is what it was before.
        None: it goes on behind what it holds.
    """

    def __init__(self, path: Path, kept: Iterable[Record] | None = None) -> None:
        if kept is not None:
            write_whole(path, "".join(map(line, kept)).encode())
        self.path = path
        self._file = path.open("ab")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def append(self, record: Record) -> None:
        """Append a record, at once."""
        self._file.write(line(record).encode())
        self._file.flush()

    def length(self) -> int:
        """Return how many bytes it has; all of them are on the disk then."""
        os.fsync(self._file.fileno())
        return self._file.tell()

    def mend(self) -> bytes:
        """Drop a last line that was cut off, and return what is left."""
        return self.cut(self.path.read_bytes().rfind(b"\n") + 1)

    def cut(self, length: int) -> bytes:
        """Drop what is beyond a length, and return what is left.

        Raises
        ------
        Mismatch
            If it is shorter than that.
        """
        if self._file.tell() < length:
            raise Mismatch(f"{self.path} is shorter than it was at the checkpoint")
        self._file.truncate(length)
        self._file.seek(length)
        return self.path.read_bytes()
