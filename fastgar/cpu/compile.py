"""How Numba is used here: classes for kernels and for functions of n x n numbers, and their parts.

Kernels take addresses and integers, never arrays: one specialisation serves every layout, and
nothing can write to an input by accident. What must be a compile-time constant (number of rows,
ranks, dtype) is an argument typed as an integer literal, so that a kernel is compiled once per
combination and found again in the disk cache by later processes.
"""

from __future__ import annotations

import hashlib
import pickle
import warnings
from collections.abc import Callable
from functools import cache
from pathlib import Path
from time import perf_counter
from typing import Any, TypeVar, cast

import numpy as np
from llvmlite import binding
from numba import config, njit, typeof, types
from numba.core.caching import FunctionCache
from numba.core.compiler_lock import global_compiler_lock
from numba.core.runtime import nrt
from numba.extending import register_jitable

from fastgar.errors import levels_to_the_caller

__all__ = ["SHORT", "Kernel", "Tiered", "address_in_c", "jit", "part", "step"]

F = TypeVar("F", bound=Callable[..., Any])

# What machine code is made of: what these import besides makes no difference to it.
COMPILED = ("cpu/*.py", "search/*.py", "dtypes.py", "networks.py", "statistic.py")
INTERPRETED = 68  # points up to which functions of them may be interpreted: 64 rows, references
SHORT = 0.001, 0.01  # what `Tiered` takes for functions of a millisecond or less


class _Cache(FunctionCache):
    """Numba's cache on disk, which a full disk or a damaged file does not stop.

    It knows the code of other functions that went into one only by `_fingerprint`.
    """

    def _index_key(self, sig: Any, codegen: Any) -> Any:
        return *cast(Any, super())._index_key(sig, codegen), _fingerprint()

    def load_overload(self, signature: Any, target_context: Any) -> Any:
        # Numba would first import all that it compiles with, and scipy, and compile its allocator:
        # 0.3 s that machine code read from disk has no use for. What that does need are the
        # functions of Numba's runtime by name.
        try:
            _name_runtime()
            return cast(Any, self)._load_overload(signature, target_context)
        except Exception as error:  # whatever half a file makes a reader do
            _say_uncached(f"what is in {self.cache_path} cannot be read ({error!r})")
            return None

    def save_overload(self, signature: Any, data: Any) -> None:
        try:
            cast(Any, super()).save_overload(signature, data)
        except (OSError, EOFError, ValueError, pickle.UnpicklingError) as error:
            _say_uncached(f"{self.cache_path} cannot be written to ({error!r})")


@cache
def _name_runtime() -> None:
    """Let machine code find Numba's runtime, as Numba itself does before it compiles."""
    helpers: dict[str, int] = cast(Any, nrt)._nrt.c_helpers
    for name, place in helpers.items():
        binding.add_symbol(name if name.startswith("_") else f"NRT_{name}", place)


def jit(function: F, regroup: bool = False) -> F:
    """Compile `function` at its first call, without the GIL, and cache it on disk if possible.

    The compiler may `regroup` sums, so that they are quicker and not what an interpreter has.
    """
    fast = {"reassoc", "nsz", "contract"} if regroup else False
    dispatcher: Any = njit(nogil=True, fastmath=fast)(function)
    make: Any = _Cache
    try:
        dispatcher._cache = make(function)
    except RuntimeError:  # no folder to cache in: read-only package and read-only home
        _say_uncached("no folder for it can be written to")
    return cast(F, dispatcher)


def part(function: Callable[..., Any]) -> Any:
    """Compile `function` as a part of the kernels that call it (the disk cache keeps those)."""
    return njit(nogil=True, inline="always")(function)


def step(function: F) -> F:
    """Let tiered functions call this one: as it is where they are interpreted, else compiled."""
    registered: F = register_jitable(function)
    return registered


class Tiered:
    """A function of n x n numbers that Python interprets at first, as compiling it takes long.

    Its machine code is read from the disk, if it is there, once the interpreter has taken `read`
    seconds; and made once it has taken so long that this is likely to pay. The numbers are the
    same, to the last bit.

    The first argument has a line for each of the n rows. With many of them nothing is interpreted.
    """

    def __init__(self, function: Callable[..., Any], read: float = 0.0, make: float = 0.1) -> None:
        self._function = function
        self._compiled: Any = jit(function)
        self._spent, self._read, self._make = 0.0, read, make
        self._sought = self._ready = False

    def __call__(self, *arguments: Any) -> Any:
        if self._ready:
            return self._compiled(*arguments)
        if self._spent >= self._read and not self._sought:
            self._sought = True
            self._ready = self._found(tuple(map(typeof, arguments)))
        if self._spent >= self._make or len(arguments[0]) > INTERPRETED:
            self._ready = True
        if self._ready:
            return self._compiled(*arguments)
        begin = perf_counter()
        with np.errstate(all="ignore"):
            result = self._function(*arguments)
        self._spent += perf_counter() - begin
        return result

    def _found(self, signature: tuple[Any, ...]) -> bool:
        """Return whether there was machine code for these arguments on the disk: it is loaded."""
        dispatcher = self._compiled
        with global_compiler_lock:
            code = dispatcher._cache.load_overload(signature, dispatcher.targetctx)
            if code is None or signature in dispatcher.overloads:
                return code is not None
            dispatcher.targetctx.insert_user_function(code.entry_point, code.fndesc, [code.library])
            dispatcher.add_overload(code)
            return True


_said: list[str] = []


def _say_uncached(why: str) -> None:
    """Warn once in a process."""
    if not _said:
        _said.append(why)
        warnings.warn(
            f"fastgar cannot cache its compiled kernels on disk, as {why}: each process compiles "
            "them again (0.1 to 2 s each). Set NUMBA_CACHE_DIR to a writable folder.",
            RuntimeWarning,
            stacklevel=levels_to_the_caller(),
        )


@cache
def _fingerprint() -> int:
    """Return a hash of all sources of machine code: Numba sees edits in a function's file only."""
    digest = hashlib.blake2b(digest_size=6)
    package = Path(__file__).parent.parent
    for pattern in COMPILED:
        for source in sorted(package.glob(pattern)):
            digest.update(source.read_bytes())
    return int.from_bytes(digest.digest(), "big")


def _require_compiler() -> None:
    if cast(Any, config).DISABLE_JIT:
        raise RuntimeError(
            "NUMBA_DISABLE_JIT is set, but the kernels of fastgar only run compiled: unset it "
            "(coverage of your own Python code does not need it)"
        )


_compiled: dict[Callable[..., Any], Any] = {}


@cache
def address_in_c(entry: Callable[..., Any]) -> int | None:
    """Return where C code can call a kernel with 64-bit integers; None if this is no kernel."""
    compiled = _compiled.get(entry)
    if compiled is None:
        return None
    name = compiled.fndesc.llvm_cfunc_wrapper_name
    return cast(int, compiled.library.get_pointer_to_function(name))


class Kernel:
    """A function of integers whose last arguments are compile-time constants.

    `function(*run_time, *constants)`: calling `specialised(*constants)` returns the
    compiled entry point, to be called with the same arguments.
    """

    def __init__(self, function: Callable[..., Any], run_time: int) -> None:
        self._function = jit(function)
        self._run_time = run_time
        self._entries: dict[tuple[int, ...], Callable[..., Any]] = {}

    def known(self, *constants: int) -> Callable[..., Any] | None:
        """Return the entry point for these constants if this process has it already."""
        return self._entries.get(constants)

    def specialised(self, *constants: int) -> Callable[..., Any]:
        """Return the entry point for these constants, from memory, disk or the compiler."""
        try:
            return self._entries[constants]
        except KeyError:
            _require_compiler()
            literal: Any = types.literal
            literals = [literal(value) for value in constants]
            signature = (types.intp,) * self._run_time + tuple(literals)
            dispatcher = cast(Any, self._function)
            entry = dispatcher.compile(signature)
            self._entries[constants] = entry
            _compiled[entry] = dispatcher.overloads[signature]
            return cast(Callable[..., Any], entry)
