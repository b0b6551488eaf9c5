"""What CuPy is asked for: a pretended one that answers as wanted, and the real one without a GPU.

No driver is needed to import CuPy, to compile with NVRTC, or to have the arguments of a launch
looked at: what CuPy would refuse on a GPU, it refuses here.
"""

from __future__ import annotations

import ast
import multiprocessing
import re
import shutil
import sys
import threading
import warnings
from contextlib import contextmanager, suppress
from pathlib import Path
from types import SimpleNamespace

import emulated
import numpy as np
import pytest
from emulation import KERNELS, needs_compiler

import fastgar as fg
from fastgar.cuda import backend, connect, cubins, driver
from fastgar.cuda import device as devices
from fastgar.cuda.shapes import pair_shape
from fastgar.cuda.variants import columns_variant, votes_variant
from fastgar.libraries import Cupy
from fastgar.statistic import Statistic

PACKAGE = Path(fg.__file__).parent
COMBINE = devices.kernel("combine.cu", "combine", (("FG_DTYPE", 2),))


@pytest.fixture(autouse=True)
def cache(monkeypatch, tmp_path):
    """An empty cache of machine code."""
    monkeypatch.setenv("FASTGAR_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(cubins, "_warned", False)
    return tmp_path / "cubin"


class CompileException(Exception):
    """CuPy's, of what NVRTC does not compile."""


class Pretended:
    """A module cupy that writes down what it is asked for."""

    __version__ = "14.2.0"

    def __init__(self, count=3, capability="90", driver_version=12040, nvrtc=(13, 5)):
        self.calls, self.current, self.streams = [], 0, [0]
        self.compile_error = self.load_error = self.nvrtc_error = None
        self.capturing, self.reads_done = False, True
        pretended = self

        class Device:
            compute_capability = capability
            attributes = {"MultiProcessorCount": 4}  # noqa: RUF012

            def __init__(self, index):
                self.index = index

            def __enter__(self):
                self.before, pretended.current = pretended.current, self.index

            def __exit__(self, *error):
                pretended.current = self.before

        class Module:
            def load(self, code):
                pretended.calls.append(("load", code, pretended.current))
                if pretended.load_error:
                    raise pretended.load_error

            def get_function(self, name):
                return pretended.launch

        class Event:
            def __init__(self, disable_timing):
                assert disable_timing

            def record(self, stream):
                pretended.calls.append(("event", stream.ptr, pretended.current))

            @property
            def done(self):
                return pretended.reads_done

        self.cuda = SimpleNamespace(
            runtime=self.runtime(count, driver_version), Device=Device, Module=Module, Event=Event,
            alloc=self.alloc, Stream=SimpleNamespace(from_external=self.external),
            compiler=SimpleNamespace(
                CompileException=CompileException, compile_using_nvrtc=self.compile
            ),
            nvrtc=SimpleNamespace(
                getVersion=lambda: self.version(nvrtc),
                getSupportedArchs=lambda: (75, 80, 86, 89, 90) if nvrtc < (12, 8) else
                (75, 80, 86, 89, 90, 100, 103, 120),
            ),
        )  # fmt: skip

    def runtime(self, count, driver_version):
        def devices():
            if isinstance(count, Exception):
                raise count
            return count

        return SimpleNamespace(
            memcpyHostToDevice=1, memcpyDeviceToHost=2, getDeviceCount=devices,
            driverGetVersion=lambda: driver_version, runtimeGetVersion=lambda: 13020,
            getDevice=lambda: self.current,
            setDevice=lambda index: setattr(self, "current", index),
            memcpyAsync=lambda *args: self.calls.append(("copy", args, self.current)),
            streamSynchronize=lambda stream: self.calls.append(("wait", stream)),
            streamIsCapturing=lambda stream: self.capturing,
        )  # fmt: skip

    def version(self, nvrtc):
        if self.nvrtc_error:
            raise self.nvrtc_error
        return nvrtc

    def compile(self, text, options, arch, filename, cache_in_memory):
        self.calls.append(("compile", options, arch, filename, self.current))
        if self.compile_error:
            raise self.compile_error
        return b"\x7fELF of " + filename.encode(), None

    def launch(self, grid, block, args, shared, stream):
        self.calls.append(("launch", grid, block, args, shared, self.current, stream.ptr))

    def alloc(self, size):
        self.calls.append(("alloc", size, self.current, self.streams[-1]))
        return SimpleNamespace(ptr=4096)

    @contextmanager
    def external(self, stream):
        version, address = stream.__cuda_stream__()
        assert version == 0
        self.streams.append(address)
        yield
        self.streams.pop()


@pytest.fixture
def on(monkeypatch):
    """Makes the device of a pretended CuPy."""

    def make(cupy, name="cuda:0", cuda="13.0"):
        monkeypatch.setattr(driver, "_import", lambda cuda: cupy)
        return driver.CupyDevice(name, cuda)

    return make


def launched(device, stream=99):
    device.launch(COMBINE, 7, 256, 16, (4096, 3, 0.5), stream)


# ------------------------------------------------------------------------------ what may be missing


def test_without_cupy_the_error_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "cupy", None)
    for cuda, extra in [("12.8", "fastgar[cuda12]"), ("13.0", "fastgar[cuda13]"), (None, "cuda12")]:
        with pytest.raises(ImportError, match="needs CuPy") as caught:
            connect.connect("cuda:9", cuda)
        assert extra in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("cupy", "sentence"),
    [
        (Pretended(RuntimeError("cudaErrorInsufficientDriver: ...")),
         "the NVIDIA driver has CUDA 12.4 and this CuPy is built for CUDA 13.2: update the driver, "
         "or pip uninstall -y cupy-cuda12x cupy-cuda13x, then pip install 'fastgar[cuda12]'"),
        (Pretended(RuntimeError("cudaErrorInsufficientDriver: ..."), driver_version=0),
         "no GPU can be used: there is no NVIDIA driver"),
        (Pretended(RuntimeError("cudaErrorNoDevice: no CUDA-capable device is detected")),
         "no GPU can be used: the NVIDIA driver sees none, or CUDA_VISIBLE_DEVICES hides it"),
        (Pretended(RuntimeError("odd")), "no GPU can be used (odd)"),
        (Pretended(0), "there is no cuda:0: CuPy sees 0 GPUs"),
        (Pretended(capability="61"), "cuda:0 has compute capability 6.1, and fastgar's kernels "
         "need 7.5 (Turing) or later"),
    ],
)  # fmt: skip
def test_what_cannot_work_is_said_in_one_sentence(on, cupy, sentence):
    with pytest.raises(RuntimeError) as caught:
        on(cupy, cuda="12.4")
    assert sentence in str(caught.value) and "\n" not in str(caught.value)
    assert "cudaError" not in str(caught.value)


@pytest.mark.parametrize(
    ("attribute", "error", "sentence"),
    [
        ("nvrtc_error", RuntimeError("libnvrtc.so.13: cannot open shared object file"),
         "CuPy cannot compile kernels, for which it needs NVRTC: pip install 'fastgar[cuda13]' "
         "(libnvrtc.so.13: cannot open shared object file)"),
        ("compile_error", CompileException("kern.cu(3): error: expected a ;\nmore"),
         "NVRTC 13.5 cannot compile combine.cu for cuda:0 (compute capability 9.0): kern.cu(3): "
         "error: expected a ;"),
        ("load_error", RuntimeError("CUDA_ERROR_OUT_OF_MEMORY: out of memory"),
         "CUDA_ERROR_OUT_OF_MEMORY: out of memory (when combine.cu was loaded on cuda:0)"),
        ("load_error", RuntimeError("CUDA_ERROR_ILLEGAL_ADDRESS: an illegal memory access"),
         "CUDA_ERROR_ILLEGAL_ADDRESS: an illegal memory access (when combine.cu was loaded"),
    ],
)  # fmt: skip
def test_what_fails_at_a_first_use_is_told_apart(on, attribute, error, sentence):
    cupy = Pretended()
    setattr(cupy, attribute, error)
    device = on(cupy)
    with pytest.raises(RuntimeError) as caught:
        launched(device)
    assert str(caught.value).startswith(sentence) and "\n" not in str(caught.value)
    assert ("needs NVRTC" in str(caught.value)) == (attribute == "nvrtc_error")
    assert cupy.current == 0, "the caller's device is the current one again"
    setattr(cupy, attribute, None)
    launched(device)
    assert cupy.calls[-1][0] == "launch", "what failed once is tried again"


def test_a_gpu_that_is_newer_than_the_compiler(on):
    for capability, nvrtc, architecture in [
        ("90", (12, 6), "90"), ("87", (12, 6), "86"), ("121", (13, 5), "120"),
        ("103", (13, 5), "103"),
    ]:  # fmt: skip
        cupy = Pretended(capability=capability, nvrtc=nvrtc)
        assert on(cupy)._architecture == architecture
    cupy = Pretended(capability="100", nvrtc=(12, 6))  # whose code for 9.0 does not run on it
    with pytest.raises(RuntimeError) as caught:
        launched(on(cupy, cuda="12.8"))
    assert str(caught.value) == (
        "NVRTC 12.6 compiles for compute capabilities up to 9.0, and cuda:0 has 10.0: install a "
        "newer one with pip install 'fastgar[cuda12]'"
    )


def test_a_broken_cupy(monkeypatch, tmp_path):
    (tmp_path / "cupy.py").write_text("raise ImportError('libcublas.so.12: cannot open')")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setitem(sys.modules, "cupy", None)  # so that nothing of this stays behind
    del sys.modules["cupy"]
    with pytest.raises(ImportError, match=r"CuPy is broken \(libcublas.*uninstall.*\[cuda12\]"):
        driver._import("12.1")
    page = "=== page\n Original error:\n  No cuda"
    (tmp_path / "cupy.py").write_text(f"raise ImportError({page!r})")
    with pytest.raises(ImportError, match=r"CuPy is broken \(No cuda\): pip uninstall"):
        driver._import("12.1")
    (tmp_path / "cupy.py").write_text("raise NotADirectoryError(20, 'Not a directory: /home')")
    with pytest.raises(ImportError, match=r"cannot be imported \(.*: set CUPY_CACHE_DIR, and FAST"):
        driver._import("12.1")
    old = type(sys)("cupy")
    old.__version__ = "13.4.1"
    sys.modules["cupy"] = old
    with pytest.raises(ImportError, match=r"CuPy 13.4.1 is too old, .* 14 or later: .*cuda13"):
        driver._import("13.0")


# ------------------------------------------------------------------------ launches, copies, graphs


def test_cupy_is_asked_for_the_datas_device_and_the_callers_stream(on):
    cupy = Pretended()
    device = on(cupy, "cuda:2")
    for _ in range(2):
        launched(device)
    assert cupy.calls == [
        ("compile", driver.OPTIONS, "90", "combine.cu", 2),
        ("load", b"\x7fELF of combine.cu", 2),
        *[("launch", (7,), (256,), (4096, 3, 0.5), 16, 2, 99)] * 2,
    ]
    assert not any("fast" in option or "fmad=true" in option for option in driver.OPTIONS)
    cupy.calls.clear()
    assert device.allocate(100, 98)[0] == 4096
    into = np.zeros(2)
    device.read(4096, into, 97)
    device.write(4096, into, 96)
    device.synchronise(95)
    place = into.ctypes.data
    assert cupy.calls == [
        ("alloc", 100, 2, 98),
        ("copy", (place, 4096, 16, 2, 97), 2), ("wait", 97),
        ("copy", (4096, place, 16, 1, 96), 2), ("event", 96, 2),
        ("wait", 95),
    ]  # fmt: skip
    assert cupy.current == 0 and cupy.streams == [0], "the caller's device and stream are current"


def test_what_is_written_lives_until_it_has_been_read(on):
    """Some machines do not copy pageable memory before the call returns."""
    import weakref

    class Values(np.ndarray):  # of which there can be weak references
        pass

    cupy = Pretended()
    device = on(cupy)
    values = np.zeros(3).view(Values)
    alive = weakref.ref(values)
    cupy.reads_done = False
    device.write(4096, values, 7)
    del values
    device.write(4096, np.zeros(1), 7)
    assert alive() is not None
    cupy.reads_done = True
    device.write(4096, np.zeros(1), 7)
    assert alive() is None


def test_threads_do_not_drop_what_others_still_send(on):
    """CuPy asks an event without the interpreter's lock, so another thread may come between."""
    cupy = Pretended()
    device = on(cupy)
    meet = threading.Barrier(2)

    class Event(cupy.cuda.Event):
        @property
        def done(self):
            if self is first:
                with suppress(threading.BrokenBarrierError):
                    meet.wait(0.2)
            return self is first

    cupy.cuda.Event = Event
    first = None
    device.write(4096, np.zeros(1), 7)
    device.write(4096, values := np.zeros(1), 7)
    first = device._sending[0][0]
    threads = [threading.Thread(target=device.write, args=(4096, np.zeros(1), 7)) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert any(sent is values for _, sent in device._sending)


def test_a_kernel_is_not_loaded_while_a_graph_is_captured(on):
    cupy = Pretended()
    device = on(cupy)
    cupy.capturing = True
    assert device.capturing(5)
    with pytest.raises(RuntimeError, match="for the first time while a CUDA graph is being"):
        launched(device)
    assert cupy.calls == []
    cupy.capturing = False
    launched(device)
    cupy.capturing = True
    launched(device)
    assert cupy.calls[-1][0] == "launch"


def test_a_kernel_can_be_loaded_before_a_graph_needs_it(on):
    cupy = Pretended()
    device = on(cupy, "cuda:2")
    for _ in range(2):
        device.prepare(COMBINE)
    assert [(call[0], call[-1]) for call in cupy.calls] == [("compile", 2), ("load", 2)]
    assert cupy.current == 0
    cupy.capturing = True
    launched(device)
    assert cupy.calls[-1][0] == "launch"


# ----------------------------------------------------------------------------- machine code on disk


def test_machine_code_is_compiled_once_for_all_processes(on, cache):
    first, second = Pretended(), Pretended()
    launched(on(first))
    launched(on(second))
    assert [call[0] for call in first.calls] == ["compile", "load", "launch"]
    assert [call[0] for call in second.calls] == ["load", "launch"]
    assert first.calls[1] == second.calls[0], "the same code"
    for other in (Pretended(capability="80"), Pretended(nvrtc=(12, 9))):
        launched(on(other))
        assert other.calls[0][0] == "compile", "of another architecture, or by another compiler"
    assert len(list(cache.iterdir())) == 3


def test_what_is_no_machine_code_is_not_kept(on, cache):
    cupy = Pretended()
    cupy.cuda.compiler.compile_using_nvrtc = lambda *args, **options: (b"// PTX", None)
    launched(on(cupy))
    assert cupy.calls[0] == ("load", b"// PTX", 0) and not cache.exists()


def test_a_damaged_file_is_made_anew(on, cache):
    launched(on(Pretended()))
    (file,) = cache.iterdir()
    whole = file.read_bytes()
    for damaged in (b"", whole[:20], whole[:-1], whole[:-1] + b"?", whole[:32]):
        file.write_bytes(damaged)
        cupy = Pretended()
        launched(on(cupy))
        assert cupy.calls[0][0] == "compile" and file.read_bytes() == whole


def _save_often(seed):
    rng = np.random.default_rng(seed)
    for _ in range(200):
        code = rng.bytes(5000 + seed)
        cubins.save("contested", code)
        found = cubins.load("contested")
        assert found is not None and 5000 <= len(found) < 5004


def test_several_processes_write_the_same_file(cache):
    context = multiprocessing.get_context("fork")
    writers = [context.Process(target=_save_often, args=(seed,)) for seed in range(4)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join(60)
    assert [writer.exitcode for writer in writers] == [0] * 4
    assert [file.name for file in cache.iterdir()] == ["contested"]


def test_where_nothing_can_be_kept_a_warning_says_so_once(on, monkeypatch, tmp_path):
    place = tmp_path / "file"
    place.write_text("in the way")
    monkeypatch.setenv("FASTGAR_CACHE_DIR", str(place))
    with pytest.warns(RuntimeWarning, match="cannot be kept .*set FASTGAR_CACHE_DIR"):
        launched(on(Pretended()))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        cupy = Pretended()
        launched(on(cupy))
    assert cupy.calls[0][0] == "compile"


def test_a_folder_that_is_lost_on_the_way(on, monkeypatch, cache):
    def lost(part, name):
        shutil.rmtree(cache)
        cache.write_text("in the way")
        raise PermissionError("no longer")

    monkeypatch.setattr(cubins.os, "replace", lost)
    with pytest.warns(RuntimeWarning, match=r"cannot be kept \(no longer\)"):
        launched(on(Pretended()))


def test_where_the_files_are(monkeypatch, tmp_path):
    monkeypatch.delenv("FASTGAR_CACHE_DIR")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cubins.folder() == tmp_path / "fastgar" / "cubin"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert cubins.folder() == tmp_path / "home" / ".cache" / "fastgar" / "cubin"


# ------------------------------------------------------------------------------------ the real CuPy

TEXTS = [
    ("combine.cu", (("FG_DTYPE", 2), ("FG_TABLE", 1), ("FG_K", 4), ("FG_PACK", 4))),
    ("distances.cu", tuple(pair_shape(20, False, False, True).defines(2, True, 4, False).items())),
    ("distances.cu", ()),
    ("selection.cu", ()),
    ("table.cu", ()),
    *((v.file, v.defines) for v in (
        columns_variant(Statistic.median(20, closest=15), 20, 20, "float32", table=False, mix=1,
                        alignment=16),
        columns_variant(Statistic.median(300), 300, 300, "float32", table=True, mix=0,
                        alignment=4),
        votes_variant("finite_mean", "float32", table=False, alignment=16),
    )),
]  # fmt: skip


@pytest.fixture(scope="module")
def cupy():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return pytest.importorskip("cupy", reason="CuPy is not installed")


def without_a_gpu(cupy, monkeypatch, capability=90, code="cubin"):
    """The driver's object for a GPU that is not there, with the real CuPy.

    CuPy asks for the current device before it looks at the architecture that it was given.
    """
    flag = f"-arch={'sm' if code == 'cubin' else 'compute'}_{capability}"
    compiler = cupy.cuda.compiler
    monkeypatch.setattr(compiler, "_get_arch_for_options_for_nvrtc", lambda arch: (flag, code))
    device = object.__new__(driver.CupyDevice)
    device.cupy, device.name, device.cuda, device.capability = cupy, "cuda:0", "13.0", capability
    return device


def test_the_real_cupy_takes_our_streams(cupy):
    assert cupy.cuda.Stream.from_external(driver._Stream(77)).ptr == 77
    try:
        count = cupy.cuda.runtime.getDeviceCount()
    except Exception:
        count = 0
    if not count:
        with pytest.raises(
            RuntimeError, match=r"no GPU can be used: (there is no|the) NVIDIA driver"
        ):
            driver.CupyDevice("cuda:0", "13.0")


def names_of_cupy():
    """Everything that the package asks of a module `cupy`, as dotted names."""
    roots = {"cupy": "", "self.cupy": "", "runtime": "cuda.runtime", "self.runtime": "cuda.runtime"}
    found = set()
    for file in [*PACKAGE.glob("*.py"), *PACKAGE.glob("cuda/*.py")]:
        for node in ast.walk(ast.parse(file.read_text())):
            if not isinstance(node, ast.Attribute):
                continue
            name = ast.unparse(node)
            for root, meaning in roots.items():
                if re.fullmatch(rf"{re.escape(root)}(\.\w+)+", name):
                    found.add(f"{meaning}{name[len(root) :]}".lstrip("."))
    return sorted(found)


def test_every_name_of_cupy_that_is_used_exists(cupy):
    names = names_of_cupy()
    assert {"cuda.runtime.memcpyAsync", "cuda.compiler.compile_using_nvrtc", "empty"} < set(names)
    for name in names:
        place = cupy
        for part in name.split("."):
            assert hasattr(place, part), name
            place = getattr(place, part)


@needs_compiler()
def test_the_real_cupy_takes_the_arguments_of_every_kernel(cupy, monkeypatch):
    """With a driver these would be launched; without one it is missing, and no argument wrong."""
    gpu = emulated.connect(monkeypatch)
    calls = {}
    launch = emulated.EmulatedDevice.launch

    def recorded(self, kernel, grid, block, shared, args, stream):
        calls.setdefault((kernel.file, kernel.name), (grid, block, args, shared))
        launch(self, kernel, grid, block, shared, args, stream)

    monkeypatch.setattr(emulated.EmulatedDevice, "launch", recorded)
    X = np.random.default_rng(0).standard_normal((11, 100)).astype(np.float32)
    rows = [emulated.Away(row) for row in X]
    for spec in ("krum", "bulyan", "bulyan(variant='epfl')", "nnm | median", "cge", "nan_mean"):
        fg.rule(spec, 2)(rows)
    fg.median([emulated.Away(row) for row in np.ones((200, 5), np.float32)], f=2)  # in tiles
    exported = {
        (file.name, name)
        for file in KERNELS.glob("*.cu")
        for name in re.findall(r"__global__[^;{]*?\n(\w+)\(", file.read_text())
    }
    assert set(calls) == exported and gpu.launches
    function = cupy.cuda.Function.__new__(cupy.cuda.Function)
    stream = driver._Stream(0)
    for grid, block, args, shared in calls.values():
        with pytest.raises(Exception, match=r"cuda|CUDA") as caught:
            function((grid,), (block,), args, shared, stream)
        assert not isinstance(caught.value, TypeError)
    with pytest.raises(TypeError, match="Unsupported type"):  # so what is wrong would be seen

        class Address(int):
            pass

        function((1,), (1,), (Address(8),), 0, stream)


def test_the_struct_of_a_table_has_the_size_that_the_kernel_takes():
    (count,) = re.findall(r"item\[(\d+)\]", (KERNELS / "table.cu").read_text())
    assert int(count) == backend.NUMBERS and backend.STRUCT.itemsize == 8 * backend.NUMBERS
    assert backend.STRUCT.itemsize + 16 <= 4096


@pytest.fixture
def nvrtc(cupy):
    try:
        cupy.cuda.nvrtc.getVersion()
    except Exception as error:
        pytest.skip(f"NVRTC is not installed ({error})")
    return cupy.cuda.nvrtc


@pytest.mark.parametrize(("file", "defines"), TEXTS, ids=[f"{t[0]}-{len(t[1])}" for t in TEXTS])
def test_what_cupy_compiles_keeps_subnormals(cupy, nvrtc, monkeypatch, file, defines):
    device = without_a_gpu(cupy, monkeypatch, code="ptx")  # which can be read
    kernel = devices.kernel(file, "any", defines)
    text = device._cubin(kernel).decode()
    assert ".target sm_90" in text and ".ftz" not in text
    if file not in ("selection.cu", "table.cu"):  # which have no float32: it would have been seen
        monkeypatch.setattr(driver, "OPTIONS", (*driver.OPTIONS[:-1], "-ftz=true"))
        assert ".ftz" in device._cubin(kernel).decode()


@pytest.mark.parametrize("capability", [75, 90, 120])
def test_what_cupy_compiles_is_machine_code_and_stays_on_disk(
    cupy, nvrtc, cache, monkeypatch, capability
):
    if capability not in nvrtc.getSupportedArchs():
        pytest.skip("this NVRTC does not know the architecture")
    device = without_a_gpu(cupy, monkeypatch, capability)
    kernel = devices.kernel("selection.cu", "krum")
    code = device._cubin(kernel)
    assert code.startswith(b"\x7fELF") and len(list(cache.iterdir())) == 1
    monkeypatch.setattr(cupy.cuda.compiler, "compile_using_nvrtc", None)
    assert device._cubin(kernel) == code


def test_integers_of_cupy_are_not_sorted_into_a_graph(on, monkeypatch):
    """CuPy gives the memory in which they are sorted back, and the graph would use it."""
    cupy = Pretended()
    monkeypatch.setitem(connect._devices, "cuda:0", on(cupy))
    cupy.cuda.get_current_stream = lambda index: SimpleNamespace(ptr=5)
    cupy.stack, cupy.sort = np.stack, np.sort
    library = Cupy(cupy)

    class Made(np.ndarray):
        device = SimpleNamespace(id=0)

    into = np.zeros(2, int).view(Made)
    votes = [np.array([k, 9 - k]) for k in range(5)]
    library.vote(votes, "median", into)
    assert into.tolist() == [2, 7]
    cupy.capturing = True
    with pytest.raises(RuntimeError, match="leave them out"):
        library.vote(votes, "median", into)
    library.vote(votes, "first", into)
    assert into.tolist() == [0, 9]
