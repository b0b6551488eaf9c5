"""Robust gradient aggregation inside PyTorch training, at the cost of an all-reduce.

    import fastgar.torch as fgt

    state = fgt.make_robust(model, "median", f=1)           # DistributedDataParallel, or FSDP2
    out = fgt.all_reduce(tensors, "median", f=1)            # functional
    agg = torch.compile(lambda G: fgt.ops.krum(G, 2))       # under torch.compile

Each rank is one worker, its gradient one row, and up to f ranks may send anything.
"""

from __future__ import annotations

from ..errors import of_extra

with of_extra("torch"):
    from . import ops
    from .collective import all_reduce
    from .errors import TooManyFaultyRanks
    from .fsdp import make_robust
    from .hook import robust_hook
    from .report import RankReport
    from .state import RobustState

__all__ = [
    "RankReport", "RobustState", "TooManyFaultyRanks", "all_reduce", "make_robust", "ops",
    "robust_hook",
]  # fmt: skip
