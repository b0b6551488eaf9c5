"""The protocols by name."""

from __future__ import annotations

from importlib.metadata import entry_points

from ..errors import shown, unknown
from . import aggregathor, byzsgd, crash_tolerant, rbtm, vanilla
from .cluster import Cluster
from .text import Kind, Text

__all__ = ["PROTOCOLS", "most_liars", "text_of"]

ENTRY_POINTS = "fastgar.protocols"

MOST_PIECES = 64  # each is a kind of message, and all of them are named in a hello


def _of_byzsgd(c: Cluster) -> str | None:
    """Return what is wrong: n_w >= 3 f_w + 1, n_s >= 3 f_s + 2, and quorums within their ranges."""
    if c.agreement not in c.text.agreements:
        return str(unknown("agreement", c.agreement, c.text.agreements))
    for what, group, least, factor, quorum in (
        ("servers", c.servers, 3 * c.f_s + 2, 2, c.q_s),
        ("workers", c.workers, 3 * c.f_w + 1, 1, c.q_w),
    ):
        if group.count < least:
            bound = "n_s >= 3 f_s + 2" if what == "servers" else "n_w >= 3 f_w + 1"
            return (
                f"byzsgd needs {bound}: with f = {group.f} that is {least} {what}, "
                f"got {group.count}"
            )
        low, high = 2 * group.f + factor, group.count - group.f
        if not low <= quorum <= high:
            return f"quorum_{what} must lie between {low} and {high}, got {quorum}"
    if c.agreement == "rbtm" and c.wire != "float32":
        return (
            f"agreement 'rbtm' promises how close servers come, and rounding would undo it: take "
            f"wire = 'float32', got {shown(c.wire)}"
        )
    return None


def _of_one_server(c: Cluster) -> str | None:
    if c.servers.count != 1:
        return f"{c.text.name} has one server, which everybody trusts, got {c.servers.count}"
    if c.f_s:
        return f"{c.text.name} trusts its server: f of the servers must be 0, got {c.f_s}"
    if not 1 <= c.q_w <= c.workers.count:
        return f"quorum_workers must lie between 1 and {c.workers.count}, got {c.q_w}"
    return None


def _of_aggregathor(c: Cluster) -> str | None:
    """Return what is wrong: n_w >= 2 f_w + 3 (weak) or 4 f_w + 3 (strong), or the rule's own."""
    for what, value, ways in (
        ("resilience", c.resilience, ("weak", "strong")),
        ("holes", c.holes, ("nan", "zero", "previous")),
    ):
        if value not in ways:
            *first, last = map(repr, ways)
            return f"{what} must be {', '.join(first)} or {last}, got {shown(value)}"
    if not 0 <= c.pieces <= MOST_PIECES:
        return f"pieces must lie between 1 and {MOST_PIECES}, or be 0, got {c.pieces}"
    factor = 2 if c.resilience == "weak" else 4
    default = c.text.rule if c.resilience == "weak" else c.text.strong
    if c.training.rule == default and c.n_w < factor * c.f_w + 3:
        return (
            f"{c.resilience} resilience needs n_w >= {factor} f_w + 3: with f = {c.f_w} that is "
            f"{factor * c.f_w + 3} workers, got {c.n_w}"
        )
    if c.holes == "nan" and c.f_w and c.training.rule.split("|")[-1].strip() == "mean":
        return "the mean of a hole is a hole: take nan_mean, or holes = 'zero' or 'previous'"
    low = c.n_w - c.f_w
    if c.servers.count == 1 and not low <= c.q_w <= c.n_w:
        return f"quorum_workers must lie between {low} and {c.n_w}, got {c.q_w}"
    return _of_one_server(c)


def _of_crash_tolerant(c: Cluster) -> str | None:
    """Return what is wrong: n_s >= 2 f_s + 1, a quorum of a majority, and workers enough."""
    least = 2 * c.f_s + 1
    if c.servers.count < least:
        return (
            f"crash_tolerant needs n_s >= 2 f_s + 1: with f = {c.f_s} that is {least} servers, "
            f"got {c.servers.count}"
        )
    low, high = c.servers.count // 2 + 1, c.servers.count - c.f_s
    if not low <= c.q_s <= high:
        return f"quorum_servers must lie between {low} and {high}, got {c.q_s}"
    if c.f_w >= c.n_w:
        return f"f of the workers must be below {c.n_w}, how many there are, got {c.f_w}"
    if not 1 <= c.q_w <= c.n_w - c.f_w:
        return f"quorum_workers must lie between 1 and {c.n_w - c.f_w}, got {c.q_w}"
    return None


PROTOCOLS = {
    text.name: text
    for text in (
        Text(
            "byzsgd",
            byzsgd.server,
            byzsgd.worker,
            {
                "model": Kind("server", ("worker", "server"), latest=True),
                "gradient": Kind("worker", ("server",)),
                "gather": Kind("server", ("server",), latest=True),
            },
            rule="mda",
            complaint=_of_byzsgd,
            settings=("agreement",),
            agreements={"dmc": {}, "rbtm": rbtm.KINDS},
        ),
        Text(
            "vanilla",
            vanilla.server,
            vanilla.worker,
            {
                "model": Kind("server", ("worker",), latest=True),
                "gradient": Kind("worker", ("server",)),
            },
            rule="mean",
            complaint=_of_one_server,
        ),
        Text(
            "aggregathor",
            aggregathor.server,
            aggregathor.worker,
            {
                "model": Kind("server", ("worker",), latest=True),
                "gradient": Kind("worker", ("server",), pieces=True),
            },
            rule="multi_krum",
            complaint=_of_aggregathor,
            strong="bulyan",
            settings=("resilience", "holes", "pieces"),
            everybody=True,
        ),
        Text(
            "crash_tolerant",
            crash_tolerant.server,
            crash_tolerant.worker,
            {
                "proposal": Kind("server", ("server",), latest=True),
                "stored": Kind("server", ("server",), latest=True, model=False, more=1),
                "stand": Kind("server", ("server",), latest=True, more=2),
                "model": Kind("server", ("worker",), latest=True),
                "gradient": Kind("worker", ("server",), latest=True),
                "final": Kind("server", ("worker", "server"), latest=True),
            },
            rule="mean",
            complaint=_of_crash_tolerant,
            liars=False,
        ),
    )
}


def most_liars(name: str, servers: int, workers: int, resilience: str = "weak") -> tuple[int, int]:
    """Return how many servers and workers may lie, or with crash_tolerant be gone, at most.

    Examples
    --------
    >>> most_liars("byzsgd", 5, 10), most_liars("vanilla", 1, 10)
    ((1, 3), (0, 0))
    """
    most = {
        "byzsgd": ((servers - 2) // 3, (workers - 1) // 3),
        "aggregathor": (0, (workers - 3) // (4 if resilience == "strong" else 2)),
        "crash_tolerant": ((servers - 1) // 2, (workers - 1) // 2),
    }
    f_s, f_w = most.get(name, (0, 0))
    return max(0, f_s), max(0, f_w)


def text_of(name: object) -> Text:
    """Return the protocol of a name: one of these, or one that another distribution offers.

    Raises
    ------
    ValueError
        If there is none.
    """
    if isinstance(name, str) and name in PROTOCOLS:
        return PROTOCOLS[name]
    offered = {entry.name: entry for entry in entry_points(group=ENTRY_POINTS)}
    if not isinstance(name, str) or name not in offered:
        raise unknown("protocol", name, [*PROTOCOLS, *offered])
    text = offered[name].load()
    if not isinstance(text, Text) or text.name != name:
        raise ValueError(f"{offered[name].value} is no protocol of the name {name!r}")
    return text
