"""The curves of "Zeno" (Xie, Koyejo and Gupta, ICML 2019): up to 12 of 20 workers attack.

The paper's failures are flipped labels and `bit_flip`, where all liars send one gradient of theirs
with its signs turned; `sign_flip` sends the mean of the honest ones so, and comes on top.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from statistics import fmean, pstdev
from typing import TYPE_CHECKING, Any

from ....errors import unknown
from ...figures import CLEAN, DEVIATION, LEGEND, accuracies, look, panels, save
from ..setting import Grid, Plain, Record, Records, Setting, Table

if TYPE_CHECKING:
    from ...origin import Origin

__all__ = ["ATTACKS", "DATA", "RULES", "SCENARIOS", "SIZES", "figures", "grid", "tables"]

WORKERS = 20
ATTACKS = ("label_flip", "bit_flip", "sign_flip")
SIZES = (8, 12)
SCENARIOS = (("none", 0), *((attack, q) for attack in ATTACKS for q in SIZES))
RULES = ("mean", "krum", "median")
DECLARED = 8  # Krum and the median take at most 8 and 9 of 20
LEFT_OUT = {0: 12, 8: 12, 12: 16}  # Zeno's b for each number of attackers
# Validation samples in a step: the paper's 4, and on the digits also as many as tell a majority of
# liars whose labels are flipped from honest workers.
SAMPLES = {"cifar10": (4,), "digits": (4, 64)}
VALIDATION = 0.1  # of the training samples are the server's, for Zeno to judge by
QUICK_STEPS = 20
NAMES = {
    "none": "no attack", "label_flip": "label flip", "bit_flip": "bit flip",
    "sign_flip": "sign flip",
}  # fmt: skip

NUMBERS: dict[str, dict[str, Plain]] = {
    "digits": {"model": "mlp", "batch": 32, "lr": 0.1, "steps": 400, "evaluate_every": 10},
    # 200 epochs of 50,000 samples, which 20 workers go through in 25 steps of 100 each.
    "cifar10": {
        "model": "cnn-cifar", "batch": 100, "lr": 0.05, "steps": 5000, "evaluate_every": 25,
    },
}  # fmt: skip
DATA = tuple(NUMBERS)


def grid(data: str = "digits", *, quick: bool = False) -> Grid:
    """Return three rules, and Zeno with each number of samples, in seven scenarios.

    Raises
    ------
    ValueError
        If there is no such grid for the data set.

    Examples
    --------
    >>> len(grid().settings)
    35
    """
    if data not in NUMBERS:
        raise unknown("data set of the Zeno curves", data, NUMBERS)
    options = {
        "data": data, "workers": WORKERS, "momentum": 0.0, "validation": VALIDATION,
        **NUMBERS[data],
    }  # fmt: skip
    if quick:
        options |= {"steps": QUICK_STEPS, "evaluate_every": QUICK_STEPS // 4}
    settings = []
    for attack, q in SCENARIOS:
        rules = [(rule, rule, 0 if rule == "mean" else DECLARED) for rule in RULES]
        rules += [
            (f"zeno ({samples} samples)", f"zeno(b={LEFT_OUT[q]}, samples={samples})", LEFT_OUT[q])
            for samples in SAMPLES[data]
        ]
        for rule, spec, declared in rules:
            config: dict[str, Plain] = {
                "rule": spec, "attack": attack, "byzantine": q, "declared": declared,
            }  # fmt: skip
            tags: dict[str, Plain] = {"rule": rule, "attack": attack, "q": q}
            settings.append(Setting(f"{attack}-{q}-{rule}", {**options, **config}, tags))
    return Grid(
        "zeno", data, tuple(settings), "quick" if quick else "", tables=tables, figures=figures
    )


def figures(records: Records, folder: Path, origin: Origin) -> list[Path]:
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


def tables(records: Records) -> list[Table]:
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
    return [Table("Zeno against rules that need a majority", ["", *rules], rows, 1, note)]


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
