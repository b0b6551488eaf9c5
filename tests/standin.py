"""The real CuPy on a GPU that is not there: its memory is the host's, its kernels are emulated.

For a process of its own, which calls `install` before anything imports CuPy. Two things are put
into the place of NVIDIA's:

- the driver: a library libcuda.so.1 (`emulation/libcuda.cpp`) with what loads and launches kernels;
- the functions of CUDA's runtime that are called here. The runtime is linked into CuPy, and a
  driver alone does not satisfy it: it asks `cuGetExportTable` for functions without documentation
  (f8cff951-2146-8b4e-b9e2-fb469e7c0dd9, 6bd5fb6c-5bf4-e74a-8987-d93912fd9df9 and
  a094798c-2e74-2e74-93f2-0800200c0a66 for the runtime 13.2). With ones that do nothing, it lists
  the GPUs with all attributes, and then says that the driver is too old. But CuPy's modules find
  each other's functions in a table `__pyx_capi__`, when they are imported: there, those of
  `cupy_backends.cuda.api.runtime`, each of which is one call to the runtime, are others.

All else is CuPy itself: modules and functions, the packing of arguments, streams, events, devices,
the pool of memory, arrays.
"""

from __future__ import annotations

import atexit
import ctypes
import json
import os
import re
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable
from itertools import count, takewhile
from pathlib import Path
from typing import Any

import numpy as np
from emulation import COMPILER, HERE, build, guarded

GPUS, PROCESSORS, CAPABILITY = 2, 3, 90  # processors as in `emulated`, so that grids are the same
NOT_READY, NOT_FOUND, BAD_IMAGE, FAILED = 600, 500, 200, 719  # errors of CUDA
UNIT = 512  # bytes, to a multiple of which memory on a GPU is aligned
GARBAGE = 0xFF  # what fresh memory holds: NaN in every dtype
C_TYPES = {
    "PyObject *": ctypes.py_object,
    "intptr_t": ctypes.c_ssize_t,
    "size_t": ctypes.c_size_t,
    "int": ctypes.c_int,
    "unsigned int": ctypes.c_uint,
}

calls: list[tuple[Any, ...]] = []  # what CuPy asked for, with the current device at the end
said: list[str] = []  # by kernels that did something wrong
pending: set[int] = set()  # streams whose work is not done, as far as events can tell
capturing: set[int] = set()  # streams that are being captured
_current = threading.local()
_handles = count(1 << 20)
_kept: list[Any] = []  # what C holds addresses of


def _device() -> int:
    return getattr(_current, "device", 0)


def _record(*call: Any) -> None:
    calls.append((*call, _device()))


# ----------------------------------------------------------------------------------- the driver

_modules: dict[int, Any] = {}
_functions: dict[int, tuple[Any, str]] = {}
VOID, PLACE = ctypes.c_void_p, ctypes.POINTER(ctypes.c_void_p)


def _load(module: Any, image: bytes) -> int:
    try:
        file, defines = json.loads(image)
    except ValueError:
        return BAD_IMAGE
    module[0] = handle = next(_handles)
    _modules[handle] = build(file, defines)
    _record("load", file)
    return 0


def _unload(module: int) -> int:
    del _modules[module]
    return 0


def _get(function: Any, module: int, name: bytes) -> int:
    if name.decode() not in _modules[module]:
        return NOT_FOUND
    function[0] = handle = next(_handles)
    _functions[handle] = (_modules[module], name.decode())
    return 0


def _launch(function: int, shape: Any, shared: int, stream: int | None, arguments: Any) -> int:
    module, name = _functions[function]
    _record("launch", name, shape[:6], shared, stream or 0)
    try:
        found = module.launch_packed(name, shape[:6], shared, VOID(arguments))
    except Exception as error:
        found = str(error), 0
    if found:
        said.append(f"{module.name}, {name}: {found[0]}")
    return FAILED if found else 0


def _driver() -> None:
    """Load the library under the name by which CuPy will ask for it."""
    folder = tempfile.mkdtemp()
    place = os.path.join(folder, "libcuda.so.1")
    flags = ["-shared", "-fPIC", "-Wl,-soname,libcuda.so.1", "-o", place]
    subprocess.run([str(COMPILER), *flags, str(HERE / "libcuda.cpp")], check=True)
    library = ctypes.CDLL(place, ctypes.RTLD_GLOBAL)
    uint = ctypes.c_uint
    entries: list[tuple[str, Callable[..., int], tuple[Any, ...]]] = [
        ("load", _load, (PLACE, ctypes.c_char_p)),
        ("unload", _unload, (VOID,)),
        ("get", _get, (PLACE, VOID, ctypes.c_char_p)),
        ("launch", _launch, (VOID, ctypes.POINTER(uint), uint, VOID, VOID)),
    ]
    for name, function, kinds in entries:
        entry = ctypes.CFUNCTYPE(ctypes.c_int, *kinds)(function)
        _kept.append(entry)
        VOID.in_dll(library, f"fg_{name}").value = ctypes.cast(entry, VOID).value
    os.unlink(place)
    os.rmdir(folder)


# ---------------------------------------------------------------------------------- the runtime

_memory: dict[int, Any] = {}
_events: dict[int, int | None] = {}  # the stream that each event waits for


class Runtime:
    """The functions that are called; what returns nothing to CuPy returns True here.

    ctypes takes one reference too many from None.
    """

    def _ensure_context(self) -> bool:
        _record("context")
        return True

    def driverGetVersion(self) -> int:
        return 13020

    def getDeviceCount(self) -> int:
        return GPUS

    def getDevice(self) -> int:
        return _device()

    def setDevice(self, device: int) -> bool:
        _current.device = device
        return True

    def deviceGetAttribute(self, attribute: int, device: int) -> int:
        major, minor, processors = 75, 76, 16
        known = {major: CAPABILITY // 10, minor: CAPABILITY % 10, processors: PROCESSORS}
        return known.get(attribute, 0)

    def malloc(self, size: int) -> int:
        _record("malloc", size)
        whole = -(-max(size, 1) // UNIT) * UNIT
        memory = guarded(np.full(whole, GARBAGE, np.uint8))
        place: int = memory.ctypes.data
        _memory[place] = memory
        return place

    def free(self, place: int) -> bool:
        del _memory[place]
        return True

    def hostAlloc(self, size: int, flags: int) -> int:
        return self.malloc(size)

    def freeHost(self, place: int) -> bool:
        return self.free(place)

    def pointerGetMemoryType(self, place: int) -> int:
        return 0  # neither pinned nor on a GPU, as far as CuPy needs to know

    def memcpyAsync(self, to: int, source: int, size: int, kind: int, stream: int) -> bool:
        _record("copy", kind, size, stream)
        ctypes.memmove(to, source, size)
        return True

    def streamSynchronize(self, stream: int) -> bool:
        _record("wait", stream)
        return True

    def streamIsCapturing(self, stream: int) -> int:
        return stream in capturing

    def eventCreateWithFlags(self, flags: int) -> int:
        handle = next(_handles)
        _events[handle] = None
        return handle

    def eventDestroy(self, event: int) -> bool:
        del _events[event]
        return True

    def eventRecord(self, event: int, stream: int) -> bool:
        _record("event", stream)
        _events[event] = stream
        return True

    def eventQuery(self, event: int) -> int:
        return NOT_READY if _events[event] in pending else 0


def _runtime() -> None:
    from cupy_backends.cuda.api import runtime

    api = ctypes.pythonapi
    api.PyCapsule_GetName.restype = ctypes.c_char_p
    api.PyCapsule_GetName.argtypes = [ctypes.py_object]
    api.PyCapsule_New.restype = ctypes.py_object
    api.PyCapsule_New.argtypes = [VOID, ctypes.c_char_p, VOID]
    ours = Runtime()
    for name in [name for name in vars(Runtime) if name.strip("_") and not name.startswith("__")]:
        function = getattr(ours, name)
        signature = api.PyCapsule_GetName(runtime.__pyx_capi__[name])
        entry = _entry(signature.decode(), function)
        _kept.extend((signature, entry))
        address = ctypes.cast(entry, VOID).value
        runtime.__pyx_capi__[name] = api.PyCapsule_New(address, signature, None)
        if hasattr(runtime, name):  # what Python calls
            setattr(runtime, name, function)


def _entry(signature: str, function: Callable[..., Any]) -> Any:
    """Return a function of C with a signature such as ``intptr_t (size_t, int skip)``."""
    match = re.fullmatch(r"(.+?) ?\((.*)\)", signature)
    assert match, signature
    kinds = [kind.strip() for kind in match[2].split(",") if kind.strip() != "void"]
    skip = bool(kinds) and kinds[-1] == "int __pyx_skip_dispatch"
    result, *arguments = (C_TYPES[kind] for kind in [match[1], *kinds[: len(kinds) - skip]])
    if not skip:
        return ctypes.PYFUNCTYPE(result, *arguments)(function)

    def called(*given: Any) -> Any:
        return function(*given[:-1])

    return ctypes.PYFUNCTYPE(result, *arguments, ctypes.c_int)(called)


# --------------------------------------------------------------------------------- the compiler


def _compile(text: str, options: Any, arch: str, filename: str, **rest: Any) -> tuple[bytes, None]:
    """Return what `_load` builds the same kernels from: their file, and its macros."""
    lines = takewhile(lambda line: line.startswith("#define "), text.splitlines())
    defines = dict(line.split(" ", 2)[1:] for line in lines)
    return json.dumps([filename, defines]).encode(), None


def install(cache: Path) -> None:
    """Have CuPy, imported now, find GPUs. Machine code goes to `cache`."""
    assert "cupy" not in sys.modules
    os.environ["FASTGAR_CACHE_DIR"] = str(cache)
    _driver()
    _runtime()
    import cupy

    cupy.cuda.compiler.compile_using_nvrtc = _compile
    cupy.cuda.nvrtc.getVersion = lambda: (13, 0)
    cupy.cuda.nvrtc.getSupportedArchs = lambda: [75, 80, CAPABILITY, 120]
    # CuPy frees what it has when Python has nearly ended, and would call functions that are gone.
    atexit.register(os._exit, 0)
