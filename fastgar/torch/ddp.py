"""DistributedDataParallel modules: which group they average in, and what would go around a rule."""

from __future__ import annotations

import gc
from typing import Any

from torch import nn
from torch.nn.parallel import DistributedDataParallel

from .group import ranks_of
from .state import RobustState

__all__ = ["ddp_in", "group_of_model", "require_usable"]


def ddp_in(model: nn.Module) -> DistributedDataParallel | None:
    """Return the DDP module that the model is, or wraps; None if there is none.

    Raises
    ------
    ValueError
        There are several: each needs a state of its own.
    """
    found = [each for each in model.modules() if isinstance(each, DistributedDataParallel)]
    if len(found) > 1:
        raise ValueError(
            f"there are {len(found)} DistributedDataParallel modules in this model, and a "
            "RobustState serves one: call make_robust for each"
        )
    return found[0] if found else None


def require_usable(ddp: Any) -> None:
    """Raise where gradients of this module would go around the rule."""
    delayed = len(getattr(ddp, "_delay_all_reduce_params", ()))
    if delayed:
        raise ValueError(
            f"DistributedDataParallel(delay_all_reduce_named_params=...) averages {delayed} "
            "parameters without any hook, and so without the rule: leave that option out"
        )
    if getattr(ddp, "_use_python_reducer", False):
        raise ValueError(
            'torch._dynamo.config.optimize_ddp = "python_reducer" passes hooks single gradients in '
            'place of buckets: set it to "ddp_optimizer" before DistributedDataParallel is made'
        )
    if any(hasattr(p, "device_mesh") or hasattr(p, "_st_info") for p in ddp.module.parameters()):
        raise ValueError(
            "some parameters are split by tensor parallelism, and under DistributedDataParallel "
            "each part would be decided on alone: shard the model with fully_shard over the mesh "
            "of the workers instead, where make_robust decides on all parts together"
        )
    for hook, state in ddp._comm_hooks:
        if isinstance(state, RobustState):
            raise ValueError("this model is robust already: call make_robust once")
        raise ValueError(
            f"this model has the communication hook {hook.__qualname__} already, and it takes one "
            "only: make a DistributedDataParallel without (its mixed_precision= registers one, in "
            "place of which torch.autocast does)"
        )


def group_of_model(state: RobustState) -> Any:
    """Return the process group of the DDP module that has this state; else that of the state.

    DDP does not tell a hook who calls it. So before a state's first step all objects of the
    interpreter are searched (50 ms for 300,000), unless `make_robust` has told.
    """
    if state.peers is not None or state.registered:
        return state.group
    kinds = _kinds(DistributedDataParallel)
    groups = [
        each.process_group
        for each in gc.get_objects()
        if type(each) in kinds
        and any(known is state for _, known in getattr(each, "_comm_hooks", ()))
    ]
    own = ranks_of(state.group)
    others = [group for group in groups if ranks_of(group) != own]
    # Of several modules, all but one may be garbage that is not collected yet.
    return others[-1] if groups and len(others) == len(groups) else state.group


def _kinds(kind: type) -> set[type]:
    """Return a class and all that is made of it."""
    return {kind}.union(*map(_kinds, kind.__subclasses__()))
