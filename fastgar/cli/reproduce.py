"""``fastgar reproduce``: published results again, as tables and figures."""

from __future__ import annotations

import argparse
import os
import platform
import sys
from collections.abc import Sequence
from datetime import datetime
from importlib import import_module
from inspect import signature
from pathlib import Path
from pkgutil import iter_modules
from typing import TYPE_CHECKING, Any

import fastgar as fg

from ..machine import cores, versions
from ..progress import Progress
from .refuse import Refused, alone, refusing
from .tables import markdown_table, text_table

if TYPE_CHECKING:
    from ..train.reproduce.runner import Outcome
    from ..train.reproduce.setting import Grid, Run, Table
    from ..train.reproduce.store import Store

__all__ = ["NAME", "SUMMARY", "add_arguments", "run"]

NAME = "reproduce"
SUMMARY = (
    "Reproduce published results: momentum at the workers, Zeno, rules against attacks; or search "
    "for rows that break what rules promise (kappa)."
)
FOLDER = Path(fg.__file__).parent / "train" / "reproduce" / "grids"
OWN = {"appendix": "momentum", "parity": "momentum"}  # options that one grid alone has


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of this command."""
    add = parser.add_argument
    grids = [module.name for module in iter_modules([str(FOLDER)])]
    add("grid", choices=grids, help="which results")
    add("--data", default="digits", help="data set; all but the digits are downloaded")
    add("--seeds", metavar="S", help="such as 1..5 or 1,2,7 (default: 1 to 5, 3 or 1, by the grid)")
    add("--out", type=Path, metavar="DIR", help="for the results (default: named after the grid)")
    add("--processes", type=int, metavar="N", help="runs at a time (default: the cores there are)")
    add("--device", default="cpu", help="where gradients are computed, as torch calls it")
    add("--appendix", action="store_true", help="momentum: Wide-ResNet-28-10 on CIFAR-10")
    add("--parity", action="store_true", help="momentum: with the traps of the published code")
    add("--evaluations", type=int, default=2000, metavar="N", help="kappa: of each search")
    add("--check", type=Path, nargs="+", metavar="FILE", help="kappa: only compute these anew")
    add("--quick", action="store_true", help="few settings and steps, for a first look")
    add("--dry-run", action="store_true", help="count the runs, and do nothing")
    add("--fresh", action="store_true", help="forget results that DIR already has")
    add("--quiet", action="store_true", help="no progress")


def run(options: argparse.Namespace) -> int:
    """Do the runs that the results do not have yet; print the tables and draw the figures."""
    if options.check:
        return _check(options)
    with refusing(extra="train"):
        from ..train.reproduce.setting import read_seeds

        grid = _grid(options)
        seeds = read_seeds(options.seeds or grid.seeds)
        if options.device != "cpu":
            grid = grid.with_option("device", options.device)
        if options.processes is not None and options.processes < 1:
            raise ValueError(f"--processes must be at least 1, got {options.processes}")
    runs = grid.runs(seeds)
    if options.dry_run:
        _count(grid, len(seeds))
        return 0
    with refusing(extra="train"):
        store, folder = _open(options, grid)
    with store:
        if grid.data:
            with refusing():
                from ..train.reproduce.execute import check

                check([one.setting.config for one in store.missing(runs)])
        status = _work(options, grid, runs, store, folder)
    if status == 130:
        return status
    asked = {one.key for one in runs}
    records = [store.records[key] for key in store.records if key in asked]
    if not records:
        return status
    _report(grid, records, store, folder)
    said, broken = grid.finish(records, folder)
    if said:
        print(said)
    return _complain_of(broken) or status


def _grid(options: argparse.Namespace) -> Grid:
    """Return what was asked for: the options that it takes are those of its function."""
    make = import_module(f"fastgar.train.reproduce.grids.{options.grid}").grid
    takes = signature(make).parameters
    for name, owner in OWN.items():
        if getattr(options, name) and name not in takes:
            raise ValueError(f"--{name} is for {owner}, not for {options.grid}")
    if "data" not in takes and (options.data, options.device) != ("digits", "cpu"):
        raise ValueError(f"{options.grid} takes no --data and no --device: nothing is trained")
    grid: Grid = make(**{name: getattr(options, name) for name in takes})
    return grid


def _count(grid: Grid, seeds: int) -> None:
    """Print how many settings and runs there are, and how many the paper has."""

    def row(name: str, grids: Sequence[Grid]) -> list[str]:
        settings = [setting for each in grids for setting in each.settings]
        attacked = sum(setting.attacked for setting in settings)
        counts = attacked, len(settings) - attacked, len(settings), seeds * len(settings)
        return [name, *(f"{count:,}" for count in counts)]

    rows = [row(name, each) for name, each in {grid.title: [grid], **grid.published()}.items()]
    heads = ("", "attacked", "clean", "settings", f"runs ({seeds} seeds each)")
    print(text_table(heads, rows, right=(1, 2, 3, 4)))


def _open(options: argparse.Namespace, grid: Grid) -> tuple[Store, Path]:
    """Open the results, and return where they are."""
    import matplotlib  # noqa: F401  (a missing extra is to be told before the work)
    import tqdm  # noqa: F401

    from ..train.reproduce.store import Mismatch, Store

    folder = options.out or Path(
        "-".join(["fastgar", *f"{grid.name} {grid.data} {grid.variant}".split()])
    )
    try:
        folder.mkdir(parents=True, exist_ok=True)
        options.held.enter_context(alone(folder, "--out"))
        path = folder / "results.jsonl"
        store = Store(path, grid, fresh=options.fresh)
    except OSError as error:
        raise Refused(f"cannot write to --out {folder}: {error.strerror}") from error
    except Mismatch as error:
        raise Refused(f"{error}: take another --out, or --fresh to forget them") from None
    return store, folder


def _work(
    options: argparse.Namespace, grid: Grid, runs: Sequence[Run], store: Store, folder: Path
) -> int:
    """Do what is missing, and return the status: 0, 1 if runs gave nothing, 130 after Ctrl-C."""
    from ..train.reproduce.runner import ProcessesDied, run_all

    missing = store.missing(runs)
    failures: list[Outcome] = []
    if not missing:
        return 0
    processes = min(options.processes or len(cores()), len(missing))
    done = len(runs) - len(missing)
    store.session(_session(processes))
    if not options.quiet:
        before = f", {done} of them done" if done else ""
        print(f"{grid.title}: {len(runs)} runs{before}; {processes} at a time", file=sys.stderr)
    work = (run.work for run in missing)
    with Progress(
        len(runs), "run", work, done=done, at_once=processes, quiet=options.quiet
    ) as progress:
        try:
            for outcome in run_all(missing, grid.execute, processes):
                name = f"{outcome.run.setting.name}, seed {outcome.run.seed}"
                if outcome.result is None:
                    failures.append(outcome)
                    words = f"failed, {_last_line(outcome.failure)}"
                    progress.ended(*outcome.run.work, f"{name}: {words}")
                else:
                    record = store.add(outcome.run, outcome.result)
                    words = grid.words(record)
                    progress.ended(*outcome.run.work, f"{name}: {words}", record["seconds"])
        except ProcessesDied as error:
            progress.say(f"given up: {error}")
        except KeyboardInterrupt:
            kept = f"{folder} keeps the {len(store.records)} runs that ended"
            progress.say(f"\ninterrupted: {kept}; the same command goes on from there")
            return 130
    if failures:
        _complain(failures)
    return 1 if failures else 0


def _session(processes: int) -> dict[str, Any]:
    """Return what is to be known of how the runs of now are made."""
    from ..train.sources import sources

    return {
        "started": datetime.now().astimezone().isoformat(timespec="seconds"),
        **versions("fastgar", "torch", "numpy", "python"),
        "machine": platform.machine(),
        "cores": len(cores()),
        "processes": processes,
        "sources": sources(drawing=False),
    }


def _last_line(failure: str) -> str:
    return failure.strip().splitlines()[-1]


def _complain(failures: Sequence[Outcome]) -> None:
    """Tell of runs that gave nothing, and why: in full for one, an exception if there was one."""
    one = next((each for each in failures if "\n" in each.failure), failures[0])
    print(
        f"{len(failures)} runs failed; the same command tries them again. One of them, "
        f"{one.run.setting.name} with seed {one.run.seed}:\n{one.failure.rstrip()}",
        file=sys.stderr,
    )


def _report(grid: Grid, records: Sequence[dict[str, Any]], store: Store, folder: Path) -> None:
    """Print the tables, write them as Markdown too, and draw the figures."""
    from ..train.origin import Origin

    made = grid.tables(records)
    for table in made:
        right = range(table.left, len(table.heads))
        note = f"\n\n{table.note}" if table.note else ""
        print(f"\n{table.title}\n\n{text_table(table.heads, table.rows, right=right)}{note}")
    path = folder / "tables.md"
    path.write_text("\n".join(_markdown(table) for table in made))
    stopped = sum(record.get("stopped") is not None for record in records)
    if stopped:
        print(f"\n{stopped} runs stopped early; what they reached until then counts")
    seeds = tuple(sorted({record["seed"] for record in records}))
    origin = Origin(grid.title, grid.command, seeds, store.sources)
    pictures = grid.figures(records, folder, origin)
    names = ", ".join(sorted({picture.stem for picture in pictures}))
    drawn = f", and as PNG and SVG: {names}" if pictures else ""
    print(f"\nIn {folder}{os.sep}: results.jsonl, tables.md{drawn}")


def _check(options: argparse.Namespace) -> int:
    """Compute the ratios of files anew; return 1 if one is another now, or breaks a promise."""
    from ..attacks.witness import Witness

    if options.grid != "kappa":
        raise Refused(f"--check is for kappa, not for {options.grid}")
    with refusing():
        found = [(path, Witness.read(path)) for path in options.check]
    rows = [
        [path.name, one.promise.rule, f"{one.recorded:.6g}", f"{one.ratio:.6g}",
         "none known" if one.promise.bound is None else f"{one.promise.bound:.6g}"]
        for path, one in found
    ]  # fmt: skip
    print(text_table(("file", "rule", "recorded", "now", "bound"), rows, right=(2, 3, 4)))
    odd = ["" if one.holds else f"{path} is not what it was" for path, one in found]
    return _complain_of([*odd, *(one.refutation for _, one in found)])


def _complain_of(sentences: Sequence[str]) -> int:
    """Print those that are not empty, and return 1 if there are any."""
    for sentence in filter(None, sentences):
        print(f"BROKEN: {sentence}", file=sys.stderr)
    return int(any(sentences))


def _markdown(table: Table) -> str:
    right = range(table.left, len(table.heads))
    note = f"\n{table.note}\n" if table.note else ""
    return f"## {table.title}\n\n{markdown_table(table.heads, table.rows, right=right)}\n{note}"
