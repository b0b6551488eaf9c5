"""Robust reduce-scatter for FSDP2 (`torch.distributed.fsdp.fully_shard`)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn

from fastgar.errors import SearchLimit, unknown
from fastgar.pipeline import Rule

from .aggregation import Aggregation
from .backward import after_backward, current_backward, postponed_errors, raise_after_backward
from .errors import TooManyFaultyRanks
from .exchange import exchange_of
from .group import Peers, configured, peers_of
from .report import RankReport
from .state import RobustState

try:
    from torch.distributed.fsdp import FSDPModule
    from torch.distributed.fsdp._fully_shard._fsdp_api import ReduceScatter
except ImportError:  # before torch 2.9
    FSDPModule = ReduceScatter = object  # type: ignore[assignment, misc]

__all__ = ["make_robust"]

SCOPES = ("group", "global")


def make_robust(
    model: nn.Module,
    rule: str | Rule,
    f: int | None = None,
    *,
    scope: str = "group",
    replicas: Any = None,
    mode: str = "sharded",
    momentum: float = 0.0,
    too_many: str = "raise",
    patience: int | None = None,
    callback: Callable[[RankReport], None] | None = None,
) -> RobustState:
    """Aggregate the gradients of a model that `fully_shard` has sharded by a rule.

    Parameters
    ----------
    model : FSDPModule
        After `fully_shard`; all FSDP modules in it are made robust.
    rule : str or Rule
        A rule's name or a pipeline, as `fastgar.rule` takes it; the same on every rank.
    f : int, optional
        How many ranks may send anything.
    scope : {"group", "global"}
        Of distance rules. "group": each parameter group (each module that `fully_shard` was called
        on) is decided on by its own distances, as soon as its gradients are there. "global": by
        the distances of the whole gradient, at the end of the backward pass.
    replicas : ProcessGroup, optional
        The ranks that hold the same shard in other replicas of the model. Then the replicas are the
        workers: within each, FSDP averages as usual, and what the rule aggregates are their
        averages. `fully_shard` gets the one-dimensional mesh of a replica.
    mode : {"sharded", "replicated"}
        Sharded: ranks are trusted to aggregate their shards, as they are to hold them, and only
        their gradients may be corrupt. Replicated, for `replicas` alone: each replica aggregates
        for itself, so that none has to trust another; the ranks of one trust each other.
    momentum : float
        As for `RobustState`. It is of the whole gradient: d float32 numbers on each rank, as no
        sharding can have it (with `replicas`, of a rank's shard).
    too_many, patience, callback
        As for `RobustState`.

    Returns
    -------
    RobustState
        Its `report` tells who was believed, over all parameter groups.

    Raises
    ------
    TypeError
        A model that is not sharded by `fully_shard`.
    ValueError
        Too few ranks for f, a model that is robust already, a rule that needs a reference.

    Notes
    -----
    More than f ranks with NaN or infinity raise `TooManyFaultyRanks` on every rank out
    of ``backward()``; gradients must then not be used.

    Traffic is that of FSDP's own reduce-scatter, and n^2 float64 numbers per group for distance
    rules. Accumulate gradients with ``set_requires_gradient_sync(False)``: scope "global" needs
    gradients that are None before, and reduced in the dtype of the parameters.

    Examples
    --------
    >>> fully_shard(model)  # doctest: +SKIP
    >>> state = fgt.make_robust(model, "trimmed_mean", f=1)  # doctest: +SKIP
    """
    modules = [module for module in model.modules() if isinstance(module, FSDPModule)]
    if not modules or not hasattr(FSDPModule, "set_custom_reduce_scatter"):
        raise TypeError(
            "make_robust takes a model after torch.distributed.fsdp.fully_shard (of torch 2.9 or "
            "later); for DistributedDataParallel, register_comm_hook(state, fgt.robust_hook)"
        )
    if scope not in SCOPES:
        raise unknown("scope", scope, SCOPES)
    groups = [_param_group(module) for module in modules]
    kept = [(module, group) for module, group in zip(modules, groups, strict=True) if group]
    if any(
        isinstance(group._reduce_scatter_comm, RobustReduceScatter)
        or isinstance(group._all_reduce_hook, RobustAllReduce)
        for _, group in kept
    ):
        raise ValueError("this model is robust already: call make_robust once")
    if any(group._is_hsdp for _, group in kept):
        raise ValueError(
            "over a mesh of two dimensions FSDP itself averages the replicas: give fully_shard the "
            "mesh of its shards alone, and the other one's group to make_robust(replicas=...)"
        )
    group = replicas
    if replicas is None:
        group = kept[0][1]._reduce_scatter_process_group
    elif scope == "global":
        raise ValueError('scope="global" does not go with replicas=: use scope="group"')
    if mode == "replicated" and replicas is None:
        raise ValueError(
            "FSDP takes the word of each rank for its shard of the parameters, so that it is no "
            'use to take none for gradients: mode="replicated" is for replicas=, or for '
            "DistributedDataParallel"
        )
    checked = configured(rule, f, dist.get_world_size(group))
    state = RobustState(
        checked, group=group, mode=mode, momentum=momentum, too_many=too_many, patience=patience,
        callback=callback,
    )  # fmt: skip
    step = _Backward(state, scope == "global" and state.rule.reads > 1)
    for module, parameters in kept:
        if replicas is None:
            module.set_custom_reduce_scatter(RobustReduceScatter(step, module, parameters))
        else:
            shards = parameters._reduce_scatter_process_group
            module.set_all_reduce_hook(RobustAllReduce(step, module, replicas, shards))
    return state


def _param_group(module: Any) -> Any:
    """Return the parameter group of an FSDP module; None if it manages no parameters."""
    found = module._get_fsdp_state()._fsdp_param_groups
    return found[0] if found else None


class RobustReduceScatter(ReduceScatter):
    """What FSDP calls in place of the reduce-scatter of one parameter group."""

    def __init__(self, step: _Backward, module: Any, parameters: Any) -> None:
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
        self.step.state.momentum.replace(input_tensor, [input_tensor], [self.module])
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

    def __init__(self, step: _Backward, module: Any, replicas: Any, shards: Any) -> None:
        self.step, self.module, self.replicas, self.shards = step, module, replicas, shards

    def __call__(self, own: Tensor) -> None:
        self.step.state.momentum.replace(own, [own], [self.module])
        beside = peers_of(self.shards)
        self.step.aggregate(own, own, self.replicas, 1.0, beside)


class _Backward:
    """The parameter groups of one backward pass."""

    def __init__(self, state: RobustState, together: bool) -> None:
        self.state, self.together, self.number = state, together, -1
        self.reset()

    def reset(self) -> None:
        self.waiting: list[tuple[RobustReduceScatter, Tensor, float]] = []
        self.aggregation: Aggregation | None = None
        self.columns = 0
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
            self.aggregate(own, output, group, factor)
            return
        if self.aggregation is None:
            self._begin(group, own.device)
        assert self.aggregation is not None
        self.columns += len(own)
        with self.aggregation.peers.exchanging():
            self.aggregation.send(own, into=own)
            self.aggregation.advance()
        self.waiting.append((comm, output.zero_(), factor))

    def aggregate(
        self, own: Tensor, output: Tensor, group: Any, factor: float, beside: Peers | None = None
    ) -> None:
        """Aggregate the gradients of a parameter group by their own distances."""
        self._enter()
        aggregation = self._begin(group, own.device, beside)
        self.columns += len(own)
        try:
            (result,) = _finished(aggregation, own)
        except (ValueError, SearchLimit) as error:  # the same on every rank
            self._give_up(error, [output])
            return
        torch.mul(result, factor, out=output)
        self.weights = self.weights + len(own) * aggregation.weights()
        self.faulty = self.faulty | aggregation.faulty

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
                self.state.account(self.aggregation.peers, weights, scores, self.faulty)
        finally:
            self.reset()

    def _give_up(self, error: Exception, outputs: Sequence[Tensor]) -> None:
        """Leave no gradient: zeros and an error, or NaN."""
        skip = isinstance(error, TooManyFaultyRanks) and self.state.too_many == "nan"
        for output in outputs:
            output.fill_(float("nan") if skip else 0.0)
        self.skipped |= skip
        self.error = self.error if skip else error

    def _finish(self) -> None:
        assert self.aggregation is not None
        outputs = [output for _, output, _ in self.waiting]
        try:
            results = _finished(self.aggregation)
        except (ValueError, SearchLimit) as error:
            self._give_up(error, outputs)
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


def _finished(aggregation: Aggregation, *last: Tensor) -> list[Tensor]:
    """Return the aggregates, after the last vectors have been sent too."""
    with aggregation.peers.exchanging(ValueError, SearchLimit):  # which are the same on every rank
        for own in last:
            aggregation.send(own, into=own)
        return aggregation.finish()
