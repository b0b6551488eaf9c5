"""What a GPU can do at best: predicted times of the rules, and the picture of the roofline.

A time is predicted from two numbers of the GPU, its bandwidth and the instructions that it can
issue in a second. It is the larger of the time that the bytes need and the time that the
instructions need: the least that there can be. Pure functions; nothing here was measured.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

SHOWN = ("median", "trimmed_mean", "sqdist")
MARKS = {1_000_000: "o", 25_000_000: "s", 100_000_000: "^"}
FLOAT = 4  # bytes
HALF = 64  # minima and maxima that a multiprocessor of any architecture does in a clock cycle


def lanes(capability: tuple[int, int]) -> int:
    """Return the instructions for float32 that a multiprocessor can issue in a clock cycle."""
    return 64 if capability in ((7, 5), (8, 0)) else 128


def exchanges(rule: str, n: int, f: int) -> int:
    """Return the minima and maxima of a rule's network that a result depends on."""
    from fastgar.networks import pruned, sorting

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
    if rule == "combine":  # of one row
        return 1
    return exchanges(rule, n, f) + n + len(_wanted(rule, n, f))


def turns(rule: str, n: int, f: int, width: int = 128) -> int:
    """Return the instructions for a column, a minimum for as many as it takes the place of."""
    return operations(rule, n, f) + (width // HALF - 1) * exchanges(rule, n, f)


class Prediction(NamedTuple):
    """The two times of a rule, in seconds: of its bytes, and of its instructions."""

    memory: float
    arithmetic: float
    copied: float = 0.0  # of bytes that can only move when all else is done

    @property
    def seconds(self) -> float:
        return max(self.memory, self.arithmetic) + self.copied

    @property
    def limit(self) -> str:
        return "memory" if self.memory >= self.arithmetic else "arithmetic"


def vectors(rule: str, n: int) -> int:
    """Return how many vectors must move: the rows that are read, and the result."""
    return {"sqdist": n, "krum": n + 2, "combine": 2}.get(rule, n + 1)


def predicted(
    rule: str, n: int, f: int, d: int, bandwidth: float, peak: float | None, width: int = 128
) -> Prediction:
    """Return the least time for d columns of float32.

    Parameters
    ----------
    bandwidth : float
        Bytes a second.
    peak : float or None
        Instructions a second; None where it is not known, which leaves the memory.
    width : int
        `lanes` of the GPU: as often as `HALF` goes into it, a minimum takes longer than others.
    """
    if rule == "krum":  # the row that is nearest is copied when all distances are there
        first = predicted("sqdist", n, f, d, bandwidth, peak, width)
        return first._replace(copied=2 * d * FLOAT / bandwidth)
    moved = vectors(rule, n) * d * FLOAT
    return Prediction(moved / bandwidth, turns(rule, n, f, width) * d / peak if peak else 0.0)


def plot(report: dict[str, Any], path: Path) -> None:
    """Write the picture: instructions a second over instructions per byte that must move."""
    from matplotlib.figure import Figure

    from fastgar.train.figures import COLOURS

    colours = dict(zip(SHOWN, COLOURS, strict=False))
    machine, bandwidth = report["machine"], report["bandwidth"]
    figure = Figure(figsize=(8, 5), layout="constrained")
    panel = figure.subplots()
    points = []
    for r in report["results"]:
        if r["rule"] not in SHOWN:
            continue
        moved = float(FLOAT * vectors(r["rule"], r["n"]))  # bytes per column
        work = turns(r["rule"], r["n"], r["f"], machine.get("lanes", 128))
        points.append((work / moved, work * r["d"] / r["seconds"], r))
    for x, y, r in points:
        mark = MARKS.get(r["d"], "x")
        panel.plot(x, y / 1e12, mark, color=colours[r["rule"]], markersize=5)
    lowest = {x: (y, r["n"]) for x, y, r in sorted(points, key=lambda point: -point[1])}
    for x, (y, n) in lowest.items():  # those of a rule and n stand above each other
        panel.annotate(str(n), (x, y / 1e12), (0, -6), textcoords="offset points", fontsize=7,
                       ha="center", va="top")  # fmt: skip
    right = 2 * max([x for x, _, _ in points], default=10.0)
    left = min([x for x, _, _ in points], default=0.1) / 2
    peak = machine.get("peak_instructions")
    ridge = min(right, peak / bandwidth) if peak else right
    panel.plot([left, ridge], [left * bandwidth / 1e12, ridge * bandwidth / 1e12], "k-",
               label=f"copy: {bandwidth / 1e12:.2f} TB/s, read and written")  # fmt: skip
    if peak:
        panel.plot([ridge, right], [peak / 1e12] * 2, "k--",
                   label=f"float32 instructions: {peak / 1e12:.0f} T/s")  # fmt: skip
    for rule, colour in colours.items():
        panel.plot([], [], "o", color=colour, label=rule)
    for d in sorted({r["d"] for _, _, r in points}):
        panel.plot([], [], MARKS.get(d, "x"), color="black", label=f"{d:,} columns")
    counted = " (a minimum counts for two)" if machine.get("lanes", 128) > HALF else ""
    panel.set(xscale="log", yscale="log", ylabel="10¹² instructions a second",
              xlabel=f"instructions per byte that must move{counted}")  # fmt: skip
    panel.set_title(f"{machine['gpu']}, float32; the number below marks is n", fontsize=10)
    for axis in (panel.xaxis, panel.yaxis):
        axis.set_major_formatter("{x:g}")
        axis.set_minor_formatter("{x:g}")
        axis.set_tick_params(which="both", labelsize=7)
    panel.grid(alpha=0.25, linewidth=0.6)
    panel.legend(fontsize=7, frameon=False, loc="upper left")
    figure.savefig(path, dpi=150)
