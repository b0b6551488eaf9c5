"""Distributed SGD under attack, in one file.

    fastgar train                                         four rules, four attacks, on the digits
    fastgar train --rule mean --rule krum --attack empire
    fastgar train --rule "nnm | krum" --attack "little(k=1)" --momentum-at worker
    fastgar train --workers 25 --byzantine 5 --declared 8 --steps 1000 --seed 3 --out more

One step: every honest worker computes a gradient on a batch from its own share of the data. The
adversary sees all of them and decides what its q workers send. The rule makes one vector of the n
that arrive, and the model moves against it. With momentum at the server the rule sees gradients
and the server accumulates what it returns; with momentum at the workers each worker accumulates
its own gradients and the rule sees the sums, which differ less from each other than the gradients
do relative to their mean, so that an attacker has less room to hide.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from statistics import fmean, median
from time import perf_counter

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.func import grad_and_value, vmap

import fastgar as fg

from ..attacks import Attack, attack
from .data import Data

__all__ = ["Config", "Evaluation", "Run", "prepare", "train"]

HIDDEN = 100  # the model: inputs -> 100 rectified units -> classes; 7,510 parameters for the digits
EVALUATIONS = 30


@dataclass(frozen=True)
class Config:
    """What the runs of one experiment share."""

    workers: int = 11
    byzantine: int = 2
    declared: int = 2
    steps: int = 300
    lr: float = 0.05
    momentum: float = 0.9
    momentum_at: str = "server"
    batch: int = 32
    seed: int = 0
    data: str = "digits"

    def __post_init__(self) -> None:
        checks = {
            "workers must be at least 1": self.workers >= 1,
            "byzantine must be at least 0": self.byzantine >= 0,
            f"byzantine must leave an honest worker: below {self.workers}, the number of workers": (
                self.byzantine < self.workers
            ),
            "declared must be at least 0": self.declared >= 0,
            "steps must be at least 1": self.steps >= 1,
            "lr must be a finite number above 0": 0 < self.lr < math.inf,
            "momentum must be at least 0 and below 1": 0 <= self.momentum < 1,
            "momentum-at must be 'worker' or 'server'": self.momentum_at in ("worker", "server"),
            "batch must be at least 1": self.batch >= 1,
        }
        for sentence, holds in checks.items():
            if not holds:
                name = sentence.split()[0]
                value = getattr(self, name.replace("-", "_"))
                raise ValueError(f"{sentence}, got {value!r}")


@dataclass(frozen=True)
class Evaluation:
    """What is known after some steps of a run; weight is the Byzantine rows' share, if any lied."""

    step: int
    loss: float
    accuracy: float
    weight: float | None


@dataclass
class Run:
    """One rule against one attack ("none": all workers are honest). `train` fills in the rest."""

    rule: fg.Rule
    attack: Attack | None
    evaluations: list[Evaluation] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)  # per aggregation
    stopped: str | None = None  # why, if before the last step

    @property
    def late(self) -> list[float]:
        """Accuracies in the last third of the evaluations: one alone can be lucky under attack."""
        count = -(-len(self.evaluations) // 3)
        return [e.accuracy for e in self.evaluations[len(self.evaluations) - count :]]

    @property
    def milliseconds(self) -> float | None:
        """Median time of one aggregation."""
        return 1e3 * median(self.seconds) if self.seconds else None

    @property
    def weight(self) -> float | None:
        """Mean share of the weight that the rule gave to Byzantine rows."""
        shares = [e.weight for e in self.evaluations if e.weight is not None]
        return fmean(shares) if shares else None


def prepare(rule: str, against: str, config: Config) -> Run:
    """Return the run of a rule against an attack, both as strings.

    Raises
    ------
    TypeError, ValueError
        If there is no such rule or attack, or the rule cannot aggregate that many workers.
    """
    made = fg.rule(rule, f=config.declared)
    complaint = made.check(config.workers)
    if complaint:
        raise ValueError(complaint)
    if made.stages[-1].spec.kind == "mixing":
        raise ValueError(f"{made} gives a row per worker: put a rule after it, as in {made} | krum")
    if "reference" in made.refs:
        raise ValueError(f"{made} needs a trusted gradient, which this loop does not have")
    return Run(made, None if against == "none" else attack(against))


def train(run: Run, config: Config, data: Data) -> Iterator[int]:
    """Train one model, and yield the number of steps done after each; the findings are in `run`."""
    draw = torch.Generator().manual_seed(config.seed)
    n = config.workers
    worker_mu = config.momentum if config.momentum_at == "worker" else 0.0
    server_mu = config.momentum if config.momentum_at == "server" else 0.0
    theta = initial(data, draw)
    shares = torch.randperm(len(data.x), generator=draw)[: len(data.x) // n * n].view(n, -1)
    # Liars sit anywhere but in row 0, which a rule with a trusted row trusts.
    order = 1 + torch.randperm(n - 1, generator=draw)
    liars = order[: config.byzantine if run.attack else 0].sort().values
    honest = torch.ones(n, dtype=torch.bool).index_fill(0, liars, False).nonzero()[:, 0]
    sent = torch.empty(n, len(theta))
    at_workers = torch.zeros(len(honest), len(theta))
    at_server = torch.zeros(len(theta))
    aggregate = torch.zeros(len(theta))
    report_every = max(1, config.steps // EVALUATIONS)

    for step in range(1, config.steps + 1):
        # Honest workers: all workers draw, so that runs differ in nothing but rule and attack.
        picks = torch.randint(shares.shape[1], (n, config.batch), generator=draw)
        mine = shares.gather(1, picks)[honest]
        gradients, losses = gradients_and_losses(theta, data.x[mine], data.y[mine], data.classes)
        at_workers = worker_mu * at_workers + gradients

        # The adversary.
        sent[honest] = at_workers
        if run.attack and len(liars):
            sent[liars] = run.attack(at_workers, len(liars))

        # The server.
        loss, weight = float(losses.mean()), None
        reporting = step % report_every == 0 or step == config.steps
        start = aggregate if "start" in run.rule.refs else None
        try:
            if reporting and len(liars):
                report = fg.inspect(run.rule.at(run.rule.step), sent, start=start)
                weight = float(report.weights[liars].sum() / (report.weights.sum() or 1.0))
            began = perf_counter()
            aggregate = run.rule(sent, start=start)
            run.seconds.append(perf_counter() - began)
        except fg.TooManyFaults:
            loss = math.nan
        if math.isfinite(loss):
            at_server = server_mu * at_server + aggregate
            theta = theta - config.lr * at_server
        else:
            run.stopped = f"loss not finite at step {step}"
        if reporting or run.stopped:
            run.evaluations.append(Evaluation(step, loss, accuracy(theta, data), weight))
        yield step
        if run.stopped:
            return


def initial(data: Data, draw: torch.Generator) -> Tensor:
    """Return the model's parameters as one vector, uniform in +- 1/sqrt(inputs of the layer)."""
    parts = []
    for inputs, outputs in ((data.x.shape[1], HIDDEN), (HIDDEN, data.classes)):
        uniform = torch.rand((inputs + 1) * outputs, generator=draw)  # weights, then biases
        parts.append((2 * uniform - 1) / math.sqrt(inputs))
    return torch.cat(parts)


def scores(theta: Tensor, x: Tensor, classes: int) -> Tensor:
    """Return the model's score of each class."""
    cut = (x.shape[1] + 1) * HIDDEN
    first, second = theta[:cut], theta[cut:]
    hidden = torch.relu(x @ first[:-HIDDEN].view(-1, HIDDEN) + first[-HIDDEN:])
    return hidden @ second[:-classes].view(HIDDEN, classes) + second[-classes:]


def gradients_and_losses(
    theta: Tensor, x: Tensor, y: Tensor, classes: int
) -> tuple[Tensor, Tensor]:
    """Return every worker's gradient, (workers, parameters), and loss, all in one pass."""

    def loss(theta: Tensor, x: Tensor, y: Tensor) -> Tensor:
        return F.cross_entropy(scores(theta, x, classes), y)

    gradients, losses = vmap(grad_and_value(loss), in_dims=(None, 0, 0))(theta, x, y)
    return gradients, losses


def accuracy(theta: Tensor, data: Data) -> float:
    """Return the share of test samples whose class has the highest score."""
    guesses = scores(theta, data.x_test, data.classes).argmax(1)
    return float((guesses == data.y_test).float().mean())
