"""``fastgar keys``: a cluster file and a private file for each node."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from ..errors import shown
from .cluster_report import caution
from .refuse import Refused, refusing, require_folder

__all__ = ["NAME", "SUMMARY", "add_arguments", "run"]

NAME = "keys"
SUMMARY = "Make a cluster file, and a private file for each node."


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of this command."""
    add = parser.add_argument
    add("addresses", nargs="+", metavar="HOST:PORT", help="of all nodes, the servers first")
    add("--out", type=Path, metavar="DIR", required=True, help="where the files go")
    add("--cluster", type=Path, metavar="FILE", help="a cluster file to take all else from")
    add("--servers", type=int, metavar="N", help="how many of the nodes are servers (default: 1)")
    add("--protocol", help="as in fastgar cluster (default: byzsgd, or vanilla with one server)")
    add("--f-servers", type=int, metavar="F", help="servers that may lie (default: all it allows)")
    add("--f-workers", type=int, metavar="F", help="workers that may lie (default: all it allows)")


def run(options: argparse.Namespace) -> int:
    """Write the files."""
    with refusing(extra="train"):
        from ..network import make_key, public_key
        from ..protocols.addresses import only_here
        from ..protocols.cluster import Address
        from ..protocols.file import cluster_of, read_cluster, read_document, to_toml
        from ..protocols.names import check_names
        from ..train.config import LONGEST_DOCUMENT

        try:
            document = read_document(options.cluster) if options.cluster else {}
        except OSError as error:
            raise Refused(f"cannot read {options.cluster}: {error.strerror}") from error
        addresses = [_address(text) for text in options.addresses]
        try:
            cluster = cluster_of(_sized(document, len(addresses), options))
        except (TypeError, ValueError, AttributeError):
            if options.cluster:
                read_cluster(options.cluster)  # what is wrong in the file itself is told with it
            raise
        check_names(cluster.training.model, cluster.training.data)
        _require_distinct(addresses, cluster.names)
        named = zip(cluster.names, addresses, strict=True)
        signing = cluster.of_role("server") if cluster.signs else ()
        nodes = {
            node: Address(host, port, "0" * 64, "0" * 66 * (node in signing))
            for node, (host, port) in named
        }
        length = len(to_toml(replace(cluster, nodes=nodes)))
        if length > LONGEST_DOCUMENT:
            raise ValueError(
                f"a cluster file has at most {LONGEST_DOCUMENT:,} characters, some "
                f"{LONGEST_DOCUMENT // 128} nodes: this one would have {length:,}"
            )
        out: Path = options.out
        taken = [out / "cluster.toml", *(out / f"{node}.pem" for node in cluster.names)]
        for path in taken:
            if path.exists():
                raise ValueError(f"{path} is there already: take another --out")
        require_folder(out, "--out")
        try:
            for node, at in nodes.items():
                made = make_key(out / f"{node}.pem", node)
                public = public_key(out / f"{node}.pem") if node in signing else ""
                nodes[node] = replace(at, fingerprint=made, public_key=public)
            (out / "cluster.toml").write_text(to_toml(replace(cluster, nodes=nodes)))
        except OSError as error:
            raise Refused(f"cannot write to {out}: {error.strerror}") from error
    read_cluster(out / "cluster.toml")
    groups = (("server", cluster.servers), ("worker", cluster.workers))
    said = [f"{g.count} {what}{'s' * (g.count > 1)}, f = {g.f}" for what, g in groups]
    print(f"{out / 'cluster.toml'}: for all nodes ({cluster.text.name}; {'; '.join(said)})")
    caution([cluster])
    for node, (host, port) in zip(cluster.names, addresses, strict=True):
        print(f"{out / node}.pem: for {node} at {host}:{port}, and for nobody else")
    hosts = [host for host, _ in addresses]
    if here := only_here(dict(zip(cluster.names, hosts, strict=True))):
        print(f"{', '.join(here)}: reached on their own machine alone, by their addresses")
    print(f"on each machine: fastgar node --cluster {out / 'cluster.toml'} --key {out}/NAME.pem")
    return 0


def _sized(document: Mapping[str, Any], count: int, options: argparse.Namespace) -> dict[str, Any]:
    """Return a document for so many nodes, with as many liars as the protocol allows."""
    from ..protocols.registry import most_liars

    tables = {name: dict(document.get(name, {})) for name in ("protocol", "servers", "workers")}
    servers = options.servers or tables["servers"].get("count", 1)
    if not 0 < servers < count:
        raise ValueError(f"of {count} nodes 1 to {count - 1} can be servers, got {servers}")
    name = tables["protocol"].get("name", "vanilla" if servers == 1 else "byzsgd")
    name = options.protocol or name
    resilience = tables["protocol"].get("resilience", "weak")
    f_s, f_w = most_liars(name, servers, count - servers, resilience)
    tables["protocol"]["name"] = name
    tables["servers"] = {"f": f_s, **tables["servers"], "count": servers}
    tables["workers"] = {"f": f_w, **tables["workers"], "count": count - servers}
    for role, f in (("servers", options.f_servers), ("workers", options.f_workers)):
        if f is not None:
            tables[role]["f"] = f
    return {name: table for name, table in {**document, **tables}.items() if name != "nodes"}


def _require_distinct(addresses: Sequence[tuple[str, int]], names: Sequence[str]) -> None:
    """Raise a ValueError that says which two nodes have the same address."""
    first: dict[tuple[str, int], int] = {}
    for i, at in enumerate(addresses):
        j = first.setdefault(at, i)
        if j < i:
            raise ValueError(
                f"addresses {j + 1} and {i + 1} are the same, {at[0]}:{at[1]}: {names[j]} and "
                f"{names[i]} need one each"
            )


def _address(text: str) -> tuple[str, int]:
    host, _, port = text.rpartition(":")
    if not host or not port.isdecimal() or not 0 < int(port) < 1 << 16:
        raise ValueError(f"an address is HOST:PORT, got {shown(text)}")
    return host.strip("[]"), int(port)
