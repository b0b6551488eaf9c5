"""Test communication code as if it ran on GPUs with NCCL, on CPUs alone.

Importing this module makes the backend "strict" known to `torch.distributed`: gloo underneath, with
what NCCL takes and with its asynchrony. A `Watch` looks at what your files do with tensors, and
counts where the host waits for them, what collectives they call, and how many bytes they send.

    import torch.distributed as dist
    from fastgar.testing import Watch

    dist.init_process_group("strict", ...)           # on every rank, as with "gloo"
    with Watch("my_hook.py") as seen:
        loss.backward()
    seen.within(waits=0, calls=4, bytes=10_000)
"""

from __future__ import annotations

from ..errors import of_extra

with of_extra("torch"):
    from .frames import Violation
    from .group import BACKEND, StrictGroup
    from .watch import Watch

__all__ = ["BACKEND", "StrictGroup", "Violation", "Watch"]
