"""Kernels of `kernels/` on the host's processor: the same text, compiled by its C++ compiler.

>>> module = build("columns.cu", {"FG_DTYPE": 2, ...})
>>> module.launch("columns", grid=4, block=128, args=[X, X.strides[0], ...], shared=0)

`cuda_host.h` says what is checked on the way. A launch that does something wrong raises
`EmulationError`. Arrays made by `guarded` end (or begin) at memory that cannot be touched.

Blocks and threads take turns in a shuffled order. It depends on the test that runs and on the
number of launches before in that test, so a test that fails fails again; the environment variable
FASTGAR_EMULATION_SEED gives every launch the seed that it names.
"""

from __future__ import annotations

import ctypes
import hashlib
import mmap
import os
import re
import shutil
import subprocess
import sys
import tempfile
import threading
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

__all__ = [
    "COMPILER", "KERNELS", "EmulationError", "Module", "build", "compiled", "guarded",
    "needs_compiler", "preprocessed", "sanitizer_environment",
]  # fmt: skip

HERE = Path(__file__).resolve().parent
KERNELS = HERE.parent.parent / "kernels"
MACHINE = [
    HERE / name for name in ("machine.cpp", "machine.h", "fibers.h", "races.h", "cuda_host.h")
]
COMPILER = next(
    (c for c in (os.environ.get("CXX"), "g++", "clang++", "c++") if c and shutil.which(c)), None
)
FLAGS = ["-std=c++17", "-O1", "-fPIC", "-ffp-contract=off", "-w"]
TRAPS = ["-fsanitize=alignment,bounds,shift,integer-divide-by-zero,null,return"]
TRAPS += ["-fsanitize-undefined-trap-on-error"]
ADDRESS = ["-fsanitize=address,undefined", "-fno-sanitize=float-divide-by-zero"]
ADDRESS += ["-fno-sanitize-recover=all", "-DFG_SANITIZE=1", "-g"]
RACES = ["-DFG_RACES=1", "-g1"]
THREAD = ["-fsanitize=thread", "--param", "tsan-distinguish-volatile=1", *RACES]
# What checks a kernel, and how the machine under it is compiled: it must not be watched itself.
SANITIZERS = {None: (TRAPS, TRAPS), "address": (ADDRESS, ADDRESS), "thread": (THREAD, RACES)}

PAGE = mmap.PAGESIZE
ORDERS = {"ascending": 0, "descending": 1, "shuffled": 2}
_lock = threading.Lock()
_libc = ctypes.CDLL(None, use_errno=True)


class EmulationError(RuntimeError):
    """A kernel did what it must not, or could not be compiled."""


def needs_compiler() -> Any:
    """Return the pytest mark that skips tests where no C++ compiler is installed."""
    import pytest

    return pytest.mark.skipif(
        COMPILER is None or sys.platform != "linux",
        reason="running kernels on the host needs Linux and a C++ compiler (g++ or clang++)",
    )


def _folder() -> Path:
    name = f"fastgar-emulation-{os.getuid()}"
    place = os.environ.get("FASTGAR_EMULATION_CACHE") or os.path.join(tempfile.gettempdir(), name)
    folder = Path(place)
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    return folder


def _run(command: list[str], text: str) -> str:
    plain = {name: value for name, value in os.environ.items() if name != "LD_PRELOAD"}
    done = subprocess.run(command, input=text, capture_output=True, text=True, env=plain)
    if done.returncode:
        raise EmulationError(f"{' '.join(command)}\n{done.stderr[:6000]}")
    return done.stdout


def _key(texts: list[str]) -> str:
    return hashlib.sha256("\0".join(texts).encode()).hexdigest()[:24]


def _machine(flags: list[str]) -> Path:
    """Compile the fibers, once."""
    texts = [str(COMPILER), *flags, *(f.read_text() for f in MACHINE)]
    machine = _folder() / f"machine-{_key(texts)}.o"
    if not machine.exists():
        part = machine.with_suffix(f".{os.getpid()}-{threading.get_ident()}")
        _run([str(COMPILER), "-c", *flags, str(MACHINE[0]), "-o", str(part)], "")
        os.replace(part, machine)
    return machine


def compiled(
    file: str | Path,
    defines: Mapping[str, object] | None = None,
    *,
    sanitize: str | None = None,
    flush: bool = False,
    text: str | None = None,
) -> Path:
    """Return the library that `build` loads; `text` takes the place of the file's own."""
    path = Path(file) if Path(file).is_absolute() else KERNELS / file
    lines = "".join(f"#define {name} {value}\n" for name, value in (defines or {}).items())
    source = path.read_text() if text is None else text
    more = FLAGS + ["-DFG_FLUSH=1"] * flush
    flags, machine_flags = (more + own for own in SANITIZERS[sanitize])
    texts = [str(COMPILER), " ".join(flags), lines, source]
    texts += [f.read_text() for f in [*MACHINE, *sorted(KERNELS.glob("*.cuh"))]]
    library = _folder() / f"{path.stem}-{_key(texts)}.so"
    if not library.exists():
        body = f'{lines}#line 1 "{path.name}"\n{source}'
        names = re.findall(
            r"__global__[^;{]*?\bvoid\b[^;{]*?(\w+)\s*\((?!\()", _plain(preprocessed(body))
        )
        exports = "".join(f"FG_EXPORT({name})\n" for name in names)
        unit = f'#include "{HERE / "cuda_host.h"}"\n{body}\n{exports}'
        part = library.with_suffix(f".{os.getpid()}-{threading.get_ident()}")
        machine = str(_machine(machine_flags))
        source_ = ["-x", "c++", f"-I{KERNELS}", "-", "-x", "none", machine]
        _run([str(COMPILER), "-shared", *flags, *source_, "-o", str(part)], unit)
        os.replace(part, library)
    return library


def preprocessed(text: str) -> str:
    """Return what the preprocessor makes of the text of a kernel."""
    if COMPILER is None:
        raise EmulationError("no C++ compiler was found")
    return _run([COMPILER, "-E", "-P", "-w", "-x", "c++", f"-I{KERNELS}", "-"], text)


def build(
    file: str | Path,
    defines: Mapping[str, object] | None = None,
    *,
    sanitize: str | None = None,
    flush: bool = False,
) -> Module:
    """Compile a file of `kernels/` (or a path) with these macros; compiled before: load it.

    `sanitize`: with the sanitizer of this name, "address" or "thread", for a process that
    `sanitizer_environment` describes. `flush`: as -ftz=true compiles it, on x86-64 (machine.cpp).
    """
    return Module(compiled(file, defines, sanitize=sanitize, flush=flush), Path(file).name)


def _plain(text: str) -> str:
    return re.sub(r"__launch_bounds__\s*\([^)]*\)", "", text)


class _Launch(ctypes.Structure):
    """As machine.h has it."""

    _fields_ = (
        ("shape", ctypes.POINTER(ctypes.c_uint)),
        ("shared", ctypes.c_ulong),
        ("order", ctypes.c_int),
        ("seed", ctypes.c_ulonglong),
        ("first_block", ctypes.c_ulonglong),
        ("last_block", ctypes.c_ulonglong),
    )


_launches = ("", 0)  # the test that runs, and how many launches it had


def _seed(kernel: str) -> int:
    """Return what shuffles the next launch."""
    global _launches
    given = os.environ.get("FASTGAR_EMULATION_SEED")
    if given:
        return int(given)
    test = os.environ.get("PYTEST_CURRENT_TEST", "").rpartition("/")[2]
    _launches = (test, _launches[1] + 1 if test == _launches[0] else 1)
    return zlib.crc32(f"{test} {kernel} {_launches[1]}".encode())


_stacks: list[int] = []  # where the free stacks of all modules are, once there is a module


class Module:
    """A compiled file of kernels."""

    def __init__(self, library: Path, name: str) -> None:
        self.library = ctypes.CDLL(str(library))
        self.library.fg_stacks.restype = ctypes.c_void_p
        # A process may have 65,530 mappings, and each of up to 1024 stacks takes two.
        if not _stacks:
            _stacks.append(self.library.fg_stacks())
        self.library.fg_share_stacks(ctypes.c_void_p(_stacks[0]))
        self.library.fg_bad_address.restype = ctypes.c_void_p
        self.library.fg_message.restype = ctypes.c_char_p
        self.name = name

    def __contains__(self, kernel: str) -> bool:
        return hasattr(self.library, f"fg_launch_{kernel}")

    def launch(
        self,
        kernel: str,
        grid: int | Sequence[int],
        block: int | Sequence[int],
        args: Sequence[Any],
        shared: int = 0,
        order: str = "shuffled",
        seed: int | None = None,
        only: tuple[int, int] = (0, 1 << 62),
    ) -> None:
        """Run a kernel.

        Integers arrive as long long (or as addresses), floats as double, `numpy.void` as a struct,
        arrays as the address of their data and None as a null pointer. `order` is that of blocks
        and threads, and follows from `seed` when they are shuffled; of `only`, the blocks from the
        first number up to the second run.
        """
        values: list[Any] = []
        kinds = ""
        for argument in args:
            if argument is None or isinstance(argument, np.ndarray | ctypes.c_void_p):
                place = argument.ctypes.data if isinstance(argument, np.ndarray) else argument
                value = place if isinstance(place, ctypes.c_void_p) else ctypes.c_void_p(place)
                values.append(value)
                kinds += "p"
            elif isinstance(argument, np.void):  # a struct, by value
                values.append(ctypes.create_string_buffer(argument.tobytes()))
                kinds += "s"
            elif isinstance(argument, float | np.floating):
                values.append(ctypes.c_double(float(argument)))
                kinds += "d"
            else:
                values.append(ctypes.c_longlong(int(argument)))
                kinds += "i"
        places = (ctypes.c_void_p * max(len(values), 1))(*map(ctypes.addressof, values))
        shape = [*_three(grid), *_three(block)]
        found = self.launch_packed(kernel, shape, shared, places, kinds, order, seed, only)
        if found:
            message, bad = found
            where = _nearest(bad, args) if bad else ""
            raise EmulationError(f"{self.name}, {kernel}: {message}{where}")

    def launch_packed(
        self,
        kernel: str,
        shape: Sequence[int],
        shared: int,
        places: Any,
        kinds: str | None = None,
        order: str = "shuffled",
        seed: int | None = None,
        only: tuple[int, int] = (0, 1 << 62),
    ) -> tuple[str, int] | None:
        """Run a kernel whose arguments lie at these places, as a driver gets them.

        Returns what it did wrong, if anything, and at which address. Kinds that are not known are
        not checked.
        """
        entry = getattr(self.library, f"fg_launch_{kernel}")
        entry.restype = None
        if min(shape) < 1 or np.prod(shape[3:]) > 1024 or max(shape[1:3]) > 65535:
            grid, block = shape[:3], shape[3:]
            raise EmulationError(f"{kernel}: no GPU takes the grid {grid} of blocks {block}")
        if shape[0] >= 1 << 31 or shared > 48 << 10:  # more only where a kernel asks for it
            raise EmulationError(f"{kernel}: no GPU takes {shape[0]} blocks of {shared} bytes each")
        with _lock:
            seed = _seed(kernel) if seed is None else seed
            asked = _Launch((ctypes.c_uint * 6)(*shape), shared, ORDERS[order], seed, *only)
            entry(ctypes.byref(asked), places, None if kinds is None else kinds.encode())
            message, bad = self.library.fg_message(), self.library.fg_bad_address()
        if not message:
            return None
        return message.decode() + f" (seed {seed})" * (order == "shuffled"), bad


def _three(shape: int | Sequence[int]) -> list[int]:
    sizes = [int(shape)] if isinstance(shape, int | np.integer) else [int(s) for s in shape]
    return [*sizes, 1, 1][:3]


def _nearest(bad: int, args: Sequence[Any]) -> str:
    """Say where an address lies beside the arrays."""
    best = None
    for position, array in enumerate(args):
        if isinstance(array, np.ndarray):
            begin, size = array.ctypes.data, array.nbytes
            apart = max(begin - bad, bad - (begin + size - 1), 0)
            if best is None or apart < best[0]:
                best = apart, position, bad - begin, size
    if best is None or best[0] > 1 << 20:
        return ""
    return f" (byte {best[2]} of argument {best[1]}, which has {best[3]} bytes)"


def guarded(array: np.ndarray, *, at: str = "end") -> np.ndarray:
    """Return a copy of an array that ends ("end") or begins ("start") at an unreadable page."""
    array = np.asarray(array)
    size = -(-max(array.nbytes, 1) // PAGE) * PAGE
    memory = mmap.mmap(-1, size + 2 * PAGE)
    base = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    for page in (base, base + PAGE + size):
        if _libc.mprotect(ctypes.c_void_p(page), ctypes.c_size_t(PAGE), 0):
            raise OSError(ctypes.get_errno(), "mprotect")
    offset = PAGE + (size - array.nbytes if at == "end" else 0)
    flat = np.frombuffer(memory, dtype=np.uint8, count=array.nbytes, offset=offset)
    result = flat.view(array.dtype).reshape(array.shape)
    result[...] = array
    return result


def sanitizer_environment(sanitizer: str = "address") -> dict[str, str] | None:
    """Return the environment of a process that may load sanitized modules, if there can be one."""
    if COMPILER is None:
        return None
    library = {"address": "libasan.so", "thread": "libtsan.so"}[sanitizer]
    found = subprocess.run(
        [COMPILER, f"-print-file-name={library}"], capture_output=True, text=True
    ).stdout.strip()
    if not os.path.isabs(found):
        return None
    return {
        **os.environ,
        "LD_PRELOAD": os.path.realpath(found),
        "ASAN_OPTIONS": "detect_leaks=0:detect_stack_use_after_return=0:use_sigaltstack=0",
        "TSAN_OPTIONS": "halt_on_error=1:history_size=0:detect_deadlocks=0",
        "OPENBLAS_NUM_THREADS": "1",
    }
