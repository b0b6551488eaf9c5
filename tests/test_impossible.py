"""Arrays that cannot be are refused, in one sentence, before anything of them is read."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

import fastgar as fg
from fastgar.arrays import numbers, table
from fastgar.capsules import _DLTensor

HUGE = 1 << 62


class Versioned(ctypes.Structure):
    _fields_ = (
        ("major", ctypes.c_uint32),
        ("minor", ctypes.c_uint32),
        ("context", ctypes.c_void_p),
        ("deleter", ctypes.c_void_p),
        ("flags", ctypes.c_uint64),
        ("tensor", _DLTensor),
    )


class Liar:
    """A float32 array of which a capsule says what it is told to."""

    def __init__(self, versioned: bool, **lies: Any) -> None:
        self.memory = np.arange(55, dtype=np.float32).reshape(11, 5)
        self.versioned, self.lies = versioned, lies
        self.name = lies.pop("name", b"dltensor_versioned" if versioned else b"dltensor")
        said: dict[str, Any] = {"shape": (11, 5), "strides": (5, 1), "major": 1, **lies}
        self.said = Versioned(said.pop("major"))
        axes = {key: said.pop(key) for key in ("shape", "strides")}
        said = {"device_type": 1, "code": 2, "bits": 32, "lanes": 1, **said}
        self.said.tensor = _DLTensor(**{"data": self.memory.ctypes.data, "ndim": 2, **said})
        for key, values in axes.items():
            if values is not None:
                setattr(self.said.tensor, key, (ctypes.c_int64 * len(values))(*values))

    def __dlpack__(self, **options: Any) -> Any:
        if options and not self.versioned:
            raise TypeError("max_version is not an option")
        new = ctypes.pythonapi.PyCapsule_New
        new.restype = ctypes.py_object
        new.argtypes = ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p
        start = ctypes.addressof(self.said if self.versioned else self.said.tensor)
        return new(start, self.name, None)


LIES: dict[str, tuple[dict[str, Any], str]] = {
    "negative rows": ({"shape": (-11, 5)}, r"no array in memory: its shape is \(-11, 5\)"),
    "negative columns": ({"shape": (11, -5)}, r"its shape is \(11, -5\)"),
    "two negative": ({"shape": (-11, -5), "strides": None}, r"its shape is \(-11, -5\)"),
    "negative and none": ({"shape": (0, -5)}, r"its shape is \(0, -5\)"),
    "no data": ({"data": None}, "it has 55 numbers and no memory"),
    "no data but an offset": ({"data": None, "byte_offset": 64}, "55 numbers and no memory"),
    "no shape": ({"shape": None}, "it has 2 dimensions and no shape"),
    "-1 dimensions": ({"ndim": -1}, "it has -1 dimensions"),
    "too many dimensions": ({"ndim": 1 << 30}, "it has 1073741824 dimensions"),
    "a product beyond 64 bits": ({"shape": (HUGE, HUGE), "strides": None}, "beyond all memory"),
    "bytes beyond 64 bits": ({"shape": (2, HUGE), "strides": (0, 0)}, "beyond all memory"),
    "strides beyond 64 bits": ({"strides": (HUGE, 1)}, "beyond all memory"),
    "strides below 0": ({"strides": (-HUGE, 1)}, "beyond all memory"),
    "an offset beyond 64 bits": ({"byte_offset": 2**64 - 4}, "beyond all memory"),
    "lanes": ({"lanes": 4}, "float32x4"),
    "no lanes": ({"lanes": 0}, "float32x0"),
    "no bits": ({"bits": 0}, "float0"),
    "half a byte": ({"code": 6, "bits": 1}, "bool1"),
    "an unknown kind": ({"code": 77}, "other32"),
    "device -1": ({"device_type": 2, "device_id": -1}, "read on the CPU: move it there first"),
    "used": ({"name": b"used_dltensor"}, "no DLPack capsule that can be read"),
}  # fmt: skip


@pytest.mark.parametrize("versioned", [True, False])
@pytest.mark.parametrize("name", LIES)
def test_capsules_that_describe_no_array(name: str, versioned: bool) -> None:
    lies, message = LIES[name]
    with pytest.raises(TypeError, match=message):
        table(Liar(versioned, **lies))
    with pytest.raises(TypeError, match=message):
        table([{"a": Liar(versioned)}, {"a": Liar(versioned, **lies)}])
    with pytest.raises(TypeError):
        numbers(Liar(versioned, **lies))


def test_capsules_of_another_version_and_no_capsules() -> None:
    with pytest.raises(TypeError, match="no DLPack capsule that can be read"):
        table(Liar(True, major=2))
    hands_out_text = type("Text", (), {"__dlpack__": lambda self, **options: "text"})
    with pytest.raises(TypeError, match="no DLPack capsule that can be read, but 'text'"):
        table(hands_out_text())


@pytest.mark.parametrize("versioned", [True, False])
def test_odd_capsules_that_are_true(versioned: bool) -> None:
    """Without them the tests above would hold of a reader that refuses everything."""
    said = Liar(versioned)
    np.testing.assert_array_equal(fg.median(said), [25, 26, 27, 28, 29])
    back = Liar(versioned, data=said.memory.ctypes.data + 400, byte_offset=-200 % 2**64)
    with pytest.raises(TypeError, match="beyond all memory"):
        table(back)
    upward = Liar(versioned, data=said.memory[-1:].ctypes.data, strides=(-5, 1))
    np.testing.assert_array_equal(fg.median(upward), [25, 26, 27, 28, 29])
    empty = Liar(versioned, data=None, shape=(11, 0))
    assert fg.median(empty).shape == (0,)
    assert fg.median(Liar(versioned, shape=(11, 1), strides=(0, 1))) == 0


def shrunk(keep: int) -> Any:
    """Return views of a torch tensor of which so many bytes are left: rows, transposed, one row.

    (Torch refuses to make these views afterwards, and crashes where it prints one.)
    """
    torch = pytest.importorskip("torch")
    x = torch.ones(20, 100)
    views = x[10:], x[10:].T, x[-1]
    x.untyped_storage().resize_(keep)
    return views


def test_torch_views_beyond_their_storage() -> None:
    torch = pytest.importorskip("torch")
    import fastgar.torch as fgt
    from fastgar.torch.collective import _Call

    ones = torch.ones(11, 100)
    call: Any = SimpleNamespace(peers=SimpleNamespace(devices={"cpu"}))
    for keep in (0, 4000, 7996):
        rows, transposed, row = shrunk(keep)
        entries: dict[str, Callable[[], Any]] = {
            "a distance rule": lambda x=rows: fg.krum(x, f=2),
            "strided": lambda x=transposed: fg.median(x),
            "a row of a list": lambda x=row: fg.median([ones[0], x]),
            "a leaf": lambda x=rows: fg.median([{"a": ones, "b": ones[1:]}, {"a": ones, "b": x}]),
            "a start": lambda x=row: fg.centered_clipping(ones, tau=1.0, start=x),
            "weights": lambda x=transposed: fg.combine(x, torch.ones(10, 3)),
            "an operator": lambda x=rows: fgt.ops.krum(x, 2),
            "all_reduce, and its out": lambda x=rows: _Call._parts(call, [ones, x]),
            "an attack": lambda x=rows: fg.attacks.attack("empire")(x),
            "streaming": lambda x=rows: fg.Streaming("krum", n=10, f=2).observe(x),
        }
        for name, entry in entries.items():
            error = _error(entry)
            assert f"reaches beyond its memory of {keep} bytes" in error, f"{name}: {error}"
    rows, transposed, row = shrunk(8000)
    assert bool((fg.median(rows) == 1).all() and (fg.median(transposed) == 1).all())


def _error(call: Callable[[], Any]) -> str:
    """Return the message of a TypeError, without the tensors that a report would print."""
    try:
        call()
    except TypeError as error:
        return str(error)
    return "no error"


class Boasting(np.ndarray):
    """An array that says that it is larger than it is."""

    shape = property(lambda self: (1 << 20, 1 << 20))  # type: ignore[assignment]
    strides = property(lambda self: (1 << 22, 4))  # type: ignore[assignment]
    dtype = property(lambda self: np.dtype("float64"))  # type: ignore[assignment]
    __array_interface__ = property(lambda self: {"data": (64, False)})  # type: ignore[assignment]


def test_subclasses_are_read_as_the_arrays_that_they_are() -> None:
    values = np.arange(55, dtype=np.float32).reshape(11, 5)
    for kind in (Boasting, np.matrix, np.recarray):
        for X in (values, values[:, ::2], values[::-1]):
            found = fg.krum(X.view(kind), f=2)
            assert type(found) is np.ndarray
            np.testing.assert_array_equal(found, fg.krum(X, f=2))
            found = fg.median([{"a": row.view(kind)} for row in X])["a"]
            np.testing.assert_array_equal(np.ravel(found), fg.median(X))


def test_torch_subclasses_are_read_as_the_tensors_that_they_are() -> None:
    torch = pytest.importorskip("torch")

    class Boast(torch.Tensor):  # type: ignore[name-defined,misc]
        shape = property(lambda self: (1 << 20, 1 << 20))
        dtype = property(lambda self: torch.float64)

        def stride(self) -> Any:
            return (1 << 20, 1)

        def is_contiguous(self) -> bool:
            return False

    values = torch.arange(55.0).reshape(11, 5)
    for X in (values, values[:, ::2], values.clone().requires_grad_()):
        found = fg.krum(X.detach().as_subclass(Boast), f=2)
        assert type(found) is torch.Tensor and torch.equal(found, fg.krum(X, f=2))
