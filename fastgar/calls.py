"""Strings that name something with options: ``name(option=value)``, also with bars in between.

Rules, attacks, and what a training run names are all written so. Values are literals. Who knows the
names and the options checks them; what can be read at all is decided here.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from .errors import shown

__all__ = ["LONGEST", "Call", "Strings", "form"]

LONGEST = 2000  # characters of a string that is parsed


@dataclass(frozen=True)
class Call:
    """A name with its values.

    Attributes
    ----------
    name : str
    unnamed : tuple
        Values that have no name.
    named : dict
        The others.
    """

    name: str
    unnamed: tuple[Any, ...]
    named: dict[str, Any]


class _Unreadable(Exception):
    """A string cannot be read; the words say why, if there is more to say than what to write."""


def form(spec: str) -> str:
    """Return what to write instead of a string that cannot be read."""
    return "write name or name(option=value)"


@dataclass(frozen=True)
class Strings:
    """The strings of one kind.

    Attributes
    ----------
    kind : str
        What they describe, for the messages.
    meant : callable
        From a string that cannot be read to what to write instead.
    several : bool
        Whether there may be bars between calls.
    unnamed : int
        How many values of a call need no name.
    inner : str
        An option that is itself a call, or a string of one. Without a name it comes first.
    names : pattern, optional
        Of a whole string, for names that Python has no word for: its groups are the name and what
        is in the brackets.
    """

    kind: str
    meant: Callable[[str], str] = form
    several: bool = False
    unnamed: int = 0
    inner: str = ""
    names: re.Pattern[str] | None = None

    def read(self, spec: Any) -> tuple[Call, ...]:
        """Return the calls in a string.

        Raises
        ------
        TypeError, ValueError
            If it is no string, too long, or says something else.
        """
        a_kind = f"{'an' if self.kind[0] in 'aeiou' else 'a'} {self.kind}"
        if not isinstance(spec, str):
            raise TypeError(f"{a_kind} is described by a string, got {shown(spec)}")
        if len(spec) > LONGEST:
            raise ValueError(f"the string of {a_kind} has at most {LONGEST} characters")
        text, name = spec.strip(), ""
        if self.names is not None:
            match = self.names.fullmatch(spec)
            if match is None:
                raise self.refusal(spec)
            text, name = f"_({match[2] or ''})", match[1]
        try:
            found = _calls(self, text, name)
        except _Unreadable as why:
            raise self.refusal(spec, str(why)) from None
        if len(found) > 1 and not self.several:
            raise self.refusal(spec)
        return found

    def options(self, spec: str, call: Call, first: str | None) -> dict[str, Any]:
        """Return the values of a call by name; `first` is the option that needs none, if any."""
        if not call.unnamed:
            return dict(call.named)
        if first is None:
            raise self.refusal(spec, _name_them(call.name))
        if first in call.named:
            raise self.refusal(spec, _twice(call.name, first))
        return {first: call.unnamed[0], **call.named}

    def refusal(self, spec: str, why: str = "") -> ValueError:
        """Return the error for a string that is none of this kind."""
        return ValueError(f"{shown(spec)} is no {self.kind}: {why or self.meant(spec)}")


def _name_them(name: str) -> str:
    return f"name the options of {name}, as in option=value"


def _twice(name: str, option: str) -> str:
    return f"{name} has {option} twice"


@lru_cache(maxsize=256)
def _calls(strings: Strings, text: str, name: str) -> tuple[Call, ...]:
    try:
        tree = ast.parse(text, mode="eval").body
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        raise _Unreadable from None
    trees = []
    while isinstance(tree, ast.BinOp) and isinstance(tree.op, ast.BitOr):
        trees.append(tree.right)
        tree = tree.left
    return tuple(_call(strings, each, name) for each in (tree, *reversed(trees)))


def _call(strings: Strings, tree: ast.expr, name: str = "") -> Call:
    call = tree if isinstance(tree, ast.Call) else ast.Call(tree, [], [])
    if not isinstance(call.func, ast.Name):
        raise _Unreadable
    name = name or call.func.id
    if len(call.args) > strings.unnamed:
        raise _Unreadable(_name_them(name))
    unnamed = tuple(_value(strings, each, name, strings.inner) for each in call.args)
    named: dict[str, Any] = {}
    for keyword in call.keywords:
        if keyword.arg is None:
            raise _Unreadable(_name_them(name))
        if keyword.arg in named:
            raise _Unreadable(_twice(name, keyword.arg))
        named[keyword.arg] = _value(strings, keyword.value, name, keyword.arg)
    return Call(name, unnamed, named)


def _value(strings: Strings, tree: ast.expr, name: str, option: str) -> Any:
    if option and option == strings.inner and not isinstance(tree, ast.Constant):
        return _call(strings, tree)
    try:
        return ast.literal_eval(tree)
    except (ValueError, TypeError, SyntaxError, RecursionError, MemoryError):
        said = f"{option}=..." if option else "..."
        raise _Unreadable(f"{name}({said}) must be a literal, such as 2 or 'a'") from None
