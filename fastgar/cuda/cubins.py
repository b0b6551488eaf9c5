"""Machine code of kernels on disk, so that only the first process on a machine compiles them.

One file per kernel module, in ``$FASTGAR_CACHE_DIR/cubin`` (by default in
``$XDG_CACHE_HOME/fastgar`` or ``~/.cache/fastgar``). Its name is a hash of all that the code
depends on; it begins with a hash of what follows, so that a file that was cut or overwritten is
made anew. Files appear whole or not at all, however many processes write them.
"""

from __future__ import annotations

import hashlib
import os
import tempfile
import warnings
from contextlib import suppress
from pathlib import Path

from ..errors import levels_to_the_caller

__all__ = ["folder", "load", "name", "save"]

DIGEST = hashlib.sha256().digest_size
_warned = False


def folder() -> Path:
    """Return where the files are."""
    own = os.environ.get("FASTGAR_CACHE_DIR")
    if own:
        return Path(own).expanduser() / "cubin"
    cache = Path(os.environ.get("XDG_CACHE_HOME", ""))
    if not cache.is_absolute():  # which the standard says to ignore
        cache = Path.home() / ".cache"
    return cache / "fastgar" / "cubin"


def name(*parts: str) -> str:
    """Return the name of the file of what depends on these texts."""
    digest = hashlib.sha256()
    for part in parts:
        digest.update(len(part).to_bytes(8, "little"))
        digest.update(part.encode())
    return digest.hexdigest()[:40]


def load(name: str) -> bytes | None:
    """Return the machine code of this name, if it is there and whole."""
    try:
        held = (folder() / name).read_bytes()
    except (OSError, RuntimeError):  # there is no such file, or no home
        return None
    code = held[DIGEST:]
    return code if code and hashlib.sha256(code).digest() == held[:DIGEST] else None


def save(name: str, code: bytes) -> None:
    """Keep machine code under this name. Where that is impossible, warn once."""
    global _warned
    part = None
    try:
        place = folder()
        place.mkdir(parents=True, exist_ok=True, mode=0o700)
        handle, part = tempfile.mkstemp(dir=place)
        with os.fdopen(handle, "wb") as file:
            file.write(hashlib.sha256(code).digest() + code)
        os.replace(part, place / name)
    except (OSError, RuntimeError) as error:
        if part is not None:
            with suppress(OSError):  # the folder may be gone, or can no longer be written to
                os.unlink(part)
        if not _warned:
            _warned = True
            warnings.warn(
                f"compiled CUDA kernels cannot be kept ({error}), so every process compiles them: "
                "set FASTGAR_CACHE_DIR to a folder that can be written to",
                RuntimeWarning,
                stacklevel=levels_to_the_caller(),
            )
