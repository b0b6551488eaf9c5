"""All that can only be known on a GPU: one command, under ten minutes on a large one.

    python asv_benchmarks/gpu.py            # tests, sanitizer, figures
    python asv_benchmarks/gpu.py --quick    # two small sizes, no tests, no sanitizer

It runs the table of tests on the GPU, compute-sanitizer on a small run, and measures. It writes
`asv_benchmarks/results/gpu-<name>.json` after every step and every figure, so that what was found
stays when it is stopped, `gpu-<name>.png` (the roofline), and `gpu-<name>.md` (the table). It needs
torch and CuPy for the GPU, numba and pytest; matplotlib for the picture.

Times are of CUDA events around replays of a graph that holds several calls, on buffers that do not
fit in the cache together, so that neither the host nor the cache is measured; "eager" is what a
call costs the host. Figures are a share of the bandwidth of a plain copy: the bytes that a rule
must move, by the time it takes.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import platform
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from time import perf_counter
from typing import Any

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
BUDGET = 570.0  # seconds in all
FOR_TESTS, FOR_SANITIZER = 210.0, 75.0  # seconds at most, the latter for each tool
TOOLS = ("memcheck", "racecheck", "synccheck")
FOUND = 77  # what compute-sanitizer exits with when it found something
HELD_BACK = 20.0  # seconds without which no further size is begun

Record = dict[str, Any]


class Report:
    """What is known so far; saved with every change."""

    def __init__(self, path: Path, machine: Record) -> None:
        self.path = path
        self.began = perf_counter()
        self.data: Record = {
            "machine": machine, "complete": False, "seconds": 0.0, "tests": None,
            "sanitizer": {}, "bandwidth": None, "overhead": None, "results": [], "skipped": [],
            "missed": [],
        }  # fmt: skip
        self.save()

    def left(self) -> float:
        """Return the seconds that are left."""
        return BUDGET - (perf_counter() - self.began)

    def save(self, **news: Any) -> None:
        """Write everything, so that a kill at any time loses nothing."""
        self.data.update(news, seconds=round(perf_counter() - self.began, 1))
        part = self.path.with_suffix(".part")
        part.write_text(json.dumps(self.data, indent=1) + "\n")
        os.replace(part, self.path)


# ------------------------------------------------------------------------------------- the steps


def machine(torch: Any) -> Record:
    """Return what is known of the GPU and of the versions."""
    asked = _nvidia_smi("driver_version", "clocks.max.sm")
    versions = {}
    for name in (
        "fastgar", "torch", "cupy-cuda12x", "cupy-cuda13x", "numpy", "numba", "nvidia-cuda-nvrtc",
    ):  # fmt: skip
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            continue
    from .roofline import LANES

    properties = torch.cuda.get_device_properties(0)
    clock = re.match(r"\d+", asked[1])
    lanes = properties.multi_processor_count * LANES
    return {
        "gpu": properties.name,
        "compute_capability": f"{properties.major}.{properties.minor}",
        "processors": properties.multi_processor_count,
        "memory": properties.total_memory,
        "cache": properties.L2_cache_size,
        "driver": asked[0],
        "cuda": torch.version.cuda,
        "peak_instructions": lanes * int(clock.group()) * 1e6 if clock else None,
        "python": platform.python_version(),
        "versions": versions,
        "commit": _output(["git", "-C", str(ROOT), "rev-parse", "--short", "HEAD"]),
    }


def _nvidia_smi(*questions: str) -> list[str]:
    query = ["nvidia-smi", f"--query-gpu={','.join(questions)}", "--format=csv,noheader"]
    answers = _output(query).split("\n")[0].split(",")
    if len(answers) != len(questions):
        return ["unknown"] * len(questions)
    return [answer.strip() for answer in answers]


def _output(command: Sequence[str]) -> str:
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=30)
    except (OSError, subprocess.SubprocessError):
        return ""
    return done.stdout.strip()


def limited(command: Sequence[str], seconds: float) -> tuple[int | None, str]:
    """Run a command with its children; return its status (None: out of time) and what it said."""
    paths = [str(ROOT), os.environ.get("PYTHONPATH", "")]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths))}
    environment.setdefault("NUMBA_NUM_THREADS", "2")
    process = subprocess.Popen(
        command, cwd=ROOT, env=environment, text=True, start_new_session=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip
    try:
        said, _ = process.communicate(timeout=max(seconds, 1.0))
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        said, _ = process.communicate()
        return None, said
    return process.returncode, said


def verdict(status: int | None) -> str:
    """Return the word for a status."""
    return "out of time" if status is None else "passed" if status == 0 else "FAILED"


def tests(seconds: float) -> Record:
    """Run the table of tests on the GPU."""
    table = str(ROOT / "tests" / "test_cuda.py")
    command = [sys.executable, "-m", "pytest", "-q", "-rs", "-k", "test_gpu", table]
    if importlib.util.find_spec("xdist") is not None:
        command += ["-n", str(min(8, os.cpu_count() or 1))]
    status, said = limited(command, seconds)
    print("" if status == 0 else said[-6000:])
    lines = [text for text in said.strip().splitlines() if text.strip("= ")]
    return {"verdict": verdict(status), "summary": lines[-1] if lines else ""}


def sanitizer() -> str | None:
    """Return where compute-sanitizer is: on the path, in a toolkit, or in NVIDIA's wheel."""
    found = shutil.which("compute-sanitizer")
    if found:
        return found
    homes = [os.environ.get(name) for name in ("CUDA_HOME", "CUDA_PATH")]
    folders = [Path(home) for home in homes if home]
    folders += sorted(Path("/usr/local").glob("cuda*"), reverse=True)
    spec = importlib.util.find_spec("nvidia")
    for place in spec.submodule_search_locations or () if spec else ():
        folders += sorted(Path(place).glob("*"), reverse=True)
    for folder in folders:
        for inside in ("compute-sanitizer", "bin"):
            tool = folder / inside / "compute-sanitizer"
            if tool.is_file() and os.access(tool, os.X_OK):
                return str(tool)
    return None


def sanitized(tool: str, kind: str, seconds: float) -> Record:
    """Run the small run under one tool of compute-sanitizer."""
    command = [
        tool, "--tool", kind, "--error-exitcode", str(FOUND), "--print-limit", "20",
        "--target-processes", "application-only",
    ]  # fmt: skip
    if kind == "memcheck":
        command += ["--report-api-errors", "no"]  # libraries ask for what may not be there
    status, said = limited([*command, sys.executable, "-m", "asv_benchmarks.gpu_small"], seconds)
    if status != 0:
        print(said[-4000:])
    summary = re.findall(r"(?:ERROR|RACECHECK) SUMMARY: .*", said)
    agrees = re.search(r"\d+ cases agree with the CPU", said)
    if status == 0 and not (summary and agrees):
        status = 1  # the tool could not work here
    words = ", ".join([*summary[-1:], *([agrees.group()] if agrees else [])])
    return {"verdict": verdict(status), "summary": words or said.strip()[-300:]}


def check(report: Report) -> None:
    """Run the tests and the sanitizer."""
    report.save(tests=tests(min(FOR_TESTS, report.left())))
    print("tests:", *report.data["tests"].values(), flush=True)
    tool = sanitizer()
    if tool is None:
        missing = (
            "not run: compute-sanitizer is in no CUDA toolkit here, nor in the wheel that has it: "
            "pip install nvidia-cuda-sanitizer-api"
        )
        report.save(sanitizer={kind: {"verdict": "not run", "summary": missing} for kind in TOOLS})
        print("sanitizer:", missing, flush=True)
        return
    for kind in TOOLS:
        report.data["sanitizer"][kind] = sanitized(tool, kind, min(FOR_SANITIZER, report.left()))
        report.save()
        print(f"{kind}:", *report.data["sanitizer"][kind].values(), flush=True)


def measure(torch: Any, report: Report, sizes: Sequence[tuple[int, int]]) -> None:
    """Measure everything; each figure is in the report as soon as it is known."""
    from . import gpu_figures as figures

    bandwidth = figures.bandwidth_of_copies(torch)
    report.save(bandwidth=bandwidth)
    print(f"copy: {bandwidth / 1e12:.2f} TB/s, read and written")
    report.save(overhead=figures.overhead(torch))
    eager, graph = (1e6 * report.data["overhead"][name] for name in ("eager", "graph"))
    print(f"krum of 20 x 1000: {eager:.1f} us eager (wanted <= {figures.EAGER_AT_MOST * 1e6:.0f}), "
          f"{graph:.1f} us as a graph (wanted <= {figures.GRAPH_AT_MOST * 1e6:.0f})")  # fmt: skip
    print("\nrule            n           d        time     share of a copy's bandwidth", flush=True)
    for n, d in sizes:
        found = 0
        if report.left() > HELD_BACK:
            for record in figures.measured(torch, n, d, bandwidth):
                report.data["results"].append(record)
                report.save(missed=figures.missed(report.data))
                print(figures.line(record), flush=True)
                found += 1
        if not found:
            why = "memory" if report.left() > HELD_BACK else "time"
            report.data["skipped"].append({"n": n, "d": d, "why": f"too little {why}"})
            report.save()
            print(f"{n} x {d:,}: skipped, too little {why}", flush=True)
        torch.cuda.empty_cache()


def finish(report: Report) -> None:
    """Write the picture and the table, and say what was missed."""
    from . import gpu_figures as figures
    from . import roofline

    report.save(complete=not report.data["skipped"])
    report.path.with_suffix(".md").write_text(figures.markdown(report.data) + "\n")
    try:
        roofline.plot(report.data, report.path.with_suffix(".png"))
    except ImportError:
        print("no picture: pip install matplotlib")
    wanting = report.data["missed"]
    print("\nnothing that was wanted is missed" if not wanting else "\nmissed (wanted on an H200):")
    for sentence in wanting:
        print(" ", sentence)
    print(f"written to {report.path}, .md and .png, after {report.data['seconds']:.0f} s")


def failed(report: Report) -> bool:
    """Return whether a test failed or the sanitizer found something."""
    verdicts = [report.data["tests"] or {}, *report.data["sanitizer"].values()]
    return any(each.get("verdict") in ("FAILED", "out of time") for each in verdicts)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run everything; return 0 unless a test failed or the sanitizer found something."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="two small sizes, figures only")
    parser.add_argument("--no-tests", action="store_true", help="figures only")
    parser.add_argument("--json", type=Path, metavar="FILE", help="where to write the figures")
    options = parser.parse_args(arguments)
    try:
        import torch
    except ImportError:
        print("This measures against torch on a GPU: pip install torch, and fastgar[cuda12].")
        return 1
    if not torch.cuda.is_available():
        print("There is no CUDA GPU that torch can use here, so there is nothing to measure.")
        return 1
    from . import gpu_figures as figures

    about = machine(torch)
    name = re.sub(r"[^a-z0-9]+", "-", about["gpu"].lower()).strip("-")
    report = Report(options.json or HERE / "results" / f"gpu-{name}.json", about)
    print(about["gpu"], "driver", about["driver"], about["versions"], flush=True)
    if not (options.quick or options.no_tests):
        check(report)
    rows, columns = figures.ROWS, figures.COLUMNS
    sizes = [(n, d) for d in columns for n in rows]
    measure(torch, report, sizes[:2] if options.quick else sizes)
    finish(report)
    return int(failed(report))


if __name__ == "__main__":
    sys.path[0] = str(ROOT)  # this folder's modules are those of a package
    from asv_benchmarks.gpu import main as start

    sys.exit(start())
