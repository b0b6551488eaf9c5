"""Every robust rule against every attack, for several f and kinds of data."""

from __future__ import annotations

from itertools import product

import fastgar as fg

from ...errors import unknown
from .setting import Grid, Plain, Setting

__all__ = ["ATTACKS", "DATA", "RULES", "grid"]

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


def grid(data: str = "digits", *, quick: bool = False) -> Grid:
    """Return every rule that can take f of 20 rows, under every attack by f of them.

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
        if fg.rule(rule, f=f).check(WORKERS) is not None:
            continue
        config: dict[str, Plain] = {
            "rule": rule, "attack": attack, "split": split,
            "byzantine": 0 if attack == "none" else f, "declared": f,
        }  # fmt: skip
        tags: dict[str, Plain] = {"rule": rule, "attack": attack, "f": f, "split": split}
        settings.append(
            Setting(f"{attack} - {rule} - f={f} - {split}", {**options, **config}, tags)
        )
    return Grid("resilience", data, tuple(settings), "quick" if quick else "")
