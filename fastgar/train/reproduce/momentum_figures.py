"""The figures of the momentum grid."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

import fastgar as fg

from ..figures import (
    BLUE,
    CLEAN,
    DEVIATION,
    RED,
    accuracies,
    band,
    draw,
    legend_below,
    look,
    panels,
    save,
)
from ..origin import Origin
from .setting import Record

__all__ = ["accuracy", "boxes", "ratios"]

# What there is to see, in order: rules, attacks, places of the momentum.
NAMES = {
    "krum": "Multi-Krum", "median": "median", "trimmed_mean": "trimmed mean", "phocas": "phocas",
    "meamed": "meamed", "bulyan": "Bulyan",
}  # fmt: skip
ATTACKS = ("little", "empire")
WHERE = {"server": "momentum at the server", "worker": "momentum at the workers"}
PLACE_LOOK = {
    "server": {"color": RED, "linestyle": "--"},
    "worker": {"color": BLUE, "linestyle": "-"},
}
# The condition is proved for Krum, and the paper holds Multi-Krum against it.
BOUNDED = {"krum": "krum", "median": "median", "bulyan": "bulyan"}
SENT = {
    "sampled_ratio": ("gradients of the workers", {"color": RED, "linestyle": "--"}),
    "ratio": ("what they send: momentum", {"color": BLUE, "linestyle": "-"}),
}


def accuracy(records: Iterable[Record], folder: Path, origin: Origin) -> list[Path]:
    """Draw the mean accuracy over steps of each setting, with a deviation over the seeds.

    One figure for each learning rate and Nesterov; one row of panels for each f; a column for each
    attack and place of the momentum; a line for each rule, and the clean run of n-f workers.
    """
    paths = []
    for (rate, nesterov), chosen in _by(records, "rate", "nesterov").items():
        sizes = _sizes(chosen)
        rules = [rule for rule in NAMES if any(r["tags"]["rule"] == rule for r in chosen)]
        looks = look(rules)
        columns = [(attack, place) for attack in ATTACKS for place in WHERE]
        figure, axes = panels(len(sizes), len(columns), extra=1.4)
        handles: dict[str, Any] = {}
        groups = _by(chosen, "f", "attack", "momentum_at", "rule")
        for f, row in zip(sizes, axes, strict=True):
            for (attack, place), panel in zip(columns, row, strict=True):
                lines = [("no attack", groups.get((f, "none", "server", "mean")), CLEAN)]
                lines += [
                    (NAMES[rule], groups.get((f, attack, place, rule)), looks[rule])
                    for rule in rules
                ]
                for name, runs, style in lines:
                    if runs:
                        handles |= accuracies(panel, runs, name, style)
                panel.set_ylim(0, 100)
                if f == sizes[0]:
                    panel.set_title(f"{attack}\n{WHERE[place]}", fontsize=9)
            row[0].set_ylabel(f"f = {f}\ntest accuracy (%)", fontsize=9)
        for panel in axes[-1]:
            panel.set_xlabel("step", fontsize=9)
        legend_below(figure, handles)
        figure.suptitle(f"{origin.title}, {_speed(rate, nesterov)}", fontsize=11)
        name = f"accuracy-lr_{rate}{'-nesterov' if nesterov else ''}"
        paths += save(figure, folder, name, origin, DEVIATION)
    return paths


def boxes(records: Iterable[Record], folder: Path, origin: Origin) -> list[Path]:
    """Draw the highest accuracies of all rules and seeds, by attack and place of the momentum.

    One row of panels for each f, a column for each learning rate and Nesterov; a line where the
    median of the clean runs is.
    """
    records = [record for record in records if record["best"] is not None]
    sizes = _sizes(records)
    columns = list(_by(records, "rate", "nesterov"))
    groups = _by(records, "f", "rate", "nesterov", "attack", "momentum_at")
    figure, axes = panels(len(sizes), len(columns), width=2.3, extra=1.4)
    handles: dict[str, Any] = {}
    for f, row in zip(sizes, axes, strict=True):
        for (rate, nesterov), panel in zip(columns, row, strict=True):
            for number, attack in enumerate(ATTACKS):
                for place, shift in zip(WHERE, (-0.2, 0.2), strict=True):
                    runs = groups.get((f, rate, nesterov, attack, place))
                    if runs:
                        values = [100 * run["best"] for run in runs]
                        handles[WHERE[place]] = _box(panel, values, number + shift, place)
            clean = groups.get((f, rate, nesterov, "none", "server"))
            if clean:
                middle = 100 * float(np.median([run["best"] for run in clean]))
                handles["no attack (median)"] = panel.axhline(middle, **CLEAN)
            panel.set_ylim(0, 102)
            panel.set_xlim(-0.5, len(ATTACKS) - 0.5)
            panel.set_xticks(range(len(ATTACKS)), labels=ATTACKS)
            panel.tick_params(axis="x", length=0, labelsize=9)
            panel.grid(visible=False, axis="x")
            if f == sizes[0]:
                panel.set_title(_speed(rate, nesterov), fontsize=9)
        row[0].set_ylabel(f"f = {f}\nhighest test accuracy (%)", fontsize=9)
    legend_below(figure, handles)
    figure.suptitle(origin.title, fontsize=11)
    return save(figure, folder, "best-accuracy", origin, "boxes of quartiles, over all rules too")


def ratios(records: Iterable[Record], folder: Path, origin: Origin) -> list[Path]:
    """Draw the variance-to-norm ratio in runs with momentum at the workers, and rules' bounds.

    Of their gradients and of what they send instead; below the bound a rule is proved to resist.
    One figure for each learning rate and Nesterov; a row of panels for each f, a column for each
    rule that has a bound. Medians and quartiles over both attacks and all seeds.
    """
    paths = []
    chosen_ones = [
        record for record in records
        if record["tags"]["rule"] in BOUNDED and record["tags"]["momentum_at"] == "worker"
    ]  # fmt: skip
    for (rate, nesterov), chosen in _by(chosen_ones, "rate", "nesterov").items():
        sizes = _sizes(chosen)
        rules = [rule for rule in BOUNDED if any(r["tags"]["rule"] == rule for r in chosen)]
        figure, axes = panels(len(sizes), len(rules), extra=1.4)
        handles: dict[str, Any] = {}
        groups = _by(chosen, "f", "rule")
        for f, row in zip(sizes, axes, strict=True):
            for rule, panel in zip(rules, row, strict=True):
                panel.set_yscale("log")
                runs = groups.get((f, rule))
                if runs:
                    handles |= _ratio(panel, runs, rule, f)
                else:
                    panel.text(
                        0.5, 0.5, f"{NAMES[rule]} needs\na smaller f", ha="center",
                        va="center", transform=panel.transAxes, fontsize=9,
                    )  # fmt: skip
                if f == sizes[0]:
                    panel.set_title(NAMES[rule], fontsize=9)
            row[0].set_ylabel(f"f = {f}\nvariance-to-norm ratio", fontsize=9)
        for panel in axes[-1]:
            panel.set_xlabel("step", fontsize=9)
        legend_below(figure, handles)
        figure.suptitle(
            f"{origin.title}, {_speed(rate, nesterov)}, momentum at the workers", fontsize=11
        )
        name = f"ratio-lr_{rate}{'-nesterov' if nesterov else ''}"
        paths += save(figure, folder, name, origin, "median and quartiles, over both attacks too")
    return paths


def _ratio(panel: Any, runs: list[Record], rule: str, f: int) -> dict[str, Any]:
    """Draw one panel, and return what its lines are."""
    handles = {}
    for key, (name, style) in SENT.items():
        line = band([run[key] for run in runs], "quartiles")
        if len(line.steps):
            handles[name] = draw(panel, line, {**style, "linewidth": 1.6})
    bound = fg.variance_ratio(BOUNDED[rule], n=int(runs[0]["tags"]["n"]), f=f)
    handles["bound under which the rule is proved to resist"] = panel.axhline(bound, **CLEAN)
    return handles


def _box(panel: Any, values: list[float], at: float, place: str) -> Any:
    colour = PLACE_LOOK[place]["color"]
    drawn = panel.boxplot(
        values, positions=[at], widths=0.32, patch_artist=True, manage_ticks=False,
        medianprops={"color": "black", "linewidth": 1.4},
        boxprops={"facecolor": colour, "alpha": 0.75, "hatch": "//" if place == "server" else ""},
        flierprops={"marker": ".", "markersize": 3, "markeredgecolor": colour},
        whiskerprops={"linewidth": 0.8}, capprops={"linewidth": 0.8},
    )  # fmt: skip
    return drawn["boxes"][0]


def _by(records: Iterable[Record], *tags: str) -> dict[Any, list[Record]]:
    groups: dict[Any, list[Record]] = {}
    for record in records:
        groups.setdefault(tuple(record["tags"][tag] for tag in tags), []).append(record)
    return groups


def _sizes(records: Iterable[Record]) -> list[int]:
    return sorted({record["tags"]["f"] for record in records}, reverse=True)


def _speed(rate: str, nesterov: bool) -> str:
    return f"lr {rate}{', Nesterov' if nesterov else ''}"
