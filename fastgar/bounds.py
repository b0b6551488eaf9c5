"""What theory says about a rule: how many rows, how many liars, how far off."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from .pipeline import Rule, rule
from .rules import RULES
from .rules.registry import registered
from .rules.spec import Guarantee, Spec

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

    Raises
    ------
    ValueError
        If n is too small even for f = 0.

    Examples
    --------
    >>> fg.max_f("krum", n=11), fg.max_f("bulyan", n=11), fg.max_f("mean", n=11)
    (4, 2, 0)
    """
    lowest = rule(name, 0)
    complaint = lowest.check(n)
    if complaint is not None:
        raise ValueError(complaint)
    if all(stage.spec.f == "no" for stage in lowest.stages):
        return 0
    good, bad = 0, n  # f < n always
    while bad - good > 1:
        middle = (good + bad) // 2
        good, bad = (middle, bad) if rule(name, middle).check(n) is None else (good, middle)
    return good


def kappa(name: str, n: int, f: int) -> float:
    """Return an upper bound of a rule's kappa: how far off the honest mean it can be.

    For every set S of n-f rows, |aggregate - mean of S|^2 is at most kappa times the average over S
    of |x - mean of S|^2 (for `smea`, times the top eigenvalue of the covariance of S). No rule is
    below f/(n-2f).

    Parameters
    ----------
    name : str
        A rule's name, or "nnm | " and a rule's name.
    n, f : int

    Raises
    ------
    ValueError
        If no bound is known, or n is too small.

    Examples
    --------
    >>> round(fg.kappa("trimmed_mean", n=11, f=2), 3)
    2.204
    """
    stages = rule(name, f)
    complaint = stages.check(n)
    if complaint is not None:
        raise ValueError(complaint)
    names = [stage.name for stage in stages.stages]
    bound = _bound("kappa", stages.stages[-1].spec, lambda spec: spec.kappa)(n, f)
    for before in reversed(names[:-1]):
        if before != "nnm":
            raise ValueError(f"no bound of kappa is known with {before} before a rule, only nnm")
        bound = 8 * f / (n - f) * (bound + 1)
    return bound


def variance_ratio(name: str, n: int, f: int) -> float:
    """Return the variance-to-norm ratio of gradients under which a rule is proved to work.

    The ratio of an honest gradient g is sqrt(E|g - Eg|^2) / |Eg|.

    Parameters
    ----------
    name : str
        A rule's name.
    n, f : int

    Raises
    ------
    ValueError
        If no such condition is known, or n is too small.

    Examples
    --------
    >>> round(fg.variance_ratio("median", n=25, f=5), 3)
    0.224
    """
    stages = rule(name, f)
    complaint = stages.check(n)
    if complaint is not None:
        raise ValueError(complaint)
    if len(stages.stages) > 1:
        raise ValueError("a variance-to-norm condition is known for single rules only")
    spec = stages.stages[0].spec
    return _bound("variance-to-norm condition", spec, lambda spec: spec.variance_ratio)(n, f)


def _bound(what: str, spec: Spec, get: Callable[[Spec], Any]) -> Callable[[int, int], float]:
    bound: Callable[[int, int], float] | None = get(spec)
    if bound is None:
        known = ", ".join(each.name for each in registered() if get(each) is not None)
        raise ValueError(f"no {what} is known for {spec.name}; known for: {known}")
    return bound
