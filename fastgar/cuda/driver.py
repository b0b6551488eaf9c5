"""A GPU by way of CuPy: the only file that imports it."""

from __future__ import annotations

import re
import warnings
from collections import deque
from collections.abc import Sequence
from functools import cached_property
from math import prod
from typing import Any

import numpy as np

from . import cubins
from .device import Kernel, source

__all__ = ["OLDEST", "CupyDevice", "install"]

OLDEST_CUPY = 14  # the first that takes streams of other libraries by protocol
OLDEST = 75  # compute capability 7.5, Turing: what the kernels are compiled for and tested with
# Where a multiplication and an addition are one operation, the kernels say so; subnormals are kept.
ELF = b"\x7fELF"  # what machine code begins with
OPTIONS = ("--std=c++17", "--fmad=false", "-ftz=false")


def install(cuda: str | None) -> str:
    """Return the command that installs CuPy for a version of CUDA, such as "12.8"."""
    major = (cuda or "").partition(".")[0]
    if major in ("12", "13"):
        return f"pip install 'fastgar[cuda{major}]'"
    return "pip install 'fastgar[cuda12]', or 'fastgar[cuda13]' for a driver with CUDA 13"


def reinstall(cuda: str | None) -> str:
    """Return the commands for a machine where there is a CuPy, but not the right one.

    The packages for CUDA 12 and 13 write the same folder: beside each other neither works.
    """
    return f"pip uninstall -y cupy-cuda12x cupy-cuda13x, then {install(cuda)}"


def _import(cuda: str | None) -> Any:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # CuPy warns of what the next call raises
            import cupy
    except ModuleNotFoundError as error:
        if error.name is not None and error.name.partition(".")[0] == "cupy":
            raise ImportError(
                f"the rows are on a GPU, where fastgar needs CuPy: {install(cuda)}"
            ) from error
        raise ImportError(f"CuPy is broken ({error}): {reinstall(cuda)}") from error
    except OSError as error:  # it makes a folder for its own cache
        raise ImportError(
            f"CuPy cannot be imported ({error}): set CUPY_CACHE_DIR, and FASTGAR_CACHE_DIR, to "
            "folders that can be written to"
        ) from error
    except Exception as error:  # whatever a half-installed CuPy raises
        raise ImportError(f"CuPy is broken ({_reason(error)}): {reinstall(cuda)}") from error
    if int(cupy.__version__.partition(".")[0]) < OLDEST_CUPY:
        raise ImportError(
            f"CuPy {cupy.__version__} is too old, fastgar needs {OLDEST_CUPY} or later: "
            f"{reinstall(cuda)}"
        )
    return cupy


class _Stream:
    """A stream of any library, as CuPy takes it: by its address, or by the protocol."""

    __slots__ = ("ptr",)

    def __init__(self, ptr: int) -> None:
        self.ptr = ptr

    def __cuda_stream__(self) -> tuple[int, int]:
        return 0, self.ptr  # the version of the protocol, and the address


class CupyDevice:
    """See `device.Device`."""

    def __init__(self, name: str, cuda: str | None) -> None:
        cupy = _import(cuda)
        self.cupy, self.name, self.cuda = cupy, name, cuda
        self.runtime = cupy.cuda.runtime
        self.index = int(name.partition(":")[2] or 0)
        try:
            count = self.runtime.getDeviceCount()
        except Exception as error:
            raise RuntimeError(self._driver_sentence(error)) from error
        if self.index >= count:
            raise RuntimeError(f"there is no {name}: CuPy sees {count} GPUs")
        self.device = cupy.cuda.Device(self.index)
        capability = int(self.device.compute_capability)
        if capability < OLDEST:
            raise RuntimeError(
                f"{name} has compute capability {_dotted(capability)}, and "
                "fastgar's kernels need 7.5 (Turing) or later: move the rows to the CPU"
            )
        self.capability = capability
        self.processors = int(self.device.attributes["MultiProcessorCount"])
        self._kernels: dict[Kernel, Any] = {}
        self._streams: dict[int, _Stream] = {}
        self._sending: deque[tuple[Any, np.ndarray]] = deque()
        self._kept: list[Any] = []

    def _driver_sentence(self, error: Exception) -> str:
        try:
            has, wants = self.runtime.driverGetVersion(), self.runtime.runtimeGetVersion()
        except Exception:
            has = wants = 0
        if "InsufficientDriver" in str(error) and has:
            versions = [f"{v // 1000}.{v % 1000 // 10}" for v in (has, wants)]
            older = reinstall("12" if has < 13000 else None)
            return (
                f"the NVIDIA driver has CUDA {versions[0]} and this CuPy is built for CUDA "
                f"{versions[1]}: update the driver, or {older}"
            )
        if "InsufficientDriver" in str(error):  # CUDA's words for none at all, and misleading ones
            return "no GPU can be used: there is no NVIDIA driver"
        if "NoDevice" in str(error):
            return (
                "no GPU can be used: the NVIDIA driver sees none, or CUDA_VISIBLE_DEVICES hides it"
            )
        return f"no GPU can be used ({error})"

    def _stream(self, stream: int) -> _Stream:
        known = self._streams.get(stream)
        if known is None:
            if len(self._streams) > 256:
                self._streams.clear()
            known = self._streams[stream] = _Stream(stream)
        return known

    def launch(
        self, kernel: Kernel, grid: int, block: int, shared: int, args: Sequence[Any], stream: int
    ) -> None:
        function = self._kernels.get(kernel)
        runtime = self.runtime
        before = runtime.getDevice()
        if before != self.index:
            runtime.setDevice(self.index)
        try:
            if function is None:
                if runtime.streamIsCapturing(stream):
                    raise RuntimeError(
                        f"the kernel {kernel.name} is used for the first time while a CUDA graph "
                        "is being captured, which cannot load it: call the rule once before, "
                        "on rows in the same places"
                    )
                function = self._kernels[kernel] = self._load(kernel)
            function((grid,), (block,), args, shared, self._stream(stream))
        finally:
            if before != self.index:
                runtime.setDevice(before)

    def prepare(self, kernel: Kernel) -> None:
        if kernel not in self._kernels:
            with self.device:
                self._kernels[kernel] = self._load(kernel)

    def _load(self, kernel: Kernel) -> Any:
        """Return the function of a kernel, compiled now or by an earlier process.

        CuPy's own modules (`RawModule`) are compiled with ``-ftz=true``, whatever one asks for.
        """
        code = self._cubin(kernel)
        try:
            module = self.cupy.cuda.Module()
            module.load(code)
            return module.get_function(kernel.name)  # of the current device
        except Exception as error:
            raise RuntimeError(
                f"{_first_line(error)} (when {kernel.file} was loaded on {self.name})"
            ) from error

    def _cubin(self, kernel: Kernel) -> bytes:
        text = source(kernel.file, kernel.defines)
        architecture = self._architecture
        name = cubins.name(text, *OPTIONS, f"sm_{architecture}", self._nvrtc_version)
        known = cubins.load(name)
        if known is not None:
            return known
        try:
            made, _ = self.cupy.cuda.compiler.compile_using_nvrtc(
                text, OPTIONS, architecture, kernel.file, cache_in_memory=True
            )
        except self.cupy.cuda.compiler.CompileException as error:
            raise RuntimeError(
                f"NVRTC {self._nvrtc_version} cannot compile {kernel.file} for {self.name} "
                f"(compute capability {_dotted(self.capability)}): {_first_line(error)}"
            ) from error
        code: bytes = made
        if code.startswith(ELF):  # else CuPy has been told to make PTX, which others cannot load
            cubins.save(name, code)
        return code

    @cached_property
    def _nvrtc_version(self) -> str:
        try:
            major, minor = self.cupy.cuda.nvrtc.getVersion()
        except Exception as error:  # whatever CuPy raises where it cannot be loaded
            built = self.runtime.runtimeGetVersion() // 1000  # another CUDA's would not fit
            raise RuntimeError(
                f"CuPy cannot compile kernels, for which it needs NVRTC: {install(str(built))} "
                f"({_first_line(error)})"
            ) from error
        return f"{major}.{minor}"

    @cached_property
    def _architecture(self) -> str:
        """Return what to compile for: the latest that NVRTC knows and this GPU runs."""
        version = self._nvrtc_version
        known: tuple[int, ...] = tuple(self.cupy.cuda.nvrtc.getSupportedArchs())
        major = self.capability // 10
        runs = [each for each in known if each // 10 == major and each <= self.capability]
        if not runs:
            raise RuntimeError(
                f"NVRTC {version} compiles for compute capabilities up to {_dotted(max(known))}, "
                f"and {self.name} has {_dotted(self.capability)}: install a newer one with "
                f"{install(self.cuda)}"
            )
        return str(max(runs))

    def _current(self, stream: int) -> Any:
        """Return a context in which CuPy's memory is for work on this stream."""
        return self.cupy.cuda.Stream.from_external(self._stream(stream))

    def allocate(self, size: int, stream: int) -> tuple[int, Any]:
        with self.device, self._current(stream):
            memory = self.cupy.cuda.alloc(size)
        return memory.ptr, memory

    def array(self, shape: tuple[int, ...], dtype: str, stream: int) -> tuple[int, Any]:
        if dtype == "bfloat16":
            import ml_dtypes

            kind: Any = np.dtype(ml_dtypes.bfloat16)
        else:
            kind = np.dtype(dtype)
        # The library that imports it gives it back while its own streams may still read it (XLA
        # does). CuPy's pool would hand it to the next call; CUDA itself waits for the device first.
        memory = self.cupy.cuda.memory
        with self.device:
            place = memory.MemoryPointer(memory.Memory(prod(shape) * kind.itemsize), 0)
            made = self.cupy.ndarray(shape, kind, place)
        return made.data.ptr, made

    def read(self, address: int, into: np.ndarray, stream: int) -> None:
        with self.device:
            runtime = self.runtime
            kind = runtime.memcpyDeviceToHost
            runtime.memcpyAsync(into.ctypes.data, address, into.nbytes, kind, stream)
            runtime.streamSynchronize(stream)

    def write(self, address: int, values: np.ndarray, stream: int) -> None:
        self._forget_what_was_sent()
        with self.device:
            runtime = self.runtime
            kind = runtime.memcpyHostToDevice
            runtime.memcpyAsync(address, values.ctypes.data, values.nbytes, kind, stream)
            # Where the GPU reads the host's memory by itself, the values are not copied before
            # the call returns: they live until the event says that they have been read.
            read = self.cupy.cuda.Event(disable_timing=True)
            read.record(self._stream(stream))
            self._sending.append((read, values))

    def _forget_what_was_sent(self) -> None:
        """Drop the values of copies that are done: taken out first, as other threads do so too."""
        sending = self._sending
        while True:
            try:
                oldest = sending.popleft()
            except IndexError:  # there are none, or another thread has taken the last
                return
            if not oldest[0].done:
                sending.appendleft(oldest)
                return

    def synchronise(self, stream: int) -> None:
        with self.device:
            self.runtime.streamSynchronize(stream)

    def capturing(self, stream: int) -> bool:
        with self.device:
            found: bool = self.runtime.streamIsCapturing(stream)
        return found

    def keep(self, owner: Any) -> None:
        self._kept.append(owner)


def _first_line(error: Exception) -> str:
    words = str(error).strip()
    return words.splitlines()[0] if words else type(error).__name__


def _reason(error: Exception) -> str:
    """Return the cause that CuPy names in the middle of a page, or the first line."""
    found = re.search(r"Original error:\s*(.+)", str(error))
    return found.group(1).strip() if found else _first_line(error)


def _dotted(capability: int) -> str:
    return f"{capability // 10}.{capability % 10}"
