"""One rank per worker: the same loop, with gradients gathered by `torch.distributed`.

Started by ``torchrun``, every rank draws the same random numbers, computes the gradient of its own
worker and gathers those of the others. What the adversary sends and what the server makes of it
follows from the gathered rows alone, and every rank works it out by itself, so that all models stay
the same: it is a simulation, in which attackers are ranks that compute honestly and are overruled.
Only rank 0 reads and writes files. What ranks that meet need of `fastgar.torch` is imported there:
it brings all of `torch.distributed`.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence

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
        if self.device.type == "cuda":
            self.device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
            torch.cuda.set_device(self.device)
        if not ready:
            dist.init_process_group("nccl" if self.device.type == "cuda" else "gloo")
        from ..torch.calls import agree
        from ..torch.group import peers_of

        self.rank, self.peers = dist.get_rank(), peers_of(None)

        def prepare() -> tuple[None, float, list[float]]:
            if self.size != workers:
                raise ValueError(
                    f"workers must be the number of ranks, {self.size}, where each rank is a "
                    f"worker: got {workers}"
                )
            return None, 0.0, []

        agree(self.peers, "Ranks", (), prepare)

    @property
    def alone(self) -> bool:
        """Whether this process computes for all workers."""
        return self.size == 1

    def gather(
        self, work: Callable[[], tuple[Sequence[Tensor], float]], same: Mapping[str, object]
    ) -> tuple[list[Tensor], list[float]]:
        """Return what all ranks have: tensors (size, ...) of one row from each, and their numbers.

        Parameters
        ----------
        work : callable
            Returns this rank's rows, (1, ...), and its number.
        same : mapping
            What must be the same on every rank, by what it is called.

        Raises
        ------
        ValueError
            On every rank, if one differs, also in the shapes or dtypes of its rows, or fails: the
            error says which and why. On that rank, its own error.
        RuntimeError
            On every rank, if one has missed a call of the others.
        """
        from ..torch.calls import agree, hashes
        from ..torch.sendable import require_memory

        def prepare() -> tuple[Sequence[Tensor], float, list[float]]:
            rows, number = work()
            for row in rows:
                require_memory(row, self.peers.devices)
            shapes = [(tuple(row.shape), row.dtype) for row in rows]
            return rows, number, hashes(*same.values(), shapes)

        fields = [*same, "shapes and dtypes of what is gathered"]
        rows, numbers = agree(self.peers, "gather", fields, prepare)
        everyone = [row.new_empty(self.size, *row.shape[1:]) for row in rows]
        with self.peers.exchanging():
            self.peers.wait(
                [
                    dist.all_gather(list(torch.split(whole, 1)), row.contiguous(), async_op=True)
                    for whole, row in zip(everyone, rows, strict=True)
                ]
            )
        return everyone, numbers.tolist()

    def share(self, make: Callable[[], bytes]) -> bytes:
        """Return the bytes that rank 0 makes, on all ranks.

        Raises
        ------
        ValueError
            On every other rank, if rank 0 fails: the error says why. On rank 0, its own error.
        RuntimeError
            On every rank, if one has missed a call of the others.
        """
        if self.alone:
            return make()
        from ..torch.calls import agree

        def prepare() -> tuple[bytes, float, list[float]]:
            payload = make() if self.rank == 0 else b""
            return payload, len(payload), []

        payload, sizes = agree(self.peers, "share", (), prepare)
        buffer = torch.empty(int(sizes[0]), dtype=torch.uint8, device=self.device)
        if payload:
            buffer.copy_(torch.frombuffer(bytearray(payload), dtype=torch.uint8))
        if len(buffer):
            with self.peers.exchanging():
                self.peers.wait([dist.broadcast(buffer, 0, async_op=True)])
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
