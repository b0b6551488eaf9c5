"""What FSDP2 calls with the gradients of a parameter group, in place of its reduce-scatter."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from fastgar.errors import SearchLimit

from .aggregation import Aggregation
from .backward import after_backward, current_backward, postponed_errors, raise_after_backward
from .calls import Call
from .errors import TooManyFaultyRanks
from .exchange import exchange_of
from .group import Peers, peers_of
from .state import RobustState

try:
    from torch.distributed.fsdp._fully_shard._fsdp_api import ReduceScatter
except ImportError:  # before torch 2.9
    ReduceScatter = object  # type: ignore[assignment, misc]

__all__ = ["Backward", "RobustAllReduce", "RobustReduceScatter"]

KIND = "make_robust"


class RobustReduceScatter(ReduceScatter):
    """What FSDP calls in place of the reduce-scatter of one parameter group."""

    def __init__(self, step: Backward, module: Any, parameters: Any) -> None:
        self.step, self.module, self.parameters = step, module, parameters

    def allocate(self, size: Sequence[Any], *, dtype: torch.dtype, device: torch.device) -> Tensor:
        return torch.empty(*size, dtype=dtype, device=device)

    def __call__(
        self, output_tensor: Tensor, input_tensor: Tensor, group: Any, op: Any,
        async_op: bool = False,
    ) -> None:  # fmt: skip
        n = dist.get_world_size(group)
        if op == dist.ReduceOp.AVG:
            factor = 1.0
        elif op == dist.ReduceOp.SUM:
            factor = float(n)  # FSDP has divided, or will divide, as if this were the sum
        else:
            raise ValueError(
                "a gradient divide factor is for sums, and this is no sum: leave it as it is"
            )
        self.step.take(self, input_tensor, output_tensor, group, factor)

    def gradients_are_in(self, output: Tensor) -> bool:
        """Say whether FSDP has made the gradients views of `output`, rather than copied it."""
        place = output.untyped_storage().data_ptr()
        gradients = [each.sharded_param.grad for each in self.parameters.fsdp_params]
        return any(
            gradient is not None and gradient.to_local().untyped_storage().data_ptr() == place
            for gradient in gradients
        )


class RobustAllReduce:
    """What FSDP calls with the shard of a parameter group, averaged over a replica."""

    def __init__(self, step: Backward, module: Any, replicas: Any, shards: Any) -> None:
        self.step, self.module, self.replicas, self.shards = step, module, replicas, shards

    def __call__(self, own: Tensor) -> None:
        self.step.aggregate(self.module, own, own, self.replicas, 1.0, peers_of(self.shards))


class Backward:
    """The parameter groups of one backward pass."""

    def __init__(self, state: RobustState, together: bool) -> None:
        self.state, self.together, self.number = state, together, -1
        self.reset()

    def reset(self) -> None:
        self.waiting: list[tuple[RobustReduceScatter, Tensor, float]] = []
        self.aggregation: Aggregation | None = None
        self.sent = self.columns = 0
        self.weights: Any = 0.0
        self.faulty: Any = False
        self.error: Exception | None = None
        self.skipped = False

    def take(
        self, comm: RobustReduceScatter, own: Tensor, output: Tensor, group: Any, factor: float
    ) -> None:
        """Aggregate the gradients of a group into `output`, now or at the end."""
        self._enter()
        if not self.together:
            self.aggregate(comm.module, own, output, group, factor)
            return
        self.waiting.append((comm, output.zero_(), factor))
        if self.error is not None:
            return
        aggregation = self.aggregation or self._begin(group, own.device)
        try:
            self._send(aggregation, comm.module, own)
        except Exception as error:
            self._give_up(error, aggregation.peers, [output])

    def aggregate(
        self, module: Any, own: Tensor, output: Tensor, group: Any, factor: float,
        beside: Peers | None = None,
    ) -> None:  # fmt: skip
        """Aggregate the gradients of a parameter group by their own distances."""
        self._enter()
        aggregation = self._begin(group, own.device, beside)
        try:
            self._send(aggregation, module, own)
            (result,) = _finished(aggregation)
        except Exception as error:
            self._give_up(error, aggregation.peers, [output])
            return
        torch.mul(result, factor, out=output)
        self.weights = self.weights + len(own) * aggregation.weights()
        self.faulty = self.faulty | aggregation.faulty

    def _send(self, aggregation: Aggregation, module: Any, own: Tensor) -> None:
        """Begin to send the gradients of a module, or momentum in their place."""
        place = {"the parameter group": self.sent}
        self.sent, self.columns = self.sent + 1, self.columns + len(own)
        peers = aggregation.peers
        with peers.exchanging():
            call = self.state.call(peers, KIND, place, own, lambda: ([own], [module]))
            aggregation.begin(call, own)

    def _enter(self) -> None:
        """Begin anew in each backward pass, also after one that broke off."""
        if self.number != current_backward():
            self.reset()
            self.number = current_backward()
            self.state.memory.tidy()
            after_backward(self.complete)

    def _begin(self, group: Any, device: torch.device, beside: Peers | None = None) -> Aggregation:
        """Return a new aggregation: of whole shards if the ranks beside this one hold the rest."""
        state = self.state
        peers = state.join(group)
        exchange = exchange_of(state.mode, peers, state.memory, device, whole=beside is not None)
        self.aggregation = Aggregation(state.rule, peers, exchange, reported=True, beside=beside)
        return self.aggregation

    def complete(self) -> None:
        """At the end of the backward pass: decide on what was left, report, complain."""
        try:
            if self.together:
                self._finish()
            if self.error is not None:
                raise_after_backward(self.error)
            if self.error is not None or self.skipped:
                return
            assert self.aggregation is not None
            decision = self.aggregation.decision
            scores = decision.scores if self.together and decision is not None else None
            weights = self.weights / self.columns
            with postponed_errors():
                self.state.account(
                    self.aggregation.peers, weights, scores, self.faulty, self.aggregation.alike()
                )
        finally:
            self.reset()

    def _give_up(self, error: Exception, peers: Peers, outputs: Sequence[Tensor]) -> None:
        """Leave no gradient where all ranks have the error: zeros and an error, or NaN."""
        if error is not peers.known:
            raise error
        skip = isinstance(error, TooManyFaultyRanks) and self.state.too_many == "nan"
        for output in outputs:
            output.fill_(float("nan") if skip else 0.0)
        self.skipped |= skip
        self.error = self.error if skip else error

    def _finish(self) -> None:
        if self.error is not None:
            return
        assert self.aggregation is not None
        outputs, peers = [output for _, output, _ in self.waiting], self.aggregation.peers
        try:
            # Others may have more groups to send.
            self.aggregation.meet(Call(peers, f"the end of {KIND}'s step"))
            results = _finished(self.aggregation)
        except Exception as error:
            self._give_up(error, peers, outputs)
            results = outputs
        if not all(comm.gradients_are_in(output) for comm, output, _ in self.waiting):
            self.error = self.error or ValueError(
                'scope="global" fills gradients in at the end of the backward pass: they must be '
                "None before it (zero_grad), accumulate with set_requires_gradient_sync(False), "
                'and have the dtype in which they are reduced; else use scope="group"'
            )
        if self.error is not None or self.skipped:
            return
        for (_, output, factor), result in zip(self.waiting, results, strict=True):
            torch.mul(result, factor, out=output)
        self.weights = self.columns * self.aggregation.weights()
        self.faulty = np.asarray(self.aggregation.faulty)


def _finished(aggregation: Aggregation) -> list[Tensor]:
    """Return the aggregates of what was sent."""
    with aggregation.peers.exchanging(ValueError, SearchLimit):  # which are the same on every rank
        return aggregation.finish()
