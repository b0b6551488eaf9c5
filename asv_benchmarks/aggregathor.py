"""A step of AggregaThor against plain averaging, on the same network of real processes.

    python -m asv_benchmarks.aggregathor        7,510 parameters
    (--hidden N for 75 N + 10; --turns N)

One server and seven workers, each a process with its links and its disk, on this machine: the mean
(vanilla), Multi-Krum (aggregathor, weak resilience) and Bulyan (strong), both with f = 1. Nobody
lies, and each waits for all seven. In every turn each way runs one cluster after the other in the
same processes; its time is that of a step, from one quorum of gradients at the server to the next,
and its CPU seconds are those of all processes for its run. Medians of all steps of all turns.
"""

import argparse
import json
from itertools import pairwise
from pathlib import Path
from statistics import median
from time import perf_counter, process_time

from .network import in_processes
from .profiles import FULL

WORKERS, F = 7, 1
NAMES = ("ps0", *(f"w{i}" for i in range(WORKERS)))
TURNS = 21 if FULL else 11
STEPS, WARM = 16, 4  # of a run; those at its start do not count
HIDDEN = 100
WAYS = {
    "vanilla": {"name": "vanilla"},
    "weak": {"name": "aggregathor", "resilience": "weak"},
    "strong": {"name": "aggregathor", "resilience": "strong"},
}


class AggregaThor:
    """How many times longer a step takes than with plain averaging."""

    timeout = 600

    def setup_cache(self):
        return measured(HIDDEN)

    def track_weak_ratio(self, found):
        return found["weak"]["wall"] / found["vanilla"]["wall"]

    def track_strong_ratio(self, found):
        return found["strong"]["wall"] / found["vanilla"]["wall"]

    track_weak_ratio.unit = track_strong_ratio.unit = "x"


def measured(hidden, count=TURNS):
    """Run the processes; return wall and CPU seconds of a step of each way."""
    options = "--hidden", str(hidden), "--turns", str(count)
    return in_processes("aggregathor", len(NAMES), *options)


# ----------------------------------------------------------------------------- what a process does


class Watcher:
    """Takes the time of every quorum of gradients."""

    def __init__(self):
        self.at = []

    def collected(self, node, want, received, seconds):
        if received.kind == "gradient":
            self.at.append(perf_counter())

    def posted(self, sender, peer, kind, step, vector):
        pass

    def late(self, node, want, lacking):
        pass

    def ended(self, node):
        pass


def cluster_of(way, nodes=None):
    """Return the cluster of a way."""
    from fastgar import protocols

    training = {"model": "mlp", "batch": 32, "steps": STEPS, "lr": 0.01, "evaluate_every": STEPS}
    return protocols.cluster_of(
        {
            "protocol": WAYS[way] | {"linger": 5.0, "deadline_floor": 5.0},
            "training": training,
            "servers": {"count": 1},
            "workers": {"count": WORKERS, "f": 0 if way == "vanilla" else F},
            "nodes": nodes or {},
        }
    )


def learning_of(hidden):
    """Return the digits, and a network of one hidden layer."""
    from torch import manual_seed, nn

    from fastgar.protocols.learning import Learning

    manual_seed(0)
    network = nn.Sequential(nn.Flatten(), nn.Linear(64, hidden), nn.ReLU(), nn.Linear(hidden, 10))
    return Learning(cluster_of("vanilla").training, network)


def turns(rank, folder, hidden, count):
    """Return the middle wall and CPU seconds of a step of each way."""
    import socket

    import torch
    import torch.distributed as dist

    from fastgar.network import make_key
    from fastgar.protocols.process import NodeProcess
    from fastgar.protocols.storage import Disk

    torch.set_num_threads(1)
    learning = learning_of(hidden)  # alone: among ranks it would be one of them
    store = dist.FileStore(f"{folder}/store", len(NAMES))
    dist.init_process_group("gloo", store=store, rank=rank, world_size=len(NAMES))
    name = NAMES[rank]
    key = Path(folder) / f"{name}.pem"
    pin = make_key(key, name)
    own = socket.create_server(("127.0.0.1", 0))
    address = f"127.0.0.1:{own.getsockname()[1]}"
    store.set(name, json.dumps({"address": address, "fingerprint": pin}))
    nodes = {each: json.loads(store.get(each)) for each in NAMES}
    clusters = {way: cluster_of(way, nodes) for way in WAYS}
    for each in clusters.values():
        each.rule([learning.initial] * WORKERS, 0)  # compiles
    found = {way: {"wall": [], "cpu": []} for way in WAYS}
    for turn in range(count + 1):
        for way, cluster in clusters.items():
            watcher = Watcher()
            disk = Disk(Path(folder) / f"{name} {way} {turn}", way)
            dist.barrier()
            cpu = process_time()
            NodeProcess(cluster, name, key, learning, watcher, disk, listen=own.dup()).run()
            cpu = torch.tensor((process_time() - cpu) / STEPS)
            dist.all_reduce(cpu)
            if turn:  # in the first memory is touched for the first time
                found[way]["wall"] += [b - a for a, b in pairwise(watcher.at[WARM:])] or [0.0]
                found[way]["cpu"].append(float(cpu))
    dist.barrier()
    dist.destroy_process_group()
    return {way: {key: median(each) for key, each in of.items()} for way, of in found.items()}


def main():
    parser = argparse.ArgumentParser(description="Time AggregaThor against plain averaging.")
    parser.add_argument("--rank", type=int)
    parser.add_argument("--folder")
    parser.add_argument("--hidden", type=int, default=HIDDEN)
    parser.add_argument("--turns", type=int, default=TURNS)
    options = parser.parse_args()
    if options.rank is not None:
        found = turns(options.rank, options.folder, options.hidden, options.turns)
        if options.rank == 0:
            print(json.dumps(found))
        return
    found = measured(options.hidden, options.turns)
    for key in ("wall", "cpu"):
        plain = found["vanilla"][key]
        for way in WAYS:
            ratio = found[way][key] / plain
            print(f"{key:5} {way:8} {1000 * found[way][key]:7.2f} ms a step: {ratio:.3f} times")


if __name__ == "__main__":
    main()
