"""What an attack declares about itself, and how a formula becomes a public function.

An attack is a function ``(honest, q, *, options)`` of an (h, d) matrix of any array library that
returns the one vector that all q attackers send, or a (q, d) matrix, a row for each. If it has a
parameter `view`, it is told what the adversary sees (a `View`, or None). Its keyword-only
parameters are its options, and their annotations are checked. What all attacks have in common is
added to its docstring (see `fastgar.attacks.describe`).

>>> from fastgar.attacks import attack, forget, register
>>> @register()
... def twice(honest, q, *, times: float = 2.0):
...     "Send a multiple of the honest mean."
...     return times * honest.mean(0)
>>> twice(np.array([[1.0], [3.0]]), q=2)
array([4.])
>>> attack("twice(times=3)")(np.array([[1.0], [3.0]]))
array([6.])
>>> forget("twice")
"""

from __future__ import annotations

import functools
import inspect
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from ..errors import shown, unknown
from ..options import Count, Option, read_options
from .describe import document
from .rows import as_matrix, cast, narrow, widen
from .view import View

__all__ = ["Declared", "forget", "lookup", "names", "register"]

ENTRY_POINTS = "fastgar.attacks"
ATTACKERS = Option("q", 1, Count)

Function = Callable[..., Any]
Line = Callable[..., tuple[Any, Any]]

_declared: dict[str, Declared] = {}
_entry_points_loaded = False


@dataclass(frozen=True, eq=False)
class Declared:
    """Everything that is known about an attack.

    Attributes
    ----------
    name, formula
        The function as it was written.
    options
        Its keyword-only options with defaults and checks.
    factor, line
        The option that says how far to go, and the line it goes along: what is sent is
        ``base + factor * direction`` with base, direction = line(honest, other options).
    poisons
        Whether it changes the attackers' labels instead of what they send.
    wide
        Whether 16-bit rows reach the formula as float32.
    """

    name: str
    formula: Function
    options: Mapping[str, Option]
    factor: str | None = None
    line: Line | None = None
    poisons: bool = False
    wide: bool = True
    takes_view: bool = False

    @property
    def wraps(self) -> bool:
        """Whether it is about another attack, its option `inner`."""
        return "inner" in self.options

    def resolve(self, given: Mapping[str, Any]) -> dict[str, Any]:
        """Return every option's value: what was given, else the default."""
        for name in given:
            if name not in self.options:
                raise unknown(f"option of {self.name}", name, self.options)
        values = {}
        for name, option in self.options.items():
            if name not in given and option.required:
                raise TypeError(f"{self.name} needs the option {name}")
            value = given.get(name, option.default)
            values[name] = value if name == "inner" else option.check(self.name, value)
        return values

    def send(self, honest: Any, q: Any, view: View | None, options: Mapping[str, Any]) -> Any:
        """Check everything, and return what the attackers send, in the form of the honest rows."""
        values = self.resolve(options)
        matrix = as_matrix(self.name, honest)
        if view is not None and not isinstance(view, View):
            raise TypeError(f"{self.name}: view must be a View, got {type(view).__name__}")
        if q is None:
            q = 1 if view is None else view.q
        q = ATTACKERS.check(self.name, q)
        if view is not None and view.q != q:
            raise ValueError(f"{self.name}: q is {q}, but the view is that of {view.q} attackers")
        rows = widen(matrix) if self.wide else matrix
        if self.takes_view:
            values["view"] = None if view is None else view.like(rows)
        sent = self.formula(rows, q, **values)
        d = rows.shape[1]
        if tuple(sent.shape) not in ((d,), (q, d)):
            raise ValueError(
                f"{self.name} must return a row of {d} numbers or {q} of them, got shape "
                f"{tuple(sent.shape)}"
            )
        sent = narrow(sent, matrix) if self.wide else cast(sent, matrix)
        return sent.reshape((*sent.shape[:-1], *honest.shape[1:]))


def register(
    *,
    factor: str | None = None,
    line: Line | None = None,
    poisons: bool = False,
    wide: bool = True,
) -> Callable[[Function], Function]:
    """Register an attack under the name of its function.

    Parameters
    ----------
    factor : str, optional
        The option that says how far the attack goes, which ``optimal`` may then choose.
    line : callable, optional
        Needed with `factor`: a function of (honest, other options) that returns a base and a
        direction, where the attack sends base + factor * direction.
    poisons : bool
        Whether the attackers compute honestly on other labels: the function is then one of
        (labels, classes, options) that returns labels.
    wide : bool
        Whether float16 and bfloat16 rows reach the function as float32.

    Returns
    -------
    decorator
        For a function of (honest, q, *, options[, view]), see the top of this file. It gives back
        the function that users call, which checks its arguments, takes rows of any shape and
        answers in the library, dtype and shape of the honest rows.

    Raises
    ------
    ValueError
        If the name is taken, or factor and line do not go together.
    """

    def decorate(function: Function) -> Function:
        name = function.__name__
        if name in _declared:
            raise ValueError(f"an attack named {name!r} is already registered")
        if (factor is None) != (line is None):
            raise ValueError(f"{name}: factor and line are declared together or not at all")
        options = dict(read_options(function))
        takes_view = options.pop("view", None) is not None
        if factor is not None and factor not in options:
            raise ValueError(f"factor={shown(factor)}: {name} has no such option")
        declared = Declared(name, function, options, factor, line, poisons, wide, takes_view)
        _declared[name] = declared
        return _public_labels(declared) if poisons else _public(declared)

    return decorate


def _public(declared: Declared) -> Function:
    """Return the function that users call."""

    @functools.wraps(declared.formula)
    def public(honest: Any, q: Any = None, *, view: Any = None, **options: Any) -> Any:
        return declared.send(honest, q, view, options)

    parameters = list(inspect.signature(declared.formula).parameters.values())
    if len(parameters) > 1 and parameters[1].default is inspect.Parameter.empty:
        parameters[1] = parameters[1].replace(default=1)
    if not declared.takes_view:
        keyword = inspect.Parameter.KEYWORD_ONLY
        parameters.append(inspect.Parameter("view", keyword, default=None))
    wrapper: Any = public
    wrapper.__doc__ = document(
        declared.formula, declared.options, declared.takes_view, declared.wide
    )
    wrapper.__signature__ = inspect.Signature(parameters)
    return public


def _public_labels(declared: Declared) -> Function:
    @functools.wraps(declared.formula)
    def public(labels: Any, classes: int, **options: Any) -> Any:
        return declared.formula(labels, classes, **declared.resolve(options))

    return public


def lookup(name: str) -> Declared:
    """Return the declaration of the attack of this name."""
    if name not in _declared:
        _load_entry_points()
    if name not in _declared:
        raise unknown("attack", name, _declared)
    return _declared[name]


def names() -> list[str]:
    """Return the names of all attacks, in the order of registration."""
    _load_entry_points()
    return list(_declared)


def forget(name: str) -> None:
    """Take an attack out of the registry (a notebook cell that defines one can then run again)."""
    lookup(name)
    del _declared[name]


def _load_entry_points() -> None:
    """Import the attacks that other distributions offer, once."""
    global _entry_points_loaded
    if _entry_points_loaded:
        return
    _entry_points_loaded = True
    from importlib.metadata import entry_points

    for entry in entry_points(group=ENTRY_POINTS):
        try:
            entry.load()  # its decorators register what it defines
        except Exception as error:  # another distribution's fault must not take ours down
            warnings.warn(f"attacks of {entry} could not be loaded: {error!r}", stacklevel=3)
