"""A configured rule: stages of mixing and one rule, run at the cost of its reads of the data.

``Rule`` is where the parts meet: `arrays` finds the rows, `primitives` reads them, the stages'
mathematics decides on n x n numbers, `primitives` applies the decision.
"""

from __future__ import annotations

import ast
import operator
from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from . import primitives
from .arrays import Out, Table, reference, table
from .errors import TooManyFaults
from .geometry import Decision, Geometry, rescaling
from .primitives import Statistic
from .rules.registry import Spec, lookup

__all__ = ["Rule", "Stage", "parse", "rule"]

Array = NDArray[np.float64]
DistanceOn = Literal["all"] | Callable[[str], bool]

WITHOUT_MIXTURE = ("finite_mean", "sign", "condense")  # statistics without a fused kernel


class Stage:
    """One rule of a pipeline with its options.

    Attributes
    ----------
    spec : Spec
        The rule's declaration.
    given : dict
        The options that were named.
    options : dict
        Every option with its value.
    """

    __slots__ = ("given", "options", "spec")

    def __init__(self, spec: Spec, given: Mapping[str, Any]) -> None:
        self.spec = spec
        self.given = dict(given)
        self.options = spec.resolve(given)

    @property
    def name(self) -> str:
        """The rule's name."""
        return self.spec.name

    @property
    def inner(self) -> bool:
        """Whether it forms inner products."""
        inner = self.spec.inner
        return inner(self.options) if callable(inner) else inner

    def f(self, f: int | None, n: int) -> int:
        """Return the f that this stage works with among n rows."""
        return (n - 1) // 2 if f is None else f

    def rows_after(self, n: int) -> int:
        """Return how many rows the next stage sees."""
        return n if self.spec.rows_after is None else self.spec.rows_after(n, self.options)

    def run(self, first: Any, f: int, step: int) -> Any:
        """Call the mathematics."""
        keywords = {**self.options, "step": step} if self.spec.randomised else self.options
        arguments = (first, f) if self.spec.takes_f else (first,)
        return self.spec.mathematics(*arguments, **keywords)

    def __str__(self) -> str:
        named = ", ".join(f"{name}={value!r}" for name, value in self.given.items())
        return f"{self.name}({named})" if named else self.name

    def __reduce__(self) -> tuple[Any, ...]:
        return _stage, (self.name, self.given)


def _stage(name: str, given: Mapping[str, Any]) -> Stage:
    return Stage(lookup(name), given)


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
        self.f = _whole("f", f)
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
        points = dict.fromkeys(name for stage in stages for name in stage.spec.references)
        self._centre = stages[-1].spec.centre
        if self._centre is not None and len(stages) > 1:
            raise ValueError(
                f"{stages[-1].name} looks at the rows themselves, so no mixing step may come before"
            )
        self._names = tuple(points)
        self.refs = tuple(name for name in points if name != "median")
        self._last = stages[-1]
        self._mixing = stages if self._last.spec.kind == "mixing" else stages[:-1]
        self._columns_only = len(stages) == 1 and self._last.spec.kind == "column"
        self._inner = any(stage.inner for stage in stages)
        self._overflow = bool(self._mixing) or self._last.spec.keeps_far
        self._statistics: dict[int, Statistic] = {}
        self._fitting: set[int] = set()
        self.reads = 1 if self._columns_only else 2

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
        other.step = _whole("step", step) or 0
        return other

    def check(self, n: int) -> str | None:
        """Return None if `n` rows can be aggregated, else the sentence that says what is wrong."""
        rows, before = n, ""
        for stage in self.stages:
            complaint = stage.spec.complaint(rows, stage.f(self.f, rows), stage.options)
            if complaint is not None:
                return before + complaint
            after = stage.rows_after(rows)
            if after != rows:
                before += f"{stage} makes {after} of {rows} rows, and "
                rows = after
        return None

    @property
    def min_n(self) -> int:
        """The least number of rows that can be aggregated."""
        high = 1
        while self.check(high) is not None:
            high *= 2
        low = high // 2  # too few, or 0
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (low, middle) if self.check(middle) is None else (middle, high)
        return high

    # ---------------------------------------------------------------------------- what it does

    def __call__(
        self,
        X: Any,
        *,
        buffers: str = "median",
        distance_on: DistanceOn = "all",
        start: Any = None,
        reference: Any = None,
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

        Returns
        -------
        aggregate
            Like one row of X; a stack of rows where the last stage is a mixing step.

        Raises
        ------
        TypeError, ValueError
            Where the input cannot be right; before any work.
        TooManyFaults
            More than f rows hold a non-finite value (not for column rules alone).
        """
        T = table(X, buffers=buffers)
        if self._columns_only and start is None and reference is None:
            n = T.n
            statistic = self._statistics.get(n)
            if statistic is None or self._last.spec.randomised:
                self.require(n)
                statistic = self._statistic(n)
            decision = Decision(statistic=statistic)
            points: tuple[Any, ...] = ()
        else:
            points = self.points(T, start, reference)
            decision = self._decide_on(T, points, distance_on)
        out = self.apply(decision, T, points)
        self.step += 1
        return out.value()

    def points(self, T: Table, start: Any = None, reference_: Any = None) -> tuple[Any, ...]:
        """Check a call's rows and references; return what `primitives` takes as `refs`."""
        self.require(T.n)
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
        if n not in self._fitting:
            complaint = self.check(n)
            if complaint is not None:
                raise ValueError(complaint)
            self._fitting.add(n)

    def _statistic(self, n: int) -> Statistic:
        """Return what the column rule takes of each column of n rows."""
        stage = self._last
        f = stage.f(self.f, n)
        statistic = as_statistic(stage, n, f, stage.run(n, f, self.step))
        if not stage.spec.randomised:
            self._statistics[n] = statistic
        return statistic

    def _decide_on(self, T: Table, points: tuple[Any, ...], distance_on: DistanceOn) -> Decision:
        if self._columns_only:
            return self.decide(n=T.n)
        if distance_on == "all":
            seen, near = T, points
        else:
            if not callable(distance_on):
                raise TypeError(
                    f"distance_on must be 'all' or a function of a leaf's path, got {distance_on!r}"
                )
            seen = T.select(distance_on)
            near = tuple(p if isinstance(p, str) else p.select(distance_on) for p in points)
        D = self.measure(seen, near)
        if D is not None and seen is not T and seen.columns < T.columns:
            _add_faults(D, T, points, seen.paths)
        rescale = self.wants_inner(D)
        inner = None if rescale is None else primitives.inner(seen, near, *rescale)
        return self.decide(D, inner)

    def measure(
        self, T: Table, points: tuple[Any, ...] = (), start: Array | None = None
    ) -> Array | None:
        """Return what the decision needs of a range of columns; the ranges' results add up.

        That is the squared distances between all points (for a rule that looks only at the
        distances to a statistic of the columns, those alone); None for a column rule.

        Parameters
        ----------
        T : Table
            The range of columns, in which row i is a part of row i.
        points : tuple
            From `points`, for the same range.
        start : array, optional
            The result for the columns before these: adding up in order gives the bits of the whole.
        """
        if self._columns_only:
            return None
        if self._centre is None:
            return primitives.sqdist(T, points, start=start)
        n, stage = T.n, self._last
        f = stage.f(self.f, n)
        centre = self._centre(n, f)
        D = np.zeros((n + 1, n + 1)) if start is None else start.copy()
        D[:n, n] += primitives.sqdist_to(T, centre)
        D[n, :n] = D[:n, n]
        faulty = np.flatnonzero(np.isinf(D[:n, n]))
        D[faulty] = D[:, faulty] = np.inf
        return D

    def wants_inner(self, D: Array | None) -> tuple[int, Array] | None:
        """Return the pivot and scales of a third read (`primitives.inner`), or None.

        It is needed when some row is far longer than the others and the algebra on D that the
        rule does would lose the others beside it.
        """
        if D is None or not (self._inner or self._overflow) or self._centre is not None:
            return None
        n = D.shape[0] - len(self._names)
        if not self._inner:
            sound = D.diagonal() == 0
            if np.isfinite(D).all() or np.isfinite(D[np.ix_(sound, sound)]).all():
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
            self.require(n)
            return Decision(statistic=self._statistic(n))
        rescale = None if inner is None else rescaling(D, D.shape[0] - len(self._names))
        read = None if inner is None or rescale is None else (inner, rescale[1])
        g = Geometry(D, self._names, read)
        self.require(g.n)
        faulty = g.faulty
        if g.any_faulty:
            self._tolerate(faulty)
        if self._names:
            for name, infinite in zip(self._names, D.diagonal()[g.n :], strict=True):
                if infinite != 0 and name != "median":
                    raise ValueError(f"{name} holds NaN or infinity")
        for stage in self._mixing:
            W = stage.run(_seen(stage, g), stage.f(self.f, g.n), self.step)
            g = g.mix(_as_mixing(stage, g, W))
        last = self._last
        if last.spec.kind == "mixing":
            decision = Decision(mix=g.rows_over_original())
        elif last.spec.kind == "column":
            decision = Decision(mix=g.rows_over_original(), statistic=self._statistic(g.n))
        else:
            given = last.run(_seen(last, g), last.f(self.f, g.n), self.step)
            decision = _over_original(g, _as_decision(last, g, given))
        if self._centre is not None and decision.weights is not None:
            decision.weights = decision.weights[: g.n]  # the median is no point to be read
        decision.faulty = faulty
        return decision

    def _tolerate(self, faulty: NDArray[np.bool_]) -> None:
        tolerated = (len(faulty) - 1) // 2 if self.f is None else self.f
        if np.count_nonzero(faulty) > tolerated:
            raise TooManyFaults(np.flatnonzero(faulty).tolist(), tolerated)

    def apply(
        self,
        decision: Decision,
        T: Table,
        points: tuple[Any, ...] = (),
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
            primitives.combine(weights, T, points, out)
            return out
        if mix is not None and statistic.kind in WITHOUT_MIXTURE:
            stack = T.empty(len(mix))
            primitives.combine(mix, T, points, stack)
            T, mix, points = table(stack.value()), None, ()
        out = T.empty()
        if mix is None:
            primitives.columns(T, statistic, None, out, offset=offset)
        else:
            primitives.columns(T, statistic, mix, out, refs=points, offset=offset, careful=careful)
        return out


def _add_faults(D: Array, T: Table, points: tuple[Any, ...], seen: tuple[str, ...]) -> None:
    """Mark rows that are faulty in leaves that do not enter distances."""
    rest = T.select(lambda path: path not in seen)
    others = tuple(
        p if isinstance(p, str) else p.select(lambda path: path not in seen) for p in points
    )
    faulty = np.flatnonzero(primitives.sqdist(rest, others).diagonal())
    faulty = faulty[faulty < len(D)]
    D[faulty] = D[:, faulty] = np.inf


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


# --------------------------------------------------- what a rule's mathematics may take and give


def _seen(stage: Stage, g: Geometry) -> Any:
    return g.D.copy() if stage.spec.sees == "D" else g


def as_statistic(stage: Stage, n: int, f: int, given: Any) -> Statistic:
    """Return what a column rule gave as a `Statistic`."""
    if isinstance(given, Statistic):
        return given
    closest = None
    if isinstance(given, tuple) and len(given) == 2 and np.ndim(given[1]) == 1:
        closest, given = _whole(f"{stage.name}: the number of closest values", given[0]), given[1]
        if closest is None or not 1 <= closest <= n:
            raise ValueError(f"{stage.name}: from 1 to {n} values can be closest, got {closest}")
    weights = np.asarray(given, dtype=np.float64)
    if weights.shape != (n,) or not np.isfinite(weights).all():
        raise ValueError(f"{stage.name} must give {n} finite weights, got shape {weights.shape}")
    _sums_to_one(stage, weights)
    faults = 0 if stage.spec.f == "no" else f
    return Statistic(tuple(weights.tolist()), closest=closest, faults=faults)


def _as_decision(stage: Stage, g: Geometry, given: Any) -> Decision:
    """Return what a distance rule gave as a `Decision` over the current points."""
    if isinstance(given, Decision):
        return given
    weights = np.asarray(given, dtype=np.float64)
    points = g.n + len(g.names)
    if weights.shape == (g.n,):
        weights = np.concatenate([weights, np.zeros(points - g.n)])
    if weights.shape != (points,) or not np.isfinite(weights).all():
        raise ValueError(
            f"{stage.name} must give {g.n} finite weights, got shape {np.shape(given)}"
        )
    _sums_to_one(stage, weights)
    if weights[: g.n][g.faulty].any():
        raise ValueError(f"{stage.name} gave a weight to a faulty row, which must have weight 0")
    return Decision(weights)


def _as_mixing(stage: Stage, g: Geometry, given: Any) -> Array:
    """Return what a mixing rule gave as a matrix over the current points."""
    W = np.asarray(given, dtype=np.float64)
    points = g.n + len(g.names)
    if W.ndim == 2 and W.shape[1] == g.n and points > g.n:
        W = np.concatenate([W, np.zeros((len(W), points - g.n))], axis=1)
    expected = stage.rows_after(g.n)
    if W.shape != (expected, points):
        raise ValueError(
            f"{stage.name} must give a ({expected}, {g.n}) matrix, got shape {np.shape(given)}"
        )
    return W


def _sums_to_one(stage: Stage, weights: Array) -> None:
    total = float(weights.sum())
    if abs(total - 1.0) > 1e-9:
        raise ValueError(f"the weights that {stage.name} gives must sum to 1, not {total:g}")


def _whole(name: str, value: Any) -> int | None:
    """Return a non-negative integer, or None; anything else is an error that says so."""
    if value is None:
        return None
    if type(value).__name__ in ("bool", "bool_"):
        raise TypeError(f"{name} must be an integer, got {value!r}")
    try:
        whole = operator.index(value)
    except TypeError:
        raise TypeError(f"{name} must be an integer, got {value!r}") from None
    if whole < 0:
        raise ValueError(f"{name} must be at least 0, got {whole}")
    return whole


# ------------------------------------------------------------------------------------- the string


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


@lru_cache(maxsize=256)
def _parse(spec: str) -> tuple[tuple[str, dict[str, Any]], ...]:
    what = f"{spec!r} is no rule"
    if len(spec) > 2000:
        raise ValueError("a rule's string has at most 2000 characters")
    try:
        tree = ast.parse(spec.strip(), mode="eval").body
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        raise ValueError(f"{what}: write name(option=value) | name") from None
    stages: list[ast.expr] = []
    while isinstance(tree, ast.BinOp) and isinstance(tree.op, ast.BitOr):
        stages.insert(0, tree.right)
        tree = tree.left
    stages.insert(0, tree)
    found = []
    for stage in stages:
        options = {}
        name = stage.func if isinstance(stage, ast.Call) else stage
        if not isinstance(name, ast.Name):
            raise ValueError(f"{what}: write name(option=value) | name")
        if isinstance(stage, ast.Call):
            if stage.args or any(keyword.arg is None for keyword in stage.keywords):
                raise ValueError(f"{what}: name the options of {name.id}, as in option=value")
            for keyword in stage.keywords:
                assert keyword.arg is not None
                if keyword.arg == "f":
                    raise ValueError(f"{what}: f is not an option, pass it as rule(..., f=...)")
                try:
                    options[keyword.arg] = ast.literal_eval(keyword.value)
                except (ValueError, TypeError, SyntaxError, RecursionError, MemoryError):
                    raise ValueError(
                        f"{what}: {name.id}({keyword.arg}=...) must be a literal, such as 2 or 'a'"
                    ) from None
        found.append((name.id, options))
    return tuple(found)


def parse(spec: str) -> tuple[Stage, ...]:
    """Return the stages that a string describes."""
    if not isinstance(spec, str):
        raise TypeError(f"a rule is described by a string, got {type(spec).__name__}")
    return tuple(Stage(lookup(name), options) for name, options in _parse(spec))
