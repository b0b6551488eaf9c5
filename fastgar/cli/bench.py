"""``fastgar bench``: what rules cost on this machine, next to plain averaging."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryFile
from textwrap import fill
from typing import Any

import fastgar as fg

from ..machine import Others, cores, free_memory, processor, versions
from ..progress import passing
from .bench_tables import disturbance, markdown, preamble, table
from .contestants import BASELINE, RULES, Contestant, contestants, with_byzfl
from .measure import Timing, interleaved, read_bandwidth
from .refuse import Refused, refusing

__all__ = ["NAME", "SUMMARY", "add_arguments", "run"]

NAME = "bench"
SUMMARY = "Measure rules on this machine, interleaved with what people use today."
DTYPES = ("float32", "float64", "float16", "bfloat16")
ROWS = (11, 20, 51, 100)
SWEEP = (1_000, 10_000, 100_000)  # further d, for the plot
PICTURES = (".png", ".svg", ".pdf", ".jpg")
Record = dict[str, Any]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of this command."""
    add = parser.add_argument
    add("--n", type=int, nargs="+", metavar="N", help="rows (default: 11 20 51 100)")
    add("--d", type=int, nargs="+", metavar="D", help="columns (default: 1000000)")
    add("--rules", nargs="+", metavar="RULE", help="as fastgar.rule takes them (default: many)")
    add("--dtype", choices=DTYPES, default="float32", help="of the rows")
    add("--threads", type=int, metavar="T", help="for all (default: the cores there are)")
    add("--repeat", type=int, metavar="K", help="turns of each; the median counts (default: 15)")
    add(
        "--budget", type=float, metavar="S", help="seconds for one; slow ones: 2 turns (default: 4)"
    )
    add(
        "--quick",
        action="store_true",
        help="11 rows of 100000, 5 turns, half a second each, unless told otherwise",
    )
    add("--json", type=Path, metavar="FILE", help="write all figures, after each size")
    add("--plot", type=Path, metavar="FILE", help="draw time against d and n; measures more sizes")
    add("--markdown", action="store_true", help="print the table of the README instead")
    add("--no-byzfl", action="store_true", help="leave ByzFL out, even if it is installed")


def run(options: argparse.Namespace) -> int:
    """Measure every size, print each table as it comes."""
    with refusing(extra="bench"):
        import torch

        if options.plot is not None:
            from .bench_plot import plot_times
        sizes, wide = _sizes(options)
        rules = options.rules or list(RULES)
        for name in rules:
            fg.rule(name, f=1)
        before = torch.get_num_threads(), fg.get_threads()
        threads = fg.get_threads() if options.threads is None else options.threads
        if threads < 1:
            raise ValueError(f"--threads must be at least 1, got {threads}")
        _check_files(options)
        _check_memory(sizes, getattr(torch, options.dtype))
    report: Record = {"machine": {}, "results": [], "failed": [], "interrupted": False}
    torch.set_num_threads(threads)
    fg.set_threads(threads)
    try:
        _measure(options, report, rules, sizes, threads)
    except KeyboardInterrupt:
        passing("")
        print("interrupted", file=sys.stderr)
        report["interrupted"] = True
    finally:
        torch.set_num_threads(before[0])
        fg.set_threads(before[1])
        if options.markdown and report["results"]:
            print(markdown(report, wide))
        if options.plot is not None and report["results"]:
            plot_times(report, options.plot, everything=options.rules is not None)
    return 130 if report["interrupted"] else 0


def _sizes(options: argparse.Namespace) -> tuple[list[tuple[int, int]], int]:
    """Return the (n, d) to measure, the slowest last, and the d of the table."""
    rows = options.n or ((11,) if options.quick else ROWS)
    columns = options.d or ((100_000,) if options.quick else (1_000_000,))
    for name, values in (("--n", rows), ("--d", columns)):
        if min(values) < 1:
            raise ValueError(f"{name} must be at least 1, got {min(values)}")
    _effort(options)
    wide = max(columns)
    sizes = {(n, d) for n in rows for d in columns}
    if options.plot is not None and len(columns) == 1:
        middle = sorted(rows)[min(1, len(rows) - 1)]
        sizes |= {(middle, d) for d in SWEEP if d < wide}
    return sorted(sizes, key=lambda size: (size[1], size[0])), wide


def _effort(options: argparse.Namespace) -> tuple[int, float]:
    """Return how many turns each measurement has, and how many seconds at most."""
    repeat, budget = (5, 0.5) if options.quick else (15, 4.0)
    if options.repeat is not None:
        repeat = options.repeat
    if options.budget is not None:
        budget = options.budget
    if repeat < 1:
        raise ValueError(f"--repeat must be at least 1, got {repeat}")
    if not budget > 0:  # NaN is not, either
        raise ValueError(f"--budget must be above 0 seconds, got {budget:g}")
    return repeat, budget


def _check_files(options: argparse.Namespace) -> None:
    """Refuse what cannot be written or drawn, and leave no trace of the trial."""
    if options.plot is not None and options.plot.suffix.lower() not in PICTURES:
        endings = f"{', '.join(PICTURES[:-1])} or {PICTURES[-1]}"
        raise ValueError(f"--plot must end in {endings}, got {options.plot}")
    for path in (options.json, options.plot):
        if path is None:
            continue
        try:
            if not path.parent.is_dir():
                raise Refused(f"cannot write to {path}: there is no folder {path.parent}")
            if path.exists() and not path.is_file():  # such as /dev/null, which root could replace
                raise Refused(f"cannot write to {path}: what is there is not a regular file")
            TemporaryFile(dir=path.parent).close()
            if path.exists():
                path.open("a").close()
        except OSError as error:
            raise Refused(f"cannot write to {path}: {error.strerror}") from error


def _copies(n: int, d: int, itemsize: int) -> int:
    """Return how many sets of rows to rotate over."""
    return 3 if n * d * itemsize < 1 << 30 else 2


def _check_memory(sizes: Sequence[tuple[int, int]], dtype: Any) -> None:
    free = free_memory()
    for n, d in sizes:
        copies = _copies(n, d, dtype.itemsize)
        drawn = 0 if dtype.itemsize == 4 else 4  # numbers are drawn in float32, then converted
        needed = n * d * (copies * dtype.itemsize + drawn)
        if free is not None and needed > free:
            raise Refused(
                f"{copies} sets of rows with n={n} d={d} take {needed / 1e9:,.1f} GB, and "
                f"{free / 1e9:,.1f} GB of memory are free: take a smaller --n or --d"
            )


def _measure(
    options: argparse.Namespace,
    report: Record,
    rules: Sequence[str],
    sizes: Sequence[tuple[int, int]],
    threads: int,
) -> None:
    """Fill the report size by size and tell of each; after Ctrl-C, of what there is of it."""
    import torch

    byzfl = None if options.no_byzfl else with_byzfl()
    report["machine"] = {
        "processor": processor(),
        "cores": len(cores()),
        "threads": threads,
        "bytes_per_second": read_bandwidth(),
        **versions("python"),
        "versions": versions("fastgar", "numpy", "numba", "torch", "byzfl"),
    }
    dtype = getattr(torch, options.dtype)
    repeat, budget = _effort(options)
    if not options.markdown:
        print(preamble(report["machine"], options.dtype))
    if byzfl is not None and "nnm" not in rules:
        rules = [*rules, "nnm"]  # ByzFL's NNM stops after the mixing, so ours has to as well
    for n, d in sizes:
        f, title, stop = declared(n), f"n={n} d={d}", None
        taking_part = contestants(n, f, dtype, rules, byzfl=byzfl)
        passing(f"{title}: first calls")
        others = Others()
        buffers = _draw(n, d, dtype)
        timings, rounds = interleaved([c.call for c in taking_part], buffers, repeat, budget)
        try:
            for left in rounds:
                passing(f"{title}: {left} rounds to go")
        except KeyboardInterrupt as interrupt:  # the turns so far count
            report["interrupted"], stop = True, interrupt
        passing("")
        size = {"n": n, "f": f, "d": d, "dtype": options.dtype, "others": others.busy()}
        done = list(zip(taking_part, timings, strict=True))
        for contestant, timing in done:
            if isinstance(timing, str):
                report["failed"].append({**size, "name": contestant.name, "error": timing})
                print(f"{title}: {contestant.name} failed: {timing}", file=sys.stderr)
        records = _records(done, size, n * d * dtype.itemsize, report["machine"])
        if not records:
            print(f"{title}: {BASELINE} has no time to compare with", file=sys.stderr)
        _tell(options, report, size, records)
        if stop is not None:
            raise stop


def _draw(n: int, d: int, dtype: Any) -> list[Any]:
    """Return equal sets of rows to rotate over."""
    import torch

    draw = torch.Generator().manual_seed(0)
    copies = _copies(n, d, dtype.itemsize)
    try:
        return [torch.randn(n, d, generator=draw).to(dtype) for _ in range(copies)]
    except (MemoryError, RuntimeError) as error:  # torch raises the latter
        raise Refused(
            f"there is no memory for rows with n={n} d={d}: take a smaller --n or --d"
        ) from error


def _records(
    done: Sequence[tuple[Contestant, Timing | str]], size: Record, amount: int, machine: Record
) -> list[Record]:
    """Return the figures of one size, of `amount` bytes; none where the baseline has no time."""
    records = [
        {
            **size,
            "name": contestant.name,
            "peer": contestant.peer,
            "reads": contestant.reads,
            "seconds": timing.median,
            "least": timing.least,
            "turns": len(timing.seconds),
            "bytes_per_second": contestant.reads * amount / timing.median,
        }
        for contestant, timing in done
        if isinstance(timing, Timing) and timing.seconds
    ]
    base = next((record for record in records if record["name"] == BASELINE), None)
    if base is None:
        return []
    for record in records:
        record["ratio"] = record["seconds"] / base["seconds"]
        record["ratio_of_least"] = record["least"] / base["least"]
        record["share_of_bandwidth"] = record["bytes_per_second"] / machine["bytes_per_second"]
    return records


def _tell(
    options: argparse.Namespace, report: Record, size: Record, records: Sequence[Record]
) -> None:
    """Add the figures of one size to the report, and to what is written and printed."""
    from ..train.lines import write_whole

    report["results"] += records
    if options.json is not None and (report["results"] or report["failed"]):
        write_whole(options.json, (json.dumps(report, indent=1) + "\n").encode())
    if records and not options.markdown:
        turns = max(record["turns"] for record in records)
        early = f" (interrupted after {turns} turns)" if report["interrupted"] else ""
        print(f"\nn = {size['n']}, f = {size['f']}, d = {size['d']:,}{early}")
        print(f"\n{table(records)}", flush=True)
        if warning := disturbance(records, report["machine"]):
            print(f"\n{fill(warning, 100)}", flush=True)


def declared(n: int) -> int:
    """Return the f for n rows: 2 of 11, 4 of 20, 12 of 51, 24 of 100."""
    return n * 24 // 100
