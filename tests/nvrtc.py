"""NVIDIA's runtime compiler by ctypes: it compiles for any GPU on a machine that has none."""

from __future__ import annotations

import ctypes
import importlib.util
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

from fastgar.cuda.driver import OPTIONS as OURS

KERNELS = Path(__file__).resolve().parent.parent / "kernels"
# As they are compiled for use, and a report of registers.
OPTIONS = (*OURS, "--ptxas-options=-v")


@cache
def library() -> Any:
    """Return the library in the wheel nvidia-cuda-nvrtc, or None where it is not installed."""
    spec = importlib.util.find_spec("nvidia")
    for folder in spec.submodule_search_locations or () if spec else ():
        for place in sorted(Path(folder).glob("*/lib/libnvrtc.so.*"), reverse=True):
            if "alt" not in place.name:
                return ctypes.CDLL(str(place))
    return None


def compiled(file: str, defines: Mapping[str, object], *options: str) -> tuple[bytes, str]:
    """Compile a file of `kernels/`; return the machine code and what the compiler said of it."""
    nvrtc = library()
    lines = "".join(f"#define {name} {value}\n" for name, value in defines.items())
    text = f'{lines}#line 1 "{file}"\n{(KERNELS / file).read_text()}'
    program = ctypes.c_void_p()
    headers = sorted(KERNELS.glob("*.cuh"))
    texts = (ctypes.c_char_p * len(headers))(*(h.read_bytes() for h in headers))
    names = (ctypes.c_char_p * len(headers))(*(h.name.encode() for h in headers))
    nvrtc.nvrtcCreateProgram(
        ctypes.byref(program), text.encode(), file.encode(), len(headers), texts, names
    )
    try:
        flags = [flag.encode() for flag in options]
        failed = nvrtc.nvrtcCompileProgram(
            program, len(flags), (ctypes.c_char_p * len(flags))(*flags)
        )
        log = _text(program, nvrtc.nvrtcGetProgramLogSize, nvrtc.nvrtcGetProgramLog)
        said = log.rstrip(b"\0").decode()
        if failed:
            raise RuntimeError(f"{file} with {dict(defines)}:\n{said[:4000]}")
        return _text(program, nvrtc.nvrtcGetCUBINSize, nvrtc.nvrtcGetCUBIN), said
    finally:
        nvrtc.nvrtcDestroyProgram(ctypes.byref(program))


def _text(program: Any, size_of: Any, get: Any) -> bytes:
    size = ctypes.c_size_t()
    size_of(program, ctypes.byref(size))
    buffer = ctypes.create_string_buffer(size.value)
    get(program, buffer)
    return buffer.raw
