"""Distributed SGD under attack, in one file.

    fastgar train                                         four rules, four attacks, on the digits
    fastgar train --rule mean --rule krum --attack empire
    fastgar train --rule "nnm | krum" --attack "little(k=1)" --momentum-at worker
    fastgar train --workers 25 --byzantine 5 --declared 8 --steps 1000 --seed 3 --out more
    fastgar train --data mnist --attack worst             every attack, the most harmful first

Each worker a process of its own, on one machine or, with the same line on each, on three:

    torchrun --nproc-per-node 5 -m fastgar.cli train --workers 5 --byzantine 1 --rule median
    torchrun --nnodes 3 --nproc-per-node 4 --rdzv-backend c10d --rdzv-endpoint HOST:29400 \\
        -m fastgar.cli train --workers 12 --rule krum

In Python, with a model and data of one's own:

    result = fastgar.train.run(module, data, rule="krum", attack="little", byzantine=2)

One step: every honest worker computes a gradient on a batch from its own share of the data. The
adversary sees all of them and decides what its q workers send. The rule makes one vector of the n
that arrive, and the model moves against it. With momentum at the server the rule sees gradients
and the server accumulates what it returns; with momentum at the workers each worker accumulates
its own gradients and the rule sees the sums, which differ less from each other than the gradients
do relative to their mean, so that an attacker has less room to hide.

Everything random is drawn for all workers from one generator: runs of one seed differ in nothing
but what they were told to, and it does not matter how many processes compute.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from time import perf_counter
from typing import Any

import torch
from torch import Tensor, nn

import fastgar as fg

from .adversary import Adversary
from .config import Config
from .data import Data, load
from .metrics import Recorder
from .models import build, require_fit
from .ranks import Ranks
from .rates import schedule
from .result import Evaluation, Result, Seconds
from .resume import resume, state_of
from .roles import Part, Roles
from .room import require_room
from .server import Server, read_rule
from .split import split
from .threads import threads_for
from .workers import Batches, Workers, hold_back, on

__all__ = ["Training", "run"]

PATIENCE = 30.0  # seconds between checkpoints, unless said otherwise


def run(
    model: str | nn.Module = "mlp",
    data: str | Data = "digits",
    *,
    out: str | Path | None = None,
    fresh: bool = False,
    **options: Any,
) -> Result:
    """Train a model on n workers of which q are Byzantine.

    Parameters
    ----------
    model : str or nn.Module
        A name for `fastgar.train.models.build`, or a module that gives a score per class. A module
        is copied, never changed.
    data : str or Data
        A name for `fastgar.train.load`, or the samples.
    out : path, optional
        The run directory, see `fastgar.train.rundir`. What it holds of this same run is taken up.
    fresh : bool
        Whether to forget what `out` holds.
    **options
        The settings of `Config`: rule, attack, workers, byzantine, steps, lr, ...

    Returns
    -------
    Result

    Raises
    ------
    TypeError, ValueError
        If something cannot be right; before any work.
    OSError
        If `out` cannot be written.

    Examples
    --------
    >>> result = run("logistic", rule="median", attack="sign_flip", steps=60, lr=0.5)
    >>> result.accuracy > 0.8, result.stopped
    (True, None)
    """
    if not isinstance(model, (str, nn.Module)):
        raise TypeError(f"model must be a name or a torch.nn.Module, got: {type(model).__name__}")
    if not isinstance(data, (str, Data)):
        raise TypeError(
            "data must be the name of a data set or a fastgar.train.Data(x, y, x_test, y_test, "
            f"classes), got: {type(data).__name__}"
        )
    names = {
        "model": model if isinstance(model, str) else f"<{type(model).__name__}>",
        "data": data if isinstance(data, str) else f"<{data.name or type(data).__name__}>",
    }
    config = Config.of({**names, **options})
    training = Training(
        config,
        None if isinstance(model, str) else model,
        None if isinstance(data, str) else data,
        out=out,
        fresh=fresh,
    )
    for _ in training:
        pass
    return training.result


class Training:
    """A run that is under way: iterating trains, and yields the number of steps done after each.

    Parameters
    ----------
    config : Config
    model, data : optional
        Instead of those that the configuration names.
    out, fresh
        As for `run`.

    Attributes
    ----------
    config : Config
    result : Result
        What has come of it so far.
    """

    def __init__(
        self,
        config: Config,
        model: nn.Module | None = None,
        data: Data | None = None,
        *,
        out: str | Path | None = None,
        fresh: bool = False,
    ) -> None:
        self.config = config
        self.rate = schedule(config.schedule)
        self.adversary, rule = Adversary(config), read_rule(config)
        self.ranks = Ranks(config.workers, config.device)
        device = self.ranks.device
        data = load(config.data) if data is None else data
        if model is None:
            model = build(config.model, data, config.seed)
        else:
            model = copy.deepcopy(model)
            require_fit(type(model).__name__, model.cpu(), data)
        require_room(config, data, model)

        # All draws, in this order: what the server holds, shares, liars; then those of each step.
        self.draw = torch.Generator().manual_seed(config.seed)
        data, held = hold_back(data, config.validation, self.draw)
        data.require(config.workers)
        shares = split(
            data.y, config.workers, config.split, generator=self.draw, classes=data.classes
        )
        self.roles = Roles(
            config.workers, config.taking_part, self.adversary.liars,
            self.adversary.liars_compute, self.draw,
        )  # fmt: skip
        self.data = on(device, data)
        self.batches = Batches(self.data, shares)
        self.workers = Workers(model.to(device), config, self.data, self.ranks)
        self.server = Server(rule, config, self.workers, on(device, held))
        self.recorder = Recorder(rule, config.taking_part, config.f, config.momentum)

        self.theta = self.workers.layout.flat(model)
        self.adversary.rehearse(self.roles.everyone, rule, self.theta)
        d, computing = len(self.theta), self.roles.computing
        self.rows = self.theta.new_empty(min(computing, config.taking_part), d)
        at_workers = config.momentum_at == "worker"
        self.momentum = self.theta.new_zeros((computing, d) if at_workers else d)
        self.previous = self.theta.new_zeros(d)  # what the rule returned last
        self.done = 0
        self.result = Result(config, self.theta, model, self.workers.how)
        self.directory = None if out is None else resume(self, Path(out), fresh)

    def __iter__(self) -> Iterator[int]:
        """Train."""
        config, result, saved = self.config, self.result, perf_counter()
        while self.done < config.steps and not result.stopped:
            with threads_for(len(self.theta), config):
                self._step(self.done + 1)
            self.done += 1
            over = result.stopped or self.done == config.steps
            late = not config.checkpoint_every and perf_counter() - saved > PATIENCE
            due = late or over or self.done % (config.checkpoint_every or config.steps) == 0
            if self.directory is not None and due:
                self.directory.save(state_of(self))
                saved = perf_counter()
            yield self.done
        self.workers.load(self.theta)
        if self.directory is not None:
            self.directory.log(result.stopped or f"all {config.steps} steps done")

    def _step(self, step: int) -> None:
        config, result, theta = self.config, self.result, self.theta
        lr, mu, at = config.lr * self.rate(step - 1), config.momentum, config.momentum_at
        reporting = step % config.evaluation_interval == 0 or step == config.steps
        part = self.roles.draw(self.draw)
        h, q = part.honest, len(part.liars)

        # Workers: gradients, where the momentum will lead if it is Nesterov's, and sums of them.
        began = perf_counter()
        x, y = self._samples(part)
        some = at == "worker" and len(part.seats) < len(self.momentum)
        momentum = self.momentum[part.seats] if some else self.momentum
        point = torch.sub(theta, momentum, alpha=mu * lr) if config.nesterov else theta
        rows = self.rows[: len(part.seats)]
        losses = self.workers(point, x, y, rows, lr, step, part.seats)
        own = rows
        if at == "worker":
            own = torch.add(rows, momentum, alpha=mu, out=momentum)  # one pass, in place
            if some:
                self.momentum[part.seats] = own
        elif at == "mixed":
            own = torch.add(rows, momentum, alpha=mu)
        loss = float(losses[:h].mean())
        computed = attacked = perf_counter()

        aggregate = weight = None
        if not math.isfinite(loss):
            result.stopped = f"loss not finite at step {step}"
        else:
            # The adversary, and the server. Both work on the CPU.
            honest = rows[:h].cpu()
            own = own.cpu()
            try:
                sent = self.adversary.overrule(
                    own, part, self.server.rule, step, sampled=honest, model=theta.cpu(),
                    momentum=None if at == "worker" else momentum.cpu(),
                    previous=self.previous.cpu(),
                )  # fmt: skip
                arrived = part.arrive(sent)
                attacked = perf_counter()
                keep = config.metrics or (reporting and q > 0)
                aggregate = self.server.aggregate(arrived, theta, lr, self.previous, keep=keep)
            except (ValueError, fg.SearchLimit) as error:  # fg.TooManyFaults is a ValueError
                result.stopped = f"step {step}: {error}"
        aggregated = perf_counter()

        if aggregate is not None:
            if reporting and q:
                weight = self.server.weight_of(part.liars, arrived, self.previous)
            if config.metrics:
                sampled = honest if at in ("worker", "mixed") else None
                found = self.server.metrics(self.recorder, part.liars, arrived, sampled, aggregate)
                self._record({"kind": "step", "step": step, "loss": loss, **found})
            if at == "server":
                theta.sub_(self.momentum.mul_(mu).add_(aggregate), alpha=lr)
            else:
                theta.sub_(aggregate, alpha=lr)
            if at == "mixed":
                self.momentum.copy_(aggregate)
            self.previous = aggregate

        result.losses.append(loss)
        result.times.append(Seconds(computed - began, attacked - computed, aggregated - attacked))
        if reporting or result.stopped:
            found = asdict(Evaluation(step, loss, self.workers.accuracy(theta), weight))
            self._record({"kind": "evaluation", **found})

    def _samples(self, part: Part) -> tuple[Tensor, Tensor]:
        """Return samples and labels, (workers, local steps, batch, ...), of those that compute.

        All workers draw, so that runs differ in nothing but rule and attack.
        """
        shape = (self.config.local_steps, self.config.batch)
        picks = self.batches.draw(math.prod(shape), self.draw)[part.workers]
        x, y = self.batches.take(picks.view(-1, *shape))
        if self.adversary.poisons:
            y[part.honest :] = self.adversary.labels(y[part.honest :], self.data.classes)
        return x, y

    def _record(self, record: dict[str, Any]) -> None:
        """Keep a line of metrics."""
        self.result.take(record)
        if self.directory is not None:
            self.directory.append(record)
