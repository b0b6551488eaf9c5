"""Robust collectives against torch's own, with gloo ranks on this machine.

    python -m asv_benchmarks.collectives            4 ranks, 4,000,000 numbers: all ratios
    python -m asv_benchmarks.collectives --step     a training step of DDP, 25 million parameters

Every turn takes each collective once, one after the other, between barriers; the time of a turn is
that of the slowest rank, and medians of many turns count.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import median
from time import perf_counter

from .profiles import FULL

RANKS, COLUMNS = 4, 4_000_000
TURNS = 25 if FULL else 9


def measured(*options):
    """Run the ranks in processes of their own; return what rank 0 found."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "asv_benchmarks.collectives", "--store", f"{folder}/store"]
        cores = len(os.sched_getaffinity(0))
        threads = {"OMP_NUM_THREADS": str(max(1, cores // RANKS))}  # as torchrun would
        ranks = [
            subprocess.Popen(
                [*command, "--rank", str(rank), *options],
                cwd=Path(__file__).parent.parent, env=os.environ | threads,
                stdout=subprocess.PIPE if rank == 0 else None, text=True,
            )
            for rank in range(RANKS)
        ]  # fmt: skip
        found, _ = ranks[0].communicate()
        for process in ranks:
            if process.wait() != 0:
                raise RuntimeError("a rank has failed")
        return json.loads(found)


class Collectives:
    """Milliseconds, and how many times longer than `dist.all_reduce` of the same tensor."""

    params = ["median", "krum"]
    param_names = ["rule"]
    timeout = 300

    def setup_cache(self):
        return measured()

    def track_milliseconds(self, times, rule):
        return 1000 * times[rule]

    def track_all_reduce_milliseconds(self, times, rule):
        return 1000 * times["all_reduce"]

    def track_ratio(self, times, rule):
        return times[rule] / times["all_reduce"]

    track_milliseconds.unit = track_all_reduce_milliseconds.unit = "ms"
    track_ratio.unit = "x"


class TrainingStep:
    """How many times longer a step of DDP takes with `robust_hook`, at 25 million parameters."""

    params = ["median", "krum"]
    param_names = ["rule"]
    timeout = 600

    def setup_cache(self):
        return measured("--step")

    def track_ratio(self, times, rule):
        return times[rule] / times["averaging"]

    track_ratio.unit = "x"


# ----------------------------------------------------------------------------- what a rank does


def slowest(calls, turns):
    """Return the median over turns of the slowest rank's time, for each call by turns."""
    import torch
    import torch.distributed as dist

    times = {name: [] for name in calls}
    for turn in range(turns + 2):
        for name, call in calls.items():
            dist.barrier()
            began = perf_counter()
            call()
            taken = torch.tensor(perf_counter() - began)
            dist.all_reduce(taken, dist.ReduceOp.MAX)
            if turn >= 2:  # the first ones compile, and connect
                times[name].append(float(taken))
    return {name: median(each) for name, each in times.items()}


def collectives(rank, columns):
    """Return the times of torch's all_reduce and of ours, of the same tensor."""
    import torch
    import torch.distributed as dist

    import fastgar.torch as fgt
    from fastgar.torch.group import peers_of

    own = torch.randn(columns, generator=torch.Generator().manual_seed(rank))
    plain = torch.zeros(columns)  # a sum in place: other numbers would grow to infinity
    out = torch.empty(columns)

    def call(rule, f, **options):
        return lambda: fgt.all_reduce(own, rule, f, **options)

    # All honest, so that Krum has a close race; f = 0, which is all that four ranks allow it.
    times = slowest(
        {
            "all_reduce": lambda: dist.all_reduce(plain),
            "median": call("median", 1, out=out),
            "krum": call("krum", 0, out=out),
            "nnm | trimmed_mean": call("nnm | trimmed_mean", 1, out=out),
            "median, new memory": call("median", 1),
            "krum, new memory": call("krum", 0),
        },
        TURNS,
    )
    peers_of(None).on_one_machine = False  # as between machines
    return times | slowest(
        {
            "all_reduce (2)": lambda: dist.all_reduce(plain),
            "median, sockets": call("median", 1, out=out),
            "krum, sockets": call("krum", 0, out=out),
            "median, replicated": call("median", 1, out=out, mode="replicated"),
        },
        TURNS,
    )


def training_step(rank, columns):
    """Return the times of a DDP step by averaging and by rules."""
    import torch
    from torch.nn.parallel import DistributedDataParallel

    import fastgar.torch as fgt

    width = 2232  # five square layers of it are 25 million parameters
    x = torch.randn(16, width)

    def step(rule, f):
        torch.manual_seed(0)
        layers = [torch.nn.Linear(width, width) for _ in range(5)]
        model = DistributedDataParallel(torch.nn.Sequential(*layers))
        if rule is not None:
            model.register_comm_hook(fgt.RobustState(rule, f), fgt.robust_hook)

        def call():
            model.zero_grad()
            model(x).square().mean().backward()

        return call

    return slowest(
        {"averaging": step(None, None), "median": step("median", 1), "krum": step("krum", 0)},
        TURNS,
    )


def main():
    parser = argparse.ArgumentParser(description="Time robust collectives.")
    parser.add_argument("--rank", type=int)
    parser.add_argument("--store")
    parser.add_argument("--columns", type=int, default=COLUMNS)
    parser.add_argument("--step", action="store_true")
    options = parser.parse_args()
    work = training_step if options.step else collectives
    if options.rank is None:
        times = measured("--columns", str(options.columns), *["--step"][: options.step])
        for name, seconds in times.items():
            if name.startswith(("all_reduce", "averaging")):
                first = name
            print(f"{name:20} {1000 * seconds:8.1f} ms {seconds / times[first]:6.2f}")
        return
    import torch
    import torch.distributed as dist

    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    dist.init_process_group(
        "gloo", init_method=f"file://{options.store}", rank=options.rank, world_size=RANKS
    )
    found = work(options.rank, options.columns)
    if options.rank == 0:
        print(json.dumps(found))
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
