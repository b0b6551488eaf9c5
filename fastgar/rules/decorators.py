"""What a rule declares about itself, and how a declaration becomes a public function.

A rule is a function of a few lines under one of three decorators. Its first parameter says what it
sees: `n` (a column rule), a `Geometry` (a distance or mixing rule), or `D`, the n x n squared
distances, for those who need no more. If it has a parameter `f`, it is told how many rows may lie.
Its keyword-only parameters are its options. Its result is what follows:

column rule    weights over the ascending sorted column, or (k, weights): the mean of the k values
               closest to that weighted sum
distance rule  weights of the rows, or of the rows and references
mixing rule    a matrix W: row i of the next stage is the sum over j of W[i, j] * row j

>>> import fastgar as fg
>>> @fg.rules.column_rule(needs="2f + 1", paper="of your own", guarantee="(f, kappa)")
... def second_smallest(n: int, f: int) -> list[float]:
...     "Return the second smallest value of each column."
...     return [0.0, 1.0] + [0.0] * (n - 2)
>>> second_smallest(np.array([[4.0], [1.0], [2.0]]), f=1)
array([2.])
>>> fg.rule("nnm | second_smallest", f=1).reads
2
>>> fg.rules.forget("second_smallest")
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import lru_cache
from numbers import Integral
from typing import Any, Literal, Protocol

from ..errors import shown, unknown
from ..options import read_options
from ..pipeline import Rule
from ..registry import add, lookup, refuse_taken
from ..spec import GUARANTEES, Guarantee, Kind, Needs, Options, Spec, terms
from ..stages import Stage
from .describe import document

__all__ = ["PublicRule", "column_rule", "configured", "distance_rule", "function", "mixing_rule"]

CALL_OPTIONS = ("buffers", "distance_on", "check")


class PublicRule(Protocol):
    """A rule as users call it; `spec` holds its declaration."""

    spec: Spec
    __name__: str
    __doc__: str | None

    def __call__(self, X: Any, *args: Any, **keywords: Any) -> Any:
        """Return the aggregate of the rows of X (for a mixing rule the stack of mixed rows)."""


Decorator = Callable[[Callable[..., Any]], PublicRule]


@lru_cache(maxsize=512, typed=True)  # typed: f=2.0 and f=True must not be taken for f=2 or 1
def configured(name: str, f: Any, /, **options: Any) -> Rule:
    """Return the rule of this name with these options; equal arguments give the same object."""
    return Rule((Stage(lookup(name), options),), f)


def _call(spec: Spec, X: Any, f: Any, keywords: dict[str, Any]) -> Any:
    if not keywords and not spec.randomised and (f is None or type(f) is int):
        return configured(spec.name, f)(X)
    at_call = {
        key: keywords.pop(key)
        for key in (*CALL_OPTIONS, "start", "reference", "step")
        if key in keywords
    }
    step = at_call.pop("step", 0)
    if hasattr(f, "__len__") and not isinstance(f, str) and not hasattr(X, "__len__"):
        raise TypeError(f"X and f are swapped: the rows come first, as in {spec.name}(X, f=2)")
    try:
        rule = configured(spec.name, f, **keywords)
    except TypeError:  # an unhashable value: let its own check complain
        rule = configured.__wrapped__(spec.name, f, **keywords)
    if spec.randomised:
        rule = rule.at(step)
    elif not (isinstance(step, Integral) and step == 0):
        raise unknown(f"option of {spec.name}", "step", spec.options)
    return rule(X, **at_call)


def _public(spec: Spec) -> PublicRule:
    """Return the function that users call: the rule, run by the pipeline."""
    if spec.f == "no":

        def public(X: Any, **keywords: Any) -> Any:
            return _call(spec, X, None, keywords)

    elif spec.f == "optional":

        def public(X: Any, f: Any = None, **keywords: Any) -> Any:  # type: ignore[misc]
            return _call(spec, X, f, keywords)

    else:

        def public(X: Any, f: Any, **keywords: Any) -> Any:  # type: ignore[misc]
            return _call(spec, X, f, keywords)

    wrapper: Any = public
    wrapper.spec = spec
    wrapper.__name__ = wrapper.__qualname__ = spec.name
    wrapper.__module__ = spec.mathematics.__module__
    wrapper.__signature__ = _signature(spec)
    wrapper.__doc__ = document(spec)
    result: PublicRule = wrapper
    return result


def function(name: str) -> PublicRule:
    """Return the rule of this name as users call it."""
    return _public(lookup(name))


def _signature(spec: Spec) -> inspect.Signature:
    keyword, ordinary = inspect.Parameter.KEYWORD_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD
    parameters = [inspect.Parameter("X", ordinary)]
    if spec.f == "required":
        parameters.append(inspect.Parameter("f", ordinary))
    elif spec.f == "optional":
        parameters.append(inspect.Parameter("f", ordinary, default=None))
    for option in spec.options.values():
        parameters.append(inspect.Parameter(option.name, keyword, default=option.default))
    extra: dict[str, Any] = {}
    if spec.randomised:
        extra["step"] = 0
    if "start" in spec.references:
        extra["start"] = None
    if "reference" in spec.references:
        extra["reference"] = inspect.Parameter.empty
    if spec.variants:
        extra["variant"] = spec.default_variant
    extra["buffers"] = "median"
    if spec.kind != "column":
        extra["distance_on"] = "all"
    if spec.queued and spec.kind == "distance":
        extra["check"] = False
    parameters += [inspect.Parameter(name, keyword, default=value) for name, value in extra.items()]
    # Parameters without a default come first: keyword-only ones may stand in any order.
    return inspect.Signature(parameters)


def _decorator(kind: Kind, needs: Needs, f: str | None, declared: dict[str, Any]) -> Decorator:
    def decorate(mathematics: Callable[..., Any]) -> PublicRule:
        name = mathematics.__name__
        refuse_taken(name)
        parameters = list(inspect.signature(mathematics).parameters)
        takes_f = f or ("required" if "f" in parameters[1:2] else "no")
        options = read_options(mathematics)
        if isinstance(needs, str):
            strange = {variable for _, variable in terms(needs)} - {"", "f", *options}
            if strange:
                raise ValueError(f"needs={shown(needs)}: {name} has no option {min(strange)!r}")
        guarantee = declared["guarantee"]
        if not callable(guarantee) and guarantee not in GUARANTEES:
            raise unknown("guarantee", guarantee, GUARANTEES)
        known = {"breakdown": "0" if guarantee == "none" else _breakdown(needs), **declared}
        spec = Spec(
            name=name,
            kind=kind,
            mathematics=mathematics,
            f=takes_f,  # type: ignore[arg-type]
            options=options,
            sees=parameters[0],
            needs=needs,
            takes_f="f" in parameters[1:2],
            randomised="step" in parameters,
            **known,
        )
        public = _public(spec)
        add(spec)
        return public

    return decorate


def _breakdown(needs: Needs) -> str:
    """Return the largest tolerated share of rows that a condition such as "2f + 3" stands for."""
    if isinstance(needs, str):
        for count, name in terms(needs):
            if name == "f":
                return f"1/{count}" if count > 1 else "1"
    return "1/2"


def column_rule(
    *,
    needs: Needs = "1",
    f: Literal["required", "optional", "no"] | None = None,
    paper: str = "",
    guarantee: Guarantee | Callable[[Options], Guarantee] = "none",
    **declared: Any,
) -> Decorator:
    """Register a rule that treats every coordinate on its own.

    Parameters
    ----------
    needs : str
        The least number of rows, such as "2f + 1".
    f : {"required", "optional", "no"}, optional
        Whether the rule takes f; by default, whether the function has a parameter `f`.
    paper : str
        Where the rule comes from.
    guarantee : {"(f, kappa)", "bounded", "trusted", "none"} or callable
        What holds whatever f rows hold (see `Spec`), or a function of the options to it. With any
        but "none", a column with more than f non-finite entries gives NaN.
    **declared
        Further attributes of `Spec`: breakdown, kappa, variance_ratio, variants.

    Returns
    -------
    decorator
        For a function of (n[, f], *, options) that returns n weights over the ascending sorted
        column, or (k, weights): the mean of the k values closest to that weighted sum. It gives
        back the function that users call.

    Raises
    ------
    ValueError
        If the name is taken.
    """
    return _decorator("column", needs, f, {"paper": paper, "guarantee": guarantee, **declared})


def distance_rule(
    *,
    needs: Needs = "1",
    f: Literal["required", "optional", "no"] | None = None,
    paper: str = "",
    guarantee: Guarantee | Callable[[Options], Guarantee] = "none",
    **declared: Any,
) -> Decorator:
    """Register a rule that weighs rows by what it knows of their distances.

    Parameters
    ----------
    needs, f, paper, guarantee
        As for `column_rule`.
    **declared
        Further attributes of `Spec`: references, inner, keeps_far, breakdown, kappa,
        variance_ratio, variants.

    Returns
    -------
    decorator
        For a function of (g[, f], *, options), with g a `Geometry`, or of (D[, f], *, options),
        with D the n x n squared distances (a faulty row, its column and its diagonal are +Inf),
        that returns weights: n of them, or one per point if the rule has references.

    Raises
    ------
    ValueError
        If the name is taken.
    """
    return _decorator("distance", needs, f, {"paper": paper, "guarantee": guarantee, **declared})


def mixing_rule(
    *,
    needs: Needs = "1",
    f: Literal["required", "optional", "no"] | None = None,
    paper: str = "",
    guarantee: Guarantee | Callable[[Options], Guarantee] = "none",
    **declared: Any,
) -> Decorator:
    """Register a step before a rule, that replaces the rows by combinations of them.

    Parameters
    ----------
    needs, f, paper
        As for `column_rule`.
    guarantee : {"(f, kappa)", "bounded", "trusted", "none"} or callable
        What is left of the guarantee of the rule after it.
    **declared
        Further attributes of `Spec`: references, inner, keeps_far, kappa_with, and `rows_after` for
        a step that changes the number of rows.

    Returns
    -------
    decorator
        For a function of (g or D[, f], *, options) that returns the matrix W with one row per row
        of the next stage; a row of NaN is a faulty row.

    Raises
    ------
    ValueError
        If the name is taken.
    """
    # Rows that are far may cancel each other in a mixed row, so products are formed by default.
    declared.setdefault("inner", True)
    return _decorator("mixing", needs, f, {"paper": paper, "guarantee": guarantee, **declared})
