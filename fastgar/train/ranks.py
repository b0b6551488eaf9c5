"""One rank per worker: the same loop, with gradients gathered by `torch.distributed`.

Started by ``torchrun``, every rank draws the same random numbers, computes the gradient of its own
worker and gathers those of the others. What the adversary sends and what the server makes of it
follows from the gathered rows alone, and every rank works it out by itself, so that all models stay
the same: it is a simulation, in which attackers are ranks that compute honestly and are overruled.
Only rank 0 reads and writes files.
"""

from __future__ import annotations

import os

import torch
import torch.distributed as dist
from torch import Tensor

from ..errors import shown

__all__ = ["Ranks", "device_of"]


class Ranks:
    """Who this process is among the ranks; alone, it is rank 0 of 1 and computes for all workers.

    Parameters
    ----------
    workers : int
        Must be the number of ranks, if there is more than one.
    device : str
        With "cuda", each rank takes the GPU of its number on its machine, and rows travel by NCCL.

    Raises
    ------
    ValueError
        If there are more or fewer ranks than workers, or there is no such device.
    """

    def __init__(self, workers: int, device: str) -> None:
        ready = dist.is_available() and dist.is_initialized()
        self.size = dist.get_world_size() if ready else int(os.environ.get("WORLD_SIZE", "1"))
        self.rank, self.device = 0, device_of(device)
        if self.size == 1:
            return
        if self.size != workers:
            raise ValueError(
                f"workers must be the number of ranks, {self.size}, where each rank is a worker: "
                f"got {workers}"
            )
        if self.device.type == "cuda":
            self.device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
            torch.cuda.set_device(self.device)
        if not ready:
            dist.init_process_group("nccl" if self.device.type == "cuda" else "gloo")
        self.rank = dist.get_rank()

    @property
    def alone(self) -> bool:
        """Whether this process computes for all workers."""
        return self.size == 1

    def gather(self, own: Tensor) -> Tensor:
        """Return what all ranks have, (size, ...), of one row from each, (1, ...)."""
        everyone = own.new_empty(self.size, *own.shape[1:])
        dist.all_gather(list(torch.split(everyone, 1)), own.contiguous())
        return everyone

    def share(self, payload: bytes) -> bytes:
        """Return the bytes that rank 0 has, on all ranks."""
        if self.alone:
            return payload
        size = torch.tensor([len(payload)], device=self.device)
        dist.broadcast(size, 0)
        buffer = torch.empty(int(size), dtype=torch.uint8, device=self.device)
        if self.rank == 0 and payload:
            buffer.copy_(torch.frombuffer(bytearray(payload), dtype=torch.uint8))
        if len(buffer):
            dist.broadcast(buffer, 0)
        return bytes(buffer.cpu().numpy())


def device_of(name: str) -> torch.device:
    """Return the device of that name; raise a ValueError if there is none."""
    try:
        device = torch.device(name)
    except RuntimeError:
        raise ValueError(f"device must be cpu, cuda or cuda:0, ..., got {shown(name)}") from None
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ValueError(
            f"device is {shown(name)}, and torch sees {torch.cuda.device_count()} GPUs"
        )
    return device
