"""What the names of splits and models have in common: ``name(option=value)`` in a string."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

from ..calls import Strings
from ..errors import unknown
from ..options import read_options

__all__ = ["configured"]

NAMES = re.compile(r"\s*([\w.-]+)\s*(?:\((.*)\))?\s*", re.DOTALL)  # such as cnn-cifar


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
    strings = Strings(kind, unnamed=1, names=NAMES)
    (call,) = strings.read(spec)
    name = call.name
    if name not in known:
        raise unknown(kind, name, known)
    options = read_options(known[name])
    if not options and (call.unnamed or call.named):
        raise strings.refusal(spec, f"{name} has no options")
    given = strings.options(spec, call, min(options) if len(options) == 1 else None)
    for option in given:
        if option not in options:
            raise unknown(f"option of {name}", option, options)
    for option, described in options.items():
        if described.required and option not in given:
            raise ValueError(f"{name} needs a value: write {name}({option}=...)")
    return name, {option: options[option].check(name, value) for option, value in given.items()}
