"""The ranks of a process group, and the exchanges between them that aggregation needs."""

from __future__ import annotations

import os
import socket
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from time import monotonic, sleep
from typing import Any
from weakref import WeakKeyDictionary, ref

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from torch import Tensor

from fastgar.bounds import max_f
from fastgar.cpu.threads import share
from fastgar.pipeline import Rule, rule
from fastgar.stages import names

CPU = torch.device("cpu")
__all__ = ["SMALL", "TEXT", "Peers", "configured", "named", "peers_of", "ranks_of", "short"]

SIGN = 3.0  # seconds in which ranks say that they are alive, when an exchange broke off
SMALL = 400_000  # bytes up to which one exchange takes less time than one from every rank
TEXT = 512  # bytes of an error that other ranks are told


class Peers:
    """The ranks of one group. All tensors travel as bytes, so that every dtype does.

    Attributes
    ----------
    n, rank : int
        How many ranks, and which of them this process is.
    ranks : tuple of int
        Their numbers in the whole job, by which messages name them.
    devices : set of str
        Where the tensors can be that the backend sends: "cpu", "cuda".
    device : torch.device
        Where what ranks tell each other travels, wherever their tensors are.
    calls : int
        How many calls this rank has begun.
    broken : str
        Why this rank left a call that the others may still be in; "" if it left none.
    """

    def __init__(self, group: Any) -> None:
        self._group = ref(group)  # what is known of a group must not keep it
        self.rank = dist.get_rank(group)
        if self.rank < 0:
            raise ValueError(
                f"rank {dist.get_rank()} is not in this process group: only its ranks may call"
            )
        self.n = dist.get_world_size(group)
        self.ranks = ranks_of(group)
        self.rules: dict[Rule, Rule] = {}  # of calls with a string: they count the calls
        pairs = dist.get_backend_config(group).split(",")
        self.backends = dict(pair.split(":") for pair in pairs)  # by the kind of device
        self.devices = set(self.backends)
        # In place of gloo's sockets, until it turns out that they cannot share memory.
        self.on_one_machine = self.backends.get("cpu") == "gloo"
        gpu = "cpu" not in self.devices
        self.device = torch.device("cuda", torch.cuda.current_device()) if gpu else CPU
        self.calls, self.broken = 0, ""
        self._ending = object()
        # Ranks on one machine that may run on the same cores share them.
        here = self.exchange(np.array([_cores()], np.uint64).view(np.float64))
        share(int((here.view(np.uint64) == np.uint64(_cores())).sum()))

    @property
    def group(self) -> Any:
        """Return the process group, which its users keep."""
        group = self._group()
        if group is None:
            raise RuntimeError("this process group is gone: it was destroyed")
        return group

    def all_to_all(
        self, out: Tensor, own: Tensor, received: list[int], sent: list[int]
    ) -> dist.Work:
        """Begin to send the pieces of `own`, each to its rank; the sizes are in elements."""
        size = own.element_size()
        work: dist.Work = dist.all_to_all_single(
            _bytes(out), _bytes(own), [size * k for k in received], [size * k for k in sent],
            group=self.group, async_op=True,
        )  # fmt: skip
        return work

    def gather_pieces(self, pieces: Sequence[Tensor]) -> list[dist.Work]:
        """Begin to fill in a vector of which every rank has one piece, the same in all places."""
        own, widths = pieces[self.rank], [len(piece) for piece in pieces]
        before, count = sum(widths[: self.rank]), sum(widths)
        whole = own.as_strided((count,), (1,), own.storage_offset() - before)
        gloo = self.backends.get(own.device.type) == "gloo"
        if not gloo and len(set(widths)) == 1 and self.n > 1:
            return [
                dist.all_gather_single(_bytes(whole), _bytes(own), group=self.group, async_op=True)
            ]
        if whole.nbytes <= SMALL:  # one exchange, though each piece is copied for every rank
            return [self.all_to_all(whole, own.repeat(self.n), widths, [len(own)] * self.n)]
        # Gloo's all_gather goes through a second buffer, which costs more than it gains.
        return [
            dist.broadcast(_bytes(piece), rank, group=self.group, async_op=True)
            for rank, piece in zip(self.ranks, pieces, strict=True)
            if len(piece)
        ]

    def send_to_all(self, rows: Sequence[Tensor], own: Tensor) -> list[dist.Work]:
        """Begin to send a vector to every rank and to receive theirs: directly, none forwards."""
        rows[self.rank].copy_(own)
        calls = []
        for step in range(1, self.n):
            source, target = (self.rank - step) % self.n, (self.rank + step) % self.n
            calls += [
                dist.P2POp(dist.irecv, _bytes(rows[source]), self.ranks[source], self.group),
                dist.P2POp(dist.isend, _bytes(own), self.ranks[target], self.group),
            ]
        return list(dist.batch_isend_irecv(calls)) if calls else []

    def meet(self) -> dist.Work:
        """Begin to wait for all ranks."""
        own, others = (torch.zeros(self.n, dtype=torch.uint8) for _ in range(2))
        return self.all_to_all(others, own, [1] * self.n, [1] * self.n)

    def exchange(
        self, values: NDArray[np.float64], device: torch.device | None = None
    ) -> NDArray[np.float64]:
        """Return the few numbers that every rank has, (n, ...): the same bits on every rank."""
        return self.begin_exchange(values, device)()

    def begin_exchange(
        self, values: NDArray[np.float64], device: torch.device | None = None
    ) -> Callable[[], NDArray[np.float64]]:
        """Begin to exchange a few numbers; return what waits for those of every rank."""
        device = self.device if device is None else device
        # One step, where an all_gather takes n - 1: half the time of four ranks.
        own = torch.from_numpy(np.concatenate([values.ravel()] * self.n)).to(device)
        everyone, counts = torch.empty_like(own), [values.size] * self.n
        works = [self.all_to_all(everyone, own, counts, counts)]

        def finish() -> NDArray[np.float64]:
            self.wait(works)
            gathered: NDArray[np.float64] = everyone.cpu().numpy()
            return gathered.reshape(self.n, *values.shape)

        return finish

    def wait(self, works: list[dist.Work]) -> None:
        """Wait for exchanges; where another rank has died, say what that means."""
        try:
            while works:
                works.pop().wait()
        except RuntimeError as error:
            self.broken = self.broken or f"an exchange broke off: {error}"
            error.add_note(
                f"fastgar: an exchange of rank {dist.get_rank()} with {self.name(range(self.n))} "
                f"broke off ({self._signs()}). Nothing was aggregated in this step, and the report "
                "on the last one is kept."
            )
            raise

    def _signs(self) -> str:
        """Say, once ranks had the time to notice a broken exchange, which of them left it first."""
        try:
            store = self._tell("")
            keys, silent = [self._key(rank) for rank in self.ranks], list(range(self.n))
            end = monotonic() + SIGN
            while silent and monotonic() < end:
                sleep(0.02)
                silent = [i for i in silent if not store.check([keys[i]])]
            told = {i: store.get(keys[i]).decode() for i in range(self.n) if i not in silent}
        except (RuntimeError, AttributeError):  # the name of the store is not public
            return "and there is no way to ask who is still there"
        words = [f"{self.name([i])} left a call: {why}" for i, why in told.items() if why]
        words += [f"no sign of {self.name(silent)}"] if silent else []
        return "; ".join(words[:4]) or "all ranks are still there"

    def _tell(self, why: str) -> Any:
        """Tell all ranks that this one knows of a broken exchange, and why it left it if it did."""
        store, key = dist.distributed_c10d._get_default_store(), self._key(dist.get_rank())
        if why or not store.check([key]):  # the first reason stays
            store.set(key, why)
        return store

    def _key(self, rank: int) -> str:
        return f"fastgar/broken/{self.group.group_name}/{rank}"

    def require_whole(self) -> None:
        """Raise if this rank has left a call in which others may still wait for it."""
        if self.broken:
            raise RuntimeError(
                f"rank {dist.get_rank()} left an earlier call of this process group "
                f"({self.broken}), and what it sends now would be taken for a part of that: start "
                "the job anew, or make a new group on all ranks"
            )

    def know(self, error: BaseException | None) -> None:
        """Note that this call ends in an error on all ranks; None: that a call begins.

        The error gets the mark: a reference to it would keep its frames, and so the group.
        """
        self._ending = object()
        if error is not None:
            error.__dict__["fastgar_ending"] = self._ending

    def knows(self, error: BaseException) -> bool:
        """Return whether this call ended in that error on all ranks."""
        return getattr(error, "fastgar_ending", None) is self._ending

    @contextmanager
    def exchanging(self, *alike: type[Exception]) -> Iterator[None]:
        """Note that this rank leaves a call, where an error comes that others may not have."""
        try:
            yield
        except alike as error:  # on every rank
            self.know(error)
            raise
        except BaseException as error:
            if not self.broken and not self.knows(error):
                self.broken = short(error)
                with suppress(RuntimeError, AttributeError):
                    self._tell(self.broken)
            raise

    def name(self, positions: Any) -> str:
        """Return "rank 3" or "ranks 1, 3" for positions in the group."""
        return named([self.ranks[int(i)] for i in positions])


def short(error: BaseException) -> str:
    """Return what other ranks are told of an error."""
    return f"{type(error).__name__}: {error}"[: TEXT // 2]


def _bytes(tensor: Tensor) -> Tensor:
    return tensor.view(torch.uint8)


def _cores() -> int:
    """Return a number that two ranks have in common if they run on the same cores."""
    cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
    return zlib.crc32(repr((socket.gethostname(), cores)).encode())


_known: WeakKeyDictionary[Any, Peers] = WeakKeyDictionary()


def peers_of(group: Any) -> Peers:
    """Return the ranks of a group (None: of the default group); the first call is a collective."""
    if not (dist.is_available() and dist.is_initialized()):
        raise RuntimeError(
            "there is no process group: start with torchrun and call "
            "torch.distributed.init_process_group first"
        )
    group = dist.group.WORLD if group is None else group
    if group is dist.GroupMember.NON_GROUP_MEMBER:
        raise ValueError(
            f"rank {dist.get_rank()} is not in this process group: only its ranks may call"
        )
    peers = _known.get(group)
    if peers is None:
        peers = _known[group] = Peers(group)
    return peers


def ranks_of(group: Any) -> tuple[int, ...]:
    """Return the numbers in the whole job of a group's ranks (None: of the default group)."""
    return tuple(dist.get_process_group_ranks(group))


def named(ranks: Sequence[int]) -> str:
    """Return "rank 3" or "ranks 1, 3"."""
    names, more = ", ".join(map(str, ranks[:20])), ", ..." if len(ranks) > 20 else ""
    return f"rank{'' if len(ranks) == 1 else 's'} {names}{more}"


def configured(spec: str | Rule, f: int | None, n: int) -> Rule:
    """Return the rule, or raise the error that says what n ranks can have instead."""
    if isinstance(spec, str) and "zeno" in names(spec):
        raise ValueError(
            "zeno scores ranks by a loss on validation data, which a collective does not have: it "
            "is in fastgar.train; of rules that need nothing but gradients, try 'nnm | krum'"
        )
    found = rule(spec, f)
    if found.stages[-1].spec.kind == "mixing":
        raise ValueError(
            f"{found} gives one row per rank: put a rule after it, as in {found} | krum"
        )
    complaint = found.check(n)
    if complaint is not None:
        hint = f"the largest f for {n} ranks is {max_f(found, n)}"
        if rule(spec, 0).check(n) is not None:
            hint = f"{n} ranks are too few for it even with f=0"
        raise ValueError(f"{complaint} (the ranks are its rows): {hint}")
    return found
