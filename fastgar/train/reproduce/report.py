"""What is made of the results of a grid: its tables and figures."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .setting import Grid
from .tables import Table, by_rule, overview

__all__ = ["figures", "tables", "words"]

Records = Sequence[dict[str, Any]]


def tables(grid: Grid, records: Records) -> list[Table]:
    """Return the tables of a grid, of as many runs as there are."""
    if grid.name == "momentum":
        return [overview(records), by_rule(records)]
    if grid.name == "zeno":
        from .zeno_results import table

        return [table(records)]
    if grid.name == "kappa":
        from . import kappa

        return [kappa.overview(records)]
    from .resilience_results import worst_cases

    return [worst_cases(records)]


def words(grid: Grid, record: dict[str, Any]) -> str:
    """Return how a run ended, in a few words."""
    seconds = f"in {record['seconds']:.1f} s"
    if grid.name == "kappa":
        return f"{float(record['witness']['ratio']):.5g} {seconds}"
    stopped = f", stopped: {record['stopped']}" if record["stopped"] else ""
    best = "-" if record["best"] is None else f"{100 * record['best']:.1f} %"
    return f"{best} {seconds}{stopped}"


def figures(grid: Grid, records: Records, folder: Path) -> list[Path]:
    """Draw the figures of a grid, if it has any; return where they are: each as PNG and SVG."""
    title = grid.title
    if grid.name == "kappa":
        return []
    if grid.name == "momentum":
        from . import momentum_figures as momentum

        return [
            *momentum.accuracy(records, folder, title),
            *momentum.boxes(records, folder, title),
            *momentum.ratios(records, folder, title),
        ]
    if grid.name == "zeno":
        from .zeno_results import curves

        return curves(records, folder, title)
    from .resilience_results import heat_map

    return heat_map(records, folder, title)
