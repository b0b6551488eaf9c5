"""Accuracy over training steps: one panel per attack, one line per rule."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

__all__ = ["plot_accuracy"]

# Okabe and Ito's colours, told apart with any colour vision; dashes tell the lines apart in grey.
COLOURS = ("#000000", "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
DASHES = ("--", "-", "-.", (0, (1, 1)), (0, (5, 1, 1, 1, 1, 1)))
PER_ROW = 4


def plot_accuracy(evaluations: Sequence[dict[str, Any]], path: Path, title: str) -> None:
    """Write a picture of accuracy over steps.

    Parameters
    ----------
    evaluations : sequence of dict
        Records with rule, attack, step and accuracy.
    path : Path
        Where to; the ending says in which format.
    title : str
    """
    attacks = list(dict.fromkeys(e["attack"] for e in evaluations))
    rules = list(dict.fromkeys(e["rule"] for e in evaluations))
    across = min(len(attacks), PER_ROW)
    down = -(-len(attacks) // PER_ROW)
    legend_rows = -(-len(rules) // 4)
    height = 0.9 + 2.9 * down + 0.3 * legend_rows
    figure = Figure(figsize=(max(6.0, 3.1 * across), height), layout="constrained")
    panels = figure.subplots(down, across, sharex=True, sharey=True, squeeze=False)
    for panel in panels.flat[len(attacks) :]:
        panel.set_visible(False)
    for attack, panel in zip(attacks, panels.flat, strict=False):
        for number, rule in enumerate(rules):
            points = [e for e in evaluations if e["attack"] == attack and e["rule"] == rule]
            panel.plot(
                [e["step"] for e in points],
                [100 * e["accuracy"] for e in points],
                color=COLOURS[number % len(COLOURS)],
                linestyle=DASHES[number % len(DASHES)],
                linewidth=1.8,
                label=rule,
            )
            if points and not _finite(points[-1]["loss"]):
                _mark_end(panel, points[-1], COLOURS[number % len(COLOURS)])
        panel.set_title("no attack" if attack == "none" else attack, fontsize=11)
        panel.set_ylim(0, 102)
        panel.grid(alpha=0.25, linewidth=0.6)
        panel.spines[["top", "right"]].set_visible(False)
    for panel in panels[-1]:
        panel.set_xlabel("step")
    for row in panels:
        row[0].set_ylabel("test accuracy (%)")
    handles, labels = panels.flat[0].get_legend_handles_labels()
    figure.legend(
        handles, labels, loc="outside lower center", ncols=min(4, len(rules)), frameon=False,
        handlelength=3,
    )  # fmt: skip
    figure.suptitle(title, fontsize=11)
    figure.savefig(path, dpi=150)


def _finite(loss: float | None) -> bool:
    return loss is not None and math.isfinite(loss)


def _mark_end(panel: Any, last: dict[str, Any], colour: str) -> None:
    """Mark where a run stopped because its loss was no longer finite."""
    height = 100 * last["accuracy"]
    panel.plot(last["step"], height, "x", color=colour)
    below = height > 50
    panel.annotate(
        "loss not finite",
        (last["step"], height),
        xytext=(0, -8 if below else 8),
        textcoords="offset points",
        ha="center",
        va="top" if below else "bottom",
        fontsize=8,
        color=colour,
    )
