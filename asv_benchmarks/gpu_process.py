"""Commands with a limit of time, and stages in processes of their own that say what they find.

A kernel that reads where it must not leaves its process with a GPU that answers nothing more, and
one that never ends leaves it waiting. So whatever launches kernels runs in a process that can be
lost: it writes one line of JSON for everything it finds, and names each unit of work before it
begins it. A new process goes on behind the unit at which the last one died.
"""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from time import monotonic
from typing import Any, NamedTuple

ROOT = Path(__file__).resolve().parent.parent
POISONED = 86  # what a stage exits with when the GPU answers nothing more in its process
LIVES = 4  # processes of a stage that may be lost until it is given up
MOST_SAID = 20_000  # characters of what a command said that are kept

Heard = Callable[[dict[str, Any]], None]


class Ending(NamedTuple):
    """How a process ended: its status (None: it was killed), and what it said on stderr."""

    status: int | None
    why: str  # it was killed
    said: str


class Outcome(NamedTuple):
    """How a stage ended."""

    verdict: str
    why: str = ""


class Poisoned(Exception):
    """The GPU answers nothing more in this process."""


# ------------------------------------------------------------------------------ the parent's side


def begun(command: Sequence[str], stdout: Any, stderr: Any) -> subprocess.Popen[bytes]:
    """Start a command in a group of its own, which can be killed as a whole."""
    paths = [str(ROOT), os.environ.get("PYTHONPATH", "")]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths))}
    environment.setdefault("NUMBA_NUM_THREADS", "2")
    return subprocess.Popen(
        command, cwd=ROOT, env=environment, start_new_session=True, stdin=subprocess.DEVNULL,
        stdout=stdout, stderr=stderr,
    )  # fmt: skip


def killed(process: subprocess.Popen[bytes]) -> None:
    """End a process with its children. One that the driver holds may not die: it is left."""
    try:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait(timeout=5)
    except (ProcessLookupError, subprocess.TimeoutExpired):
        pass


def _said(file: Any) -> str:
    file.seek(0, os.SEEK_END)
    file.seek(max(0, file.tell() - MOST_SAID))
    return str(file.read().decode(errors="replace"))


def limited(command: Sequence[str], seconds: float) -> tuple[int | None, str]:
    """Run a command with its children; return its status (None: out of time) and what it said."""
    with tempfile.TemporaryFile() as file:
        process = begun(command, file, subprocess.STDOUT)
        try:
            status: int | None = process.wait(timeout=max(seconds, 1.0))
        except subprocess.TimeoutExpired:
            status = None
        finally:
            killed(process)  # also children that outlive it, and all when this is interrupted
        return status, _said(file)


def streamed(command: Sequence[str], seconds: float, silence: float, heard: Heard) -> Ending:
    """Run a command that writes lines of JSON; pass each on as soon as it is there."""
    deadline, why, line = monotonic() + max(seconds, 1.0), "", b""
    with tempfile.TemporaryFile() as errors:
        process = begun(command, subprocess.PIPE, errors)
        assert process.stdout is not None
        try:
            while True:
                left = deadline - monotonic()
                wait = max(min(silence, left), 0.0)
                ready, _, _ = select.select([process.stdout], [], [], wait)
                if left <= 0 or not ready:
                    long = f"nothing was heard for {silence:.0f} s"
                    why = long if left > silence else "out of time"
                    break
                piece = os.read(process.stdout.fileno(), 1 << 16)
                if not piece:
                    break
                *lines, line = (line + piece).split(b"\n")
                for each in lines:
                    heard(json.loads(each))
            if not why:
                try:
                    process.wait(timeout=10)
                except subprocess.TimeoutExpired:
                    why = "it did not end"
        finally:
            killed(process)
            process.stdout.close()
        return Ending(None if why else process.returncode, why, _said(errors))


def command_of(stage: str, options: dict[str, Any]) -> list[str]:
    """Return the command that runs a stage."""
    return [sys.executable, "-m", "asv_benchmarks.gpu_stages", stage, json.dumps(options)]


def staged(
    stage: str,
    options: Callable[[], dict[str, Any]],
    seconds: float,
    silence: float,
    heard: Heard,
    lost: Callable[[str, str], None],
    lives: int = LIVES,
) -> Outcome:
    """Run a stage to its end, in as many processes as it takes, up to `lives`.

    `options` are those of the next process, `heard` takes what a process finds, and `lost` what
    it was at when it was lost, and why.
    """
    deadline = monotonic() + seconds
    state: dict[str, Any] = {"unit": -1, "what": "", "over": False}

    def noted(record: dict[str, Any]) -> None:
        state.update({key: record[key] for key in state if key in record})
        heard(record)

    for _ in range(lives):
        left = deadline - monotonic()
        given = {**options(), "skip": state["unit"] + 1, "seconds": left}
        before = state["unit"]
        end = streamed(command_of(stage, given), left, silence, noted)
        if state["over"]:
            return Outcome("done")
        if end.why == "out of time":
            at = f" at: {state['what']}" if state["what"] else ""
            return Outcome("out of time", f"stopped after {seconds:.0f} s{at}")
        how = end.why or _status(end.status)
        lost(state["what"] or "the start of the process", f"{how}\n{end.said}".strip())
        if state["unit"] == before:  # it died before it could do anything: so will the next
            return Outcome("FAILED", f"its process was lost: {how}")
    return Outcome("FAILED", f"given up at: {state['what']}, where its process was lost")


def _status(status: int | None) -> str:
    if status == POISONED:
        return "the GPU answered nothing more, and a new process went on"
    if status is not None and status < 0:
        return f"the process was ended by {signal.Signals(-status).name}"
    return f"the process ended with status {status}"


# ------------------------------------------------------------------------------- the stage's side


class Emit:
    """Writes records to the parent; whatever else is printed goes to stderr."""

    def __init__(self) -> None:
        sys.stdout.flush()
        self.file = os.fdopen(os.dup(1), "w")
        os.dup2(2, 1)

    def __call__(self, **record: Any) -> None:
        self.file.write(json.dumps(record) + "\n")
        self.file.flush()


def each(units: Sequence[Any], emit: Callable[..., None], skip: int) -> Iterator[Any]:
    """Yield the units from number `skip` on, each named to the parent before it begins."""
    emit(units=len(units))
    for number, unit in enumerate(units):
        if number >= skip:
            emit(unit=number, what=str(unit))
            yield unit
    emit(over=True)


def answers(torch: Any) -> bool:
    """Return whether the GPU still answers in this process."""
    try:
        return float(torch.ones(2, device="cuda").sum()) == 2.0
    except Exception:
        return False
