"""``fastgar train``: what attacks do to plain averaging, and to robust rules."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Any

from ..progress import Kind, Progress
from .refuse import Refused, alone, refusing
from .train_flags import DEFAULTS, add_settings, given_settings
from .train_report import percent, report

if TYPE_CHECKING:
    from torch import nn

    from ..train import Config, Data
    from ..train.results import Results

__all__ = ["NAME", "SUMMARY", "add_arguments", "run"]

NAME = "train"
SUMMARY = "Train under attack: plain averaging against robust rules."
RULES = ("mean", "multi_krum", "geometric_median", "nnm | trimmed_mean")
ATTACKS = ("none", "little", "empire", "empire(k=10)")
WORST = "worst"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of this command."""
    add = parser.add_argument
    add("--rule", action="append", metavar="RULE", help=f"repeatable (default: {_listed(RULES)})")
    add(
        "--attack", action="append", metavar="A",
        help=f"repeatable (default: {_listed(ATTACKS)}); 'worst': all, the most harmful first",
    )  # fmt: skip
    add_settings(parser)
    add("--config", type=Path, metavar="FILE", help="settings as in a run's config.toml")
    add("--out", type=Path, default=Path("fastgar-run"), metavar="DIR", help="for the results")
    add("--fresh", action="store_true", help="forget results that DIR already has")
    add("--quiet", action="store_true", help="no progress")


def run(options: argparse.Namespace) -> int:
    """Do every run that the results do not have yet, then print the table and draw the plot."""
    with refusing(extra="train"):
        import matplotlib  # noqa: F401  (a missing extra is to be told before the work)
        import torch  # noqa: F401
        import tqdm  # noqa: F401

        from ..train.prepare import shared
        from ..train.ranks import Ranks

        configs, worst = _configs(options)
        Ranks(configs[0].workers, configs[0].device)
        model, data = shared(configs[0])
        configs = _possible(configs, model, worst)
        results = _results(options, configs[0]) if _leads() else None
    first = configs[0]
    if first.byzantine > first.f:
        _note(f"{first.byzantine} workers attack and the rules expect {first.f}")
    status = 0
    table: list[dict[str, Any]] = []
    try:
        _train(configs, model, data, results, table, options)
    except KeyboardInterrupt:
        status = 130
        kept = f"{options.out} keeps what was done"
        print(f"\ninterrupted: {kept}; the same command goes on from there", file=sys.stderr)
    if results is not None:
        with results:
            report(table, first, results, options.out, worst, options.command)
    return status


# --------------------------------------------------------------------------- what is asked for


def _configs(options: argparse.Namespace) -> tuple[list[Config], bool]:
    """Return the settings of all runs, and whether the worst attack is looked for."""
    from ..train import Config
    from ..train.config import read_settings
    from ..train.prepare import check
    from ..train.worst import every_attack

    given: dict[str, Any] = dict(DEFAULTS)
    if options.config is not None:
        try:
            given |= read_settings(options.config)
        except OSError as error:
            raise Refused(f"cannot read --config {options.config}: {error.strerror}") from error
        except ValueError as error:
            raise Refused(f"--config {options.config} cannot be read: {error}") from error
    given |= given_settings(options)
    rules = _distinct(options.rule or [given.get("rule", "")]) or list(RULES)
    attacks = _distinct(options.attack or [given.get("attack", "")]) or list(ATTACKS)
    worst = WORST in attacks
    if worst:
        attacks = _distinct(["none", *(a for a in attacks if a != WORST), *every_attack()])
    shared = Config.of(given)
    configs = [replace(shared, rule=r, attack=a) for a in attacks for r in rules]
    check(config for config in configs if not worst or config.attack == "none")
    return configs, worst


def _possible(configs: list[Config], model: nn.Module, worst: bool) -> list[Config]:
    """Return the runs that can be; of all attacks, some may not work on a rule or at all."""
    from ..train.prepare import check

    if not worst:
        check(configs, model)
        return configs
    possible = []
    for config in configs:
        try:
            check([config], model)
        except (ValueError, TypeError) as error:
            _note(f"left out {config.attack} on {config.rule}: {error}")
        else:
            possible.append(config)
    return possible


def _results(options: argparse.Namespace, config: Config) -> Results:
    from ..train.results import Results

    try:
        options.out.mkdir(parents=True, exist_ok=True)
        options.held.enter_context(alone(options.out, "--out"))
        return Results(options.out / "results.jsonl", config, fresh=options.fresh)
    except OSError as error:
        raise Refused(f"cannot write to --out {options.out}: {error.strerror}") from error
    except ValueError as error:
        raise Refused(f"{error}: take another --out, or --fresh to forget them") from None


def _leads() -> bool:
    """Whether this process is the one that writes and speaks, if each worker is a process."""
    return int(os.environ.get("RANK", "0")) == 0


# -------------------------------------------------------------------------------- the training


def _train(
    configs: Sequence[Config],
    model: nn.Module,
    data: Data,
    results: Results | None,
    table: list[dict[str, Any]],
    options: argparse.Namespace,
) -> None:
    quiet = options.quiet or results is None
    steps = configs[0].steps
    work = ((_kind(config), steps) for config in configs)
    with Progress(len(configs) * steps, "step", work, quiet=quiet) as progress:
        for number, config in enumerate(configs, start=1):
            done = None if results is None else results.finished(config.rule, config.attack)
            if done is None or not _alone():
                progress.begin(f"{config.rule} under {config.attack}")
                line = _one(config, model, data, results, table, progress, options)
                again = ""
            else:
                line, again = done, " (from an earlier run)"
                progress.estimate.done(_kind(config), steps)
            table.append(done or line)
            progress.reach(number * steps)
            progress.tell(f"[{number}/{len(configs)}] {_words(line)}{again}")


def _one(
    config: Config,
    model: nn.Module,
    data: Data,
    results: Results | None,
    table: list[dict[str, Any]],
    progress: Progress,
    options: argparse.Namespace,
) -> dict[str, Any]:
    """Do one run, in a directory of its own, and return what it has come to."""
    from ..train import Mismatch, Training
    from ..train.results import summary
    from ..train.rundir import name_of

    out = options.out / name_of(config)
    try:
        training = Training(config, model, data, out=out, fresh=options.fresh)
    except OSError as error:
        raise Refused(f"cannot write to {out}: {error.strerror}") from error
    except Mismatch as error:
        raise Refused(f"{error}: take another --out, or --fresh to forget it") from None
    if "one worker after the other" in training.result.how and not table:
        _note(training.result.how)
    before, seen, estimate = progress.reached, 0, progress.estimate
    known = results is None or results.finished(config.rule, config.attack) is not None
    progress.reach(before + training.done)
    estimate.done(_kind(config), training.done)
    first, began = training.done + 1, perf_counter()
    try:
        for step in training:
            now = perf_counter()  # of a first step, which compiles, it says nothing of the others
            estimate.done(_kind(config), 1, None if step == first else now - began)
            began = now
            progress.reach(before + step)
            seen = _tell(training.result, seen, None if known else results, progress)
        _tell(training.result, seen, None if known else results, progress)
        estimate.done(_kind(config), config.steps - training.done)  # if it stopped early
    except KeyboardInterrupt:
        training.result.stopped = f"interrupted at step {training.done}"
        if training.result.evaluations:
            table.append(summary(training.result))
        raise
    if results is None or known:
        return summary(training.result)
    return results.run(training.result)


def _tell(result: Any, seen: int, results: Results | None, progress: Progress) -> int:
    """Write down the evaluations that have not been, and return how many there are."""
    for evaluation in result.evaluations[seen:]:
        if results is not None:
            results.evaluation(result.config, evaluation)
        progress.show(f"accuracy {evaluation.accuracy:.1%}")
    return len(result.evaluations)


def _alone() -> bool:
    """Whether this process computes for all workers."""
    return int(os.environ.get("WORLD_SIZE", "1")) == 1


def _kind(config: Config) -> Kind:
    return Kind(config.rule, config.attack)


# --------------------------------------------------------------------------- what is to be said


def _note(text: str) -> None:
    if _leads():
        print(f"note: {text}", file=sys.stderr)


def _words(line: dict[str, Any]) -> str:
    stopped = f", {line['stopped']}" if line["stopped"] else ""
    versus = "no attack" if line["attack"] == "none" else line["attack"]
    return f"{line['rule']}, {versus}: {percent(line['accuracy'])}{stopped}"


def _listed(names: Sequence[str]) -> str:
    return ", ".join(map(repr, names))


def _distinct(names: Sequence[str]) -> list[str]:
    return list(dict.fromkeys(name.strip() for name in names if name.strip()))
