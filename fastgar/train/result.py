"""What has come of a run."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, fields
from pathlib import Path
from statistics import fmean, median
from typing import Any, NamedTuple

from torch import Tensor, nn

from ..errors import shown
from .config import Config

__all__ = ["Evaluation", "Result", "Seconds"]


@dataclass(frozen=True)
class Evaluation:
    """What is known after some steps of a run.

    Attributes
    ----------
    step : int
        How many.
    loss : float
        Mean over the honest workers' batches, before the step.
    accuracy : float
        On the test set, after it.
    weight : float or None
        The Byzantine rows' share of the weight, if any lied and the rule tells what rows count.
    """

    step: int
    loss: float
    accuracy: float
    weight: float | None


class Seconds(NamedTuple):
    """Where the time goes: at the workers, at the adversary, in the rule."""

    gradient: float
    attack: float
    aggregation: float


@dataclass(repr=False)
class Result:
    """What has come of a run so far.

    Attributes
    ----------
    config : Config
    parameters : Tensor, shape (d,)
        Of the model, as one vector.
    model : nn.Module
        With these parameters, in evaluation mode, once the run has ended.
    how : str
        How gradients were computed.
    evaluations : list of Evaluation
    losses : list of float
        Of each step: the mean over the honest workers' batches.
    metrics : list of dict
        Of each step, if they are recorded: see `fastgar.train.metrics`.
    times : list of Seconds
        Of each step.
    stopped : str or None
        Why, if before the last step.
    path : Path or None
        The run directory.
    """

    config: Config
    parameters: Tensor
    model: nn.Module
    how: str = ""
    evaluations: list[Evaluation] = field(default_factory=list)
    losses: list[float] = field(default_factory=list)
    metrics: list[dict[str, Any]] = field(default_factory=list)
    times: list[Seconds] = field(default_factory=list)
    stopped: str | None = None
    path: Path | None = None

    def __repr__(self) -> str:
        config = self.config
        facts = [
            f"{config.rule} under {config.attack}",
            f"{len(self.losses)} of {config.steps} steps",
            f"{len(self.parameters):,} parameters",
        ]
        if self.evaluations:
            facts.append(f"accuracy {self.accuracy:.1%}, at best {self.best:.1%}")
        if self.stopped:
            facts.append(f"stopped: {shown(self.stopped)}")
        if self.path is not None:
            facts.append(f"in {self.path}")
        return f"<Result: {'; '.join(facts)}>"

    @property
    def late(self) -> list[float]:
        """Accuracies in the last third of the evaluations: one alone can be lucky under attack."""
        count = -(-len(self.evaluations) // 3)
        return [e.accuracy for e in self.evaluations[len(self.evaluations) - count :]]

    @property
    def accuracy(self) -> float:
        """Mean accuracy over the last third of the evaluations; NaN before the first."""
        return fmean(self.late) if self.late else math.nan

    @property
    def best(self) -> float:
        """The best accuracy of all evaluations; NaN before the first."""
        return max((e.accuracy for e in self.evaluations), default=math.nan)

    @property
    def weight(self) -> float | None:
        """Mean share of the weight that the rule gave to Byzantine rows."""
        shares = [e.weight for e in self.evaluations if e.weight is not None]
        return fmean(shares) if shares else None

    @property
    def seconds(self) -> Seconds:
        """The time spent in all steps."""
        return Seconds(*map(sum, zip(*self.times, strict=True))) if self.times else Seconds(0, 0, 0)

    @property
    def milliseconds(self) -> float | None:
        """Median time of one aggregation."""
        return 1e3 * median(times.aggregation for times in self.times) if self.times else None

    def take(self, record: dict[str, Any]) -> None:
        """Add a line of a run directory's metrics."""
        values = {**record, "loss": math.nan if record["loss"] is None else record["loss"]}
        if values.pop("kind") == "evaluation":
            self.evaluations.append(Evaluation(*(values[each.name] for each in fields(Evaluation))))
        else:
            self.metrics.append(values)
