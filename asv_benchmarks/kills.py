"""Nodes of clusters that are killed or told to end at any moment, and started again.

    python -m asv_benchmarks.kills                       until 1000 kills and 200 ends are counted
    python -m asv_benchmarks.kills --seconds 600 --out kills.jsonl

A cluster in which everybody is waited for must end with the bytes that one process computes without
any of it; one in which servers sign must have nobody convicted, as who said two things would be.
What a node keeps must be whole whenever it is killed, and never of an earlier step than before. One
that is told to end (SIGTERM, SIGINT) must say so with its status, and leave no traceback. Each
cluster is a line of JSON in the file as soon as it is over, and counts the next time, too.
"""

import argparse
import json
import random
import signal
import sys
import tempfile
import time
from pathlib import Path

from .faults import from_tests

PATIENCE = 300.0  # seconds of a cluster that nothing is done to any more
EXITS = 1 / 6  # of what is done, this share is not kill -9
PAUSE = 0.8  # seconds between two of them, at most
KINDS = {
    "vanilla": {
        "protocol": {"name": "vanilla"}, "servers": {"count": 1}, "workers": {"count": 2},
    },
    "rbtm": {
        "protocol": {"agreement": "rbtm", "gather_every": 2},
        "servers": {"count": 5, "f": 1}, "workers": {"count": 4, "f": 1},
    },
}  # fmt: skip


class Cluster:
    """The nodes of one cluster, and what becomes of them."""

    def __init__(self, folder, kind, seed, steps, forks):
        from fastgar.protocols.file import read_cluster

        by_hand, keys = from_tests("by_hand", "start", "keys")
        training = {"model": "logistic", "steps": steps, "evaluate_every": 50, "seed": seed}
        self.file = keys(folder, {**KINDS[kind], "training": training})
        self.kind, self.cluster, self.folder = kind, read_cluster(self.file), folder
        self.run = lambda name: by_hand(forks, self.file, name)
        self.nodes = {name: self.run(name) for name in self.cluster.names}
        self.steps = dict.fromkeys(self.nodes, -1)

    def stop(self, name, number):
        """End a node, and start it again; raise if it did not end as it should."""
        node = self.nodes[name]
        node.send_signal(number)
        code = node.wait(PATIENCE)
        if code == 0:  # it was done
            return False
        ending = (128 + number, -number)  # the latter before it has begun to listen to signals
        if code not in ending[number == signal.SIGKILL :]:
            raise AssertionError(f"{name} ended with {code} after signal {number}")
        self.check(name)
        node.stdout.close(), node.stdin.close()
        self.nodes[name] = self.run(name)
        return True

    def check(self, name):
        """Raise if what a node keeps is damaged or of an earlier step than it was."""
        from fastgar.protocols.file import hash_of
        from fastgar.protocols.storage import Disk

        kept = Disk(self.folder / name / "state", f"{name} {hash_of(self.cluster).hex()}").read()
        at = -1 if kept is None else kept.step
        if at < self.steps[name]:
            raise AssertionError(f"{name} had step {self.steps[name]}, and has {at}")
        self.steps[name] = at

    def finish(self):
        """Wait for all, and return the lowest accuracy; raise if they are not as they should be."""
        import numpy as np

        from fastgar.protocols.learning import Learning

        codes = {name: node.wait(PATIENCE) for name, node in self.nodes.items()}
        if any(codes.values()):
            raise AssertionError(f"ended with {codes}")
        models = {name: np.load(self.folder / name / "model.npy") for name in self.nodes}
        learning = Learning(self.cluster.training)
        if self.kind == "vanilla":
            (computed,) = from_tests("by_hand", "computed")
            want = computed(self.cluster, learning)
            wrong = [name for name, model in models.items() if (model != want).any()]
            if wrong:
                raise AssertionError(f"other models than without it: {', '.join(wrong)}")
        for name in self.nodes:
            text = (self.folder / f"{name}.log").read_text()
            lines = (self.folder / name / "results.jsonl").read_text()
            for word in ("Traceback", "Fatal", "convicted"):
                if word in text or f'"kind":"{word}"' in lines.replace(" ", ""):
                    raise AssertionError(f"{name}: {word}: {text[-500:]}")
        return min(learning.accuracy(model) for model in models.values())

    def close(self):
        for node in self.nodes.values():
            node.kill()


def run(kind, seed, steps, folder, forks, least=0):
    """Do it to one cluster until its last step, or to `least` nodes; return what has come of it."""
    draw = random.Random(f"{kind} {seed}")
    found = {"kind": kind, "seed": seed, "kills": 0, "exits": 0, "error": None}
    began, cluster = time.monotonic(), Cluster(Path(folder), kind, seed, steps, forks)
    try:
        while not any(node.poll() == 0 for node in cluster.nodes.values()):
            time.sleep(draw.uniform(0, PAUSE))
            name = draw.choice(list(cluster.nodes))
            orderly = draw.random() < EXITS
            number = draw.choice((signal.SIGTERM, signal.SIGINT)) if orderly else signal.SIGKILL
            if cluster.stop(name, number):
                found["exits" if orderly else "kills"] += 1
            if least and found["kills"] + found["exits"] >= least:
                break
        found["accuracy"] = cluster.finish()
    except Exception as error:
        found["error"] = f"{type(error).__name__}: {error}"
    finally:
        cluster.close()
    return found | {"seconds": round(time.monotonic() - began, 1)}


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--kills", type=int, default=1000)
    parser.add_argument("--exits", type=int, default=200)
    parser.add_argument("--seconds", type=float, default=float("inf"), help="begin none later")
    parser.add_argument("--steps", type=int, default=600, help="of a cluster")
    parser.add_argument("--out", type=Path, default=Path("kills.jsonl"))
    options = parser.parse_args()
    lines = options.out.read_text().splitlines() if options.out.exists() else []
    done = [json.loads(line) for line in lines]
    (nursery,) = from_tests("nursery", "nursery")
    until, seed = time.monotonic() + options.seconds, len(done)

    def counted(what):
        return sum(each[what] for each in done)

    with nursery() as forks:
        while time.monotonic() < until and (
            counted("kills") < options.kills or counted("exits") < options.exits
        ):
            kind = list(KINDS)[seed % len(KINDS)]
            with tempfile.TemporaryDirectory(prefix="fastgar-kills-") as folder:
                found = run(kind, seed, options.steps, folder, forks)
            with options.out.open("a") as file:
                file.write(json.dumps(found) + "\n")
            done.append(found)
            seed += 1
            print(found, flush=True)
    bad = [each for each in done if each["error"]]
    print(
        f"{counted('kills'):,} kills and {counted('exits'):,} ends in {len(done)} clusters: "
        f"{len(bad)} bad"
    )
    return min(len(bad), 1)


if __name__ == "__main__":
    sys.exit(main())
