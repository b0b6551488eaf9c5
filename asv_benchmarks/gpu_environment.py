"""What there is to run on: GPU, driver, versions, and whether one kernel can be compiled and run.

The steps go from the outside to the inside, so that the first one that fails names what is to be
repaired: torch, the GPU, CuPy, its compiler, a kernel that is not ours, the smallest that is.
"""

from __future__ import annotations

import ctypes
import os
import platform
import re
import subprocess
import traceback
import warnings
from collections.abc import Callable, Sequence
from time import perf_counter
from typing import Any

from .gpu_process import ROOT
from .roofline import lanes

# The packages that matter. Two that bring CuPy are a usual cause of trouble.
NAMES = (
    "cupy*", "fastgar", "llvmlite", "matplotlib", "ml_dtypes", "numba", "numpy", "nvidia-cuda-*",
    "pytest", "torch", "triton*",
)  # fmt: skip
NO_TORCH, NO_GPU = "torch cannot be imported", "torch can use no GPU"
NO_CUPY, NO_KERNEL = "CuPy cannot be imported", "CuPy cannot run a kernel"
OURS = "fastgar's smallest kernel"
PLAIN = 'extern "C" __global__ void answer(int* x) { x[threadIdx.x] = 42; }'


def output(command: Sequence[str]) -> str:
    """Return what a command says, nothing where it cannot run."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=20)
    except (OSError, subprocess.SubprocessError):
        return ""
    return done.stdout.strip()


def nvidia_smi(*questions: str, gpu: str = "") -> list[str]:
    """Return what the driver's own tool says of a GPU, "" where it cannot be asked.

    Its first GPU need not be that of torch, where CUDA_VISIBLE_DEVICES hides some.
    """
    query = ["nvidia-smi", f"--query-gpu={','.join(questions)}", "--format=csv,noheader"]
    answers = output([*query, *(["-i", gpu] if gpu else [])]).split("\n")[0].split(",")
    if len(answers) != len(questions):
        return [""] * len(questions)
    return [answer.strip() for answer in answers]


def cuda_of_driver() -> str:
    """Return the latest CUDA that the driver takes."""
    try:
        version = ctypes.c_int()
        if ctypes.CDLL("libcuda.so.1").cuDriverGetVersion(ctypes.byref(version)) == 0:
            return dotted(version.value)
    except (OSError, AttributeError):
        pass
    return ""


def dotted(version: int) -> str:
    """Return a version of CUDA as people write it: 13020 is 13.2."""
    return f"{version // 1000}.{version % 1000 // 10}"


def mapped(name: str) -> str:
    """Return the file of a library that this process has loaded."""
    try:
        with open("/proc/self/maps") as file:
            found = re.findall(rf"\S*/{name}\S*", file.read())
    except OSError:
        return ""
    return found[0] if found else ""


# ------------------------------------------------------------------------------------- the steps


def of_torch(emit: Callable[..., None]) -> str:
    """Import torch."""
    import torch

    emit(machine={"cuda_of_torch": torch.version.cuda})
    return f"{torch.__version__}, for CUDA {torch.version.cuda}"


def of_gpu(emit: Callable[..., None]) -> str:
    """Find a GPU."""
    import torch

    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        usable = torch.cuda.is_available()
    if not usable:
        why = "; ".join(" ".join(str(warning.message).split()) for warning in warned)
        if torch.version.cuda is None:
            why = "it is built without CUDA"
        raise RuntimeError(
            "There is no CUDA GPU that torch can use here" + (f": {why}" if why else "") + "."
        )
    p = torch.cuda.get_device_properties(0)
    driver, clock, busy, used = nvidia_smi(
        "driver_version", "clocks.max.sm", "utilization.gpu", "memory.used",
        gpu=f"GPU-{p.uuid}" if hasattr(p, "uuid") else "",
    )  # fmt: skip
    found = re.match(r"\d+", clock)
    hertz = int(found.group()) * 1e6 if found else 1e3 * getattr(p, "clock_rate", 0)
    width = lanes((p.major, p.minor))
    issued = p.multi_processor_count * width * hertz
    emit(machine={
        "gpu": p.name, "compute_capability": f"{p.major}.{p.minor}",
        "processors": p.multi_processor_count, "memory": p.total_memory,
        "cache": p.L2_cache_size, "driver": driver, "clock": hertz or None,
        "lanes": width, "peak_instructions": issued or None, "gpus": torch.cuda.device_count(),
        "busy_before": f"{busy}, {used} of memory" if busy else None,
    })  # fmt: skip
    return f"{p.name}, compute capability {p.major}.{p.minor}"


def of_cupy(emit: Callable[..., None]) -> str:
    """Import CuPy."""
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        import cupy
    built = dotted(cupy.cuda.runtime.runtimeGetVersion())
    emit(machine={"cuda_of_cupy": built, "cuda_path": os.environ.get("CUDA_PATH")})
    said = "; ".join(" ".join(str(warning.message).split()) for warning in warned)
    return f"{cupy.__version__}, for CUDA {built}" + (f"; it warns: {said}" if said else "")


def of_nvrtc(emit: Callable[..., None]) -> str:
    """Find the compiler that CuPy uses."""
    from cupy.cuda import nvrtc

    version = ".".join(map(str, nvrtc.getVersion()))
    place = mapped("libnvrtc") or "unknown"
    emit(machine={"nvrtc": version, "nvrtc_from": place})
    return f"{version}, from {place}"


def of_plain_kernel(emit: Callable[..., None]) -> str:
    """Compile and run a kernel in which nothing is ours."""
    import cupy

    began = perf_counter()
    x = cupy.zeros(4, dtype="int32")
    cupy.RawModule(code=PLAIN).get_function("answer")((1,), (4,), (x,))
    got = [int(value) for value in cupy.asnumpy(x)]
    if got != [42] * 4:
        raise RuntimeError(f"it should have written 42 four times, and wrote {got}")
    return f"compiled and right, in {perf_counter() - began:.1f} s"


def of_our_kernel(emit: Callable[..., None]) -> str:
    """Compile and run a kernel of fastgar."""
    import torch

    import fastgar as fg

    began = perf_counter()
    X = torch.tensor([[1.0, -2.0, 0.0], [3.0, -1.0, 1.0], [1.0, 4.0, -1.0]], device="cuda")
    got = fg.sign_majority(X).cpu().tolist()
    if got != [1.0, -1.0, 0.0]:
        raise RuntimeError(f"it should have given [1.0, -1.0, 0.0], and gave {got}")
    return f"compiled and right, in {perf_counter() - began:.1f} s"


# Each with what to say where nothing that follows can work without it.
STEPS: tuple[tuple[str, Callable[[Callable[..., None]], str], str], ...] = (
    ("torch", of_torch, NO_TORCH),
    ("GPU", of_gpu, NO_GPU),
    ("CuPy", of_cupy, NO_CUPY),
    ("NVRTC, CuPy's compiler", of_nvrtc, ""),
    ("a kernel of CuPy", of_plain_kernel, NO_KERNEL),
    (OURS, of_our_kernel, ""),
)


def about() -> dict[str, Any]:
    """Return what is known without a GPU."""
    facts = {
        "python": platform.python_version(), "system": platform.platform(),
        "processor_cores": os.cpu_count(), "cuda_of_driver": cuda_of_driver(),
    }  # fmt: skip
    try:
        from fastgar import machine
    except Exception as error:
        return {**facts, "fastgar_from": f"{type(error).__name__}: {error}"}
    return {
        **facts, "versions": machine.versions(*NAMES), "commit": machine.commit(ROOT),
        "fastgar_from": os.path.dirname(machine.__file__),
    }  # fmt: skip


def run(options: dict[str, Any], emit: Callable[..., None]) -> None:
    """Take the steps until one fails that all others need."""
    emit(unit=0, what="versions of packages")
    emit(machine=about())
    for number, (what, step, missing) in enumerate(STEPS, 1):
        emit(unit=number, what=what)
        try:
            emit(step=what, verdict="passed", said=step(emit))
        except Exception as error:
            said = " ".join(str(error).split()) or type(error).__name__
            emit(step=what, verdict="FAILED", said=said[:300], error=traceback.format_exc())
            if missing:
                emit(missing=missing)
                break
    emit(over=True)
