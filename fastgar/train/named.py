"""What the names of splits and models have in common: ``name(option=value)`` in a string."""

from __future__ import annotations

import ast
import re
from collections.abc import Callable, Mapping
from typing import Any

from ..errors import LONGEST, shown, unknown
from ..options import read_options

__all__ = ["configured"]

CALL = re.compile(r"\s*([\w.-]+)\s*(?:\((.*)\))?\s*", re.DOTALL)


def configured(
    kind: str, spec: str, known: Mapping[str, Callable[..., Any]]
) -> tuple[str, dict[str, Any]]:
    """Return the name and the options in a string, checked against the function of that name.

    Parameters
    ----------
    kind : str
        What the string describes, for the messages.
    spec : str
        ``name``, ``name(option=value)``, or ``name(value)`` where there is but one option.
    known : mapping
        The functions by name; their keyword-only parameters are the options.

    Raises
    ------
    TypeError, ValueError
        If the string, the name, an option or its value is wrong.
    """
    if not isinstance(spec, str):
        raise TypeError(f"a {kind} is described by a string, got {shown(spec)}")
    if len(spec) > LONGEST:
        raise ValueError(f"the string of a {kind} has at most {LONGEST} characters")
    call = CALL.fullmatch(spec)
    if call is None:
        raise ValueError(f"{shown(spec)} is no {kind}: write name or name(option=value)")
    name = call[1]
    if name not in known:
        raise unknown(kind, name, known)
    options = read_options(known[name])
    given = _arguments(kind, spec, call[2] or "", list(options))
    for option in given:
        if option not in options:
            if not options:
                raise ValueError(f"{shown(spec)} is no {kind}: {name} has no options")
            raise unknown(f"option of {name}", option, options)
    for option, described in options.items():
        if described.required and option not in given:
            raise ValueError(f"{name} needs a value: write {name}({option}=...)")
    return name, {option: options[option].check(name, value) for option, value in given.items()}


def _arguments(kind: str, spec: str, text: str, options: list[str]) -> dict[str, Any]:
    """Return the named values in `text`; one without a name belongs to the only option."""
    what = f"{shown(spec)} is no {kind}"
    try:
        call = ast.parse(f"_({text})", mode="eval").body
        if not isinstance(call, ast.Call) or not isinstance(call.func, ast.Name):
            raise ValueError("more than one pair of brackets")
        values = [ast.literal_eval(value) for value in call.args]
        named = {option.arg or "**": ast.literal_eval(option.value) for option in call.keywords}
    except (SyntaxError, ValueError, TypeError, RecursionError, MemoryError):
        raise ValueError(f"{what}: write name or name(option=value)") from None
    if not values:
        return named
    if len(values) > 1 or named or len(options) > 1:
        raise ValueError(f"{what}: name the options, as in option=value")
    return {(options or ["value"])[0]: values[0]}
