"""Time against the number of columns and the number of rows, on logarithmic axes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

__all__ = ["plot_times"]

# Okabe and Ito's colours: rules in full lines, what people use today in dashes.
OURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00")
THEIRS = ("#000000", "#777777")
MARKS = "os^Dv<>ph*"
SHOWN = ("median", "krum", "geometric_median", "nnm | trimmed_mean")
OTHERS = ("torch.mean", "torch.median", "torch.cdist", "ByzFL NNM")
DASHES = ("--", (0, (4, 1)), (0, (1, 1)), "-.")


def plot_times(records: Sequence[dict[str, Any]], path: Path) -> None:
    """Write a picture of the records of a benchmark."""
    names = list(dict.fromkeys(r["name"] for r in records))
    rules = [name for name in names if not name.startswith(("ByzFL", "torch", "numpy"))]
    ours = [name for name in rules if name in SHOWN] or rules[:6]
    theirs = [name for name in OTHERS if name in names]
    style: dict[str, dict[str, Any]] = {}
    for i, name in enumerate(ours):
        style[name] = {"color": OURS[i % len(OURS)], "marker": MARKS[i % len(MARKS)]}
    for i, name in enumerate(theirs):
        style[name] = {
            "color": THEIRS[i > 0],
            "marker": MARKS[(i + len(ours)) % len(MARKS)],
            "linestyle": DASHES[i],
            "markerfacecolor": "white",
        }
    wide = max(r["d"] for r in records)
    by_rows = {n: {r["d"] for r in records if r["n"] == n} for n in {r["n"] for r in records}}
    tall = max(by_rows, key=lambda n: (len(by_rows[n]), -n))  # the n with the most d

    widths = sorted({r["d"] for r in records if r["n"] == tall})
    heights = sorted({r["n"] for r in records if r["d"] == wide})
    views = [("d", "n", tall, f"columns d, with n = {tall} rows")] if len(widths) > 1 else []
    if len(heights) > 1 or not views:
        views.append(("n", "d", wide, f"rows n, with d = {wide:,} columns"))

    figure = Figure(figsize=(2.6 + 3.5 * len(views), 5), layout="constrained")
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
        panel.grid(alpha=0.25, linewidth=0.6)
        panel.spines[["top", "right"]].set_visible(False)
        if across == "n":
            panel.set_xticks(heights, labels=[str(n) for n in heights])
            panel.xaxis.minorticks_off()
    panels[0].set_ylabel("time of one call (ms)")
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside right upper", frameon=False)
    figure.savefig(path, dpi=150)
