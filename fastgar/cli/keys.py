"""``fastgar keys``: a cluster file and a private file for each node."""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

from ..errors import shown
from .refuse import Refused, refusing

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
        from ..protocols.cluster import Address
        from ..protocols.file import cluster_of, read_cluster, read_document, to_toml
        from ..protocols.member import only_here
        from ..train.config import LONGEST_DOCUMENT

        try:
            document = read_document(options.cluster) if options.cluster else {}
        except OSError as error:
            raise Refused(f"cannot read {options.cluster}: {error.strerror}") from error
        addresses = [_address(text) for text in options.addresses]
        servers = options.servers or document.get("servers", {}).get("count", 1)
        if not 0 < servers < len(addresses):
            raise ValueError(
                f"of {len(addresses)} nodes 1 to {len(addresses) - 1} can be servers, got {servers}"
            )
        workers = len(addresses) - servers
        name = options.protocol or document.get("protocol", {}).get(
            "name", "vanilla" if servers == 1 else "byzsgd"
        )
        f_s = options.f_servers
        f_w = options.f_workers
        most = {
            "byzsgd": (max(0, (servers - 2) // 3), max(0, (workers - 1) // 3)),
            "aggregathor": (0, max(0, (workers - 3) // 2)),
            "crash_tolerant": ((servers - 1) // 2, (workers - 1) // 2),
        }
        default = most.get(name, (0, 0))
        document = {
            **document,
            "protocol": {**document.get("protocol", {}), "name": name},
            "servers": {"f": default[0], **document.get("servers", {}), "count": servers},
            "workers": {"f": default[1], **document.get("workers", {}), "count": workers},
        }
        if f_s is not None:
            document["servers"]["f"] = f_s
        if f_w is not None:
            document["workers"]["f"] = f_w
        document.pop("nodes", None)
        cluster = cluster_of(document)
        if len(set(addresses)) < len(addresses):
            raise ValueError("two nodes have the same address")
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
        try:
            out.mkdir(parents=True, exist_ok=True)
            for node, at in nodes.items():
                made = make_key(out / f"{node}.pem", node)
                public = public_key(out / f"{node}.pem") if node in signing else ""
                nodes[node] = replace(at, fingerprint=made, public_key=public)
            (out / "cluster.toml").write_text(to_toml(replace(cluster, nodes=nodes)))
        except OSError as error:
            raise Refused(f"cannot write to {out}: {error.strerror}") from error
    read_cluster(out / "cluster.toml")
    print(f"{out / 'cluster.toml'}: for all nodes ({name}, {servers} servers, {workers} workers)")
    for node, (host, port) in zip(cluster.names, addresses, strict=True):
        print(f"{out / node}.pem: for {node} at {host}:{port}, and for nobody else")
    hosts = [host for host, _ in addresses]
    if here := only_here(dict(zip(cluster.names, hosts, strict=True))):
        print(f"{', '.join(here)}: reached on their own machine alone, by their addresses")
    print(f"on each machine: fastgar node --cluster {out / 'cluster.toml'} --key {out}/NAME.pem")
    return 0


def _address(text: str) -> tuple[str, int]:
    host, _, port = text.rpartition(":")
    if not host or not port.isdecimal() or not 0 < int(port) < 1 << 16:
        raise ValueError(f"an address is HOST:PORT, got {shown(text)}")
    return host.strip("[]"), int(port)
