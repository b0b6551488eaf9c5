"""Options of a rule: their types are the annotations of its function, checked before use."""

from __future__ import annotations

import inspect
import math
import operator
import types
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from .errors import shown

__all__ = [
    "Count", "Index", "Option", "Positive", "Probability", "Range", "Seed", "Steps",
    "read_options",
]  # fmt: skip

GREATEST = 2**63 - 1  # integer that compiled code takes


@dataclass(frozen=True)
class Range:
    """The numbers an option may be: from `low`, or from just above it if `above`, to `high`."""

    low: float
    high: float = math.inf
    above: bool = False

    def __contains__(self, value: float) -> bool:
        return (value > self.low if self.above else value >= self.low) and value <= self.high

    def __str__(self) -> str:
        if GREATEST != self.high < math.inf:
            return f"between {self.low:g} and {self.high:g}"
        return f"{'above' if self.above else 'at least'} {self.low:g}"


Count = Annotated[int, Range(1, GREATEST)]
Steps = Annotated[int, Range(1, 1000)]  # so that a call ends: no result changes so late any more
Index = Annotated[int, Range(0, GREATEST)]
Seed = Annotated[int, Range(0, 2**64 - 1)]
Positive = Annotated[float, Range(0, above=True)]
Probability = Annotated[float, Range(0, 1)]

NO_DEFAULT: Any = inspect.Parameter.empty


@dataclass(frozen=True)
class Option:
    """One keyword-only option of a rule."""

    name: str
    default: Any
    hint: Any

    @property
    def required(self) -> bool:
        """Whether the option has no default."""
        return self.default is NO_DEFAULT

    def check(self, rule: str, value: Any) -> Any:
        """Return the value in its plain type, or raise an error that says what would be right."""
        if self.hint is None:
            return value
        for hint in _alternatives(self.hint):
            fitting = _fit(hint, value)
            if fitting is not None or (hint is type(None) and value is None):
                return fitting
        error = TypeError if _wrong_type(self.hint, value) else ValueError
        wanted = " or ".join(_describe(hint) for hint in _alternatives(self.hint))
        raise error(f"{rule}: {self.name} must be {wanted}, got {shown(value)}")


def _alternatives(hint: Any) -> tuple[Any, ...]:
    if get_origin(hint) in (Union, types.UnionType):
        return get_args(hint)
    return (hint,)


def _base(hint: Any) -> tuple[Any, Any]:
    if get_origin(hint) is Annotated:
        base, limits = get_args(hint)[:2]
        return base, limits
    return hint, None


def _plain(base: Any, value: Any) -> Any:
    """Return `value` as a Python object of type `base`; None if it is of another type."""
    if base is bool:
        return bool(value) if type(value).__name__ in ("bool", "bool_") else None
    if type(value).__name__ in ("bool", "bool_") or value is None:
        return None
    if base is int:
        try:
            return operator.index(value)
        except TypeError:
            return None
    if base is float:
        is_number = not isinstance(value, str | bytes) and hasattr(value, "__float__")
        is_number &= getattr(value, "shape", ()) == ()
        try:
            return float(value) if is_number else None
        except OverflowError:
            return math.inf
    return value if isinstance(base, type) and isinstance(value, base) else None


def _fit(hint: Any, value: Any) -> Any:
    if get_origin(hint) is Literal:
        return value if isinstance(value, str) and value in get_args(hint) else None
    base, limits = _base(hint)
    plain = _plain(base, value)
    if plain is None or (base is float and not math.isfinite(plain)):
        return None
    return plain if limits is None or plain in limits else None


def _wrong_type(hint: Any, value: Any) -> bool:
    """Tell a value of a wrong type (a TypeError) from a wrong value (a ValueError)."""
    for alternative in _alternatives(hint):
        if get_origin(alternative) is Literal:
            if isinstance(value, str):
                return False
        elif _plain(_base(alternative)[0], value) is not None:
            return False
    return True


def _describe(hint: Any) -> str:
    if get_origin(hint) is Literal:
        return " or ".join(repr(choice) for choice in get_args(hint))
    if hint is type(None):
        return "None"
    base, limits = _base(hint)
    words = {int: "an integer", float: "a finite number", bool: "True or False", str: "a string"}
    text = words.get(base, getattr(base, "__name__", str(base)))
    return text if limits is None else f"{text} {limits}"


def read_options(function: Callable[..., Any]) -> Mapping[str, Option]:
    """Return the keyword-only parameters of a rule's function as its options."""
    options = {}
    for parameter in inspect.signature(function).parameters.values():
        if parameter.kind is not inspect.Parameter.KEYWORD_ONLY or parameter.name == "step":
            continue  # the step of a randomised rule is counted, not configured
        hint = parameter.annotation
        if isinstance(hint, str):
            try:
                hint = eval(hint, getattr(function, "__globals__", {}))
            except NameError:  # a type that exists for the type checker only: not checked here
                hint = None
        elif hint is NO_DEFAULT:
            hint = None
        options[parameter.name] = Option(parameter.name, parameter.default, hint)
    return options
