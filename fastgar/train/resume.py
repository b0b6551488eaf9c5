"""What of a run is saved, and how it is taken up again."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from .config import Config
from .metrics import Recorder
from .ranks import Ranks
from .result import Result, Seconds
from .rundir import CHECKPOINT, Mismatch, RunDirectory, open_directory
from .server import Server
from .threads import threads_for
from .workers import Workers

__all__ = ["resume", "state_of"]

VECTORS = ("theta", "momentum", "previous")


class Training(Protocol):
    """What is looked at of a run that is under way (`loop.Training`)."""

    config: Config
    ranks: Ranks
    workers: Workers
    server: Server
    recorder: Recorder
    result: Result
    draw: torch.Generator
    done: int
    theta: Tensor
    momentum: Tensor
    previous: Tensor


def state_of(training: Training) -> dict[str, Any]:
    """Return all that later steps depend on, and what there is to tell of earlier ones."""
    result = training.result
    return {
        "step": training.done,
        "stopped": result.stopped,
        **{name: getattr(training, name) for name in VECTORS},
        "buffers": dict(training.workers.module.named_buffers()),
        "draw": training.draw.get_state(),
        "server": training.server.state_dict(),
        "recorder": training.recorder.state_dict(),
        "losses": torch.tensor(result.losses, dtype=torch.float64),
        "times": torch.tensor(result.times, dtype=torch.float64),
    }


def resume(training: Training, path: Path, fresh: bool) -> RunDirectory | None:
    """Go on from where the run directory is; return it, on the rank that writes.

    Raises
    ------
    Mismatch, OSError
        If it is that of another run, or cannot be written.
    """
    with threads_for(len(training.theta), training.config):  # which the directory records
        directory, state, records = open_directory(path, training.config, fresh, training.ranks)
    result = training.result
    result.path = path
    if state:
        try:
            _restore(training, state, path)
        except Mismatch:
            raise
        except Exception as error:  # of many kinds: it is a checkpoint, but of something else
            raise Mismatch(
                f"{path / CHECKPOINT} is no checkpoint of this run ({error!r}): delete it, and "
                "that run starts again"
            ) from error
        for record in records:
            result.take(record)
    if directory is not None:
        directory.log(f"from step {training.done} of {training.config.steps}; {result.how}")
    return directory


def _restore(training: Training, state: dict[str, Any], path: Path) -> None:
    """Go on from a checkpoint."""
    result = training.result
    if state["theta"].shape != training.theta.shape:
        raise Mismatch(
            f"{path} holds a model of {len(state['theta'])} parameters, and this one has "
            f"{len(training.theta)}"
        )
    if not 0 <= state["step"] <= training.config.steps:
        raise ValueError(f"it is of step {state['step']}")
    training.done, result.stopped = state["step"], state["stopped"]
    buffers = dict(training.workers.module.named_buffers())
    with torch.no_grad():
        for name in VECTORS:
            getattr(training, name).copy_(state[name])
        for name, buffer in state["buffers"].items():
            buffers[name].copy_(buffer)
    training.draw.set_state(state["draw"])
    training.server.load_state_dict(state["server"])
    training.recorder.load_state_dict(state["recorder"])
    result.losses += state["losses"].tolist()
    result.times += [Seconds(*times) for times in state["times"].tolist()]
