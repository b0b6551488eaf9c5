"""What ``cluster`` and ``simulate`` can be told, as the tables of a cluster file."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .refuse import Refused

if TYPE_CHECKING:
    from ..protocols.cluster import Cluster

__all__ = ["add_flags", "asked_for_nothing", "cluster_from"]

# The table and the setting of each flag.
PLACES = {
    "protocol": ("protocol", "name"), "rule": ("protocol", "rule"),
    "gather_every": ("protocol", "gather_every"), "agreement": ("protocol", "agreement"),
    "resilience": ("protocol", "resilience"),
    "holes": ("protocol", "holes"), "pieces": ("protocol", "pieces"),
    "wire": ("protocol", "wire"),
    "servers": ("servers", "count"), "f_servers": ("servers", "f"),
    "byzantine_servers": ("servers", "byzantine"), "server_attack": ("servers", "attack"),
    "workers": ("workers", "count"), "f_workers": ("workers", "f"),
    "byzantine_workers": ("workers", "byzantine"), "attack": ("workers", "attack"),
    "model": ("training", "model"), "data": ("training", "data"), "split": ("training", "split"),
    "steps": ("training", "steps"), "batch": ("training", "batch"), "lr": ("training", "lr"),
    "momentum": ("training", "momentum"), "seed": ("training", "seed"),
}  # fmt: skip
# What is run where nothing is asked for.
DEFAULTS = {
    "servers": 5, "f_servers": 1, "workers": 10, "f_workers": 3, "attack": "little",
    "server_attack": "reverse", "steps": 100,
}  # fmt: skip
ONE_SERVER = ("vanilla", "aggregathor")
NO_LIARS = ("crash_tolerant",)  # of which none lies unless it is asked for


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Add the flags."""
    add = parser.add_argument
    add("--cluster", type=Path, metavar="FILE", help="a cluster file; flags change what it says")
    add("--protocol", help="byzsgd, aggregathor, crash_tolerant or vanilla (default: byzsgd)")
    add("--servers", type=int, metavar="N", help="how many (default: 5, or 1 where that is it)")
    add("--workers", type=int, metavar="N", help="how many (default: 10)")
    add("--f-servers", type=int, metavar="F", help="servers that may lie (default: 1)")
    add("--f-workers", type=int, metavar="F", help="workers that may lie (default: 3)")
    add("--byzantine-servers", type=int, metavar="N", help="that do (default: as many as may)")
    add("--byzantine-workers", type=int, metavar="N", help="that do (default: as many as may)")
    add("--attack", help="what lying workers send (default: little)")
    add("--server-attack", metavar="ATTACK", help="what lying servers send (default: reverse)")
    add("--rule", help="for the gradients (default: the protocol's)")
    add("--gather-every", type=int, metavar="T", help="byzsgd: steps between gathers (default: 10)")
    add("--agreement", help="byzsgd: dmc (the median) or rbtm (reliable broadcast; default: dmc)")
    add("--resilience", help="aggregathor: weak (Multi-Krum) or strong (Bulyan; default: weak)")
    add("--holes", help="aggregathor: what has not come is nan, zero or previous (default: nan)")
    add("--pieces", type=int, metavar="N", help="aggregathor: of a gradient (default: 8)")
    add("--wire", help="models and gradients travel as float32 or bfloat16 (default: float32)")
    add("--model", help="as in fastgar train (default: mlp)")
    add("--data", help="as in fastgar train (default: digits)")
    add("--split", help="as in fastgar train (default: iid)")
    add("--steps", type=int, metavar="N", help="(default: 100)")
    add("--batch", type=int, metavar="N", help="samples for a gradient (default: 32)")
    add("--lr", type=float, help="learning rate (default: 0.05)")
    add("--momentum", type=float, help="at the workers (default: 0.9)")
    add("--seed", type=int, help="of model, data and batches (default: 0)")
    add(
        "--perturb", action="append", metavar="LINE", default=[],
        help="such as 'kill ps1 @ step 20'; may be given several times",
    )  # fmt: skip


def asked_for_nothing(options: argparse.Namespace) -> bool:
    """Return whether no flag says which cluster is meant."""
    return (
        options.cluster is None
        and not options.perturb
        and all(getattr(options, flag) is None for flag in PLACES)
    )


def cluster_from(options: argparse.Namespace, protocol: str | None = None) -> Cluster:
    """Return the cluster that file and flags describe.

    Raises
    ------
    Refused, ValueError, TypeError
        If there is none.
    """
    from ..protocols.file import cluster_of, read_cluster, read_document
    from ..protocols.names import check_names

    document: dict[str, Any] = {}
    if options.cluster is not None:
        try:
            document = dict(read_document(options.cluster))
        except OSError as error:
            raise Refused(f"cannot read {options.cluster}: {error.strerror}") from error
    given = {flag: getattr(options, flag) for flag in PLACES if getattr(options, flag) is not None}
    if protocol is not None:
        given["protocol"] = protocol
    if options.cluster is None:
        given = {**DEFAULTS, **given}
        if given.get("protocol") in ONE_SERVER:
            lying = given.get("byzantine_servers", min(1, given["f_servers"]))
            given = {**given, "servers": 1, "f_servers": 0, "byzantine_servers": lying}
        elif given.get("protocol") in NO_LIARS:
            given = {"byzantine_servers": 0, "byzantine_workers": 0, **given}
        for role in ("servers", "workers"):
            given.setdefault(f"byzantine_{role}", given[f"f_{role}"])
    for flag, value in given.items():
        table, setting = PLACES[flag]
        document[table] = {**document.get(table, {}), setting: value}
    if options.perturb:
        document["perturb"] = [*document.get("perturb", []), *options.perturb]
    try:
        cluster = cluster_of(document)
    except (TypeError, ValueError):
        if options.cluster is not None:
            read_cluster(options.cluster)  # what is wrong in the file itself, is told with its name
        raise
    check_names(cluster.training.model, cluster.training.data)
    return cluster
