"""A configured rule: stages of mixing and one rule, run at the cost of its reads of the data.

``Rule`` is where the parts meet: `arrays` finds the rows, `primitives` reads them, the stages'
mathematics decides on n x n numbers, `primitives` applies the decision.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from . import primitives
from .arrays import Out, Table, reference, table
from .dtypes import ITEMSIZE
from .errors import TooManyFaults, shown
from .geometry import Decision, Geometry, rescaling
from .primitives import Refs
from .spec import GUARANTEES, Guarantee
from .stages import Stage, argument_for, as_decision, as_mixing, as_statistic, parse, whole
from .statistic import NNM, Selection, Statistic, tolerated

__all__ = ["Explained", "Rule", "rule"]

Array = NDArray[np.float64]
DistanceOn = Literal["all"] | Callable[[str], bool]

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


class _Plan(NamedTuple):
    """What is the same in every call with as many rows."""

    statistic: Statistic | None  # where a column rule is last, unless it draws anew each time
    selection: Selection | None  # what a backend may choose by itself


class Rule:
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

    def __init__(self, stages: tuple[Stage, ...], f: Any = None) -> None:
        self.stages = stages
        self.f = whole("f", f)
        self.step = 0
        for stage in stages[:-1]:
            if stage.spec.kind != "mixing":
                raise ValueError(
                    f"{stage.name} gives one row, so it must be the last stage: only mixing steps "
                    "may come before another"
                )
        if self.f is None:
            for stage in stages:
                if stage.spec.f == "required":
                    raise TypeError(f"{stage.name} needs f: how many rows may hold anything")
        self._refuse_a_lost_row()
        named = dict.fromkeys(name for stage in stages for name in stage.spec.references)
        self._centre = stages[-1].spec.centre
        if self._centre is not None and len(stages) > 1:
            raise ValueError(
                f"{stages[-1].name} looks at the rows themselves, so no mixing step may come before"
            )
        self._names = tuple(named)
        self.refs = tuple(name for name in named if name != "median")
        self._origins = ("origin",) * len(self.refs)
        self._last = stages[-1]
        self._mixing = stages if self._last.spec.kind == "mixing" else stages[:-1]
        self._columns_only = len(stages) == 1 and self._last.spec.kind == "column"
        self._inner = any(stage.inner for stage in stages)
        self._overflow = bool(self._mixing) or self._last.spec.keeps_far
        self._plans: dict[int, _Plan] = {}
        self.reads = 1 if self._columns_only else 2

    def _refuse_a_lost_row(self) -> None:
        renumbering = None
        for stage in self.stages:
            if stage.trusts_a_row and renumbering is not None:
                raise ValueError(
                    f"{stage.name} trusts one row, and {renumbering.name} gives rows new numbers "
                    f"at random: leave {renumbering.name} out, or use a rule that trusts no row"
                )
            if stage.spec.rows_after is not None:
                renumbering = stage

    # ------------------------------------------------------------------------------ what it is

    def __str__(self) -> str:
        return " | ".join(map(str, self.stages))

    def __repr__(self) -> str:
        f = "" if self.f is None else f", f={self.f}"
        return f"fastgar.rule({str(self)!r}{f})"

    def _configuration(self) -> tuple[Any, ...]:
        return self.f, tuple((s.name, tuple(sorted(s.options.items()))) for s in self.stages)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Rule):
            return NotImplemented
        return self._configuration() == other._configuration()

    def __hash__(self) -> int:
        return hash(self._configuration())

    def __reduce__(self) -> tuple[Any, ...]:
        return Rule, (self.stages, self.f), {"step": self.step}

    def at(self, step: int) -> Rule:
        """Return a rule like this one that has aggregated `step` times."""
        other = Rule(self.stages, self.f)
        other.step = whole("step", step) or 0
        return other

    def check(self, n: int) -> str | None:
        """Return None if `n` rows can be aggregated, else the sentence that says what is wrong."""
        rows, before = whole("n", n) or 0, ""
        for stage in self.stages:
            complaint = stage.spec.complaint(rows, tolerated(self.f, rows), stage.options)
            if complaint is not None:
                return before + complaint
            after = stage.rows_after(rows)
            if after != rows:
                before += f"{stage} makes {after} of {rows} rows, and "
                rows = after
        return None

    @property
    def guarantee(self) -> Guarantee:
        """What holds whatever f rows hold: the guarantee of the weakest stage.

        One of "(f, kappa)", "bounded", "trusted" and "none" (see `fastgar.rules.Spec`).
        """
        return max((stage.guarantee for stage in self.stages), key=GUARANTEES.index)

    @property
    def min_n(self) -> int:
        """The least number of rows that can be aggregated."""
        high = 1
        while self.check(high) is not None:
            high *= 2
            if high > 1 << 40:
                raise ValueError(f"{self} with f={self.f} can aggregate no number of rows")
        low = high // 2  # too few, or 0
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (low, middle) if self.check(middle) is None else (middle, high)
        return high

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

    # ---------------------------------------------------------------------------- what it does

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
        buffers : {"median", "first", "error"}
            What becomes of integer leaves of structures.
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
        distances.
        """
        T = table(X, buffers=buffers)
        plan = self._plans.get(T.n) or self._plan(T.n)
        if self._columns_only and start is None and reference is None:
            decision = Decision(statistic=plan.statistic or self._draw(T.n))
            refs: Refs = ()
        else:
            refs, D = self.references(T, start, reference), None
            plain = _on_all(distance_on) and not _checked(check)
            selection = plan.selection if plain else None
            if selection is not None:
                dtypes = None if T.device == "cpu" else [block.dtype for block in T.blocks]
                if primitives.selects(selection, T.n, dtypes):
                    out = T.empty()
                    D = primitives.select(T, selection, refs, out)
                    if D is None:
                        self.step += 1
                        return out.value()
            decision = self._decide_on(T, refs, distance_on, D)
        out = self.apply(decision, T, refs)
        self.step += 1
        return out.value()

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
        if not self._columns_only and self._centre is None and _on_all(distance_on):
            D = primitives.sqdist(T, [*refs, *beside])
            known = np.ascontiguousarray(D[: T.n + len(refs), : T.n + len(refs)])
        decision = self._decide_on(T, refs, distance_on, known)
        aggregate = self.apply(decision, T, refs).value()
        self.advance()
        return Explained(aggregate, decision, T, refs, D)

    def advance(self) -> None:
        """Count an aggregation, of which the parts were carried out with `apply`."""
        self.step += 1

    def _plan(self, n: int) -> _Plan:
        """Return what is the same in every call with n rows, if they can be aggregated."""
        plan = self._plans.get(n)
        if plan is None:
            complaint = self.check(n)
            if complaint is not None:
                raise ValueError(complaint)
            spec, rows = self._last.spec, n
            for stage in self._mixing:
                rows = stage.rows_after(rows)
            statistic = None
            if spec.kind == "column" and not spec.randomised:
                statistic = self._draw(rows)
            plan = self._plans[n] = _Plan(statistic, self._choice(n, statistic))
        return plan

    def _choice(self, n: int, statistic: Statistic | None) -> Selection | None:
        """Return what a backend may choose among n rows, or None if `decide` must."""
        first, last = self.stages[0], self._last
        if len(self.stages) > 2 or first.spec.selection is None:
            return None
        selection: Selection | None = first.spec.selection(n, tolerated(self.f, n), first.options)
        if selection is None or first.spec.kind != "mixing":
            return selection
        if len(self.stages) == 1 or not isinstance(selection, NNM):
            return None
        if last.spec.kind == "column":
            ordered = statistic is not None and statistic.kind == "order"
            return replace(selection, statistic=statistic) if ordered else None
        if last.spec.randomised or last.spec.kind == "mixing" or last.spec.selection is None:
            return None
        if self.refs or self._inner:
            return None
        then: Selection | None = last.spec.selection(n, tolerated(self.f, n), last.options)
        return None if then is None else replace(selection, statistic=then.statistic, then=then)

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

    def require(self, n: int) -> None:
        """Raise a ValueError with the sentence of `check` unless `n` rows can be aggregated."""
        if n not in self._plans:
            self._plan(n)

    def _draw(self, n: int) -> Statistic:
        """Return what the column rule takes of each column of n rows, at this step."""
        stage = self._last
        f = tolerated(self.f, n)
        return as_statistic(stage, n, f, stage.run(n, f, self.step))

    def _decide_on(
        self, T: Table, refs: Refs, distance_on: DistanceOn = "all", D: Array | None = None
    ) -> Decision:
        """Return the decision for these rows; `D`: the distances, where they are known."""
        if self._columns_only:
            return self.decide(n=T.n)
        if _on_all(distance_on):
            part, near = T, refs
        else:
            assert callable(distance_on)
            part = T.select(distance_on)
            near = tuple(p if isinstance(p, str) else p.select(distance_on) for p in refs)
        if D is None:
            D = self.measure(part, near)
        assert D is not None
        if part is not T and part.columns < T.columns:
            _add_faults(D, T, refs, part.paths)
        return self.conclude(D, [(part, near)])

    def conclude(
        self,
        D: Array,
        parts: Iterable[tuple[Table, Refs]],
        total: Callable[[Array], Array] = lambda partial: partial,
    ) -> Decision:
        """Return the decision that follows from the distances, with another read where needed.

        Parameters
        ----------
        D : (points, points) array
            What `measure` gave for all columns.
        parts : iterable of (Table, references)
            All ranges of columns that are here, to read once more if some row is very long.
        total : callable, optional
            Adds to what these ranges gave what other ranges did.

        Raises
        ------
        TooManyFaults, ValueError
            As for `decide`.
        """
        rescale, inner = self.wants_inner(D), None
        if rescale is not None:
            for T, refs in parts:
                inner = primitives.inner(T, refs, *rescale, start=inner)
            assert inner is not None
            inner = total(inner)
        return self.decide(D, inner)

    def measure(self, T: Table, refs: Refs = (), start: Array | None = None) -> Array | None:
        """Return what the decision needs of a range of columns; the ranges' results add up.

        That is the squared distances between all points; None for a column rule. For a rule that
        looks at the distances to a statistic of the columns, that statistic is the last point.

        Parameters
        ----------
        T : Table
            The range of columns, in which row i is a part of row i.
        refs : tuple
            From `references`, for the same range.
        start : array, optional
            The result for the columns before these: adding up in order gives the bits of the whole.
        """
        if self._columns_only:
            return None
        if self._centre is None:
            return primitives.sqdist(T, refs, start=start)
        centre = self._centre(T.n, tolerated(self.f, T.n), self._last.options)
        return primitives.sqdist_to(T, centre, start)

    def wants_inner(self, D: Array | None) -> tuple[int, Array] | None:
        """Return the pivot and scales of a third read (`primitives.inner`), or None.

        It is needed when some row is far longer than the others and the algebra on D that the
        rule does would lose the others beside it.
        """
        if D is None or not (self._inner or self._overflow) or self._centre is not None:
            return None
        if not self._inner and np.isfinite(D).all():
            return None
        n = D.shape[0] - len(self._names)
        if self._too_many(D.diagonal()[:n]):
            return None  # which `decide` will say
        if not self._inner:
            sound = D.diagonal() == 0
            if np.isfinite(D[np.ix_(sound, sound)]).all():
                return None
        return rescaling(D, n)

    def decide(
        self, D: Array | None = None, inner: Array | None = None, *, n: int | None = None
    ) -> Decision:
        """Return the decision that follows from the distances: no data is read.

        Parameters
        ----------
        D : (points, points) array
            What `measure` gave for all columns; not needed for a column rule alone.
        inner : (points, points) array, optional
            What `primitives.inner` gave for all columns, if `wants_inner` asked for it.
        n : int, optional
            The number of rows, where there is no D.

        Returns
        -------
        Decision
            Over the n rows and then `refs`.

        Raises
        ------
        TooManyFaults
            More than f rows are faulty.
        ValueError
            A start or reference is not finite.
        """
        if D is None:
            if not self._columns_only or n is None:
                raise ValueError(f"{self} needs the distances (a column rule alone needs n)")
            return Decision(statistic=self._plan(n).statistic or self._draw(n))
        rescale = None if inner is None else rescaling(D, D.shape[0] - len(self._names))
        read = None if inner is None or rescale is None else (inner, rescale[1])
        g = Geometry(D, self._names, read)
        self.require(g.n)
        faulty = g.faulty
        if g.any_faulty and self._too_many(faulty):
            raise TooManyFaults(np.flatnonzero(faulty).tolist(), tolerated(self.f, g.n))
        if self._names:
            for name, infinite in zip(self._names, D.diagonal()[g.n :], strict=True):
                if infinite != 0 and name != "median":
                    raise ValueError(f"{name} holds NaN or infinity")
        for stage in self._mixing:
            W = stage.run(argument_for(stage, g), tolerated(self.f, g.n), self.step)
            g = g.mix(as_mixing(stage, g, W))
        last = self._last
        if last.spec.kind == "mixing":
            decision = Decision(mix=g.rows_over_original())
        elif last.spec.kind == "column":
            statistic = self._plan(len(faulty)).statistic or self._draw(g.n)
            decision = Decision(mix=g.rows_over_original(), statistic=statistic)
        else:
            given = last.run(argument_for(last, g), tolerated(self.f, g.n), self.step)
            decision = _over_original(g, as_decision(last, g, given))
        if self._centre is not None and decision.weights is not None:
            decision.weights = decision.weights[: g.n]  # the median is no point to be read
        decision.faulty = faulty
        return decision

    def _too_many(self, faulty: NDArray[Any]) -> bool:
        return int(np.count_nonzero(faulty)) > tolerated(self.f, len(faulty))

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
        if statistic is None:
            weights = decision.weights if mix is None else mix
            assert weights is not None
            out = T.empty(None if mix is None else len(mix))
            primitives.combine(weights, T, refs, out)
            return out
        if mix is not None and statistic.kind in WITHOUT_MIXTURE:
            stack = T.empty(len(mix))
            primitives.combine(mix, T, refs, stack)
            T, mix, refs = table(stack.value()), None, ()
        out = T.empty()
        if mix is None:
            primitives.columns(T, statistic, None, out, offset=offset)
        else:
            primitives.columns(T, statistic, mix, out, refs=refs, offset=offset, careful=careful)
        return out


def _add_faults(D: Array, T: Table, refs: Refs, seen: tuple[str, ...]) -> None:
    """Mark rows that are faulty in leaves that do not enter distances."""
    rest = T.select(lambda path: path not in seen)
    others = tuple(
        p if isinstance(p, str) else p.select(lambda path: path not in seen) for p in refs
    )
    faulty = np.flatnonzero(primitives.sqdist(rest, others).diagonal())
    faulty = faulty[faulty < len(D)]
    D[faulty] = D[:, faulty] = np.inf


def _on_all(distance_on: DistanceOn) -> bool:
    """Return whether distances are those of all leaves."""
    if isinstance(distance_on, str) and distance_on == "all":
        return True
    if callable(distance_on):
        return False
    raise TypeError(
        f"distance_on must be 'all' or a function of a leaf's path, got {shown(distance_on)}"
    )


def _checked(check: bool) -> bool:
    """Return whether faults are to be looked for on the host."""
    if isinstance(check, bool | np.bool_):
        return bool(check)
    raise TypeError(f"check must be True or False, got {shown(check)}")


def _over_original(g: Geometry, decision: Decision) -> Decision:
    """Return a decision over current points as one over the original points."""
    if not g.is_mixed:
        return decision
    if decision.weights is not None:
        return Decision(g.over_original(decision.weights), scores=decision.scores)
    assert decision.mix is not None
    return Decision(
        mix=g.over_original(decision.mix), statistic=decision.statistic, scores=decision.scores
    )


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
