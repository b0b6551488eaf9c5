"""`make_robust`: the rule in place of the average, in DistributedDataParallel and in FSDP2."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch.distributed as dist
from torch import nn

from fastgar.errors import require_name
from fastgar.pipeline import Rule

from .ddp import ddp_in, require_usable
from .group import configured, ranks_of
from .hook import robust_hook
from .reduce_scatter import Backward, RobustAllReduce, RobustReduceScatter
from .report import RankReport
from .state import RobustState
from .tensor_parallel import beside

try:
    from torch.distributed.fsdp import FSDPModule
except ImportError:  # before torch 2.9
    FSDPModule = object  # type: ignore[assignment, misc]

__all__ = ["make_robust"]

SCOPES = ("group", "global")


def make_robust(
    model: nn.Module,
    rule: str | Rule,
    f: int | None = None,
    *,
    scope: str | None = None,
    replicas: Any = None,
    mode: str = "sharded",
    momentum: float = 0.0,
    too_many: str = "raise",
    patience: int | None = None,
    callback: Callable[[RankReport], None] | None = None,
) -> RobustState:
    """Aggregate the gradients of a model in `DistributedDataParallel` or `fully_shard` by a rule.

    Parameters
    ----------
    model : DistributedDataParallel or FSDPModule
        Or what wraps a `DistributedDataParallel`, as `torch.compile` does: its process group is
        that of the workers, and `robust_hook` is registered. After `fully_shard`, all FSDP modules
        in it are made robust.
    rule : str or Rule
        A rule's name or a pipeline, as `fastgar.rule` takes it; the same on every rank.
    f : int, optional
        How many ranks may send anything.
    scope : {"group", "global"}, optional
        Of distance rules under FSDP2. "group" (the default): each parameter group (each module
        that `fully_shard` was called on) is decided on by its own distances, as soon as its
        gradients are there. "global": by the distances of the whole gradient, at the end of the
        backward pass, as always under `DistributedDataParallel`.
    replicas : ProcessGroup, optional
        Under FSDP2, the ranks that hold the same shard in other replicas of the model. Then the
        replicas are the workers: within each, FSDP averages as usual, and what the rule aggregates
        are their averages. `fully_shard` gets the one-dimensional mesh of a replica.
    mode : {"sharded", "replicated"}
        As for `RobustState`. Under FSDP2 ranks are trusted to aggregate their shards, as they are
        to hold them, and "replicated" is for `replicas` alone: each replica aggregates for itself,
        so that none has to trust another; the ranks of one trust each other.
    momentum : float
        As for `RobustState`. Under FSDP2 it is of the whole gradient: d float32 numbers on each
        rank, as no sharding can have it (with `replicas`, of a rank's shard).
    too_many, patience, callback
        As for `RobustState`.

    Returns
    -------
    RobustState
        Its `report` tells who was believed, over all parameter groups.

    Raises
    ------
    TypeError
        A model that is in neither.
    ValueError
        Too few ranks for f, a model that is robust already or in which gradients would go around
        the rule, a rule that needs a reference.

    Notes
    -----
    More than f ranks with NaN or infinity raise `TooManyFaultyRanks` on every rank out
    of ``backward()``; gradients must then not be used. So do ranks that are not in the same step or
    parameter group, or of which one cannot take part; the error names them.

    Under `DistributedDataParallel` gradients are zero then, as `robust_hook` says, and training may
    go on. Under FSDP2 traffic is that of FSDP's own reduce-scatter, and n^2 float64 numbers per
    group for distance rules. Accumulate gradients with ``set_requires_gradient_sync(False)``: scope
    "global" needs gradients that are None before, and reduced in the dtype of the parameters.

    Examples
    --------
    >>> model = DistributedDataParallel(model)  # doctest: +SKIP
    >>> state = fgt.make_robust(model, "median", f=1, momentum=0.9)  # doctest: +SKIP

    >>> fully_shard(model)  # doctest: +SKIP
    >>> state = fgt.make_robust(model, "trimmed_mean", f=1)  # doctest: +SKIP
    """
    options: dict[str, Any] = {
        "mode": mode, "momentum": momentum, "too_many": too_many, "patience": patience,
        "callback": callback,
    }  # fmt: skip
    if scope is not None:
        require_name("scope", scope, SCOPES)
    ddp = ddp_in(model)
    if ddp is None:
        return _robust_fsdp(model, rule, f, scope or "group", replicas, options)
    if scope == "group" or replicas is not None:
        raise ValueError(
            'scope="group" and replicas= are of FSDP2: with DistributedDataParallel every rank is '
            "a worker, and a rule decides on the whole gradient"
        )
    require_usable(ddp)
    n = dist.get_world_size(ddp.process_group)
    state = RobustState(configured(rule, f, n), group=ddp.process_group, **options)
    ddp.register_comm_hook(state, robust_hook)
    state.registered = True
    return state


def _robust_fsdp(
    model: nn.Module, rule: str | Rule, f: int | None, scope: str, replicas: Any,
    options: dict[str, Any],
) -> RobustState:  # fmt: skip
    """Make the modules robust that `fully_shard` has sharded."""
    modules = [module for module in model.modules() if isinstance(module, FSDPModule)]
    if not modules or not hasattr(FSDPModule, "set_custom_reduce_scatter"):
        raise TypeError(
            "make_robust takes a model in DistributedDataParallel, or after "
            "torch.distributed.fsdp.fully_shard (of torch 2.9 or later)"
        )
    groups = list(map(_param_group, modules))
    kept = [(module, group) for module, group in zip(modules, groups, strict=True) if group]
    if any(
        isinstance(group._reduce_scatter_comm, RobustReduceScatter)
        or isinstance(group._all_reduce_hook, RobustAllReduce)
        for _, group in kept
    ):
        raise ValueError("this model is robust already: call make_robust once")
    if any(group.mesh_info.shard_mesh_dim is None for _, group in kept):
        raise ValueError(
            "replicate() averages gradients by an all-reduce that takes no rule: call fully_shard "
            "over the same mesh instead, or use DistributedDataParallel"
        )
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
    if options["mode"] == "replicated" and replicas is None:
        raise ValueError(
            "FSDP takes the word of each rank for its shard of the parameters, so that it is no "
            'use to take none for gradients: mode="replicated" is for replicas=, or for '
            "DistributedDataParallel"
        )
    others = {ranks_of(each._reduce_scatter_process_group) for _, each in kept}
    if len(others) > 1:
        raise ValueError(
            f"modules of this model are sharded over several groups of ranks ({sorted(others)}), "
            "as experts are, and one rule with one f is for one of them: shard all modules over "
            "one mesh"
        )
    tensors = [each.sharded_param for _, group in kept for each in group.fsdp_params]
    near = beside(tensors, kept[0][1]._reduce_scatter_process_group)
    if near is not None and replicas is not None:
        raise ValueError(
            "tensor parallelism does not go with replicas=: the shards of a replica are decided on "
            "together, and then no others"
        )
    checked = configured(rule, f, dist.get_world_size(group))
    state = RobustState(checked, group=group, **options)
    step = Backward(state, scope == "global" and state.rule.reads > 1, near)
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
    if len(found) > 1:
        raise ValueError(
            f"{len(found)} meshes share one call of fully_shard (shard_placement_fn=), of which "
            "only the first would be robust: shard all parameters over one mesh"
        )
    return found[0] if found else None
