"""``fastgar rules``: the table of rules."""

from __future__ import annotations

import argparse
import json
import shutil
from dataclasses import asdict
from textwrap import fill

import fastgar as fg

from ..bounds import Listing
from ..spec import GUARANTEES
from .tables import markdown_table, text_table

__all__ = ["NAME", "SUMMARY", "add_arguments", "run"]

NAME = "rules"
SUMMARY = "List every rule: how many rows it needs, how many may lie, what it costs, the paper."
WIDTH = 100  # where there is no terminal
NARROW = 40  # no terminal is taken to be narrower


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of this command."""
    form = parser.add_mutually_exclusive_group()
    form.add_argument("--json", action="store_true", help="print JSON, with every field")
    form.add_argument("--markdown", action="store_true", help="print the table of the README")


def run(options: argparse.Namespace) -> int:
    """Print the table."""
    rules = _sorted()
    if options.json:
        print(json.dumps([asdict(rule) for rule in rules], indent=1))
        return 0
    if options.markdown:
        print(markdown())
        return 0
    width = max(NARROW, shutil.get_terminal_size((WIDTH, 24)).columns)
    print(fill(BEFORE, width))
    for kind, title in zip(ORDER, TITLES, strict=True):
        rows = [
            (
                rule.name,
                rule.needs,
                f"{rule.guarantee} {rule.breakdown}",
                str(rule.reads),
                rule.paper,
            )
            for rule in rules
            if rule.kind == kind
        ]
        print(f"\n{title}\n")
        print(text_table(HEADS, rows, right=(3,), width=width))
    print("\n" + fill(AFTER, width))
    return 0


ORDER = ("column", "distance", "mixing")
TITLES = (
    "COLUMN RULES treat every coordinate on its own",
    "DISTANCE RULES weigh whole rows",
    "MIXING STEPS come before a rule, as in nnm | krum",
)
BEFORE = (
    "n rows, of which f may hold anything. Cost: passes over the data (a mixing step adds none to "
    "the rule that follows it, and makes a column rule cost 2)."
)
AFTER = (
    "Guarantee, whatever f rows hold: (f, kappa): within sqrt(kappa) times the honest spread; "
    "bounded: by something else, such as a length; trusted: if the row or the reference that it "
    "trusts is honest; none. Of a mixing step: what is left of the guarantee of the rule after it. "
    "Behind it the share of rows that may lie. `fastgar rules --json` has summaries and options as "
    "well."
)
HEADS = ("rule", "needs", "guarantee", "cost", "paper")


def _sorted() -> list[Listing]:
    """Return the rules by kind, and of a kind the strongest first."""
    return sorted(
        fg.list_rules(),
        key=lambda rule: (ORDER.index(rule.kind), GUARANTEES.index(rule.guarantee)),
    )


def markdown() -> str:
    """Return the table of the README."""
    rows = [
        (
            f"`{rule.name}`",
            rule.kind,
            rule.summary,
            rule.needs,
            rule.guarantee,
            rule.breakdown,
            str(rule.reads),
        )
        for rule in _sorted()
    ]
    heads = ("rule", "kind", "what it returns", "needs", "guarantee", "breakdown", "passes")
    return markdown_table(heads, rows, right=(6,))
