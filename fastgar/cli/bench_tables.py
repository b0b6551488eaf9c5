"""What ``fastgar bench`` says: tables, where the figures come from, and whether to trust them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from .contestants import BASELINE
from .tables import markdown_table, text_table

__all__ = ["disturbance", "duration", "markdown", "preamble", "ratio", "table", "threads"]

Record = dict[str, Any]
UNSTEADY = 2.0  # a median turn over so many times the quickest one is not the contestant's doing
SPARE = 0.25  # of a core: what programs in the background may take


def preamble(machine: Record, dtype: str) -> str:
    """Return what stands before the tables: the machine, and what the columns are."""
    return (
        f"{machine['processor']}, {threads(machine)}, {dtype}; {_versions(machine)}\n"
        f"Read bandwidth {machine['bytes_per_second'] / 1e9:.1f} GB/s: the best of 9 torch.sum "
        "over 256 MiB.\n\n"
        "time    of one call, in the median turn\n"
        "least   the same in the quickest turn, which other programs disturb less\n"
        f"/ mean  the column before, as a multiple of that of {BASELINE}\n"
        "GB/s    the data, times the passes that the rule makes over them, per second\n"
        "share   of the read bandwidth (small data sit in the cache: that can be over 100%)"
    )


def table(records: Sequence[Record]) -> str:
    """Return the table of one size for the terminal."""
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
                duration(record["least"]),
                ratio(record["ratio_of_least"]),
                f"{record['bytes_per_second'] / 1e9:.1f}",
                f"{record['share_of_bandwidth']:.0%}",
                against,
            )
        )
    heads = ("", "time", "/ mean", "least", "/ mean", "GB/s", "share", "")
    return text_table(heads, rows, right=(1, 2, 3, 4, 5, 6))


def disturbance(records: Sequence[Record], machine: Record) -> str:
    """Return in words why the times are not to be trusted, "" where nothing speaks against them.

    Two signs tell. Others kept so many cores busy that ours had to wait: then the least times are
    too long as well, and by factors that differ, since some threads spin while they wait for one
    that has no core and others do not. Or times went up and down, as they do after a short
    disturbance, which the least times survive.
    """
    cores, used = machine["cores"], machine["threads"]
    others = max((r["others"] for r in records if r["others"] is not None), default=0.0)
    crowded = others > SPARE and used + others > cores + SPARE
    unsteady = list(
        dict.fromkeys(r["name"] for r in records if r["seconds"] > UNSTEADY * r["least"])
    )
    if crowded:
        quieter = max(1, int(cores - others + SPARE))
        remedy = "when the machine is idle" + (f", or with --threads {quieter}" * (quieter < used))
        return (
            f"NOT QUIET: other programs kept {others:.1f} of {cores} cores busy beside our "
            f"{threads(machine)}, which can distort every ratio by far; measure again {remedy}."
        )
    if unsteady:
        more = f" and {len(unsteady) - 3} more" if len(unsteady) > 3 else ""
        return (
            f"NOT QUIET: the median of {', '.join(unsteady[:3])}{more} is over {UNSTEADY:g} times "
            "the least; trust the ratios of the least times, or measure again."
        )
    return ""


def markdown(report: Record, d: int) -> str:
    """Return the table of the README: a line per contestant, a column per number of rows."""
    records = [r for r in report["results"] if r["d"] == d]
    if not records:
        return ""
    rows = sorted({(r["n"], r["f"]) for r in records})
    most = sorted(records, key=lambda r: -len([1 for other in records if other["n"] == r["n"]]))
    names = list(dict.fromkeys(r["name"] for r in most))  # of the n in which most took part first
    found = {(r["name"], r["n"]): r for r in records}
    failed = {(r["name"], r["n"]): r["error"] for r in report["failed"] if r["d"] == d}
    lines = []
    for name in names:
        cells = [f"`{name}`"]
        for n, _ in rows:
            record = found.get((name, n))
            if record is None:
                cells.append("failed" if (name, n) in failed else "")
            elif name == BASELINE:
                cells.append(duration(record["seconds"]))
            else:
                cells.append(f"{duration(record['seconds'])} ({ratio(record['ratio'])})")
        lines.append(cells)
    heads = ["", *(f"n={n}, f={f}" for n, f in rows)]
    machine = report["machine"]
    notes = [
        f"Median time of one call, and in brackets as a multiple of `{BASELINE}`. d = {d:,}, "
        f"{records[0]['dtype']}, {threads(machine)} of {machine['processor']} "
        f"({machine['bytes_per_second'] / 1e9:.0f} GB/s), {_versions(machine)}.",
        *(f"{name} failed at n={n}{_why(error)}." for (name, n), error in failed.items()),
        "Interrupted before the end." * report["interrupted"],
        disturbance(records, machine),
    ]
    return (
        markdown_table(heads, lines, right=range(1, len(heads)))
        + "\n\n"
        + " ".join(note for note in notes if note)
    )


def _why(error: str) -> str:
    return " for want of memory" if "allocate memory" in error else f": {error}"


def threads(machine: Record) -> str:
    """Return how many threads everybody had, in words."""
    count: int = machine["threads"]
    return f"{count} thread" if count == 1 else f"{count} threads"


def _versions(machine: Record) -> str:
    return ", ".join(f"{name} {number}" for name, number in machine["versions"].items())


def duration(seconds: float) -> str:
    """Return a time with three digits and its unit."""
    scale, unit = next(
        (pair for pair in ((1.0, "s"), (1e-3, "ms")) if seconds >= pair[0]), (1e-6, "us")
    )
    value = seconds / scale
    return f"{value:.{2 if value < 10 else 1 if value < 100 else 0}f} {unit}"


def ratio(value: float) -> str:
    """Return a ratio with three digits."""
    return f"{value:.2f}" if value < 9.995 else f"{value:.1f}" if value < 99.95 else f"{value:.0f}"
