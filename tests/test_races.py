"""No kernel has a data race, and no barrier is there for nothing.

The thread sanitizer watches the launches of small_launches.py; emulation/races.h says what orders
what. Then each barrier and fence of the kernels is left out, one at a time, which must be noticed:
one that can go without a report is one too many, or no launch needs it.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from emulation import (
    KERNELS,
    Module,
    build,
    compiled,
    needs_compiler,
    preprocessed,
    sanitizer_environment,
)
from small_launches import LAUNCHES, Case

import fastgar
from fastgar.cuda.device import INCLUDE

pytestmark = [
    needs_compiler(),
    pytest.mark.skipif(
        sanitizer_environment("thread") is None,
        reason="the compiler comes without the thread sanitizer",
    ),
]

BARRIER = re.compile(r"__(?:syncthreads|syncwarp|threadfence)\(\)")
PROCESSES = min(4, os.cpu_count() or 1)

# ---------------------------------------------------------- in a process that the sanitizer watches


def watch() -> None:
    """Launch what stdin lists, each in a process of its own; write what became of it to stdout."""
    for line in sys.stdin:
        library, name = json.loads(line)
        reading, writing = os.pipe()
        child = os.fork()
        if not child:
            os.dup2(writing, 2)
            signal.alarm(100)
            try:
                module = Module(Path(library), Path(library).stem)
                for launch in launches_of(name):
                    module.launch(*launch)
            except BaseException as error:
                os.write(2, f"{type(error).__name__}: {error}".encode())
                os._exit(1)
            os._exit(0)
        os.close(writing)
        with os.fdopen(reading, errors="replace") as report:
            said = report.read()
        _, status = os.waitpid(child, 0)
        print(json.dumps((status, said[:20_000])), flush=True)


def launches_of(name: str):
    if name in LAUNCHES:
        return LAUNCHES[name].launches()
    values, other, counter = (np.zeros(512, np.int32) for _ in range(3))
    return [(name, 2, 64, [values, other, counter], 0)] * 2  # launches come after each other


# ---------------------------------------------------------------------------------- in this process


@cache
def without_addresses_at_random() -> list[str]:
    """Return the words before a command with which the sanitizer finds its addresses free."""
    words = ["setarch", "-R"]
    if shutil.which("setarch") and not subprocess.run([*words, "true"]).returncode:
        return words
    return []


def reports(tasks: Iterable[tuple[Path, str]]) -> list[str]:
    """Return what is said of each (library, launches): nothing where all is well."""
    environment = sanitizer_environment("thread")
    assert environment is not None
    environment["PYTHONPATH"] = str(Path(fastgar.__file__).parent.parent)
    preload = environment.pop("LD_PRELOAD")
    code = "import test_races; test_races.watch()"
    command = [*without_addresses_at_random(), "env", f"LD_PRELOAD={preload}", sys.executable, "-c"]
    tasks = list(tasks)

    def some(first: int) -> list[tuple[int, str]]:
        lines = [json.dumps((str(path), name)) for path, name in tasks[first::PROCESSES]]
        done = subprocess.run(
            [*command, code], input="\n".join(lines), cwd=Path(__file__).parent, env=environment,
            capture_output=True, text=True,
        )  # fmt: skip
        if "unexpected memory mapping" in done.stderr:
            pytest.skip("the thread sanitizer cannot run where addresses are that random")
        assert not done.returncode, done.stderr[-3000:]
        return [json.loads(line) for line in done.stdout.splitlines()]

    with ThreadPoolExecutor(PROCESSES) as pool:
        parts = list(pool.map(some, range(min(PROCESSES, len(tasks)))))
    result = []
    for k in range(len(tasks)):
        status, said = parts[k % PROCESSES][k // PROCESSES]
        found = any(word in said for word in ("data race", "EmulationError", "SEGV on"))
        assert found if status else not said, f"{tasks[k]} ended with status {status}: {said}"
        result.append(said)
    return result


def library(case: Case, text: str | None = None) -> Path:
    return compiled(case.file, case.defines, sanitize="thread", text=text)


# --------------------------------------------------------------------------- what is seen as a race

TOYS = """
#define T threadIdx.x
#define KERNEL(name) extern "C" __global__ void name(int* out, int* values, int* counter)
KERNEL(no_barrier) {
    __shared__ int s[64];
    s[T] = 1;
    out[64 * blockIdx.x + T] = s[63 - T];
}
KERNEL(barrier) {
    __shared__ int s[64];
    for (int k = 0; k < 3; ++k) {
        s[T] = k;
        __syncthreads();
        out[64 * blockIdx.x + T] = s[63 - T];
        __syncthreads();
    }
}
KERNEL(barrier_of_the_warp) {
    __shared__ int s[64];
    s[T] = 1;
    __syncwarp();
    out[64 * blockIdx.x + T] = s[T ^ 31];
}
KERNEL(barrier_of_one_warp_too_few) {
    __shared__ int s[64];
    s[T] = 1;
    __syncwarp();
    out[64 * blockIdx.x + T] = s[T ^ 32];
}
KERNEL(shuffle) {
    __shared__ int s[64];
    s[T] = 1;
    out[64 * blockIdx.x + T] = __shfl_xor_sync(0xffffffffu, 1, 1) + s[T ^ 1];
}
KERNEL(same_place_in_two_blocks) { out[T] = 1; }
KERNEL(same_place_in_two_blocks_between_barriers) {
    __syncthreads();
    out[T] = 1;
    __syncthreads();
}
KERNEL(same_value) {
    __shared__ int s;
    s = 1;
    __syncthreads();
    out[64 * blockIdx.x + T] = s;
}
KERNEL(same_value_volatile) {
    __shared__ volatile int s;
    s = 1;
    __syncthreads();
    out[64 * blockIdx.x + T] = s;
}
KERNEL(volatile_and_not) {
    __shared__ int s[64];
    *static_cast<volatile int*>(s) = 1;
    out[64 * blockIdx.x + T] = s[T];
}
KERNEL(atomic) { atomicAdd(counter, 1); }
KERNEL(atomic_and_not) {
    atomicAdd(counter, 1);
    out[64 * blockIdx.x + T] = *counter;
}
#define LAST(before, begin, after, end)                                                           \
    __shared__ int last;                                                                          \
    values[64 * blockIdx.x + T] = 1;                                                              \
    before;                                                                                       \
    __syncthreads();                                                                              \
    if (T == 0) {                                                                                 \
        begin;                                                                                    \
        last = atomicAdd(counter, 1) == int(gridDim.x) - 1;                                       \
        after;                                                                                    \
    }                                                                                             \
    __syncthreads();                                                                              \
    end;                                                                                          \
    for (int k = T; last && k < 64 * int(gridDim.x); k += 64) out[k] = values[k];
KERNEL(last_block) { LAST(, __threadfence(), __threadfence(), ) }
KERNEL(last_block_without_fences) { LAST(, , , ) }
KERNEL(last_block_without_the_first_fence) { LAST(, , __threadfence(), ) }
KERNEL(last_block_without_the_last_fence) { LAST(, __threadfence(), , ) }
KERNEL(last_block_with_fences_outside) { LAST(__threadfence(), , , __threadfence()) }
"""
SOUND = {
    "barrier", "barrier_of_the_warp", "same_value_volatile", "atomic", "last_block",
}  # fmt: skip


def test_what_is_a_race_and_what_is_none(tmp_path):
    place = tmp_path / "toys.cu"
    place.write_text(TOYS)
    module = compiled(place, sanitize="thread")
    names = re.findall(r"KERNEL\((\w+)\) \{", TOYS)
    said = dict(zip(names, reports((module, name) for name in names), strict=True))
    assert {name for name in names if not said[name]} == SOUND
    assert all("data race" in said[name] for name in set(names) - SOUND)


# ------------------------------------------------------------------------------------- the kernels


def kernels_of(file: Path) -> set[str]:
    text = re.sub(r"__launch_bounds__\s*\([^)]*\)", "", file.read_text())
    return set(re.findall(r"__global__\s+void\s+(\w+)", text))


def test_every_kernel_is_watched():
    launched = {(c.file, k) for c in LAUNCHES.values() for k, *_ in c.launches()}
    assert launched == {(f.name, k) for f in KERNELS.glob("*.cu") for k in kernels_of(f)}


def test_no_kernel_has_a_race():
    with ThreadPoolExecutor(PROCESSES) as pool:
        libraries = list(pool.map(library, LAUNCHES.values()))
    said = reports(zip(libraries, LAUNCHES, strict=True))
    assert dict(zip(LAUNCHES, said, strict=True)) == dict.fromkeys(LAUNCHES, "")


@pytest.mark.parametrize("name", LAUNCHES)
def test_no_order_of_threads_and_blocks_changes_a_bit(name):
    case = LAUNCHES[name]
    module = build(case.file, case.defines)

    def after(order, seed=None):
        arrays = []
        for kernel, grid, block, arguments, shared in case.launches():
            module.launch(kernel, grid, block, arguments, shared, order=order, seed=seed)
            arrays += [a.tobytes() for a in arguments if isinstance(a, np.ndarray)]
        return arrays

    first = after("ascending")
    assert after("descending") == first
    assert all(after("shuffled", seed) == first for seed in range(8))


def barriers() -> list[tuple[str, int]]:
    """Return the places of all barriers and fences: (file, line)."""
    return [
        (file.name, number)
        for file in sorted(KERNELS.glob("*.cu*"))
        for number, line in enumerate(file.read_text().splitlines(), 1)
        if BARRIER.search(line.partition("//")[0])
    ]


@cache
def seen_by_the_compiler(file: str, macros: str) -> str:
    return preprocessed(macros + (KERNELS / file).read_text())


def mutated(case: Case, file: str, line: int) -> str | None:
    """Return the text of a case without what is at this line; None: it is not in there."""
    there = set()

    def whole(name: str) -> str:
        if name in there:
            return ""
        there.add(name)
        lines = (KERNELS / name).read_text().replace("#pragma once\n", "\n").splitlines()
        if name == file:
            lines[line - 1] = BARRIER.sub("((void)0)", lines[line - 1])
        for number, text in enumerate(lines):
            if found := INCLUDE.fullmatch(text):
                lines[number] = f'#line 1 "{found[1]}"\n{whole(found[1])}\n'
                lines[number] += f'#line {number + 2} "{name}"'
        return "\n".join(lines)

    changed = whole(case.file)
    macros = "".join(f"#define {name} {value}\n" for name, value in case.defines.items())
    same = preprocessed(macros + changed) == seen_by_the_compiler(case.file, macros)
    return None if same else changed


def unnoticed(places: list[tuple[str, int]]) -> list[tuple[str, int]]:
    """Return those without which no launch goes wrong."""
    left = places
    for name, case in LAUNCHES.items():  # of those with the same barriers, the first finds most

        def one(place, case=case):
            text = mutated(case, *place)
            return None if text is None else library(case, text)

        with ThreadPoolExecutor(PROCESSES) as pool:
            libraries = list(pool.map(one, left))
        tasks = [(path, name) for path in libraries if path is not None]
        said = iter(reports(tasks) if tasks else ())
        left = [
            p for p, path in zip(left, libraries, strict=True) if path is None or not next(said)
        ]
    return left


def test_every_barrier_and_every_fence_is_needed():
    places = barriers()
    assert len(places) > 30
    assert unnoticed(places) == []
