"""The cases of rank_cases.py over the backend "strict", and more: python strict_cases.py FOLDER"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from datetime import timedelta
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import rank_cases
import torch
import torch.distributed as dist
from rank_cases import batch, cross_entropy, network, parallel, raises, rows, sharded, trained
from torch import Tensor

import fastgar.torch as fgt
from fastgar.testing import Violation, Watch
from fastgar.torch import exchange, hook
from fastgar.torch.aggregation import Aggregation
from fastgar.torch.exchange import Sharded
from fastgar.torch.group import Peers, peers_of
from fastgar.train import ranks

LEFT_OUT = {
    "traffic_does_not_grow_with_ranks": "counts what gloo writes to its sockets",
    "nobody_overwrites_what_a_slow_rank_reads": "is of shared memory",
    "memory_in_common_is_given_back_or_done_without": "is of shared memory",
    "nobody_waits_longer_than_the_timeout": "is of what gloo does at its timeout",
    "nobody_waits_longer_than_the_timeout_of_fsdp": "is of what gloo does at its timeout",
    "a_rank_that_dies_is_noticed": "is of how gloo notices that a process ends",
    "a_rank_that_dies_under_fsdp_is_noticed": "is of how gloo notices that a process ends",
    "compiled_models": "torch cannot compile what calls a group that is written in Python",
}
TOO_LONG = {  # 60 of 105 seconds; they pass
    "every_rule[4]", "every_rule[7]", "the_hook_equals_the_rule_on_stacked_gradients[5]",
    "one_bad_rank_does_not_move_the_model[4]", "one_bad_rank_does_not_move_the_model[5]",
    "trajectories_equal_a_simulation[5]", "fsdp_equals_the_rule_on_stacked_gradients[5]",
}  # fmt: skip
AGAIN = {
    name: found for name, found in rank_cases.CASES.items()
    if found[1].__name__ not in LEFT_OUT
}  # fmt: skip
CASES: dict[str, Any] = {}


def case(function: Callable[[int, Any], None]) -> Callable[[int, Any], None]:
    """Run the function in a group of 4 ranks."""
    CASES[f"{function.__name__}[4]"] = (4, function)
    return function


def another(group: Any) -> Any:
    """Return a new group of the same ranks, which may be left broken."""
    return dist.new_group([0, 1, 2, 3], timedelta(seconds=20), use_local_synchronization=True)


def device_rows(n: int, d: int) -> Tensor:
    return rows(n, d).to(torch.device("cpu"))  # of a file that is watched


# ------------------------------------------------------------------------------- planted faults


def line_of(file: ModuleType | str, words: str) -> str:
    """Return the line of a file that holds these words, as violations name it."""
    path = Path(file if isinstance(file, str) else str(file.__file__))
    (line,) = [k for k, text in enumerate(path.read_text().splitlines(), 1) if words in text]
    return f"{path.parent.name}/{path.name}:{line}"


@contextmanager
def found(*words: str) -> Iterator[None]:
    """Expect a violation, also where it was caught, which names the line with the fault."""
    with raises(Violation, *words), Watch(fgt, __file__):
        yield


def fault(name: str) -> str:
    return line_of(__file__, f"# fault: {name}")


def aggregate(group: Any, d: int = 1000, **options: Any) -> Tensor:
    own = torch.full((d,), 1.0, device=torch.device("cpu"))
    result: Tensor = fgt.all_reduce(own, "median", 1, group=group, **options)
    return result


@case
def a_header_on_the_host(rank: int, group: Any) -> None:
    def begin(self: Peers, values: Any, device: Any = None) -> Any:
        own = torch.from_numpy(np.concatenate([values.ravel()] * self.n))
        everyone, counts = torch.empty_like(own), [values.size] * self.n
        return self.all_to_all(everyone, own, counts, counts)  # fault: a header

    with pytest.MonkeyPatch.context() as patch, found(fault("a header"), "on the host"):
        group = another(group)
        patch.setattr(Peers, "begin_exchange", begin)
        aggregate(group)


@case
def rows_that_are_read_before_the_wait(rank: int, group: Any) -> None:
    place = line_of(exchange, "return table(self.rows)")
    with pytest.MonkeyPatch.context() as patch, found(place, "data_ptr reads", "all_to_all"):
        group = another(group)
        aggregate(group)
        wait = Peers.wait

        def waits(self: Peers, works: list[Any]) -> None:
            if len(works) != 1 or sys._getframe(1).f_code is not Aggregation.advance.__code__:
                wait(self, works)

        patch.setattr(Peers, "wait", waits)
        aggregate(group)


@case
def a_result_that_is_read_before_it_is_gathered(rank: int, group: Any) -> None:
    words = "sum reads", "all_gather, launched at", line_of(fgt.group, "dist.all_gather_single(")
    with pytest.MonkeyPatch.context() as patch, found(fault("a result"), *words):
        patch.setattr(Aggregation, "settle", lambda self: None)
        result = aggregate(another(group))
        result.sum()  # fault: a result


@case
def a_vector_that_changes_on_its_way(rank: int, group: Any) -> None:
    send = Sharded.send

    def changes(self: Any, vector: Tensor, *rest: Any) -> Any:
        slab = send(self, vector, *rest)
        vector[3:4].zero_()  # fault: a vector
        return slab

    def unseen(self: Any, vector: Tensor, *rest: Any) -> Any:
        slab = send(self, vector, *rest)
        vector.untyped_storage()[5] = 3
        return slab

    waited = line_of(fgt.group, "works.pop().wait()")
    for function, words in (
        (changes, (fault("a vector"), "zero_ changes what is on its way")),
        (unseen, (waited, "what is sent has changed before the wait for all_to_all")),
    ):
        with pytest.MonkeyPatch.context() as patch, found(*words):
            patch.setattr(Sharded, "send", function)
            aggregate(another(group))


@case
def sends_that_are_in_no_batch(rank: int, group: Any) -> None:
    def send(self: Peers, whole: Any, own: Tensor) -> Any:
        return [dist.isend(own.view(torch.uint8), (rank + 1) % 4, self.group)]  # fault: a send

    with pytest.MonkeyPatch.context() as patch, found(fault("a send"), "batch_isend_irecv"):
        patch.setattr(Peers, "send_to_all", send)
        aggregate(another(group), mode="replicated")


@case
def what_nccl_cannot_send(rank: int, group: Any) -> None:
    ones = torch.ones(4, 4, device=torch.device("cpu"))
    with found(fault("int16"), "torch.int16, which NCCL does not have"):
        dist.all_reduce(ones.short(), group=group)  # fault: int16
    with found(fault("transposed"), "not contiguous"):
        dist.all_reduce(ones[:, :2], group=group)  # fault: transposed
    with found(fault("by bits"), "it has SUM"):
        dist.all_reduce(ones.int(), dist.ReduceOp.BXOR, group=group)  # fault: by bits
    own, shifted = ones[rank], ones[(rank + 1) % 4]
    dist.all_gather_single(ones, own, group=group)
    with found(fault("shifted"), "not in the place of this rank"):
        dist.all_gather_single(ones, shifted, group=group)  # fault: shifted
    with found(fault("any rank"), "a receive from any rank"):
        dist.irecv(own, group=group)  # fault: any rank


@case
def one_rank_is_a_bucket_late(rank: int, group: Any) -> None:
    """It begins with the second, and all ranks hear of it, by both lines."""
    place, late = fault("in time"), fault("late")
    with found(place, late, "all_to_all of 24000 bytes", "NCCL would hang"):
        peers = peers_of(another(group))
        first, second = (device_rows(4, d).view(-1) for d in (70, 1500))
        sizes = {id(own): [len(own) // 4] * 4 for own in (first, second)}

        def send(own: Tensor) -> Any:
            out = torch.empty(len(own), device=own.device)
            return peers.all_to_all(out, own, sizes[id(own)], sizes[id(own)])

        if rank == 2:
            works = [send(second)]  # fault: late
        else:
            works = [send(first)]  # fault: in time
        peers.wait(works)


@case
def work_that_nobody_waits_for(rank: int, group: Any) -> None:
    ones = torch.ones(4, device=torch.device("cpu"))
    with found("there is no wait for all_reduce, launched at", fault("no wait")):
        dist.all_reduce(ones, group=group, async_op=True)  # fault: no wait


@case
def what_is_caught_is_told_at_the_end(rank: int, group: Any) -> None:
    with found(fault("caught")):
        try:
            dist.all_reduce(torch.ones(4), group=group)  # fault: caught
        except RuntimeError:
            pass


@case
def host_and_device_do_not_mix(rank: int, group: Any) -> None:
    there = torch.ones(4, device=torch.device("cpu"))
    with found(fault("sum"), "add of tensors on the host and on the device"):
        torch.ones(4) + there  # fault: sum
    with found(fault("numpy"), "numpy cannot read a tensor on the device"):
        there.numpy()  # fault: numpy
    with Watch(__file__) as seen:
        here = there.cpu()  # fault: no more than a wait
        assert here.numpy().sum() == 4 and float(here[0]) == 1 and here.tolist()
        moved = here.to(there.device, non_blocking=True)
        assert moved.data_ptr() != here.data_ptr() and (moved + there).sum().item() == 8  # fault: another
    cpu, item = fault("no more than a wait"), fault("another")
    assert seen.waits == {f"{cpu} cpu": 1, f"{item} item": 1}, seen.waits
    with raises(AssertionError, "2 waits, and at most 1 may be", cpu, item):
        seen.within(waits=1)


@case
def hooks_of_torch_run_as_they_do_over_gloo(rank: int, group: Any) -> None:
    """Its own all-reduce, by a future, and one with a wait."""

    def average(state: Any, bucket: Any) -> Any:
        done = dist.all_reduce(bucket.buffer(), group=state, async_op=True).get_future()
        return done.then(lambda it: it.value()[0] / 4)

    x, y = batch(rank, 0)
    every = [rank_cases.gradient(network(), r, 0) for r in range(4)]
    for own_hook in (None, average):
        model = parallel(network(), group, bucket_cap_mb=0.002)
        if own_hook is not None:
            model.register_comm_hook(group, own_hook)
        with Watch(__file__) as seen:
            cross_entropy(model(x), y).backward()
        for name, p in model.module.named_parameters():
            rank_cases.expect(p.grad, sum(g[name] for g in every) / 4)
        assert bool(seen.calls) == (own_hook is not None)


# --------------------------------------------------------------------------------------- budgets


def ddp(spec: str, **options: Any) -> Callable[[int, Any], Callable[[int], None]]:
    def make(rank: int, group: Any) -> Callable[[int], None]:
        state = fgt.RobustState(spec, 1, group=group, **options)
        model = parallel(network(), group, bucket_cap_mb=0.002)
        model.register_comm_hook(state, fgt.robust_hook)
        return lambda step: trained(rank, group, state, [step], model=model)

    return make


def fsdp(spec: str, **options: Any) -> Callable[[int, Any], Callable[[int], None]]:
    def make(rank: int, group: Any) -> Callable[[int], None]:
        if options.get("replicas"):
            pairs = [dist.new_group(pair) for pair in ([0, 1], [2, 3])]  # of all ranks
            group, options["replicas"] = pairs[rank // 2], group
        model = sharded(group)
        fgt.make_robust(model, spec, 1, **options)
        x, y = batch(rank, 0)

        def step(number: int) -> None:
            model.zero_grad()
            cross_entropy(model(x), y).backward()

        return step

    return make


def reduce(spec: str, **options: Any) -> Callable[[int, Any], Callable[[int], None]]:
    def make(rank: int, group: Any) -> Callable[[int], None]:
        own = rows(4, 1000)[rank]
        return lambda step: fgt.all_reduce(own, spec, 1, group=group, **options)

    return make


BUDGETS: dict[str, tuple[Callable[[int, Any], Callable[[int], None]], tuple[int, int, int]]] = {
    "hook, trimmed_mean": (ddp("trimmed_mean"), (0, 0, 0)),
    "hook, trimmed_mean with momentum": (ddp("trimmed_mean", momentum=0.9), (0, 0, 0)),
    "hook, krum": (ddp("multi_krum"), (0, 0, 0)),
    "hook, nnm | trimmed_mean": (ddp("nnm | trimmed_mean"), (0, 0, 0)),
    "hook, replicated": (ddp("trimmed_mean", mode="replicated"), (0, 0, 0)),
    "fsdp, group": (fsdp("nnm | trimmed_mean"), (0, 0, 0)),
    "fsdp, global": (fsdp("nnm | trimmed_mean", scope="global"), (0, 0, 0)),
    "all_reduce, median": (reduce("median"), (0, 0, 0)),
    "all_reduce, nnm | trimmed_mean": (reduce("nnm | trimmed_mean"), (0, 0, 0)),
}


@case
def budgets(rank: int, group: Any) -> None:
    for name, (make, stated) in BUDGETS.items():
        step = make(rank, group)
        for number in range(2):  # buckets are cut anew after the first
            step(number)
        with Watch(fgt) as seen:
            step(2)
        print(rank, name, seen.waits.total(), seen.calls, seen.bytes, seen.waits if rank==0 else '', flush=True)


def watched(name: str) -> Any:
    """Return what looks at a case; those of this file do it by themselves."""
    return nullcontext() if name in CASES else Watch(fgt, ranks)


if __name__ == "__main__":
    rank_cases.WAYS = ("sockets", "replicated")  # type: ignore[assignment]
    chosen = {name: found for name, found in AGAIN.items() if name not in TOO_LONG or sys.argv[2:]}
    sys.exit(rank_cases.main(chosen | CASES, "strict", watched))
