"""Bad input to a command: one sentence and status 2, where a bug would show its traceback."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["Refused", "refusing"]


class Refused(Exception):
    """What was asked cannot be done; the sentence says why and what could."""


@contextmanager
def refusing(extra: str = "") -> Iterator[None]:
    """Turn the library's errors about what it was given, inside the block, into `Refused`.

    Parameters
    ----------
    extra : str
        The extra of the package that brings the modules which the block imports.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        if not extra or error.name is None or error.name.startswith("fastgar"):
            raise
        if "pip install" in str(error):  # it knows better which extra
            raise Refused(str(error)) from error
        raise Refused(f"{error.name} is not installed: pip install 'fastgar[{extra}]'") from error
    except (ValueError, TypeError) as error:
        raise Refused(str(error)) from error
