"""The tables of the momentum grid: what came out here, counted as the paper counts, beside its own.

A pair is the same attacked run with momentum at the server and at the workers. Its reference is
the clean run of the n-f honest workers with the same learning rate, Nesterov and seed. Compared
are highest accuracies on the test set over the run, as in the paper. The attack hurts by what the
pair's run with momentum at the server lacks to its reference; worker momentum recovers what the
other run has more than this one.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any, NamedTuple

import numpy as np

from .setting import Record, Table

__all__ = ["Pair", "Summary", "by_rule", "overview", "pairs", "summary"]

SLACK = 1e-9  # 0.95 - 0.85 is not quite 0.1
STATISTICS = (
    "pairs of attacked runs",
    "hurt by 10 % or more",
    "hurt by 20 % or more",
    "  with momentum at the workers",
    "recovered 10 %, of hurt by 10 %",
    "recovered 20 %, of hurt by 20 %",
    "worse by worker momentum",
    "  by more than 2 %",
    "  by more than 5 %",
    "gain by worker momentum, median",
    "  quartiles",
)

# El Mhamdi et al., ICLR 2021: 1,760 pairs. How much worse the four are it does not say.
PAPER = {
    "CNN, n/2": ("400", "100 %", "100 %", "", "79.75 %", "49.25 %"),
    "CNN, n/4": ("480", "", "46.46 %", "", "", "95.07 %"),
    "CNN": ("880", "", "70.8 %"),
    "MLP": ("880", "", "25.8 %"),
    "paper": ("1760", "", "", "", "", "", "4 (0.23 %)"),
}

NOTE = """\
A pair is one attacked setting and seed with momentum at the server and at the workers. Accuracies
are the highest of a run, differences are in points. An attack hurts by what the pair's run with
momentum at the server lacks to the clean run of the n-f honest workers; worker momentum recovers
what the other run of the pair has more. The last five columns are published: El Mhamdi et al.,
ICLR 2021, the CNNs with f about n/2 and n/4, all CNNs, all MLPs, everything."""


class Pair(NamedTuple):
    """Highest accuracies of two attacked runs and of their reference."""

    f: int
    rule: str
    attack: str
    clean: float
    server: float
    worker: float

    @property
    def loss(self) -> float:
        """What the attack costs where momentum is at the server."""
        return self.clean - self.server

    @property
    def gain(self) -> float:
        """What the same attack leaves more where momentum is at the workers."""
        return self.worker - self.server


@dataclass(frozen=True)
class Summary:
    """The shares that the paper speaks of; None where there is nothing to take a share of.

    Attributes
    ----------
    pairs : int
    hurt : dict of float
        By 0.1 and 0.2: the share of pairs that the attack hurts by at least that.
    hurt_at_worker : dict of float
        The same where momentum is at the workers.
    recovered : dict
        By 0.1 and 0.2: of the pairs hurt by so much, the share that recovers as much.
    worse : dict of int
        By 0, 0.02 and 0.05: how many pairs lose more than that by worker momentum.
    gain : tuple of float
        Lower quartile, median and upper quartile of what worker momentum gains.
    """

    pairs: int
    hurt: dict[float, float | None]
    hurt_at_worker: dict[float, float | None]
    recovered: dict[float, float | None]
    worse: dict[float, int]
    gain: tuple[float, float, float] | None


def pairs(records: Iterable[Record]) -> list[Pair]:
    """Return every pair whose three runs are among the records of a momentum grid."""
    best: dict[tuple[Any, ...], float] = {}
    attacked: dict[tuple[Any, ...], Record] = {}
    for record in records:
        if record["best"] is None:  # it stopped before its first evaluation
            continue
        tags = record["tags"]
        group = tags["f"], tags["rate"], tags["nesterov"], record["seed"]
        place = tags["momentum_at"]
        best[*group, tags["rule"], tags["attack"], place] = record["best"]
        if tags["attack"] != "none":
            attacked[*group, tags["rule"], tags["attack"]] = tags
    found = []
    for key, tags in attacked.items():
        reference = *key[:4], "mean", "none", "server"
        runs = reference, (*key, "server"), (*key, "worker")
        if all(run in best for run in runs):
            clean, server, worker = (best[run] for run in runs)
            found.append(Pair(tags["f"], tags["rule"], tags["attack"], clean, server, worker))
    return found


def summary(chosen: Sequence[Pair]) -> Summary:
    """Return the shares in some pairs.

    Examples
    --------
    >>> shares = summary([Pair(5, "krum", "little", clean=0.9, server=0.6, worker=0.8)])
    >>> shares.hurt[0.2], shares.recovered[0.1], shares.worse[0.0]
    (1.0, 1.0, 0)
    """

    levels = (0.1, 0.2)
    recovered = {
        x: _share([pair.gain for pair in chosen if pair.loss >= x - SLACK], x) for x in levels
    }
    gains = [pair.gain for pair in chosen]
    return Summary(
        pairs=len(chosen),
        hurt={x: _share([pair.loss for pair in chosen], x) for x in levels},
        hurt_at_worker={x: _share([p.clean - p.worker for p in chosen], x) for x in levels},
        recovered=recovered,
        worse={x: sum(gain < -x - SLACK for gain in gains) for x in (0.0, 0.02, 0.05)},
        gain=tuple(np.quantile(gains, (0.25, 0.5, 0.75)).tolist()) if gains else None,
    )


def overview(records: Iterable[Record]) -> Table:
    """Return the shares of runs that are hurt, recovered and made worse, for each f and overall."""
    found = pairs(records)
    sizes = sorted({pair.f for pair in found}, reverse=True)
    columns = {f"f = {f}": [pair for pair in found if pair.f == f] for f in sizes}
    if len(sizes) > 1:
        columns["both"] = found
    ours = {head: _column(summary(chosen)) for head, chosen in columns.items()}
    cells = {**ours, **PAPER}
    rows = [
        [name, *(column[i] if i < len(column) else "" for column in cells.values())]
        for i, name in enumerate(STATISTICS)
    ]
    return Table(
        "What attacks cost, and what worker momentum recovers", ["", *cells], rows, 1, NOTE
    )


def by_rule(records: Iterable[Record]) -> Table:
    """Return, for each f, attack and rule, median accuracies and the gain by worker momentum."""
    groups: dict[tuple[int, str, str], list[Pair]] = {}
    for pair in pairs(records):
        groups.setdefault((pair.f, pair.attack, pair.rule), []).append(pair)
    rows = []
    for (f, attack, rule), chosen in groups.items():
        columns = zip(*((p.clean, p.server, p.worker) for p in chosen), strict=True)
        accuracies = [median(column) for column in columns]
        rows.append(
            [
                str(f), attack, rule, str(len(chosen)), *(_percent(a) for a in accuracies),
                *_gain(summary(chosen)),
            ]
        )  # fmt: skip
    heads = [
        "f",
        "attack",
        "rule",
        "pairs",
        "clean",
        "at server",
        "at workers",
        "gain",
        "quartiles",
    ]
    note = "Medians of the highest accuracies over learning rates, Nesterov off and on, and seeds."
    return Table("Each rule under each attack", heads, rows, 3, note)


def _column(shares: Summary) -> list[str]:
    worse = shares.worse
    return [
        str(shares.pairs),
        _percent(shares.hurt[0.1]),
        _percent(shares.hurt[0.2]),
        _percent(shares.hurt_at_worker[0.2]),
        _percent(shares.recovered[0.1]),
        _percent(shares.recovered[0.2]),
        *(f"{count} ({_percent(count / shares.pairs)})" for count in worse.values()),
        *_gain(shares),
    ]


def _gain(shares: Summary) -> Sequence[str]:
    if shares.gain is None:
        return "-", "-"
    low, middle, high = (f"{100 * x:+.1f}" for x in shares.gain)
    return middle, f"{low} to {high}"


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{100 * share:.1f} %"


def _share(values: Sequence[float], least: float) -> float | None:
    """Return which part of the values is no less than another; None of no values."""
    return sum(value >= least - SLACK for value in values) / len(values) if values else None
