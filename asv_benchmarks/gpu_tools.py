"""The table of tests on the GPU, and NVIDIA's compute-sanitizer, as commands with a limit."""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import sys
from pathlib import Path
from typing import Any

from .gpu_process import ROOT, limited

TOOLS = ("memcheck", "racecheck", "synccheck", "initcheck")
FOUND = 77  # what compute-sanitizer exits with when it found something
NO_PYTEST = "pytest is not installed: pip install pytest"
NO_SANITIZER = (
    "compute-sanitizer is in no CUDA toolkit here, nor in the wheel that has it: "
    "pip install nvidia-cuda-sanitizer-api"
)

Record = dict[str, Any]


def verdict(status: int | None) -> str:
    """Return the word for a status."""
    return "out of time" if status is None else "passed" if status == 0 else "FAILED"


def tests(seconds: float) -> Record:
    """Run the table of tests on the GPU."""
    if importlib.util.find_spec("pytest") is None:
        return {"verdict": "not run", "summary": NO_PYTEST}
    table = str(ROOT / "tests" / "test_cuda.py")
    command = [sys.executable, "-m", "pytest", "-q", "-rs", "--tb=short", "--maxfail=30"]
    command += ["-k", "test_gpu", table]
    if importlib.util.find_spec("xdist") is not None:
        command += ["-n", str(min(8, os.cpu_count() or 1))]
    status, said = limited(command, seconds)
    lines = [text for text in said.strip().splitlines() if text.strip("= ")]
    summary = lines[-1] if lines else ""
    if status == 0 and not re.search(r"\b\d+ passed", summary):
        return {"verdict": "not run", "summary": f"all were skipped: {summary}", "said": said}
    found = {"verdict": verdict(status), "summary": summary}
    return found if status == 0 else found | {"said": said}


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
    summary = re.findall(r"(?:ERROR|RACECHECK) SUMMARY: .*", said)
    agrees = re.search(r"\d+ cases agree with the CPU", said)
    if status == 0 and not (summary and agrees):
        status = 1  # the tool could not work here
    words = ", ".join([*summary[-1:], *([agrees.group()] if agrees else [])])
    found = {"verdict": verdict(status), "summary": words or last_line(said)}
    return found if status == 0 else found | {"said": said}


def last_line(said: str) -> str:
    """Return the last line of what a command said."""
    lines = said.strip().splitlines()
    return lines[-1][:300] if lines else "it said nothing"
