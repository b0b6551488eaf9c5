"""``fastgar train``: what attacks do to plain averaging, and to robust rules."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Any

from .refuse import Refused, refusing
from .tables import text_table

if TYPE_CHECKING:
    from ..train.data import Data
    from ..train.loop import Config, Run
    from ..train.results import Results

__all__ = ["NAME", "SUMMARY", "add_arguments", "run"]

NAME = "train"
SUMMARY = "Train under attack: plain averaging against robust rules."
RULES = ("mean", "multi_krum", "geometric_median", "nnm | trimmed_mean")
ATTACKS = ("none", "little", "empire", "empire(k=10)")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of this command."""
    add = parser.add_argument
    add("--workers", type=int, default=11, metavar="N", help="rows that the rule sees")
    add("--byzantine", type=int, default=2, metavar="Q", help="workers that attack")
    add("--declared", type=int, metavar="F", help="the rule's f (default: as many as attack)")
    add("--rule", action="append", metavar="RULE", help=f"repeatable (default: {_listed(RULES)})")
    add("--attack", action="append", metavar="A", help=f"repeatable (default: {_listed(ATTACKS)})")
    add("--steps", type=int, default=300, help="updates of the model in each run")
    add("--lr", type=float, default=0.05, help="learning rate")
    add("--momentum", type=float, default=0.9, help="share of the past that is kept")
    add("--momentum-at", choices=("worker", "server"), default="server", help="who accumulates")
    add("--batch", type=int, default=32, help="samples per worker and step")
    add("--seed", type=int, default=0, help="of initial weights, shares, batches, positions")
    add("--data", default="digits", help="data set: digits, which comes with scikit-learn")
    add("--out", type=Path, default=Path("fastgar-run"), metavar="DIR", help="for the results")
    add("--fresh", action="store_true", help="forget results that DIR already has")
    add("--quiet", action="store_true", help="no progress")


def run(options: argparse.Namespace) -> int:
    """Do every run that the results do not have yet, then print the table and draw the plot."""
    rules = _distinct(options.rule or RULES)
    attacks = _distinct(options.attack or ATTACKS)
    with refusing(extra="train"):
        import matplotlib  # noqa: F401  (a missing extra is to be told before the work)
        import torch
        import tqdm  # noqa: F401

        from ..train import Config, load, prepare
        from ..train.results import Results

        shared = {
            name: getattr(options, name)
            for name in ("workers", "byzantine", "steps", "lr", "momentum", "momentum_at", "batch")
        }
        declared = options.byzantine if options.declared is None else options.declared
        config = Config(**shared, declared=declared, seed=options.seed, data=options.data)
        runs = [(r, a, prepare(r, a, config)) for a in attacks for r in rules]
        data = load(config.data)
        data.require(config.workers)
        try:
            options.out.mkdir(parents=True, exist_ok=True)
            results = Results(options.out / "results.jsonl", config, fresh=options.fresh)
        except OSError as error:
            raise Refused(f"cannot write to --out {options.out}: {error.strerror}") from error
        except ValueError as error:
            raise Refused(f"{error}: take another --out, or --fresh to forget them") from None
    if config.byzantine > config.declared:
        print(
            f"note: {config.byzantine} workers attack and the rules expect {config.declared}",
            file=sys.stderr,
        )
    status = 0
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # these matrices are too small to share, and waiting threads spin
    table: list[dict[str, Any]] = []
    with results:
        try:
            _train(runs, config, data, results, table, quiet=options.quiet)
        except KeyboardInterrupt:
            status = 130
            print(f"\ninterrupted: {options.out} keeps the runs that ended", file=sys.stderr)
        finally:
            torch.set_num_threads(threads)
        _finish(table, config, results, options.out)
    return status


def _train(
    runs: Sequence[tuple[str, str, Run]],
    config: Config,
    data: Data,
    results: Results,
    table: list[dict[str, Any]],
    *,
    quiet: bool,
) -> None:
    from ..train.loop import train
    from ..train.results import summary

    live = sys.stderr.isatty() and not quiet
    with _bar(len(runs) * config.steps, live) as bar:
        for number, (rule, attack, state) in enumerate(runs, start=1):
            done = results.finished(rule, attack)
            if done is not None:
                table.append(done)
                bar.update(config.steps)
                if not quiet:
                    _say(bar, f"[{number}/{len(runs)}] {_words(done)} (from an earlier run)", live)
                continue
            bar.set_description(f"{rule} under {attack}")
            began = perf_counter()
            seen = done_steps = 0
            try:
                for step in train(state, config, data):
                    bar.update(step - done_steps)
                    done_steps = step
                    for evaluation in state.evaluations[seen:]:
                        results.evaluation(rule, attack, evaluation)
                        bar.set_postfix_str(f"accuracy {evaluation.accuracy:.1%}")
                    seen = len(state.evaluations)
            except KeyboardInterrupt:
                state.stopped = f"interrupted at step {done_steps}"
                if state.evaluations:
                    table.append(summary(rule, attack, state, perf_counter() - began))
                raise
            line = results.run(rule, attack, state, perf_counter() - began)
            table.append(line)
            bar.update(config.steps - done_steps)
            if not quiet:
                _say(bar, f"[{number}/{len(runs)}] {_words(line)}", live)


def _bar(total: int, live: bool) -> Any:
    from tqdm import tqdm

    return tqdm(total=total, unit="step", disable=not live, leave=False, dynamic_ncols=True)


def _say(bar: Any, text: str, live: bool) -> None:
    """Print a line of progress: above the bar, or as it is where there is no terminal."""
    if live:
        bar.write(text, file=sys.stderr)
    else:
        print(text, file=sys.stderr, flush=True)


def _words(line: dict[str, Any]) -> str:
    stopped = f", {line['stopped']}" if line["stopped"] else ""
    versus = "no attack" if line["attack"] == "none" else line["attack"]
    return f"{line['rule']}, {versus}: {_percent(line['accuracy'])}{stopped}"


def _finish(table: list[dict[str, Any]], config: Config, results: Results, out: Path) -> None:
    """Print the table of what was asked for, and draw everything that the file has."""
    if not table:
        return
    heads = ["rule", "attack", "accuracy", "lowest", "ms/aggregation", "weight of liars", ""]
    rows = [
        [
            line["rule"],
            line["attack"],
            _percent(line["accuracy"]),
            _percent(line["lowest"]),
            "-" if line["milliseconds"] is None else f"{line['milliseconds']:.3f}",
            _percent(line["weight"]),
            line["stopped"] or "",
        ]
        for line in table
    ]
    if not any(row[-1] for row in rows):
        heads, rows = heads[:-1], [row[:-1] for row in rows]
    q, n = config.byzantine, config.workers
    fair = f" (a share of {q / n:.1%})" if q else ""
    print(
        f"\n{config.data}: {n} workers of which {q} attack{fair}, {config.steps} steps, momentum "
        f"{config.momentum:g} at the {config.momentum_at}.\n"
        "Accuracy is the mean over the last third of the evaluations, lowest the least of them.\n"
    )
    print(text_table(heads, rows, right=(2, 3, 4, 5)))
    from ..train.plot import plot_accuracy

    picture = out / "accuracy.png"
    evaluations = [line for line in results.evaluations if line["accuracy"] is not None]
    if evaluations:
        title = f"{n} workers, {q} of them Byzantine, momentum at the {config.momentum_at}"
        plot_accuracy(evaluations, picture, title)
        print(f"\n{os.path.join(out, 'results.jsonl')}, {picture}")


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{share:.1%}"


def _listed(names: Sequence[str]) -> str:
    return ", ".join(map(repr, names))


def _distinct(names: Sequence[str]) -> list[str]:
    return list(dict.fromkeys(name.strip() for name in names))
