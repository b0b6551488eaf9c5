"""One run of a grid, in the process that it was given to."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from itertools import pairwise
from statistics import median
from time import perf_counter
from typing import Any

from ...attacks import attack
from .. import models
from ..config import Config
from ..data import Data, load
from ..loop import Training
from ..ranks import device_of
from ..server import read_rule

__all__ = ["check", "execute"]


def check(configs: Iterable[Mapping[str, Any]], *, data: bool = True) -> None:
    """Raise the error that a run would, before any of them.

    Parameters
    ----------
    configs : iterable of mapping
        What `fastgar.train.run` is to be told, without seeds.
    data : bool
        Whether to load the data sets too, and so to fetch those that are not there yet: once,
        instead of once in each process.

    Raises
    ------
    TypeError, ValueError
    """
    needed: dict[str, int] = {}
    for settings in configs:
        config = _config(settings, seed=0)
        read_rule(config)
        if config.attack != "none":
            attack(config.attack)
        models.check(config.model)
        device_of(config.device)
        needed[config.data] = max(config.workers, needed.get(config.data, 0))
    if data:
        for name, workers in needed.items():
            load(name).require(workers)


def execute(settings: Mapping[str, Any], seed: int) -> dict[str, Any]:
    """Train, and return what is kept of the run.

    Returns
    -------
    dict
        best, late : highest accuracy, and mean over the last third (None before any evaluation)
        accuracy, loss : lists of (step, value)
        ratio, sampled_ratio : lists of (step, variance-to-norm ratio), of what honest workers sent
        and of their gradients, medians since the step before; empty if metrics are not recorded
        steps, stopped, seconds, aggregation : how many; why not all; time; and of it in the rule
    """
    config = _config(settings, seed)
    began = perf_counter()
    training = Training(config, data=_data(config.data))
    for _ in training:
        pass
    result = training.result
    evaluations = result.evaluations
    steps = [e.step for e in evaluations]
    return {
        "best": result.best if evaluations else None,
        "late": result.accuracy if evaluations else None,
        "accuracy": [(e.step, e.accuracy) for e in evaluations],
        "loss": [(e.step, e.loss) for e in evaluations],
        "ratio": _ratios(result.metrics, "honest", steps),
        "sampled_ratio": _ratios(result.metrics, "sampled", steps),
        "steps": len(result.losses),
        "stopped": result.stopped,
        "seconds": perf_counter() - began,
        "aggregation": result.seconds.aggregation,
    }


def _ratios(
    metrics: Sequence[Mapping[str, Any]], rows: str, steps: Sequence[int]
) -> list[tuple[int, float]]:
    """Return medians of deviation over norm, over the steps from one evaluation to the next."""
    found = []
    for begin, end in pairwise([0, *steps]):
        pairs = [(m[f"{rows}_deviation"], m[f"{rows}_norm"]) for m in metrics[begin:end]]
        values = [deviation / norm for deviation, norm in pairs if deviation and norm]
        values = [value for value in values if math.isfinite(value)]
        if values:
            found.append((end, median(values)))
    return found


def _config(settings: Mapping[str, Any], seed: int) -> Config:
    return Config.of({**settings, "seed": seed})


@lru_cache(maxsize=1)
def _data(name: str) -> Data:
    return load(name)
