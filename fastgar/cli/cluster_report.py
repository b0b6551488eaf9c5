"""What ``cluster`` and ``simulate`` say: how a cluster is, and what has come of it."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from .tables import text_table

if TYPE_CHECKING:
    from ..protocols.cluster import Cluster
    from ..protocols.launch import Launch
    from ..protocols.outcome import Outcome

__all__ = ["drawn", "headline", "status", "table_of_protocols", "table_of_seeds"]


def headline(cluster: Cluster) -> str:
    """Return what a cluster is, in a line."""
    groups = []
    for what, group in (("server", cluster.servers), ("worker", cluster.workers)):
        lies = f" ({group.byzantine} lie{'s' * (group.byzantine == 1)}: {group.attack})"
        plural = "s" * (group.count > 1)
        groups.append(f"{group.count} {what}{plural}{lies if group.byzantine else ''}")
    return f"{cluster.text.name}: {', '.join(groups)}, {cluster.steps} steps"


def status(launch: Launch) -> str:
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


def drawn(launch: Launch) -> list[str]:
    """Return how a cluster is, a line for each server and one for the workers."""
    cluster, states = launch.cluster, launch.states
    spreads = [line["spread"] for line in launch.lines if line["kind"] == "spread"]
    lines = [status(launch) + (f", spread {spreads[-1]:.3g}" if spreads else "")]
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
    return lines


def table_of_protocols(outcomes: Sequence[Outcome]) -> str:
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
    table = text_table(heads, rows, right=(3, 4, 5, 6, 7))
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
    rows = [
        row("accuracy of the worst honest server (%)", [100 * a for a in worst], "{:.1f}"),
        row("spread of the honest servers", [s["spread"] for s in summaries]),
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
    return f"{head}\n\n{table}" + _convictions([s.get("convicted", {}) for s in summaries])


def _convictions(found: Sequence[dict[str, int]]) -> str:
    """Return a line on who is proved to lie, if somebody is."""
    names = sorted({name for convicted in found for name in convicted})
    said = " and ".join(filter(None, (", ".join(names[:-1]), *names[-1:])))
    was = "was" if len(names) == 1 else "were"
    return f"\n\n{said} signed two models for one step, and {was} excluded" if names else ""
