"""What the ranks of a process group do in the tests of `fastgar.torch`: python rank_cases.py FOLDER

Names after the folder choose cases; all of them are run without.
The processes are forked once, and every one runs all cases in order; in groups of 4, 5 and 7 ranks.
What happened is written to FOLDER, one file per rank: a line for each case.
strict_cases.py runs them over another backend.
"""

from __future__ import annotations

import gc
import json
import logging
import os
import signal
import subprocess
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from datetime import timedelta
from importlib import import_module
from pathlib import Path
from time import perf_counter, sleep
from typing import Any
from unittest.mock import Mock
from weakref import ref

import numpy as np
import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed._composable.replicate_with_fsdp import replicate
from torch.distributed.algorithms.ddp_comm_hooks import default_hooks
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.distributed.fsdp._fully_shard._fsdp_common import FSDPMeshInfo, ShardPlacementResult
from torch.distributed.tensor import Shard
from torch.distributed.tensor.parallel import (
    ColwiseParallel,
    RowwiseParallel,
    parallelize_module,
)
from torch.nn.functional import cross_entropy
from torch.nn.parallel import DistributedDataParallel

import fastgar as fg
import fastgar.torch as fgt
from fastgar.cpu import backend
from fastgar.rules import distance_rule
from fastgar.torch import window
from fastgar.torch.aggregation import Aggregation
from fastgar.torch.exchange import Local, exchange_of
from fastgar.torch.group import SMALL, Peers, peers_of
from fastgar.torch.memory import memory_of
from fastgar.torch.reduce_scatter import Backward
from fastgar.train import Data, run
from fastgar.train.ranks import Ranks

SIZE = 7
TIMEOUT = timedelta(seconds=40)
CASES: dict[str, tuple[int, Callable[[int, Any], None]]] = {}
TOLERANCE = {
    torch.float64: {"rtol": 1e-9, "atol": 1e-12}, torch.float32: {"rtol": 2e-5, "atol": 1e-6},
    torch.float16: {"rtol": 2e-3, "atol": 2e-3}, torch.bfloat16: {"rtol": 1e-2, "atol": 1e-2},
}  # fmt: skip


def case(*sizes: int) -> Callable[..., Any]:
    """Run the function in groups of so many ranks; it gets its rank and the group."""

    def add(function: Callable[[int, Any], None]) -> Callable[[int, Any], None]:
        for size in sizes:
            CASES[f"{function.__name__}[{size}]"] = (size, function)
        return function

    return add


@contextmanager
def raises(kind: type[Exception] | tuple[type[Exception], ...], *words: str) -> Iterator[None]:
    try:
        yield
    except kind as error:
        missing = [word for word in words if word not in str(error)]
        assert not missing, f"{missing} not in {error}"
    else:
        raise AssertionError(f"no {kind}")


def rows(n: int, d: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    draw = torch.Generator().manual_seed(seed)
    return torch.randn(n, d, generator=draw, dtype=torch.float64).to(dtype)


def expect(found: Tensor, wanted: Tensor) -> None:
    torch.testing.assert_close(found, wanted, **TOLERANCE[found.dtype], equal_nan=True)


def same_on_all(value: Any, group: Any) -> None:
    """Check that all ranks have the same bits, or the same text."""
    everyone: list[Any] = [None] * dist.get_world_size(group)
    content = value.double().numpy().tobytes() if isinstance(value, Tensor) else str(value)
    dist.all_gather_object(everyone, content, group=group)
    assert all(each == everyone[0] for each in everyone), value


MODES = ("sharded", "replicated")
WAYS = ("sharded", "sockets", "replicated")


def mode_of(way: str, group: Any) -> str:
    """Return the mode; sharded means by shared memory or, as between machines, by sockets."""
    peers = peers_of(group)
    peers.on_one_machine = way != "sockets" and peers.backends["cpu"] == "gloo"
    return "replicated" if way == "replicated" else "sharded"


def bytes_written() -> int:
    lines = Path("/proc/self/io").read_text().splitlines()
    return int(next(line.split()[1] for line in lines if line.startswith("wchar")))


def least_sum(D: Any, f: int) -> Any:
    """Return the mean of the n-f rows with the least sum of distances."""
    sums = np.where(D.diagonal() == 0, np.where(np.isfinite(D), D, 0.0).sum(axis=1), np.inf)
    weights = np.zeros(len(D))
    weights[np.argsort(sums, kind="stable")[: len(D) - f]] = 1 / (len(D) - f)
    return weights


# ------------------------------------------------------------------------------- fgt.all_reduce

COLUMN = ["median", "trimmed_mean", "meamed", "phocas", "sign_majority", "nan_mean"]
DISTANCE = ["geometric_median", "mda", "cge", "centered_clipping(tau=1.0)", "aksel", "least_sum"]
MIXED = ["nnm | trimmed_mean", "clip(c=20.0) | mean", "arc | nnm | geometric_median"]


def specs(n: int) -> list[str]:
    found = [*COLUMN, *DISTANCE, *MIXED]
    found += ["krum", "multi_krum", "caf"] if n >= 5 else []
    return [*found, "bulyan", "clip(c=60.0) | bulyan"] if n >= 7 else found


def f_of(spec: str) -> int | None:
    return None if spec in ("sign_majority", "nan_mean") else 1


@case(4, 5, 7)
def every_rule(rank: int, group: Any) -> None:
    n = dist.get_world_size(group)
    for k, spec in enumerate(specs(n)):
        every_way = n == 5 or "bulyan" in spec  # the others by turns: seven ranks take turns too
        for name in WAYS if every_way else [WAYS[(k + n) % len(WAYS)]]:
            d = (1, 3, 8, 1003, 4001)[k % 5]
            X = rows(n, d, seed=k)
            if f_of(spec) is not None:
                X[k % n] = (float("nan"), float("inf"), 1e30)[k % 3]
            own = X[rank].clone()
            wanted = fg.rule(spec, f_of(spec))(X)
            mode = mode_of(name, group)
            found = fgt.all_reduce(own, spec, f_of(spec), group=group, mode=mode)
            expect(found, wanted)
            same_on_all(found, group)
            assert torch.equal(own.nan_to_num(), X[rank].nan_to_num())  # not written
            same = fgt.all_reduce(own, spec, f_of(spec), group=group, mode=mode, out=own)
            assert same is own
            assert torch.equal(own.nan_to_num(), found.nan_to_num())


@case(5)
def every_dtype(rank: int, group: Any) -> None:
    for dtype in TOLERANCE:
        for spec in ("median", "krum", "nnm | trimmed_mean"):
            for name in WAYS:
                X = rows(5, 997, 3, dtype)
                X[2] = float("inf")
                mode = mode_of(name, group)
                found = fgt.all_reduce(X[rank], spec, 1, group=group, mode=mode)
                assert found.dtype == dtype
                expect(found, fg.rule(spec, 1)(X))


@case(5)
def several_tensors_are_one_row(rank: int, group: Any) -> None:
    everyone = [
        {"a": rows(1, 24, r)[0].view(2, 3, 4), "b": rows(1, 5, 9 + r, torch.bfloat16)[0],
         "c": rows(3, 2, r).t(), "d": torch.tensor(float(r)), "e": torch.zeros(0, 3)}
        for r in range(5)
    ]  # fmt: skip
    everyone[1]["b"] = everyone[1]["b"] * 1e4  # far off in a small part only
    for spec in ("median", "krum", "nnm | median"):
        wanted = fg.rule(spec, 1)(everyone)
        found = fgt.all_reduce(everyone[rank], spec, 1, group=group)
        listed = fgt.all_reduce(tuple(everyone[rank].values()), spec, 1, group=group)
        assert list(found) == list(wanted) and isinstance(listed, list)
        into = {name: torch.full_like(own, 7.0) for name, own in everyone[rank].items()}
        assert fgt.all_reduce(everyone[rank], spec, 1, group=group, out=into) is into
        for name, other in zip(found, listed, strict=True):
            assert found[name].shape == wanted[name].shape
            expect(found[name], wanted[name])
            assert torch.equal(found[name], other) and torch.equal(found[name], into[name])
    assert fgt.all_reduce(torch.zeros(0), "krum", 1, group=group).shape == (0,)


@case(5)
def a_very_long_row_costs_a_third_read(rank: int, group: Any) -> None:
    X = rows(5, 3000, 1)
    X[4] *= 1e14
    for spec in ("geometric_median", "centered_clipping(tau=30.0)", "nnm | geometric_median"):
        wanted = fg.rule(spec, 1)(X)
        expect(fgt.all_reduce(X[rank], spec, 1, group=group), wanted)
        expect(fgt.all_reduce(list(X[rank].split(1100)), spec, 1, group=group)[0], wanted[:1100])


@case(4)
def references_are_passed_on(rank: int, group: Any) -> None:
    X, trusted = rows(4, 37, 1), rows(1, 37, 8)[0]
    wanted = fg.fltrust(X, f=1, reference=trusted)
    expect(fgt.all_reduce(X[rank], "fltrust", 1, group=group, reference=trusted), wanted)
    wanted = fg.centered_clipping(X, 1, tau=1.0, start=trusted)
    spec = "centered_clipping(tau=1.0)"
    expect(fgt.all_reduce(X[rank], spec, 1, group=group, start=trusted), wanted)


@case(5)
def random_stages_draw_anew_and_alike(rank: int, group: Any) -> None:
    X = rows(5, 50)
    spec = "bucketing(s=2) | median"
    found = [fgt.all_reduce(X[rank], spec, 0, group=group) for _ in range(6)]
    counting = fg.rule(spec, 0)
    for one in found:
        same_on_all(one, group)
        expect(one, counting(X))
    assert len({tuple(one.tolist()) for one in found}) > 1


@case(4)
def long_and_short_aggregates_come_in_different_ways(rank: int, group: Any) -> None:
    for d in (SMALL // 4, SMALL // 4 + 1):
        X = rows(4, d, 2)
        for way in WAYS:
            found = fgt.all_reduce(X[rank], "median", 1, group=group, mode=mode_of(way, group))
            assert torch.equal(found, fg.median(X, 1))


@case(4, 5, 7)
def traffic_does_not_grow_with_ranks(rank: int, group: Any) -> None:
    if not os.access("/proc/self/io", os.R_OK):
        return
    n, d = dist.get_world_size(group), 200_001
    own = rows(n, d)[rank]
    for spec in ("median", "geometric_median"):
        fgt.all_reduce(own[:10], spec, 1, group=group)  # connections are made
        for dtype in (torch.float32, torch.bfloat16):
            vector = own.to(dtype)
            for name in ("sockets", "sharded"):
                mode_of(name, group)
                fgt.all_reduce(vector, spec, 1, group=group)
                before = bytes_written()
                fgt.all_reduce(vector, spec, 1, group=group)
                sent = bytes_written() - before
                size = vector.nbytes if name == "sockets" else 0  # nothing else is sent
                least, most = 1.5 * size, 2.2 * size + 64 * n * n + 4096
                assert least <= sent <= most, (name, sent, size)
    vector = own[:1000].clone()
    before = bytes_written()
    fgt.all_reduce(vector, "median", 1, group=group, mode="replicated")
    assert bytes_written() - before >= (n - 1) * vector.nbytes


@case(4)
def nobody_overwrites_what_a_slow_rank_reads(rank: int, group: Any) -> None:
    def slowly(function: Any) -> Any:
        def late(*arguments: Any) -> Any:
            sleep(0.01 if rank == 1 else 0.0)
            return function(*arguments)

        return late

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Aggregation, "own", slowly(Aggregation.own))
        patch.setattr(Local, "collect", slowly(Local.collect))
        for step in range(6):
            X = rows(4, (1200, 900)[step % 2], step)  # in the same memory
            for spec in ("median", "least_sum"):
                found = fgt.all_reduce(X[rank], spec, 1, group=group)
                expect(found, fg.rule(spec, 1)(X))
        peers, cpu = peers_of(group), torch.device("cpu")
        for step in range(6):  # as FSDP reduces and scatters
            X, rule = rows(4, 500, step), fg.rule("least_sum", 1)
            exchange = exchange_of("sharded", peers, memory_of(peers), cpu, whole=False)
            aggregation = Aggregation(rule, peers, exchange)
            aggregation.send(X[rank].clone())
            expect(aggregation.finish()[0], rule(X)[125 * rank :][:125])


@case(4)
def memory_in_common_is_given_back_or_done_without(rank: int, group: Any) -> None:
    X, wanted = rows(4, 1000), fg.krum(rows(4, 1000), 0)
    for trouble in ("none", "no folder", "no memory", "not wanted", "another process's files"):
        other = dist.new_group([0, 1, 2, 3], use_local_synchronization=True)
        peers = peers_of(other)
        with pytest.MonkeyPatch.context() as patch:
            if rank == 2 and trouble == "no folder":
                patch.setattr(window, "FOLDER", Path("/nowhere"))
            if rank == 2 and trouble == "not wanted":
                patch.setenv("FASTGAR_SHARED_MEMORY", "0")
            if rank == 2 and trouble == "another process's files":
                patch.setattr(window, "_read", lambda row: (Path("/proc/self/fd/0"), b""))
            if rank == 2 and trouble == "no memory":
                patch.setattr(os, "posix_fallocate", lambda *_: (_ for _ in ()).throw(OSError))
            for _ in range(2):
                expect(fgt.all_reduce(X[rank], "krum", 0, group=other), wanted)
        assert peers.on_one_machine == (trouble == "none")
        shared = memory_of(peers).free.get("window", ())
        assert len(shared) == (trouble == "none")
        if shared:
            for size in (900, 1000, 400, 1300, 1200):  # a window that fits is used again
                fgt.all_reduce(X[rank][:size], "krum", 0, group=other)
            assert len(memory_of(peers).free["window"]) <= 3
        dist.barrier(group)


@case(4, 5)
def too_many_faults_are_the_same_error_everywhere(rank: int, group: Any) -> None:
    n = dist.get_world_size(group)
    for name in WAYS:
        for spec in ("median", "geometric_median", "nnm | median", "trimmed_mean", "mean"):
            X = rows(n, 50)
            X[1, 7], X[3, 49] = float("nan"), -float("inf")  # in the columns of different ranks
            f = None if spec == "mean" else 1
            mode = mode_of(name, group)
            try:
                fgt.all_reduce(X[rank], spec, f, group=group, mode=mode)
            except fg.TooManyFaults as error:
                assert isinstance(error, fgt.TooManyFaultyRanks) and error.ranks == (1, 3)
                assert error.rows == (1, 3) and error.f == (f or 0) and "ranks 1, 3" in str(error)
                same_on_all(error, group)
            else:
                raise AssertionError((mode, spec))
            expect(fgt.all_reduce(X[rank].nan_to_num(0, 0, 0), spec, f, group=group),
                   fg.rule(spec, f)(X.nan_to_num(0, 0, 0)))  # fmt: skip


@case(4)
def calls_that_cannot_be_right(rank: int, group: Any) -> None:
    own = torch.ones(4)

    def call(*arguments: Any, **options: Any) -> Any:
        return fgt.all_reduce(*arguments, group=group, **options)

    with raises(ValueError, "bulyan needs n >= 4f + 3", "the largest f for 4 ranks is 0"):
        call(own, "bulyan", 1)
    with raises(ValueError, "monna needs", "4 ranks are too few for it even with f=0"):
        call(own, "monna(pivot=6)", 1)
    with raises(ValueError, "2f + 1", "the largest f for 4 ranks is 1"):
        call(own, "median", 2)
    with raises(ValueError, "one row per rank", "nnm | krum"):
        call(own, "nnm", 1)
    with raises(ValueError, "validation data", "fastgar.train"):
        call(own, "zeno(b=1)")
    with raises(ValueError, "unknown rule 'krumm'", "krum"):
        call(own, "krumm", 1)
    with raises(ValueError, "unknown mode 'shard'", "sharded"):
        call(own, "median", 1, mode="shard")
    with raises(ValueError, "unknown mode <Tensor of shape (4,)>"):
        call(own, "median", 1, mode=own)
    with raises(TypeError, "fltrust needs reference="):
        call(own, "fltrust", 1)
    with raises(ValueError, "median takes no start"):
        call(own, "median", 1, start=own)
    with raises(ValueError, "start must have the shapes"):
        call(own, "centered_clipping(tau=1.0)", 1, start=torch.ones(5))
    with raises(TypeError, "int64", "X.float()"):
        call(torch.ones(4, dtype=torch.int64), "median", 1)
    with raises(TypeError, "a tensor, or a sequence or mapping", "float"):
        call(1.0, "median", 1)
    with raises(ValueError, "no tensors"):
        call([], "median", 1)


@case(4)
def a_call_that_failed_leaves_the_ranks_alike(rank: int, group: Any) -> None:
    own, odd = torch.arange(5000.0) + rank, rank == 2
    for other in (torch.ones(8000), torch.ones(8000, dtype=torch.int32)):
        for _ in range(2):
            assert torch.equal(fgt.all_reduce(own, "median", 1, group=group), own - rank + 1.5)
        with raises(TypeError if odd and other.dtype == torch.int32 else ValueError):
            fgt.all_reduce(other if odd else own, "median", 1, group=group)
    assert torch.equal(fgt.all_reduce(own, "median", 1, group=group), own - rank + 1.5)


class Marked(Tensor):
    """A tensor that is not a plain one."""


def freed() -> Tensor:
    """Return a tensor of which the memory is gone, as FSDP leaves its parameters."""
    own = torch.ones(4)
    own.untyped_storage().resize_(0)
    return own


@case(4)
def tensors_that_cannot_be_sent(rank: int, group: Any) -> None:
    kinds: dict[str, Callable[[], Tensor]] = {
        "meta": lambda: torch.ones(4, device="meta"), "sparse_coo": torch.ones(4).to_sparse,
        "complex64": lambda: torch.ones(4, dtype=torch.complex64), "int64": lambda: torch.arange(4),
        "negated": lambda: torch.ones(4, dtype=torch.complex64).conj().imag,
        "without memory": freed,
        "Marked": lambda: torch.ones(4).as_subclass(Marked), "on cuda, got": lambda: torch.ones(4),
    }  # fmt: skip
    for word, make in kinds.items():
        peers_of(group).devices = {"cuda" if rank == 2 and "cuda" in word else "cpu"}
        if rank == 2:
            with raises((TypeError, ValueError), word):
                fgt.all_reduce(make(), "median", 1, group=group)
        else:
            with raises(ValueError, "rank 2 could not take part", "Error: ", word):
                fgt.all_reduce(torch.ones(4), "median", 1, group=group)
        peers_of(group).devices = {"cpu"}
        assert torch.equal(fgt.all_reduce(torch.ones(4), "median", 1, group=group), torch.ones(4))


def another(group: Any, seconds: float = 40.0) -> Any:
    """Return a new group of the same ranks, which may be left broken."""
    ranks = list(range(dist.get_world_size(group)))
    found = dist.new_group(ranks, timedelta(seconds=seconds), use_local_synchronization=True)
    peers_of(found)
    dist.barrier(group)
    return found


@case(4)
def a_rank_that_missed_a_call(rank: int, group: Any) -> None:
    group = another(group)
    fgt.all_reduce(torch.ones(4), "median", 1, group=group)
    if rank == 2:
        with pytest.MonkeyPatch.context() as patch, raises(KeyError, "before it met the others"):
            failing = Mock(side_effect=KeyError("before it met the others"))
            patch.setattr(Peers, "begin_exchange", failing)
            fgt.all_reduce(torch.ones(4), "median", 1, group=group)
    for call in (2, 3):
        with raises(
            RuntimeError, f"rank 2 is in its call {call + 1}", f"others are in call {call}:"
        ):
            fgt.all_reduce(torch.ones(4), "median", 1, group=group)
    state = fgt.RobustState("median", 1, group=another(group))
    state.tally.streak = np.zeros(4 - (rank == 2), np.int64)
    words = ["has seen 3 ranks"] if rank == 2 else ["rank 2 could not take part", "seen 3 ranks"]
    with raises(ValueError, *words):
        state.join(state.group)


@case(4)
def ranks_that_do_not_call_alike(rank: int, group: Any) -> None:
    odd = rank == 2
    kinds: list[tuple[str, tuple[Any, ...], str]] = [
        ("the rule", (torch.ones(4), "meamed" if odd else "median", 1), "sharded"),
        ("f must", (torch.ones(4), "median", 0 if odd else 1), "sharded"),
        ("the tensors", (torch.ones(5 if odd else 4), "median", 1), "sharded"),
        ("the mode", (torch.ones(4), "median", 1), "replicated" if odd else "sharded"),
    ]
    for words, arguments, mode in kinds:
        with raises(ValueError, words, "rank 0 does not agree with rank 2"):
            fgt.all_reduce(*arguments, group=group, mode=mode)
    own: Any = torch.ones(4, dtype=torch.int32) if odd else torch.ones(4)
    with raises(TypeError if odd else ValueError, "int32" if odd else "rank 2 could not take part"):
        fgt.all_reduce(own, "median", 1, group=group)
    with raises(ValueError, "is not in this process group"):
        fgt.all_reduce(own, "median", 1, group=dist.GroupMember.NON_GROUP_MEMBER)


@case(7)
def threads_are_shared_out(rank: int, group: Any) -> None:
    fgt.all_reduce(torch.ones(4), "median", 1, group=group)
    assert fg.get_threads() == max(1, len(os.sched_getaffinity(0)) // 7)
    fg.set_threads(3)
    assert fg.get_threads() == 3
    fg.set_threads(1)


@case(7)
def what_is_known_of_a_group_goes_with_it(rank: int, group: Any) -> None:
    def use(again: Any, fails: bool) -> list[ref[Any]]:
        model = parallel(network(), again)
        state = fgt.make_robust(model, "median", 1)
        trained(rank, again, state, range(2), model=model)
        fgt.all_reduce(rows(7, 1000)[rank], "median", 1, group=again)
        if fails:
            with raises(ValueError, "f must be the same"):
                fgt.all_reduce(torch.ones(3), "median", rank % 2, group=again)
        peers = peers_of(again)
        return [ref(again), ref(peers), ref(memory_of(peers)), ref(state)]

    for fails in (False, True):
        again = dist.new_group(list(range(7)), TIMEOUT)
        kept = use(again, fails)
        gc.collect()
        assert [each() is None for each in kept] == [False, False, False, True]
        peers = peers_of(again)
        dist.barrier(group)
        dist.destroy_process_group(again)
        del again
        gc.collect()
        assert kept[0]() is None
        with raises(RuntimeError, "this process group is gone"):
            peers.exchange(np.ones(1))
        del peers
        gc.collect()
        assert [each() for each in kept] == [None] * 4


# ------------------------------------------------------------------------------------------- DDP


def network(seed: int = 0, dtype: torch.dtype = torch.float32) -> nn.Module:
    torch.manual_seed(seed)
    layers = [nn.Linear(12, 40), nn.ReLU(), nn.Linear(40, 31), nn.ReLU(), nn.Linear(31, 3)]
    return nn.Sequential(*layers).to(dtype)


def batch(rank: int, step: int, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    """Return data that a network can learn; each rank and step has its own."""
    draw = torch.Generator().manual_seed(1000 * step + rank)
    x = torch.randn(16, 12, generator=draw)
    return x.to(dtype), (x[:, :3] * 3).argmax(1)


def gradient(
    model: nn.Module, rank: int, step: int, dtype: torch.dtype = torch.float32, scale: float = 1.0
) -> dict[str, Tensor]:
    model.zero_grad()
    x, y = batch(rank, step, dtype)
    (scale * cross_entropy(model(x), y)).backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def parallel(model: nn.Module, group: Any, **options: Any) -> Any:
    return DistributedDataParallel(model, process_group=group, **options)


@case(4, 5)
def the_hook_equals_the_rule_on_stacked_gradients(rank: int, group: Any) -> None:
    n = dist.get_world_size(group)
    names = ["mean", "trimmed_mean", "geometric_median", "nnm | median"]
    names += ["krum", "bulyan"] if n == 5 else ["least_sum"]
    for k, spec in enumerate(names):
        for name in WAYS:
            mode = mode_of(name, group)
            for cap in (0.002, 25.0):
                halves = (torch.bfloat16, torch.float16) if k < 3 and cap < 1 else ()
                for dtype in (torch.float32, *halves):
                    f = {"mean": None, "bulyan": 0}.get(spec, 1)
                    model = parallel(
                        network(0, dtype), group, bucket_cap_mb=cap,
                        gradient_as_bucket_view=k % 2 == 0,
                    )  # fmt: skip
                    state = fgt.make_robust(model, spec, f, mode=mode)
                    for step in range(2):  # buckets are cut anew after the first
                        model.zero_grad()
                        x, y = batch(rank, step, dtype)
                        cross_entropy(model(x), y).backward()
                        alone = network(0, dtype)
                        every = [gradient(alone, r, step, dtype) for r in range(n)]
                        wanted = fg.rule(spec, f)(every)
                        for name, p in model.module.named_parameters():
                            expect(p.grad, wanted[name])
                    assert state.report is not None
                    inspected = fg.inspect(spec, every, f).weights
                    np.testing.assert_allclose(state.report.weights, inspected, atol=0.05)
                    same_on_all(state.report, group)


def simulated(
    n: int, spec: str, f: int, steps: int, momentum: float = 0.0,
    spoil: Callable[[int, dict[str, Tensor]], None] = lambda rank, g: None,
) -> dict[str, Tensor]:  # fmt: skip
    """Return the parameters after SGD on one process, with momentum at the workers."""
    model, rule = network(), fg.rule(spec, f)
    sums: list[dict[str, Tensor]] = [{} for _ in range(n)]
    for step in range(steps):
        sent = []
        for r in range(n):
            g = gradient(model, r, step)
            spoil(r, g)
            sums[r] = {name: momentum * sums[r].get(name, 0.0) + g[name] for name in g}
            sent.append(sums[r])
        update = rule(sent)
        with torch.no_grad():
            for name, p in model.named_parameters():
                p -= 0.1 * update[name]
    return {name: p.detach() for name, p in model.named_parameters()}


def trained(
    rank: int, group: Any, state: Any, steps: Any, model: Any = None,
    spoil: Callable[..., Any] | None = None, lr: float = 0.1,
) -> Any:  # fmt: skip
    """Train by SGD in DDP, with a rank whose loss is spoiled; return the model."""
    if model is None:
        model = parallel(network(), group, bucket_cap_mb=0.002)
        if state is not None:
            model.register_comm_hook(state, fgt.robust_hook)
            state.registered = True  # spares a search for the model
    optimizer = torch.optim.SGD(model.parameters(), lr=lr)
    for step in steps:
        optimizer.zero_grad()
        x, y = batch(rank, step)
        loss = cross_entropy(model(x), y)
        (loss if spoil is None else spoil(rank, loss, model)).backward()
        optimizer.step()
    return model


@case(5)
def trajectories_equal_a_simulation(rank: int, group: Any) -> None:
    for spec, momentum in (("krum", 0.0), ("trimmed_mean", 0.9), ("bucketing(s=2) | median", 0.9)):
        f = 0 if "bucketing" in spec else 1
        state = fgt.RobustState(spec, f, group=group, momentum=momentum)
        model = trained(rank, group, state, range(20))
        wanted = simulated(5, spec, f, 20, momentum)
        for name, p in model.module.named_parameters():
            torch.testing.assert_close(p.detach(), wanted[name], rtol=1e-3, atol=1e-5)
        same_on_all(torch.cat([p.detach().view(-1) for p in model.parameters()]), group)


def accuracy(model: nn.Module) -> float:
    x, y = batch(99, 99)
    return float((model(x).argmax(1) == y).float().mean())


@case(4, 5)
def one_bad_rank_does_not_move_the_model(rank: int, group: Any) -> None:
    n = dist.get_world_size(group)
    bad = n - 1
    foreign = [10 * p.detach() for p in network(7).parameters()]

    def towards(model: nn.Module) -> Tensor:
        """Return a loss whose gradient leads to quite another model."""
        pairs = zip(model.parameters(), foreign, strict=True)
        return 3 * torch.stack([((p - q) ** 2).sum() for p, q in pairs]).sum()

    spoils: dict[str, Callable[..., Tensor]] = {
        "nan": lambda r, x, m: x * float("nan") if r == bad else x,
        "huge": lambda r, x, m: x * 1e30 if r == bad else x,
        "against": lambda r, x, m: x * -30.0 if r == bad else x,
        "another model": lambda r, x, m: x + towards(m) if r == bad else x,
    }
    for name, spoil in spoils.items():
        plain = trained(rank, group, None, range(30), spoil=spoil, lr=0.4)
        assert not accuracy(plain) > 0.6, (name, accuracy(plain))
        state = fgt.RobustState("nnm | trimmed_mean" if n == 4 else "multi_krum", 1, group=group)
        robust = trained(rank, group, state, range(30), spoil=spoil, lr=0.4)
        assert accuracy(robust) > 0.75, (name, accuracy(robust))
        assert state.report is not None
        assert state.report.suspicion.argmax() == bad
        if name == "nan":
            assert state.report.faulty == (bad,) and state.report.weights[bad] == 0


@case(5)
def a_step_with_too_many_faults_can_be_passed_over(rank: int, group: Any) -> None:
    for spec in ("krum", "median"):
        seen: list[Any] = []
        state = fgt.RobustState(spec, 1, group=group, momentum=0.5, callback=seen.append)
        model = parallel(network(), group, bucket_cap_mb=0.002)
        model.register_comm_hook(state, fgt.robust_hook)
        for step in range(5):
            model.zero_grad()
            x, y = batch(rank, step)
            scale = float("nan") if step == 2 and rank in (1, 4) else 1.0
            try:
                (scale * cross_entropy(model(x), y)).backward()
                assert step != 2
            except fgt.TooManyFaultyRanks as error:
                assert step == 2 and error.ranks == (1, 4)
                assert not any(p.grad.any() for p in model.parameters())
            else:
                assert all(torch.isfinite(p.grad).all() for p in model.parameters())
        assert len(seen) == 4 and state.report is seen[-1]  # momentum did not keep the NaN
        state = fgt.RobustState(spec, 1, group=group, too_many="nan")
        model = trained(rank, group, state, [0], spoil=lambda r, x, m: x * float("inf"))
        assert all(torch.isnan(p.grad).all() for p in model.parameters())


@case(4)
def gradients_accumulate_and_are_clipped(rank: int, group: Any) -> None:
    model = parallel(network(), group, bucket_cap_mb=0.002)
    model.register_comm_hook(fgt.RobustState("trimmed_mean", 1, group=group), fgt.robust_hook)
    for _ in range(2):
        model.zero_grad()
        with model.no_sync():
            x, y = batch(rank, 0)
            cross_entropy(model(x), y).backward()
        x, y = batch(rank, 1)
        cross_entropy(model(x), y).backward()
        alone, every = network(), []
        for r in range(4):
            first = gradient(alone, r, 0)
            second = gradient(alone, r, 1)
            every.append({name: first[name] + second[name] for name in first})
        wanted = fg.trimmed_mean(every, 1)
        for name, p in model.module.named_parameters():
            expect(p.grad, wanted[name])
    torch.nn.utils.clip_grad_norm_(model.parameters(), 0.01)
    assert sum(float(p.grad.norm()) ** 2 for p in model.parameters()) < 0.0101**2


@case(4)
def half_precision_and_a_scaler(rank: int, group: Any) -> None:
    every = [gradient(network(), r, 0) for r in range(4)]
    wrapper = default_hooks.fp16_compress_wrapper  # the one for bfloat16 is for NCCL alone
    for spec in ("median", "geometric_median"):
        model = parallel(network(), group, bucket_cap_mb=0.002)
        state = fgt.RobustState(spec, 1, group=group)
        model.register_comm_hook(state, wrapper(fgt.robust_hook))
        x, y = batch(rank, 0)
        cross_entropy(model(x), y).backward()
        wanted = fg.rule(spec, 1)([{k: g[k].half() for k in g} for g in every])
        for name, p in model.module.named_parameters():
            assert p.grad.dtype == torch.float32
            torch.testing.assert_close(p.grad, wanted[name].float(), **TOLERANCE[torch.float16])
    model = parallel(network(), group)
    state = fgt.RobustState("trimmed_mean", 1, group=group, too_many="nan")
    model.register_comm_hook(state, fgt.robust_hook)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    scales = []
    for step in range(3):  # with one rank that overflows training goes on, with two it waits
        before = [p.detach().clone() for p in model.parameters()]
        optimizer.zero_grad()
        x, y = batch(rank, step)
        loss = cross_entropy(model(x), y) * (float("inf") if rank <= step < 2 else 1.0)
        scaler.scale(loss).backward()
        scaler.unscale_(optimizer)
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        scaler.step(optimizer)
        scaler.update()
        scales.append(scaler.get_scale())
        moved = any(not torch.equal(p, q) for p, q in zip(model.parameters(), before, strict=True))
        assert moved == (step != 1)
    assert scales == [1024.0, 512.0, 512.0]


@case(4)
def compiled_models(rank: int, group: Any) -> None:
    for spec, inside in (("median", False), ("least_sum", False), ("least_sum", True)):
        net: Any = torch.compile(network(), backend="aot_eager") if inside else network()
        model = parallel(net, group)
        state = fgt.RobustState(spec, 1, group=group)
        model.register_comm_hook(state, fgt.robust_hook)
        compiled = model if inside else torch.compile(model, backend="aot_eager")
        for step in range(3):
            model.zero_grad()
            x, y = batch(rank, step)
            cross_entropy(compiled(x), y).backward()
            wanted = fg.rule(spec, 1)([gradient(network(), r, step) for r in range(4)])
            for name, p in model.module.named_parameters():
                expect(p.grad, wanted[name.removeprefix("_orig_mod.")])
        assert state.report is not None and state.report.step == 2


class Branches(nn.Module):
    """A model of which some part is not used, not even on every rank."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.always, self.sometimes, self.never = (nn.Linear(12, 3) for _ in range(3))

    def forward(self, x: Tensor, both: bool) -> Tensor:
        y: Tensor = self.always(x)
        return y + self.sometimes(x) if both else y


@case(4)
def unused_parameters(rank: int, group: Any) -> None:
    for momentum in (0.0, 0.9):
        model = parallel(Branches(), group, find_unused_parameters=True, bucket_cap_mb=0.0001)
        state = fgt.RobustState("nnm | median", 1, group=group, momentum=momentum)
        model.register_comm_hook(state, fgt.robust_hook)
        every = []
        for r in range(4):
            alone = Branches()
            x, y = batch(r, 0)
            cross_entropy(alone(x, r > 0), y).backward()
            every.append([torch.zeros_like(p) if p.grad is None else p.grad
                          for p in alone.parameters()])  # fmt: skip
        wanted = fg.rule("nnm | median", 1)(every)
        for step in range(3):  # the same each time, so that momentum only lengthens it
            model.zero_grad()
            x, y = batch(rank, 0)
            cross_entropy(model(x, rank > 0), y).backward()
            for p, g in zip(model.parameters(), wanted, strict=True):
                found = torch.zeros_like(p) if p.grad is None else p.grad
                expect(found, g * sum(momentum**k for k in range(step + 1)))
            assert model.module.sometimes.weight.grad.any()


@case(5)
def checkpoints_go_on_where_they_were_made(rank: int, group: Any) -> None:
    def state() -> Any:
        return fgt.RobustState("bucketing(s=2) | trimmed_mean", 0, group=group, momentum=0.9)

    whole_state = state()
    whole = trained(rank, group, whole_state, range(8))
    first = state()
    half = trained(rank, group, first, range(4))
    saved, weights = first.state_dict(half), half.module.state_dict()
    second = state()
    rest = parallel(network(3), group)  # other buckets
    rest.module.load_state_dict(weights)
    second.load_state_dict(saved, rest.module)
    rest.register_comm_hook(second, fgt.robust_hook)
    trained(rank, group, second, range(4, 8), model=rest)
    for a, b in zip(whole.parameters(), rest.parameters(), strict=True):
        expect(a.detach(), b.detach())
    assert second.report.step == 7
    np.testing.assert_allclose(second.report.suspicion, whole_state.report.suspicion, atol=0.1)
    others: list[Any] = [None] * 5
    dist.all_gather_object(others, saved, group=group)
    with raises(ValueError, "every rank must save and load"):
        state().load_state_dict(others[(rank + 1) % 5], rest)
    with raises(ValueError, "the state of one of 4 ranks, and there are 5"):
        state().load_state_dict({**saved, "ranks": 4}, rest)
    with raises(ValueError, "none such"):
        state().load_state_dict(saved, Branches())
    with raises(TypeError, "pass the model"):
        first.state_dict()
    with raises(ValueError, "make the RobustState with momentum="):
        fgt.RobustState("median", 1, group=group).load_state_dict(saved, rest)


class Lines(logging.Handler):
    def __init__(self) -> None:
        super().__init__()
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(record.getMessage())


@case(5)
def a_rank_that_is_dropped_more_than_chance_does_is_logged(rank: int, group: Any) -> None:
    handler = Lines()
    logging.getLogger("fastgar.torch").addHandler(handler)
    spoils: list[Callable[..., Tensor]] = [
        lambda r, x, m: x * (-50.0 if r == 0 else 1.0), lambda r, x, m: x * (r or float("nan")),
    ]  # fmt: skip
    try:
        reports: list[Any] = []
        state = fgt.RobustState("multi_krum", 1, group=group, patience=3, callback=reports.append)
        trained(rank, group, state, range(9), spoil=spoils[0])
        trained(rank, group, fgt.RobustState("median", 1, group=group), range(3), spoil=spoils[1])
    finally:
        logging.getLogger("fastgar.torch").removeHandler(handler)
    assert len(handler.lines) == 3 * (rank == 1)  # rank 0 is the one that is dropped
    if rank == 1:
        words = ("rank 0 was dropped by multi_krum in 3 steps in a row, up to step 2",
                 "rank 0 is dropped by multi_krum in more steps than chance explains, up to step 6",
                 "rank 0 sent NaN or infinity in step 0")  # fmt: skip
        assert all(word in line for word, line in zip(words, handler.lines, strict=True))
    assert [report.step for report in reports] == list(range(9))
    last = reports[-1]
    assert last.dropped == (0,) and last.ranks == (0, 1, 2, 3, 4) and last.suspicion[0] == 1.0
    assert last.scores.argmax() == 0 and (last.suspicion[1:] < 0.1).all()
    assert "   0    0.000       1.00   dropped" in str(last).splitlines()


@case(5)
def ranks_that_send_the_same_are_believed_alike(rank: int, group: Any) -> None:
    handler = Lines()
    logging.getLogger("fastgar.torch").addHandler(handler)
    specs = ("median", "trimmed_mean", "krum", "mda", "nnm | median")
    try:
        for spec in specs:
            state = fgt.RobustState(spec, 1, group=group)
            trained(0, group, state, range(4))  # of the same data
            report = state.report
            assert report is not None and report.dropped == () and (report.suspicion == 0).all()
            assert len(set(report.weights)) == 1 and report.weights[0] > 0
    finally:
        logging.getLogger("fastgar.torch").removeHandler(handler)
    line = "all ranks sent the same gradient in 3 steps in a row, up to step 2: is the sampler "
    assert handler.lines == [line + "distributed?"] * len(specs) * (rank == 0)


@case(4)
def an_error_in_a_callback_spoils_no_gradient(rank: int, group: Any) -> None:
    def fail(report: Any) -> None:
        if rank == 1:
            raise ValueError("of the user")

    wanted = fg.median([gradient(network(), r, 0) for r in range(4)], 1)
    state = fgt.RobustState("median", 1, group=group, callback=fail)
    one = parallel(network(), group)
    one.register_comm_hook(state, fgt.robust_hook)
    two = sharded(group)
    fgt.make_robust(two, "median", 1, callback=fail)
    x, y = batch(rank, 0)
    for model in (one, two):
        loss = cross_entropy(model(x), y)
        if rank == 1:
            with raises(ValueError, "of the user"):
                loss.backward()
        else:
            loss.backward()
    for name, p in one.module.named_parameters():
        expect(p.grad, wanted[name])
    for name, p in two.named_parameters():
        expect(p.grad.full_tensor(), wanted[name])


@case(4)
def states_that_cannot_be_right(rank: int, group: Any) -> None:
    def state(*arguments: Any, **options: Any) -> Any:
        return fgt.RobustState(*arguments, group=group, **options)

    with raises(ValueError, "the largest f for 4 ranks is 1"):
        state("median", 2)
    with raises(ValueError, "trusted gradient", "fgt.all_reduce", "monna"):
        state("fltrust", 1)
    with raises(ValueError, "validation data"):
        state("zeno(b=1)")
    with raises(ValueError, "momentum must be at least 0 and below 1, got 1"):
        state("median", 1, momentum=1.0)
    with raises(ValueError, "unknown mode"):
        state("median", 1, mode="both")
    with raises(ValueError, "'raise'", "'rais'"):
        state("median", 1, too_many="rais")
    with raises(ValueError, "patience must be at least 1"):
        state("median", 1, patience=0)
    one = state("median", 1)
    model = parallel(network(), group, bucket_cap_mb=0.002)
    model.register_comm_hook(one, fgt.robust_hook)
    with raises(RuntimeError, "register_comm_hook"):
        model.register_comm_hook(one, fgt.robust_hook)
    trained(rank, group, one, range(2), model=model)
    other = parallel(network(), group)
    other.register_comm_hook(state("median" if rank else "meamed", 1), fgt.robust_hook)
    with raises(ValueError, "the rule must be the same on every rank"):
        trained(rank, group, None, [0], model=other)
    one.peers = type("Peers", (), {"n": 3})()
    with raises(ValueError, "has seen 3 ranks, and the group has 4"):
        trained(rank, group, one, [2], model=model)


@case(4)
def a_model_in_ddp_is_made_robust_in_its_own_group(rank: int, group: Any) -> None:
    own = [rank // 2 * 2, rank // 2 * 2 + 1]
    pair = dist.new_group(own, TIMEOUT, use_local_synchronization=True)
    model = parallel(network(), pair, bucket_cap_mb=0.002)
    with raises(ValueError, "the largest f for 2 ranks is 0"):
        fgt.make_robust(model, "median", 1)
    for wrong in ({"scope": "group"}, {"replicas": group}):
        with raises(ValueError, "are of FSDP2"):
            fgt.make_robust(model, "median", 0, **wrong)
    state = fgt.make_robust(nn.Sequential(model), "median", 0)  # as a wrapper has it
    trained(rank, pair, state, range(2), model=model, lr=0.0)
    wanted = fg.rule("median", 0)([gradient(network(), each, 1) for each in own])
    for name, p in model.module.named_parameters():
        expect(p.grad, wanted[name])
    assert state.report.ranks == tuple(own)
    with raises(ValueError, "robust already"):
        fgt.make_robust(model, "median", 0)
    other = parallel(network(), pair)
    with raises(ValueError, "2 DistributedDataParallel modules"):
        fgt.make_robust(nn.Sequential(model, other), "median", 0)
    other.register_comm_hook(pair, default_hooks.allreduce_hook)
    with raises(ValueError, "communication hook allreduce_hook already"):
        fgt.make_robust(other, "median", 0)
    with raises(TypeError, "DistributedDataParallel, or after", "fully_shard"):
        fgt.make_robust(network(), "median", 0)


@case(4)
def a_state_of_another_group_than_the_model(rank: int, group: Any) -> None:
    own = [rank // 2 * 2, rank // 2 * 2 + 1]
    pair = dist.new_group(own, TIMEOUT, use_local_synchronization=True)
    both = "of ranks 0, 1, 2, 3", f"has that of ranks {own[0]}, {own[1]}", "fgt.make_robust"
    for mistaken in (own, own[:1]):  # one rank alone tells the other
        model = parallel(network(), pair)
        wrong = rank in mistaken
        state = fgt.RobustState("median", 0, group=group if wrong else pair)
        model.register_comm_hook(state, fgt.robust_hook)
        with raises(ValueError, *(both if wrong else (f"rank {own[0]} could not take part",))):
            trained(rank, pair, state, [0], model=model)
        assert not any(p.grad.any() for p in model.parameters())
    trained(rank, pair, fgt.RobustState("median", 0, group=pair), range(2))
    alike = dist.new_group(own, TIMEOUT, use_local_synchronization=True)  # the same ranks do
    trained(rank, pair, fgt.RobustState("median", 0, group=alike), range(2))


@case(4)
def models_that_would_average_around_the_rule(rank: int, group: Any) -> None:
    inner, weights = network(), network()
    known = [("4.weight", inner[4].weight), ("4.bias", inner[4].bias)]
    delayed = parallel(
        inner, group, delay_all_reduce_named_params=known, param_to_hook_all_reduce=inner[4].bias
    )
    with raises(ValueError, "averages 2 parameters", "leave that option out"):
        fgt.make_robust(delayed, "median", 1)
    with torch._dynamo.config.patch(optimize_ddp="python_reducer"):
        single = parallel(network(), group)
    with raises(ValueError, "python_reducer", '"ddp_optimizer"'):
        fgt.make_robust(single, "median", 1)
    mesh = DeviceMesh.from_group(group, "cpu")
    copies = replicate(weights, mesh=mesh)
    with raises(ValueError, "replicate()", "call fully_shard"):
        fgt.make_robust(copies, "median", 1)


@case(7)
def tensor_parallelism_in_ddp_is_refused(rank: int, group: Any) -> None:
    mesh = three_pairs(rank)
    if rank == 6:
        return
    model = DistributedDataParallel(split(mesh), device_mesh=mesh["dp"])
    with raises(ValueError, "tensor parallelism", "fully_shard"):
        fgt.make_robust(model, "median", 1)


# ------------------------------------------------------------------------------------------ FSDP2


def sharded(group: Any, policy: Any = None) -> Any:
    """Return the network, sharded in two parameter groups."""
    model: Any = network()
    mesh = DeviceMesh.from_group(group, "cpu")
    options = {"mp_policy": policy} if policy else {}
    fully_shard(model[2], mesh=mesh, **options)
    return fully_shard(model, mesh=mesh, **options)


INNER = ("2.weight", "2.bias")  # the parameter group of the inner module


@case(4, 5)
def fsdp_equals_the_rule_on_stacked_gradients(rank: int, group: Any) -> None:
    n = dist.get_world_size(group)
    distance = "krum" if n == 5 else "least_sum"
    for spec, scope in (
        ("trimmed_mean", "group"), ("mean", "global"), (distance, "group"), (distance, "global"),
        ("nnm | median", "group"), ("geometric_median", "global"),
    ):  # fmt: skip
        f = None if spec == "mean" else 1
        model = sharded(group)
        state = fgt.make_robust(model, spec, f, scope=scope)
        for step in range(2):
            model.zero_grad()
            x, y = batch(rank, step)
            cross_entropy(model(x), y).backward()
            every = [gradient(network(), r, step) for r in range(n)]
            parts = [every]
            if scope == "group":
                parts = [
                    [{k: v for k, v in g.items() if (k in INNER) == inner} for g in every]
                    for inner in (True, False)
                ]
            wanted: dict[str, Tensor] = {}
            for part in parts:
                wanted |= fg.rule(spec, f)(part)
            for name, p in model.named_parameters():
                expect(p.grad.full_tensor(), wanted[name])
        assert state.report is not None and state.report.step == 1
        same_on_all(state.report, group)
        if scope == "global":
            inspected = fg.inspect(spec, every, f).weights
            np.testing.assert_allclose(state.report.weights, inspected, atol=1e-3)


@case(5)
def fsdp_in_mixed_precision_and_with_accumulation(rank: int, group: Any) -> None:
    for reduced in (torch.float16, torch.bfloat16, torch.float32):
        policy = MixedPrecisionPolicy(reduce_dtype=reduced)
        model = sharded(group, policy)
        fgt.make_robust(model, "median", 1)
        x, y = batch(rank, 0)
        cross_entropy(model(x), y).backward()
        every = [gradient(network(), r, 0) for r in range(5)]
        for name, p in model.named_parameters():
            assert p.grad.dtype == torch.float32
            wanted = fg.median([g[name].to(reduced) for g in every], 1).float()
            near = TOLERANCE[reduced]
            torch.testing.assert_close(p.grad.full_tensor(), wanted, **near)
        if reduced == torch.float32:
            continue
        model = sharded(group, policy)
        fgt.make_robust(model, "krum", 1, scope="global")
        with raises(ValueError, 'use scope="group"'):
            cross_entropy(model(x), y).backward()
    model = sharded(group)
    fgt.make_robust(model, "krum", 1, scope="global")
    model.set_requires_gradient_sync(False)
    cross_entropy(model(batch(rank, 0)[0]), batch(rank, 0)[1]).backward()
    model.set_requires_gradient_sync(True)
    cross_entropy(model(batch(rank, 1)[0]), batch(rank, 1)[1]).backward()
    rows = []
    for r in range(5):
        first, second = (gradient(network(), r, step) for step in range(2))
        rows.append({name: first[name] + second[name] for name in first})
    wanted = fg.krum(rows, 1)
    for name, p in model.named_parameters():
        expect(p.grad.full_tensor(), wanted[name])


@case(5)
def fsdp_survives_a_bad_rank_and_says_when_there_are_more(rank: int, group: Any) -> None:
    for scope in ("group", "global"):
        model = sharded(group)
        state = fgt.make_robust(model, "multi_krum", 1, scope=scope)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.4)
        for step in range(12):
            optimizer.zero_grad()
            x, y = batch(rank, step)
            loss = cross_entropy(model(x), y)
            bad = (1,) if step != 5 else (1, 2)
            try:
                (loss * float("nan") if rank in bad else loss).backward()
                assert step != 5
            except fgt.TooManyFaultyRanks as error:
                assert step == 5 and error.ranks == (1, 2)
                continue
            optimizer.step()
        assert all(torch.isfinite(p.to_local()).all() for p in model.parameters())
        assert state.report is not None
        assert state.report.faulty == (1,) and state.report.suspicion[1] == 1.0
        assert state.report.step == 10
        model = sharded(group)
        state = fgt.make_robust(model, "multi_krum", 1, scope=scope, too_many="nan")
        x, y = batch(rank, 0)
        (cross_entropy(model(x), y) * (float("nan") if rank in (1, 2) else 1.0)).backward()
        assert all(p.grad.to_local().isnan().all() for p in model.parameters())
        assert state.report is None
    with raises(ValueError, "robust already"):
        fgt.make_robust(model, "median", 1)
    with raises(ValueError, "the word of each rank for its shard", "replicas="):
        fgt.make_robust(sharded(group), "median", 1, mode="replicated")
    with raises(TypeError, "fully_shard", "DistributedDataParallel"):
        fgt.make_robust(network(), "median", 1)
    with raises(ValueError, "unknown scope", "global"):
        fgt.make_robust(sharded(group), "median", 1, scope="all")
    with raises(ValueError, "the largest f for 5 ranks is 2"):
        fgt.make_robust(sharded(group), "median", 3)


@case(5)
def fsdp_with_momentum_equals_a_simulation(rank: int, group: Any) -> None:
    def train(model: Any, steps: Any) -> None:
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        for step in steps:
            optimizer.zero_grad()
            x, y = batch(rank, step)
            cross_entropy(model(x), y).backward()
            optimizer.step()

    for spec, scope in (("trimmed_mean", "group"), ("krum", "global")):
        wanted = simulated(5, spec, 1, 10, momentum=0.9)
        model = sharded(group)
        state = fgt.make_robust(model, spec, 1, scope=scope, momentum=0.9)
        train(model, range(4))
        saved = state.state_dict(model)
        assert set(saved["momentum"]) == {"*", "2.*"}
        rest = sharded(group)
        for p, q in zip(rest.parameters(), model.parameters(), strict=True):
            p.detach().copy_(q.detach())
        second = fgt.make_robust(rest, spec, 1, scope=scope, momentum=0.9)
        second.load_state_dict(saved, rest)
        train(rest, range(4, 10))
        for name, p in rest.named_parameters():
            near = {"rtol": 1e-3, "atol": 1e-5}
            torch.testing.assert_close(p.detach().full_tensor(), wanted[name], **near)
        assert second.report is not None and second.report.step == 9
        with raises(ValueError, "none such"):
            second.load_state_dict(saved, network()[0])
        model[2].weight.requires_grad_(False)  # the vector that is reduced gets shorter
        with raises(ValueError, "the same parameters must get gradients"):
            train(model, [4])


@case(7)
def replicas_of_shards_are_the_workers(rank: int, group: Any) -> None:
    # Three replicas of two shards each: ranks 0 1, 2 3, 4 5.
    pairs = [dist.new_group([2 * i, 2 * i + 1]) for i in range(3)]
    across = [dist.new_group([i, 2 + i, 4 + i]) for i in range(2)]
    if rank == 6:
        return
    ways = [(spec, mode) for spec in ("least_sum", "median", "nnm | median") for mode in MODES]
    for spec, mode in ways:
        model: Any = sharded(pairs[rank // 2])
        state = fgt.make_robust(model, spec, 1, replicas=across[rank % 2], mode=mode)
        for step in range(2):
            model.zero_grad()
            x, y = batch(rank, step)
            scales = [1.0, 1.0, 1.0, float("nan"), 1.0, 1.0]
            (scales[rank] * cross_entropy(model(x), y)).backward()
            every = [gradient(network(), r, step, scale=scales[r]) for r in range(6)]
            rows = [{k: (every[r][k] + every[r + 1][k]) / 2 for k in every[r]} for r in (0, 2, 4)]
            parts = [[{k: g[k] for k in g if (k in INNER) == i} for g in rows] for i in (0, 1)]
            wanted = fg.rule(spec, 1)(parts[0]) | fg.rule(spec, 1)(parts[1])
            for name, p in model.named_parameters():
                expect(p.grad.full_tensor(), wanted[name])
        assert state.report is not None and state.report.faulty == (2 + rank % 2,)
        with raises(fgt.TooManyFaultyRanks, "2 ranks sent NaN"):
            loss = cross_entropy(model(x), y)
            (loss * float("nan") if rank in (0, 3) else loss).backward()
    slow = sharded(pairs[rank // 2])
    fgt.make_robust(slow, "median", 1, replicas=across[rank % 2], momentum=0.5)
    for step in range(2):
        slow.zero_grad()
        x, y = batch(rank, step)
        cross_entropy(slow(x), y).backward()
    every = [[gradient(network(), r, step) for r in range(6)] for step in range(2)]
    rows = [
        {k: sum((0.5 * first[r][k] + second[r][k]) / 2 for r in (a, a + 1)) for k in second[a]}
        for first, second in [every] for a in (0, 2, 4)
    ]  # fmt: skip
    for name, p in slow.named_parameters():
        expect(p.grad.full_tensor(), fg.median(rows, 1)[name])
    with raises(ValueError, "does not go with replicas="):
        fgt.make_robust(sharded(pairs[rank // 2]), "krum", 0, scope="global", replicas=across[0])


@case(4)
def several_meshes_in_one_model_are_refused(rank: int, group: Any) -> None:
    everyone = DeviceMesh.from_group(group, "cpu")
    pairs = [dist.new_group([2 * k, 2 * k + 1], use_local_synchronization=True) for k in range(2)
             if rank // 2 == k]  # fmt: skip
    pair = DeviceMesh.from_group(pairs[0], "cpu")

    def placed(p: nn.Parameter) -> Any:
        return ShardPlacementResult(Shard(0), FSDPMeshInfo(pair if p.ndim == 1 else everyone, 0))

    model = nn.Linear(8, 4)
    fully_shard(model, mesh=everyone, shard_placement_fn=placed)
    with raises(ValueError, "2 meshes share one call of fully_shard", "over one mesh"):
        fgt.make_robust(model, "median", 1)
    model = nn.Sequential(nn.Linear(8, 4), nn.Linear(4, 4))
    fully_shard(model[1], mesh=pair)
    fully_shard(model, mesh=everyone)
    with raises(ValueError, "several groups of ranks", "(0, 1, 2, 3)", "over one mesh"):
        fgt.make_robust(model, "median", 1)


class Normed(nn.Module):
    """A model of which tensor parallelism splits two layers, and copies a third."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.norm, self.last = nn.Linear(12, 40), nn.LayerNorm(12), nn.Linear(40, 3)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.last(self.first(self.norm(x)).relu())
        return y


def three_pairs(rank: int) -> Any:
    """Return the mesh of the first six ranks: three workers, two ranks of tensor parallelism."""
    pairs = [dist.new_group([2 * i, 2 * i + 1]) for i in range(3)]
    across = [dist.new_group([i, 2 + i, 4 + i]) for i in range(2)]
    if rank == 6:
        return None
    groups, places = [across[rank % 2], pairs[rank // 2]], torch.arange(6).view(3, 2)
    return DeviceMesh.from_group(groups, "cpu", places, mesh_dim_names=("dp", "tp"))


def split(mesh: Any) -> Any:
    """Return a model of tensor parallelism."""
    plan = {"first": ColwiseParallel(), "last": RowwiseParallel()}
    return parallelize_module(Normed(), mesh["tp"], plan)


def split_and_sharded(mesh: Any) -> Any:
    model = split(mesh)
    fully_shard(model.last, mesh=mesh["dp"])
    return fully_shard(model, mesh=mesh["dp"])


@case(7)
def ranks_of_tensor_parallelism_decide_together(rank: int, group: Any) -> None:
    mesh, near = three_pairs(rank), {"rtol": 1e-4, "atol": 1e-6}
    if rank == 6:
        return
    for spec, scope, momentum in (
        ("least_sum", "group", 0.0), ("least_sum", "global", 0.9), ("median", "group", 0.9),
        ("centered_clipping(tau=0.1)", "global", 0.0), ("geometric_median", "group", 0.0),
    ):  # fmt: skip
        model, alone = split_and_sharded(mesh), Normed()
        state = fgt.make_robust(model, spec, 1, scope=scope, momentum=momentum)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        sums: list[dict[str, Tensor]] = [{} for _ in range(3)]
        scales = [1.0, 1e14 if spec == "geometric_median" else 1.0, 1.0]
        for step in range(3):
            optimizer.zero_grad()
            x, y = batch(rank // 2, step)
            (scales[rank // 2] * cross_entropy(model(x), y)).backward()
            every = [gradient(alone, r, step, scale=scales[r]) for r in range(3)]
            for known, new in zip(sums, every, strict=True):
                known.update({k: momentum * known.get(k, 0.0) + new[k] for k in new})
            wanted: dict[str, Tensor] = {}
            for last in (True, False) if scope == "group" else (None,):
                names = [k for k in every[0] if last in (None, k.startswith("last"))]
                wanted |= fg.rule(spec, 1)([{k: known[k] for k in names} for known in sums])
            for name, p in model.named_parameters():
                torch.testing.assert_close(p.grad.full_tensor(), wanted[name], **near)
            optimizer.step()
            with torch.no_grad():
                for name, p in alone.named_parameters():
                    p -= 0.1 * wanted[name]
        for copied in (model.norm.weight, model.last.bias):
            same_on_all(copied.full_tensor().detach(), mesh["tp"].get_group())
        same_on_all(state.report.weights, mesh["tp"].get_group())


@case(7)
def a_fault_on_one_rank_of_tensor_parallelism(rank: int, group: Any) -> None:
    mesh = three_pairs(rank)
    if rank == 6:
        return
    x, y = batch(rank // 2, 0)
    for scope in ("global", "group"):
        model = split_and_sharded(mesh)
        state = fgt.make_robust(model, "least_sum", 1, scope=scope, momentum=0.9)
        cross_entropy(model(x), y).backward()
        fails = Mock(side_effect=KeyError("of momentum"))
        with pytest.MonkeyPatch.context() as patch:
            if rank == 2:
                patch.setattr(state.momentum, "replace", fails)
            words = "could not take part" if rank % 2 == 0 else "other shards of the same replica"
            with raises(KeyError if rank == 2 else ValueError, "" if rank == 2 else words):
                cross_entropy(model(x), y).backward()
        for step in range(3):  # NaN in the columns of one, of a worker that is used without it
            model.zero_grad()
            with pytest.MonkeyPatch.context() as patch:
                if rank == 2 and step == 1:
                    patch.setattr(state.momentum, "replace", lambda own, *_: own[0].fill_(np.nan))
                cross_entropy(model(x), y).backward()
            if step == 1:
                assert state.report.faulty == (2 + rank % 2,)
            for copied in (model.norm.weight, model.last.bias):
                own = copied.grad.full_tensor()
                assert torch.isfinite(own).all()
                same_on_all(own, mesh["tp"].get_group())


# ------------------------------------------------------------------- ranks that do not go together


class During(torch.autograd.Function):
    """Calls a function in the midst of the backward pass, as DDP does with a hook."""

    @staticmethod
    def forward(context: Any, x: Tensor, call: Callable[[], None]) -> Tensor:
        context.call = call
        return x.clone()

    @staticmethod
    def backward(context: Any, *gradients: Tensor) -> Any:
        context.call()
        return gradients[0], None


class Bucket:
    """What a hook sees of a bucket of DDP."""

    def __init__(self, index: int, last: bool, own: Tensor) -> None:
        self.index, self.is_last, self.buffer = lambda: index, lambda: last, lambda: own
        self.gradients = self.parameters = lambda: [own]


def hooked(state: Any, vectors: list[Tensor]) -> None:
    """Send these as the buckets of one backward pass, and write the aggregates into them."""

    def call() -> None:
        last = len(vectors) - 1
        found = [fgt.robust_hook(state, Bucket(k, k == last, own)) for k, own in enumerate(vectors)]
        for own, future in zip(vectors, found, strict=True):
            own.copy_(future.wait())

    During.apply(torch.ones(1, requires_grad=True), call).sum().backward()


@case(4)
def ranks_that_differ_in_a_bucket(rank: int, group: Any) -> None:
    odd, sizes = rank == 2, (70, 1500, 33)
    fails = Mock(side_effect=KeyError("of momentum"))
    kinds: list[tuple[str, type[Exception], Callable[[Any, list[Tensor]], Any]]] = [
        ("shape and dtype of what is sent", ValueError, lambda state, own: own.insert(0, own[1])),
        ("shape and dtype of what is sent", ValueError,
         lambda state, own: own.__setitem__(1, torch.ones(40_000))),
        ("shape and dtype of what is sent", ValueError,
         lambda state, own: own.__setitem__(2, torch.ones(9))),
        ("shape and dtype of what is sent", ValueError,
         lambda state, own: own.__setitem__(1, own[1].double())),
        ("whether it is the last", ValueError, lambda state, own: own.pop()),
        ("the step must", ValueError, lambda state, own: setattr(state.tally, "step", 9)),
        ("numbers in memory", TypeError, lambda state, own: own.__setitem__(1, own[1].to("meta"))),
        ("numbers in memory", TypeError, lambda state, own: own.__setitem__(2, own[2].to_sparse())),
        ("of momentum", KeyError, lambda state, own: setattr(state.momentum, "replace", fails)),
    ]  # fmt: skip
    for way in WAYS:
        for spec in ("median", "least_sum"):
            other = another(group)
            mode = mode_of(way, other)
            for number, (words, error, spoil) in enumerate(kinds):
                momentum = 0.1 if "momentum" in words else 0.0
                state = fgt.RobustState(spec, 1, group=other, mode=mode, momentum=momentum)
                for step in range(2):
                    everyone = [rows(4, size, 9 * step + number) for size in sizes]
                    own = [X[rank].clone() for X in everyone]
                    hooked(state, own)
                    if not momentum or not step:
                        whole = fg.rule(spec, 1)(torch.cat(everyone, dim=1))
                        expect(torch.cat(own), whole)
                    if step:
                        break
                    own = [X[rank].clone() for X in everyone]
                    keep = state.tally.step, state.momentum.replace
                    if odd:
                        spoil(state, own)
                    told = [] if error is ValueError or odd else ["rank 2 could not take part"]
                    with raises(error if odd else ValueError, words, *told):
                        hooked(state, own)
                    assert error is not ValueError or not any(each.any() for each in own)
                    state.tally.step, state.momentum.replace = keep
            assert fgt.all_reduce(own[0], "median", 1, group=other) is not None
            with raises(ValueError, "what is called", "rank 0 does not agree with rank 2"):
                if odd:
                    fgt.all_reduce(own[0], "median", 1, group=other)
                else:
                    hooked(state, own)
            peers_of(other).calls += odd
            for _ in range(2):
                with raises(RuntimeError, "rank 2 is in its call", "the others are in call"):
                    hooked(state, own)


@case(4)
def ranks_that_differ_in_a_parameter_group(rank: int, group: Any) -> None:
    odd, take = rank == 2, Backward.take
    x, y = batch(rank, 0)

    def shorter(self: Any, comm: Any, own: Tensor, *rest: Any) -> None:
        take(self, comm, own[:-4], *rest)

    def fewer(self: Any, comm: Any, own: Tensor, *rest: Any) -> None:
        if self.sent:
            rest[0].zero_()
        else:
            take(self, comm, own, *rest)

    def fails(*arguments: Any) -> None:
        raise KeyError("of momentum")

    def step(model: Any) -> None:
        model.zero_grad()
        cross_entropy(model(x), y).backward()

    for scope, spec in (("group", "median"), ("group", "least_sum"), ("global", "least_sum")):
        for way in ("sharded", "sockets"):
            other = another(group)
            mode_of(way, other)
            model = sharded(other)
            state = fgt.make_robust(model, spec, 1, scope=scope, momentum=0.1)
            step(model)
            first = {name: p.grad.full_tensor() for name, p in model.named_parameters()}
            state.momentum.sums.clear()
            for words, error, where, name, wrong in (
                ("shape and dtype of what is sent", ValueError, Backward, "take", shorter),
                ("what is called", ValueError, Backward, "take", fewer),
                ("of momentum", KeyError, state.momentum, "replace", fails),
                ("the step must", ValueError, state.tally, "step", 7),
            ):
                if wrong is fewer and scope == "group":
                    continue  # that is another step, and then FSDP's own exchanges do not meet
                told = [] if error is ValueError or odd else ["rank 2 could not take part"]
                with pytest.MonkeyPatch.context() as patch:
                    if odd:
                        patch.setattr(where, name, wrong)
                    with raises(error if odd else ValueError, words, *told):
                        step(model)
                assert not any(p.grad.to_local().any() for p in model.parameters())
                state.momentum.sums.clear()
                step(model)
                for name, p in model.named_parameters():
                    expect(p.grad.full_tensor(), first[name])
                state.momentum.sums.clear()
            peers_of(other).calls += odd
            with raises(RuntimeError, "rank 2 is in its call", "the others are in call"):
                step(model)


@case(7)
def shards_beside_one_that_cannot_take_part(rank: int, group: Any) -> None:
    pairs = [dist.new_group([2 * i, 2 * i + 1]) for i in range(3)]
    across = [dist.new_group([i, 2 + i, 4 + i]) for i in range(2)]
    if rank == 6:
        return
    x, y = batch(rank, 0)
    for spec, mode in (("median", "sharded"), ("least_sum", "replicated"), ("median", "replicated"),
                       ("centered_clipping(tau=1.0)", "sharded")):  # fmt: skip
        model = sharded(pairs[rank // 2])
        replicas = across[rank % 2]
        state = fgt.make_robust(model, spec, 1, replicas=replicas, mode=mode, momentum=0.1)
        cross_entropy(model(x), y).backward()
        with pytest.MonkeyPatch.context() as patch:
            if rank == 2:
                fails = Mock(side_effect=KeyError("of momentum"))
                patch.setattr(state.momentum, "replace", fails)
            words = "of momentum" if rank % 2 == 0 else f"rank {rank - 1} could not take part"
            with raises(KeyError if rank == 2 else ValueError, words):
                cross_entropy(model(x), y).backward()
        model.zero_grad()
        cross_entropy(model(x), y).backward()
        assert all(torch.isfinite(p.grad.to_local()).all() for p in model.parameters())


class Fails(nn.Module):
    """A model that one rank cannot compute, at some time."""

    def __init__(self, here: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layer, self.here, self.calls = nn.Linear(64, 10), here, 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        if self.here and self.calls > 12:
            raise KeyError("of the model")
        y: Tensor = self.layer(x.flatten(1))
        return y


@case(7)
def ranks_that_do_not_train_alike(rank: int, group: Any) -> None:
    odd, row, same = rank == 2, torch.full((1, 3), float(rank)), {"the step": 1}
    ranks = Ranks(7, "cpu")

    def gather(row: Tensor = row, same: Any = same) -> Any:
        return ranks.gather(lambda: ([row, row.int()], 2.0 * rank), same)

    def agree() -> None:
        (found, whole), numbers = gather()
        assert torch.equal(found, torch.arange(7.0)[:, None].expand(7, 3))
        assert torch.equal(whole, found.int()) and numbers == [2.0 * r for r in range(7)]
        assert ranks.share(lambda: b"some bytes") == b"some bytes"

    agree()
    others = {
        "the step": (ValueError, lambda: gather(same={"the step": 2})),
        "shapes and dtypes of what is gathered": (ValueError, lambda: gather(row.double())),
        "numbers in memory": (TypeError, lambda: gather(row.to("meta"))),
        "what is called": (ValueError, lambda: ranks.share(lambda: b"")),
        "of the work": (KeyError, lambda: ranks.gather(Mock(side_effect=KeyError("of the work")),
                                                       same)),
    }  # fmt: skip
    for words, (error, call) in others.items():
        told = "rank 0 does not agree" if error is ValueError else "rank 2 could not take part"
        with raises(error if odd else ValueError, words, "" if odd else told):
            call() if odd else gather()
        agree()
    with raises(ValueError, "workers must be the number of ranks, 7", "got 6"):
        Ranks(6 if odd else 7, "cpu")
    with raises(OSError if rank == 0 else ValueError, "no such folder"):
        ranks.share(Mock(side_effect=OSError("no such folder")))
    agree()
    data = Data(*(torch.rand(70, 64), torch.arange(70) % 10) * 2, 10)
    options: dict[str, Any] = {"workers": 7, "byzantine": 1, "rule": "median", "steps": 20}
    with raises(ValueError, "settings must be the same on every rank"):
        run("mlp", data, lr=0.1 if odd else 0.2, **options)
    with raises(KeyError if odd else ValueError, "of the model", "" if odd else "rank 2 could not"):
        run(Fails(odd), data, **options)
    ranks.peers.calls += odd
    for call in (gather, lambda: ranks.share(lambda: b"")):
        with raises(RuntimeError, "rank 2 is in its call", "the others are in call"):
            call()
    ranks.peers.calls -= odd
    agree()


# ------------------------------------------------------------------------------------ a dead rank


@case(7)
def a_rank_that_dies_under_fsdp_is_noticed(rank: int, group: Any) -> None:
    model = sharded(group)
    fgt.make_robust(model, "krum", 1)
    x, y = batch(rank, 0)
    cross_entropy(model(x), y).backward()
    with pytest.MonkeyPatch.context() as patch:
        if rank == 6:
            patch.setattr(Backward, "take", lambda *_: os.kill(os.getpid(), signal.SIGKILL))
        try:
            cross_entropy(model(x), y).backward()
        except RuntimeError as error:
            assert "no sign of rank 6)" in " ".join(getattr(error, "__notes__", ())), error
        else:
            raise AssertionError


@case(5)
def a_rank_that_dies_is_noticed(rank: int, group: Any) -> None:
    state = fgt.RobustState("krum", 1, group=group)
    model = trained(rank, group, state, range(2))
    report = state.report
    if rank == 4:
        os._exit(0)
    try:
        trained(rank, group, state, range(2, 4), model=model)
    except RuntimeError as error:
        assert "no sign of rank 4)" in " ".join(getattr(error, "__notes__", ())), error
    else:
        raise AssertionError
    assert state.report is report and report is not None and report.step == 1


class Broken(torch.autograd.Function):
    """What cannot be differentiated, if that is wanted."""

    @staticmethod
    def forward(context: Any, x: Tensor, broken: bool) -> Tensor:
        context.broken = broken
        return x.view_as(x)

    @staticmethod
    def backward(context: Any, *gradients: Tensor) -> Any:
        if context.broken:
            raise KeyError("of the backward pass")
        return gradients[0], None


@case(4)
def nobody_waits_longer_than_the_timeout(rank: int, group: Any) -> None:
    """One rank fails in the midst of a step and goes on, or stops calling."""
    SECONDS = 4.0
    for trouble in ("backward", "hook", "stops"):
        for way in ("sharded", "sockets") if trouble == "hook" else ("sharded",):
            other = another(group, SECONDS)
            mode = mode_of(way, other)
            net = network()
            state = fgt.RobustState("least_sum", 1, group=other, mode=mode, momentum=0.1)
            model = parallel(net, other, bucket_cap_mb=0.002)
            model.register_comm_hook(state, fgt.robust_hook)
            trained(rank, other, state, range(2), model=model)
            dist.barrier(group)
            began, errors, odd = perf_counter(), [], rank == 2
            for step in range(2, 5):
                if odd and trouble == "stops":
                    break
                x, y = batch(rank, step)
                try:
                    with pytest.MonkeyPatch.context() as patch:
                        if odd and trouble == "hook" and step == 2:
                            fail = Mock(side_effect=KeyError("of the hook"))
                            patch.setattr(state.rule, "measure", fail)
                        middle = Broken.apply if odd and trouble == "backward" else lambda x, _: x
                        y_ = net[4](net[3](middle(net[2](net[1](net[0](x))), step == 2)))
                        model.module.forward = lambda x, y_=y_: y_
                        cross_entropy(model(x), y).backward()
                except Exception as error:
                    errors.append(" ".join([str(error), *getattr(error, "__notes__", ())]))
            assert len(errors) == (0 if odd and trouble == "stops" else 3), errors
            assert perf_counter() - began < SECONDS + 8
            if not odd:
                left = "rank 2 left a call: KeyError: 'of the hook'" if trouble == "hook" else ""
                assert "broke off" in errors[0] and left in errors[0], errors
                assert "left an earlier call" in errors[1] and "new group" in errors[2], errors
            elif trouble == "hook":
                assert "of the hook" in errors[0] and "left an earlier call" in errors[1], errors
            dist.barrier(group)


@case(4)
def nobody_waits_longer_than_the_timeout_of_fsdp(rank: int, group: Any) -> None:
    """As above; all exchanges of FSDP itself are in the same group."""
    SECONDS = 4.0
    for trouble, scope in (("backward", "group"), ("rule", "global"), ("stops", "global")):
        other, odd = another(group, SECONDS), rank == 2
        model = sharded(other)
        state = fgt.make_robust(model, "least_sum", 1, scope=scope)
        x, y = batch(rank, 0)
        for _ in range(2):
            model.zero_grad()
            cross_entropy(model(x), y).backward()
        dist.barrier(group)
        began, errors = perf_counter(), []
        for step in range(3):
            if odd and trouble == "stops":
                break
            model.zero_grad()
            try:
                with pytest.MonkeyPatch.context() as patch:
                    if odd and trouble == "rule" and not step:
                        fail = Mock(side_effect=KeyError("of the rule"))
                        patch.setattr(state.rule, "measure", fail)
                    if odd and trouble == "backward" and not step:
                        patch.setattr(model[1], "forward", lambda x: Broken.apply(x, True))
                    cross_entropy(model(x), y).backward()
            except Exception as error:
                errors.append(" ".join([str(error), *getattr(error, "__notes__", ())]))
        assert perf_counter() - began < SECONDS + 8, errors
        assert len(errors) == (0 if odd and trouble == "stops" else 3), errors
        if trouble == "rule":
            left = "" if odd else "rank 2 left a call: KeyError: "
            assert left in errors[0] and "of the rule" in errors[0], errors
        dist.barrier(group)


def work(
    rank: int, folder: Path, cases: Mapping[str, Any], backend: str,
    around: Callable[[str], AbstractContextManager[Any]],
) -> None:  # fmt: skip
    torch.set_num_threads(1)
    dist.init_process_group(
        backend, init_method=f"file://{folder}/store", rank=rank, world_size=SIZE, timeout=TIMEOUT
    )
    groups = {size: dist.new_group(list(range(size)), timeout=TIMEOUT) for size in (4, 5, 7)}
    dist.barrier()  # some may have no case to run, and would be gone before the others connect
    store = dist.distributed_c10d._get_default_store()
    with (folder / f"{rank}.jsonl").open("w") as written:
        for name, (size, function) in cases.items():
            if size == SIZE:  # some ranks have waited for the cases of the others
                store.set(f"{name}/{rank}", "here")
                store.wait([f"{name}/{each}" for each in range(SIZE)], 12 * TIMEOUT)
            trouble, began = None, perf_counter()
            if rank < size:
                try:
                    with around(name):
                        function(rank, groups[size])
                except BaseException:
                    trouble = traceback.format_exc()
            written.write(json.dumps([name, trouble, perf_counter() - began]) + "\n")
            written.flush()
            if trouble is not None:  # the others will not be understood, and need not wait for it
                for later in cases:
                    store.set(f"{later}/{rank}", "gone")
                break


def prepare() -> None:
    """Compile and import before the fork what all will need, without starting a thread."""
    import_module("torch._dynamo")  # which DDP imports: two seconds of each rank
    distance_rule(needs="2f + 1", paper="of your own")(least_sum)
    backend.FIXED_ROWS = 0  # the kernels for any n: fewer to compile, and the same bits
    fg.set_threads(1)
    for n in (4, 5, 7):  # each process would compile by itself what is not there yet
        for spec in [*specs(n), "nnm | median"]:
            fg.rule(spec, f_of(spec))(rows(n, 40))
    for dtype in (torch.float64, torch.float16, torch.bfloat16):
        for n in (4, 5):
            fg.rule("nnm | trimmed_mean", 1)(rows(n, 40, 0, dtype))
        for spec in ("median", "geometric_median"):
            fg.rule(spec, 1)(rows(5, 40, 0, dtype))
    fg.geometric_median(torch.cat([rows(4, 40), 1e14 * rows(1, 40)]), 1)
    fg.set_threads(None)


def outcomes_of(script: str, folder: Path, cases: Mapping[str, Any]) -> dict[str, list[Any]]:
    """Run the cases of a script; return for each what the ranks of its group wrote."""
    process = subprocess.Popen(
        [sys.executable, str(Path(__file__).parent / script), str(folder)],
        stderr=subprocess.PIPE, text=True, start_new_session=True,
    )  # fmt: skip
    try:
        _, errors = process.communicate(timeout=480)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        raise
    assert process.returncode == 0, errors
    found: dict[str, list[Any]] = {}
    for rank in range(SIZE):
        for line in (folder / f"{rank}.jsonl").read_text().splitlines():
            name, trouble, _ = json.loads(line)
            if rank < cases[name][0]:
                found.setdefault(name, []).append(trouble)
    return found


def require_passed(name: str, size: int, troubles: list[Any]) -> None:
    """Raise what one of the ranks of a case raised."""
    first = next((trouble for trouble in troubles if trouble), None)
    assert first is None, first
    died = "rank_that_dies" in name
    assert len(troubles) == size - died, "an earlier case failed on some rank"


def main(
    cases: Mapping[str, Any], backend: str = "gloo",
    around: Callable[[str], AbstractContextManager[Any]] = nullcontext,
) -> int:  # fmt: skip
    """Run cases, each in the context of its name, in processes that begin with nothing else."""
    folder, *chosen = sys.argv[1:]
    cases = {
        name: found for name, found in cases.items()
        if not chosen or found[1].__name__ in chosen
    }  # fmt: skip
    prepare()
    children = []
    for rank in range(SIZE):  # before torch has started any thread
        child = os.fork()
        if child == 0:
            try:
                work(rank, Path(folder), cases, backend, around)
            except BaseException:
                traceback.print_exc()
            finally:
                sys.stdout.flush()
                os._exit(0)
        children.append(child)
    for child in children:
        os.waitpid(child, 0)
    return 0


if __name__ == "__main__":
    sys.exit(main(CASES))
