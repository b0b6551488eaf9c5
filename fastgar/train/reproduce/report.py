"""What is made of the results of a grid: its tables and figures."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..origin import Origin
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


def figures(
    grid: Grid, records: Records, folder: Path, sources: dict[str, str] | None = None
) -> list[Path]:
    """Draw the figures of a grid, if it has any; return where they are: each as PNG and SVG.

    `sources`: of the code that made the records, if that was not just now.
    """
    if grid.name == "kappa":
        return []
    seeds = tuple(sorted({record["seed"] for record in records}))
    origin = Origin(grid.title, grid.command, seeds, sources)
    if grid.name == "momentum":
        from . import momentum_figures as momentum

        return [
            *momentum.accuracy(records, folder, origin),
            *momentum.boxes(records, folder, origin),
            *momentum.ratios(records, folder, origin),
        ]
    if grid.name == "zeno":
        from .zeno_results import curves

        return curves(records, folder, origin)
    from .resilience_results import heat_map, worst_map

    return [*worst_map(records, folder, origin), *heat_map(records, folder, origin)]
