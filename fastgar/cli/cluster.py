"""``fastgar cluster``: a whole cluster on this machine, each node a process."""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

from ..progress import Scene
from .cluster_flags import add_flags, asked_for_nothing, cluster_from
from .cluster_out import draw, open_results
from .cluster_report import caution, drawn, status, table_of_protocols
from .refuse import alone, refusing, require_folder

if TYPE_CHECKING:
    from ..protocols.cluster import Cluster
    from ..protocols.outcome import Outcome

__all__ = ["NAME", "SUMMARY", "add_arguments", "run"]

NAME = "cluster"
SUMMARY = (
    "Run a whole cluster on this machine, each node a process; without arguments: ByzSGD beside "
    "protocols that trust their server, one server and three workers lying."
)
SIDE_BY_SIDE = ("byzsgd", "aggregathor", "vanilla")
EVERY = 0.5  # seconds between two pictures of the state
GRACE = 60.0  # seconds for all processes to end after a signal, on a busy machine


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of this command."""
    add_flags(parser)
    add = parser.add_argument
    add("--out", type=Path, metavar="DIR", help="for results, and the folders of the nodes")
    add("--quiet", action="store_true", help="no live view")


def run(options: argparse.Namespace) -> int:
    """Run the cluster, or several side by side."""
    from ..protocols.ending import Ended, ending

    try:
        with ending(GRACE):
            return _run_all(options)
    except Ended as end:
        kept = (
            ""
            if options.out is None
            else f": {options.out} keeps what there is, and the same command goes on"
        )
        print(f"\ninterrupted{kept}", file=sys.stderr)
        return 128 + end.number


def _run_all(options: argparse.Namespace) -> int:
    clusters = _clusters(options)
    from ..protocols.launch import Failed

    outcomes = []
    try:
        with ExitStack() as stack:
            folder = options.out
            if folder is None:
                folder = Path(tempfile.mkdtemp(prefix="fastgar-cluster-"))
                stack.callback(shutil.rmtree, folder, True)
            for cluster in clusters:
                own = folder / cluster.text.name if len(clusters) > 1 else folder
                outcomes.append(_run(cluster, own, options))
    except Failed as error:
        print(f"fastgar cluster: {error}", file=sys.stderr)
        return 1
    print(table_of_protocols(outcomes))
    if options.out is not None:
        print(f"\n{options.out}: results.jsonl and cluster.png{' of each' * (len(clusters) > 1)}")
    return 0


def _clusters(options: argparse.Namespace) -> Sequence[Cluster]:
    """Return the clusters that are asked for, once all is sure to be there for them."""
    with refusing(extra="train"):
        from ..protocols.lies import check_machines
        from ..protocols.registry import PROTOCOLS

        names = [name for name in SIDE_BY_SIDE if name in PROTOCOLS]
        asked = names if asked_for_nothing(options) else [None]
        clusters = [cluster_from(options, name) for name in asked]
        any(map(check_machines, clusters))
        if options.out is not None:
            for cluster in clusters:
                require_folder(
                    options.out / cluster.text.name if len(clusters) > 1 else options.out, "--out"
                )
            options.held.enter_context(alone(options.out, "--out"))
        from ..protocols import plot  # noqa: F401  (a missing extra is to be told before the work)
        from ..protocols.learning import Learning

        Learning(clusters[0].training)  # so that the nodes find model and data
    caution(clusters)
    return clusters


def _run(cluster: Cluster, folder: Path, options: argparse.Namespace) -> Outcome:
    """Run one cluster, and write its results; a run that was interrupted goes on."""
    from ..protocols.launch import Launch
    from ..protocols.outcome import Outcome

    with open_results(folder, cluster) as results:
        lines = results.of_processes()
        for line in lines:
            if line["kind"] == "summary":
                print(f"{cluster.text.name}: from an earlier run in {folder}")
                return Outcome.of_summary(cluster, line)
        if not any((folder / "nodes").glob("*/state")):
            lines = []  # whatever was begun was interrupted as it started
        scene = Scene(quiet=options.quiet)
        with refusing(extra="cluster"):
            launch = Launch(cluster, folder / "nodes", results.append, lines)
        with launch:
            while not launch.over:
                launch.advance(EVERY)
                scene.show(status(launch), drawn(launch))
            launch.advance(EVERY)
            outcome = launch.outcome()
            scene.show(status(launch), drawn(launch), last=True)
        results.append(outcome.summary())
        draw(outcome.lines, cluster, results, options.command, [outcome.seed])
    if outcome.taken_up:
        times = "once" if outcome.taken_up == 1 else f"{outcome.taken_up} times"
        print(f"{cluster.text.name} was taken up {times}: all numbers are those of the whole run")
    return outcome
