"""Names of a package that are imported when they are first asked for."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from importlib.util import find_spec
from typing import Any

from .errors import of_extra

__all__ = ["later", "torch"]


def later(package: str, name: str, places: Mapping[str, str], *, extra: str) -> Any:
    """Return what a package has under a name, as its ``__getattr__`` does: imported just now.

    Parameters
    ----------
    package : str
    name : str
        One of `places`, or a module of the package.
    places : mapping of str to str
        In which module each name is.
    extra : str
        That brings what these modules import.

    Raises
    ------
    AttributeError
        If there is no such name.
    ModuleNotFoundError
        If something is not installed; the message says how to.
    """
    module = f"{package}.{places.get(name, name)}"
    if find_spec(module) is None:
        raise AttributeError(f"module {package!r} has no attribute {name!r}")
    with of_extra(extra):
        found = import_module(module)
    return getattr(found, name) if name in places else found


class _Module:
    """A module that is imported when something of it is first asked for."""

    def __init__(self, name: str) -> None:
        self._name = name

    def __getattr__(self, name: str) -> Any:
        return getattr(import_module(self._name), name)


torch = _Module("torch")
