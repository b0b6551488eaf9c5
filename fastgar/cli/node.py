"""``fastgar node``: one node of a cluster, on this machine."""

from __future__ import annotations

import argparse
import logging
import os
import socket
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..errors import shown
from .refuse import Refused, refusing, require_folder

__all__ = ["NAME", "SUMMARY", "add_arguments", "run"]

NAME = "node"
SUMMARY = "Run one node of a cluster; nodes may be started in any order, on any machines."


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of this command."""
    add = parser.add_argument
    add("--cluster", type=Path, metavar="FILE", required=True, help="the cluster file")
    add("--key", type=Path, metavar="FILE", help="the private file of this node")
    add("--keys", type=Path, metavar="DIR", help="or a folder of such files, and --id")
    add("--id", help="which node this is: its name, or its number (the servers come first)")
    add("--out", type=Path, metavar="DIR", help="what it keeps (default: named after the node)")
    add("--listen", metavar="HOST:PORT", help="where to listen (default: all addresses, its port)")
    add("--listen-fd", type=int, help=argparse.SUPPRESS)  # a bound socket of the parent's
    add("--events", action="store_true", help=argparse.SUPPRESS)  # lines of JSON, for a parent
    add("--name", help=argparse.SUPPRESS)  # so that a person finds the process


def run(options: argparse.Namespace) -> int:
    """Run the node until all steps are done."""
    from ..protocols.ending import Ended, ending

    try:
        with ending():
            return _run(options)
    except Ended as end:
        print(
            "fastgar node ends: its folder keeps what it has, and the same command goes on",
            file=sys.stderr,
        )
        return 128 + end.number


def _run(options: argparse.Namespace) -> int:
    with refusing(extra="train"):
        from ..protocols.addresses import name_of, only_here
        from ..protocols.file import read_cluster
        from ..protocols.names import check_names

        try:
            cluster = read_cluster(options.cluster)
            check_names(cluster.training.model, cluster.training.data)
            key = _key(options, cluster.names)
            name = name_of(cluster, key)
        except OSError as error:
            raise Refused(f"cannot read {error.filename}: {error.strerror}") from error
        listen = _listen(options)
        folder = options.out or Path(f"fastgar-node-{name}")
        require_folder(folder, "--out")
        from ..protocols.member import member
        from ..train import models

        models.check(cluster.training.model)
    logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stderr)
    here = only_here({node: address.host for node, address in cluster.nodes.items()})
    if here:
        print(
            f"{', '.join(here)}: reached on their own machine alone, by their addresses",
            file=sys.stderr,
        )
    try:
        member(
            cluster, key, folder, listen=listen, events=options.events,
            say=lambda sentence: print(sentence, flush=True),
        )  # fmt: skip
    except (ValueError, RuntimeError) as error:
        print(f"fastgar node: {error}", file=sys.stderr)
        return 1
    return 0


def _key(options: argparse.Namespace, names: Sequence[str]) -> Path:
    """Return the private file of this node."""
    one = options.key is not None and options.keys is None and options.id is None
    of_many = options.key is None and options.keys is not None and options.id is not None
    if not one and not of_many:
        raise ValueError("name the private file: --key FILE, or --keys DIR and --id ID")
    if one:
        key: Path = options.key
        return key
    own = str(options.id)
    number = int(own) if own.isdecimal() and len(own) < 9 else -1
    name = names[number] if 0 <= number < len(names) else own
    if name not in names:
        raise ValueError(
            f"--id must be a number from 0 to {len(names) - 1}, or a name from {names[0]} to "
            f"{names[-1]}, got {shown(own)}"
        )
    folder: Path = options.keys
    return folder / f"{name}.pem"


def _listen(options: argparse.Namespace) -> Any:
    if options.listen_fd is not None:
        return socket.socket(fileno=os.dup(options.listen_fd))
    if options.listen is None:
        return None
    host, _, port = options.listen.rpartition(":")
    if not port.isdecimal() or not 0 < int(port) < 1 << 16:
        raise ValueError(f"--listen must be HOST:PORT, got {shown(options.listen)}")
    return host.strip("[]"), int(port)
