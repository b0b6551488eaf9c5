"""What the package knows of each array library: where an array lies, and how to make one like it.

The only file that knows array libraries. It imports none of them: an array can only come from
a library that its owner has imported, so what is needed is found in ``sys.modules``.

Arrays on a GPU (torch, cupy, jax, and others through ``__dlpack__``) are read there by the caller's
current stream, and results and scratch come from the caller's allocator where it has one; those of
jax and of unknown libraries are CuPy's memory, which the library imports. These libraries have no
current stream: CUDA's default one is used, and a call returns when the result is there.

Results by library: numpy and torch results are written in place. jax takes over 64-byte aligned
memory without a copy (an array sharded over several devices comes back on jax's default device);
tensorflow copies the result once. Other libraries are read through ``__dlpack__``: the result is
made by ``from_dlpack`` of the object's ``__array_namespace__``, and is a numpy array where it
names none. Byte-swapped numpy arrays give native results.
"""

from __future__ import annotations

import ctypes
import sys
from math import prod
from typing import Any, NamedTuple

import numpy as np

from . import capsules
from .capsules import steps
from .dtypes import ITEMSIZE, stored

__all__ = ["NUMPY", "DLPack", "Library", "View", "as_numpy", "library_of"]

HUGE = 4 << 20  # bytes from which on NumPy asks for huge pages, which cost a quarter to touch


_new = tuple.__new__  # of a NamedTuple: half the time of calling it


class View(NamedTuple):
    """Where an array is and how it lies in memory."""

    owner: Any  # keeps the memory alive
    address: int
    shape: tuple[int, ...]
    strides: tuple[int, ...] | None  # None: C-contiguous
    unit: int  # bytes per unit of a stride
    dtype: str
    device: str


class Library:
    """What this file needs to know of an array library."""

    name: str
    convert = "X.astype(np.float32)"  # how its users get floating numbers; shown in errors
    cuda: str | None = None  # the version of CUDA that it is built for, if it tells
    knows_graphs = False  # whether memory for a CUDA graph stays the graph's, when it is given back
    votes = False  # whether it can take the median of integers on a GPU

    def view(self, x: Any) -> View:
        """Return where `x` lies, or raise a TypeError that says why it cannot be read."""
        raise NotImplementedError

    def contiguous(self, view: View) -> View:
        """Return a C-contiguous, aligned copy."""
        return NUMPY.view(np.array(as_numpy(view), order="C"))._replace(dtype=view.dtype)

    def make(self, like: Any, shape: tuple[int, ...]) -> tuple[int, Any]:
        """Return the address of fresh memory with the dtype and device of `like`, and its owner."""
        raise NotImplementedError

    def finish(self, made: Any, like: Any) -> Any:
        """Return what `make` made, now filled, as an array of this library."""
        return made

    # ------------------------------------------------------------------ for arrays on a GPU

    def stream(self, device: str) -> int:
        """Return the stream on which its users expect work to run; 0 is CUDA's default one."""
        return 0

    def scratch(self, size: int, device: str) -> tuple[int, Any] | None:
        """Return the address of fresh memory and its owner; None where it gives none away."""
        return None

    def to_host(self, x: Any) -> Any:
        """Return a copy that numpy can look at."""
        raise TypeError(f"these numbers are needed on the CPU: copy the {self.name} array there")

    def vote(self, arrays: list[Any], policy: str, into: Any) -> None:
        """Write the value of an integer leaf to `into`, where it can."""
        raise NotImplementedError


class Numpy(Library):
    name = "numpy"

    def __init__(self) -> None:
        self.names = {np.dtype(name): name for name in ("float16", "float32", "float64")}

    def view(self, x: Any) -> View:
        if type(x) is not np.ndarray:
            if isinstance(x, np.ma.MaskedArray):
                raise TypeError("a masked array would lose its mask: pass X.filled(np.nan)")
            x = np.asarray(x)  # a subclass may say what it likes of its shape and strides
        dtype = self.names.get(x.dtype)
        if dtype is None:
            if not x.dtype.isnative:
                x = np.array(x, x.dtype.newbyteorder("="))
            dtype = x.dtype.name  # also "bfloat16", which ml_dtypes adds to numpy
        flags = x.flags
        if not flags.c_contiguous:
            return View(x, x.__array_interface__["data"][0], x.shape, x.strides, 1, dtype, "cpu")
        return _new(View, (x, self.address(x, flags.writeable), x.shape, None, 1, dtype, "cpu"))

    def make(self, like: Any, shape: tuple[int, ...]) -> tuple[int, Any]:
        dtype = np.asarray(like).dtype
        made = np.empty(shape, dtype if dtype.isnative else dtype.newbyteorder("="))
        return self.address(made, True), made

    def address(self, x: Any, writable: bool) -> int:
        """Return where a contiguous array begins."""
        if writable:
            try:  # 0.2 us where __array_interface__ takes 0.9
                return ctypes.addressof(ctypes.c_char.from_buffer(x))
            except (TypeError, ValueError):  # bfloat16, or no bytes at all
                pass
        address: int = x.__array_interface__["data"][0]
        return address


class Torch(Library):
    name = "torch"
    convert = "X.float()"
    votes = knows_graphs = True

    def __init__(self, torch: Any) -> None:
        self.torch = torch
        self.plain = {torch.Tensor, torch.nn.Parameter}
        self.names = {getattr(torch, name): name for name in ITEMSIZE}
        self.no_dispatch = torch.Tensor.__torch_dispatch__
        self.strided, self.empty = torch.strided, torch.empty
        self.bytes = torch.uint8
        self.cuda = torch.version.cuda

    def view(self, x: Any) -> View:
        kind = type(x)
        if kind not in self.plain:
            if kind.__torch_dispatch__ != self.no_dispatch:
                hint = "x.to_local()" if kind.__name__ == "DTensor" else "a plain tensor"
                raise TypeError(f"a torch {kind.__name__} has no memory of its own: pass {hint}")
            if not self.torch.nn.parameter.is_lazy(x):  # that will not tell its shape, rightly
                x = self.bare(x)
        if x.layout is not self.strided:
            raise TypeError(f"a torch tensor of layout {x.layout} is not dense: pass x.to_dense()")
        try:
            shape = tuple(x.shape)  # slices of a torch.Size, and torch.empty of one, take 1 us
            address = x.data_ptr()
            strides = None if x.is_contiguous() else x.stride()
            size = x.element_size()
            reach = x.storage_offset() * size
            held = x.untyped_storage().nbytes()
        except (RuntimeError, ValueError) as error:
            raise TypeError(
                "a torch tensor without memory to read: call fastgar on initialised tensors, "
                f"outside vmap, grad and other torch.func transforms ({error})"
            ) from error
        device = "cpu" if x.is_cpu else str(x.device)
        reach += x.nbytes if strides is None else size * (1 + steps(shape, strides)[1])
        if (address == 0 or reach > held) and x.numel():
            lack = f"reaches beyond its memory of {held} bytes" if address else "without memory"
            raise TypeError(f"a torch tensor on {device} {lack}: pass one that holds numbers")
        if x.is_neg():
            return self.view(x.detach().resolve_neg())
        if device != "cpu" and x.device.type != "cuda":
            raise TypeError(f"torch tensors on {device} are not read: pass x.cpu()")
        dtype = self.names.get(x.dtype) or str(x.dtype).removeprefix("torch.")
        return _new(View, (x, address, shape, strides, size, dtype, device))

    def bare(self, x: Any) -> Any:
        """Return a tensor without what its class says of its shape, strides and dtype."""
        with self.torch._C.DisableTorchFunctionSubclass():
            return self.torch.Tensor.as_subclass(x, self.torch.Tensor)

    def contiguous(self, view: View) -> View:
        # torch copies with all its threads, and on the device where the tensor is
        return self.view(view.owner.detach().clone(memory_format=self.torch.contiguous_format))

    def make(self, like: Any, shape: tuple[int, ...]) -> tuple[int, Any]:
        if type(like) not in self.plain:
            like = self.bare(like)
        if like.is_cpu and prod(shape) * like.element_size() >= HUGE:
            size = prod(shape) * like.element_size()
            room = np.empty(size + 64, np.uint8)
            skip = -room.ctypes.data % 64  # to a cache line, where torch would begin as well
            made = self.torch.from_numpy(room[skip : skip + size]).view(like.dtype).view(shape)
        else:
            made = like.new_empty(*shape) if shape else like.new_empty(shape)  # 0.5 us less
        return made.data_ptr(), made

    def stream(self, device: str) -> int:
        stream: int = self.torch.cuda.current_stream(device).cuda_stream
        return stream

    def scratch(self, size: int, device: str) -> tuple[int, Any] | None:
        made = self.empty((size,), dtype=self.bytes, device=device)
        return made.data_ptr(), made

    def to_host(self, x: Any) -> Any:
        return x.detach().cpu()

    def vote(self, arrays: list[Any], policy: str, into: Any) -> None:
        if policy == "first":
            into.copy_(arrays[0])
            return
        stack = self.torch.stack([x.detach().to(self.torch.int64) for x in arrays])
        if policy == "mean":
            spread = (stack - stack[0]).double().mean(dim=0).round()
            into.copy_(stack[0] + spread.to(self.torch.int64))
            return
        into.copy_(stack.sort(dim=0).values[(len(arrays) - 1) // 2])


class Cupy(Library):
    name = "cupy"
    convert = "X.astype(cupy.float32)"
    votes = True

    def __init__(self, cupy: Any) -> None:
        self.cupy = cupy

    def view(self, x: Any) -> View:
        strides = None if x.flags.c_contiguous else x.strides
        return View(x, x.data.ptr, x.shape, strides, 1, x.dtype.name, f"cuda:{x.device.id}")

    def contiguous(self, view: View) -> View:
        from .cuda.connect import connect

        with self.cupy.cuda.Device(view.owner.device.id):
            copy = self.cupy.array(view.owner, order="C")
        if self._capturing(view.device):
            connect(view.device).keep(copy)  # into which the graph copies whenever it is replayed
        return self.view(copy)

    def _capturing(self, device: str) -> bool:
        from .cuda.connect import connect

        return connect(device).capturing(self.stream(device))

    def make(self, like: Any, shape: tuple[int, ...]) -> tuple[int, Any]:
        with self.cupy.cuda.Device(like.device.id):
            made = self.cupy.empty(shape, like.dtype)
        return made.data.ptr, made

    def stream(self, device: str) -> int:
        stream: int = self.cupy.cuda.get_current_stream(_index(device)).ptr
        return stream

    def scratch(self, size: int, device: str) -> tuple[int, Any] | None:
        with self.cupy.cuda.Device(_index(device)):
            memory = self.cupy.cuda.alloc(size)
        return memory.ptr, memory

    def to_host(self, x: Any) -> Any:
        return x.get()

    def vote(self, arrays: list[Any], policy: str, into: Any) -> None:
        first = policy == "first"
        if not first and self._capturing(f"cuda:{into.device.id}"):
            raise RuntimeError(
                "integer leaves of cupy are not sorted while a CUDA graph is being captured, which "
                "would use memory that is given back: leave them out"
            )
        with self.cupy.cuda.Device(into.device.id):
            if first:
                into[...] = arrays[0]
                return
            stack, middle = self.cupy.stack(arrays), (len(arrays) - 1) // 2
            if policy == "mean":
                wide = stack.astype("int64")
                into[...] = wide[0] + self.cupy.rint((wide - wide[0]).mean(axis=0)).astype("int64")
            else:
                into[...] = self.cupy.sort(stack, 0)[middle]


def _index(device: str) -> int:
    return int(device.partition(":")[2])


class Host(Library):
    """Libraries whose CPU arrays numpy can look at, and which take numpy arrays back."""

    def make(self, like: Any, shape: tuple[int, ...]) -> tuple[int, Any]:
        dtype = self.dtype(like)
        size = prod(shape) * dtype.itemsize
        memory = np.empty(size + 64, np.uint8)
        start = -memory.__array_interface__["data"][0] % 64  # what jax needs to take it over
        made = memory[start : start + size].view(dtype).reshape(shape)
        return made.__array_interface__["data"][0], made

    def dtype(self, like: Any) -> Any:
        """Return the numpy dtype of `like`."""
        return like.dtype


class Jax(Host):
    name = "jax"
    convert = "X.astype(jnp.float32)"

    def __init__(self, jax: Any) -> None:
        self.jax = jax
        home = jax if hasattr(jax, "enable_x64") else jax.experimental  # in older versions
        self.x64 = home.enable_x64

    def view(self, x: Any) -> View:
        if isinstance(x, self.jax.core.Tracer):
            raise TypeError(
                "a jax tracer holds no numbers yet: call fastgar outside jit, vmap and grad, or "
                "through jax.pure_callback"
            )
        devices = x.devices()
        if all(device.platform == "cpu" for device in devices):
            return NUMPY.view(np.asarray(x))
        if len(devices) > 1 or next(iter(devices)).platform not in ("gpu", "cuda"):
            raise TypeError(
                "jax arrays are read on the CPU, or on one NVIDIA GPU: pass jax.device_get(X)"
            )
        return _read_capsule(x, "jax")

    def make(self, like: Any, shape: tuple[int, ...]) -> tuple[int, Any]:
        view = self.view(like)
        return super().make(like, shape) if view.device == "cpu" else _make_on(view, shape)

    def to_host(self, x: Any) -> Any:
        return np.asarray(x)

    def finish(self, made: Any, like: Any) -> Any:
        devices = like.devices()
        if not isinstance(made, np.ndarray):
            _wait(self.view(like))
            return self.jax.dlpack.from_dlpack(made)
        stays = len(devices) == 1 and getattr(like, "committed", True)
        device = next(iter(devices)) if stays else None
        # memory at multiples of 64 bytes is taken over and kept alive, without a copy
        if made.dtype.itemsize < 8:
            return self.jax.device_put(made, device)
        with self.x64(True):  # 64-bit input may outlive the setting that allowed it
            return self.jax.device_put(made, device)


class TensorFlow(Host):
    name = "tensorflow"
    convert = "tf.cast(X, tf.float32)"

    def __init__(self, tensorflow: Any) -> None:
        self.tf = tensorflow

    def view(self, x: Any) -> View:
        if not hasattr(x, "numpy") or self.tf.is_symbolic_tensor(x):
            raise TypeError(
                "a symbolic tensorflow tensor holds no numbers yet: call fastgar outside "
                "tf.function, or through tf.py_function"
            )
        if "CPU" not in x.device:
            raise TypeError(f"tensorflow tensors are read on the CPU, not on {x.device}")
        if x.shape.rank == 0:  # numpy gets no array from a bfloat16 scalar
            return NUMPY.view(np.asarray(self.tf.reshape(x, (1,))).reshape(()))
        return NUMPY.view(np.asarray(x))

    def dtype(self, like: Any) -> Any:
        return np.dtype(like.dtype.as_numpy_dtype)

    def finish(self, made: Any, like: Any) -> Any:
        with self.tf.device(like.device):
            return self.tf.convert_to_tensor(made)


def _read_capsule(x: Any, library: str) -> View:
    capsule, address, shape, strides, unit, dtype, device = capsules.read(x, library)
    # the capsule stays unconsumed: its destructor frees the array when it is dropped
    return View((x, capsule), address, shape, strides, unit, dtype, device)


def _make_on(view: View, shape: tuple[int, ...]) -> tuple[int, Any]:
    """Return memory on the device of a view, for libraries that import it when it is filled."""
    from .cuda.connect import connect

    return connect(view.device).array(tuple(shape), view.dtype, 0)


def _wait(view: View) -> None:
    """Wait for the work on a device whose memory another library gives away.

    It may do so as soon as the input is dropped, on streams that do not wait for ours.
    """
    from .cuda.connect import connect

    connect(view.device).synchronise(0)


class DLPack(Host):
    """Any other library: its capsules are read."""

    def __init__(self, name: str) -> None:
        self.name = name

    def view(self, x: Any) -> View:
        view = _read_capsule(x, self.name)
        if view.dtype == "bfloat16" and (
            hasattr(x, "__array_namespace__") or "ml_dtypes" not in sys.modules
        ):
            raise TypeError(
                f"bfloat16 results cannot be handed back to {self.name}: convert X to float32"
            )
        if view.device != "cpu" and not hasattr(x, "__array_namespace__"):
            raise TypeError(
                f"results on a GPU cannot be handed back to {self.name}, which has no "
                "__array_namespace__: pass torch, cupy or jax arrays"
            )
        return view

    def contiguous(self, view: View) -> View:
        if view.device != "cpu":
            raise TypeError(f"rows of {self.name} on a GPU must be contiguous: pass a copy")
        return super().contiguous(view)

    def make(self, like: Any, shape: tuple[int, ...]) -> tuple[int, Any]:
        view = self.view(like)
        return super().make(like, shape) if view.device == "cpu" else _make_on(view, shape)

    def dtype(self, like: Any) -> Any:
        name = self.view(like).dtype
        return np.dtype(sys.modules["ml_dtypes"].bfloat16 if name == "bfloat16" else name)

    def finish(self, made: Any, like: Any) -> Any:
        if not hasattr(like, "__array_namespace__"):
            return made
        view = self.view(like)
        if view.device != "cpu":
            _wait(view)
        return like.__array_namespace__().from_dlpack(made)


NUMPY = Numpy()
_IMPORTED: tuple[tuple[str, type[Any], tuple[str, ...]], ...] = (
    ("torch", Torch, ("Tensor",)),
    ("cupy", Cupy, ("ndarray",)),
    ("jax", Jax, ("Array",)),
    ("tensorflow", TensorFlow, ("Tensor", "Variable")),
)
_LIBRARIES: dict[str, Library] = {"numpy": NUMPY}
_BY_TYPE: dict[type, Library] = {np.ndarray: NUMPY}


def library_of(x: Any) -> Library | None:
    """Return the library whose array `x` is, or None if it is not an array."""
    kind = type(x)
    known = _BY_TYPE.get(kind)
    if known is not None or isinstance(x, (list, tuple, dict, np.generic, str)):
        return known
    if isinstance(x, np.ndarray):
        return NUMPY
    for name, adapter, classes in _IMPORTED:
        module = sys.modules.get(name)
        if module is not None and isinstance(
            x, tuple(getattr(module, each) for each in classes if hasattr(module, each))
        ):
            library = _LIBRARIES.setdefault(name, adapter(module))
            _BY_TYPE[kind] = library
            return library
    if not hasattr(kind, "__dlpack__"):
        return None
    name = kind.__module__.partition(".")[0]
    return _LIBRARIES.setdefault(f"{name}.__dlpack__", DLPack(name))


class _Memory:
    """CPU memory for numpy to look at."""

    def __init__(self, interface: dict[str, Any]) -> None:
        self.__array_interface__ = interface


def as_numpy(view: View, writable: bool = False) -> np.ndarray:
    """Return the memory of `view` as a numpy array (bfloat16 as its bits); it owns nothing."""
    dtype = stored(view.dtype)
    strides = view.strides and tuple(stride * view.unit for stride in view.strides)
    if not prod(view.shape):
        return np.empty(view.shape, dtype)
    return np.asarray(
        _Memory(
            {
                "version": 3,
                "shape": tuple(view.shape),
                "typestr": dtype.str,
                "data": (view.address, not writable),
                "strides": strides,
            }
        )
    )
