"""How to come by a GPU: each is opened once."""

from __future__ import annotations

from threading import Lock

from .device import Device
from .driver import CupyDevice

__all__ = ["connect"]

_devices: dict[str, Device] = {}
_lock = Lock()


def connect(name: str, cuda: str | None = None) -> Device:
    """Return the GPU of this name ("cuda:0"); `cuda` is the caller's version of CUDA, if known.

    Raises
    ------
    ImportError
        CuPy is missing or broken; says what to install.
    RuntimeError
        The driver is too old for it, or the GPU for the kernels.
    """
    device = _devices.get(name)
    if device is None:
        with _lock:
            device = _devices.get(name)
            if device is None:
                device = _devices[name] = CupyDevice(name, cuda)
    return device
