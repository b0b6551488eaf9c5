"""The errors that fastgar raises beyond Python's own, and what other messages share."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from difflib import get_close_matches
from pathlib import Path
from reprlib import Repr
from typing import Any

__all__ = [
    "SearchLimit", "TooManyFaults", "levels_to_the_caller", "nearest", "of_extra", "require_name",
    "shown", "unknown",
]  # fmt: skip

READABLE = 200  # characters of a value in a message


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
    """A rule was stopped at its `work_limit`, before it was certain of what it decides.

    Attributes
    ----------
    rule : str
    n, f : int
        Rows, and how many of them may lie.
    work : int
        Operations done.
    best : tuple
        Of a search (mda, mva, smea) the best subset so far: indices of n-f rows, ascending. Of caf
        the best n weights so far, which need not be robust. Of dnc nothing: what is left while
        fewer than f rows have gone is not robust.
    value : float
        The diameter of the best subset (mda), its variance (mva: the trace of its covariance) or
        the largest eigenvalue of its covariance (smea, caf); infinity where there is none.
    bound : float
        A number that nothing has a lower value than: 0 where none is known, as for caf and dnc.
    """

    def __init__(
        self, rule: str, n: int, f: int, work: int, best: Sequence[float], value: float,
        bound: float,
    ) -> None:  # fmt: skip
        self.rule, self.n, self.f, self.work = rule, n, f, work
        self.best = tuple(best)
        self.value, self.bound = float(value), float(bound)
        searches = any(isinstance(row, int) for row in self.best)
        super().__init__(
            f"{rule} is exact, and {work} operations did not settle which {n - f} of {n} rows "
            f"(f = {f}) are best; the least width may be {self.gap:.1%} below the best found. "
            "Use a rule that does not search, such as 'nnm | trimmed_mean', or on_limit='best' to "
            "take the best found, declare a smaller f, or pass a larger work_limit"
            if searches
            else f"{rule} takes out rows one after another, and {work} operations did not do for "
            f"{n} rows (f = {f}). Use a rule with less to do, such as 'nnm | trimmed_mean', "
            "declare a smaller f, or pass a larger work_limit"
        )

    @property
    def gap(self) -> float:
        """By how much at most the least value is below that of `best`: 1 - bound/value (0 to 1).

        0 says that no subset is better, beyond the rounding of 1 part in 1e12 that counts as a tie;
        there may be others as good, of which an earlier one is the rule's. 1 says nothing.
        """
        return 1.0 - self.bound / self.value if self.value > self.bound else 0.0

    def __reduce__(self) -> tuple[type[SearchLimit], tuple[Any, ...]]:
        return type(self), (
            self.rule, self.n, self.f, self.work, self.best, self.value, self.bound,
        )  # fmt: skip


class _Short(Repr):
    """Writes a value: an array as its shape, and of what is long the beginning and the end."""

    def __init__(self) -> None:
        super().__init__()
        self.maxlevel, self.maxstring, self.maxother = 3, READABLE, READABLE
        self.maxdict = self.maxlist = self.maxtuple = self.maxset = 20

    def repr1(self, x: Any, level: int) -> str:
        try:
            shape = tuple(x.shape)
        except Exception:  # it is no array
            shape = ()
        # Not even the repr of an array is asked for: that of one on a GPU would wait for it.
        return f"<{type(x).__name__} of shape {shape}>" if shape else super().repr1(x, level)

    def repr_int(self, x: int, level: int) -> str:
        # Python refuses to write very long ones.
        return repr(x) if x.bit_length() <= 64 else f"an integer of {x.bit_length()} bits"


def shown(value: object) -> str:
    """Return what a message says of a value: its repr, but arrays by shape and never a long one."""
    text = _Short().repr(value)
    return text if len(text) <= READABLE else f"{text[: READABLE // 2]}...{text[-READABLE // 4 :]}"


def nearest(name: str, known: Iterable[str], cutoff: float = 0.6) -> str | None:
    """Return which of the `known` names is meant, or None if there is no telling.

    >>> nearest("Trimmed-Mean", ["mean", "trimmed_mean"]), nearest("kurm", ["krum", "mean"])
    ('trimmed_mean', 'krum')
    """
    plain = {_letters(each): each for each in sorted(known, reverse=True)}
    close = get_close_matches(_letters(name[:READABLE]), plain, n=1, cutoff=cutoff)
    return plain[close[0]] if close else None


def _letters(name: str) -> str:
    return re.sub(r"[\W_]", "", name.lower())


def unknown(kind: str, name: object, known: Iterable[str], meant: str | None = None) -> ValueError:
    """Return the error for a `name` that is not among the `known` ones of its `kind`."""
    names = sorted(known)
    close = meant or (nearest(name, names) if isinstance(name, str) else None)
    hint = f"did you mean {close!r}?" if close else "known: " + (", ".join(names) or "none")
    return ValueError(f"unknown {kind} {shown(name)}: {hint}")


def require_name(kind: str, name: object, known: Iterable[str]) -> None:
    """Raise the error for a `name` that is not among the `known` ones: an array is none."""
    if not isinstance(name, str) or name not in known:
        raise unknown(kind, name, known)


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
