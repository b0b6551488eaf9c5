"""What ``fastgar train`` says at its end: a table, and a picture."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .tables import text_table

if TYPE_CHECKING:
    from ..train import Config
    from ..train.results import Results

__all__ = ["percent", "report"]


def report(
    table: list[dict[str, Any]], config: Config, results: Results, out: Path, worst: bool,
    command: str,
) -> None:  # fmt: skip
    """Print the table of what was asked for, and draw everything that the file has."""
    if not table:
        return
    heads = ["rule", "attack", "accuracy", "lowest", "ms/aggregation", "weight of liars", "stopped"]
    if worst:
        heads.insert(3, "harm")
        _sort_by_harm(table)
    rows = [_cells(line, worst) for line in table]
    if not any(row[-1] for row in rows):
        heads, rows = heads[:-1], [row[:-1] for row in rows]
    q, n = config.byzantine, config.workers
    fair = f" (a share of {q / n:.1%})" if q else ""
    print(
        f"\n{config.data}: {n} workers of which {q} attack{fair}, {config.steps} steps, momentum "
        f"{config.momentum:g} at the {config.momentum_at}.\n"
        "Accuracy is the mean over the last third of the evaluations, lowest the least of them.\n"
        + (
            "Harm is what is lost of the accuracy without an attack; the worst come first.\n"
            * worst
        )
    )
    print(text_table(heads, rows, right=range(2, 6 + worst)))
    from ..train.origin import Origin
    from ..train.plot import plot_accuracy

    picture = out / "accuracy.png"
    evaluations = [line for line in results.evaluations if line["accuracy"] is not None]
    if evaluations:
        title = f"{n} workers, {q} of them Byzantine, momentum at the {config.momentum_at}"
        plot_accuracy(evaluations, picture, Origin(title, command, (config.seed,)))
        print(f"\n{os.path.join(out, 'results.jsonl')}, {picture}")


def _sort_by_harm(table: list[dict[str, Any]]) -> None:
    """Give each line its harm, and sort: rule by rule, runs that stopped first, then by harm."""
    rules = list(dict.fromkeys(line["rule"] for line in table))
    clean = {line["rule"]: line["accuracy"] for line in table if line["attack"] == "none"}
    for number, line in enumerate(table):
        known = line["accuracy"] is not None and clean.get(line["rule"]) is not None
        harm = clean[line["rule"]] - line["accuracy"] if known else None
        table[number] = {**line, "harm": harm}
    table.sort(key=lambda line: (rules.index(line["rule"]), -(line["harm"] or 0.0)))
    table.sort(key=lambda line: (rules.index(line["rule"]), line["stopped"] is None))


def _cells(line: dict[str, Any], worst: bool) -> list[str]:
    cells = [
        line["rule"],
        line["attack"],
        percent(line["accuracy"]),
        percent(line["lowest"]),
        "-" if line["milliseconds"] is None else f"{line['milliseconds']:.3f}",
        percent(line["weight"]),
        line["stopped"] or "",
    ]
    if worst:
        cells.insert(3, percent(line["harm"]))
    return cells


def percent(share: float | None) -> str:
    return "-" if share is None else f"{round(share, 4) + 0.0:.1%}"  # + 0: no "-0.0%"
