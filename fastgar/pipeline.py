"""A configured rule: stages of mixing and one rule, run at the cost of its reads of the data.

``Rule`` is where the parts meet: `arrays` finds the rows, `primitives` reads them, the stages'
mathematics decides on n x n numbers (`deciding`), `primitives` applies the decision.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from . import primitives
from .arrays import Out, Table, reference, table
from .deciding import Deciding, DistanceOn, on_all
from .dtypes import ITEMSIZE
from .errors import shown
from .geometry import Decision
from .primitives import Refs
from .stages import parse, whole
from .usage import votes

__all__ = ["Explained", "Rule", "rule"]

Array = NDArray[np.float64]

WITHOUT_MIXTURE = ("finite_mean", "sign", "condense")  # statistics without a fused kernel


class Explained(NamedTuple):
    """An aggregate, and how it came about.

    Attributes
    ----------
    aggregate
    decision : Decision
    rows : Table
    refs : tuple
        The references: one-row tables, or "origin".
    distances : (points, points) array or None
        The squared distances of rows, references and what was `beside`, where all leaves count in
        them and the rule looks at no statistic of the columns.
    """

    aggregate: Any
    decision: Decision
    rows: Table
    refs: Refs
    distances: Array | None


class Rule(Deciding):
    """A rule, or mixing steps and a rule, configured and ready to aggregate.

    Make one with `fastgar.rule`. Calling it aggregates; it counts its calls, so that randomised
    stages draw anew each time. Equal are rules with the same stages, options and f.

    Attributes
    ----------
    stages : tuple of Stage
    f : int or None
        How many rows may hold anything; None: each stage's default.
    refs : tuple of str
        The extra points that it needs: "origin", "start", "reference".
    reads : int
        Passes over X, if no row is very long.
    step : int
        How many times it has aggregated.
    """

    def __call__(
        self,
        X: Any,
        *,
        buffers: str = "median",
        distance_on: DistanceOn = "all",
        start: Any = None,
        reference: Any = None,
        check: bool = False,
    ) -> Any:
        """Aggregate the rows of X.

        Parameters
        ----------
        X : array of shape (n, ...), sequence of n arrays, or sequence of n structures
            One row per worker, of any array library. Never written.
        buffers : {"median", "first", "selected", "error"}
            What becomes of integer leaves of structures. Where the rule takes one row, they are
            those of that row. Else "median" is the lower median of the rows that have a weight (of
            column rules, of all rows; of `mean` and `nan_mean` the rounded mean), for a leaf of one
            number; a leaf of more must be the same in more than half of the rows, or is a
            TypeError. "first" and "selected" take all of them from one row: the first that has a
            weight, and the one that has the most. "error" is a TypeError.
        distance_on : "all" or callable
            For structures: a function of a leaf's path that says whether the leaf counts in
            distances. Column rules have no distances and take no notice.
        start, reference : like one row of X, optional
            What `refs` names: "start" is the origin unless given, "reference" is required.
        check : bool
            For rows on a GPU, where some rules (see the notes) wait for nothing, and so cannot
            raise TooManyFaults but give NaN: wait for the distances, and raise it. Elsewhere it
            is always raised, and for column rules never.

        Returns
        -------
        aggregate
            Like one row of X; a stack of rows where the last stage is a mixing step.

        Raises
        ------
        TypeError, ValueError
            Where the input cannot be right; before any work.
        TooManyFaults
            More than f rows hold a non-finite value (not for column rules alone; on a GPU see
            `check`).

        Notes
        -----
        On a GPU everything runs on the caller's current stream. Column rules, krum, multi_krum,
        bulyan and cge, and nnm before an order statistic (of numbers but float64) wait for nothing,
        and can be captured in a CUDA graph once they have run; other rules wait once, for the n x n
        distances, and so do these where there are integer leaves.
        """
        T = table(X, buffers=buffers)
        plan = self._plans.get(T.n) or self._plan(T.n)
        if self._columns_only and start is None and reference is None:
            decision = Decision(statistic=plan.statistic or self._draw(T.n))
            refs: Refs = ()
        else:
            refs, D = self.references(T, start, reference), None
            plain = on_all(distance_on) and not _checked(check)
            selection = plan.selection if plain and T.votes is None else None
            if selection is not None:
                dtypes = None if T.device == "cpu" else [block.dtype for block in T.blocks]
                if primitives.selects(selection, T.n, dtypes):
                    out = T.empty()
                    D = primitives.select(T, selection, refs, out)
                    if D is None:
                        self.step += 1
                        return out.value()
            decision = self._decide_on(T, refs, distance_on, D)
        result = self.apply(decision, T, refs).value()
        self.step += 1
        return result

    def explain(
        self,
        X: Any,
        *,
        buffers: str = "median",
        distance_on: DistanceOn = "all",
        start: Any = None,
        reference: Any = None,
        beside: Refs = (),
    ) -> Explained:
        """Aggregate as a call does, and tell what was decided and why.

        Parameters
        ----------
        X, buffers, distance_on, start, reference
            As for a call.
        beside : sequence of Table or "origin"
            Further points to measure the distances of, which decide on nothing.

        Returns
        -------
        Explained
            `fastgar.inspect` makes a report of it.
        """
        T = table(X, buffers=buffers)
        refs, D, known = self.references(T, start, reference), None, None
        if not self._columns_only and self._centre is None and on_all(distance_on):
            D = primitives.sqdist(T, [*refs, *beside])
            known = np.ascontiguousarray(D[: T.n + len(refs), : T.n + len(refs)])
        decision = self._decide_on(T, refs, distance_on, known)
        aggregate = self.apply(decision, T, refs).value()
        self.advance()
        return Explained(aggregate, decision, T, refs, D)

    def advance(self) -> None:
        """Count an aggregation, of which the parts were carried out with `apply`."""
        self.step += 1

    def waits(self, n: int, dtype: str = "float32") -> bool:
        """Return whether aggregating n rows on a GPU waits for their distances on the host.

        Such a call cannot be captured in a CUDA graph. With `distance_on` or `check` every rule
        waits, but for a column rule alone.

        Parameters
        ----------
        n : int
            Number of rows.
        dtype : str
            Of the rows, or of one of their leaves: nnm of float64 may need a second look at them.

        Examples
        --------
        >>> import fastgar as fg
        >>> fg.rule("krum", f=2).waits(n=11), fg.rule("geometric_median", f=2).waits(n=11)
        (False, True)
        """
        rows = whole("n", n)
        if rows is None or dtype not in ITEMSIZE:
            raise TypeError(f"n must be an integer and dtype one of {', '.join(ITEMSIZE)}")
        self.require(rows)
        if self._columns_only:
            return False
        selection = self._plan(rows).selection
        return selection is None or not primitives.selects(selection, rows, (dtype,))

    def references(self, T: Table, start: Any = None, reference_: Any = None) -> Refs:
        """Check a call's rows and references; return what `primitives` takes as `refs`."""
        self.require(T.n)
        if start is None and reference_ is None and "reference" not in self.refs:
            return self._origins
        passed = {"start": start, "reference": reference_}
        for name, value in passed.items():
            if value is not None and name not in self.refs:
                raise ValueError(f"{self} takes no {name}")
        if "reference" in self.refs and reference_ is None:
            raise TypeError(f"{self} needs reference=: the vector that is trusted")
        return tuple(
            "origin" if passed.get(name) is None else reference(T, passed[name], name)
            for name in self.refs
        )

    def apply(
        self,
        decision: Decision,
        T: Table,
        refs: Refs = (),
        *,
        offset: int = 0,
        careful: bool = False,
    ) -> Out:
        """Carry a decision out on a range of columns, the first of which is number `offset`.

        `careful`: a row that has weight 0 in one mixed row, but not in all, may be non-finite.
        """
        statistic, mix = decision.statistic, decision.mix
        if statistic is not None and mix is not None and statistic.kind in WITHOUT_MIXTURE:
            mixed = self.apply(Decision(mix=mix), T, refs)
            rows = table(mixed.value(), buffers=T.votes or "median")
            return self.apply(Decision(statistic=statistic), rows, offset=offset)
        out = T.empty(None if mix is None or statistic is not None else len(mix))
        if statistic is None:
            weights = decision.weights if mix is None else mix
            assert weights is not None
            primitives.combine(weights, T, refs, out)
        elif mix is None:
            primitives.columns(T, statistic, None, out, offset=offset)
        else:
            primitives.columns(T, statistic, mix, out, refs=refs, offset=offset, careful=careful)
        if T.votes is not None:
            out.votes = votes(decision, T, refs)
        return out


def _checked(check: bool) -> bool:
    """Return whether faults are to be looked for on the host."""
    if isinstance(check, bool | np.bool_):
        return bool(check)
    raise TypeError(f"check must be True or False, got {shown(check)}")


def rule(spec: str | Rule, f: int | None = None) -> Rule:
    """Return the rule that a string describes.

    Parameters
    ----------
    spec : str
        Stages joined by ``|``: mixing steps, then at most one rule. Each is a name, with options as
        literals where needed: ``"bucketing(s=2) | krum(neighbours='n-f-1')"``.
    f : int, optional
        How many rows may hold anything; every stage that takes f gets it.

    Returns
    -------
    Rule
        Call it on rows. It counts its calls, so that randomised stages draw anew each time.

    Raises
    ------
    ValueError
        An unknown name, a string that is none, an option that cannot be right.
    TypeError
        A missing f or option, or one of the wrong type.

    Examples
    --------
    >>> rule = fg.rule("nnm | trimmed_mean", f=1)
    >>> rule(np.array([[1.0], [2.0], [3.0], [90.0]]))
    array([2.])
    >>> rule.check(2)
    'nnm needs n >= 2f + 1: with f=1 that is 3 rows, got 2'
    """
    if isinstance(spec, Rule):
        return spec if f is None or f == spec.f else Rule(spec.stages, f)
    return Rule(parse(spec), f)
