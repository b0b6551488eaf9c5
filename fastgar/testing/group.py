"""A process group that takes what NCCL takes."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.distributed_c10d import PrefixStore

from .device import is_host, of_same_memory, overlap, span
from .flight import Flight, Pending, bytes_of, require_landed
from .frames import complain, launched
from .order import Order

__all__ = ["BACKEND", "StrictGroup"]

BACKEND = "strict"
DTYPES = frozenset(
    getattr(torch, name)
    for name in (
        "int8", "uint8", "bool", "int32", "int64", "float16", "bfloat16", "float32", "float64",
        "float8_e4m3fn", "float8_e5m2",
    )
)  # fmt: skip
OPS = ("SUM", "PRODUCT", "MIN", "MAX", "AVG")
Tensors = Sequence[Tensor]


class StrictGroup(dist.ProcessGroup):
    """The backend "strict": gloo underneath, with what NCCL takes and with its asynchrony.

    It refuses, by a `Violation`, tensors on the host (see `Watch`), dtypes that NCCL lacks, tensors
    that are not contiguous, reductions by bits, sends and receives outside of
    `torch.distributed.batch_isend_irecv`, receives from any rank, and an all-gather in place that
    is not in the place of its rank.

    What a collective receives holds NaN from its launch to its wait, and comes at the wait. What
    is sent, or received, must not be written meanwhile. Ranks that do not call the same collectives
    in the same order get an error that names both lines, where NCCL would hang.

    It has broadcast, scatter, all_reduce, all_gather, reduce_scatter, all_to_all_single, barrier
    and batches of sends and receives, and what PyTorch makes of these.
    """

    def __init__(self, store: Any, rank: int, size: int, timeout: timedelta) -> None:
        super().__init__(rank, size)  # type: ignore[call-arg]
        self._inner: Any = dist.ProcessGroupGloo(store, rank, size, timeout=timeout)
        self._order = Order(PrefixStore("order", store), rank)
        self._timeout = timeout

    def getBackendName(self) -> str:
        """Return the name of the backend."""
        return BACKEND

    @property
    def group_name(self) -> str:
        """The name of the group."""
        name: str = dist.distributed_c10d._world.pg_names[self]
        return name

    pg_name = group_name

    # ------------------------------------------------------------------------ what is refused

    def _require(self, op: str, sent: Tensors, received: Tensors) -> None:
        for tensor in (*sent, *received):
            if is_host(tensor):
                complain(f"{op} of a tensor on the host: move it to the device first")
            if tensor.dtype not in DTYPES:
                complain(f"{op} of {tensor.dtype}, which NCCL does not have: send bytes, {BYTES}")
            if not tensor.is_contiguous():
                complain(f"{op} of a tensor that is not contiguous")
        require_landed(sent, received, op)

    def _launch(
        self, op: str, sent: Tensors, received: Tensors, start: Callable[[Any, Any], Any], *,
        changing: Tensors = (), opts: Any = None, patient: bool = True, **order: Any,
    ) -> Pending:  # fmt: skip
        """Launch a collective: `start` begins it on copies. `changing` is sent and received."""
        self._require(op, [*sent, *changing], received)
        where = launched(op, sum(tensor.nbytes for tensor in (*sent, *changing)))
        if patient:
            self._order.next(op, where, **order)
        copies = [tensor.detach().clone() for tensor in sent]
        arrived = [tensor.detach().clone() for tensor in (*changing, *received)]
        inner = start(copies, arrived)
        into = zip((*changing, *received), arrived, strict=True)
        flight = Flight(self, op, where, list(zip(sent, copies, strict=True)), list(into))
        work = Pending(flight, inner, self._timeout, self._order.differing, patient)
        if opts is not None and not opts.asyncOp:
            work.wait()
        return work

    # ---------------------------------------------------------------------------- collectives

    def broadcast(self, tensors: Tensors, opts: Any) -> Pending:
        """Send a tensor of one rank to all."""
        sent, received = (tensors, []) if opts.rootRank == self.rank() else ([], tensors)
        return self._launch(
            "broadcast", sent, received,
            lambda ins, outs: self._inner.broadcast([bytes_of(t) for t in (*ins, *outs)], opts),
            opts=opts, size=_size(tensors), root=opts.rootRank,
        )  # fmt: skip

    def scatter(self, outputs: Tensors, inputs: Sequence[Tensors], opts: Any) -> Pending:
        """Send a tensor of one rank to each."""
        parts = list(inputs[0]) if inputs else []
        return self._launch(
            "scatter", parts, outputs,
            lambda ins, outs: self._inner.scatter(
                list(map(bytes_of, outs)), [list(map(bytes_of, ins))] if ins else [], opts
            ),
            opts=opts, size=_size(outputs), root=opts.rootRank,
        )  # fmt: skip

    def allreduce(self, tensors: Tensors, opts: Any) -> Pending:
        """Reduce tensors over all ranks."""
        _require_op("all_reduce", opts)
        return self._launch(
            "all_reduce", [], [], lambda ins, outs: self._inner.allreduce(outs, opts),
            changing=tensors, opts=opts, size=_size(tensors),
        )  # fmt: skip

    def allgather(self, outputs: Sequence[Tensors], inputs: Tensors, opts: Any = None) -> Pending:
        """Gather a tensor of each rank in a list."""
        return self._launch(
            "all_gather", inputs, outputs[0],
            lambda ins, outs: self._inner.allgather([list(map(bytes_of, outs))],
                                                    list(map(bytes_of, ins))),
            opts=opts, size=_size(inputs),
        )  # fmt: skip

    def all_gather_single(self, out: Tensor, own: Tensor, opts: Any = None) -> Pending:
        """Gather a tensor of each rank in one tensor."""
        pieces = list(bytes_of(out).tensor_split(self.size())) if out.is_contiguous() else [out]
        received = pieces
        if of_same_memory(out, own) and overlap(span(out), span(own)):
            place = pieces[self.rank()]
            if span(place) != span(own):
                complain("all_gather in place, but not in the place of this rank")
            received = [piece for piece in pieces if piece is not place]

        def start(ins: Tensors, outs: list[Tensor]) -> Any:
            into = list(outs)
            if len(received) < len(pieces):
                into.insert(self.rank(), torch.empty_like(pieces[self.rank()]))
            return self._inner.allgather([into], [bytes_of(ins[0])])

        self._require("all_gather", [], [out] if received is pieces else [])
        return self._launch("all_gather", [own], received, start, opts=opts, size=own.nbytes)

    def all_gather_single_coalesced(
        self, outs: Tensors, owns: Tensors, opts: Any = None
    ) -> Pending:
        """Gather tensors of each rank."""
        (out,), (own,) = outs, owns
        return self.all_gather_single(out, own, opts)

    def reduce_scatter_single(self, out: Tensor, own: Tensor, opts: Any) -> Pending:
        """Reduce a tensor over all ranks, of which each gets its part."""
        _require_op("reduce_scatter", opts)
        return self._launch(
            "reduce_scatter", [own], [out],
            lambda ins, outs: self._inner._reduce_scatter_base(outs[0], ins[0], opts),
            opts=opts, size=own.nbytes,
        )  # fmt: skip

    def reduce_scatter_single_coalesced(self, outs: Tensors, owns: Tensors, opts: Any) -> Pending:
        """Reduce tensors over all ranks."""
        (out,), (own,) = outs, owns
        return self.reduce_scatter_single(out, own, opts)

    def all_to_all_single(
        self, out: Tensor, own: Tensor, received: list[int], sent: list[int], opts: Any
    ) -> Pending:
        """Send a piece of a tensor to each rank."""
        if of_same_memory(out, own) and overlap(span(out), span(own)):
            complain("all_to_all_single in place")
        sizes = _bytes(own, sent, self.size()), _bytes(out, received, self.size())
        return self._launch(
            "all_to_all", [own], [out],
            lambda ins, outs: self._inner.alltoall_base(
                bytes_of(outs[0]), bytes_of(ins[0]), sizes[1], sizes[0]
            ),
            opts=opts, sizes=sizes,
        )  # fmt: skip

    def barrier(self, opts: Any = None) -> Pending:
        """Wait for all ranks."""
        return self._launch("barrier", [], [], lambda ins, outs: self._inner.barrier(), opts=opts)

    def send(self, tensors: Tensors, rank: int, tag: int = 0) -> Pending:
        """Send a tensor to one rank."""
        _require_batch("isend")
        return self._launch(
            "send", tensors, [],
            lambda ins, outs: self._inner.send([bytes_of(t) for t in ins], rank, tag),
            patient=False,
        )  # fmt: skip

    def recv(self, tensors: Tensors, rank: int, tag: int = 0) -> Pending:
        """Receive a tensor from one rank."""
        _require_batch("irecv")
        return self._launch(
            "recv", [], tensors,
            lambda ins, outs: self._inner.recv([bytes_of(t) for t in outs], rank, tag),
            patient=False,
        )  # fmt: skip

    def recv_anysource(self, tensors: Tensors, tag: int = 0) -> Pending:
        """Refuse."""
        complain("a receive from any rank, which NCCL does not have")


BYTES = "tensor.view(torch.uint8)"


def _size(tensors: Tensors) -> int:
    return sum(tensor.nbytes for tensor in tensors)


def _bytes(tensor: Tensor, pieces: list[int], n: int) -> list[int]:
    """Return how many bytes each piece has; without numbers all have as many."""
    rows = len(tensor)
    each = tensor.nbytes // max(rows, 1)
    return [each * k for k in (pieces or [rows // n] * n)]


def _require_op(op: str, opts: Any) -> None:
    if not any(opts.reduceOp == getattr(dist.ReduceOp, name) for name in OPS):
        complain(f"{op} by what NCCL does not have: it has {', '.join(OPS)}")


def _require_batch(op: str) -> None:
    frame = sys._getframe(1)
    while frame is not None:
        if frame.f_code is dist.batch_isend_irecv.__code__:
            return
        frame = frame.f_back  # type: ignore[assignment]
    complain(
        f"{op} outside of torch.distributed.batch_isend_irecv: by NCCL, two ranks that both send "
        "first wait for each other for ever"
    )


if BACKEND not in dist.Backend.backend_list:
    dist.Backend.register_backend(BACKEND, StrictGroup, devices=["cpu"])
