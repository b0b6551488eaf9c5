"""The roofline of a GPU, and the rules beneath it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

COLOURS = {"median": "#0072B2", "trimmed_mean": "#D55E00", "sqdist": "#009E73", "mean": "#777777"}
MARKS = {1_000_000: "o", 25_000_000: "s", 100_000_000: "^"}
LANES = 128  # instructions for float32 that a multiprocessor can issue in a clock cycle


def exchanges(rule: str, n: int, f: int) -> int:
    """Return the minima and maxima of a rule's network that a result depends on."""
    from fastgar.cpu.networks import pruned, sorting

    if rule not in ("median", "trimmed_mean"):
        return 0
    wanted, count = set(_wanted(rule, n, f)), 0
    for pair in reversed(list(pruned(sorting(n), wanted))):
        count += len(wanted.intersection(pair))
        wanted.update(pair)
    return count


def _wanted(rule: str, n: int, f: int) -> range:
    return range((n - 1) // 2, n // 2 + 1) if rule == "median" else range(f, n - f)


def operations(rule: str, n: int, f: int) -> int:
    """Return the instructions for a column that the arithmetic cannot do without.

    The minima and maxima, one for each value to find NaN, and one for each that is in the mean; a
    subtraction and a multiply-add for each pair of rows.
    """
    if rule == "sqdist":
        return n * (n - 1)
    if rule == "mean":
        return n
    return exchanges(rule, n, f) + n + len(_wanted(rule, n, f))


def plot(report: dict[str, Any], path: Path) -> None:
    """Write the picture: instructions a second over instructions per byte that must move."""
    from matplotlib.figure import Figure

    machine, bandwidth = report["machine"], report["bandwidth"]
    figure = Figure(figsize=(8, 5), layout="constrained")
    panel = figure.subplots()
    points = []
    for r in report["results"]:
        if r["rule"] not in COLOURS:
            continue
        moved = 4.0 * (r["n"] + (r["rule"] != "sqdist"))  # bytes per column
        work = operations(r["rule"], r["n"], r["f"])
        points.append((work / moved, work * r["d"] / r["seconds"], r))
    for x, y, r in points:
        mark = MARKS.get(r["d"], "x")
        panel.plot(x, y / 1e12, mark, color=COLOURS[r["rule"]], markersize=5)
        panel.annotate(str(r["n"]), (x, y / 1e12), (3, 3), textcoords="offset points", fontsize=6)
    right = 2 * max([x for x, _, _ in points], default=10.0)
    left = min([x for x, _, _ in points], default=0.1) / 2
    peak = machine.get("peak_instructions")
    ridge = min(right, peak / bandwidth) if peak else right
    panel.plot([left, ridge], [left * bandwidth / 1e12, ridge * bandwidth / 1e12], "k-",
               label=f"copy: {bandwidth / 1e12:.2f} TB/s, read and written")  # fmt: skip
    if peak:
        panel.plot([ridge, right], [peak / 1e12] * 2, "k--",
                   label=f"{LANES} instructions a cycle: {peak / 1e12:.0f} T/s")  # fmt: skip
    for rule, colour in COLOURS.items():
        panel.plot([], [], "o", color=colour, label=rule)
    for d in sorted({r["d"] for _, _, r in points}):
        panel.plot([], [], MARKS.get(d, "x"), color="black", label=f"{d:,} columns")
    panel.set(xscale="log", yscale="log", xlabel="instructions per byte that must move",
              ylabel="10¹² instructions a second")  # fmt: skip
    panel.set_title(f"{machine['gpu']}, float32; the number at a mark is n", fontsize=10)
    panel.grid(alpha=0.25, linewidth=0.6)
    panel.legend(fontsize=7, frameon=False)
    figure.savefig(path, dpi=150)
