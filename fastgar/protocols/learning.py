"""What a cluster learns: data and model of `fastgar.train`, and the gradient of a worker at a step.

The batch of a worker depends on the seed, its number and the step alone, so that a restart neither
repeats nor skips samples.
"""

from __future__ import annotations

import copy
import math
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from ..primitives import hash_key
from ..train.config import Config
from ..train.data import Data, load
from ..train.models import build, require_fit
from ..train.ranks import Ranks
from ..train.split import split
from ..train.workers import Workers

__all__ = ["Learning"]

Vector = NDArray[Any]


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
        self._rows = torch.empty(1, len(self.initial))

    def gradient(self, worker: int, step: int, theta: Vector, *, flip: Any = None) -> Vector:
        """Return the gradient of a worker at a model: of local steps, decayed and clipped.

        Parameters
        ----------
        worker, step : int
        theta : array, shape (d,)
        flip : callable, optional
            What becomes of the labels.
        """
        config = self.config
        x, y = self._batch(worker, step)
        if flip is not None:
            y = flip(y, self.data.classes)
        rows = torch.empty(1, len(theta))
        shape = (1, config.local_steps, config.batch)
        self._workers(
            torch.from_numpy(theta), x.view(*shape, *x.shape[1:]), y.view(shape), rows,
            config.lr, hash_key(step, worker), torch.zeros(1, dtype=torch.int64),
        )  # fmt: skip
        result: Vector = rows[0].numpy()
        return result

    def accuracy(self, theta: Vector) -> float:
        """Return the share of test samples whose class has the highest score."""
        return self._workers.accuracy(torch.from_numpy(theta))

    def _batch(self, worker: int, step: int) -> tuple[Tensor, Tensor]:
        config, share = self.config, self.shares[worker]
        count = config.local_steps * config.batch
        key = hash_key(hash_key(config.seed, step), worker)
        uniform = np.random.Generator(np.random.Philox(key)).random(count)
        picks = share[torch.from_numpy((uniform * len(share)).astype(np.int64))]
        return self.data.x[picks], self.data.y[picks]


def spread(models: list[Vector]) -> float:
    """Return the largest distance of two models."""
    pairs = [(a, b) for i, a in enumerate(models) for b in models[:i]]
    return max((math.sqrt(float(np.square(a - b).sum())) for a, b in pairs), default=0.0)
