"""The communication hook of DistributedDataParallel.

DDP compares the hook's annotations with classes: no postponed annotations in this file.
"""

import torch
from torch import Tensor
from torch.distributed import GradBucket  # type: ignore[attr-defined]

from fastgar.errors import SearchLimit

from .aggregation import Aggregation
from .backward import postponed_errors, raise_after_backward
from .errors import TooManyFaultyRanks
from .state import RobustState

__all__ = ["robust_hook"]


def robust_hook(state: RobustState, bucket: GradBucket) -> torch.futures.Future[Tensor]:
    """Aggregate a bucket of gradients by a rule: for ``model.register_comm_hook(state, hook)``.

    Parameters
    ----------
    state : RobustState
        One for each model.
    bucket : GradBucket
        Given by DDP.

    Returns
    -------
    Future
        Complete at the last bucket: where distances decide, they are those of the whole gradient.

    Raises
    ------
    TooManyFaultyRanks
        Out of ``backward()``, on every rank at the same step. All gradients are zero then, and
        training may go on with the next batch.
    ValueError
        Too few ranks for f, or a state that serves two models.

    Notes
    -----
    While the backward pass goes on, buckets are on their way. A column rule is applied as they
    arrive. With ``no_sync`` gradients accumulate on their rank, and momentum takes in their sum.
    """
    return _Step.of(state, bucket).take(bucket)


class _Step:
    """The buckets of one backward pass."""

    def __init__(self, state: RobustState, aggregation: Aggregation) -> None:
        self.state, self.aggregation = state, aggregation
        self.futures: list[torch.futures.Future[Tensor]] = []
        self.buffers: list[Tensor] = []

    @staticmethod
    def of(state: RobustState, bucket: GradBucket) -> "_Step":
        """Return the step that a bucket belongs to."""
        if bucket.index() == 0:
            state.underway = _Step(state, state.begin(bucket.buffer().device))
        step = state.underway
        if not isinstance(step, _Step) or len(step.futures) != bucket.index():
            raise ValueError(
                "buckets of two models came mixed: a RobustState serves one model, so make one for "
                "each"
            )
        return step

    def take(self, bucket: GradBucket) -> torch.futures.Future[Tensor]:
        buffer = bucket.buffer()
        if self.state.momentum.factor:
            parameters = bucket.parameters()
            self.state.momentum.replace(buffer, bucket.gradients(), parameters)
        self.aggregation.send(buffer, into=buffer)
        self.buffers.append(buffer)
        future: torch.futures.Future[Tensor] = torch.futures.Future(
            devices=[buffer.device] if buffer.is_cuda else None
        )
        self.futures.append(future)
        if bucket.is_last():
            self.state.underway = None
            self._complete()
        else:
            self.aggregation.advance()
        return future

    def _complete(self) -> None:
        error: Exception | None = None
        try:
            results = self.aggregation.finish()
        except (ValueError, SearchLimit) as complaint:  # the same on every rank
            skip = isinstance(complaint, TooManyFaultyRanks) and self.state.too_many == "nan"
            results = [buffer.fill_(float("nan") if skip else 0.0) for buffer in self.buffers]
            if not skip:
                raise_after_backward(complaint)
            error = complaint
        for future, result in zip(self.futures, results, strict=True):
            future.set_result(result)
        if error is None:
            with postponed_errors():
                self.state.report_on(self.aggregation)
