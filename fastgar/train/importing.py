"""Models of one's own: ``module:factory``, imported and called."""

from __future__ import annotations

import importlib
import inspect
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn

from ..errors import shown, unknown

__all__ = ["imported"]


def imported(spec: str, shape: tuple[int, ...], classes: int) -> Callable[[], nn.Module]:
    """Return a function that makes the model of a factory, which is imported at once.

    Parameters
    ----------
    spec : str
        ``module:factory``, where either may be dotted.
    shape : tuple of int
        Of a sample.
    classes : int

    Raises
    ------
    TypeError, ValueError
        If there is no such module or factory, or it cannot be called; and, from the function, if
        the factory returns something else.
    """
    module, _, path = spec.partition(":")
    if not all(part.isidentifier() for part in (*module.split("."), *path.split("."))):
        raise ValueError(
            f"{shown(spec)} is no model: write module:factory, as in mypackage.nets:small"
        )
    with _working_directory():
        factory = _found(module, path)
    arguments = _arguments(spec, factory, shape, classes)

    def make() -> nn.Module:
        with _working_directory():
            model = factory(*arguments)
        if not isinstance(model, nn.Module):
            raise TypeError(f"{spec} must return a torch.nn.Module, got {type(model).__name__}")
        return model

    return make


@contextmanager
def _working_directory() -> Iterator[None]:
    """Let modules in the working directory be imported, after all others: a command cannot."""
    here = os.getcwd()
    added = here not in sys.path
    if added:
        sys.path.append(here)
    try:
        yield
    finally:
        if added:
            sys.path.remove(here)


def _found(module: str, path: str) -> Any:
    try:
        value: Any = importlib.import_module(module)
    except ImportError as error:
        if isinstance(error, ModuleNotFoundError) and _starts(module, error.name):
            raise ValueError(
                f"there is no module {error.name!r}, on Python's path or in the working directory "
                f"{os.getcwd()}"
            ) from error
        raise ValueError(f"cannot import {module}: {error}") from error
    holder = module
    for part in path.split("."):
        if not hasattr(value, part):
            public = [name for name in dir(value) if not name.startswith("_")]
            raise unknown(f"name in {holder}", part, public)
        value, holder = getattr(value, part), f"{holder}.{part}"
    return value


def _starts(module: str, name: str | None) -> bool:
    return name is not None and (module == name or module.startswith(f"{name}."))


def _arguments(spec: str, factory: Any, shape: tuple[int, ...], classes: int) -> tuple[Any, ...]:
    """Return what to call the factory with."""
    if isinstance(factory, nn.Module):
        raise TypeError(f"{spec} is a model, not a factory: runs need one each, write a function")
    if not callable(factory):
        raise TypeError(f"{spec} must be a function or a class, got {type(factory).__name__}")
    try:
        signature = inspect.signature(factory)
    except ValueError:  # some callables written in C have none
        return ()
    choices: tuple[tuple[Any, ...], ...] = ((), (shape, classes))
    for arguments in choices:
        try:
            signature.bind(*arguments)
        except TypeError:
            continue
        return arguments
    raise TypeError(
        f"{spec} must take no arguments, or the shape of a sample and the number of classes; it "
        f"takes {signature}"
    )
