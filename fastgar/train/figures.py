"""What all figures have in common: colours, dashes, panels, a legend beside them, two files."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import cycle
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np

from .origin import Origin

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = [
    "BLUE", "CLEAN", "COLOURS", "DASHES", "DEVIATION", "LEGEND", "RED", "Line", "accuracies",
    "band", "draw", "dress", "legend_below", "look", "panels", "save",
]  # fmt: skip

Curve = Sequence[tuple[int, float | None]]
Record = dict[str, Any]
Style = Mapping[str, Any]

# Okabe and Ito's colours, told apart with any colour vision; dashes tell the lines apart in grey.
BLUE, RED, *_ = COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
DASHES: tuple[Any, ...] = ("-", "--", "-.", (0, (1, 1)), (0, (5, 1, 1, 1, 1, 1)), (0, (8, 2)))
QUARTILES = (0.25, 0.5, 0.75)
DEVIATION = "mean, and a band of one deviation to both sides"
LEAST_WIDTH = 4.2  # inches, so that there is room for any line of a legend
LEGEND: dict[str, Any] = {"frameon": False, "handlelength": 3.2, "fontsize": 9}
CLEAN: dict[str, Any] = {"color": "#000000", "linestyle": "-", "linewidth": 1.1}


class Line(NamedTuple):
    """A line over steps, and a band around it."""

    steps: Any
    middle: Any
    low: Any
    high: Any


def look(names: Iterable[str], dashes: Iterable[Any] = DASHES) -> dict[str, dict[str, Any]]:
    """Return a colour and dashes for each of some lines."""
    pairs = zip(cycle(COLOURS), cycle(dashes), strict=False)
    return {
        name: {"color": colour, "linestyle": dashes, "linewidth": 1.6}
        for name, (colour, dashes) in zip(names, pairs, strict=False)
    }


def band(curves: Sequence[Curve], how: Literal["deviation", "quartiles"] = "deviation") -> Line:
    """Return what some curves have in common: a line, and a band around it.

    Runs that stopped early count as long as they last, and steps that less than half of the curves
    have do not count; nor does what is not finite.

    Parameters
    ----------
    curves : sequence of curves
        Each a list of (step, value).
    how : {"deviation", "quartiles"}
        The mean and a deviation to both sides, or the median between the quartiles.
    """
    values: dict[int, list[float]] = {}
    for curve in curves:
        for step, value in curve:
            if value is not None:
                values.setdefault(step, []).append(value)
    steps = sorted(step for step in values if 2 * len(values[step]) >= len(curves))
    if how == "quartiles":
        found = np.array([np.quantile(values[step], QUARTILES) for step in steps])
        low, middle, high = found.reshape(-1, 3).T
        return Line(np.array(steps), middle, low, high)
    mean = np.array([np.mean(values[step]) for step in steps])
    deviation = np.array([np.std(values[step]) for step in steps])
    return Line(np.array(steps), mean, mean - deviation, mean + deviation)


def accuracies(panel: Any, runs: Sequence[Record], name: str, style: Style) -> dict[str, Any]:
    """Draw the accuracies of some runs in %, and return what is to be in the legend.

    A cross marks where a run stopped early.
    """
    handles = {name: draw(panel, band([run["accuracy"] for run in runs]), style, 100)}
    for run in runs:
        if run["stopped"] and run["accuracy"]:
            step, accuracy = run["accuracy"][-1]
            (mark,) = panel.plot(step, 100 * accuracy, "x", color="#000000", markersize=4)
            handles["stopped early"] = mark
    return handles


def draw(panel: Any, line: Line, style: Style, scale: float = 1) -> Any:
    """Draw a line with its band, and return the line."""
    panel.fill_between(
        line.steps, scale * line.low, scale * line.high, color=style["color"], alpha=0.15, lw=0
    )
    return panel.plot(line.steps, scale * line.middle, **style)[0]


def panels(
    down: int, across: int, *, width: float = 2.7, height: float = 2.2, extra: float = 0.9
) -> tuple[Figure, Any]:
    """Return a figure and its panels, an array of so many rows and columns, with equal axes."""
    from matplotlib.figure import Figure

    wide = max(LEAST_WIDTH, width * across + 0.6)
    figure = Figure(figsize=(wide, height * down + extra), layout="constrained")
    axes = figure.subplots(down, across, sharex=True, sharey=True, squeeze=False)
    for panel in axes.flat:
        dress(panel)
        panel.tick_params(labelsize=8)
    return figure, axes


def dress(panel: Any) -> None:
    """Give a panel faint lines to read values by, and no frame but its two axes."""
    panel.grid(alpha=0.25, linewidth=0.6)
    panel.spines[["top", "right"]].set_visible(False)


def legend_below(figure: Figure, handles: Mapping[str, Any]) -> None:
    """Put the legend below all panels, where it hides nothing, in as many lines as it needs."""
    width = figure.get_size_inches()[0]
    longest = max(map(len, handles), default=1)
    across = max(1, min(len(handles), int(width / (0.75 + 0.07 * longest))))
    figure.legend(
        list(handles.values()), list(handles), loc="outside lower center", ncols=across, **LEGEND
    )


def save(figure: Figure, folder: Path, name: str, origin: Origin, spread: str) -> list[Path]:
    """Write a figure as PNG and as SVG, with a line on where it comes from, and return where."""
    import matplotlib

    png, svg = folder / f"{name}.png", folder / f"{name}.svg"
    origin.save(figure, png, spread)
    # Text stays text, to be searched and read aloud; and the same picture is the same file.
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "fastgar"}):
        figure.savefig(svg, metadata={"Date": None})
    return [png, svg]
