"""Aggregation of vectors that do not fit in memory, or that come piece by piece."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from . import primitives
from .arrays import Table, table
from .geometry import Decision
from .pipeline import Rule, rule
from .primitives import Refs
from .stages import whole

__all__ = ["Streaming"]


class Streaming:
    """A rule over column chunks: show it every chunk, then let it apply itself to every chunk.

    Parameters
    ----------
    spec : str or Rule
        A rule's name or a pipeline, as `fastgar.rule` takes it.
    n : int
        The number of rows.
    f : int, optional
        How many rows may hold anything.

    Notes
    -----
    The result is that of the whole: bitwise, where all cuts are multiples of `fastgar.CHUNK`
    columns; otherwise within rounding. Memory is that of one chunk and n x n numbers. Column rules
    need no `observe`. Where a row is over 1000 times longer than the others, some rules must see
    the chunks a second time: `again` says so.

    Examples
    --------
    >>> chunks = [np.array([[1.0], [2.0], [9.0]]), np.array([[1.0], [1.0], [9.0]])]
    >>> stream = fg.Streaming("nnm | median", n=3, f=1)
    >>> for chunk in chunks:
    ...     stream.observe(chunk)
    >>> while stream.again():
    ...     for chunk in chunks:
    ...         stream.observe(chunk)
    >>> [stream.apply(chunk) for chunk in chunks]
    [array([1.5]), array([1.])]
    """

    def __init__(self, spec: str | Rule, n: int, f: int | None = None) -> None:
        self.rule = rule(spec, f)
        if n is None:
            raise TypeError(
                "n must be the number of rows of each chunk, got None: a rule needs it to know "
                "how many may be left out, before it has seen any chunk"
            )
        self.n = whole("n", n) or 0
        self.rule.require(self.n)
        self._begin()

    def _begin(self) -> None:
        self._D: NDArray[np.float64] | None = None
        self._inner: NDArray[np.float64] | None = None
        self._rescale: tuple[int, NDArray[np.float64]] | None = None
        self._decision: Decision | None = None
        self._seen = 0  # columns in this pass
        self._columns: int | None = None  # columns in all, once a pass is complete
        self._applied = 0

    @property
    def reads(self) -> int:
        """Passes over the chunks: 1 for a column rule, 2 for others, 3 where rows are very long."""
        return self.rule.reads + (self._rescale is not None)

    def observe(self, chunk: Any, *, start: Any = None, reference: Any = None) -> None:
        """Look at one chunk of columns.

        Parameters
        ----------
        chunk : (n, columns) array, or anything a rule takes as X
        start, reference : like one row of the chunk, optional
            The same columns of what the rule refers to.

        Raises
        ------
        TypeError, ValueError
            Where the chunk cannot be right, or not all of the last vector has been applied.
        """
        T, refs = self._table(chunk, start, reference)
        if self._decision is not None:
            if self._applied != self._columns:
                raise ValueError(
                    f"{self._applied} of {self._columns} columns have been applied: apply the "
                    "others, or restart(), before the next vector is observed"
                )
            self.restart()
        if self._rescale is None:
            self._D = self.rule.measure(T, refs, self._D)
        else:
            self._inner = primitives.inner(T, refs, *self._rescale, start=self._inner)
        self._seen += T.columns

    def again(self) -> bool:
        """Return whether every chunk must be observed once more, after all have been observed.

        Raises
        ------
        ValueError
            If it was once more, and not every column came.
        """
        if self._rescale is not None:
            self._all_seen()
            return False
        self._rescale = self.rule.wants_inner(self._D)
        if self._rescale is None:
            return False
        self._columns, self._seen = self._seen, 0
        return True

    def apply(self, chunk: Any, *, start: Any = None, reference: Any = None) -> Any:
        """Return the aggregate of one chunk: these columns of the whole aggregate.

        Parameters
        ----------
        chunk, start, reference
            As they were given to `observe`. Chunks come in the same order; they may be cut in
            other places.

        Returns
        -------
        aggregate
            Like one row of the chunk.

        Raises
        ------
        TypeError, ValueError
            Where the chunk cannot be right, or not every chunk has been observed (as often as
            `again` asks).
        TooManyFaults
            More than f rows hold a non-finite value (not for column rules alone).
        """
        T, refs = self._table(chunk, start, reference)
        if self._decision is None:
            self._decision = self._decide()
        total = self._applied + T.columns
        if self._columns is not None and total > self._columns:
            raise ValueError(
                f"{self._columns} columns were observed, and with this chunk {total} are applied"
            )
        out = self.rule.apply(self._decision, T, refs, offset=self._applied)
        self._applied = total
        return out.value()

    def restart(self) -> None:
        """Begin the next vector (`observe` does that by itself once all columns are applied)."""
        self.rule.advance()
        self._begin()

    def _table(self, chunk: Any, start: Any, reference: Any) -> tuple[Table, Refs]:
        T = table(chunk)
        if T.n != self.n:
            raise ValueError(f"each chunk must have n = {self.n} rows, got {T.n}")
        return T, self.rule.references(T, start, reference)

    def _all_seen(self) -> None:
        if self._seen != self._columns:
            raise ValueError(
                f"{self._seen} of {self._columns} columns were observed once more: all are needed"
            )

    def _decide(self) -> Decision:
        if self.rule.reads == 1:
            self._columns = self._seen or None  # a column rule need not observe
            return self.rule.decide(n=self.n)
        if self._D is None:
            raise ValueError(f"observe every chunk before apply: {self.rule} needs distances")
        if self._rescale is not None:
            self._all_seen()
        elif self.rule.wants_inner(self._D) is not None:
            raise ValueError(
                "rows of very different lengths: every chunk must be observed once more. After the "
                "last chunk call again(), and observe them all while it returns True"
            )
        else:
            self._columns = self._seen
        return self.rule.decide(self._D, self._inner)
