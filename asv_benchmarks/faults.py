"""Clusters of processes under many faults at once: one seed after the other, for as long as asked.

    python -m asv_benchmarks.faults                            ten seeds of each protocol
    python -m asv_benchmarks.faults --seeds 0:500 --out night.jsonl
    python -m asv_benchmarks.faults --protocols byzsgd --seeds 3 --steps 100

Liars, kill -9 and a restart, SIGSTOP and SIGCONT, slow workers, partitions, and relays that break
connections, hold one direction up and let nobody through for a while: a seed stands for what is
done at which step. A run is good if every honest node is done and the model of every honest server
is, too. Each run is a line of JSON in the file as soon as it is over, and is not run again.
"""

import argparse
import json
import random
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).parent.parent
PROTOCOLS = ("byzsgd", "aggregathor", "crash_tolerant")
GOOD = 0.85  # accuracy
LOSS = 0.002  # the chance that a relay breaks a connection with a portion of bytes
PATIENCE = 600.0  # seconds of a run that takes a quarter of a minute
LIARS = ("random", "reverse", "equivocate", "silence", "little")
FAULTS = ("kill server", "kill worker", "pause", "slow", "partition", "break", "hold", "refuse")


def drawn(protocol, seed, steps):
    """Return the tables of a cluster, and what is done to it: (step, what, whom, seconds)."""
    draw = random.Random(f"{protocol} {seed}")
    servers, workers = {"count": 5, "f": 1}, {"count": 7, "f": 2}
    if protocol == "byzsgd":
        servers |= {"byzantine": 1, "attack": draw.choice(LIARS)}
        workers |= {"byzantine": 2, "attack": draw.choice(("little", "empire", "nan", "sign_flip"))}
    elif protocol == "aggregathor":
        servers = {"count": 1}
        workers = {"count": 7, "f": 2, "byzantine": 1, "attack": draw.choice(("little", "nan"))}
    else:
        servers, workers = {"count": 3, "f": 1}, {"count": 3, "f": 1}
    pieces = {"pieces": 8} if protocol == "aggregathor" else {}
    training = {"model": "logistic", "steps": steps, "evaluate_every": 20, "seed": seed}
    document = {
        "protocol": {"name": protocol} | pieces, "servers": servers, "workers": workers,
        "training": training,
    }  # fmt: skip
    if protocol == "byzsgd":
        document["protocol"]["gather_every"] = 5
    honest = {
        "ps": [f"ps{i}" for i in range(servers["count"] - servers.get("byzantine", 0))],
        "w": [f"w{i}" for i in range(workers["count"] - workers.get("byzantine", 0))],
    }
    relayed = [draw.choice(honest["ps"]), draw.choice(honest["w"])]
    plan = []
    for at, what in enumerate(draw.sample(FAULTS, len(FAULTS))):
        step = steps * (at + 1 + draw.random()) / (len(FAULTS) + 2)
        whom = draw.choice(honest["ps"] + honest["w"])
        if what in ("kill server", "kill worker", "slow"):
            whom = draw.choice(honest["ps" if what == "kill server" else "w"])
        elif what == "partition":
            names = honest["ps"] + honest["w"]
            whom = ",".join(draw.sample(names, draw.randint(1, len(names) - 1)))
        elif what in ("break", "hold", "refuse"):
            whom = draw.choice(relayed)
        plan.append((int(step), what, whom, round(draw.uniform(0.3, 2.0), 2)))
    return document, plan, relayed


def run(protocol, seed, steps, folder, popen=None):
    """Run what a seed stands for; return what has come of it, with the sentence "error" if bad."""
    from fastgar.protocols.file import cluster_of
    from fastgar.protocols.launch import Failed, Launch
    from fastgar.protocols.perturb import read_perturbation

    (Relay,) = from_tests("relay", "Relay")
    document, plan, relayed = drawn(protocol, seed, steps)
    found = {"protocol": protocol, "seed": seed, "steps": steps, "error": None}
    found["plan"] = list(plan)
    cluster, relays, later = cluster_of(document), {}, []

    def through(name, port):
        if name not in relayed:
            return port
        relays[name] = relay = Relay("127.0.0.1", port, seed)
        relay.loss = LOSS
        return relay.port

    options = {} if popen is None else {"popen": popen}
    launch = Launch(cluster, Path(folder), through=through, **options)

    def do(what, whom, seconds):
        now = launch.elapsed
        if what in ("break", "hold", "refuse"):
            relay = relays[whom]
            if what == "hold":
                relay.hold.add("up")
                later.append((now + seconds, relay.hold.clear))
            else:
                relay.cut()
                relay.refuse = what == "refuse"
                later.append((now + seconds, lambda: setattr(relay, "refuse", False)))
            return
        words = {"kill server": "kill", "kill worker": "kill"}.get(what, what)
        line = f"{words} {whom}{' | rest' * (what == 'partition')} @ {now:.3f} s"
        line += "" if words == "kill" else f" for {seconds} s"
        for each in [line] + [f"restart {whom} @ {now + seconds:.3f} s"] * (words == "kill"):
            launch.plan(read_perturbation(each, cluster.names))

    try:
        with launch:
            while not launch.over or plan or later:
                step = max(state.step for name, state in launch.states.items() if name[0] == "p")
                while plan and step >= plan[0][0]:
                    do(*plan.pop(0)[1:])
                for at, call in [each for each in later if each[0] <= launch.elapsed]:
                    later.remove((at, call))
                    call()
                launch.advance(0.05)
                if launch.elapsed > PATIENCE:
                    where = ", ".join(f"{n} at step {s.step}" for n, s in launch.states.items())
                    raise Failed(f"not done: {where}")
            outcome = launch.outcome()
            found |= {
                "seconds": round(outcome.seconds, 1), "accuracy": outcome.accuracy,
                "crashed": outcome.crashed, "waited_for": outcome.waited_for,
                "reconnects": sum(
                    sum(state.counts.get("reconnects", {}).values())
                    for state in launch.states.values()
                ),
            }  # fmt: skip
            servers = [n for n in cluster.of_role("server") if n not in cluster.liars]
            if set(outcome.accuracy) != set(servers) or outcome.lowest < GOOD:
                found["error"] = f"accuracies {outcome.accuracy}"
    except Failed as error:
        found["error"] = str(error)
    finally:
        for relay in relays.values():
            relay.close()
    for log in sorted(Path(folder).glob("*/log.txt")):
        if "Traceback" in (text := log.read_text()) or "Fatal" in text:
            found["error"] = f"{log.parent.name}: {text[-500:]}"
    return found


def from_tests(module, *names):
    """Return what a module of the tests has: a checkout has them."""
    if str(ROOT / "tests") not in sys.path:
        sys.path.insert(0, str(ROOT / "tests"))
    return [getattr(__import__(module), name) for name in names]


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--seeds", default="0:10", metavar="A:B", help="from A to below B, or one")
    parser.add_argument("--protocols", nargs="+", default=PROTOCOLS, choices=PROTOCOLS)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--out", type=Path, default=Path("faults.jsonl"))
    options = parser.parse_args()
    first, colon, last = options.seeds.partition(":")
    seeds = range(int(first), int(last) if colon else int(first) + 1)
    lines = options.out.read_text().splitlines() if options.out.exists() else []
    done = {(each["protocol"], each["seed"], each["steps"]) for each in map(json.loads, lines)}
    (nursery,) = from_tests("nursery", "nursery")
    bad = 0
    with nursery() as forks:
        for seed in seeds:
            for protocol in options.protocols:
                if (protocol, seed, options.steps) in done:
                    continue
                began = time.monotonic()
                with tempfile.TemporaryDirectory(prefix="fastgar-faults-") as folder:
                    found = run(protocol, seed, options.steps, folder, forks.popen)
                with options.out.open("a") as file:
                    file.write(json.dumps(found) + "\n")
                bad += found["error"] is not None
                what = found["error"] or f"good, accuracy {min(found['accuracy'].values()):.1%}"
                print(f"{protocol} {seed}: {time.monotonic() - began:.0f} s, {what}", flush=True)
    return min(bad, 1)


if __name__ == "__main__":
    sys.exit(main())
