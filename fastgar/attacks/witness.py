"""Rows that were found to move a rule far, in a file that anyone can check."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from .promise import Promise, quietly

__all__ = ["Witness"]

LARGEST = 1e9  # ratio that a rule may have whose bound is not known, only that there is one
KEPT = 0.9999  # of the ratio, at least, is left when the digits of the rows are cut
SAME = 1e-6  # relative difference that other processors may make
ROUNDING = 1e-8  # of a ratio at most, as honest rows spread by a part of 1e-6 of their length
FORM = "no file of rows that move a rule"


@dataclass(frozen=True, eq=False)
class Witness:
    """Rows, which of them are honest, and what ratio they bring a rule to (see `Promise`).

    Attributes
    ----------
    promise : Promise
    rows : (n, d) array
    honest : (n,) array of bool
    recorded : float
        The ratio as it was when they were found.
    """

    promise: Promise
    rows: NDArray[np.float64]
    honest: NDArray[np.bool_]
    recorded: float

    @cached_property
    def ratio(self) -> float:
        """What they bring the rule to now."""
        with quietly():
            return self.promise.ratio(self.rows, self.honest)

    @property
    def holds(self) -> bool:
        """Whether that is what was recorded."""
        return bool(np.isclose(self.ratio, self.recorded, rtol=SAME, atol=0.0))

    @property
    def refutation(self) -> str:
        """What is wrong with the promise, in a sentence; empty if it holds."""
        promise, bound = self.promise, self.promise.bound
        if promise.guarantee == "none" or self.ratio <= (bound or LARGEST) * (1 + ROUNDING):
            return ""
        above = "it promises some bound" if bound is None else f"its bound is {bound:.6g}"
        return f"{promise.rule} with n={promise.n}, f={promise.f}: {self.ratio:.6g}, and {above}"

    def shortened(self) -> Witness:
        """Return the same with as few digits as do nearly the same."""
        for digits in range(1, 18):
            rows = np.vectorize(lambda x: float(f"{x:.{digits - 1}e}"))(self.rows)  # noqa: B023
            ratio = self.promise.ratio(rows, self.honest)
            if ratio >= KEPT * self.recorded:
                return Witness(self.promise, rows, self.honest, ratio)
        return self

    def plain(self) -> dict[str, Any]:
        """Return it as JSON can hold it: numbers exactly, those that are not finite as text."""
        return {
            "rule": self.promise.rule,
            "n": self.promise.n,
            "f": self.promise.f,
            "ratio": _number(self.recorded),
            "liars": np.flatnonzero(~self.honest).tolist(),
            "rows": [[_number(x) for x in row] for row in self.rows.tolist()],
        }

    @classmethod
    def of(cls, plain: dict[str, Any]) -> Self:
        """Return what `plain` gave.

        Raises
        ------
        ValueError
            If that cannot have been.
        """
        try:
            promise = Promise(str(plain["rule"]), plain["n"], plain["f"])
            rows = np.array([[float(x) for x in row] for row in plain["rows"]])
            honest = np.ones(promise.n, bool)
            honest[plain["liars"]] = False
            recorded = float(plain["ratio"])
        except (KeyError, TypeError, IndexError) as error:
            raise ValueError(f"{FORM}: {error!r}") from error
        if rows.ndim != 2 or len(rows) != promise.n or honest.sum() != promise.n - promise.f:
            raise ValueError(f"{FORM}: n={promise.n}, f={promise.f} are others than there are")
        return cls(promise, rows, honest, recorded)

    @classmethod
    def read(cls, path: Path) -> Self:
        """Return that of a file.

        Raises
        ------
        ValueError
            If it holds none.
        """
        try:
            return cls.of(json.loads(path.read_text()))
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from error

    def write(self, path: Path) -> None:
        """Write it to a file."""
        path.write_text(json.dumps(self.plain(), separators=(",", ":")) + "\n")


def _number(x: float) -> float | int | str:
    if not np.isfinite(x):
        return str(x)
    return int(x) if x == int(x) and abs(x) < 1e15 and str(x) != "-0.0" else x
