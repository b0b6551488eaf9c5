"""A search against every promise of robustness: how far do f of n rows really move each rule?"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from time import process_time
from typing import Any

import fastgar as fg

from ....attacks.climb import climb
from ....attacks.promise import Promise
from ....attacks.witness import Witness
from ...lines import is_number, is_table
from ..setting import Grid, Plain, Record, Records, Setting, Table

__all__ = ["RULES", "finish", "grid", "search", "tables", "worst"]

SIZES = ((5, 1), (5, 2), (11, 2), (11, 4), (11, 5), (20, 4), (20, 9), (41, 20), (43, 20))
QUICK_SIZES = ((5, 1), (11, 4))
LEAST_EVALUATIONS, QUICK_EVALUATIONS = 100, 300
SLOW = ("mva", "smea", "caf", "mda")  # searches, or a loop over the rows: only up to 11 of them
MOST_OF_SLOW = 11
RULES = (
    "median", "median(middle='lower')", "trimmed_mean", "meamed", "meamed(middle='upper')",
    "phocas", "condense", "condense(p=1.0)", "sign_majority",
    "krum", "krum(neighbours='n-f-1')", "krum(squared=False)", "krum(variant='epfl')",
    "multi_krum", "multi_krum(m=1)", "multi_krum(variant='epfl')", "bulyan",
    "bulyan(variant='epfl')", "mda", "mva", "smea", "geometric_median",
    "geometric_median(max_iter=1)", "rfa", "centered_clipping(tau=2.0)",
    "centered_clipping(tau=2.0, iters=3)", "aksel", "aksel(mode='n-f')", "monna", "caf", "dnc",
    "dnc(variant='paper')", "cge", "fltrust", "mean",
    "nnm | median", "nnm | trimmed_mean", "nnm | krum", "nnm | geometric_median", "nnm | dnc",
    "nnm | caf", "nnm | nnm | phocas", "arc | median", "arc | krum(squared=False)",
    "arc | nnm | trimmed_mean", "bucketing(s=2) | median", "bucketing(s=2) | krum",
    "bucketing(s=2) | geometric_median", "bucketing(s=2) | nnm | median", "clip(c=3.0) | krum",
)  # fmt: skip

OUTCOME = {"witness": is_table, "seconds": is_number}  # what `search` returns


def grid(evaluations: int, *, quick: bool = False) -> Grid:
    """Return every rule with some numbers of rows and liars that it takes.

    Raises
    ------
    ValueError
        If a search is to have too few evaluations.
    """
    if evaluations < LEAST_EVALUATIONS:
        raise ValueError(f"evaluations must be at least {LEAST_EVALUATIONS}, got {evaluations}")
    if quick:
        evaluations = min(evaluations, QUICK_EVALUATIONS)
    settings = []
    for rule in RULES:
        for n, f in QUICK_SIZES if quick else SIZES:
            slow = any(name in rule for name in SLOW) and n > MOST_OF_SLOW
            if slow or fg.rule(rule, f).check(n) is not None:
                continue
            tags: dict[str, Plain] = {"rule": rule, "n": n, "f": f}
            config = {**tags, "evaluations": evaluations}
            settings.append(Setting(f"{rule} - n={n} - f={f}", config, tags))
    return Grid(
        "kappa", "", tuple(settings), "quick" if quick else "", "1", f"{__name__}:search",
        OUTCOME, words, tables, finish=finish,
    )  # fmt: skip


def search(settings: Mapping[str, Any], seed: int) -> dict[str, Any]:
    """Search once.

    Returns
    -------
    dict
        witness : what `Witness.of` reads
        seconds : of work
    """
    began = process_time()
    promise = Promise(settings["rule"], settings["n"], settings["f"])
    found = climb(promise, settings["evaluations"], seed)
    return {"witness": found.plain(), "seconds": process_time() - began}


def worst(records: Iterable[Record]) -> list[Witness]:
    """Return, for each rule, n and f, the worst that was found with any seed."""
    best: dict[Promise, Witness] = {}
    for record in records:
        found = Witness.of(record["witness"])
        if found.promise not in best or found.recorded > best[found.promise].recorded:
            best[found.promise] = found
    return [best[promise] for promise in sorted(best, key=_place)]


def _place(promise: Promise) -> tuple[int, int, int]:
    """Return where it stands in the table, in whatever order the searches ended."""
    return RULES.index(promise.rule), promise.n, promise.f


def words(record: Record) -> str:
    """Return what a search found."""
    return f"{float(record['witness']['ratio']):.5g} in {record['seconds']:.1f} s"


def tables(records: Records) -> list[Table]:
    """Return what is promised beside what was found."""
    rows = []
    for one in worst(records):
        promise, bound = one.promise, one.promise.bound
        rows.append(
            [
                promise.rule, promise.guarantee, str(promise.n), str(promise.f),
                _text(promise.least), _text(one.recorded),
                "none known" if bound is None else _text(bound),
                "ABOVE THE BOUND" if one.refutation else _share(one.recorded, bound),
            ]
        )  # fmt: skip
    heads = ["rule", "guarantee", "n", "f", "least", "found", "bound", "found of bound"]
    title = "What is promised, and the worst that was found"
    return [Table(title, heads, rows, 2, f"{NOTE}\n\n{_made(records)}")]


NOTE = """\
For (f, kappa), trusted and none: squared distance from the aggregate to the mean of the n-f honest
rows, over their mean squared distance to it (smea: over the top eigenvalue of their covariance).
Least is f/(n-2f): no rule promises less. For bounded rules, and fltrust, the squared length of the
aggregate over that of the length that bounds it (tau times steps, the longest honest row, the
reference). Of trusted rules the trusted row is honest. Bounds are those of `fastgar.kappa`, for
exact arithmetic; what was found is a lower bound of the true worst case."""


def _made(records: Records) -> str:
    """Return how these results came about."""
    (evaluations,) = {record["config"]["evaluations"] for record in records}
    seeds = ",".join(map(str, sorted({record["seed"] for record in records})))
    return (
        f"By `fastgar reproduce kappa --evaluations {evaluations} --seeds {seeds}` of fastgar "
        f"{fg.__version__}, in {sum(record['seconds'] for record in records) / 60:.0f} minutes of "
        "CPU; `--check FILE` computes anew what its files of rows say."
    )


def finish(records: Records, folder: Path) -> tuple[str, list[str]]:
    """Write a file for the worst rows of each rule; return where they are, and broken promises."""
    found, place = worst(records), folder / "witnesses"
    place.mkdir(exist_ok=True)
    for one in found:
        words = re.findall(r"\w+(?:\.\w+)?", one.promise.rule)
        one.write(place / f"{'-'.join(words)}-{one.promise.n}-{one.promise.f}.json")
    broken = [one.refutation for one in found]
    return f"The rows themselves: {place}{os.sep}", [each for each in broken if each]


def _text(value: float | None) -> str:
    return "-" if value is None else f"{value:.5g}"


def _share(ratio: float, bound: float | None) -> str:
    return f"{100 * ratio / bound:.0f} %" if bound else "-"
