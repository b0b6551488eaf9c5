"""The ranks of a process group, and the exchanges between them that aggregation needs."""

from __future__ import annotations

import os
import socket
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from time import monotonic, sleep
from typing import Any, TypeVar
from weakref import WeakKeyDictionary

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
__all__ = ["Peers", "configured", "hashes", "peers_of"]

SIGN = 3.0  # seconds in which ranks say that they are alive, when an exchange broke off
FIELDS = 6  # at most that a call compares: all headers have one length, whatever meets what
TEXT = 512  # bytes of an error that other ranks are told
Ready = TypeVar("Ready")


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
        self.group = group
        self.rank = dist.get_rank(group)
        if self.rank < 0:
            raise ValueError(
                f"rank {dist.get_rank()} is not in this process group: only its ranks may call"
            )
        self.n = dist.get_world_size(group)
        self.ranks = tuple(dist.get_process_group_ranks(group))
        self.rules: dict[Rule, Rule] = {}  # of calls with a string: they count the calls
        self.on_one_machine = True  # until it turns out that they cannot share memory
        backends = dist.get_backend_config(group).split(",")
        self.devices = {pair.split(":")[0] for pair in backends}
        gpu = "cpu" not in self.devices
        self.device = torch.device("cuda", torch.cuda.current_device()) if gpu else CPU
        self.calls, self.broken = 0, ""
        # Ranks on one machine that may run on the same cores share them.
        here = self.exchange(np.array([_cores()], np.uint64).view(np.float64))
        share(int((here.view(np.uint64) == np.uint64(_cores())).sum()))

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
        own = pieces[self.rank]
        if own.is_cuda and len({len(piece) for piece in pieces}) == 1 and self.n > 1:
            count = self.n * len(own)
            whole = own.as_strided((count,), (1,), own.storage_offset() - self.rank * len(own))
            return [
                dist.all_gather_single(_bytes(whole), _bytes(own), group=self.group, async_op=True)
            ]
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
        device = self.device if device is None else device
        # One step, where an all_gather takes n - 1: half the time of four ranks.
        own = torch.from_numpy(np.ascontiguousarray(values)).to(device).view(-1).repeat(self.n)
        everyone, counts = torch.empty_like(own), [values.size] * self.n
        self.wait([self.all_to_all(everyone, own, counts, counts)])
        gathered: NDArray[np.float64] = everyone.cpu().numpy().reshape(self.n, *values.shape)
        return gathered

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

    # ------------------------------------------------------------------------- calls of all ranks

    def agree(
        self,
        kind: str,
        fields: Sequence[str],
        prepare: Callable[[], tuple[Ready, float, list[float]]],
    ) -> tuple[Ready, NDArray[np.float64]]:
        """Begin a call together: return what `prepare` made ready, and a number from every rank.

        `prepare` returns also the number of this rank, and hashes of fields that must be the same
        on every rank. A rank on which it fails says so to the others, who would wait for ever, or
        take its next call for this one.

        Raises
        ------
        ValueError
            On every rank, if one cannot take part or differs; where `prepare` failed, its error.
        RuntimeError
            On every rank, if one has missed a call of the others.
        """
        self.calls += 1
        self.require_whole()
        header, failure = np.zeros(4 + FIELDS), None
        try:
            ready, number, found = prepare()
            header[2:] = [number, *hashes(kind), *found, *[0.0] * (FIELDS - len(found))]
        except BaseException as error:
            failure = error
        header[:2] = self.calls, failure is not None
        everyone = self.exchange(header)
        self._require_one_call(everyone[:, 0])
        absent = np.flatnonzero(everyone[:, 1])
        if len(absent):
            words = self._texts("" if failure is None else _short(failure))
            if failure is not None:
                raise failure
            raise ValueError(
                f"{self.name(absent)} could not take part, and nothing was aggregated: "
                + "; ".join(dict.fromkeys(words[int(i)] for i in absent[:4]))
            )
        self.require_alike(["what is called", *fields], everyone[:, 3:])
        return ready, everyone[:, 2]

    def _require_one_call(self, calls: NDArray[np.float64]) -> None:
        """Raise, on every rank, if ranks are not in the same of their calls."""
        if (calls == calls[0]).all():
            return
        numbers, counts = np.unique(calls, return_counts=True)
        usual = numbers[counts.argmax()]
        others = np.flatnonzero(calls != usual)
        listed = ", ".join(
            f"rank {self.ranks[int(i)]} is in its call {calls[i]:.0f}" for i in others[:10]
        )
        raise RuntimeError(
            f"{listed}, and the others are in call {usual:.0f}: an earlier call was not made, or "
            "failed, on some ranks only. Make a new process group for all of them"
        )

    def _texts(self, own: str) -> list[str]:
        """Return a text from every rank."""
        raw = bytearray(own.encode()[:TEXT].ljust(TEXT))
        everyone = self.exchange(np.frombuffer(raw, np.float64))
        return [row.tobytes().decode(errors="replace").strip() for row in everyone]

    def require_whole(self) -> None:
        """Raise if this rank has left a call in which others may still wait for it."""
        if self.broken:
            raise RuntimeError(
                f"rank {dist.get_rank()} left an earlier call of this process group "
                f"({self.broken}), and what it sends now would be taken for a part of that: start "
                "the job anew, or make a new group on all ranks"
            )

    @contextmanager
    def exchanging(self, *alike: type[Exception]) -> Iterator[None]:
        """Note that this rank leaves a call, where an error comes that others may not have."""
        try:
            yield
        except alike:  # on every rank
            raise
        except BaseException as error:
            if not self.broken:
                self.broken = _short(error)
                with suppress(RuntimeError, AttributeError):
                    self._tell(self.broken)
            raise

    def require_alike(self, fields: Sequence[str], everyone: NDArray[np.float64]) -> None:
        """Raise, on every rank, if ranks differ in one of the fields, of which these are hashes."""
        for k, what in enumerate(fields):
            others = np.flatnonzero(everyone[:, k] != everyone[0, k])
            if len(others):
                raise ValueError(
                    f"{what} must be the same on every rank: {self.name([0])} does not agree with "
                    f"{self.name(others)}"
                )

    def name(self, positions: Any) -> str:
        """Return "rank 3" or "ranks 1, 3" for positions in the group."""
        names = ", ".join(str(self.ranks[int(i)]) for i in positions[:20])
        more = ", ..." if len(positions) > 20 else ""
        return f"rank{'' if len(positions) == 1 else 's'} {names}{more}"


def _short(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}"[: TEXT // 2]


def _bytes(tensor: Tensor) -> Tensor:
    return tensor.view(torch.uint8)


def _cores() -> int:
    """Return a number that two ranks have in common if they run on the same cores."""
    cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
    return zlib.crc32(repr((socket.gethostname(), cores)).encode())


def hashes(*values: Any) -> list[float]:
    """Return a number for each value, by which ranks can tell whether theirs are the same."""
    return [float(zlib.crc32(repr(value).encode())) for value in values]


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
        try:
            hint = f"the largest f for {n} ranks is {max_f(found, n)}"
        except ValueError:
            hint = f"{n} ranks are too few for it even with f=0"
        raise ValueError(f"{complaint} (the ranks are its rows): {hint}")
    return found
