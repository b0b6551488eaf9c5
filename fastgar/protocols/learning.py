"""What a cluster learns: data and model of `fastgar.train`, and the gradient of a worker at a step.

The batch of a worker depends on the seed, its number and the step alone, so that a restart neither
repeats nor skips samples.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from ..statistic import hash_key
from ..train.config import Config
from ..train.data import Data, load
from ..train.models import build, require_fit
from ..train.ranks import Ranks
from ..train.split import split
from ..train.workers import Workers

__all__ = ["Learning", "sketch", "spread"]

Vector = NDArray[Any]
Labels = Callable[[Tensor, int], Tensor]


class Learning:
    """The learning problem of a run.

    Parameters
    ----------
    config : Config
    model, data : optional
        Instead of those that the configuration names.

    Attributes
    ----------
    initial : array, shape (d,)
        The model that all servers start from.
    data : Data
    losses : Tensor
        Of the batches of the last gradients.

    Raises
    ------
    ValueError
        If a model changes buffers as it trains: these would have to travel, too.
    """

    def __init__(
        self, config: Config, model: nn.Module | None = None, data: Data | None = None
    ) -> None:
        self.config = config
        self.data = load(config.data) if data is None else data
        if model is None:
            model = build(config.model, self.data, config.seed)
        else:
            model = copy.deepcopy(model)
            require_fit(type(model).__name__, model.cpu(), self.data)
        self.data.require(config.workers)
        draw = torch.Generator().manual_seed(config.seed)
        self.shares = split(
            self.data.y, config.workers, config.split, generator=draw, classes=self.data.classes
        )
        self._workers = Workers(model, config, self.data, Ranks(1, config.device))
        if self._workers.moving:
            names = ", ".join(self._workers.moving[:3])
            raise ValueError(
                f"the model changes buffers as it trains ({names}), which do not travel: use a "
                "model without batch normalisation, or eval_mode = true"
            )
        self.initial: Vector = self._workers.layout.flat(model).numpy()
        self._draws, self.losses = False, torch.zeros(1)
        with torch.random.fork_rng(devices=()):
            before = torch.get_rng_state()
            self.gradient(0, 0, self.initial)
            self._draws = not torch.equal(before, torch.get_rng_state())

    def gradient(self, worker: int, step: int, theta: Vector) -> Vector:
        """Return the gradient of a worker at a model: of local steps, decayed and clipped."""
        result: Vector = self.gradients([worker], step, theta)[0]
        return result

    def gradients(
        self, workers: Sequence[int], step: int, theta: Vector, *, labels: Labels | None = None
    ) -> Vector:
        """Return the gradients of some workers at one model, (workers, d).

        Parameters
        ----------
        workers : sequence of int
        step : int
        theta : array, shape (d,)
        labels : callable, optional
            What becomes of labels: it takes them and the number of classes.
        """
        config, k = self.config, len(workers)
        picks = torch.cat([self._picks(worker, step) for worker in workers])
        x, y = self.data.x[picks], self.data.y[picks]
        if labels is not None:
            y = labels(y, self.data.classes)
        shape = (k, config.local_steps, config.batch)
        x, y, rows = x.view(*shape, *x.shape[1:]), y.view(shape), torch.empty(k, len(theta))
        point = torch.from_numpy(theta)
        if self._draws or config.local_steps > 1:
            who = torch.zeros(1, dtype=torch.int64)
            key = hash_key(step, workers[0])  # draws of the model depend on the worker, too
            losses = self._workers(point, x, y, rows, config.lr, key, who)
        else:
            losses = self._workers.gradients(point, {}, x[:, 0], y[:, 0], rows)
        self.losses = losses
        result: Vector = rows.numpy()
        return result

    def accuracy(self, theta: Vector) -> float:
        """Return the share of test samples whose class has the highest score."""
        return self._workers.accuracy(torch.from_numpy(theta))

    def _picks(self, worker: int, step: int) -> Tensor:
        """Return the indices of a worker's samples for a step."""
        config, share = self.config, self.shares[worker]
        key = hash_key(hash_key(config.seed, step), worker)
        drawn = _uniform(key, config.local_steps * config.batch)
        return share[torch.from_numpy((drawn * len(share)).astype(np.int64))]


def _uniform(key: int, count: int) -> Vector:
    """Return numbers from 0 to below 1 that a key stands for: splitmix64 of a counter."""
    z = np.arange(1, count + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15) + np.uint64(key)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    result: NDArray[Any] = ((z ^ (z >> np.uint64(31))) >> np.uint64(11)) * 2.0**-53
    return result


def sketch(model: Vector, size: int = 64) -> list[float]:
    """Return few numbers of a model: their distances are about the models', within a fifth."""
    place = np.arange(len(model), dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    signs = 1.0 - 2.0 * ((place >> np.uint64(40)) & np.uint64(1)).astype(np.float64)
    buckets = ((place >> np.uint64(41)) % np.uint64(size)).astype(np.int64)
    found: list[float] = np.bincount(buckets, signs * model, size).tolist()
    return found


def spread(models: Sequence[Any]) -> float:
    """Return the largest distance of two models."""
    pairs = [(a, b) for i, a in enumerate(models) for b in models[:i]]
    return max(
        (math.sqrt(float(np.square(np.subtract(a, b)).sum())) for a, b in pairs), default=0.0
    )
