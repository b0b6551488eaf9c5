"""``fastgar simulate``: a cluster on a simulated network, with one seed or with many."""

from __future__ import annotations

import argparse
import json
import re
import shlex
import sys
from collections.abc import Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import shown
from .cluster_flags import add_flags, cluster_from, headline
from .refuse import Refused, refusing
from .tables import text_table

if TYPE_CHECKING:
    from ..protocols.cluster import Cluster

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
        from ..protocols.file import to_toml

        text = to_toml(cluster)
        folder: Path | None = options.out
        if folder is not None:
            from ..protocols.plot import plot_run  # a missing extra is to be told before the work
        done = {} if folder is None else _open(folder, text)
    missing = [seed for seed in seeds if seed not in done]
    summaries = [done[seed] for seed in seeds if seed in done]
    broken = None
    try:
        for seed, result in _results(text, missing, options.jobs):
            lines = result["lines"]
            if folder is not None:
                with (folder / "results.jsonl").open("a") as file:
                    file.write("".join(json.dumps({**line, "seed": seed}) + "\n" for line in lines))
            if result["broken"] is not None:
                broken = seed, result["broken"]
                break
            summaries.append({**lines[-1], "seed": seed})
            if not options.quiet and len(missing) > 1 and sys.stderr.isatty():
                print(f"\r{len(summaries)} of {len(seeds)} seeds", end="", file=sys.stderr)
    finally:
        if not options.quiet and len(missing) > 1 and sys.stderr.isatty():
            print(file=sys.stderr)
    if summaries:
        print(_table(cluster, summaries))
        if folder is not None:
            from ..train.origin import Origin

            origin = Origin(headline(cluster), options.command, tuple(s["seed"] for s in summaries))
            asked = [line for line in _lines(folder) if line["seed"] in origin.seeds]
            plot_run(asked, cluster, folder / "cluster.png", origin)
            print(f"\n{folder / 'results.jsonl'}, {folder / 'cluster.png'}")
    if broken is not None:
        seed, sentence = broken
        print(f"\nseed {seed} breaks it: {sentence}\nagain: {_again(options.command, seed)}")
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


def _open(folder: Path, text: str) -> dict[int, dict[str, Any]]:
    """Make the folder, or take it up: return the summaries of the seeds that it has."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        about = folder / "cluster.toml"
        if about.exists() and about.read_text() != text:
            raise Refused(f"{folder} holds runs of another cluster: take another --out")
        about.write_text(text)
        lines = _lines(folder)
    except OSError as error:
        raise Refused(f"cannot write to --out {folder}: {error.strerror}") from error
    return {line["seed"]: line for line in lines if line["kind"] == "summary"}


def _lines(folder: Path) -> list[dict[str, Any]]:
    """Return the lines of the results that are there."""
    path = folder / "results.jsonl"
    found = []
    for line in path.read_text().splitlines() if path.exists() else []:
        try:
            record = json.loads(line)
        except ValueError:
            continue  # a line that was cut off
        if isinstance(record, dict) and {"kind", "seed"} <= record.keys():
            found.append(record)
    return found


def _results(text: str, seeds: Iterable[int], jobs: int) -> Iterator[tuple[int, dict[str, Any]]]:
    """Return what comes of each seed, in order."""
    seeds = list(seeds)
    work = [(text, seed) for seed in seeds]
    if jobs == 1 or len(seeds) < 2:
        yield from zip(seeds, map(_simulated, work), strict=True)
        return
    with ProcessPoolExecutor(min(jobs, len(seeds)), get_context("spawn")) as pool:
        try:
            yield from zip(seeds, pool.map(_simulated, work), strict=True)
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def _simulated(work: tuple[str, int]) -> dict[str, Any]:
    """Run one seed; the last of the lines is the summary, unless something broke."""
    import tomllib

    from ..protocols.file import cluster_of
    from ..protocols.properties import Broken
    from ..protocols.virtual import simulate

    text, seed = work
    lines: list[dict[str, Any]] = []
    try:
        outcome = simulate(cluster_of(tomllib.loads(text)), seed, write=lines.append)
    except Broken as broken:
        return {"lines": lines, "broken": str(broken)}
    return {"lines": [*lines, outcome.summary()], "broken": None}


def _table(cluster: Cluster, summaries: list[dict[str, Any]]) -> str:
    """Return what has come of the seeds, as a table."""

    def row(name: str, values: list[float], show: str = "{:.4g}") -> list[str]:
        ordered = sorted(values)
        middle = ordered[len(ordered) // 2]
        return [name, *(show.format(value) for value in (ordered[0], middle, ordered[-1]))]

    steps = cluster.steps
    worst = [min(s["accuracy"].values()) for s in summaries]
    rows = [
        row("accuracy of the worst honest server (%)", [100 * a for a in worst], "{:.1f}"),
        row("spread of the honest servers", [s["spread"] or 0.0 for s in summaries]),
        row("virtual seconds a step", [s["virtual_seconds"] / steps for s in summaries]),
        row("messages a step", [s["messages"] / steps for s in summaries], "{:.0f}"),
        row("kilobytes a step", [s["bytes"] / steps / 1e3 for s in summaries], "{:.0f}"),
        row("messages lost", [s["dropped"]["lost"] for s in summaries], "{:.0f}"),
        row("nodes killed", [s["crashed"] for s in summaries], "{:.0f}"),
    ]
    head = f"{headline(cluster)}, {len(summaries)} seed{'s' if len(summaries) > 1 else ''}"
    if len(summaries) == 1:
        table = text_table(("", "value"), [r[:2] for r in rows], right=(1,))
    else:
        table = text_table(("", "least", "middle", "most"), rows, right=(1, 2, 3))
    return f"{head}\n\n{table}"


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
