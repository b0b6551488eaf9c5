"""Drawn scenarios of the protocols on the simulated network, for as long as asked.

    python -m asv_benchmarks.scenarios --seconds 3600 --out scenarios.jsonl

Seeds 0, 1, 2, ... in so many processes, of all protocols by turns, every property checked at every
event (fastgar/protocols/properties.py). Each is a line of JSON in the file as soon as it is over,
and is not run again. It ends with counts, or at the first seed that breaks a property.
"""

import argparse
import json
import time
from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from itertools import count
from pathlib import Path

COUNTED = ("messages", "lost", "crashes", "liars", "convicted", "faults", "cpu")


def one(seed):
    """Run a seed; return its line."""
    from fastgar.protocols.properties import Broken
    from fastgar.protocols.registry import PROTOCOLS
    from fastgar.protocols.scenario import survive

    names = ["byzsgd", *PROTOCOLS]  # byzsgd twice as often
    protocol, began = names[seed % len(names)], time.process_time()
    try:
        run = survive(seed, protocol=protocol)
    except Broken as broken:
        return {"seed": seed, "protocol": protocol, "broken": str(broken)}
    cluster = run.cluster
    return {
        "seed": seed,
        "protocol": protocol,
        "agreement": cluster.agreement if protocol == "byzsgd" else None,
        "messages": run.messages,
        "lost": run.lost,
        "crashes": run.crashes,
        "liars": len(cluster.liars),
        "convicted": len(run.watcher.watcher.convictions),
        "faults": len(cluster.perturb),
        "cpu": round(time.process_time() - began, 3),
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=60.0, help="how long (default: 60)")
    parser.add_argument("--jobs", type=int, default=2, help="processes (default: 2)")
    parser.add_argument("--out", type=Path, default=Path("scenarios.jsonl"), help="the file")
    options = parser.parse_args()
    lines = options.out.read_text().splitlines() if options.out.exists() else []
    done = [json.loads(line) for line in lines if line.endswith("}")]
    known, until = {line["seed"] for line in done}, time.monotonic() + options.seconds
    seeds = (seed for seed in count() if seed not in known)
    with options.out.open("a") as file, ProcessPoolExecutor(options.jobs) as pool:
        while time.monotonic() < until and not any("broken" in line for line in done):
            batch = [next(seeds) for _ in range(8 * options.jobs)]
            for line in pool.map(one, batch):
                done.append(line)
                file.write(json.dumps(line) + "\n")
                file.flush()
    for line in done:
        if "broken" in line:
            raise SystemExit(f"{line['protocol']}: {line['broken']}")
    print(f"{len(done):,} scenarios:", dict(Counter(line["protocol"] for line in done)))
    print("  ".join(f"{what} {sum(line[what] for line in done):,.0f}" for what in COUNTED))


if __name__ == "__main__":
    main()
