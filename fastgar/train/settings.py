"""What is said of a setting where it is declared: for errors, flags and the documentation alike."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import Field, field, fields
from itertools import starmap
from typing import Any, get_args, get_type_hints

from ..docstrings import section, split, wrapped
from ..errors import shown

__all__ = ["Must", "check", "document", "listed", "setting"]

Must = tuple[str, Callable[[Any], bool]]  # in words, and what holds of a value


def setting(
    default: Any, help: str, must: Must | None = None, *, choices: tuple[str, ...] = (),
    metavar: str | None = None, doc: str = "",
) -> Any:  # fmt: skip
    """Return a field of a dataclass; the default of an optional one is None.

    `help` is that of the flag, `metavar` what stands there for the value, and `doc` is for the
    docstring, where there is more to say.
    """
    if choices:
        must = listed(choices), lambda value: value in choices
    more = {"help": help, "must": must, "choices": choices, "metavar": metavar, "doc": doc}
    return field(default=default, metadata=more)


def check(settings: Any) -> None:
    """Raise a ValueError if the value of a field is none of those that it must be."""
    for each in fields(settings):
        value, must = getattr(settings, each.name), each.metadata["must"]
        if must is not None and value is not None and not must[1](value):
            said = each.name.replace("_", "-")
            raise ValueError(f"{said} must be {must[0]}, got {shown(value)}")


def listed(names: tuple[str, ...]) -> str:
    """Return names as one says them, with "or" before the last."""
    return ", ".join(map(repr, names[:-1])) + f" or {names[-1]!r}"


def document(settings: type) -> None:
    """Put what is known of the fields into a class's docstring, as its first section."""
    hints = get_type_hints(settings)
    lines = [f"{_head(each, hints[each.name])}\n{_body(each)}" for each in fields(settings)]
    text, others = split(settings.__doc__ or "")
    sections = {"Attributes": "\n".join(lines), **others}
    settings.__doc__ = "\n\n".join([text, *starmap(section, sections.items())]) + "\n"


def _head(each: Field[Any], hint: Any) -> str:
    choices, default = each.metadata["choices"], each.default
    kind = (get_args(hint) or (hint,))[0].__name__
    if choices:
        kind = f"{{{', '.join(map(json.dumps, choices))}}}"
    if default is None:
        return f"{each.name} : {kind}, optional"
    said = json.dumps(default) if isinstance(default, str) else default
    return f"{each.name} : {kind}, default {said}"


def _body(each: Field[Any]) -> str:
    help = each.metadata["help"]
    return wrapped(each.metadata["doc"] or f"{help[0].upper()}{help[1:]}.", "    ")
