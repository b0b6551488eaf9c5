"""What workers do: gradients on batches of their own, decayed and clipped; perhaps some steps."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

import fastgar as fg

from ..statistic import hash_key
from .config import Config
from .data import Data
from .gradients import Layout, choose, copies
from .ranks import Ranks

__all__ = ["Batches", "Workers", "hold_back", "on"]

TEST_SAMPLES = 1000  # in one pass


def on(device: torch.device, data: Data) -> Data:
    """Return data on a device."""
    tensors = ("x", "y", "x_test", "y_test")
    return data._replace(**{name: getattr(data, name).to(device) for name in tensors})


def hold_back(data: Data, share: float, generator: torch.Generator) -> tuple[Data, Data]:
    """Return what workers train on, and what the server keeps: a random share of the samples."""
    if not share:
        return data, data._replace(x=data.x[:0], y=data.y[:0])
    order = torch.randperm(len(data.x), generator=generator)
    mine, theirs = order.tensor_split([math.ceil(share * len(order))])
    parts = [data._replace(x=data.x[part], y=data.y[part]) for part in (theirs, mine)]
    return parts[0], parts[1]


class Batches:
    """Draws samples for the workers, each from its own share of the data, with replacement.

    Parameters
    ----------
    data : Data
    shares : list of Tensor
        The indices of each worker's samples.
    """

    def __init__(self, data: Data, shares: list[Tensor]) -> None:
        self.data = data
        self.sizes = torch.tensor([len(share) for share in shares])[:, None]
        self.begins = self.sizes.cumsum(0) - self.sizes
        self.indices = torch.cat(shares)
        self._space = data.x[:0]

    def draw(self, each: int, generator: torch.Generator) -> Tensor:
        """Return the indices of so many samples for each worker: (workers, each)."""
        uniform = torch.rand(
            len(self.sizes), each, generator=generator, dtype=torch.float64
        )  # in float32 it may round up to the size of a large share
        return self.indices[self.begins + (uniform * self.sizes).long()]

    def take(self, indices: Tensor) -> tuple[Tensor, Tensor]:
        """Return samples and labels, (workers, each, ...); the next call overwrites the samples."""
        flat = indices.flatten().to(self.data.x.device)
        if len(self._space) < len(flat):
            self._space = self.data.x.new_empty(len(flat), *self.data.x.shape[1:])
        x = self._space[: len(flat)]  # five times as fast as new memory for every batch
        torch.index_select(self.data.x, 0, flat, out=x)
        return x.view(*indices.shape, *x.shape[1:]), self.data.y[flat].view(indices.shape)


class Workers:
    """All workers, or the one that this rank is, with a model that they share.

    Parameters
    ----------
    module : nn.Module
        The server's model. Its parameters serve as initial ones only; its buffers are the server's,
        and change.
    config : Config
    data : Data
    ranks : Ranks

    Attributes
    ----------
    layout : Layout
        Of the parameters.
    how : str
        How gradients are computed.
    """

    def __init__(self, module: nn.Module, config: Config, data: Data, ranks: Ranks) -> None:
        self.module, self.config, self.data, self.ranks = module, config, data, ranks
        self.layout, self.settings = Layout(module), config.to_toml()
        module.train(not config.eval_mode)
        trial = torch.arange(2 * min(2, config.batch)).view(2, -1) % len(data.x)
        with self._drawing(0):
            self.method, self.moving = choose(module, self.layout, data.x[trial], data.y[trial])
        self.how = f"gradients {self.method.how}"

    def __call__(
        self, point: Tensor, x: Tensor, y: Tensor, rows: Tensor, lr: float, step: int, who: Tensor
    ) -> Tensor:
        """Fill the rows with what workers found, and return their losses.

        Parameters
        ----------
        point : Tensor, shape (d,) or (k, d)
            Where they start: all at one, or each at its own.
        x, y : Tensor, shape (k, local steps, batch, ...) and (k, local steps, batch)
        rows : Tensor, shape (k, d)
        lr : float
            Of local steps.
        step : int
            Models that draw random numbers depend on it and on the seed.
        who : Tensor of int, shape (k,)
            The ranks, where each worker is a rank, that take part.
        """
        own = {name: buffer for name, buffer in self.module.named_buffers() if name in self.moving}
        if self.ranks.alone:
            buffers = copies(own, len(rows))
            with self._drawing(step):
                losses = self._work(point, buffers, x, y, rows, lr)
        else:
            mine = (who == self.ranks.rank).nonzero()[:, 0]

            def work() -> tuple[list[Tensor], float]:
                found, mean = rows.new_zeros(1, self.layout.total), rows.new_zeros(1)
                buffers = copies(own, 1)
                if len(mine):
                    start = point[mine] if point.ndim == 2 else point
                    with self._drawing(step):
                        mean = self._work(start, buffers, x[mine], y[mine], found, lr)
                return [found, *buffers.values()], float(mean[0])

            same = {"the step": step, "settings": self.settings, "buffers": list(own)}
            (found, *stacks), means = self.ranks.gather(work, same)
            torch.index_select(found, 0, who.to(rows.device), out=rows)
            losses = rows.new_tensor(means)[who]
            buffers = {name: stack[who] for name, stack in zip(own, stacks, strict=True)}
        for name, stack in buffers.items():
            own[name].copy_(_middle(stack))
        return losses

    def _work(
        self, point: Tensor, buffers: dict[str, Tensor], x: Tensor, y: Tensor,
        rows: Tensor, lr: float,
    ) -> Tensor:  # fmt: skip
        """Fill the rows with the sums of the workers' gradients along their local steps."""
        losses = self.gradients(point, buffers, x[:, 0], y[:, 0], rows)
        for k in range(1, self.config.local_steps):
            here = torch.sub(point, rows, alpha=lr)
            more = torch.empty_like(rows)
            losses = losses + self.gradients(here, buffers, x[:, k], y[:, k], more)
            rows += more
        return losses / self.config.local_steps

    def gradients(
        self, point: Tensor, buffers: dict[str, Tensor], x: Tensor, y: Tensor,
        rows: Tensor,
    ) -> Tensor:  # fmt: skip
        """Fill the rows with one gradient of each worker, decayed, then clipped; return the losses.

        Points, samples and rows as in a call, with a batch for each worker: (k, batch, ...).
        """
        config = self.config
        losses = self.method(point, buffers, x, y, rows)
        if config.weight_decay:
            if config.l2 == "squared":
                rows.add_(point, alpha=config.weight_decay)
            else:  # the gradient of w^2 |point|, which is 0 at 0
                length = torch.linalg.vector_norm(point, dim=-1, keepdim=True)
                rows.add_(point / length.clamp(min=1e-30), alpha=config.weight_decay**2)
        if config.clip is not None:
            norms = torch.linalg.vector_norm(rows, dim=1, keepdim=True)
            if bool((norms > config.clip).any()):
                rows.mul_((config.clip / norms).clamp(max=1.0))
        return losses

    def gradient(self, theta: Tensor, x: Tensor, y: Tensor) -> Tensor:
        """Return the gradient of the server itself on a batch, (batch, ...) and (batch,)."""
        rows = theta.new_empty(1, len(theta))
        own = dict(self.module.named_buffers())
        buffers = copies({name: own[name] for name in self.moving}, 1)
        with self._drawing(-1):
            self.gradients(theta, buffers, x[None], y[None], rows)
        return rows[0]

    @torch.no_grad()
    def scores(self, theta: Tensor, x: Tensor) -> Tensor:
        """Return the model's score of each class in evaluation mode: (samples, classes)."""
        training = self.module.training
        self.module.eval()
        try:
            return self.layout.call(self.module, self.layout.parts(theta), {}, x)
        finally:
            self.module.train(training)

    def accuracy(self, theta: Tensor) -> float:
        """Return the share of test samples whose class has the highest score."""
        x, y = self.data.x_test, self.data.y_test
        right = 0
        for begin in range(0, len(x), TEST_SAMPLES):
            part = slice(begin, begin + TEST_SAMPLES)
            right += int((self.scores(theta, x[part]).argmax(1) == y[part]).sum())
        return right / len(x)

    def load(self, theta: Tensor) -> None:
        """Put these parameters into the model, and it into evaluation mode."""
        with torch.no_grad():
            named = dict(self.module.named_parameters())
            for name, part in self.layout.parts(theta).items():
                named[name].copy_(part)
        self.module.eval()

    @contextmanager
    def _drawing(self, step: int) -> Iterator[None]:
        """Let the model draw numbers that depend on seed, step and rank; nobody else notices."""
        cuda = [self.ranks.device] if self.ranks.device.type == "cuda" else []
        with torch.random.fork_rng(devices=cuda):
            key = hash_key(hash_key(self.config.seed, step), self.ranks.rank)
            torch.default_generator.manual_seed(key)
            if cuda:
                torch.cuda.manual_seed(key)
            yield


def _middle(stack: Tensor) -> Tensor:
    """Return the median over workers of a buffer; of integers and flags the lower one."""
    if stack.is_floating_point():
        result: Tensor = fg.median(stack.cpu())
        return result
    return stack.sort(dim=0).values[(len(stack) - 1) // 2]
