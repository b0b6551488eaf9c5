"""Arrays of any library as rows of numbers in memory, and fresh memory of the same library.

The only file that knows array libraries. It imports none of them: an array can only come from
a library that its owner has imported, so what is needed is found in ``sys.modules``.

How input is understood
    an array of shape (n, ...)           n rows; a 1-D array is n rows of one number
    a sequence of n arrays               n rows, read where they are (never stacked)
    a sequence of n containers           n structures (mappings, lists, tuples, namedtuples, nested
                                         at will); so a list of n lists of arrays is n structures
    one mapping or one namedtuple        refused: it is one structure, and rows are a sequence of n

Results have the form of one row; a stack of k rows is a (k, ...) array where the input was one
array, and a list of k rows where it was a sequence, so that a stack is valid input again.

What is read in place: any row stride (also negative or zero) as long as each row is C-contiguous,
aligned and in native byte order. Any other layout costs one copy of that array. Rows of a
sequence are judged one by one.

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
from collections.abc import Callable, Iterator, Mapping, Sequence
from copy import copy
from math import prod
from typing import Any, NamedTuple

import numpy as np

from .errors import unknown

__all__ = ["Block", "Out", "Table", "numbers", "reference", "table"]

_SIZES = {"float16": 2, "bfloat16": 2, "float32": 4, "float64": 8}
_INTEGERS = {"bool"} | {f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64)}
_POLICIES = ("median", "first", "error")
_FLOATS = "float16, bfloat16, float32 and float64"


class Block(NamedTuple):
    """Rows of numbers of one dtype: an array, or one leaf of a nested structure."""

    addresses: np.ndarray  # (n,) int64: where the first number of each row is
    columns: int  # numbers per row, one directly after the other
    dtype: str  # "float16" | "bfloat16" | "float32" | "float64"


class _View(NamedTuple):
    """Where an array is and how it lies in memory."""

    owner: Any  # keeps the memory alive
    address: int
    shape: tuple[int, ...]
    strides: tuple[int, ...] | None  # None: C-contiguous
    unit: int  # bytes per unit of a stride
    dtype: str
    device: str


# ------------------------------------------------------------------------------------- libraries


class _Library:
    """What this file needs to know of an array library."""

    name: str
    convert = "X.astype(np.float32)"  # how its users get floating numbers; shown in errors
    cuda: str | None = None  # the version of CUDA that it is built for, if it tells
    votes = False  # whether it can take the median of integers on a GPU

    def view(self, x: Any) -> _View:
        """Return where `x` lies, or raise a TypeError that says why it cannot be read."""
        raise NotImplementedError

    def contiguous(self, view: _View) -> _View:
        """Return a C-contiguous, aligned copy."""
        return _NUMPY.view(np.array(_memory(view), order="C"))._replace(dtype=view.dtype)

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


class _Numpy(_Library):
    name = "numpy"

    def __init__(self) -> None:
        self.names = {np.dtype(name): name for name in ("float16", "float32", "float64")}

    def view(self, x: Any) -> _View:
        if type(x) is not np.ndarray and isinstance(x, np.ma.MaskedArray):
            raise TypeError("a masked array would lose its mask: pass X.filled(np.nan)")
        dtype = self.names.get(x.dtype)
        if dtype is None:
            if not x.dtype.isnative:
                x = np.array(x, x.dtype.newbyteorder("="))
            dtype = x.dtype.name  # also "bfloat16", which ml_dtypes adds to numpy
        flags = x.flags
        if not flags.c_contiguous:
            return _View(x, x.__array_interface__["data"][0], x.shape, x.strides, 1, dtype, "cpu")
        return _View(x, self.address(x, flags.writeable), x.shape, None, 1, dtype, "cpu")

    def make(self, like: Any, shape: tuple[int, ...]) -> tuple[int, Any]:
        dtype = like.dtype
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


class _Torch(_Library):
    name = "torch"
    convert = "X.float()"
    votes = True

    def __init__(self, torch: Any) -> None:
        self.torch = torch
        self.plain = {torch.Tensor, torch.nn.Parameter}
        self.names = {getattr(torch, name): name for name in _SIZES}
        self.no_dispatch = torch.Tensor.__torch_dispatch__
        self.strided, self.empty = torch.strided, torch.empty
        self.bytes = torch.uint8
        self.cuda = torch.version.cuda

    def view(self, x: Any) -> _View:
        kind = type(x)
        if kind not in self.plain and kind.__torch_dispatch__ != self.no_dispatch:
            hint = "x.to_local()" if kind.__name__ == "DTensor" else "a plain tensor"
            raise TypeError(f"a torch {kind.__name__} has no memory of its own: pass {hint}")
        if x.layout is not self.strided:
            raise TypeError(f"a torch tensor of layout {x.layout} is not dense: pass x.to_dense()")
        try:
            shape = tuple(x.shape)  # slices of a torch.Size, and torch.empty of one, take 1 us
            address = x.data_ptr()
            strides = None if x.is_contiguous() else x.stride()
        except (RuntimeError, ValueError) as error:
            raise TypeError(
                "a torch tensor without memory to read: call fastgar on initialised tensors, "
                f"outside vmap, grad and other torch.func transforms ({error})"
            ) from error
        if x.is_neg():
            return self.view(x.detach().resolve_neg())
        device = "cpu" if x.is_cpu else str(x.device)
        if address == 0 and x.numel():
            raise TypeError(
                f"a torch tensor on {device} without memory: pass one that holds numbers"
            )
        if device != "cpu" and x.device.type != "cuda":
            raise TypeError(f"torch tensors on {device} are not read: pass x.cpu()")
        dtype = self.names.get(x.dtype) or str(x.dtype).removeprefix("torch.")
        return _View(x, address, shape, strides, x.element_size(), dtype, device)

    def contiguous(self, view: _View) -> _View:
        # torch copies with all its threads, and on the device where the tensor is
        return self.view(view.owner.detach().clone(memory_format=self.torch.contiguous_format))

    def make(self, like: Any, shape: tuple[int, ...]) -> tuple[int, Any]:
        if type(like) in self.plain:
            made = like.new_empty(shape)
        else:  # torch.set_default_device would choose another device
            made = self.empty(shape, dtype=like.dtype, device=like.device)
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
        into.copy_(stack.sort(dim=0).values[(len(arrays) - 1) // 2])


class _Cupy(_Library):
    name = "cupy"
    convert = "X.astype(cupy.float32)"
    votes = True

    def __init__(self, cupy: Any) -> None:
        self.cupy = cupy

    def view(self, x: Any) -> _View:
        strides = None if x.flags.c_contiguous else x.strides
        return _View(x, x.data.ptr, x.shape, strides, 1, x.dtype.name, f"cuda:{x.device.id}")

    def contiguous(self, view: _View) -> _View:
        with self.cupy.cuda.Device(view.owner.device.id):
            return self.view(self.cupy.array(view.owner, order="C"))

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
        with self.cupy.cuda.Device(into.device.id):
            middle = (len(arrays) - 1) // 2
            first = policy == "first"
            into[...] = arrays[0] if first else self.cupy.sort(self.cupy.stack(arrays), 0)[middle]


def _index(device: str) -> int:
    return int(device.partition(":")[2])


class _Host(_Library):
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


class _Jax(_Host):
    name = "jax"
    convert = "X.astype(jnp.float32)"

    def __init__(self, jax: Any) -> None:
        self.jax = jax
        home = jax if hasattr(jax, "enable_x64") else jax.experimental  # in older versions
        self.x64 = home.enable_x64

    def view(self, x: Any) -> _View:
        if isinstance(x, self.jax.core.Tracer):
            raise TypeError(
                "a jax tracer holds no numbers yet: call fastgar outside jit, vmap and grad, or "
                "through jax.pure_callback"
            )
        devices = x.devices()
        if all(device.platform == "cpu" for device in devices):
            return _NUMPY.view(np.asarray(x))
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


class _TensorFlow(_Host):
    name = "tensorflow"
    convert = "tf.cast(X, tf.float32)"

    def __init__(self, tensorflow: Any) -> None:
        self.tf = tensorflow

    def view(self, x: Any) -> _View:
        if not hasattr(x, "numpy") or self.tf.is_symbolic_tensor(x):
            raise TypeError(
                "a symbolic tensorflow tensor holds no numbers yet: call fastgar outside "
                "tf.function, or through tf.py_function"
            )
        if "CPU" not in x.device:
            raise TypeError(f"tensorflow tensors are read on the CPU, not on {x.device}")
        if x.shape.rank == 0:  # numpy gets no array from a bfloat16 scalar
            return _NUMPY.view(np.asarray(self.tf.reshape(x, (1,))).reshape(()))
        return _NUMPY.view(np.asarray(x))

    def dtype(self, like: Any) -> Any:
        return np.dtype(like.dtype.as_numpy_dtype)

    def finish(self, made: Any, like: Any) -> Any:
        with self.tf.device(like.device):
            return self.tf.convert_to_tensor(made)


class _DLTensor(ctypes.Structure):
    _fields_ = [
        ("data", ctypes.c_void_p),
        ("device_type", ctypes.c_int32),
        ("device_id", ctypes.c_int32),
        ("ndim", ctypes.c_int32),
        ("code", ctypes.c_uint8),
        ("bits", ctypes.c_uint8),
        ("lanes", ctypes.c_uint16),
        ("shape", ctypes.POINTER(ctypes.c_int64)),
        ("strides", ctypes.POINTER(ctypes.c_int64)),
        ("byte_offset", ctypes.c_uint64),
    ]


_capsule_name = ctypes.PYFUNCTYPE(ctypes.c_char_p, ctypes.py_object)(
    ("PyCapsule_GetName", ctypes.pythonapi)
)
_capsule_pointer = ctypes.PYFUNCTYPE(ctypes.c_void_p, ctypes.py_object, ctypes.c_char_p)(
    ("PyCapsule_GetPointer", ctypes.pythonapi)
)


_DLPACK_CODES = {0: "int", 1: "uint", 2: "float", 4: "bfloat", 5: "complex", 6: "bool"}
_DEFAULT_STREAM = 1  # as DLPack numbers it


def _capsule(x: Any, library: str) -> Any:
    """Return the capsule of an array, the numbers in which are ready for CUDA's default stream."""
    on_gpu = hasattr(x, "__dlpack_device__") and int(x.__dlpack_device__()[0]) == 2
    stream = {"stream": _DEFAULT_STREAM} if on_gpu else {}
    try:
        try:
            return x.__dlpack__(max_version=(1, 0), **stream)
        except TypeError:  # older than DLPack 1.0
            return x.__dlpack__(**stream)
    except (BufferError, RuntimeError) as error:
        raise TypeError(f"{library} does not hand its array out: {error}") from error


def _read_capsule(x: Any, library: str) -> _View:
    capsule = _capsule(x, library)
    name = _capsule_name(capsule)
    # a versioned capsule has 32 bytes (version, context, deleter, flags) before the tensor
    start = _capsule_pointer(capsule, name) + (32 if name == b"dltensor_versioned" else 0)
    tensor = _DLTensor.from_address(start)
    if tensor.device_type == 2:
        device = f"cuda:{tensor.device_id}"
    elif tensor.device_type in (1, 3):  # 3: page-locked CPU memory
        device = "cpu"
    else:
        raise TypeError(f"{library} arrays are read on the CPU: move it there first")
    dtype = _DLPACK_CODES.get(tensor.code, "other")
    dtype = dtype if dtype == "bool" else f"{dtype}{tensor.bits}"
    if tensor.lanes != 1:
        dtype += f"x{tensor.lanes}"
    shape = tuple(tensor.shape[: tensor.ndim]) if tensor.ndim else ()
    strides = tuple(tensor.strides[: tensor.ndim]) if tensor.ndim and tensor.strides else None
    address = (tensor.data or 0) + tensor.byte_offset
    # the capsule stays unconsumed: its destructor frees the array when it is dropped
    return _View((x, capsule), address, shape, strides, tensor.bits // 8, dtype, device)


def _make_on(view: _View, shape: tuple[int, ...]) -> tuple[int, Any]:
    """Return memory on the device of a view, for libraries that import it when it is filled."""
    from .cuda.device import connect

    return connect(view.device).array(tuple(shape), view.dtype, 0)


def _wait(view: _View) -> None:
    """Wait for the work on a device whose memory another library gives away.

    It may do so as soon as the input is dropped, on streams that do not wait for ours.
    """
    from .cuda.device import connect

    connect(view.device).synchronise(0)


class _DLPack(_Host):
    """Any other library: its capsules are read here, since numpy's own reader has no bfloat16."""

    def __init__(self, name: str) -> None:
        self.name = name

    def view(self, x: Any) -> _View:
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

    def contiguous(self, view: _View) -> _View:
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


_NUMPY = _Numpy()
_IMPORTED: tuple[tuple[str, type[Any], tuple[str, ...]], ...] = (
    ("torch", _Torch, ("Tensor",)),
    ("cupy", _Cupy, ("ndarray",)),
    ("jax", _Jax, ("Array",)),
    ("tensorflow", _TensorFlow, ("Tensor", "Variable")),
)
_LIBRARIES: dict[str, _Library] = {"numpy": _NUMPY}
_BY_TYPE: dict[type, _Library] = {np.ndarray: _NUMPY}


def _library(x: Any) -> _Library | None:
    """Return the library whose array `x` is, or None if it is not an array."""
    kind = type(x)
    known = _BY_TYPE.get(kind)
    if known is not None or isinstance(x, (list, tuple, dict, np.generic, str)):
        return known
    if isinstance(x, np.ndarray):
        return _NUMPY
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
    return _LIBRARIES.setdefault(f"{name}.__dlpack__", _DLPack(name))


class _Memory:
    """CPU memory for numpy to look at."""

    def __init__(self, interface: dict[str, Any]) -> None:
        self.__array_interface__ = interface


def _memory(view: _View, writable: bool = False) -> np.ndarray:
    """Return the memory of `view` as a numpy array (bfloat16 as its bits); it owns nothing."""
    dtype = np.dtype("uint16" if view.dtype == "bfloat16" else view.dtype)
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


def numbers(x: Any) -> np.ndarray:
    """Return real numbers (an array of any library, or nested sequences of them) as float64."""
    library = _library(x)
    if library is None:
        values = np.asarray(x)
    else:
        view = library.view(x)
        if view.device != "cpu":
            x = library.to_host(x)
            view = (_library(x) or _NUMPY).view(x)
        values = _memory(view)
        if view.dtype == "bfloat16":
            values = (values.astype(np.uint32) << 16).view(np.float32)
    if values.dtype.kind not in "biuf":
        raise TypeError(f"real numbers are needed, got {values.dtype}")
    return values.astype(np.float64)


# ---------------------------------------------------------------------------------------- tables


class _Leaf(NamedTuple):
    """One array of n rows, or the n arrays at one place of n structures."""

    path: str
    library: _Library
    like: Any  # an array with the dtype and device of the result
    shape: tuple[int, ...]  # of one row
    dtype: str
    device: str
    block: Block | None  # None: integers
    views: list[_View]

    def vote(self, policy: str) -> np.ndarray:
        """Return the value of an integer leaf on the CPU."""
        if policy == "first":
            return _memory(self.views[0])
        middle = (len(self.views) - 1) // 2
        stack = np.stack([_memory(view) for view in self.views])
        return np.asarray(np.partition(stack, middle, axis=0)[middle])


class Table:
    """Rows of numbers in memory, kept alive, and how to make results like them.

    Attributes
    ----------
    n : int
        Number of rows.
    blocks : tuple of Block
        Where the numbers are: one block for arrays, one per floating leaf of structures.
    device : str
        "cpu", or "cuda:<i>".
    library
        The library of the arrays, for its stream and allocator on a GPU.
    backend
        What `primitives` computes with on a GPU, once it has.
    paths : tuple of str
        Name of each block: "" for arrays, dotted keys and indices ("layer.weight", "0.1") for
        leaves of structures.
    columns : int
        Numbers per row, over all blocks.
    """

    __slots__ = (
        "_buffers", "_build", "_leaves", "_row", "backend", "blocks", "columns", "device",
        "library", "n", "paths",
    )  # fmt: skip

    def __init__(
        self,
        n: int,
        leaves: tuple[_Leaf, ...],
        row: Any = None,
        build: Callable[[Iterator[Any]], Any] | None = None,
        buffers: str = "median",
    ) -> None:
        self.n = n
        self.device = leaves[0].device if leaves else "cpu"
        self.library = leaves[0].library if leaves else _NUMPY
        self.backend: Any = None
        if len(leaves) == 1 and leaves[0].block is not None:  # the fast way for the usual case
            self.blocks: tuple[Block, ...] = (leaves[0].block,)
            self.paths: tuple[str, ...] = (leaves[0].path,)
            self.columns = leaves[0].block.columns
        else:
            floating = [(leaf.block, leaf.path) for leaf in leaves if leaf.block is not None]
            self.blocks = tuple(block for block, _ in floating)
            self.paths = tuple(path for _, path in floating)
            self.columns = sum(block.columns for block in self.blocks)
        self._leaves = leaves
        self._row = row  # row 0 of a sequence, to compare a reference with
        self._build = build  # leaf values -> a row; None: the rows are one array
        self._buffers = buffers

    def empty(self, count: int | None = None) -> Out:
        """Return fresh memory for one row, or for a stack of `count` rows."""
        if self._build is None:
            leaf = self._leaves[0]
            shape = leaf.shape if count is None else (count, *leaf.shape)
            address, made = leaf.library.make(leaf.like, shape)
            columns, dtype = self.columns, leaf.dtype
            step = columns * _SIZES[dtype]
            block = Block(_addresses(address, 1 if count is None else count, step), columns, dtype)
            return Out((block,), lambda: leaf.library.finish(made, leaf.like))
        return _empty_structures(self, self._build, count)

    def select(self, predicate: Callable[[str], bool]) -> Table:
        """Return the table of the leaves whose path satisfies `predicate`, for reading only."""
        kept = tuple(
            leaf for leaf in self._leaves if leaf.block is not None and predicate(leaf.path)
        )
        if not kept:
            known = ", ".join(repr(path) for path in self.paths[:20])
            raise ValueError(f"no leaf is selected: the paths of the floating leaves are {known}")
        return _Selection(self.n, kept)


class Out:
    """Memory to write a result to, and the result."""

    __slots__ = ("_finish", "blocks")

    def __init__(self, blocks: tuple[Block, ...], finish: Callable[[], Any]) -> None:
        self.blocks = blocks
        self._finish = finish

    def value(self) -> Any:
        """Return the result in the library, dtype, device and structure of the input.

        Call it once, after the last write: jax arrays live on in this memory and never change.
        """
        return self._finish()


class _Selection(Table):
    """Some leaves of structures: enough for distances, not for results."""

    __slots__ = ()

    def empty(self, count: int | None = None) -> Out:
        raise TypeError("a selection of leaves has no results: make them from the whole table")


def table(X: Any, *, buffers: str = "median") -> Table:
    """Return the rows of `X`, where they are, after checking that they can be aggregated.

    Parameters
    ----------
    X : array or sequence
        An array of shape (n, ...), a sequence of n equal-shaped arrays, or a sequence of n equal
        structures (see the top of this file). float16, bfloat16, float32 or float64; different
        leaves of a structure may have different dtypes. Never written; gradients do not flow.
    buffers : {"median", "first", "error"}
        What becomes of integer and bool leaves of structures: their lower median (an integer, and
        as robust as a median), the value of row 0, or a TypeError.

    Returns
    -------
    Table

    Raises
    ------
    TypeError
        Not an array, a dtype or kind of array that cannot be read, or rows of different libraries
        or dtypes.
    ValueError
        No rows, or rows of different shapes, structures or devices.

    Examples
    --------
    >>> T = table([{"w": np.ones(4), "b": np.ones(1)}] * 3)
    >>> T.n, T.columns, T.paths, T.device
    (3, 5, ('w', 'b'), 'cpu')
    """
    if buffers not in _POLICIES:
        raise unknown("buffers policy", buffers, _POLICIES)
    library = _library(X)
    if library is None:
        return _table_of_sequence(X, buffers)
    view = library.view(X)
    shape = view.shape
    if not shape:
        raise ValueError("a 0-d array has no rows: pass an array of shape (n, ...)")
    n = shape[0]
    if n == 0:
        raise ValueError(f"no rows (n = 0): X has shape {tuple(shape)}, pass at least one row")
    dtype = view.dtype
    size = _SIZES.get(dtype)
    if size is None:
        raise _wrong_dtype("X", dtype, library)
    row = shape[1:]
    columns = row[0] if len(row) == 1 else prod(row)
    step = columns * size
    if columns and (view.strides is not None or view.address % size):
        packed = view.strides is None or _packed(row, view.strides[1:], size // view.unit)
        stride = step if view.strides is None else view.strides[0] * view.unit
        if packed and (view.address | stride) % size == 0:
            step = stride
        else:
            view = library.contiguous(view)
    block = Block(_addresses(view.address, n, step), columns, dtype)
    return Table(n, (_Leaf("", library, X, row, dtype, view.device, block, [view]),))


def reference(T: Table, v: Any, name: str = "reference") -> Table:
    """Return `v`, one row in the library, structure, shapes and dtypes of the rows of `T`.

    Parameters
    ----------
    T : Table
        What `v` will be compared with.
    v : array or structure
        Like one row of `T`.
    name : str
        What errors call it.

    Returns
    -------
    Table
        With n == 1.
    """
    if isinstance(T, _Selection):
        raise TypeError("a selection of leaves has no references: select from reference(T, v)")
    if isinstance(v, np.generic):  # a row of a 1-D numpy array
        v = np.asarray(v)
    found: _Found = [("", [v])]
    build: _Build | None = None
    if T._build is not None:
        found = []
        build = _walk([T._row, v], "", lambda i: name if i else "a row of X", found)
    leaves = tuple(
        _leaf(path, arrays[-1:], lambda i: name, leaf)
        for leaf, (path, arrays) in zip(T._leaves, found, strict=True)
    )
    return Table(1, leaves, v, build, T._buffers)


# ------------------------------------------------------------------------- sequences, structures

_Build = Callable[[Iterator[Any]], Any]
_Found = list[tuple[str, list[Any]]]  # path and the arrays that the rows have there
_Label = Callable[[int], str]  # what errors call a row


def _table_of_sequence(X: Any, buffers: str) -> Table:
    if isinstance(X, Mapping) or hasattr(X, "_fields"):
        raise TypeError(
            f"X is one {type(X).__name__}, which is one structure: pass a sequence of n of them, "
            "one per row"
        )
    if not isinstance(X, Sequence) or isinstance(X, (str, bytes)):
        raise _not_an_array("X", X)
    rows = list(X)
    if not rows:
        raise ValueError("no rows (n = 0): X is empty, pass at least one row")
    found: _Found = []
    build = _walk(rows, "", "row {}".format, found)
    leaves = tuple(_leaf(path, arrays, "row {}".format) for path, arrays in found)
    devices = {leaf.device: leaf.path for leaf in leaves}
    if len(devices) > 1:
        where = ", ".join(f"leaf {path!r} is on {device}" for device, path in devices.items())
        raise ValueError(f"all leaves must be on one device: {where}")
    for leaf in leaves:
        if leaf.block is None and leaf.device != "cpu" and not leaf.library.votes:
            raise TypeError(
                f"leaf {leaf.path!r} holds integers of {leaf.library.name} on {leaf.device}, which "
                "are not aggregated there: drop it"
            )
    integers = [leaf.path for leaf in leaves if leaf.block is None]
    if integers and buffers == "error":
        raise TypeError(
            f"leaf {integers[0]!r} holds integers: pass buffers='median' or 'first', or drop it"
        )
    return Table(len(rows), leaves, rows[0], build, buffers)


def _walk(nodes: list[Any], path: str, label: _Label, found: _Found) -> _Build:
    """Append the leaves of n equal structures to `found`; return how to build one from values."""
    first = nodes[0]
    family = _family(first)
    if family is None and (first is not None or path == ""):
        found.append((path, nodes))
        return next
    names = _names(first, family)
    for i, node in enumerate(nodes):
        if _family(node) is not family or (family is None and node is not None):
            kinds = ["None" if x is None else f"a {type(x).__name__}" for x in (node, first)]
            raise TypeError(
                f"{_place(path, label(i))} is {kinds[0]}, that of {label(0)} is {kinds[1]}: all "
                "rows must have one structure"
            )
        odd = set(names).symmetric_difference(_names(node, family))
        if odd:
            key = min(odd, key=str)
            has, lacks = (0, i) if key in names else (i, 0)
            raise ValueError(
                f"{_place(path, label(has))} has the entry {key!r} and {label(lacks)} has not: "
                "all rows must have one structure"
            )
    keys = names if family is Mapping else range(len(names))
    prefix = f"{path}." if path else ""
    children = [
        (key, _walk([node[key] for node in nodes], f"{prefix}{name}", label, found))
        for key, name in zip(keys, names, strict=True)
    ]

    def build(values: Iterator[Any]) -> Any:
        if first is None:
            return None
        made = [(key, child(values)) for key, child in children]
        if isinstance(first, dict):
            result = copy(first)  # keeps the order and what a state_dict or defaultdict carries
            result.update(made)
            return result
        if family is Mapping:
            return type(first)(dict(made))
        entries = [value for _, value in made]
        return type(first)(*entries) if hasattr(first, "_fields") else type(first)(entries)

    return build


def _family(node: Any) -> type | None:
    """Return the kind of container that `node` is."""
    if isinstance(node, Mapping):
        return Mapping
    if isinstance(node, Sequence) and not isinstance(node, (str, bytes)):
        return Sequence
    return None


def _names(node: Any, family: type | None) -> list[Any]:
    """Return the names of the entries of a container."""
    if family is None:
        return []
    if family is Mapping:
        return list(node)
    return list(getattr(node, "_fields", range(len(node))))


def _leaf(path: str, arrays: list[Any], label: _Label, like: _Leaf | None = None) -> _Leaf:
    """Return the leaf of n arrays that agree with each other (or with the leaf `like`)."""
    first: tuple[Any, ...] | None = None
    other = label(0)
    if like is not None:
        first, other = (like.library, like.dtype, like.device, like.shape), "a row of X"
    views = []
    for i, x in enumerate(arrays):
        library = _library(x)
        if library is None:
            raise _not_an_array(_place(path, label(i)), x)
        try:
            view = library.view(x)
        except TypeError as error:
            raise TypeError(f"{_place(path, label(i))}: {error}") from error
        if like is not None and library is _NUMPY and isinstance(like.library, _DLPack):
            library = like.library  # results of unknown libraries are numpy arrays
        this = (library, view.dtype, view.device, view.shape)
        first = first or this
        if this != first:
            raise _differs(_place(path, label(i)), this, other, first)
        views.append(view)
    library, dtype, device, shape = this
    if dtype not in _SIZES and (path == "" or dtype not in _INTEGERS):
        raise _wrong_dtype(_place(path, label(0)), dtype, library)
    size = _SIZES.get(dtype) or np.dtype(dtype).itemsize
    for i, view in enumerate(views):
        packed = view.strides is None or _packed(shape, view.strides, size // view.unit)
        if not packed or view.address % size:
            views[i] = library.contiguous(view)
    block = None
    if dtype in _SIZES:
        addresses = np.array([view.address for view in views], np.int64)
        block = Block(addresses, prod(shape), dtype)
    return _Leaf(path, library, arrays[0], tuple(shape), dtype, device, block, views)


def _empty_structures(T: Table, build: _Build, count: int | None) -> Out:
    leaves = T._leaves
    made = [
        [leaf.library.make(leaf.like, leaf.shape) for leaf in leaves]
        for _ in range(1 if count is None else count)
    ]
    blocks = tuple(
        Block(np.array([row[k][0] for row in made], np.int64), leaf.block.columns, leaf.dtype)
        for k, leaf in enumerate(leaves)
        if leaf.block is not None
    )

    def finish() -> Any:
        for k, leaf in enumerate(leaves):
            if leaf.block is None:
                if leaf.device != "cpu":
                    arrays = [view.owner for view in leaf.views]
                    for row in made:
                        leaf.library.vote(arrays, T._buffers, row[k][1])
                    continue
                vote = leaf.vote(T._buffers)
                for row in made:
                    view = _View(row, row[k][0], leaf.shape, None, 1, leaf.dtype, leaf.device)
                    _memory(view, writable=True)[...] = vote
        rows = []
        for row in made:
            pairs = zip(leaves, row, strict=True)
            values = [leaf.library.finish(owner, leaf.like) for leaf, (_, owner) in pairs]
            rows.append(build(iter(values)))
        return rows[0] if count is None else rows

    return Out(blocks, finish)


def _packed(shape: Sequence[int], strides: Sequence[int], step: int) -> bool:
    """Say whether an array is C-contiguous (strides of axes of length 1 mean nothing)."""
    for length, stride in zip(reversed(shape), reversed(strides), strict=True):
        if length != 1 and stride != step:
            return False
        step *= length
    return True


def _addresses(address: int, n: int, step: int) -> np.ndarray:
    if n == 1:
        return np.array((address,), np.int64)
    if step == 0:  # one row n times, or no columns
        return np.full(n, address, np.int64)
    return np.arange(address, address + n * step, step, dtype=np.int64)


# ---------------------------------------------------------------------------------------- errors


def _place(path: str, row: str) -> str:
    return f"leaf {path!r} of {row}" if path else row


def _not_an_array(what: str, x: Any) -> TypeError:
    kind = type(x).__name__
    if isinstance(x, (int, float, complex, np.generic)) and what.startswith("leaf"):
        hint = "make it an array, as np.asarray does, or leave it out"
    elif isinstance(x, (int, float, complex, np.generic)):
        hint = "pass one array, for example np.asarray(X), instead of single numbers"
    elif hasattr(x, "state_dict"):
        hint = "pass its state_dict()"
    elif isinstance(x, Iterator) or hasattr(x, "keys") or type(x).__name__.startswith("dict_"):
        hint = "pass a list: list(X)"
    elif hasattr(x, "__array__"):
        hint = "pass np.asarray of it"
    else:
        hint = "pass an (n, ...) array, or a sequence of n arrays or of n structures of arrays"
    return TypeError(f"{what} is a {kind}, not an array: {hint}")


def _wrong_dtype(what: str, dtype: str, library: _Library) -> TypeError:
    if dtype.startswith("complex"):
        hint = "split it into real and imaginary parts first"
    else:
        hint = f"convert it first, for example {library.convert}"
    return TypeError(f"{what} is {dtype}, but only {_FLOATS} are aggregated: {hint}")


def _differs(
    what: str, this: tuple[Any, ...], other: str, first: tuple[Any, ...]
) -> TypeError | ValueError:
    """Return the error for two rows that differ in library, dtype, device or shape."""
    if this[0] is not first[0]:
        library = (this[0].name, first[0].name)
        return TypeError(
            f"{what} is a {library[0]} array, {other} a {library[1]} one: convert all to one"
        )
    if this[1] != first[1]:
        return TypeError(f"{what} is {this[1]}, {other} is {first[1]}: convert all to one dtype")
    if this[2] != first[2]:
        return ValueError(f"{what} is on {this[2]}, {other} on {first[2]}: move all to one device")
    shapes = (tuple(this[3]), tuple(first[3]))
    return ValueError(
        f"{what} has shape {shapes[0]}, {other} has {shapes[1]}: all rows must have one shape"
    )
