"""Stages that go together: what a rule is, and for which numbers of rows."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, NamedTuple, Self

from .spec import GUARANTEES, Guarantee
from .stages import Stage, as_statistic, whole
from .statistic import NNM, Selection, Statistic, tolerated

__all__ = ["Composition"]


class _Plan(NamedTuple):
    """What is the same in every call with as many rows."""

    statistic: Statistic | None  # where a column rule is last, unless it draws anew each time
    selection: Selection | None  # what a backend may choose by itself


class Composition:
    """Stages and f, of which it was made sure that they go together.

    What is the same in every call with as many rows is found once. Attributes are those of `Rule`.
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

    def __str__(self) -> str:
        return " | ".join(map(str, self.stages))

    def __repr__(self) -> str:
        f = "" if self.f is None else f", f={self.f}"
        return f"fastgar.rule({str(self)!r}{f})"

    def _configuration(self) -> tuple[Any, ...]:
        return self.f, tuple((s.name, tuple(sorted(s.options.items()))) for s in self.stages)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Composition):
            return NotImplemented
        return self._configuration() == other._configuration()

    def __hash__(self) -> int:
        return hash(self._configuration())

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.stages, self.f), {"step": self.step}

    def at(self, step: int) -> Self:
        """Return a rule like this one that has aggregated `step` times."""
        other = type(self)(self.stages, self.f)
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

    def require(self, n: int) -> None:
        """Raise a ValueError with the sentence of `check` unless `n` rows can be aggregated."""
        if n not in self._plans:
            self._plan(n)

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

    def _draw(self, n: int) -> Statistic:
        """Return what the column rule takes of each column of n rows, at this step."""
        stage = self._last
        f = tolerated(self.f, n)
        return as_statistic(stage, n, f, stage.run(n, f, self.step))
