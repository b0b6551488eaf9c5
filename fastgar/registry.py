"""The declarations of all rules, by name: fastgar's own and those of other distributions."""

from __future__ import annotations

import warnings

from .errors import unknown
from .spec import Spec

__all__ = ["add", "lookup", "refuse_taken", "registered", "remove"]

ENTRY_POINTS = "fastgar.rules"
_specs: dict[str, Spec] = {}
_entry_points_loaded = False


def _load_entry_points() -> bool:
    """Import the rules that other distributions offer; True if that happened now."""
    global _entry_points_loaded
    if _entry_points_loaded:
        return False
    _entry_points_loaded = True
    from importlib.metadata import entry_points

    for entry in entry_points(group=ENTRY_POINTS):
        try:
            entry.load()  # its decorators register what it defines
        except Exception as error:  # another distribution's fault must not take ours down
            warnings.warn(f"rules of {entry} could not be loaded: {error!r}", stacklevel=4)
    return True


def lookup(name: str) -> Spec:
    """Return the declaration of the rule of this name."""
    if name not in _specs:
        _load_entry_points()
    if name not in _specs:
        raise unknown("rule", name, _specs)
    return _specs[name]


def registered() -> tuple[Spec, ...]:
    """Return every declaration, in the order of registration."""
    _load_entry_points()
    return tuple(_specs.values())


def add(spec: Spec) -> None:
    """Register a rule under its name."""
    refuse_taken(spec.name)
    _specs[spec.name] = spec


def refuse_taken(name: str) -> None:
    """Raise a ValueError if there is a rule of this name already."""
    if name in _specs:
        raise ValueError(f"a rule named {name!r} is already registered")


def remove(name: str) -> None:
    """Take a rule out again."""
    del _specs[name]
