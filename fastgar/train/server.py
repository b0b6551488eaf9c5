"""The server: a rule with what it needs, and what there is to know about its decision."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

import fastgar as fg

from ..stages import names
from .config import Config
from .data import Data
from .metrics import Distances, Recorder
from .workers import Workers
from .zeno import Validation, Zeno, parse

__all__ = ["Server", "read_rule"]

Array = NDArray[np.float64]
Rows = Tensor | Sequence[Tensor]


def read_rule(config: Config) -> fg.Rule | Zeno:
    """Return the rule of a configuration, if it can do its part there.

    Raises
    ------
    TypeError, ValueError
        If there is no such rule, it cannot aggregate that many rows, or it needs data of the
        server's own and there are none.
    """
    rule: fg.Rule | Zeno
    if "zeno" in names(config.rule):
        rule = parse(config.rule)
        needs = "loss on samples" if not config.validation else ""
    else:
        rule = fg.rule(config.rule, f=config.f)
        if rule.stages[-1].spec.kind == "mixing":
            raise ValueError(
                f"{rule} gives a row per worker: put a rule after it, as in {rule} | krum"
            )
        needs = "gradient" if "reference" in rule.refs and not config.validation else ""
    complaint = rule.check(config.taking_part)
    if complaint and config.participation < 1:
        complaint += f", the part of {config.workers} workers that participation leaves in a step"
    if complaint:
        raise ValueError(complaint)
    if needs:
        raise ValueError(
            f"{rule} needs a trusted {needs}, which takes samples of the server's own: set "
            "validation, their share of the training samples, such as 0.1"
        )
    return rule


class Server:
    """Aggregates, with a rule that may ask samples of the server's own.

    Parameters
    ----------
    rule : Rule or Zeno
    config : Config
    workers : Workers
        For the model.
    held : Data
        Whose training part is the server's own.

    Attributes
    ----------
    distances : Distances or None
        What the last aggregation measured, if that was asked for and the rule measures.
    weights : array or None
        What each row counted in the last aggregation, if the rule's decision says so.
    """

    def __init__(self, rule: fg.Rule | Zeno, config: Config, workers: Workers, held: Data) -> None:
        self.rule = rule
        self.config, self.workers, self.held = config, workers, held
        self.draw = torch.Generator().manual_seed(config.seed + 1)
        self.distances: Distances | None = None
        self.weights: Array | None = None
        self._validation = Validation(workers.scores)
        self._space: Tensor | None = None

    def state_dict(self) -> dict[str, Any]:
        """Return a copy of what later steps depend on."""
        step = self.rule.step if isinstance(self.rule, fg.Rule) else 0
        return {"step": step, "draw": self.draw.get_state()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from where `state_dict` was called."""
        if isinstance(self.rule, fg.Rule):
            self.rule.step = state["step"]
        self.draw.set_state(state["draw"])

    def aggregate(
        self, rows: Rows, theta: Tensor, lr: float, previous: Tensor, *, keep: bool = False
    ) -> Tensor:
        """Return what the rule makes of the rows.

        Parameters
        ----------
        rows : Tensor, shape (n, d), or list of Tensor
            In the order of the workers, on the CPU.
        theta, previous : Tensor, shape (d,)
            The parameters, and the last aggregate.
        lr : float
        keep : bool
            Whether to keep the distances, with the origin as a further point.
        """
        self.distances = self.weights = None
        rule = self.rule
        if isinstance(rule, Zeno):
            losses = self._validation.on(*self._samples(rule.samples))
            aggregate, self.weights, _ = rule(self._matrix(rows), theta, lr, losses)
            return aggregate.to(theta.device)
        points = self._points(theta, previous)
        centre = rule.stages[-1].spec.centre
        if keep and rule.reads > 1 and centre is None:
            found = self._measured(rule, rows, points)
        else:
            found = rule(rows, start=points.get("start"), reference=points.get("reference"))
        return found.to(theta.device)

    def weight_of(self, liars: Sequence[int], rows: Rows, previous: Tensor) -> float | None:
        """Return these rows' share of the weight in the last aggregate, or None if nobody knows.

        A column rule takes another look at the rows to tell.
        """
        weights = self.weights
        if weights is None and isinstance(self.rule, fg.Rule) and "reference" not in self.rule.refs:
            before = self.rule.at(self.rule.step - 1)
            start = previous.cpu() if "start" in before.refs else None
            weights = fg.inspect(before, rows, start=start).weights
        if weights is None:
            return None
        return float(weights[list(liars)].sum() / (weights.sum() or 1.0))

    def metrics(
        self,
        recorder: Recorder,
        liars: Sequence[int],
        rows: Rows,
        sampled: Tensor | None,
        aggregate: Tensor,
    ) -> dict[str, float | None]:
        """Return the metrics of a step: those of the last aggregation.

        Parameters
        ----------
        recorder : Recorder
        liars : sequence of int
            The rows in which liars arrived.
        rows : Tensor, shape (n, d), or list of Tensor
        sampled : Tensor, shape (h, d), or None
            The honest gradients, if something else was sent.
        aggregate : Tensor, shape (d,)
        """
        return recorder.record(
            self._matrix(rows), liars, sampled, aggregate, self.distances, self.weights
        )

    def _matrix(self, rows: Rows) -> Tensor:
        """Return the rows as one matrix; the next call overwrites it."""
        if isinstance(rows, Tensor):
            return rows
        if self._space is None:
            self._space = torch.stack(list(rows))
        return torch.stack(list(rows), out=self._space)

    def _measured(self, rule: fg.Rule, rows: Rows, given: dict[str, Tensor]) -> Tensor:
        """Aggregate as the rule does when called, with the origin among the points measured."""
        beside = () if "origin" in rule.refs else ("origin",)
        explained = rule.explain(
            rows, start=given.get("start"), reference=given.get("reference"), beside=beside
        )
        weights, D, n = explained.decision.weights, explained.distances, explained.rows.n
        if weights is not None:
            assert D is not None
            self.weights = weights[:n]
            at = n + [*rule.refs, *beside].index("origin")
            self.distances = Distances(D, at, weights)
        result: Tensor = explained.aggregate
        return result

    def _points(self, theta: Tensor, previous: Tensor) -> dict[str, Tensor]:
        """Return what the rule needs besides rows."""
        if not isinstance(self.rule, fg.Rule):
            return {}
        points = {}
        if "start" in self.rule.refs:
            points["start"] = previous.cpu()
        if "reference" in self.rule.refs:
            x, y = self._samples(self.config.batch)
            points["reference"] = self.workers.gradient(theta, x, y).cpu()
        return points

    def _samples(self, count: int) -> tuple[Tensor, Tensor]:
        """Draw samples of the server's own."""
        drawn = torch.randint(len(self.held.x), (count,), generator=self.draw)
        drawn = drawn.to(self.held.x.device)
        return self.held.x[drawn], self.held.y[drawn]
