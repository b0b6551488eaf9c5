"""The grid of "Distributed momentum for Byzantine-resilient SGD" (El Mhamdi et al., ICLR 2021).

How the counts come about, as in the authors' ``reproduce.py``. With two attacks, two places for
the momentum, Nesterov's off and on and two learning rates there are 16 attacked settings for each
rule and f: five rules at the larger f, and Bulyan, which needs n >= 4f + 3, as a sixth at the
smaller:

    16 x (5 + 6) = 176 attacked;   2 f x 2 rates x 2 Nesterov = 8 clean;   184 for a data set
    4 data sets x 184 = 736 settings;   x 5 seeds = 3,680 runs, 920 for a data set

The clean runs average the n-f honest workers, with the same learning rate and Nesterov. The
appendix (``reproduce-appendix.py``) has one schedule, Nesterov's momentum always, and three rules:

    2 attacks x 2 places x (krum, median at f = 4; krum, median, bulyan at f = 2) = 20, + 2 clean

What the published code does and its paper does not say is switched on by ``parity``: see PARITY.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ....errors import unknown
from ....geometry import Decision
from ....registry import registered
from ....rules import distance_rule
from ....statistic import Statistic
from .. import execute as common
from .. import momentum_figures as drawn
from ..momentum_tables import by_rule, overview
from ..setting import TRAIN, Grid, Plain, Records, Setting, Table

if TYPE_CHECKING:
    from ....geometry import Geometry
    from ...origin import Origin

__all__ = ["DATA", "PAPER", "bulyan_published", "execute", "grid", "register"]

ATTACKS = {"little": "little(k=1.5)", "empire": "empire(k=1.1)"}
PLACES = ("server", "worker")
RULES = {
    "krum": "multi_krum",  # of m = n-f-2 rows
    "median": "median",
    "trimmed_mean": "trimmed_mean",
    "phocas": "phocas",
    "meamed": "meamed",
    "bulyan": "bulyan",  # the last: it is left out at the larger f
}

# The five traps of the published code, by name. The norm itself is penalised, with lambda twice.
# The network is always in evaluation mode: no dropout, batch normalisation with its first
# statistics. Krum sums plain distances, of n-f-1 neighbours. Bulyan's scores stay what they were.
# The deviation in `little` divides by h - 1, which is 1.3 to 8 % more. Two more of its ways have no
# option: gradients longer than the clip are scaled to norm 1 (until May 2021, when its authors
# corrected that), and all images but MNIST's are mirrored at random.
PARITY: dict[str, Plain] = {"l2": "norm", "eval_mode": True}
PARITY_RULES = {
    "krum": "multi_krum(neighbours='n-f-1', squared=False)",
    "bulyan": "bulyan_published",
}
PARITY_ATTACKS = {"little": "little(k=1.5, ddof=1)"}
QUICK_STEPS = 20


@dataclass(frozen=True)
class Family:
    """The numbers that the settings of a data set share.

    Attributes
    ----------
    options : mapping
        For every run.
    byzantine : tuple of int
        The larger and the smaller f.
    rates : mapping
        For each learning rate by name, its options.
    nesterov : tuple of bool
    rules : tuple of str
        The last is left out at the larger f.
    """

    options: Mapping[str, Plain]
    byzantine: tuple[int, int]
    rates: Mapping[str, Mapping[str, Plain]]
    nesterov: tuple[bool, ...] = (False, True)
    rules: tuple[str, ...] = tuple(RULES)


def _constant(*rates: float) -> dict[str, dict[str, Plain]]:
    return {f"{rate:g}": {"lr": rate} for rate in rates}


MLP = Family(
    options={
        "model": "mlp", "workers": 51, "batch": 83, "clip": 2.0, "weight_decay": 1e-4,
        "momentum": 0.9, "steps": 300, "evaluate_every": 5,
    },
    byzantine=(24, 12),
    rates=_constant(0.5, 0.02),
)  # fmt: skip
CNN = Family(
    options={
        "model": "cnn-cifar", "workers": 25, "batch": 50, "clip": 5.0, "weight_decay": 1e-2,
        "momentum": 0.99, "steps": 3000, "evaluate_every": 100,
    },
    byzantine=(11, 5),
    # The published code divides by 1500 / 167 + 1 = 9.98 at step 1500.
    rates={
        "0.01": {"lr": 0.01, "schedule": "steps(every=1500, factor=0.1)"},
        "0.001": {"lr": 0.001},
    },
)  # fmt: skip
DIGITS = Family(
    options={
        "model": "mlp", "workers": 25, "batch": 8, "clip": 2.0, "weight_decay": 1e-4,
        "momentum": 0.9, "steps": 300, "evaluate_every": 10,
    },
    byzantine=(11, 5),
    rates=_constant(0.2, 0.02),
)  # fmt: skip
FAMILIES = {"digits": DIGITS, "mnist": MLP, "fashion-mnist": MLP, "cifar10": CNN, "cifar100": CNN}
DATA = tuple(FAMILIES)
PAPER = DATA[1:]

APPENDIX = Family(
    options={
        "model": "fastgar.train.reproduce.wide_resnet:wide_resnet_28_10", "workers": 11,
        "batch": 20, "clip": 5.0, "weight_decay": 5e-4, "momentum": 0.99, "steps": 20_000,
        "evaluate_every": 100,
    },
    byzantine=(4, 2),
    rates={"pow": {"lr": 0.02, "schedule": "steps(every=8000, factor=0.2)"}},
    nesterov=(True,),
    rules=("krum", "median", "bulyan"),
)  # fmt: skip


def grid(
    data: str = "digits", *, appendix: bool = False, parity: bool = False, quick: bool = False
) -> Grid:
    """Return the grid on a data set.

    Parameters
    ----------
    data : {"digits", "mnist", "fashion-mnist", "cifar10", "cifar100"}
        On the digits the same settings with numbers of our own, sized for two cores and minutes.
    appendix : bool
        Whether to take the paper's appendix: Wide-ResNet-28-10 on CIFAR-10, n = 11.
    parity : bool
        Whether to train and aggregate as the published code does where that is not what its
        authors wrote about.
    quick : bool
        Whether to take two rules, one learning rate and few steps, for a first look.

    Raises
    ------
    ValueError
        If there is no grid for the data set.

    Examples
    --------
    >>> len(grid("mnist").settings), len(grid(appendix=True).settings)
    (184, 22)
    """
    if data not in FAMILIES:
        raise unknown("data set of the grid", data, FAMILIES)
    if appendix and data not in ("digits", "cifar10"):
        raise ValueError(f"--appendix is on cifar10, not on {data}")
    data, family = ("cifar10", APPENDIX) if appendix else (data, FAMILIES[data])
    if quick:
        family = replace(
            family,
            options={**family.options, "steps": QUICK_STEPS, "evaluate_every": QUICK_STEPS // 4},
            rates=dict([next(iter(family.rates.items()))]),
            nesterov=family.nesterov[:1],
            rules=("median", "bulyan"),
        )
    if parity:
        register()
    flags = {"appendix": appendix, "parity": parity, "quick": quick}
    return Grid(
        "momentum", data, tuple(_settings(data, family, parity)),
        " ".join(name for name, on in flags.items() if on),
        execute=f"{__name__}:execute" if parity else TRAIN,
        tables=tables, figures=figures, published=published,
    )  # fmt: skip


def tables(records: Records) -> list[Table]:
    """Return what attacks cost in all, and rule by rule."""
    return [overview(records), by_rule(records)]


def figures(records: Records, folder: Path, origin: Origin) -> list[Path]:
    """Draw accuracies over steps, the highest of them, and variance-to-norm ratios."""
    return [
        *drawn.accuracy(records, folder, origin),
        *drawn.boxes(records, folder, origin),
        *drawn.ratios(records, folder, origin),
    ]


def published() -> dict[str, list[Grid]]:
    """Return the grids of the paper, to be counted."""
    paper = [grid(data) for data in PAPER]
    return {
        **{f"paper: {each.data}": [each] for each in paper},
        "paper: all four": paper,
        "paper: appendix": [grid(appendix=True)],
    }


def _settings(data: str, family: Family, parity: bool) -> Iterator[Setting]:
    common = {"data": data, "metrics": True, **family.options, **(PARITY if parity else {})}
    strings = {**RULES, **(PARITY_RULES if parity else {})}
    attacks = {**ATTACKS, **(PARITY_ATTACKS if parity else {})}
    for f, rate, nesterov in product(family.byzantine, family.rates, family.nesterov):
        shared = {**common, **family.rates[rate], "nesterov": nesterov}
        workers = family.options["workers"]
        assert isinstance(workers, int)
        tags: dict[str, Plain] = {"n": workers, "f": f, "rate": rate, "nesterov": nesterov}
        end = f"f_{f}-lr_{rate}{'-nesterov' if nesterov else ''}"
        clean: dict[str, Plain] = {
            "workers": workers - f, "byzantine": 0, "declared": 0, "momentum_at": "server",
        }  # fmt: skip
        yield Setting(
            f"clean-{end}",
            {**shared, **clean, "rule": "mean", "attack": "none"},
            {**tags, "rule": "mean", "attack": "none", "momentum_at": "server"},
        )
        rules = family.rules if f == min(family.byzantine) else family.rules[:-1]
        for rule, attack, place in product(rules, ATTACKS, PLACES):
            attacked: dict[str, Plain] = {"byzantine": f, "declared": f, "momentum_at": place}
            yield Setting(
                f"{attack}-{rule}-{end}-at_{place}",
                {**shared, **attacked, "rule": strings[rule], "attack": attacks[attack]},
                {**tags, "rule": rule, "attack": attack, "momentum_at": place},
            )


def execute(settings: Mapping[str, Any], seed: int) -> dict[str, Any]:
    """Do a run with parity."""
    register()
    return common.execute(settings, seed)


def register() -> None:
    """Make the rule known by its name, unless it is: only who asks for parity is to see it."""
    if all(spec.name != bulyan_published.__name__ for spec in registered()):
        paper = "the code of El Mhamdi, Guerraoui and Rouault, ICLR 2021: aggregators/bulyan.py"
        distance_rule(needs="4f + 3", paper=paper, guarantee="(f, kappa)")(bulyan_published)


def bulyan_published(g: Geometry, f: int) -> Decision:
    """Return Bulyan's aggregate with picks from one ranking of the rows.

    Rows are ranked once, by the sum of their n-f-2 least distances, not squared. The k-th of n-2f-2
    picks is the mean of the rows ranked k to n-f-2; then, in every coordinate, the n-4f-2 values
    closest to the median of the picks are averaged. The loop that is to take the distance of a
    pruned row out of the others' scores looks for that row among the others, and never finds it.
    """
    nearest = np.sqrt(np.sort(g.D, axis=1)[:, 1 : g.n - f - 1])  # a row's own distance comes first
    ranked = g.order(nearest.sum(axis=1))[: g.n - f - 2]
    mix = np.zeros((g.n - 2 * f - 2, g.n + len(g.names)))
    for k, weights in enumerate(mix):
        weights[ranked[k:]] = 1 / len(ranked[k:])
    statistic = Statistic.median(len(mix), "lower", f, closest=len(mix) - 2 * f)
    return Decision(mix=mix, statistic=statistic)
