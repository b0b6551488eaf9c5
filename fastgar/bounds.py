"""What theory says about a rule: how many rows, how many liars, how far off."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from .pipeline import Rule, rule
from .registry import registered
from .rules import RULES
from .spec import Bound, Guarantee, Spec
from .stages import Stage, whole

__all__ = ["Listing", "kappa", "list_rules", "max_f", "min_n", "variance_ratio"]


@dataclass(frozen=True)
class Listing:
    """One line of the table of rules.

    Attributes
    ----------
    name, kind : str
        Kind is "column", "distance" or "mixing".
    needs : str
        Such as "n >= 2f + 3".
    breakdown : str
        The largest share of rows that may lie under that guarantee.
    reads : int
        Passes over the data, standing alone.
    guarantee : {"(f, kappa)", "bounded", "trusted", "none"}
        What holds whatever f rows hold, with default options: within sqrt(kappa) times the honest
        spread; bounded by something else; bounded if a row or a reference that it trusts is honest;
        nothing. Of a mixing rule: what is left of the guarantee of the rule after it.
    options : str
        As in a signature.
    summary, paper : str
    """

    name: str
    kind: str
    needs: str
    breakdown: str
    reads: int
    guarantee: Guarantee
    options: str
    summary: str
    paper: str


def list_rules() -> list[Listing]:
    """Return one record for every rule: built in, registered here, or from an entry point.

    Examples
    --------
    >>> [rule.name for rule in fg.list_rules() if rule.kind == "mixing"]
    ['nnm', 'bucketing', 'clip', 'arc']
    """
    listings = []
    built_in = [rule.spec for rule in RULES]
    for spec in [*built_in, *(spec for spec in registered() if spec not in built_in)]:
        options = ", ".join(
            option.name if option.required else f"{option.name}={option.default!r}"
            for option in spec.options.values()
        )
        summary = (spec.mathematics.__doc__ or "").strip().split("\n")[0]
        listings.append(
            Listing(
                name=spec.name,
                kind=spec.kind,
                needs=spec.needs_text(),
                breakdown=spec.breakdown,
                reads=spec.reads,
                guarantee=spec.guaranteed(spec.defaults),
                options=options,
                summary=summary,
                paper=spec.paper,
            )
        )
    return listings


def min_n(name: str | Rule, f: int | None = None) -> int:
    """Return the least number of rows with which a rule survives f.

    Parameters
    ----------
    name : str or Rule
        A rule's name or a pipeline, as `fastgar.rule` takes it.
    f : int, optional
        Required where the rule requires it.

    Examples
    --------
    >>> fg.min_n("krum", f=4), fg.min_n("bucketing(s=2) | krum", f=1)
    (11, 9)
    """
    return rule(name, f).min_n


def max_f(name: str | Rule, n: int) -> int:
    """Return the largest f that a rule takes with n rows.

    Parameters
    ----------
    name : str or Rule
        A rule's name or a pipeline, as `fastgar.rule` takes it.
    n : int
        The number of rows.

    Returns
    -------
    int
        0 also where n is too small even for f = 0, which calling the rule says then: so
        `f=min(2, fastgar.max_f(name, n))` does for rounds of any size.

    Examples
    --------
    >>> fg.max_f("krum", n=11), fg.max_f("bulyan", n=11), fg.max_f("mean", n=11)
    (4, 2, 0)
    """
    n = _whole("n", n)
    if all(stage.spec.f == "no" for stage in rule(name, 0).stages):
        return 0
    good, bad = 0, max(n, 1)  # f < n always
    while bad - good > 1:
        middle = (good + bad) // 2
        good, bad = (middle, bad) if rule(name, middle).check(n) is None else (good, middle)
    return good


def kappa(name: str | Rule, n: int, f: int) -> float:
    """Return an upper bound of a rule's kappa: how far off the honest mean it can be.

    For every set S of n-f rows, |aggregate - mean of S|^2 is at most kappa times the average over S
    of |x - mean of S|^2 (for `smea`, even times the top eigenvalue of the covariance of S). No rule
    is below f/(n-2f), which is that of `trimmed_mean`. Each is proved in `fastgar.rules.proofs`,
    for exact arithmetic; that of `geometric_median` where it converged, and it warns if not.

    Parameters
    ----------
    name : str or Rule
        A rule's name or a pipeline, as `fastgar.rule` takes it.
    n, f : int

    Raises
    ------
    ValueError
        If no bound is known, with these options or at all, or n is too small.

    Examples
    --------
    >>> round(fg.kappa("trimmed_mean", n=11, f=2), 3)
    0.286
    >>> round(fg.kappa("nnm | krum(squared=False)", n=11, f=2), 3)
    16.0
    """
    n, f = _whole("n", n), _whole("f", f)
    stages = rule(name, f)
    stages.require(n)
    rows = [n]
    for stage in stages.stages[:-1]:
        rows.append(stage.rows_after(rows[-1]))
    bound = _bound("bound of kappa", stages.stages[-1], rows[-1], f, lambda spec: spec.kappa)
    for stage, before in zip(reversed(stages.stages[:-1]), reversed(rows[:-1]), strict=True):
        if stage.spec.kappa_with is None:
            raise ValueError(f"no bound of kappa is known with {stage.name} before a rule")
        bound = stage.spec.kappa_with(bound, before, f, stage.options)
    return bound


def variance_ratio(name: str | Rule, n: int, f: int) -> float:
    """Return the variance-to-norm ratio of gradients under which a rule is proved to work.

    The ratio of an honest gradient g is sqrt(E|g - Eg|^2) / |Eg|. The condition is that of the
    rule's paper; that of `multi_krum` follows from its kappa.

    Parameters
    ----------
    name : str or Rule
        A rule's name.
    n, f : int

    Raises
    ------
    ValueError
        If no such condition is known, with these options or at all, or n is too small.

    Examples
    --------
    >>> round(fg.variance_ratio("median", n=25, f=5), 3)
    0.224
    """
    n, f = _whole("n", n), _whole("f", f)
    stages = rule(name, f)
    stages.require(n)
    if len(stages.stages) > 1:
        raise ValueError("a variance-to-norm condition is known for single rules only")
    what = "variance-to-norm condition"
    return _bound(what, stages.stages[0], n, f, lambda spec: spec.variance_ratio)


def _bound(what: str, stage: Stage, n: int, f: int, get: Callable[[Spec], Bound | None]) -> float:
    bound = get(stage.spec)
    value = None if bound is None else bound(n, f, stage.options)
    if value is None:
        known = ", ".join(each.name for each in registered() if get(each) is not None)
        raise ValueError(f"no {what} is known for {stage}; known for: {known}")
    return value


def _whole(name: str, value: Any) -> int:
    """Return a number of rows, or raise an error that says what it must be."""
    number = whole(name, value)
    if number is None:
        raise TypeError(f"{name} must be an integer, got None")
    return number
