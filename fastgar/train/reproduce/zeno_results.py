"""The figure and the table of the Zeno curves."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from statistics import fmean, pstdev
from typing import Any

from ..figures import CLEAN, DEVIATION, LEGEND, accuracies, look, panels, save
from ..origin import Origin
from .tables import Table
from .zeno import ATTACKS, RULES, SCENARIOS, SIZES

__all__ = ["curves", "table"]

Record = dict[str, Any]
NAMES = {
    "none": "no attack", "label_flip": "label flip", "bit_flip": "bit flip",
    "sign_flip": "sign flip",
}  # fmt: skip


def curves(records: Iterable[Record], folder: Path, origin: Origin) -> list[Path]:
    """Draw accuracy over steps: a panel for each scenario, a line for each rule.

    One row of panels for each number of attackers, a column for each attack.
    """
    figure, axes = panels(len(SIZES), len(ATTACKS) + 1, width=2.4, height=2.2)
    groups = _groups(records)
    rules = _rules(groups)
    looks = {**look(reversed(rules)), "mean": CLEAN}
    handles: dict[str, Any] = {}
    spare = axes[:, -1]
    places = {("none", 0): spare[0]}
    places |= {(a, q): axes[i, j] for i, q in enumerate(SIZES) for j, a in enumerate(ATTACKS)}
    for (attack, q), panel in places.items():
        for rule in rules:
            runs = groups.get((attack, q, rule))
            if runs:
                handles |= accuracies(panel, runs, rule, looks[rule])
        panel.set_ylim(0, 100)
        panel.set_title(_words(attack, q), fontsize=9)
    for panel in (*axes[-1], spare[0]):  # the lowest of each column
        panel.set_xlabel("step", fontsize=9)
        panel.tick_params(labelbottom=True)
    for panel in axes[:, 0]:
        panel.set_ylabel("test accuracy (%)", fontsize=9)
    for panel in spare[1:]:
        panel.set_axis_off()
    spare[1].legend(list(handles.values()), list(handles), loc="center", **LEGEND)
    figure.suptitle(origin.title, fontsize=11)
    return save(figure, folder, "zeno", origin, DEVIATION)


def table(records: Iterable[Record]) -> Table:
    """Return the accuracy of each rule in each scenario, late in the run."""
    groups = _groups(records)
    rules = _rules(groups)
    rows = []
    for attack, q in SCENARIOS:
        cells = []
        for rule in rules:
            late = [r["late"] for r in groups.get((attack, q, rule), []) if r["late"] is not None]
            cells.append(f"{100 * fmean(late):.1f} ± {100 * pstdev(late):.1f}" if late else "-")
        rows.append([_words(attack, q), *cells])
    note = "Test accuracy in %, mean over the last third of a run; mean and deviation over seeds."
    return Table("Zeno against rules that need a majority", ["", *rules], rows, 1, note)


def _groups(records: Iterable[Record]) -> dict[tuple[str, int, str], list[Record]]:
    groups: dict[tuple[str, int, str], list[Record]] = {}
    for record in records:
        tags = record["tags"]
        groups.setdefault((tags["attack"], tags["q"], tags["rule"]), []).append(record)
    return groups


def _rules(groups: Iterable[tuple[str, int, str]]) -> list[str]:
    """Return the rules in their order, and then Zeno with ever more samples; runs end in any."""
    found = {rule for _, _, rule in groups}
    zenos = sorted(found.difference(RULES), key=lambda name: (len(name), name))
    return [*(rule for rule in RULES if rule in found), *zenos]


def _words(attack: str, q: int) -> str:
    return f"{NAMES[attack]}, {q} of 20" if q else NAMES[attack]
