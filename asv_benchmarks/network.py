"""One server and four peers over links of TLS, against gloo's broadcast and gather, in processes.

    python -m asv_benchmarks.network            16 MB to each of four peers and back: all ratios

Links carry float32, and bfloat16 in half the bytes, with what it takes to round and to widen again.
Beside them go gloo's isend and irecv, which wait for nobody else, as links do.
Every turn takes each way once, one after the other, between barriers. Wall is the server's time
from the first byte to the last; CPU is that of all processes together. Medians of many turns count.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import threading
from pathlib import Path
from statistics import median
from time import perf_counter, process_time

from .profiles import FULL

RANKS, COLUMNS = 5, 4_000_000
TURNS = 45 if FULL else 15
CODES = {"float32": (0, 1), "bfloat16": (2, 3)}  # of models and of gradients
WAYS = {"gloo": None, "links": "float32", "halves": "bfloat16", "isend": None}  # of travel


def in_processes(module, count, *options):
    """Run a module as so many ranks; return what the first one prints."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", f"asv_benchmarks.{module}", "--folder", folder, *options]
        ranks = [
            subprocess.Popen(
                [*command, "--rank", str(rank)], cwd=Path(__file__).parent.parent,
                env=os.environ | {"OMP_NUM_THREADS": "1"},
                stdout=subprocess.PIPE if rank == 0 else None, text=True,
            )
            for rank in range(count)
        ]  # fmt: skip
        found, _ = ranks[0].communicate()
        for process in ranks:
            if process.wait() != 0:
                raise RuntimeError("a rank has failed")
        return json.loads(found)


def measured(*options):
    """Return wall and CPU seconds of each way."""
    return in_processes("network", RANKS, *options)


class Network:
    """How many times longer a round over links takes than over gloo, and how much more CPU."""

    timeout = 300

    def setup_cache(self):
        return measured()

    def track_wall_ratio(self, seconds):
        return seconds["links"]["wall"] / seconds["gloo"]["wall"]

    def track_cpu_ratio(self, seconds):
        return seconds["links"]["cpu"] / seconds["gloo"]["cpu"]

    def track_halves_wall_ratio(self, seconds):
        return seconds["halves"]["wall"] / seconds["links"]["wall"]

    def track_halves_cpu_ratio(self, seconds):
        return seconds["halves"]["cpu"] / seconds["links"]["cpu"]

    def track_isend_wall_ratio(self, seconds):
        return seconds["isend"]["wall"] / seconds["gloo"]["wall"]

    def track_cpu_milliseconds(self, seconds):
        return 1000 * seconds["links"]["cpu"]

    track_wall_ratio.unit = track_cpu_ratio.unit = "x"
    track_halves_wall_ratio.unit = track_halves_cpu_ratio.unit = track_isend_wall_ratio.unit = "x"
    track_cpu_milliseconds.unit = "ms"


# ----------------------------------------------------------------------------- what a rank does


class Inbox:
    """One vector for each peer, which the messages of all steps fill in turn."""

    def __init__(self, peers, columns):
        import numpy as np

        self.vectors = {peer: np.empty(columns, np.float32) for peer in peers}
        self.newest = {}
        self.cond = threading.Condition()

    def slot(self, peer, kind, step):
        from fastgar.protocols.encoding import landing

        vector = self.vectors[peer]
        return memoryview((landing(vector) if kind in CODES["bfloat16"] else vector).data)

    def arrived(self, peer, kind, step, digest):
        from fastgar.protocols.encoding import land

        if kind in CODES["bfloat16"]:
            land(self.vectors[peer])
        with self.cond:
            self.newest[peer] = step
            self.cond.notify_all()

    def lost(self, peer, kind, step):
        raise RuntimeError("a connection broke")

    def hello(self, peer, heard):
        pass

    def heard(self, peer):
        return {}

    def wait(self, step):
        """Wait until the message of this step is there from every peer."""
        with self.cond:
            self.cond.wait_for(lambda: [*self.newest.values()].count(step) == len(self.vectors))


def links_of(rank, store, folder, columns):
    """Return the links of a rank, connected, and its inbox."""
    import socket

    from fastgar.dtypes import ITEMSIZE
    from fastgar.network import Address, Kind, Links, make_key

    pin = make_key(Path(folder) / f"{rank}.pem", f"node {rank}")
    own = socket.create_server(("127.0.0.1", 0))
    store.set(f"node {rank}", json.dumps(["127.0.0.1", own.getsockname()[1], pin]))
    others = range(1, RANKS) if rank == 0 else [0]
    peers = {f"node {each}": Address(*json.loads(store.get(f"node {each}"))) for each in others}
    inbox = Inbox(peers, columns)
    links = Links(
        f"node {rank}", peers, Path(folder) / f"{rank}.pem", identity=b"benchmark", about={},
        kinds={code: Kind(ITEMSIZE[dtype] * columns, dtype)
               for dtype, codes in CODES.items() for code in codes},
        inbox=inbox, listen=own,
    )  # fmt: skip
    links.start()
    return links, inbox


def rounds(rank, folder, columns):
    """Return median wall and CPU seconds of a round over gloo and over links."""
    import torch
    import torch.distributed as dist

    from fastgar.protocols.encoding import BITS, encoded
    from fastgar.protocols.pool import Pool

    torch.set_num_threads(1)
    store = dist.FileStore(f"{folder}/store", RANKS)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=RANKS)
    links, inbox = links_of(rank, store, folder, columns)
    model, gradient = torch.randn(columns), torch.randn(columns)
    received, pool = torch.empty(columns), Pool(columns, BITS)
    gathered = [torch.empty(columns) for _ in range(RANKS)] if rank == 0 else None

    def over_gloo(step, dtype):
        dist.broadcast(model, 0)
        dist.gather(gradient, gathered, 0)

    def by_isend(step, dtype):
        if rank == 0:
            works = [dist.isend(model, peer) for peer in range(1, RANKS)]
            works += [dist.irecv(gathered[peer], peer) for peer in range(1, RANKS)]
        else:
            dist.recv(received, 0)
            works = [dist.isend(gradient, 0)]
        for work in works:
            work.wait()

    def over_links(step, dtype):
        to, back = CODES[dtype]
        if rank == 0:
            payload = encoded(model.numpy(), dtype, pool).data
            for peer in links.peers:
                links.post(peer, to, step, payload)
            inbox.wait(step)
        else:
            inbox.wait(step)
            links.post("node 0", back, step, encoded(gradient.numpy(), dtype, pool).data)

    ways = {"gloo": over_gloo, "isend": by_isend}
    found = {name: {"wall": [], "cpu": []} for name in WAYS}
    for step in range(TURNS + 2):
        for number, (name, dtype) in enumerate(WAYS.items()):
            call = ways.get(name, over_links)
            dist.barrier()
            cpu, wall = process_time(), perf_counter()
            call(len(WAYS) * step + number, dtype)
            wall = perf_counter() - wall
            dist.barrier()
            cpu = torch.tensor(process_time() - cpu)
            dist.all_reduce(cpu)
            if step >= 2:  # in the first ones memory is touched for the first time
                found[name]["wall"].append(wall)
                found[name]["cpu"].append(float(cpu))
    dist.barrier()
    links.close()
    dist.destroy_process_group()
    return {name: {key: median(each) for key, each in of.items()} for name, of in found.items()}


def main():
    parser = argparse.ArgumentParser(description="Time links against gloo.")
    parser.add_argument("--rank", type=int)
    parser.add_argument("--folder")
    parser.add_argument("--columns", type=int, default=COLUMNS)
    options = parser.parse_args()
    if options.rank is not None:
        found = rounds(options.rank, options.folder, options.columns)
        if options.rank == 0:
            print(json.dumps(found))
        return
    seconds = measured("--columns", str(options.columns))
    for key in ("wall", "cpu"):
        gloo = seconds["gloo"][key]
        for name in WAYS:
            print(f"{key:5} {name:7} {seconds[name][key]:.3f} s: {seconds[name][key] / gloo:.2f} x")


if __name__ == "__main__":
    main()
