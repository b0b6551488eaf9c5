"""The errors that fastgar raises beyond Python's own, and what other messages share."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from difflib import get_close_matches
from pathlib import Path

__all__ = ["SearchLimit", "TooManyFaults", "levels_to_the_caller", "of_extra", "unknown"]


class TooManyFaults(ValueError):
    """More rows hold NaN or infinity than the rule was asked to survive.

    Attributes
    ----------
    rows : tuple of int
        Indices of the rows with at least one non-finite entry.
    f : int
        How many the rule tolerates.
    """

    def __init__(self, rows: Sequence[int], f: int) -> None:
        self.rows = tuple(int(row) for row in rows)
        self.f = f
        listed = ", ".join(map(str, self.rows[:20])) + (", ..." if len(self.rows) > 20 else "")
        plural = "" if len(self.rows) == 1 else "s"
        super().__init__(
            f"{len(self.rows)} row{plural} hold NaN or infinity (row{plural} {listed}) "
            f"but the rule tolerates f = {f}"
        )

    def __reduce__(self) -> tuple[type[TooManyFaults], tuple[tuple[int, ...], int]]:
        return type(self), (self.rows, self.f)


class SearchLimit(RuntimeError):
    """The search for the best subset was stopped before it was certain of it.

    Attributes
    ----------
    rule : str
        The rule that searches.
    n, f : int
        Rows, and how many of them the subset leaves out.
    nodes : int
        Branches tried.
    """

    def __init__(self, rule: str, n: int, f: int, nodes: int) -> None:
        self.rule, self.n, self.f, self.nodes = rule, n, f, nodes
        super().__init__(
            f"{rule} is exact, and {nodes} branches did not settle which {n - f} of {n} rows "
            f"(f = {f}) are best: pass a larger node_limit, declare a smaller f, or use a rule "
            "that does not search, such as 'nnm | trimmed_mean'"
        )

    def __reduce__(self) -> tuple[type[SearchLimit], tuple[str, int, int, int]]:
        return type(self), (self.rule, self.n, self.f, self.nodes)


def unknown(kind: str, name: object, known: Iterable[str]) -> ValueError:
    """Return the error for a `name` that is not among the `known` ones of its `kind`."""
    names = sorted(known)
    close = get_close_matches(str(name), names, n=1)
    hint = f"did you mean {close[0]!r}?" if close else "known: " + (", ".join(names) or "none")
    return ValueError(f"unknown {kind} {name!r}: {hint}")


@contextmanager
def of_extra(extra: str) -> Iterator[None]:
    """Name the extra of the package that brings a module, where that cannot be imported."""
    try:
        yield
    except ModuleNotFoundError as error:
        if error.name is None or error.name.startswith("fastgar"):
            raise
        raise ModuleNotFoundError(
            f'{error.name} is not installed: pip install "fastgar[{extra}]"', name=error.name
        ) from error


def levels_to_the_caller() -> int:
    """Return how many calls up from who calls this is the code that uses this package."""
    package = str(Path(__file__).parent)
    level, frame = 1, sys._getframe(1)
    while frame.f_back is not None:
        name = frame.f_code.co_filename
        if "importlib" in name:  # which a warning does not count
            level -= 1
        elif not name.startswith(package) and f"{os.sep}numba{os.sep}" not in name:
            break
        frame, level = frame.f_back, level + 1
    return level
