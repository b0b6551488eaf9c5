"""Accuracy over training steps: one panel per attack, one line per rule."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from .figures import DASHES, dress, look
from .origin import Origin

__all__ = ["plot_accuracy"]

MEAN = {"color": "#000000", "linestyle": "--", "linewidth": 1.8}  # the same in every picture
PER_ROW = 4


def plot_accuracy(evaluations: Sequence[dict[str, Any]], path: Path, origin: Origin) -> None:
    """Write a picture of accuracy over steps.

    Parameters
    ----------
    evaluations : sequence of dict
        Records with rule, attack, step, loss and accuracy; at least one.
    path : Path
        Where to, as PNG.
    origin : Origin
    """
    attacks = list(dict.fromkeys(e["attack"] for e in evaluations))
    rules = list(dict.fromkeys(e["rule"] for e in evaluations))
    across = min(len(attacks), PER_ROW)
    down = -(-len(attacks) // PER_ROW)
    width = max(6.0, 3.1 * across)
    longest = max(map(len, rules), default=0)
    per_row = max(1, min(len(rules), int(width / (0.7 + 0.085 * longest))))
    height = 0.9 + 2.9 * down + 0.3 * -(-len(rules) // per_row)
    figure = Figure(figsize=(width, height), layout="constrained")
    others = look((rule for rule in rules if rule != "mean"), (DASHES[0], *DASHES[2:5]))
    looks = {name: {**each, "linewidth": 1.8} for name, each in others.items()} | {"mean": MEAN}
    last = max(e["step"] for e in evaluations)
    panels = figure.subplots(down, across, sharex=True, sharey=True, squeeze=False)
    for panel in panels.flat[len(attacks) :]:
        panel.set_visible(False)
    for attack, panel in zip(attacks, panels.flat, strict=False):
        for rule in rules:
            points = [e for e in evaluations if e["attack"] == attack and e["rule"] == rule]
            panel.plot(
                [e["step"] for e in points],
                [100 * e["accuracy"] for e in points],
                **looks[rule],
                label=rule,
            )
            if points and (points[-1]["step"] < last or not _finite(points[-1]["loss"])):
                _mark_end(panel, points[-1], looks[rule]["color"])
        panel.set_title("no attack" if attack == "none" else attack, fontsize=11)
        panel.set_ylim(0, 102)
        dress(panel)
    for number, panel in enumerate(panels.flat[: len(attacks)]):
        if number + across >= len(attacks):  # the lowest of its column
            panel.set_xlabel("step")
            panel.tick_params(labelbottom=True)
    for row in panels:
        row[0].set_ylabel("test accuracy (%)")
    handles, labels = panels.flat[0].get_legend_handles_labels()
    figure.legend(
        handles, labels, loc="outside lower center", ncols=per_row, frameon=False,
        handlelength=3,
    )  # fmt: skip
    figure.suptitle(origin.title, fontsize=11)
    origin.save(figure, path, "one run each")


def _finite(loss: float | None) -> bool:
    return loss is not None and math.isfinite(loss)


def _mark_end(panel: Any, last: dict[str, Any], colour: str) -> None:
    """Mark where a run stopped before the others, or because its loss was no longer finite."""
    height = 100 * last["accuracy"]
    panel.plot(last["step"], height, "x", color=colour)
    below = height > 50
    panel.annotate(
        "stopped" if _finite(last["loss"]) else "loss not finite",
        (last["step"], height),
        xytext=(0, -8 if below else 8),
        textcoords="offset points",
        ha="center",
        va="top" if below else "bottom",
        fontsize=8,
        color=colour,
        bbox={"facecolor": "white", "edgecolor": "none", "alpha": 0.8, "pad": 0.5},
    )
