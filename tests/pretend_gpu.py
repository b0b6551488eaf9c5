"""A GPU that is not there, for the command that checks one: torch and CuPy around the emulation.

`install` puts it into this process. Run as a program it is one stage of the command, in a process
of its own; `FASTGAR_PRETEND` then has the `Wishes`, in JSON.
"""

from __future__ import annotations

import ctypes
import json
import os
import signal
import sys
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from types import SimpleNamespace as Space

import emulated
import pytest
import torch

from fastgar import arrays, libraries

ROOT = Path(__file__).resolve().parent.parent
sys.path.append(str(ROOT))  # where the benchmarks are, with or without the package beside them
from asv_benchmarks import gpu_check, gpu_environment, gpu_figures  # noqa: E402

ILLEGAL = "CUDA_ERROR_ILLEGAL_ADDRESS: an illegal memory access was encountered"
VIEW = libraries.Torch.view
MADE = ("randn", "ones", "zeros", "empty", "tensor")


@dataclass
class Wishes:
    """What is to go wrong, and where: the name of a rule, at the case whose turn it is."""

    wrong_bit: str = ""
    poison: str = ""
    crash: str = ""
    raises: str = ""
    no_cupy: bool = False
    no_compiler: bool = False


class Event:
    """Every interval takes a millisecond."""

    def __init__(self, enable_timing):
        assert enable_timing

    def record(self):
        pass

    synchronize = record

    def elapsed_time(self, other):
        return 1.0


class Graph:
    def replay(self):
        pass


class Torch:
    """Torch with a GPU whose memory is the host's."""

    def __init__(self):
        properties = Space(
            name="Pretend GPU 1", major=9, minor=0, multi_processor_count=3, total_memory=1 << 30,
            L2_cache_size=1000,
        )  # fmt: skip
        self.poisoned = False
        self.cuda = Space(
            is_available=lambda: True, Stream=lambda: Space(wait_stream=lambda other: None),
            current_stream=lambda: None, stream=nullcontext, synchronize=lambda: None,
            CUDAGraph=Graph, graph=self.graph, Event=Event, empty_cache=lambda: None,
            get_device_properties=lambda index: properties, mem_get_info=lambda: (1 << 30, 1 << 30),
            device_count=lambda: 1,
        )  # fmt: skip
        self.version = Space(cuda="13.0")

    @contextmanager
    def graph(self, graph):
        yield

    def __getattr__(self, name):
        made = getattr(torch, name)
        if name in MADE:

            def on_gpu(*shape, device, **options):
                if self.poisoned:
                    raise RuntimeError(ILLEGAL)
                return made(*shape, **options)

            return on_gpu
        return made


def cupy(wishes):
    """CuPy, as far as one kernel needs it."""

    def launch(grid, block, args):
        args[0][:] = [42] * 4

    def module(code):
        if wishes.no_compiler:
            raise RuntimeError("libnvrtc.so.13: cannot open shared object file")
        return Space(get_function=lambda name: launch)

    runtime = Space(runtimeGetVersion=lambda: 13020)
    nvrtc = Space(getVersion=lambda: (13, 2))
    return Space(
        __version__="14.2.0", zeros=lambda size, dtype: [0] * size, asnumpy=list, RawModule=module,
        cuda=Space(runtime=runtime, nvrtc=nvrtc), ndarray=type("ndarray", (), {}),
    )  # fmt: skip


def install(monkeypatch, wishes=None):
    """Put the GPU into this process; return torch."""
    wishes = wishes or Wishes()
    arrays.table(torch.zeros(1, 1))  # fastgar keeps the torch that it sees first
    device = emulated.torch_on_gpu(monkeypatch)
    pretended, stub = Torch(), cupy(wishes)
    monkeypatch.setitem(sys.modules, "torch", pretended)
    monkeypatch.setitem(sys.modules, "cupy", None if wishes.no_cupy else stub)
    monkeypatch.setitem(sys.modules, "cupy.cuda", stub.cuda)
    monkeypatch.setattr(gpu_environment, "nvidia_smi", answer)
    monkeypatch.setattr(gpu_figures, "ROWS", (11, 20))
    monkeypatch.setattr(gpu_figures, "COLUMNS", (64, 300))
    monkeypatch.setattr(gpu_figures, "CALLS", 10)
    copies = gpu_figures.bandwidth_of_copies
    monkeypatch.setattr(gpu_figures, "bandwidth_of_copies", lambda t: copies(t, 5000))
    monkeypatch.setattr(gpu_check, "cases", lambda quick: list(CASES))
    troubled(monkeypatch, pretended, device, wishes)
    return pretended


CASES = [
    gpu_check.Case("mean", "float32", 11, 301, "one array", "edges"),
    gpu_check.Case("median", "float32", 11, 301, "unaligned rows", "small"),
    gpu_check.Case("krum", "float32", 11, 301, "list of rows", "rows"),
    gpu_check.Case("sign_majority", "float64", 11, 301, "one array", "edges"),
    gpu_check.Case("combine", "bfloat16", 11, 301, "list of rows", "rows"),
    gpu_check.Case("geometric_median", "float32", 11, 301, "one array", "rows"),
]


def answer(*questions, gpu=""):
    known = {"name": "Pretend GPU 1", "driver_version": "580.1", "clocks.max.sm": "1980 MHz"}
    return [known.get(question, "") for question in questions]


def troubled(monkeypatch, pretended, device, wishes):
    """Have the device do what is wished, while a case of that rule has its turn."""
    turn = {"rule": ""}
    computed, make, launch = gpu_check.computed, libraries.Torch.make, device.launch

    def noted(case, X):
        turn["rule"] = case.rule
        try:
            return computed(case, X)
        finally:
            turn["rule"] = ""

    def noted_make(self, like, shape):
        turn["address"], made = make(self, like, shape)
        return turn["address"], made

    def troubled_launch(*args):
        rule = turn["rule"]
        if pretended.poisoned or (rule and rule == wishes.poison):
            pretended.poisoned = True
            raise RuntimeError(ILLEGAL)
        if rule and rule == wishes.crash:
            os.kill(os.getpid(), signal.SIGSEGV)
        if rule and wishes.raises in (rule, "everything"):
            raise ValueError(f"odd: {wishes.raises}")
        launch(*args)
        if rule and rule == wishes.wrong_bit:
            ctypes.c_uint32.from_address(turn["address"] + 4 * 17).value ^= 1

    monkeypatch.setattr(gpu_check, "computed", noted)
    monkeypatch.setattr(gpu_check, "on_host", on_host_of(computed))
    monkeypatch.setattr(libraries.Torch, "make", noted_make)
    monkeypatch.setattr(device, "launch", troubled_launch)


def on_host_of(computed):
    def run(case, X):
        with pytest.MonkeyPatch.context() as real:
            real.setattr(libraries.Torch, "view", VIEW)
            return computed(case, X)

    return run


def environment(wishes):
    """Return the environment of a process that is a stage."""
    return {"FASTGAR_PRETEND": json.dumps(asdict(wishes))}


def command_of(stage, options):
    """Return the command that is a stage with this GPU."""
    return [sys.executable, str(Path(__file__).resolve()), stage, json.dumps(options)]


if __name__ == "__main__":
    from asv_benchmarks import gpu_stages

    install(pytest.MonkeyPatch(), Wishes(**json.loads(os.environ["FASTGAR_PRETEND"])))
    sys.exit(gpu_stages.main(sys.argv[1:]))
