"""``fastgar bench``: what rules cost on this machine, next to plain averaging."""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import fastgar as fg

from .contestants import BASELINE, RULES, Contestant, contestants, with_byzfl
from .measure import Timing, interleaved, read_bandwidth
from .refuse import Refused, refusing
from .tables import markdown_table, text_table

__all__ = ["NAME", "SUMMARY", "add_arguments", "run"]

NAME = "bench"
SUMMARY = "Measure rules on this machine, interleaved with what people use today."
DTYPES = ("float32", "float64", "float16", "bfloat16")
ROWS = (11, 20, 51, 100)
SWEEP = (1_000, 10_000, 100_000)  # further d, for the plot
Record = dict[str, Any]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of this command."""
    add = parser.add_argument
    add("--n", type=int, nargs="+", metavar="N", help="rows (default: 11 20 51 100)")
    add("--d", type=int, nargs="+", metavar="D", help="columns (default: 1000000)")
    add("--rules", nargs="+", metavar="RULE", help="as fastgar.rule takes them (default: many)")
    add("--dtype", choices=DTYPES, default="float32", help="of the rows")
    add("--threads", type=int, metavar="T", help="for all (default: the cores there are)")
    add("--repeat", type=int, default=15, metavar="K", help="turns of each; the median counts")
    add(
        "--budget",
        type=float,
        default=4.0,
        metavar="S",
        help="seconds for one (slow ones: 2 turns)",
    )
    add("--quick", action="store_true", help="11 rows of 100000, 5 turns, half a second each")
    add("--json", type=Path, metavar="FILE", help="write all figures, after each size")
    add("--plot", type=Path, metavar="FILE", help="draw time against d and n; measures more sizes")
    add("--markdown", action="store_true", help="print the table of the README instead")
    add("--no-byzfl", action="store_true", help="leave ByzFL out, even if it is installed")


def run(options: argparse.Namespace) -> int:
    """Measure every size, print each table as it comes."""
    with refusing(extra="bench"):
        import torch

        sizes, wide = _sizes(options)
        options.rules = options.rules or list(RULES)
        for name in options.rules:
            fg.rule(name, f=1)
        before = torch.get_num_threads(), fg.get_threads()
        threads = fg.get_threads() if options.threads is None else options.threads
        if threads < 1:
            raise ValueError(f"--threads must be at least 1, got {threads}")
        _writable(options.json, options.plot)
    report: Record = {"machine": {}, "results": [], "failed": []}
    torch.set_num_threads(threads)
    fg.set_threads(threads)
    try:
        _measure(options, report, sizes, threads)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    finally:
        torch.set_num_threads(before[0])
        fg.set_threads(before[1])
        if options.markdown and report["results"]:
            print(markdown(report, wide))
        if options.plot and report["results"]:
            from .bench_plot import plot_times

            plot_times(report["results"], options.plot)
    return 0


def _sizes(options: argparse.Namespace) -> tuple[list[tuple[int, int]], int]:
    """Return the (n, d) to measure, the slowest last, and the d of the table."""
    rows = options.n or ((11,) if options.quick else ROWS)
    columns = options.d or ((100_000,) if options.quick else (1_000_000,))
    for name, values in (("--n", rows), ("--d", columns)):
        if min(values) < 1:
            raise ValueError(f"{name} must be at least 1, got {min(values)}")
    if options.repeat < 1 or options.budget <= 0:
        raise ValueError("--repeat must be at least 1 and --budget above 0")
    wide = max(columns)
    sizes = {(n, d) for n in rows for d in columns}
    if options.plot is not None and len(columns) == 1:
        middle = sorted(rows)[min(1, len(rows) - 1)]
        sizes |= {(middle, d) for d in SWEEP if d < wide}
    return sorted(sizes, key=lambda size: (size[1], size[0])), wide


def _writable(*paths: Path | None) -> None:
    for path in paths:
        if path is not None:
            try:
                path.parent.mkdir(parents=True, exist_ok=True)
                path.open("a").close()
            except OSError as error:
                raise Refused(f"cannot write to {path}: {error.strerror}") from error


def _measure(
    options: argparse.Namespace, report: Record, sizes: list[tuple[int, int]], threads: int
) -> None:
    import torch

    byzfl = None if options.no_byzfl else with_byzfl()
    bandwidth = read_bandwidth()
    report["machine"] = _machine(threads, bandwidth)
    dtype = getattr(torch, options.dtype)
    repeat, budget = (5, 0.5) if options.quick else (options.repeat, options.budget)
    if not options.markdown:
        print(_preamble(report["machine"], options.dtype))
    rules = list(options.rules)
    if byzfl is not None and "nnm" not in rules:
        rules.append("nnm")  # ByzFL's NNM stops after the mixing, so ours has to as well
    for n, d in sizes:
        f = tolerated(n)
        draw = torch.Generator().manual_seed(0)
        count = 3 if n * d * dtype.itemsize < 1 << 30 else 2
        buffers = [torch.randn(n, d, generator=draw).to(dtype) for _ in range(count)]
        taking_part = contestants(n, f, dtype, rules, byzfl=byzfl)
        _status(f"n={n} d={d}: first calls")
        timings, rounds = interleaved([c.call for c in taking_part], buffers, repeat, budget)
        for left in rounds:
            _status(f"n={n} d={d}: {left} rounds to go")
        _status("")
        records = []
        for contestant, timing in zip(taking_part, timings, strict=True):
            size = {"n": n, "f": f, "d": d, "dtype": options.dtype}
            if isinstance(timing, Timing):
                records.append({**size, **_record(contestant, timing, n * d * dtype.itemsize)})
            else:
                report["failed"].append({**size, "name": contestant.name, "error": timing})
                print(f"n={n} d={d}: {contestant.name} failed: {timing}", file=sys.stderr)
        for record in records:
            record["ratio"] = record["seconds"] / records[0]["seconds"]
            record["share_of_bandwidth"] = record["bytes_per_second"] / bandwidth
        report["results"] += records
        if options.json:
            part = options.json.with_name(options.json.name + ".part")
            part.write_text(json.dumps(report, indent=1) + "\n")
            os.replace(part, options.json)
        if not options.markdown:
            print(f"\nn = {n}, f = {f}, d = {d:,}\n\n{_table(records)}", flush=True)


def _record(contestant: Contestant, timing: Timing, size: int) -> Record:
    """Return what is known of one contestant, apart from the others; `size` is X in bytes."""
    return {
        "name": contestant.name,
        "peer": contestant.peer,
        "reads": contestant.reads,
        "seconds": timing.median,
        "least": min(timing.seconds),
        "turns": len(timing.seconds),
        "bytes_per_second": contestant.reads * size / timing.median,
    }


def _status(text: str) -> None:
    """Show a passing line of progress on a terminal."""
    if sys.stderr.isatty():
        print(f"{text:<40}", end="\r", file=sys.stderr, flush=True)


def tolerated(n: int) -> int:
    """Return the f for n rows: 2 of 11, 4 of 20, 12 of 51, 24 of 100."""
    return n * 24 // 100


def _table(records: list[Record]) -> str:
    ours = {r["name"]: r["seconds"] for r in records if not r["peer"]}
    rows = []
    for record in records:
        peer = record["peer"]
        against = f"{ratio(record['seconds'] / ours[peer])} x {peer}" if peer in ours else ""
        rows.append(
            (
                record["name"],
                duration(record["seconds"]),
                ratio(record["ratio"]),
                f"{record['bytes_per_second'] / 1e9:.1f}",
                f"{record['share_of_bandwidth']:.0%}",
                against,
            )
        )
    heads = ("", "time", f"/ {BASELINE}", "GB/s", "of bandwidth", "")
    return text_table(heads, rows, right=(1, 2, 3, 4))


def _preamble(machine: Record, dtype: str) -> str:
    return (
        f"{machine['processor']}, {machine['threads']} threads, {dtype}; "
        + ", ".join(f"{name} {number}" for name, number in machine["versions"].items())
        + f"\nRead bandwidth {machine['bytes_per_second'] / 1e9:.1f} GB/s: the best of 9 torch.sum "
        "over 256 MiB. GB/s of a rule: the data, times the passes\nthat it makes over them, per "
        "second (small data sit in the cache, so that can exceed the bandwidth of memory)."
    )


def _machine(threads: int, bandwidth: float) -> Record:
    versions = {}
    for name in ("fastgar", "numpy", "numba", "torch", "byzfl"):
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            if name == "fastgar":
                versions[name] = fg.__version__
    return {
        "processor": _processor(),
        "threads": threads,
        "bytes_per_second": bandwidth,
        "python": platform.python_version(),
        "versions": versions,
    }


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def duration(seconds: float) -> str:
    """Return a time with three digits and its unit."""
    scale, unit = next(
        (pair for pair in ((1.0, "s"), (1e-3, "ms")) if seconds >= pair[0]), (1e-6, "us")
    )
    value = seconds / scale
    return f"{value:.{2 if value < 10 else 1 if value < 100 else 0}f} {unit}"


def markdown(report: Record, d: int) -> str:
    """Return the table of the README: a line per contestant, a column per number of rows."""
    records = [r for r in report["results"] if r["d"] == d]
    rows = sorted({(r["n"], r["f"]) for r in records})
    most = sorted(records, key=lambda r: -len([1 for other in records if other["n"] == r["n"]]))
    names = list(dict.fromkeys(r["name"] for r in most))  # of the n in which most took part first
    found = {(r["name"], r["n"]): r for r in records}
    lines = []
    for name in names:
        cells = [f"`{name}`"]
        for n, _ in rows:
            record = found.get((name, n))
            if record is None:
                cells.append("")
            elif name == BASELINE:
                cells.append(duration(record["seconds"]))
            else:
                cells.append(f"{duration(record['seconds'])} ({ratio(record['ratio'])})")
        lines.append(cells)
    heads = ["", *(f"n={n}, f={f}" for n, f in rows)]
    machine = report["machine"]
    return (
        markdown_table(heads, lines, right=range(1, len(heads)))
        + f"\n\nTime of one call, and in brackets as a multiple of `{BASELINE}`. d = {d:,}, "
        f"{records[0]['dtype']}, {machine['threads']} threads of {machine['processor']} "
        f"({machine['bytes_per_second'] / 1e9:.0f} GB/s), "
        + ", ".join(f"{name} {number}" for name, number in machine["versions"].items())
        + "."
    )


def ratio(value: float) -> str:
    """Return a ratio with three digits."""
    return f"{value:.2f}" if value < 9.995 else f"{value:.1f}" if value < 99.95 else f"{value:.0f}"
