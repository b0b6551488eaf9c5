"""Arrays of every library arrive as the right addresses and come back as what they were."""

from __future__ import annotations

import collections
import ctypes
import gc
import itertools
import math
import subprocess
import sys
import types
import weakref
from typing import Any, NamedTuple

import numpy as np
import pytest

import fastgar as fg
from fastgar.arrays import Block, Out, Table, reference, table

SIZES = {"float16": 2, "bfloat16": 2, "float32": 4, "float64": 8}
DTYPES = tuple(SIZES)


# ------------------------------------------------ memory, read and written without any library


def bits(block: Block, i: int) -> np.ndarray:
    """The memory of row i of a block, as numpy sees it (bfloat16 as uint16); writable."""
    assert block.addresses.dtype == np.int64 and block.addresses.ndim == 1
    size = block.columns * SIZES[block.dtype]
    if size == 0:
        return np.empty(0, np.float32)
    memory = (ctypes.c_uint8 * size).from_address(int(block.addresses[i]))
    return np.frombuffer(memory, "uint16" if block.dtype == "bfloat16" else block.dtype)


def read(block: Block) -> np.ndarray:
    """All rows of a block in float64."""
    rows = []
    for i in range(len(block.addresses)):
        row = bits(block, i)
        if block.dtype == "bfloat16":
            row = (row.astype(np.uint32) << 16).view(np.float32)
        rows.append(row.astype(np.float64))
    return np.array(rows).reshape(len(rows), block.columns)


def write(block: Block, i: int, values: np.ndarray) -> None:
    """Write numbers (exact in the dtype of the block) to row i of a result."""
    values = np.asarray(values).ravel()
    if block.dtype == "bfloat16":
        values = (values.astype(np.float32).view(np.uint32) >> 16).astype(np.uint16)
    bits(block, i)[...] = values


def fill(T: Table, out: Out) -> Any:
    """Copy row 0 of `T` to each row of `out` and finish it."""
    for source, places in zip(T.blocks, out.places, strict=True):
        target = source._replace(addresses=np.array(places))
        for i in range(len(places)):
            bits(target, i)[...] = bits(source, 0)
    return out.value()


# --------------------------------------------------------------------------------- the libraries


class Numpy:
    def make(self, values: Any, dtype: str) -> Any:
        if dtype == "bfloat16":
            return np.array(values).astype(pytest.importorskip("ml_dtypes").bfloat16)
        return np.array(values, dtype)

    def check(self, x: Any, dtype: str) -> None:
        assert type(x) is np.ndarray and x.dtype.name == dtype and x.flags.writeable

    def floats(self, x: Any) -> np.ndarray:
        return np.asarray(x).astype(np.float64)

    def pointer(self, x: Any) -> int:
        return int(x.ctypes.data)


class ReadOnly(Numpy):
    def make(self, values: Any, dtype: str) -> Any:
        x = super().make(values, dtype)
        x.flags.writeable = False
        return x


class Strided(Numpy):
    def make(self, values: Any, dtype: str) -> Any:
        x = super().make(values, dtype)
        if x.ndim == 0:
            return x
        wide = np.zeros((2 * len(x), *x.shape[1:]), x.dtype)
        wide[::2] = x
        return wide[::2]


class Torch:
    def __init__(self) -> None:
        self.torch = pytest.importorskip("torch")

    def make(self, values: Any, dtype: str) -> Any:
        return self.torch.tensor(np.asarray(values, "float64")).to(getattr(self.torch, dtype))

    def check(self, x: Any, dtype: str) -> None:
        assert type(x) is self.torch.Tensor and x.dtype == getattr(self.torch, dtype)
        assert x.device.type == "cpu" and not x.requires_grad

    def floats(self, x: Any) -> np.ndarray:
        return x.detach().double().numpy().copy()

    def pointer(self, x: Any) -> int:
        return x.data_ptr()


class Jax:
    def __init__(self) -> None:
        self.jax = pytest.importorskip("jax")

    def make(self, values: Any, dtype: str) -> Any:
        with self.jax.enable_x64(True):
            return self.jax.numpy.array(values, dtype)

    def check(self, x: Any, dtype: str) -> None:
        assert isinstance(x, self.jax.Array) and x.dtype.name == dtype

    def floats(self, x: Any) -> np.ndarray:
        return np.array(x).astype(np.float64)

    def pointer(self, x: Any) -> int:
        return x.unsafe_buffer_pointer()


class TensorFlow:
    def __init__(self) -> None:
        self.tf = pytest.importorskip("tensorflow")

    def make(self, values: Any, dtype: str) -> Any:
        return self.tf.cast(self.tf.constant(np.asarray(values, "float64")), dtype)

    def check(self, x: Any, dtype: str) -> None:
        assert isinstance(x, self.tf.Tensor) and x.dtype.name == dtype

    def floats(self, x: Any) -> np.ndarray:
        return np.array(self.tf.cast(x, "float64"))

    def pointer(self, x: Any) -> int:
        return np.asarray(x).ctypes.data


class Capsules:
    """An array of which nothing is known but ``__dlpack__``."""

    def __init__(self, x: Any, versioned: bool) -> None:
        self.x, self.versioned = x, versioned

    def __dlpack__(self, **options: Any) -> Any:
        if options and not self.versioned:
            raise TypeError("max_version is not an option")
        return self.x.__dlpack__(**options)

    def __dlpack_device__(self) -> Any:
        return self.x.__dlpack_device__()


class Unknown(Numpy):
    versioned = True

    def make(self, values: Any, dtype: str) -> Any:
        if dtype == "bfloat16":
            return Capsules(Torch().make(values, dtype), self.versioned)
        return Capsules(super().make(values, dtype), self.versioned)

    def floats(self, x: Any) -> np.ndarray:
        if not isinstance(x, Capsules):
            return super().floats(x)
        return Torch().floats(x.x) if hasattr(x.x, "data_ptr") else super().floats(x.x)

    def pointer(self, x: Any) -> int:
        return x.x.data_ptr() if hasattr(x.x, "data_ptr") else super().pointer(x.x)


class OldUnknown(Unknown):
    versioned = False


class Named(Capsules):
    """The same with an array API namespace."""

    def __array_namespace__(self) -> Any:
        def from_dlpack(x: Any) -> Named:
            return Named(np.from_dlpack(x), True)

        return types.SimpleNamespace(from_dlpack=from_dlpack)


class Namespace(Unknown):
    def make(self, values: Any, dtype: str) -> Any:
        if dtype == "bfloat16":
            pytest.skip("bfloat16 cannot be handed to an unknown namespace")
        return Named(np.array(values, dtype), True)

    def check(self, x: Any, dtype: str) -> None:
        assert type(x) is Named and x.x.dtype.name == dtype


LIBRARIES = {
    "numpy": Numpy,
    "numpy read-only": ReadOnly,
    "numpy strided": Strided,
    "torch": Torch,
    "jax": Jax,
    "tensorflow": TensorFlow,
    "unknown": Unknown,
    "unknown old": OldUnknown,
    "namespace": Namespace,
}


@pytest.fixture(params=LIBRARIES)
def library(request: pytest.FixtureRequest) -> Any:
    return LIBRARIES[request.param]()


def numbers(*shape: int, seed: int = 0) -> np.ndarray:
    """Small integers over 4: exact in every dtype."""
    return np.random.default_rng(seed).integers(-99, 100, shape) / 4


# ------------------------------------------------------------------------ arrays of shape (n, ...)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(3, 5), (1, 1), (4, 1), (3, 2, 3), (2, 0), (2, 3, 0), (5, 1, 7)])
def test_array_there_and_back(library: Any, dtype: str, shape: tuple[int, ...]) -> None:
    values = numbers(*shape)
    X = library.make(values, dtype)
    T = table(X)
    assert (T.n, T.device, T.paths) == (shape[0], "cpu", ("",))
    assert T.columns == math.prod(shape[1:]) == T.blocks[0].columns
    assert T.blocks[0].dtype == dtype and len(T.blocks[0].addresses) == shape[0]
    np.testing.assert_array_equal(read(T.blocks[0]), values.reshape(shape[0], -1))
    if T.columns:
        assert T.blocks[0].addresses[0] == library.pointer(X)  # in place

    row = fill(T, T.empty())
    library.check(row, dtype)
    np.testing.assert_array_equal(library.floats(row), values[0], strict=True)
    stack = fill(T, T.empty(2))
    library.check(stack, dtype)
    np.testing.assert_array_equal(library.floats(stack), values[[0, 0]], strict=True)
    np.testing.assert_array_equal(library.floats(X), values)  # input as it was


@pytest.mark.parametrize("dtype", DTYPES)
def test_sequence_of_arrays_is_not_stacked(library: Any, dtype: str) -> None:
    values = numbers(4, 2, 3)
    for kind in (list, tuple, collections.deque):
        X = kind(library.make(v, dtype) for v in values)
        T = table(X)
        assert (T.n, T.columns, T.paths) == (4, 6, ("",))
        np.testing.assert_array_equal(read(T.blocks[0]), values.reshape(4, 6))
        if not isinstance(library, Strided):
            assert T.blocks[0].addresses.tolist() == [library.pointer(x) for x in X]
        row = fill(T, T.empty())
        library.check(row, dtype)
        np.testing.assert_array_equal(library.floats(row), values[0])
        stack = fill(T, T.empty(3))
        assert isinstance(stack, list) and len(stack) == 3
        assert table(stack).n == 3  # valid input again
        for each in stack:
            library.check(each, dtype)
            np.testing.assert_array_equal(library.floats(each), values[0])
        for x, v in zip(X, values, strict=True):
            np.testing.assert_array_equal(library.floats(x), v)


def test_stack_of_no_rows_is_empty() -> None:
    assert table(np.ones((2, 3))).empty(0).value().shape == (0, 3)
    assert table([np.ones(3)] * 2).empty(0).value() == []


def test_each_result_has_memory_of_its_own(library: Any) -> None:
    values = numbers(2, 40)
    T = table(library.make(values, "float32"))
    outs = [T.empty(), T.empty(), T.empty(3)]
    places = [*T.blocks[0].addresses.tolist(), *(a for out in outs for a in out.places[0])]
    spans = [(a, a + 160) for a in places]
    spans.sort()
    assert all(end <= start for (_, end), (start, _) in itertools.pairwise(spans))


VIEWS = {
    "columns": lambda X: X[:, 3:50],
    "every second row": lambda X: X[::2],
    "both": lambda X: X[1::3, 5:],
    "one row": lambda X: X[4:5, 1:],
}


@pytest.mark.parametrize("view", VIEWS)
@pytest.mark.parametrize("kind", [Numpy, Torch])
def test_row_strides_are_read_in_place(kind: Any, view: str) -> None:
    library = kind()
    values = numbers(9, 60)
    X = VIEWS[view](library.make(values, "float32"))
    T = table(X)
    np.testing.assert_array_equal(read(T.blocks[0]), VIEWS[view](values))
    assert T.blocks[0].addresses.tolist() == [library.pointer(X[i]) for i in range(T.n)]


@pytest.mark.parametrize(
    "X",
    [
        pytest.param(numbers(6, 5)[::-1], id="negative rows"),
        pytest.param(numbers(6, 4, 5)[::-2, 1:3], id="blocks of rows"),
        pytest.param(numbers(6, 4, 5)[:, ::2][:, :1], id="an axis of one"),
        pytest.param(np.broadcast_to(numbers(5), (4, 5)), id="one row n times"),
        pytest.param(numbers(6)[::-2, None], id="numbers backwards"),
        pytest.param(numbers(6, 1).T[:, ::-1].T, id="one column backwards"),
    ],
)
def test_odd_numpy_strides_are_read_in_place(X: np.ndarray) -> None:
    T = table(X)
    np.testing.assert_array_equal(read(T.blocks[0]), X.reshape(len(X), -1))
    assert T.blocks[0].addresses.tolist() == [X[i : i + 1].ctypes.data for i in range(len(X))]


def unaligned(values: np.ndarray) -> np.ndarray:
    memory = np.zeros(values.nbytes + 1, np.uint8)
    X = memory[1:].view(values.dtype).reshape(values.shape)
    X[...] = values
    assert not X.flags.aligned
    return X


COPIED = {
    "column order": np.asfortranarray(numbers(4, 6)),
    "every second column": numbers(4, 6)[:, ::2],
    "columns backwards": numbers(4, 6)[:, ::-1],
    "columns broadcast": np.broadcast_to(numbers(4, 1), (4, 6)),
    "axes swapped": numbers(4, 6, 3).transpose(0, 2, 1),
    "other byte order": numbers(4, 6).astype(">f8"),
    "other byte order, float16": numbers(4, 6).astype(">f2"),
    "unaligned": unaligned(numbers(4, 6).astype(np.float32)),
    "field of a record": np.rec.fromarrays([numbers(4, 1).astype("f4"), numbers(4, 1)])["f1"],
}


@pytest.mark.parametrize("name", COPIED)
@pytest.mark.parametrize("rows", [False, True], ids=["array", "list"])
def test_other_layouts_are_copied(name: str, rows: bool) -> None:
    values = COPIED[name]
    before = values.copy()
    T = table(list(values) if rows and values.ndim > 1 else values)
    assert T.blocks[0].dtype == values.dtype.name
    np.testing.assert_array_equal(read(T.blocks[0]), values.reshape(4, -1))
    assert (T.blocks[0].addresses % values.itemsize == 0).all()
    row = fill(T, T.empty())
    assert row.dtype == values.dtype.newbyteorder("=") and row.dtype.isnative
    np.testing.assert_array_equal(row, values[0])
    np.testing.assert_array_equal(values, before)


def test_numpy_subclasses_come_back_as_arrays(tmp_path: Any) -> None:
    mapped = np.memmap(tmp_path / "x", np.float32, "w+", shape=(3, 4))
    mapped[...] = numbers(3, 4)

    class Mine(np.ndarray):
        pass

    for X in (mapped, numbers(3, 4).view(Mine)):
        T = table(X)
        row = fill(T, T.empty())
        assert type(row) is np.ndarray
        np.testing.assert_array_equal(row, np.asarray(X)[0])


def test_torch_views_and_gradients() -> None:
    torch = pytest.importorskip("torch")
    x = torch.tensor(numbers(4, 6))
    leaf = x.clone().requires_grad_()
    cases = {
        "requires grad": leaf,
        "inside a graph": leaf * 2,
        "parameter": torch.nn.Parameter(x.clone()),
        "transposed": x.T,
        "every second column": x[:, ::2],
        "expanded": x[0].expand(3, 6),
        "channels last": torch.tensor(numbers(2, 3, 4, 5)).to(memory_format=torch.channels_last),
        "negative bit": torch._neg_view(x),
        "inference": torch.inference_mode()(lambda: x * 1)(),
    }
    for name, X in cases.items():
        T = table(X)
        want = X.detach().numpy() if name != "negative bit" else -x.numpy()
        np.testing.assert_array_equal(read(T.blocks[0]), want.reshape(len(want), -1), name)
        row = fill(T, T.empty())
        Torch().check(row, "float64")
        assert row.is_contiguous()
        np.testing.assert_array_equal(row.numpy(), want[0], name)
    assert table(leaf).blocks[0].addresses[0] == leaf.data_ptr()
    assert len(set(table(cases["expanded"]).blocks[0].addresses.tolist())) == 1

    class Mine(torch.Tensor):
        pass

    T = table(x.as_subclass(Mine))
    np.testing.assert_array_equal(read(T.blocks[0]), x.numpy())
    Torch().check(fill(T, T.empty()), "float64")


def test_torch_results_ignore_the_default_device() -> None:
    torch = pytest.importorskip("torch")
    T = table(torch.ones(2, 3))
    with torch.device("meta"):
        result = fill(T, T.empty())
    assert result.device.type == "cpu" and result.tolist() == [1, 1, 1]


def test_jax_takes_results_over_without_a_copy() -> None:
    jax = pytest.importorskip("jax")
    for dtype in ("float32", "bfloat16"):
        T = table(jax.numpy.ones((2, 1000), dtype))
        out = T.empty()
        ((address,),) = out.places
        assert address % 64 == 0
        result = fill(T, out)
        assert result.unsafe_buffer_pointer() == address
        del out, T
        gc.collect(1)
        rubbish = [np.full(2000, 7, np.uint8) for _ in range(200)]  # would land in freed memory
        assert (result == 1).all(), len(rubbish)
        assert not result.committed  # goes wherever the next computation wants it


def test_jax_committed_arrays_stay_where_they_are() -> None:
    jax = pytest.importorskip("jax")
    device = jax.devices("cpu")[0]
    T = table(jax.device_put(np.ones((2, 3), np.float32), device))
    result = fill(T, T.empty())
    assert result.committed and result.device == device


def test_tensorflow_variables() -> None:
    tf = pytest.importorskip("tensorflow")
    T = table(tf.Variable(numbers(3, 4)))
    np.testing.assert_array_equal(read(T.blocks[0]), numbers(3, 4))
    TensorFlow().check(fill(T, T.empty()), "float64")


def test_addresses_outlive_the_input(library: Any) -> None:
    values = numbers(3, 500)
    for X in (
        library.make(values, "float32"),
        [library.make(v, "float32") for v in values],
        [{"a": library.make(v, "float32")} for v in values],
    ):
        T = table(X)
        one = reference(T, fill(T, T.empty()))
        selected = T.select(lambda path: True)
        keepers = [(one, values[:1]), (selected, values), (T, values)]
        del X, T, one, selected
        while keepers:  # the last alone, too
            keeper, want = keepers.pop()
            gc.collect(1)
            rubbish = [np.full(500, 7, np.float32) for _ in range(50)]
            np.testing.assert_array_equal(read(keeper.blocks[0]), want, str(len(rubbish)))


@pytest.mark.parametrize("rows", [False, True], ids=["array", "list"])
def test_copies_live_as_long_as_the_table(rows: bool) -> None:
    values = numbers(3, 4, 500)
    X = values.transpose(0, 2, 1)
    T = table(list(X) if rows else X)
    rubbish = [np.full(values.size // 3 ** (i % 2), 7.0) for i in range(60)]
    np.testing.assert_array_equal(read(T.blocks[0]), X.reshape(3, -1), str(len(rubbish)))


def test_tables_let_their_input_go() -> None:
    class Mine(np.ndarray):
        pass

    X = np.ones((3, 4)).view(Mine)
    watch = weakref.ref(X)
    out = fill(table(X), table(X).empty())
    del X
    gc.collect(1)
    assert watch() is None and out.shape == (4,)


# -------------------------------------------------------------------------------------- structures


class Pair(NamedTuple):
    weight: Any
    rest: Any


def test_structures_come_back_as_they_were(library: Any) -> None:
    def row(i: int) -> Any:
        make, part = library.make, numbers(4, 12, seed=i)
        return {
            "layer": collections.OrderedDict(
                weight=make(part[0, :6].reshape(2, 3), "float32"), bias=make(part[1], "float16")
            ),
            "pair": Pair(make(part[2], "float64"), [make(part[3, :1], "float32"), None]),
            "last": (make(part[0, 0], "float32"), {}, []),
        }

    rows = [row(i) for i in range(3)]
    T = table(rows)
    assert T.paths == ("layer.weight", "layer.bias", "pair.weight", "pair.rest.0", "last.0")
    assert [b.dtype for b in T.blocks] == ["float32", "float16", "float64", "float32", "float32"]
    assert [b.columns for b in T.blocks] == [6, 12, 12, 1, 1]
    assert (T.n, T.columns, T.device) == (3, 32, "cpu")
    np.testing.assert_array_equal(read(T.blocks[1]), [numbers(4, 12, seed=i)[1] for i in range(3)])
    result = fill(T, T.empty())
    stack = fill(T, T.empty(2))
    assert isinstance(stack, list) and len(stack) == 2
    for made in (result, *stack):
        assert type(made) is dict and list(made) == ["layer", "pair", "last"]
        assert type(made["layer"]) is collections.OrderedDict
        assert type(made["pair"]) is Pair and made["pair"].rest[1] is None
        assert type(made["last"]) is tuple and made["last"][1:] == ({}, [])
        library.check(made["layer"]["bias"], "float16")
        for path in (
            lambda r: r["layer"]["weight"],
            lambda r: r["layer"]["bias"],
            lambda r: r["pair"].weight,
            lambda r: r["pair"].rest[0],
            lambda r: r["last"][0],
        ):
            np.testing.assert_array_equal(
                library.floats(path(made)), library.floats(path(rows[0])), strict=True
            )
            assert path(made) is not path(rows[0])
    assert table(stack).paths == T.paths


def test_keys_are_matched_by_name_and_kinds_are_kept() -> None:
    a, b = np.ones(2), np.full(3, 2.0)
    T = table([{"a": a, "b": b}, {"b": b, "a": a}])
    np.testing.assert_array_equal(read(T.blocks[0]), [a, a])
    default = collections.defaultdict(list, a=a)
    made = fill(table([default]), table([default]).empty())
    assert type(made) is collections.defaultdict and made.default_factory is list
    proxy = types.MappingProxyType({"a": a})
    made = fill(table([proxy]), table([proxy]).empty())
    assert type(made) is types.MappingProxyType and made["a"].tolist() == [1, 1]
    assert default["a"] is a  # the input's own containers are not touched


def test_list_of_lists_of_arrays_is_n_structures() -> None:
    T = table([[np.ones(2), np.ones(3)], [np.zeros(2), np.zeros(3)], [np.ones(2), np.ones(3)]])
    assert (T.n, T.columns, T.paths) == (3, 5, ("0", "1"))
    deep = table([[[np.ones(2)], np.ones(3)]] * 2)
    assert deep.paths == ("0.0", "1")


def test_structures_without_numbers() -> None:
    T = table([{}, {}])
    assert (T.n, T.columns, T.blocks, T.device) == (2, 0, (), "cpu")
    assert T.empty().value() == {} and T.empty(2).value() == [{}, {}]


def test_state_dicts_of_a_model_load_again() -> None:
    torch = pytest.importorskip("torch")
    models = [torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.BatchNorm1d(2)) for _ in range(4)]
    for steps, model in enumerate(models):
        for _ in range(steps):
            model(torch.randn(5, 3))
    rows = [model.state_dict() for model in models]
    before = [{k: v.clone() for k, v in row.items()} for row in rows]
    T = table(rows)
    assert "0.weight" in T.paths and "1.running_mean" in T.paths
    assert "1.num_batches_tracked" not in T.paths
    made = fill(T, T.empty())
    assert type(made) is collections.OrderedDict and list(made) == list(rows[0])
    assert made._metadata == rows[0]._metadata
    count = made["1.num_batches_tracked"]
    assert count.item() == 1 and count.dtype == torch.int64 and count.shape == ()
    for row, old in zip(rows, before, strict=True):
        assert all(torch.equal(row[k], old[k]) for k in old)
    models[3].load_state_dict(made)
    assert all(torch.equal(models[3].state_dict()[k], made[k]) for k in made)


INTEGERS = np.array([[5], [-1], [3], [2]])


@pytest.mark.parametrize("kind", [Numpy, Torch, Jax, TensorFlow, Unknown, Namespace])
@pytest.mark.parametrize("dtype", ["int8", "int32", "uint8", "bool"])
@pytest.mark.parametrize(("buffers", "count"), [("median", None), ("first", None), ("median", 2)])
def test_integer_leaves(kind: Any, dtype: str, buffers: str, count: int | None) -> None:
    library = kind()
    values = np.abs(INTEGERS) if dtype in ("bool", "uint8") else INTEGERS
    values = values > 2 if dtype == "bool" else values
    rows = [{"w": library.make([1.0], "float32"), "i": library.make(v, dtype)} for v in values]
    T = table(rows, buffers=buffers)
    assert T.paths == ("w",)
    made = fill(T, T.empty(count))
    want = values[0] if buffers == "first" else np.sort(values, axis=0)[1]  # the lower middle of 4
    for each in made if count else [made]:
        library.check(each["i"], dtype)
        np.testing.assert_array_equal(library.floats(each["i"]), want)
    for row, v in zip(rows, values, strict=True):
        np.testing.assert_array_equal(library.floats(row["i"]), v)


def test_integer_leaves_of_odd_layouts_and_sizes() -> None:
    wide = np.arange(24).reshape(4, 6)
    rows = [{"w": np.ones(1), "i": x[::2], "e": np.empty((0, 3), np.int16)} for x in wide]
    made = table(rows, buffers="first").empty().value()
    assert made["i"].tolist() == [0, 2, 4] and made["i"].dtype == np.int64
    assert made["e"].shape == (0, 3) and made["e"].dtype == np.int16
    swapped = table([[np.ones(1), np.array([i], ">i4")] for i in (7, 258, 9)])
    assert swapped.empty().value()[1].tolist() == [9]


def test_buffers_policy_error_and_unknown() -> None:
    rows = [{"w": np.ones(2), "steps": np.array(3)}] * 2
    with pytest.raises(
        TypeError, match=r"'steps' holds integers: pass buffers='median', 'first' or"
    ):
        table(rows, buffers="error")
    with pytest.raises(ValueError, match="did you mean 'median'"):
        table(rows, buffers="medain")
    with pytest.raises(ValueError, match="did you mean 'first'"):
        table(np.ones((2, 2)), buffers="frist")


def test_selected_leaves() -> None:
    T = table([{"conv": {"weight": np.full(3, i), "bias": np.ones(2)}} for i in (1.0, 2.0)])
    S = T.select(lambda path: path.endswith("weight"))
    assert (S.n, S.paths, S.columns, S.device) == (2, ("conv.weight",), 3, "cpu")
    np.testing.assert_array_equal(read(S.blocks[0]), [[1, 1, 1], [2, 2, 2]])
    with pytest.raises(ValueError, match=r"no leaf is selected: .*'conv.weight', 'conv.bias'"):
        T.select(lambda path: False)
    with pytest.raises(TypeError, match="make them from the whole table"):
        S.empty()
    with pytest.raises(TypeError, match=r"select from reference\(T, v\)"):
        reference(S, {})
    assert table(np.ones((2, 2))).select(lambda path: path == "").columns == 2


# -------------------------------------------------------------------------------------- references


def test_references(library: Any) -> None:
    values, own = numbers(3, 2, 4), numbers(2, 4, seed=1)
    make = library.make
    for X, v in (
        (make(values, "float32"), make(own, "float32")),
        ([make(x, "float32") for x in values], make(own, "float32")),
        ([{"a": [make(x, "float32")]} for x in values], {"a": [make(own, "float32")]}),
    ):
        T = table(X)
        R = reference(T, v)
        assert (R.n, R.columns, R.paths, R.device) == (1, 8, T.paths, "cpu")
        np.testing.assert_array_equal(read(R.blocks[0]), own.reshape(1, 8))
        again = reference(T, fill(R, R.empty()))  # results are references
        np.testing.assert_array_equal(read(again.blocks[0]), own.reshape(1, 8))


def test_references_that_need_a_copy_or_are_numbers() -> None:
    T = table(numbers(3, 4))
    np.testing.assert_array_equal(
        read(reference(T, numbers(4, 4)[:, 1]).blocks[0]), [numbers(4, 4)[:, 1]]
    )
    T = table([row.reshape(()) for row in numbers(3, 1)])
    np.testing.assert_array_equal(read(reference(T, numbers(3)[1]).blocks[0]), [numbers(3)[1:2]])
    rows = [{"w": np.ones(2), "steps": np.array(i)} for i in range(3)]
    R = reference(table(rows), rows[1])
    assert R.paths == ("w",) and R.empty().value()["steps"] == 1


@pytest.mark.parametrize(
    ("v", "error", "message"),
    [
        (np.ones(5), ValueError, r"start has shape \(5,\), a row of X has \(4,\)"),
        (np.ones((1, 4)), ValueError, r"start has shape \(1, 4\), a row of X has \(4,\)"),
        (np.ones(4, "f4"), TypeError, "start is float32, a row of X is float64: .* one dtype"),
        ([1.0] * 4, TypeError, "start is a list, not an array"),
        (3.0, TypeError, r"start is a float, not an array: pass one row, like those of X"),
        (None, TypeError, "start is a NoneType, not an array"),
    ],
)
def test_wrong_references(v: Any, error: type[Exception], message: str) -> None:
    for X in (np.ones((3, 4)), [np.ones(4)] * 3):
        with pytest.raises(error, match=message):
            reference(table(X), v, "start")


def test_wrong_reference_structures() -> None:
    T = table([{"a": np.ones(2), "b": [np.ones(3)]}] * 3)
    with pytest.raises(ValueError, match="start has the entry 'c' and a row of X has not"):
        reference(T, {"a": np.ones(2), "b": [np.ones(3)], "c": np.ones(1)}, "start")
    with pytest.raises(ValueError, match="a row of X has the entry 'b' and start has not"):
        reference(T, {"a": np.ones(2)}, "start")
    with pytest.raises(ValueError, match=r"leaf 'b.0' of start has shape \(2,\)"):
        reference(T, {"a": np.ones(2), "b": [np.ones(2)]}, "start")
    with pytest.raises(TypeError, match="start is a ndarray, that of a row of X is a dict"):
        reference(T, np.ones(5), "start")
    torch = pytest.importorskip("torch")
    with pytest.raises(TypeError, match="start is a torch array, a row of X a numpy one"):
        reference(table(np.ones((2, 3))), torch.ones(3, dtype=torch.float64), "start")


# ------------------------------------------------------------------------------------------ errors


def frame(library: str) -> Any:
    """Return what looks like a DataFrame of a library."""
    methods = {name: lambda self: np.ones((3, 2)) for name in ("to_numpy", "__array__", "keys")}
    return type("DataFrame", (), {"__module__": f"{library}.core", "shape": (3, 2), **methods})()


ERRORS: dict[str, tuple[Any, type[Exception], str]] = {
    "integers": (np.ones((2, 3), int), TypeError, r"X is int64, but only float16.*X.astype\(np"),
    "bool": (np.ones((2, 3), bool), TypeError, "X is bool, but only float16"),
    "complex": (np.ones((2, 3), complex), TypeError, "complex128.*real and imaginary parts"),
    "long double": (np.ones((2, 3), np.longdouble), TypeError, "but only .* and float64 are"),
    "objects": (np.array([None, 1.0]), TypeError, "X is object, but only"),
    "integer rows": ([np.ones(3, int)] * 2, TypeError, "row 0 is int64, but only float16"),
    "complex leaf": (
        [{"a": np.ones(3, complex)}] * 2,
        TypeError,
        "leaf 'a' of row 0 is complex128",
    ),
    "no rows": (np.ones((0, 3)), ValueError, r"n = 0.*shape \(0, 3\), pass at least one row"),
    "empty list": ([], ValueError, "n = 0.*pass at least one row"),
    "0-d": (np.array(1.0), ValueError, r"0-d array has no rows: pass .*\(n, ...\)"),
    "floats": ([1.0, 2.0], TypeError, r"X is a list of numbers.*np.asarray\(X, np.float32\)"),
    "numpy floats": (
        [np.float32(1)] * 2,
        TypeError,
        r"X is a list of numbers.*np.asarray\(X, np.float32\)",
    ),
    "one numpy float": (np.float32(1), TypeError, r"X is a float32.*pass an \(n, ...\) array"),
    "nested floats": (
        [[1.0, 2.0]] * 2,
        TypeError,
        r"X is a list of numbers.*np.asarray\(X, np.float32\)",
    ),
    "one float": (1.0, TypeError, r"X is a float, not an array: pass an \(n, ...\) array"),
    "none": (None, TypeError, r"X is a NoneType.*pass an \(n, ...\) array, or a sequence"),
    "only None": ([None, None], TypeError, "row 0 is a NoneType, not an array"),
    "text": ("abc", TypeError, "X is a str, not an array"),
    "text rows": (["abc"], TypeError, "row 0 is a str, not an array"),
    "one vector": (np.ones(5), ValueError, r"one vector .*X\[:, None\] for 5 rows .*a list of vec"),
    "frame": (frame("pandas"), TypeError, r"is a DataFrame, .* pass X.to_numpy\(np.float32\)"),
    "frame of polars": (frame("polars"), TypeError, r"a DataFrame, .* pass X.to_numpy\(\)"),
    "rows of a frame": ([frame("pandas")], TypeError, r"row 0 .* pass row.to_numpy\(np.float32\)"),
    "generator in a list": ([iter("a")], TypeError, r"row 0 .* pass a list: list\(row\)"),
    "generator": ((x for x in [np.ones(2)]), TypeError, r"pass a list: list\(X\)"),
    "values": ({"a": np.ones(2)}.values(), TypeError, r"pass a list: list\(X\)"),
    "set": ({1.0}, TypeError, "X is a set, not an array"),
    "one mapping": ({"a": np.ones((3, 2))}, TypeError, "one dict, .*pass a sequence of n of them"),
    "one namedtuple": (Pair(np.ones(2), np.ones(2)), TypeError, "one Pair.*sequence of n of them"),
    "masked": (np.ma.masked_array([[1.0]], [[True]]), TypeError, r"X.filled\(np.nan\)"),
    "ragged": ([np.ones(3), np.ones(4)], ValueError, r"row 1 has shape \(4,\), row 0 has \(3,\)"),
    "dtypes": ([np.ones(3), np.ones(3, "f4")], TypeError, "row 1 is float32, row 0 is float64"),
    "array and list": ([np.ones(3), [1.0]], TypeError, "row 1 is a list, not an array"),
    "list and array": ([[np.ones(3)], np.ones(3)], TypeError, "row 1 is a ndarray, .* a list"),
    "dict and list": ([{"a": np.ones(3)}, [1.0]], TypeError, "row 1 is a list, .* a dict"),
    "lengths": (
        [[np.ones(3)] * 2, [np.ones(3)]],
        ValueError,
        "row 0 has the entry 1 and row 1 has not",
    ),
    "missing key": (
        [{"a": np.ones(2), "b": np.ones(2)}, {"a": np.ones(2)}],
        ValueError,
        "row 0 has the entry 'b' and row 1 has not: all rows must have one structure",
    ),
    "extra key": (
        [{"m": {}}, {"m": {"b": np.ones(2)}}],
        ValueError,
        "leaf 'm' of row 1 has the entry 'b' and row 0 has not: all rows must have one structure",
    ),
    "leaf shapes": (
        [{"a": [np.ones(2)]}, {"a": [np.ones(2)]}, {"a": [np.ones(3)]}],
        ValueError,
        r"leaf 'a.0' of row 2 has shape \(3,\), .*row 0 has \(2,\): all rows must have one shape",
    ),
    "leaf dtypes": (
        [{"a": np.ones(2)}, {"a": np.ones(2, int)}],
        TypeError,
        "leaf 'a' of row 1 is int64, .*row 0 is float64: convert all to one dtype",
    ),
    "a None": ([[np.ones(2)], [None]], TypeError, "leaf '0' of row 1 is a NoneType, not an array"),
    "not None": ([[None], [np.ones(2)]], TypeError, "leaf '0' of row 1 is a ndarray, .* is None"),
}


@pytest.mark.parametrize("name", ERRORS)
def test_errors_say_what_would_be_right(name: str) -> None:
    X, error, message = ERRORS[name]
    with pytest.raises(error, match=message):
        table(X)


def test_torch_tensors_that_cannot_be_read() -> None:
    torch = pytest.importorskip("torch")
    from torch._subclasses import FakeTensorMode

    x = torch.ones(3, 4)
    freed = torch.ones(3, 4)
    freed.untyped_storage().resize_(0)
    with FakeTensorMode():
        fake = torch.ones(3, 4)
    cases: list[tuple[Any, type[Exception], str]] = [
        (x.int(), TypeError, r"X is int32, .*X.float\(\)"),
        (x.to(torch.complex64), TypeError, "complex64.*real and imaginary"),
        (x.to(torch.float8_e4m3fn), TypeError, "X is float8_e4m3fn, but only float16"),
        (x.to_sparse(), TypeError, r"layout torch.sparse_coo is not dense: pass x.to_dense\(\)"),
        (x.to("meta"), TypeError, "without memory: pass one that holds numbers"),
        (freed, TypeError, "without memory: pass one that holds numbers"),
        (fake, TypeError, "torch FakeTensor has no memory of its own: pass a plain"),
        (torch.nested.nested_tensor([x, x], layout=torch.jagged), TypeError, "torch NestedTensor"),
        (torch.nn.UninitializedParameter(), TypeError, "call fastgar on initialised"),
        (torch.nn.Linear(2, 2), TypeError, r"X is a Linear, .*pass its state_dict\(\)"),
        (torch.nn.Linear(2, 2).parameters(), TypeError, r"X is a generator.*list\(X\)"),
        ([x[0], np.ones(4, "f4")], TypeError, "row 1 is a numpy array, row 0 a torch one"),
        ([x, x.to_sparse()], TypeError, "row 1: a torch tensor of layout"),
        ([{"a": x}, {"a": fake}], TypeError, "leaf 'a' of row 1: a torch FakeTensor"),
    ]
    for X, error, message in cases:
        with pytest.raises(error, match=message):
            table(X)

    def inside(X: Any) -> Any:
        with pytest.raises(TypeError, match=r"outside vmap, grad and other torch.func transforms"):
            table(X)
        return X.sum()

    torch.func.vmap(inside)(torch.ones(2, 3, 4))
    torch.func.grad(inside)(x)


def test_jax_arrays_that_cannot_be_read() -> None:
    jax = pytest.importorskip("jax")

    def inside(X: Any) -> Any:
        with pytest.raises(TypeError, match=r"jax tracer holds no numbers .* jax.pure_callback"):
            table(X)
        with pytest.raises(TypeError, match="row 0: a jax tracer"):
            table([X])
        return X.sum()

    x = jax.numpy.ones((3, 4))
    jax.jit(inside)(x)
    jax.vmap(inside)(x)
    jax.grad(inside)(x)
    with pytest.raises(TypeError, match=r"X is int32, .*X.astype\(jnp.float32\)"):
        table(x.astype(int))
    with pytest.raises(TypeError, match="row 1 is a numpy array, row 0 a jax one"):
        table([x[0], np.ones(4, "f4")])
    with pytest.raises(TypeError, match="PRNGKey"):
        table(jax.random.key(0))


def test_tensorflow_tensors_that_cannot_be_read() -> None:
    tf = pytest.importorskip("tensorflow")

    @tf.function  # type: ignore[untyped-decorator]
    def inside(X: Any) -> Any:
        with pytest.raises(TypeError, match=r"outside tf.function, or through tf.py_function"):
            table(X)
        return X

    inside(tf.ones((2, 3)))
    with pytest.raises(TypeError, match=r"X is int32, .*tf.cast\(X, tf.float32\)"):
        table(tf.ones((2, 3), tf.int32))
    with pytest.raises(TypeError, match="X is an IndexedSlices, not an array"):
        table(tf.IndexedSlices(tf.ones((1, 2)), tf.constant([0]), tf.constant([2, 2])))


def capsule_pointer(capsule: Any) -> int:
    prototype = ctypes.PYFUNCTYPE(ctypes.c_void_p, ctypes.py_object, ctypes.c_char_p)
    return prototype(("PyCapsule_GetPointer", ctypes.pythonapi))(capsule, b"dltensor")


def test_dlpack_objects_may_hand_out_a_copy_or_an_offset() -> None:
    class Copied(Capsules):
        def __dlpack__(self, **options: Any) -> Any:
            return (self.x * 1).__dlpack__()  # the capsule alone owns the memory

    class Shifted(Capsules):
        def __dlpack__(self, **options: Any) -> Any:
            capsule = self.x.__dlpack__()
            start = capsule_pointer(capsule)
            ctypes.c_int64.from_address(start).value -= 24
            ctypes.c_int64.from_address(start + 40).value += 24
            return capsule

    values = numbers(3, 500)
    for kind in (Copied, Shifted):
        T = table(kind(values, True))
        rubbish = [np.full(1500, 7.0) for _ in range(20)]
        np.testing.assert_array_equal(read(T.blocks[0]), values, str(len(rubbish)))


def test_dlpack_objects_that_cannot_be_read() -> None:
    class Refuses(Capsules):
        def __dlpack__(self, **options: Any) -> Any:
            raise BufferError("requires grad")

    class Elsewhere(Capsules):
        """Its capsule says that the memory is on a Metal device."""

        def __dlpack__(self, **options: Any) -> Any:
            capsule = self.x.__dlpack__()
            ctypes.c_int32.from_address(capsule_pointer(capsule) + 8).value = 8
            return capsule

    with pytest.raises(TypeError, match="does not hand its array out: requires grad"):
        table(Refuses(np.ones((2, 3)), True))
    with pytest.raises(TypeError, match="read on the CPU: move it there first"):
        table(Elsewhere(np.ones((2, 3)), True))
    with pytest.raises(TypeError, match="X is complex64, but only"):
        table(Capsules(np.ones((2, 3), "c8"), True))
    with pytest.raises(TypeError, match="row 1 is a numpy array"):
        table([Capsules(np.ones(3), True), np.ones(3)])
    with pytest.raises(TypeError, match="bfloat16 results cannot be handed back"):
        table(Named(Torch().make(numbers(2, 3), "bfloat16"), True))


def test_gpu_tensors_are_tables_of_their_device() -> None:
    torch = pytest.importorskip("torch")
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    x = torch.ones(3, 4, device="cuda")
    T = table(x)
    assert T.device == "cuda:0" and T.blocks[0].addresses[0] == x.data_ptr()
    assert T.blocks[0].addresses[1] == x[1].data_ptr()
    assert T.empty().value().device == x.device
    with pytest.raises(
        ValueError, match="row 1 is on cpu, row 0 on cuda:0: move all to one device"
    ):
        table([x[0], torch.ones(4)])
    with pytest.raises(ValueError, match="leaf 'a' is on cuda:0, leaf 'b' is on cpu"):
        table([{"a": x, "b": torch.ones(4)}] * 2)


def test_no_array_library_is_imported() -> None:
    code = (
        "import sys, numpy as np\n"
        "from fastgar.arrays import table\n"
        "table(np.ones((2, 3))).empty().value(); table([{'a': np.ones(3)}] * 2).empty().value()\n"
        "found = {'torch', 'jax', 'cupy', 'tensorflow', 'ml_dtypes', 'numba'} & set(sys.modules)\n"
        "assert not found, found\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


@pytest.mark.parametrize("name", ["float16", "bfloat16", "float32", "float64"])
def test_large_torch_results_are_tensors_like_any(name: str) -> None:
    torch = pytest.importorskip("torch")
    X = torch.ones((3, 2, 2_100_000), dtype=getattr(torch, name), requires_grad=name != "float16")
    for result, shape in ((fg.median(X), X.shape[1:]), (fg.nnm(X, f=1), X.shape)):
        assert type(result) is torch.Tensor and result.dtype == X.dtype and result.shape == shape
        assert result.is_contiguous() and not result.requires_grad and bool((result == 1).all())
        assert result.data_ptr() % 64 == 0
        result.mul_(2)
        assert torch.equal(result.clone(), torch.full_like(result, 2))
