"""A picture of a cluster's run: accuracy, spread, messages and bytes over steps."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from ..train.figures import dress, legend_below, look
from ..train.origin import Origin
from .cluster import Cluster

__all__ = ["plot_run"]

Line = dict[str, Any]
PANELS = (  # kind of line, what of it, in which unit, and how it is called
    ("evaluation", "accuracy", 100, "test accuracy (%)"),
    ("spread", "spread", 1, "spread of the honest servers"),
    ("traffic", "messages", 1, "messages a step"),
    ("traffic", "bytes", 1e-3, "kilobytes a step"),
)
FAINTEST = 0.15  # of the lines, where there are many seeds


def plot_run(lines: Sequence[Line], cluster: Cluster, path: Path, origin: Origin) -> None:
    """Write a picture of what came of a cluster.

    Parameters
    ----------
    lines : sequence of dict
        As in ``results.jsonl``: evaluations, spreads and traffic, of one seed or of several.
    cluster : Cluster
    path : Path
        Where to, as PNG.
    origin : Origin
    """
    lines = [line for line in lines if _has_its_numbers(line)]
    servers = cluster.of_role("server")
    looks = look(servers)
    seeds = sorted({line.get("seed", 0) for line in lines})
    alpha = max(FAINTEST, len(seeds) ** -0.5)
    wide = any(line["spread"] for line in lines if line["kind"] == "spread")
    chosen = [panel for panel in PANELS if wide or panel[0] != "spread"]
    across = 2 if wide else 3
    down = -(-len(chosen) // across)
    figure = Figure(figsize=(3.8 * across, 2.2 * down + 1), layout="constrained")
    panels = figure.subplots(down, across, sharex=True, squeeze=False)
    handles: dict[str, Any] = {}
    for (kind, what, unit, name), panel in zip(chosen, panels.flat, strict=True):
        for seed in seeds:
            here = [line for line in lines if line["kind"] == kind and line.get("seed", 0) == seed]
            if kind != "evaluation":
                if kind == "traffic" and here:  # of all steps up to the one that a line names
                    here = [{**min(here, key=lambda line: line["step"]), "step": 0}, *here]
                drawn = _draw(panel, here, what, unit, color="#000000", linewidth=1.4, alpha=alpha)
                drawn.set_drawstyle("steps-pre" if kind == "traffic" else "default")
                continue
            for server in servers:
                own = [line for line in here if line["node"] == server]
                if own:
                    drawn = _draw(panel, own, what, unit, **looks[server], alpha=alpha)
                    lies = " (lies)" if server in cluster.liars else ""
                    handles.setdefault(f"{server}{lies}", drawn)
        estimated = any(line.get("estimated") for line in lines if line["kind"] == kind)
        panel.set_title(f"{name}{' (estimated)' * estimated}", fontsize=10)
        panel.tick_params(labelsize=8)
        dress(panel)
        most = max((unit * line[what] for line in lines if line["kind"] == kind), default=0.0)
        panel.set_ylim(0, 102 if kind == "evaluation" else 1.1 * most or 1)
    for panel in panels[-1]:
        panel.set_xlabel("step")
    legend_below(figure, handles)
    figure.suptitle(origin.title, fontsize=11)
    origin.save(figure, path, "one run each")


def _has_its_numbers(line: Line) -> bool:
    """Say whether all that a line says is finite; in a file, what is not is null."""
    return all(
        value is not None and (not isinstance(value, float) or math.isfinite(value))
        for value in line.values()
    )


def _draw(panel: Any, lines: Iterable[Line], what: str, unit: float, **style: Any) -> Any:
    """Draw a line over steps."""
    points = sorted((line["step"], unit * line[what]) for line in lines)
    return panel.plot([x for x, _ in points], [y for _, y in points], **style)[0]
