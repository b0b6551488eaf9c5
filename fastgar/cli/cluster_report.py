"""What ``cluster`` and ``simulate`` say: how a cluster is, and what has come of it."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from textwrap import fill
from typing import TYPE_CHECKING, Any

from .tables import text_table

if TYPE_CHECKING:
    from ..protocols.cluster import Cluster
    from ..protocols.launch import Launch
    from ..protocols.outcome import Outcome
    from ..protocols.reports import State

__all__ = [
    "caution",
    "drawn",
    "harmless",
    "headline",
    "status",
    "table_of_protocols",
    "table_of_seeds",
]

WIDTH = 80  # of a table
KEEPS = "\xa0"  # a space at which no line ends


def headline(cluster: Cluster) -> str:
    """Return what a cluster is, in a line."""
    groups = []
    for what, group in (("server", cluster.servers), ("worker", cluster.workers)):
        lies = f" ({group.byzantine} lie{'s' * (group.byzantine == 1)}: {group.attack})"
        plural = "s" * (group.count > 1)
        groups.append(f"{group.count} {what}{plural}{lies if group.byzantine else ''}")
    return f"{cluster.text.name}: {', '.join(groups)}, {cluster.steps} steps"


def caution(clusters: Sequence[Cluster]) -> None:
    """Say of each cluster if it is to withstand liars, and withstands none."""
    for cluster in clusters:
        if words := harmless(cluster):
            print(f"note: {words}", file=sys.stderr)


def harmless(cluster: Cluster) -> str:
    """Return that no liar is withstood though the protocol could, in a sentence; or nothing."""
    from ..protocols.registry import most_liars

    name, parts = cluster.text.name, []
    if not cluster.text.liars:
        return ""
    for role, (what, group) in enumerate(
        (("server", cluster.servers), ("worker", cluster.workers))
    ):
        able = [n for n in range(9) if most_liars(name, n, n, cluster.resilience)[role]]
        if able and not group.f:
            parts.append(f"no lying {what} (f = 0 of {group.count}: f = 1 takes {able[0]})")
    return f"this {name} withstands {' and '.join(parts)}" if parts else ""


def status(launch: Launch) -> str:
    """Return how a cluster is, in a line."""
    waits = _waited_for(launch)
    return ", ".join([_head(launch), *([f"waits for {waits}"] if waits else [])])


def drawn(launch: Launch) -> list[str]:
    """Return how a cluster is: a line for each server, one for the workers, who is waited for."""
    cluster, states = launch.cluster, launch.states
    lines = [_head(launch)]
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
            "killed" if name in launch.killed else "done" if state.over else state.starts,
        ]  # fmt: skip
        lines.append("  ".join(word for word in words if word))
    workers = [states[n] for n in cluster.of_role("worker") if n not in cluster.liars]
    losses = [state.loss for state in workers if state.loss is not None]
    if losses:
        loss = sum(losses) / len(losses)
        lines.append(f"loss at the workers {loss:{'.3f' if abs(loss) < 1000 else '.3g'}}")
    if waits := _waited_for(launch):
        lines.append(f"waits for {waits}")
    return lines


def _head(launch: Launch) -> str:
    servers = _shown(launch)
    found = [state.accuracy for state in servers if state.accuracy is not None]
    spreads = [line for line in launch.lines if line["kind"] == "spread"]
    parts = [
        f"{launch.cluster.text.name} {launch.elapsed:.0f} s",
        f"step {min((s.step for s in servers), default=0)} of {launch.cluster.steps}",
    ]
    if found:
        parts.append(f"accuracy {100 * min(found):.1f} %")
    if len(servers) > 1 and spreads and spreads[-1]["spread"] is not None:
        about = "about " * spreads[-1].get("estimated", False)
        parts.append(f"spread {about}{spreads[-1]['spread']:.3g}")
    if starting := _starting(launch) or ("all nodes are up" if not found else ""):
        parts.append(f"starting: {starting}")
    return ", ".join(parts)


def _starting(launch: Launch) -> str:
    """Return which nodes have not begun to look for the others, and what they do."""
    names = [name for name in launch.cluster.names if name not in launch.killed]
    doing: dict[str, list[str]] = {}
    for name in names:
        if launch.states[name].starts:
            doing.setdefault(launch.states[name].starts, []).append(name)
    parts = []
    for what, who in doing.items():
        many = f"{'all' if len(who) == len(names) else f'{len(who)} of'} {len(names)} nodes"
        parts.append(f"{many if len(who) > 3 else ', '.join(who)} {what}")
    return ", ".join(parts)


def _waited_for(launch: Launch) -> str:
    """Return whom the honest servers wait for."""
    waits = sorted({name for state in _shown(launch) for name in state.waiting})
    return ", ".join(waits[:8]) + ", ..." * (len(waits) > 8)


def _shown(launch: Launch) -> list[State]:
    """Return the honest servers that are not dead by wish; a single one also if it lies."""
    cluster = launch.cluster
    servers = cluster.of_role("server")
    honest = [n for n in servers if n not in cluster.liars]
    return [launch.states[n] for n in honest or servers if n not in launch.killed]


def table_of_protocols(outcomes: Sequence[Outcome]) -> str:
    """Return what has come of clusters, as a table."""
    rows = []
    for outcome in outcomes:
        s, w = outcome.cluster.servers, outcome.cluster.workers
        steps = outcome.cluster.steps
        rows.append(
            [
                outcome.cluster.text.name,
                *(
                    f"{g.count}, {g.byzantine} lie".replace(" ", KEEPS)
                    if g.byzantine
                    else f"{g.count}"
                    for g in (s, w)
                ),
                f"{100 * outcome.lowest:.1f} %",
                "-" if len(outcome.accuracy) < 2 else f"{outcome.spread or 0.0:.3g}",
                f"{outcome.messages / steps:.0f}",
                f"{outcome.bytes / steps / 1e3:.0f}",
                f"{outcome.seconds:.1f}",
            ]
        )
    heads = (
        "protocol", "servers", "workers", "accuracy", "spread", "messages a step", "kB a step",
        "seconds",
    )  # fmt: skip
    table = text_table(heads, rows, right=(3, 4, 5, 6, 7), width=WIDTH).replace(KEEPS, " ")
    return table + _convictions([outcome.convicted for outcome in outcomes])


def table_of_seeds(cluster: Cluster, summaries: Sequence[dict[str, Any]]) -> str:
    """Return what has come of the seeds, as a table."""

    def row(name: str, values: Sequence[float | None], show: str = "{:.4g}") -> list[str]:
        ordered = sorted(value for value in values if value is not None)
        if not ordered:
            return [name, "-", "-", "-"]
        middle = ordered[len(ordered) // 2]
        return [name, *(show.format(value) for value in (ordered[0], middle, ordered[-1]))]

    steps = cluster.steps
    worst = [min(s["accuracy"].values()) for s in summaries]
    honest = [name for name in cluster.of_role("server") if name not in cluster.liars]
    several, whose = len(honest) > 1, "the worst honest server" if honest else "a server that lies"
    rows = [
        row(f"accuracy of {whose} (%)", [100 * a for a in worst], "{:.1f}"),
        row("spread of the honest servers", [s["spread"] for s in summaries if several]),
        row("virtual seconds a step", [s["virtual_seconds"] / steps for s in summaries]),
        row("messages a step", [s["messages"] / steps for s in summaries], "{:.0f}"),
        row("kilobytes a step", [s["bytes"] / steps / 1e3 for s in summaries], "{:.0f}"),
        row("messages lost", [s["dropped"]["lost"] for s in summaries], "{:.0f}"),
        row("nodes killed", [s["crashed"] for s in summaries], "{:.0f}"),
    ]
    head = f"{headline(cluster)}, {len(summaries)} seed{'s' if len(summaries) > 1 else ''}"
    if len(summaries) == 1:
        table = text_table(("", "value"), [r[:2] for r in rows], right=(1,))
    else:
        table = text_table(("", "least", "middle", "most"), rows, right=(1, 2, 3))
    return f"{fill(head, WIDTH)}\n\n{table}" + _convictions(
        [s.get("convicted", {}) for s in summaries]
    )


def _convictions(found: Sequence[dict[str, int]]) -> str:
    """Return a line on who is proved to lie, if somebody is."""
    names = sorted({name for convicted in found for name in convicted})
    said = " and ".join(filter(None, (", ".join(names[:-1]), *names[-1:])))
    was = "was" if len(names) == 1 else "were"
    return f"\n\n{said} signed two models for one step, and {was} excluded" if names else ""
