"""A GPU by way of CuPy: the only file that imports it."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np

from .device import Kernel, source

__all__ = ["OLDEST", "CupyDevice", "install"]

OLDEST_CUPY = 14  # the first that takes streams of other libraries by protocol
OLDEST = 75  # compute capability 7.5, Turing: what the kernels are compiled for and tested with
# Where a multiplication and an addition are one operation, the kernels say so.
OPTIONS = ("--std=c++17", "--fmad=false")


def install(cuda: str | None) -> str:
    """Return the command that installs CuPy for a version of CUDA, such as "12.8"."""
    major = (cuda or "").partition(".")[0]
    if major in ("12", "13"):
        return f"pip install 'fastgar[cuda{major}]'"
    return "pip install 'fastgar[cuda12]', or 'fastgar[cuda13]' for a driver with CUDA 13"


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
        raise ImportError(f"CuPy is broken ({error}): {install(cuda)}") from error
    except Exception as error:  # whatever a half-installed CuPy raises
        raise ImportError(f"CuPy is broken ({error}): {install(cuda)}") from error
    if int(cupy.__version__.partition(".")[0]) < OLDEST_CUPY:
        raise ImportError(
            f"CuPy {cupy.__version__} is too old, fastgar needs {OLDEST_CUPY} or later: "
            f"{install(cuda)}"
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
                f"{name} has compute capability {capability // 10}.{capability % 10}, and "
                "fastgar's kernels need 7.5 (Turing) or later: move the rows to the CPU"
            )
        self.capability = capability
        self.processors = int(self.device.attributes["MultiProcessorCount"])
        self._kernels: dict[Kernel, Any] = {}
        self._streams: dict[int, _Stream] = {}

    def _driver_sentence(self, error: Exception) -> str:
        try:
            has, wants = self.runtime.driverGetVersion(), self.runtime.runtimeGetVersion()
        except Exception:
            has = wants = 0
        if "InsufficientDriver" in str(error) and has:
            versions = [f"{v // 1000}.{v % 1000 // 10}" for v in (has, wants)]
            older = install("12" if has < 13000 else None)
            return (
                f"the NVIDIA driver has CUDA {versions[0]} and this CuPy is built for CUDA "
                f"{versions[1]}: update the driver, or {older}"
            )
        if "InsufficientDriver" in str(error) or "NoDevice" in str(error):
            return f"no GPU can be used: there is no NVIDIA driver, or it sees none ({error})"
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
                function = self._kernels[kernel] = self._compile(kernel)
            function((grid,), (block,), args, shared, self._stream(stream))
        finally:
            if before != self.index:
                runtime.setDevice(before)

    def _compile(self, kernel: Kernel) -> Any:
        try:
            text = source(kernel.file, kernel.defines)
            module = self.cupy.RawModule(code=text, options=OPTIONS)
            return module.get_function(kernel.name).kernel  # of the current device
        except FileNotFoundError:
            raise
        except Exception as error:
            words = str(error).strip()
            first = words.splitlines()[0] if words else type(error).__name__
            if isinstance(error, self.cupy.cuda.compiler.CompileException):
                raise RuntimeError(
                    f"CuPy's compiler cannot make {kernel.file} for {self.name} (compute "
                    f"capability {self.capability // 10}.{self.capability % 10}): install a newer "
                    f"one with {install(self.cuda)} ({first})"
                ) from error
            raise RuntimeError(
                f"CuPy cannot compile kernels, for which it needs NVRTC: {install(self.cuda)} "
                f"({first})"
            ) from error

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
        with self.device, self._current(stream):
            made = self.cupy.empty(shape, kind)
        return made.data.ptr, made

    def read(self, address: int, into: np.ndarray, stream: int) -> None:
        with self.device:
            runtime = self.runtime
            kind = runtime.memcpyDeviceToHost
            runtime.memcpyAsync(into.ctypes.data, address, into.nbytes, kind, stream)
            runtime.streamSynchronize(stream)

    def write(self, address: int, values: np.ndarray, stream: int) -> None:
        with self.device:  # pageable memory: CUDA keeps a copy before this returns
            runtime = self.runtime
            kind = runtime.memcpyHostToDevice
            runtime.memcpyAsync(address, values.ctypes.data, values.nbytes, kind, stream)

    def synchronise(self, stream: int) -> None:
        with self.device:
            self.runtime.streamSynchronize(stream)
