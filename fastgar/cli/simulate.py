"""``fastgar simulate``: a cluster on a simulated network, with one seed or with many."""

from __future__ import annotations

import argparse
import re
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import shown
from ..progress import passing
from .cluster_flags import add_flags, cluster_from
from .cluster_out import draw, open_results
from .cluster_report import caution, table_of_seeds
from .refuse import alone, refusing, require_folder

if TYPE_CHECKING:
    from ..protocols.cluster import Cluster
    from ..protocols.results import Results

__all__ = ["NAME", "SUMMARY", "add_arguments", "run"]

NAME = "simulate"
SUMMARY = (
    "Run a cluster on a simulated network: what a protocol costs at some latency, and whether "
    "anything breaks it."
)
SEEDS = re.compile(r"(\d{1,18})(?::(\d{1,18}))?")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of this command."""
    add_flags(parser)
    add = parser.add_argument
    add("--seeds", default="0", metavar="A:B", help="of the network: one, or from A to below B")
    add("--jobs", type=int, default=1, metavar="N", help="processes")
    add("--out", type=Path, metavar="DIR", help="for cluster.toml, results and a picture")
    add("--quiet", action="store_true", help="no progress")


def run(options: argparse.Namespace) -> int:
    """Run what is asked for; 0 if nothing broke, 1 if something did."""
    with refusing(extra="train"):
        cluster = cluster_from(options)
        seeds = _seeds(options.seeds)
        if options.jobs < 1:
            raise ValueError(f"--jobs must be at least 1, got {options.jobs}")
        if options.out is not None:
            require_folder(options.out, "--out")
            options.held.enter_context(alone(options.out, "--out"))
            from ..protocols import plot  # noqa: F401  (a missing extra is told before the work)
        from ..protocols.learning import Learning

        Learning(cluster.training)  # what is wrong with model and data is told before, too
    caution([cluster])
    if options.out is None:
        return _run(options, cluster, seeds)
    with open_results(options.out, cluster) as results:
        return _run(options, cluster, seeds, results)


def _run(
    options: argparse.Namespace, cluster: Cluster, seeds: Sequence[int],
    results: Results | None = None,
) -> int:  # fmt: skip
    """Run the seeds that the results lack, and say what has come of all."""
    from ..protocols.seeds import run_seeds

    lines = [] if results is None else results.of_seeds()
    summaries = {line["seed"]: line for line in lines if line["kind"] == "summary"}
    missing = [seed for seed in seeds if seed not in summaries]
    tell = len(missing) > 1 and not options.quiet
    broken, done = None, len(seeds) - len(missing)
    try:
        for ran in run_seeds(cluster, missing, options.jobs):
            if results is not None:
                lines += ran.lines
                for line in ran.lines:
                    results.append(line)
            if ran.broken is not None:
                broken = ran
                break
            summaries[ran.seed] = ran.lines[-1]
            done += 1
            if tell:
                passing(f"{done} of {len(seeds)} seeds")
    except KeyboardInterrupt:
        kept = (
            "" if results is None else f": {options.out} keeps them, and the same command goes on"
        )
        print(f"\ninterrupted after {done} of {len(seeds)} seeds{kept}", file=sys.stderr)
        raise
    finally:
        if tell:
            passing("")
    ended = [seed for seed in seeds if seed in summaries]
    if ended:
        print(table_of_seeds(cluster, [summaries[seed] for seed in ended]))
        if results is not None:
            known = set(ended)
            asked = [line for line in lines if line["seed"] in known]
            picture = draw(asked, cluster, results, options.command, ended)
            print(f"\n{results.path}, {picture}")
    if broken is not None:
        again = _again(options.command, broken.seed)
        print(f"\nseed {broken.seed} breaks it: {broken.broken}\nagain: {again}")
        return 1
    return 0


def _seeds(text: str) -> range:
    match = SEEDS.fullmatch(text)
    if match is None:
        raise ValueError(f"--seeds must be a number, or A:B, got {shown(text)}")
    first = int(match[1])
    last = first + 1 if match[2] is None else int(match[2])
    if last <= first:
        raise ValueError(f"--seeds A:B are those from A to below B, got {text}")
    return range(first, last)


def _again(command: str, seed: int) -> str:
    """Return the command that runs one seed again."""
    words, kept = shlex.split(command), []
    skip = False
    for word in words:
        if skip or word.startswith("--seeds="):
            skip = False
            continue
        if word in ("--seeds", "--jobs", "--out"):
            skip = True
            continue
        kept.append(word)
    return shlex.join([*kept, "--seeds", str(seed)])
