"""The cases of rank_cases.py over the backend "strict", and more: python strict_cases.py FOLDER"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, suppress
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
from fastgar.torch import exchange
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
    "what_is_known_of_a_group_goes_with_it": "destroys a group, whose name torch asks for after",
    "compiled_models": "torch cannot compile what calls a group that is written in Python",
}
# They pass too, but take two thirds of the time; what they do is done in a shorter one as well.
TOO_LONG = {
    "every_rule[4]", "every_rule[7]", "the_hook_equals_the_rule_on_stacked_gradients[5]",
    "one_bad_rank_does_not_move_the_model[4]", "one_bad_rank_does_not_move_the_model[5]",
    "trajectories_equal_a_simulation[5]", "checkpoints_go_on_where_they_were_made[5]",
    "fsdp_equals_the_rule_on_stacked_gradients[5]", "fsdp_with_momentum_equals_a_simulation[5]",
    "ranks_that_differ_in_a_parameter_group[4]", "too_many_faults_are_the_same_error_everywhere[5]",
}  # fmt: skip
AGAIN = {
    name: known for name, known in rank_cases.CASES.items()
    if known[1].__name__ not in LEFT_OUT
}  # fmt: skip
CASES = {name: known for name, known in AGAIN.items() if name not in TOO_LONG}


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

        works = [
            send(second) if rank == 2 else  # fault: late
            send(first)  # fault: in time
        ]  # fmt: skip
        peers.wait(works)


@case
def work_that_nobody_waits_for(rank: int, group: Any) -> None:
    ones = torch.ones(4, device=torch.device("cpu"))
    with found("there is no wait for all_reduce, launched at", fault("no wait")):
        dist.all_reduce(ones, group=group, async_op=True)  # fault: no wait


@case
def what_is_caught_is_told_at_the_end(rank: int, group: Any) -> None:
    with found(fault("caught")), suppress(AssertionError):
        dist.all_reduce(torch.ones(4), group=group)  # fault: caught


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
        total = (moved + there).sum()
        assert total.item() == 8  # fault: another
        assert moved.data_ptr() != here.data_ptr()
    cpu, item = fault("no more than a wait"), fault("another")
    assert seen.waits == {f"{cpu} cpu": 1, f"{item} item": 1}, seen.waits
    with raises(AssertionError, "2 waits, and at most 1 may be", cpu, item):
        seen.within(waits=1)


@case
def hooks_of_torch_run_as_they_do_over_gloo(rank: int, group: Any) -> None:
    """DDP's own all-reduce, and that of a hook, by its future."""

    def average(state, bucket):  # type: ignore[no-untyped-def]  # DDP reads annotations
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
        assert seen.calls["all_reduce"] >= 1


# --------------------------------------------------------------------------------------- budgets


def ddp(spec: str, f: int = 1, **options: Any) -> Callable[[int, Any], Callable[[int], None]]:
    def make(rank: int, group: Any) -> Callable[[int], None]:
        state = fgt.RobustState(spec, f, group=group, **options)
        model = parallel(network(), group, bucket_cap_mb=0.002)
        model.register_comm_hook(state, fgt.robust_hook)
        return lambda step: trained(rank, group, state, [step], model=model)

    return make


def fsdp(spec: str, f: int = 1, **options: Any) -> Callable[[int, Any], Callable[[int], None]]:
    def make(rank: int, group: Any) -> Callable[[int], None]:
        model = sharded(group)
        fgt.make_robust(model, spec, f, **options)
        return backward_of(model, rank)

    return make


def replicas(spec: str, f: int) -> Callable[[int, Any], Callable[[int], None]]:
    """Two replicas of two shards each: ranks 0 1, 2 3."""

    def make(rank: int, group: Any) -> Callable[[int], None]:
        beside = [2 * (rank // 2), 2 * (rank // 2) + 1], [rank % 2, 2 + rank % 2]
        pair, across = (dist.new_group(each, use_local_synchronization=True) for each in beside)
        model = sharded(pair)
        fgt.make_robust(model, spec, f, replicas=across)
        return backward_of(model, rank)

    return make


def backward_of(model: Any, rank: int) -> Callable[[int], None]:
    def step(number: int) -> None:
        model.zero_grad()
        x, y = batch(rank, number)
        cross_entropy(model(x), y).backward()

    return step


def reduce(spec: str, **options: Any) -> Callable[[int, Any], Callable[[int], None]]:
    def make(rank: int, group: Any) -> Callable[[int], None]:
        own = rows(4, 1000)[rank]
        return lambda step: fgt.all_reduce(own, spec, 1, group=group, **options)

    return make


# Of one step, on the rank that has most: how often the host waits for the device, how many
# collectives there are, and how many bytes go into them. The gradient has 1887 numbers, in
# two buckets or parameter groups: 7548 bytes.
BUDGETS: dict[str, tuple[Callable[[int, Any], Callable[[int], None]], tuple[int, int, int]]] = {
    "hook, trimmed_mean": (ddp("trimmed_mean"), (10, 7, 14468)),
    "hook, trimmed_mean, momentum": (ddp("trimmed_mean", momentum=0.9), (12, 7, 14468)),
    "hook, krum": (ddp("krum", f=0), (6, 7, 14692)),
    "hook, nnm | trimmed_mean": (ddp("nnm | trimmed_mean"), (10, 8, 14852)),
    "hook, trimmed_mean, replicated": (ddp("trimmed_mean", mode="replicated"), (14, 14, 23284)),
    "fsdp, trimmed_mean, group": (fsdp("trimmed_mean"), (12, 6, 9056)),
    "fsdp, nnm | trimmed_mean, group": (fsdp("nnm | trimmed_mean"), (14, 8, 9824)),
    "fsdp, nnm | trimmed_mean, global": (fsdp("nnm | trimmed_mean", scope="global"), (12, 7, 9472)),
    "fsdp, nnm | trimmed_mean, replicas": (replicas("nnm | trimmed_mean", 0), (22, 14, 6712)),
    "all_reduce, median": (reduce("median"), (3, 3, 5320)),
    "all_reduce, nnm | trimmed_mean": (reduce("nnm | trimmed_mean"), (4, 4, 5832)),
}


@case
def budgets(rank: int, group: Any) -> None:
    """Each path takes what is stated: less is to be stated too."""
    wrong = []
    for name, (make, stated) in BUDGETS.items():
        step = make(rank, group)
        for number in range(2):  # buckets are cut anew after the first
            step(number)
        with Watch(fgt) as seen:
            step(2)
        numbers = [sum(each.values()) for each in (seen.waits, seen.calls, seen.bytes)]
        everyone: list[Any] = [None] * 4
        dist.all_gather_object(everyone, numbers, group=group)
        most = tuple(map(max, zip(*everyone, strict=True)))
        if most != stated:
            lines = ", ".join(f"{count} {what}" for what, count in seen.waits.most_common())
            wrong.append(f"{name}: {most}, and {stated} are stated; {dict(seen.calls)}; {lines}")
    assert not wrong, "\n".join(wrong)


def watched(name: str) -> Any:
    """Return what looks at a case; those of this file do it by themselves."""
    return Watch(fgt, ranks) if name in AGAIN else nullcontext()


if __name__ == "__main__":
    rank_cases.WAYS = ("sockets", "replicated")  # type: ignore[assignment]
    sys.exit(rank_cases.main(AGAIN | CASES if sys.argv[2:] else CASES, "strict", watched))
