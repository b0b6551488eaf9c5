"""The communication hook of DistributedDataParallel.

DDP compares the hook's annotations with classes: no postponed annotations in this file.
"""

import torch
from torch import Tensor
from torch.distributed import GradBucket  # type: ignore[attr-defined]

from fastgar.errors import SearchLimit

from .aggregation import Aggregation
from .backward import postponed_errors, raise_after_backward
from .ddp import group_of_model
from .errors import TooManyFaultyRanks
from .state import RobustState

__all__ = ["robust_hook"]


def robust_hook(state: RobustState, bucket: GradBucket) -> torch.futures.Future[Tensor]:
    """Aggregate a bucket of gradients by a rule: for ``model.register_comm_hook(state, hook)``.

    `make_robust` registers it, and refuses modules in which gradients go around the hook.

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
        Too few ranks for f, a state that serves two models, or one that is of another process
        group than the model (found at the first bucket). Buckets that are not alike on all
        ranks, or that one rank cannot send: on every rank, with its name, and then the next step
        works.
    RuntimeError
        A rank that has missed a call of the others. An exchange that broke off: a rank that died,
        or does not answer within the timeout of the process group. So does every later step, at
        once.

    Notes
    -----
    While the backward pass goes on, buckets are on their way. A column rule is applied as they
    arrive. With ``no_sync`` gradients accumulate on their rank, and momentum takes in their sum.
    """
    if bucket.index() == 0:
        state.underway = _Step(state)
    step = state.underway
    if not isinstance(step, _Step) or len(step.futures) != bucket.index():
        raise ValueError(
            "buckets of two models came mixed: a RobustState serves one model, so make one for each"
        )
    return step.take(bucket)


class _Step:
    """The buckets of one backward pass.

    An error comes out of ``backward()`` after all buckets are complete: DDP cannot go on, nor say
    what happened, where a hook raises.
    """

    def __init__(self, state: RobustState) -> None:
        self.state = state
        self.aggregation: Aggregation | None = None
        self.error: Exception | None = None
        self.futures: list[torch.futures.Future[Tensor]] = []
        self.buffers: list[Tensor] = []

    def take(self, bucket: GradBucket) -> torch.futures.Future[Tensor]:
        buffer = bucket.buffer()
        self.buffers.append(buffer)
        future: torch.futures.Future[Tensor] = torch.futures.Future(
            devices=[buffer.device] if buffer.is_cuda else None
        )
        self.futures.append(future)
        results: list[Tensor] = []
        try:
            if self.error is None:
                results = self._aggregate(bucket)
        except Exception as error:
            self.error = error
        if bucket.is_last():
            self.state.underway = None
            self._complete(results)
        return future

    def _aggregate(self, bucket: GradBucket) -> list[Tensor]:
        """Send a bucket; return the results after the last one."""
        state, buffer = self.state, bucket.buffer()
        if self.aggregation is None:
            state.memory.tidy()
            self.aggregation = state.begin(buffer.device, group_of_model(state))
        aggregation, last = self.aggregation, bucket.is_last()
        place = {"the bucket": bucket.index(), "whether it is the last bucket": last}
        with aggregation.peers.exchanging():
            call, copies = state.call(
                aggregation.peers, "robust_hook", place, buffer,
                lambda: (bucket.gradients(), bucket.parameters(), ()),
            )  # fmt: skip
            aggregation.begin(call, buffer, copies)
        if not last:
            return []
        with aggregation.peers.exchanging(ValueError, SearchLimit):  # the same on every rank
            return aggregation.finish()

    def _complete(self, results: list[Tensor]) -> None:
        error = self.error
        if error is not None:
            skip = isinstance(error, TooManyFaultyRanks) and self.state.too_many == "nan"
            results = [b.fill_(float("nan")) if skip else b.zero_() for b in self.buffers]
            if not skip:
                raise_after_backward(error)
        for future, result in zip(self.futures, results, strict=True):
            future.set_result(result)
        if error is None:
            assert self.aggregation is not None
            with postponed_errors():
                self.state.report_on(self.aggregation)
