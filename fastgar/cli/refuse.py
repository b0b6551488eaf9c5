"""Bad input to a command: one sentence and status 2, where a bug would show its traceback."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryFile

__all__ = ["Refused", "alone", "refusing", "require_folder"]


class Refused(Exception):
    """What was asked cannot be done; the sentence says why and what could."""


def require_folder(folder: Path, flag: str) -> None:
    """Make a folder unless it is there, and refuse one that nothing can be written to."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        TemporaryFile(dir=folder).close()
    except OSError as error:
        what = error.strerror
        if isinstance(error, FileExistsError | NotADirectoryError):
            what = f"{next(p for p in (folder, *folder.parents) if p.exists())} is no folder"
        elif isinstance(error, FileNotFoundError):  # though all above it would have been made
            what = "no file can be made there"
        raise Refused(f"cannot write to {flag} {folder}: {what}") from error


@contextmanager
def alone(folder: Path, flag: str) -> Iterator[None]:
    """Refuse a folder that another command has, where the system can tell: results would mix."""
    if os.name != "posix":
        yield
        return
    import fcntl

    place = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(place, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(place)
        raise Refused(
            f"cannot write to {flag} {folder}: another command writes there now"
        ) from None
    except OSError:  # a file system that has no locks
        pass
    try:
        yield
    finally:
        fcntl.flock(place, fcntl.LOCK_UN)  # forked processes may still have it open
        os.close(place)


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
