"""The protocols by name."""

from __future__ import annotations

from importlib.metadata import entry_points

from ..errors import unknown
from . import byzsgd, vanilla
from .cluster import Cluster
from .text import Kind, Text

__all__ = ["PROTOCOLS", "text_of"]

ENTRY_POINTS = "fastgar.protocols"


def _of_byzsgd(c: Cluster) -> str | None:
    """Return what is wrong: n_w >= 3 f_w + 1, n_s >= 3 f_s + 2, and quorums within their ranges."""
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
    return None


def _of_one_server(c: Cluster) -> str | None:
    if c.servers.count != 1:
        return f"{c.text.name} has one server, which everybody trusts, got {c.servers.count}"
    if c.f_s:
        return f"{c.text.name} trusts its server: f of the servers must be 0, got {c.f_s}"
    if not 1 <= c.q_w <= c.workers.count:
        return f"quorum_workers must lie between 1 and {c.workers.count}, got {c.q_w}"
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
                "gather": Kind("server", ("server",)),
            },
            rule="mda",
            complaint=_of_byzsgd,
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
    )
}


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
