"""``fastgar cluster``: a whole cluster on this machine, each node a process."""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .cluster_flags import add_flags, asked_for_nothing, cluster_from, headline
from .refuse import Refused, refusing
from .tables import text_table

if TYPE_CHECKING:
    from ..protocols.cluster import Cluster
    from ..protocols.launch import Launch
    from ..protocols.outcome import Outcome

__all__ = ["NAME", "SUMMARY", "add_arguments", "run"]

NAME = "cluster"
SUMMARY = (
    "Run a whole cluster on this machine, each node a process; without arguments: ByzSGD beside "
    "protocols that trust their server, one server and three workers lying."
)
SIDE_BY_SIDE = ("byzsgd", "aggregathor", "vanilla")
EVERY = 0.5  # seconds between two pictures of the state, on a terminal
PLAIN = 5.0  # and between two lines elsewhere
GRACE = 8.0  # seconds for all processes to end after a signal


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
        kept = "" if options.out is None else f": {options.out} keeps what there is"
        print(f"\ninterrupted{kept}", file=sys.stderr)
        return 128 + end.number


def _run_all(options: argparse.Namespace) -> int:
    with refusing(extra="train"):
        from ..protocols import plot  # noqa: F401  (a missing extra is to be told before the work)
        from ..protocols.launch import Failed
        from ..protocols.lies import check_machines
        from ..protocols.registry import PROTOCOLS

        names = [name for name in SIDE_BY_SIDE if name in PROTOCOLS]
        asked = names if asked_for_nothing(options) else [None]
        clusters = [cluster_from(options, name) for name in asked]
        any(map(check_machines, clusters))
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
    print(_table(outcomes))
    if options.out is not None:
        print(f"\n{options.out}: results.jsonl and cluster.png of each")
    return 0


def _run(cluster: Cluster, folder: Path, options: argparse.Namespace) -> Outcome:
    """Run one cluster, and write its results; a run that was interrupted goes on."""
    from ..protocols.file import hash_of, read_cluster, to_toml
    from ..protocols.launch import Launch
    from ..protocols.plot import plot_run
    from ..train.origin import Origin

    saved = folder / "cluster.toml"
    with refusing():
        if saved.exists() and hash_of(read_cluster(saved)) != hash_of(cluster):
            raise Refused(f"{folder} holds another run: take another --out, or delete it")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        saved.write_text(to_toml(cluster))
        file = (folder / "results.jsonl").open("a")
    except OSError as error:
        raise Refused(f"cannot write to --out {folder}: {error.strerror}") from error
    with file:

        def write(line: dict[str, Any]) -> None:
            file.write(json.dumps(line) + "\n")
            file.flush()

        view = _View(quiet=options.quiet)
        with refusing(extra="cluster"):
            launch = Launch(cluster, folder / "nodes", write)
        with launch:
            while not launch.over:
                launch.advance(EVERY)
                view.show(launch)
            launch.advance(EVERY)
            view.show(launch, last=True)
            outcome = launch.outcome()
        write(outcome.summary())
    origin = Origin(headline(cluster), options.command, (outcome.seed,))
    plot_run(outcome.lines, cluster, folder / "cluster.png", origin)
    return outcome


class _View:
    """The state of a cluster: a block that is drawn again on a terminal, lines elsewhere."""

    def __init__(self, *, quiet: bool) -> None:
        self.quiet, self.terminal = quiet, sys.stderr.isatty()
        self._lines, self._said = 0, 0.0

    def show(self, launch: Launch, *, last: bool = False) -> None:
        """Show how things are."""
        now = time.monotonic()
        if self.quiet or (not self.terminal and not last and now - self._said < PLAIN):
            return
        self._said = now
        lines = _block(launch) if self.terminal else [_line(launch)]
        if self.terminal and self._lines:
            sys.stderr.write(f"\x1b[{self._lines}A\x1b[J")
        print("\n".join(lines), file=sys.stderr, flush=True)
        self._lines = len(lines)


def _line(launch: Launch) -> str:
    """Return how a cluster is, in a line."""
    cluster, states = launch.cluster, launch.states
    honest = [n for n in cluster.of_role("server") if n not in cluster.liars]
    shown = [n for n in honest or cluster.of_role("server") if n not in launch.killed]
    servers = [states[n] for n in shown]
    found = [state.accuracy for state in servers if state.accuracy is not None]
    waits = sorted({name for state in servers for name in state.waiting})
    parts = [
        f"{cluster.text.name} {time.monotonic() - launch.began:.0f} s",
        f"step {min((s.step for s in servers), default=0)} of {cluster.steps}",
        f"accuracy {100 * min(found):.1f} %" if found else "starting",
    ]
    if waits and found:
        parts.append(f"waits for {', '.join(waits[:8])}")
    return ", ".join(parts)


def _block(launch: Launch) -> list[str]:
    """Return how a cluster is, a line for each server and one for the workers."""
    cluster, states = launch.cluster, launch.states
    spreads = [line["spread"] for line in launch.lines if line["kind"] == "spread"]
    width = shutil.get_terminal_size().columns - 1
    lines = [_line(launch) + (f", spread {spreads[-1]:.3g}" if spreads else "")]
    for name in cluster.of_role("server"):
        state, lies = states[name], name in cluster.liars
        accuracy = "" if state.accuracy is None else f"{100 * state.accuracy:5.1f} %"
        disbelieved = [n for n in cluster.of_role("worker") if n not in state.believed]
        words = [
            f"{name:5} step {state.step:4} {accuracy:8}",
            f"lies: {cluster.servers.attack}" if lies else "",
            f"left out {', '.join(disbelieved)}" if state.believed and not lies else "",
            f"reconnects {sum(state.counts.get('reconnects', {}).values())}"
            if state.counts.get("reconnects") else "",
            "killed" if name in launch.killed else "done" if state.over else "",
        ]  # fmt: skip
        lines.append("  ".join(word for word in words if word))
    workers = [states[n] for n in cluster.of_role("worker") if n not in cluster.liars]
    losses = [state.loss for state in workers if state.loss is not None]
    if losses:
        lines.append(f"loss at the workers {sum(losses) / len(losses):.3f}")
    return [line[:width] for line in lines]


def _table(outcomes: list[Outcome]) -> str:
    """Return what has come of clusters, as a table."""
    rows = []
    for outcome in outcomes:
        s, w = outcome.cluster.servers, outcome.cluster.workers
        steps = outcome.cluster.steps
        rows.append(
            [
                outcome.cluster.text.name,
                f"{s.count}, {s.byzantine} lie" if s.byzantine else f"{s.count}",
                f"{w.count}, {w.byzantine} lie" if w.byzantine else f"{w.count}",
                f"{100 * outcome.lowest:.1f} %",
                f"{outcome.spread or 0.0:.3g}",
                f"{outcome.messages / steps:.0f}",
                f"{outcome.bytes / steps / 1e3:.0f} kB",
                f"{outcome.seconds:.1f} s",
            ]
        )
    heads = (
        "protocol", "servers", "workers", "accuracy", "spread", "messages a step", "bytes a step",
        "time",
    )  # fmt: skip
    return text_table(heads, rows, right=(3, 4, 5, 6, 7))
