"""Time against the number of columns and the number of rows, on logarithmic axes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from ..train.figures import COLOURS, dress
from .bench_tables import disturbance, threads
from .contestants import BASELINE

__all__ = ["plot_times"]

# Rules have colours and full lines, what people use today grey dashes.
THEIRS = ("#777777", "#aaaaaa", "#444444")
MARKS = "os^Dv<>ph*"
DASHES = ((0, (4, 1)), (0, (1, 1)), "-.", (0, (5, 1, 1, 1, 1, 1)))
SHOWN = ("median", "krum", "geometric_median", "nnm | trimmed_mean")
OTHERS = (BASELINE, "torch.median", "numpy.median", "torch.cdist", "ByzFL NNM")
Record = dict[str, Any]


def plot_times(report: Record, path: Path, *, everything: bool) -> None:
    """Write a picture of the results of a benchmark.

    Parameters
    ----------
    report : dict
        What ``--json`` writes.
    path : Path
        Where to; the ending says in which format.
    everything : bool
        Show everybody who took part, and not only a choice that fits well into one picture.
    """
    records = report["results"]
    style = _styles(records, everything)
    wide = max(r["d"] for r in records)
    by_rows = {n: {r["d"] for r in records if r["n"] == n} for n in {r["n"] for r in records}}
    tall = max(by_rows, key=lambda n: (len(by_rows[n]), -n))  # the n with the most d
    tolerated = {r["n"]: r["f"] for r in records}

    widths = sorted(by_rows[tall])
    heights = sorted({r["n"] for r in records if r["d"] == wide})
    views = []
    if len(widths) > 1:
        views.append(("d", "n", tall, f"columns d, with n = {tall} rows and f = {tolerated[tall]}"))
    if len(heights) > 1 or not views:
        views.append(("n", "d", wide, f"rows n and f, with d = {wide:,} columns"))

    size = 2.6 + 3.5 * len(views), max(5.0, 1.2 + 0.21 * len(style))
    figure = Figure(figsize=size, layout="constrained")
    panels = figure.subplots(1, len(views), sharey=True, squeeze=False)[0]
    for panel, (across, fixed, value, label) in zip(panels, views, strict=True):
        for name, look in style.items():
            points = sorted(
                (r[across], 1e3 * r["seconds"])
                for r in records
                if r["name"] == name and r[fixed] == value
            )
            x, y = [p[0] for p in points], [p[1] for p in points]
            panel.plot(x, y, label=name, markersize=5, linewidth=1.6, **look)
        panel.set(xscale="log", yscale="log", xlabel=label)
        dress(panel)
        if across == "n":
            panel.set_xticks(heights, labels=[f"{n}\nf={tolerated[n]}" for n in heights])
            panel.xaxis.minorticks_off()
    panels[0].set_ylabel("median time of one call (ms)")
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside right upper", frameon=False)
    figure.suptitle(_title(report), fontsize=11)
    figure.savefig(path, dpi=150)


def _styles(records: Sequence[Record], everything: bool) -> dict[str, Record]:
    """Return how each line is drawn, by the name of the contestant."""
    peers = {r["name"]: r["peer"] for r in records}
    rules = [name for name in peers if not peers[name] and name != BASELINE]
    theirs = [name for name in peers if peers[name]]
    if not everything:
        rules = [name for name in rules if name in SHOWN]
        theirs = [name for name in theirs if name in OTHERS]
    style: dict[str, Record] = {}
    for i, name in enumerate(rules):
        style[name] = {"color": COLOURS[i % len(COLOURS)], "marker": MARKS[i % len(MARKS)]}
    style[BASELINE] = {"color": "#000000", "marker": "s", "linestyle": "--"}
    for i, name in enumerate(theirs):
        style[name] = {
            "color": THEIRS[i % len(THEIRS)],
            "marker": MARKS[i % len(MARKS)],
            "linestyle": DASHES[i % len(DASHES)],
        }
    for name in style.keys() - set(rules):
        style[name]["markerfacecolor"] = "white"
    return style


def _title(report: Record) -> str:
    """Return what holds for all of the picture, and a warning if there is one."""
    machine, records = report["machine"], report["results"]
    title = f"{records[0]['dtype']}, {threads(machine)} of {machine['processor']}"
    title += f", fastgar {machine['versions']['fastgar']}"
    if report["interrupted"]:
        title += " (interrupted)"
    if disturbance(records, machine):
        title += "\nNOT QUIET: other programs disturbed these times"
    return title
