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
from .exchange import Ranges
from .group import Peers
from .state import RobustState
from .tensor_parallel import is_split

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

    def copies(self, vector: Tensor, peers: Peers) -> Ranges:
        """Return the ranges of the gradients that the ranks of tensor parallelism all have."""
        if self.step.beside is None:
            return ()
        trained = [each for each in self.parameters.fsdp_params if each.sharded_param.requires_grad]
        widths = [each.padded_sharded_param_size.numel() for each in trained]
        copied = [not is_split(each.sharded_param, peers.group) for each in trained]
        n, width = peers.n, len(vector) // peers.n
        if all(copied) or not any(copied):
            return [(0, len(vector))] if all(copied) else ()
        if sum(widths) != width:
            raise ValueError(
                "some parameters got no gradient, and where tensor parallelism splits a part of a "
                "module's parameters all must get one: freeze them, or let fully_shard have them "
                "in modules of their own"
            )
        ends = np.cumsum(widths)
        begun = [(int(e) - w, int(e)) for e, w, c in zip(ends, widths, copied, strict=True) if c]
        return [(k * width + begin, k * width + end) for k in range(n) for begin, end in begun]

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

    def copies(self, vector: Tensor, peers: Peers) -> Ranges:
        return ()

    def __call__(self, own: Tensor) -> None:
        self.step.aggregate(self, own, own, self.replicas, 1.0, self.shards, whole=True)


class Backward:
    """The parameter groups of one backward pass."""

    def __init__(self, state: RobustState, together: bool, beside: Any = None) -> None:
        self.state, self.together, self.number = state, together, -1
        self.beside = beside  # the group of tensor parallelism
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
            self.aggregate(comm, own, output, group, factor, self.beside)
            return
        self.waiting.append((comm, output.zero_(), factor))
        if self.error is not None:
            return
        aggregation = self.aggregation or self._begin(group, own.device, self.beside)
        try:
            self._send(aggregation, comm, own)
        except Exception as error:
            self._give_up(error, aggregation.peers, [output])

    def aggregate(
        self, comm: RobustReduceScatter | RobustAllReduce, own: Tensor, output: Tensor, group: Any,
        factor: float, beside: Any = None, whole: bool = False,
    ) -> None:  # fmt: skip
        """Aggregate the gradients of a parameter group by their own distances."""
        self._enter()
        aggregation = self._begin(group, own.device, beside, whole)
        try:
            self._send(aggregation, comm, own)
            (result,) = _finished(aggregation)
        except Exception as error:
            self._give_up(error, aggregation.peers, [output])
            self._forget(aggregation, [comm.module])
            return
        self._forget(aggregation, [comm.module])
        torch.mul(result, factor, out=output)
        self.weights = self.weights + len(own) * aggregation.weights()
        self.faulty = self.faulty | aggregation.faulty

    def _forget(self, aggregation: Aggregation, modules: Sequence[Any]) -> None:
        """Begin momentum anew where some rank of tensor parallelism was faulty, or had an error.

        So copies of it stay the same. Where all of a gradient is on one rank, it has left no trace.
        """
        if self.beside is None:
            return
        if self.error is not None or aggregation.faulty[aggregation.peers.rank]:
            for module in modules:
                self.state.momentum.sums.pop(module, None)

    def _send(
        self, aggregation: Aggregation, comm: RobustReduceScatter | RobustAllReduce, own: Tensor
    ) -> None:
        """Begin to send the gradients of a module, or momentum in their place."""
        place = {"the parameter group": self.sent}
        self.sent, self.columns = self.sent + 1, self.columns + len(own)
        peers = aggregation.peers
        with peers.exchanging():
            call, copies = self.state.call(
                peers, KIND, place, own, lambda: ([own], [comm.module], comm.copies(own, peers))
            )
            aggregation.begin(call, own, copies)

    def _enter(self) -> None:
        """Begin anew in each backward pass, also after one that broke off."""
        if self.number != current_backward():
            self.reset()
            self.number = current_backward()
            self.state.memory.tidy()
            after_backward(self.complete)

    def _begin(
        self, group: Any, device: torch.device, beside: Any, whole: bool = False
    ) -> Aggregation:
        """Return a new aggregation, of which each rank gets its range or the whole."""
        self.aggregation = self.state.begin(device, group, beside, whole)
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
        if not peers.knows(error):
            raise error
        if self.aggregation is not None and not self.together:
            self.aggregation.tell_beside()
        skip = isinstance(error, TooManyFaultyRanks) and self.state.too_many == "nan"
        for output in outputs:
            output.fill_(float("nan") if skip else 0.0)
        self.skipped |= skip
        self.error = self.error if skip else error

    def _finish(self) -> None:
        assert self.aggregation is not None
        modules = [comm.module for comm, _, _ in self.waiting]
        if self.error is not None:
            self.aggregation.tell_beside()
            self._forget(self.aggregation, modules)
            return
        outputs, peers = [output for _, output, _ in self.waiting], self.aggregation.peers
        try:
            # Others may have more groups to send.
            self.aggregation.meet(Call(peers, f"the end of {KIND}'s step"))
            results = _finished(self.aggregation)
        except Exception as error:
            self._give_up(error, peers, outputs)
            results = outputs
        self._forget(self.aggregation, modules)
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
