"""A GPU that is not there: `fastgar.cuda` on host memory, with kernels run by `emulation`.

`torch_on_gpu(monkeypatch)` makes torch's CPU tensors count as tensors on "cuda:0"; `Away` is an
array of an unknown library on that device, known through ``__dlpack__`` alone.
"""

from __future__ import annotations

import ctypes
from types import SimpleNamespace
from typing import Any

import numpy as np
from emulation import build, guarded

from fastgar import capsules, libraries
from fastgar.cuda import connect as devices

NAME = "cuda:0"
TAKEN = {int, float, np.void}  # what CuPy takes as arguments: not what inherits from them
GARBAGE = 0xFF  # what fresh memory holds: NaN in every dtype


def _scratch(size: int) -> tuple[int, Any]:
    """Return garbage that ends at a guard page, as aligned as a kernel may expect."""
    memory = guarded(np.full(-(-size // 16) * 16, GARBAGE, np.uint8))
    return memory.ctypes.data, memory


class EmulatedDevice:
    """See `fastgar.cuda.device.Device`. Counts what waits for the device."""

    def __init__(self, name: str = NAME) -> None:
        self.name, self.processors = name, 3
        self.launches: list[str] = []
        self.reads = self.writes = self.waits = self.allocations = 0
        self.graph = False  # whether a graph is being captured
        self.kept: list[Any] = []
        self.loaded: set[Any] = set()  # kernels, which a graph cannot load
        self.streams: set[int] = set()

    def prepare(self, kernel) -> None:
        self.loaded.add(kernel)

    def launch(self, kernel, grid, block, shared, args, stream) -> None:
        assert kernel in self.loaded or not self.graph, f"{kernel.name} is not loaded"
        self.prepare(kernel)
        self.launches.append(kernel.name)
        self.streams.add(stream)
        odd = [a for a in args if type(a) not in TAKEN]
        assert not odd, f"{kernel.name}: CuPy would refuse {odd}, or send less than eight bytes"
        module = build(kernel.file, dict(kernel.defines))
        module.launch(kernel.name, grid, block, args, shared)

    def allocate(self, size, stream):
        self.allocations += 1
        return _scratch(size)

    def array(self, shape, dtype, stream):
        made = Away(np.full(shape, np.nan, dtype))
        return made.values.ctypes.data, made

    def read(self, address, into, stream) -> None:
        self.reads += 1
        ctypes.memmove(into.ctypes.data, address, into.nbytes)

    def write(self, address, values, stream) -> None:
        self.writes += 1
        ctypes.memmove(address, values.ctypes.data, values.nbytes)

    def synchronise(self, stream) -> None:
        self.waits += 1

    def capturing(self, stream) -> bool:
        return self.graph

    def keep(self, owner) -> None:
        self.kept.append(owner)


class Away:
    """An array on the device, of a library that knows DLPack and the array API standard."""

    def __init__(self, values: Any) -> None:
        self.values = np.ascontiguousarray(values)

    def __dlpack_device__(self) -> tuple[int, int]:
        return 2, 0

    def __dlpack__(self, *, stream: int | None = None, max_version: Any = None) -> Any:
        assert stream == 1, "the stream must be named, or numbers may not be ready"
        capsule = self.values.__dlpack__()
        start = capsules._capsule_pointer(capsule, b"dltensor")
        capsules._DLTensor.from_address(start).device_type = 2
        return capsule

    def __array_namespace__(self) -> Any:
        return SimpleNamespace(from_dlpack=lambda made: made)


def connect(monkeypatch: Any, name: str = NAME) -> EmulatedDevice:
    """Return a new device, which `fastgar.cuda` takes for the GPU of this name."""
    device = EmulatedDevice(name)
    monkeypatch.setitem(devices._devices, name, device)
    return device


def torch_on_gpu(monkeypatch: Any) -> EmulatedDevice:
    """Have torch's tensors be on a new device; one with an attribute `elsewhere` is there."""
    adapter = libraries.Torch
    view = adapter.view

    def on_gpu(self: Any, x: Any) -> Any:
        return view(self, x)._replace(device=getattr(x, "elsewhere", NAME))

    monkeypatch.setattr(adapter, "view", on_gpu)
    monkeypatch.setattr(adapter, "scratch", lambda self, size, device: _scratch(size))
    monkeypatch.setattr(adapter, "stream", lambda self, device: 77)
    return connect(monkeypatch)
