"""Which node a key is of, and which addresses others reach; without torch, as it is asked first."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from ..network import check_key
from .cluster import Cluster

__all__ = ["name_of", "only_here"]


def name_of(cluster: Cluster, key: Path) -> str:
    """Return the name of the node whose key a file holds.

    Raises
    ------
    ValueError
        If the file cannot be used, or no node of the cluster has that key.
    """
    own = check_key(key)
    for name, node in cluster.nodes.items():
        if node.fingerprint == own:
            return name
    if not cluster.nodes:
        raise ValueError("the cluster file has no [nodes]: make one with fastgar keys")
    raise ValueError(f"{key} is the key of no node of this cluster file")


def only_here(addresses: Mapping[str, str]) -> list[str]:
    """Return the nodes that only their own machine reaches, where others are on other machines.

    Parameters
    ----------
    addresses : mapping of str to str
        The host of each node.
    """
    found = [
        name
        for name, host in addresses.items()
        if host in ("localhost", "::1") or host.startswith("127.")
    ]
    return found if len(found) < len(addresses) else []
