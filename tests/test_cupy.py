"""The real CuPy from end to end, on GPUs that are not there: see `standin`.

Functions whose names begin with `in_` run in a process of their own, the only one that sees them.
"""

from __future__ import annotations

import ctypes.util
import importlib.util
import multiprocessing
import re
from concurrent.futures import ProcessPoolExecutor

import emulated
import numpy as np
import pytest
import standin
from emulation import KERNELS, needs_compiler

import fastgar as fg
from fastgar.cuda import connect
from fastgar.cuda import device as devices
from fastgar.cuda.backend import NUMBERS, STRUCT, WRITE_TABLE
from fastgar.cuda.driver import _Stream

pytestmark = [
    needs_compiler(),
    pytest.mark.skipif(importlib.util.find_spec("cupy") is None, reason="CuPy is not installed"),
    pytest.mark.skipif(
        ctypes.util.find_library("cuda") is not None, reason="there is a driver, which CuPy takes"
    ),
]

X = np.random.default_rng(0).standard_normal((11, 100)).astype(np.float32)
# Between them, every kernel, and every kind of argument. What picks rows or columns gives the bits
# of the CPU.
PICKING = ["krum", "median", "bulyan", "nan_mean"]
SPECS = [*PICKING, "bulyan(variant='epfl')", "nnm | median", "cge", "mean", "condense"]


@pytest.fixture(scope="module")
def ask(tmp_path_factory):
    """Calls a function where CuPy sees GPUs."""
    context = multiprocessing.get_context("spawn")
    cache = tmp_path_factory.mktemp("cubin")
    with ProcessPoolExecutor(1, context, standin.install, (cache,)) as pool:
        yield lambda function, *given: pool.submit(function, *given).result(300)


def calls_of(work):
    """Return what a call returns, and what CuPy asked for on the way."""
    import cupy

    standin.calls.clear()
    made = work()
    assert not standin.said
    assert cupy.cuda.runtime.getDevice() == 0 and cupy.cuda.get_current_stream().ptr == 0
    return made, list(standin.calls)


def launches(calls):
    return [call[1:4] for call in calls if call[0] == "launch"]


# -------------------------------------------------------------------------------------- rules


def given(kind):
    return np.tile(X, (20, 1)) if kind == "many" else X  # of a column, too many for registers


def in_aggregate(spec, kind, stream=0, gpu=0):
    import cupy

    def work():
        with cupy.cuda.Device(gpu), cupy.cuda.Stream.from_external(_Stream(stream)):
            x = cupy.asarray(X) if kind == "cupy" else [emulated.Away(row) for row in given(kind)]
            made = fg.rule(spec, 2)(x)
            assert isinstance(made, cupy.ndarray) and made.device.id == gpu
            return made.get()

    return calls_of(work)


class Recorded(emulated.EmulatedDevice):
    """Writes down launches as `standin` does."""

    def launch(self, kernel, grid, block, shared, args, stream):
        self.launches.append((kernel.name, [grid, 1, 1, block, 1, 1], shared))
        names, self.launches = self.launches, []
        super().launch(kernel, grid, block, shared, args, stream)
        self.launches = names


@pytest.mark.parametrize(("spec", "kind"), [*((s, "away") for s in SPECS), ("median", "many")])
def test_rules_give_the_bits_of_the_emulation_without_cupy(ask, monkeypatch, spec, kind):
    device = Recorded()
    monkeypatch.setitem(connect._devices, device.name, device)
    made, calls = ask(in_aggregate, spec, kind)
    want = fg.rule(spec, 2)([emulated.Away(row) for row in given(kind)]).values
    assert made.tobytes() == want.tobytes()
    assert launches(calls) == device.launches
    if spec in PICKING:
        assert made.tobytes() == fg.rule(spec, 2)(given(kind)).tobytes()


def test_every_kernel_was_launched(ask):
    exported = {
        name
        for file in KERNELS.glob("*.cu")
        for name in re.findall(r"__global__[^;{]*?\n(\w+)\(", file.read_text())
    }
    names = {name for name, *_ in launches(ask(in_aggregate, "median", "many")[1])}
    for spec in SPECS:
        names |= {name for name, *_ in launches(ask(in_aggregate, spec, "away")[1])}
    assert names == exported


@pytest.mark.parametrize("spec", ["krum", "median", "nnm | median", "bulyan"])
def test_cupys_own_arrays_on_any_device_and_stream(ask, spec):
    made, calls = ask(in_aggregate, spec, "cupy", 77, 1)
    assert made.tobytes() == fg.rule(spec, 2)(X).tobytes()
    launched = [call for call in calls if call[0] == "launch"]
    assert launched and {call[-2:] for call in launched} == {(77, 1)}
    assert {call[-1] for call in calls if call[0] in ("load", "context")} == {1}


# ------------------------------------------------------------------------------------- launches


def in_table():
    device = connect.connect("cuda:1")
    given = np.arange(NUMBERS) * 0x0123456789ABCDEF + 1
    got = np.zeros_like(given)

    def work():
        address, _owner = device.allocate(given.nbytes, 77)
        device.launch(WRITE_TABLE, 1, 128, 0, (address, given.view(STRUCT)[0], NUMBERS), 77)
        device.read(address, got, 77)

    _, calls = calls_of(work)
    return got.tolist() == given.tolist(), [call for call in calls if call[0] == "launch"]


def test_a_struct_arrives_whole_on_another_device_and_stream(ask):
    whole, launched = ask(in_table)
    assert whole and launched == [("launch", "table", [1, 1, 1, 128, 1, 1], 0, 77, 1)]


def in_launch(address, number):
    """Return the error of a launch, and what was launched."""
    device = connect.connect("cuda:0")
    struct = np.zeros(NUMBERS, np.int64).view(STRUCT)[0]
    standin.calls.clear()
    try:
        device.launch(WRITE_TABLE, 1, 128, 0, (address, struct, number), 0)
    except Exception as error:
        standin.said.clear()
        return f"{type(error).__name__}: {error}", launches(standin.calls)


@pytest.mark.parametrize("argument", ["1", [1]])
def test_cupy_refuses_what_is_no_argument(ask, argument):
    said, launched = ask(in_launch, 0, argument)
    assert "TypeError: Unsupported type" in said and not launched


def test_what_a_kernel_does_wrong_is_an_error_of_the_launch(ask):
    said, launched = ask(in_launch, 0, 1)  # it writes a number to the null pointer
    assert "CUDA_ERROR_LAUNCH_FAILED" in said and launched


def in_load(name, broken):
    device = connect.connect("cuda:0")
    kernel = devices.kernel("table.cu", name, (("FG_TRIED", int(broken)),))
    if broken:
        device._cubin = lambda kernel: b"broken"
    try:
        device.launch(kernel, 1, 128, 0, (), 0)
    except RuntimeError as error:
        return str(error)
    finally:
        vars(device).pop("_cubin", None)


@pytest.mark.parametrize(
    ("name", "broken", "said"),
    [("missing", False, "CUDA_ERROR_NOT_FOUND"), ("table", True, "CUDA_ERROR_INVALID_IMAGE")],
)
def test_a_module_that_cannot_be_loaded(ask, name, broken, said):
    assert re.fullmatch(
        rf"{said}: .* \(when table.cu was loaded on cuda:0\)", ask(in_load, name, broken)
    )


# ---------------------------------------------------------------------- memory, copies, and graphs


def in_memory():
    device = connect.connect("cuda:1")

    def work():
        address, owner = device.allocate(1000, 77)
        kept, _kept_owner = device.allocate(1000, 77)
        del owner
        assert device.allocate(1000, 78)[0] != address, "what was in use on another stream"
        assert device.allocate(1000, 77)[0] == address != kept
        for dtype in ("float16", "bfloat16", "float32", "float64"):
            place, array = device.array((3, 5), dtype, 77)
            assert (place, str(array.dtype), array.shape) == (array.data.ptr, dtype, (3, 5))
            assert array.device.id == 1
            assert place in standin._memory
            del array  # while the library that imported it may still be reading
            assert place not in standin._memory, "it goes back to CUDA, not to the next call"

    _, calls = calls_of(work)
    return {call[-1] for call in calls if call[0] == "malloc"}


def test_memory_is_the_devices_and_stays_the_streams(ask):
    assert ask(in_memory) == {1}


def in_write():
    device = connect.connect("cuda:1")

    def work():
        address, _owner = device.allocate(80, 77)
        for number in range(3):
            standin.pending.add(77)
            device.write(address, np.full(10, number, np.int64), 77)
        waiting = len(device._sending)
        standin.pending.clear()
        device.write(address, np.arange(10), 78)
        got = np.zeros(10, np.int64)
        device.read(address, got, 79)
        device.synchronise(80)
        return waiting, len(device._sending), got.tolist()

    return calls_of(work)


def test_copies_and_events_are_on_the_given_stream(ask):
    made, calls = ask(in_write)
    assert made == (3, 1, list(range(10)))
    assert [call for call in calls if call[0] != "malloc"] == [
        *[("copy", 1, 80, 77, 1), ("event", 77, 1)] * 3,
        ("copy", 1, 80, 78, 1), ("event", 78, 1),
        ("copy", 2, 80, 79, 1), ("wait", 79, 1),
        ("wait", 80, 1),
    ]  # fmt: skip


def in_capture(spec):
    import cupy

    x = cupy.asarray(X)
    kept = connect.connect("cuda:0")._kept
    kept.clear()

    def work():
        with cupy.cuda.Stream.from_external(_Stream(99)):
            return fg.rule(spec, 2)(x)

    work()
    standin.capturing.add(99)
    try:
        made, calls = calls_of(work)
    finally:
        standin.capturing.clear()
    return made.get(), calls, len(kept)


def in_capture_of_columns():
    """Capture rows that must be copied; return what became of the copy's memory."""
    import cupy

    x = cupy.asarray(np.ascontiguousarray(X.T)).T
    copies = []

    def array(values, order):  # CuPy's own kernels are not emulated
        assert order == "C" and values is x
        made = cupy.empty(x.shape, x.dtype)
        copies.append(made.data.ptr)
        return made

    with pytest.MonkeyPatch.context() as patched, cupy.cuda.Stream.from_external(_Stream(99)):
        patched.setattr(cupy, "array", array)
        fg.median(x)
        standin.capturing.add(99)
        try:
            out = fg.median(x)
        finally:
            standin.capturing.clear()
        later = [cupy.empty(x.shape, x.dtype) for _ in range(3)]
    assert out.shape == (100,)
    return len(copies), copies[-1] in {each.data.ptr for each in later}


def test_the_copy_of_rows_that_a_graph_reads_is_not_given_to_another(ask):
    assert ask(in_capture_of_columns) == (2, False)


def test_a_graph_is_captured_without_waiting(ask):
    made, calls, kept = ask(in_capture, "krum")
    assert made.tobytes() == fg.krum(X, f=2).tobytes() and kept
    assert {call[0] for call in calls} <= {"context", "launch", "malloc"}
    with pytest.raises(RuntimeError, match="cannot wait"):
        ask(in_capture, "geometric_median")
