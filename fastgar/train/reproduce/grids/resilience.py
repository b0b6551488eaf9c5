"""Every robust rule against every attack, for several f and kinds of data.

Drawn are the heat map of all of them, and each rule's worst case, as a picture and a table. A run
that an error ended before its first evaluation has no accuracy and is nobody's worst case: a rule
that searches may come to its limit, an attack may not work on a rule. But where the loss was not
finite by then, nothing was learnt: 0.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from itertools import product
from pathlib import Path
from statistics import fmean, pstdev
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

import fastgar as fg

from ....errors import unknown
from ...figures import COLOURS, LEGEND, panels, save
from ..setting import Grid, Plain, Record, Records, Setting, Table

if TYPE_CHECKING:
    from ...origin import Origin

__all__ = ["ATTACKS", "DATA", "RULES", "figures", "grid", "tables"]

WORKERS = 20
SIZES = (2, 4)
SPLITS = ("iid", "dirichlet(0.5)", "extreme")
# By kind; averaging comes first, for comparison. A tau of 10 is about how far apart honest momenta
# are here: with 1 nothing trains without an attack either, with 30 one huge row is enough.
RULES = (
    "mean",
    "median", "trimmed_mean", "meamed", "phocas",
    "krum", "multi_krum", "bulyan", "mda", "mva", "smea",
    "geometric_median", "rfa", "centered_clipping(tau=10.0)", "aksel", "monna", "caf", "dnc",
    "fltrust",
    "bucketing(s=2) | median", "nnm | krum", "nnm | trimmed_mean", "nnm | geometric_median",
    "arc | nnm | trimmed_mean",
)  # fmt: skip
ATTACKS = (
    "none",
    "little", "empire", "empire_strict", "optimal(little)", "optimal(empire)",
    "sign_flip", "reverse", "bit_flip", "label_flip",
    "bulyan", "fang", "anti_cge", "min_max", "min_sum", "mimic", "mimic_heuristic",
    "gaussian", "random", "huge", "zero", "drop", "nan", "inf",
)  # fmt: skip
AIMED = ("optimal(little)", "optimal(empire)", "mimic")  # these try the rule before they send
OPTIONS: dict[str, Plain] = {
    "model": "mlp", "workers": WORKERS, "batch": 16, "lr": 0.1, "momentum": 0.9,
    "momentum_at": "worker", "steps": 150, "evaluate_every": 10,
    "validation": 0.1,  # FLTrust needs data of the server's own, and the others are to have no more
}  # fmt: skip
DATA = ("digits", "mnist", "fashion-mnist")
Axes = tuple[tuple[int, ...], tuple[str, ...], tuple[str, ...], tuple[str, ...]]
FULL: Axes = (SIZES, SPLITS, RULES, ATTACKS)
QUICK: Axes = (
    (2,), ("iid", "extreme"), ("mean", "median", "nnm | krum"),
    ("none", "little", "sign_flip", "nan"),
)  # fmt: skip
QUICK_STEPS = 20

Case = tuple[int, str, str, str]  # f, split, rule, attack
HEAT = "cividis"  # the same to any colour vision, and lighter is better in grey too
CELL = 0.27  # inches
MARKS = ("o", "s", "D", "v")


def grid(data: str = "digits", *, quick: bool = False) -> Grid:
    """Return every rule that can take f of 20 rows, under every attack by f of them.

    Attacks that try the rule cannot try one that compares with what no adversary sees (FLTrust).

    Raises
    ------
    ValueError
        If there is no such grid for the data set.
    """
    if data not in DATA:
        raise unknown("data set of the resilience map", data, DATA)
    options = {"data": data, **OPTIONS}
    if quick:
        options |= {"steps": QUICK_STEPS, "evaluate_every": QUICK_STEPS // 4}
    settings = []
    for f, split, rule, attack in product(*(QUICK if quick else FULL)):
        tried = fg.rule(rule, f=f)
        if tried.check(WORKERS) is not None or (attack in AIMED and "reference" in tried.refs):
            continue
        config: dict[str, Plain] = {
            "rule": rule, "attack": attack, "split": split,
            "byzantine": 0 if attack == "none" else f, "declared": f,
        }  # fmt: skip
        tags: dict[str, Plain] = {"rule": rule, "attack": attack, "f": f, "split": split}
        settings.append(
            Setting(f"{attack} - {rule} - f={f} - {split}", {**options, **config}, tags)
        )
    return Grid(
        "resilience", data, tuple(settings), "quick" if quick else "", "1..3", tables=tables,
        figures=figures,
    )  # fmt: skip


class Accuracy(NamedTuple):
    """Of some runs that differ in their seeds alone."""

    mean: float
    deviation: float


def figures(records: Records, folder: Path, origin: Origin) -> list[Path]:
    """Draw worst cases, and everything."""
    return [*worst_map(records, folder, origin), *heat_map(records, folder, origin)]


def worst_map(records: Records, folder: Path, origin: Origin) -> list[Path]:
    """Draw the worst accuracy of each rule over all attacks: a panel for each split, a mark for f.

    A bar is a deviation over the seeds to both sides, a tick the accuracy without an attack.
    """
    found = _accuracies(records)
    sizes, splits, rules, _ = _axes(found)
    figure, axes = panels(1, len(splits), width=2.2, height=0.17 * len(rules), extra=1.2)
    handles: dict[str, Any] = {}
    for split, panel in zip(splits, axes[0], strict=True):
        for number, f in enumerate(sizes):
            shift = 0.34 * (number / max(1, len(sizes) - 1) - 0.5)
            for row, rule in enumerate(rules):
                colour, worst = COLOURS[number], _worst(found, f, split, rule)
                if worst is not None:
                    accuracy = found[f, split, rule, worst]
                    assert accuracy is not None
                    handles[f"worst attack by f = {f} of 20"] = panel.errorbar(
                        100 * accuracy.mean, row + shift, xerr=100 * accuracy.deviation,
                        fmt=MARKS[number], color=colour, markersize=4, elinewidth=1.2,
                    )  # fmt: skip
        for row, rule in enumerate(rules):
            clean = found.get((sizes[0], split, rule, "none"))
            if clean is not None:
                handles["no attack"] = panel.plot(
                    100 * clean.mean, row, "|", color="black", markersize=8
                )[0]
        panel.set_title(split, fontsize=10)
        panel.set_xlim(0, 100)
        panel.set_xlabel("test accuracy (%)", fontsize=9)
    axes[0, 0].set_yticks(range(len(rules)), labels=rules, fontsize=8.5)
    axes[0, 0].set_ylim(len(rules) - 0.5, -0.5)
    figure.legend(
        list(handles.values()), list(handles), loc="outside lower center", ncols=len(handles),
        **LEGEND,
    )  # fmt: skip
    figure.suptitle(f"{origin.title}: the worst of {len(_axes(found)[3]) - 1} attacks", fontsize=11)
    return save(figure, folder, "resilience", origin, "mean, and bars of one deviation")


def heat_map(records: Records, folder: Path, origin: Origin) -> list[Path]:
    """Draw accuracies late in the runs, a panel for each f and split; the worst in the margin."""
    from matplotlib.figure import Figure

    found = _accuracies(records)
    sizes, splits, rules, attacks = _axes(found)
    width = CELL * (len(attacks) + 2) * len(splits) + 3.2
    height = CELL * 0.8 * len(rules) * len(sizes) + 2.4
    figure = Figure(figsize=(width, height), layout="constrained")
    axes = figure.subplots(len(sizes), len(splits), sharex=True, sharey=True, squeeze=False)
    image: Any = None
    for f, row in zip(sizes, axes, strict=True):
        for split, panel in zip(splits, row, strict=True):
            cases = [[found.get((f, split, rule, a)) for a in attacks] for rule in rules]
            cells = np.array([[np.nan if c is None else c.mean for c in case] for case in cases])
            image = _panel(panel, cells)
            panel.set_title(f"f = {f}, {split}", fontsize=10)
            panel.set_yticks(range(len(rules)), labels=rules, fontsize=8)
    for panel in axes[-1]:
        at = [*range(len(attacks)), len(attacks) + 0.5]
        panel.set_xticks(at, labels=[*attacks, "worst"], fontsize=8, rotation=90)
    bar = figure.colorbar(image, ax=axes, shrink=0.6, pad=0.01)
    bar.set_label("test accuracy (%); grey: not run", fontsize=9)
    bar.ax.tick_params(labelsize=8)
    figure.suptitle(origin.title, fontsize=12)
    return save(figure, folder, "resilience-map", origin, "means")


def tables(records: Records) -> list[Table]:
    """Return, for each rule, its worst accuracy at each f and split, and which attack it is."""
    found = _accuracies(records)
    columns = sorted(dict.fromkeys(key[:2] for key in found), key=lambda column: column[0])
    rows = []
    for rule in _axes(found)[2]:
        cells = []
        for f, split in columns:
            worst = _worst(found, f, split, rule)
            accuracy = None if worst is None else found[f, split, rule, worst]
            cells.append("-" if accuracy is None else f"{_percent(accuracy)} ({worst})")
        rows.append([rule, *cells])
    heads = ["rule", *(f"f = {f}, {split}" for f, split in columns)]
    lacking = sorted(
        {f"{rule} under {attack}" for (_, _, rule, attack), a in found.items() if not a}
    )
    note = (
        "Test accuracy in %, mean over the last third of a run; mean and deviation over seeds, of "
        "the attack that is worst on average."
    )
    if lacking:
        note += f" Could not run, and do not count: {', '.join(lacking)}."
    return [Table("The worst attack on each rule", heads, rows, len(heads), note)]


def _accuracies(records: Iterable[Record]) -> dict[Case, Accuracy | None]:
    """Return accuracies late in the runs of each case, or None where none could run."""
    values: dict[Case, list[float]] = {}
    for record in records:
        tags, late = record["tags"], record["late"]
        found = values.setdefault((tags["f"], tags["split"], tags["rule"], tags["attack"]), [])
        if late is not None:
            found.append(late)
        elif record["stopped"].startswith("loss not finite"):
            found.append(0.0)
    return {key: Accuracy(fmean(a), pstdev(a)) if a else None for key, a in values.items()}


def _axes(found: Iterable[Case]) -> tuple[list[int], list[str], list[str], list[str]]:
    """Return sizes, splits, rules and attacks that there are, in order."""
    sizes, splits, rules, attacks = (dict.fromkeys(each) for each in zip(*found, strict=True))
    known = [rule for rule in RULES if rule in rules], [a for a in ATTACKS if a in attacks]
    return sorted(sizes), list(splits), *known


def _worst(found: Mapping[Case, Accuracy | None], f: int, split: str, rule: str) -> str | None:
    """Return the attack that leaves a rule the least accuracy."""
    here = {
        key[3]: each.mean for key, each in found.items() if each and key[:3] == (f, split, rule)
    }
    return min(here, key=lambda attack: here[attack], default=None)


def _percent(accuracy: Accuracy) -> str:
    return f"{100 * accuracy.mean:.0f} ± {100 * accuracy.deviation:.0f}"


def _panel(panel: Any, cells: NDArray[np.float64]) -> Any:
    """Draw the cells with their numbers, and the least of each row beside them."""
    import matplotlib

    rules, attacks = cells.shape
    known = np.isfinite(cells).any(axis=1)
    worst = np.full((rules, 1), np.nan)
    worst[known, 0] = np.nanmin(cells[known], axis=1)
    colours = matplotlib.colormaps[HEAT].with_extremes(bad="#dddddd")
    image = None
    for values, left in ((cells, -0.5), (worst, attacks)):
        extent = (left, left + values.shape[1], rules - 0.5, -0.5)
        image = panel.imshow(
            100 * values, cmap=colours, vmin=0, vmax=100, aspect="auto", extent=extent,
            interpolation="nearest",
        )  # fmt: skip
        for (i, j), value in np.ndenumerate(values):
            if np.isfinite(value):
                panel.text(
                    left + j + 0.5, i, f"{100 * value:.0f}", ha="center", va="center",
                    fontsize=6.5, color="black" if value > 0.5 else "white",
                )  # fmt: skip
    panel.set_xlim(-0.5, attacks + 1)
    panel.set_ylim(rules - 0.5, -0.5)
    panel.tick_params(length=0)
    panel.spines[:].set_visible(False)
    return image
