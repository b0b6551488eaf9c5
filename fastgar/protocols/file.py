"""The cluster file: TOML, read and written, every mistake told in one sentence.

======================== ================================================================
``perturb``              at the top: what is done to the cluster, see `perturb`
``[protocol]``           ``name``, ``rule``, ``gather_every``, quorums, how long nodes wait
``[training]``           the settings of ``fastgar train``: ``model``, ``data``, ``steps``, ...
``[servers]``            ``count``, ``f``, ``byzantine``, ``attack``
``[workers]``            the same
``[simulated]``          the laws of the simulated network, see `fastgar.network.laws`
``[nodes.ps0]``          ``address`` and ``fingerprint`` of a node, for each; none, or of all; and
                         its ``public_key`` if it signs
======================== ================================================================
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any

from ..errors import shown, unknown
from ..network.laws import Laws
from ..train.config import Config, read_settings
from .cluster import Address, Cluster, Group
from .lies import check_attacks
from .perturb import read_perturbation
from .registry import PROTOCOLS, text_of
from .text import Text

__all__ = ["cluster_of", "hash_of", "read_cluster", "read_document", "to_toml"]

TABLES = ("protocol", "training", "servers", "workers", "simulated", "nodes")
SETTINGS: dict[str, type[int] | type[float] | type[str]] = {
    "gather_every": int, "quorum_servers": int, "quorum_workers": int, "deadline_floor": float,
    "deadline_ceiling": float, "starting_deadline": float, "give_up": float, "linger": float,
    "agreement": str, "resilience": str, "holes": str, "pieces": int, "wire": str,
}  # fmt: skip
# What the groups say, and not [training].
ELSEWHERE = {
    "workers": "[workers] count", "byzantine": "[workers] byzantine", "declared": "[workers] f",
    "attack": "[workers] attack", "rule": "[protocol] rule",
}  # fmt: skip
# Of one vector, not of all workers: what a protocol does not have.
WITHOUT = ("participation", "validation", "metrics", "checkpoint_every")
TRAINING = {"momentum_at": "worker", "steps": 200}  # where they differ from those of one process


def read_cluster(path: Path) -> Cluster:
    """Return the cluster that a file describes.

    Parameters
    ----------
    path : Path
        Of a TOML document of at most 16,000 characters; what tables it may have, `cluster_of` and
        the top of this file say.

    Returns
    -------
    Cluster

    Raises
    ------
    ValueError
        If it is no TOML document, or describes a cluster that cannot be.
    OSError
        If it cannot be read.
    """
    document = read_document(path)
    try:
        return cluster_of(document)
    except (TypeError, ValueError) as error:
        kind = TypeError if isinstance(error, TypeError) else ValueError
        raise kind(f"{path}: {error}") from None


def read_document(path: Path) -> dict[str, Any]:
    """Return the tables of a file, as they are; an error names it."""
    try:
        return read_settings(path)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None


def cluster_of(document: Mapping[str, Any], text: Text | None = None) -> Cluster:
    """Return the cluster that a document describes: its tables by name.

    Parameters
    ----------
    document : mapping
        ``{"servers": {"count": 5, "f": 1}, ...}``: the tables of a cluster file.
    text : Text, optional
        A protocol of one's own, instead of one that is known by its name.

    Returns
    -------
    Cluster

    Raises
    ------
    TypeError, ValueError
        If a table or a setting is unknown, a value cannot be right, or numbers do not fit the
        protocol.

    Examples
    --------
    >>> c = cluster_of({"servers": {"count": 5, "f": 1}, "workers": {"count": 4, "f": 1}})
    >>> c.text.name, c.q_s, c.q_w
    ('byzsgd', 4, 3)
    >>> cluster_of({"servers": {"count": 4, "f": 1}, "workers": {"count": 4, "f": 1}})
    Traceback (most recent call last):
    ValueError: byzsgd needs n_s >= 3 f_s + 2: with f = 1 that is 5 servers, got 4
    """
    for name, value in document.items():
        if name not in (*TABLES, "perturb"):
            raise unknown("table of a cluster file", name, [*TABLES, "perturb"])
        if name != "perturb" and not isinstance(value, Mapping):
            raise TypeError(f"[{name}] must be a table, got {shown(value)}")
    protocol = dict(document.get("protocol", {}))
    name = protocol.pop("name", "byzsgd" if text is None else text.name)
    if text is None:
        text = text_of(name)
    elif name != text.name:
        raise ValueError(f"the document names {shown(name)} and the text is {text.name}: name one")
    strong = text.strong and protocol.get("resilience") == "strong"
    rule = protocol.pop("rule", text.strong if strong else text.rule)
    servers = _group("servers", document.get("servers", {}))
    workers = _group("workers", document.get("workers", {}))
    cluster = Cluster(
        text,
        _training(document.get("training", {}), workers, rule),
        servers,
        workers,
        perturb=_perturb(document.get("perturb", [])),
        simulated=asdict(Laws.of(document.get("simulated", {}))),
        nodes={name: _address(name, value) for name, value in document.get("nodes", {}).items()},
        **_settings(protocol, text),
    )
    check_attacks(cluster)
    for line in cluster.perturb:
        it = read_perturbation(line, cluster.names)
        if it.step is not None and it.step > cluster.steps:
            raise ValueError(f"{shown(line)} never comes: the run has {cluster.steps} steps")
    for name in cluster.nodes:
        if name not in cluster.names:
            raise unknown("node", name, cluster.names)
    lacking = [name for name in cluster.names if name not in cluster.nodes]
    if cluster.nodes and lacking:
        raise ValueError(f"[nodes] lacks {', '.join(lacking[:6])}: name all nodes, or none")
    if cluster.signs and cluster.nodes:
        lacking = [name for name in cluster.of_role("server") if not cluster.nodes[name].public_key]
        if lacking:
            raise ValueError(
                f"[nodes.{lacking[0]}] lacks public_key, which agreement = {cluster.agreement!r} "
                "needs of servers: fastgar keys writes it"
            )
    return cluster


def to_toml(cluster: Cluster) -> str:
    """Return the file of a cluster."""
    training = asdict(cluster.training)
    default = asdict(Config(**TRAINING))  # type: ignore[arg-type]
    tables = {
        "protocol": {
            "name": cluster.text.name,
            "rule": cluster.training.rule,
            **{name: getattr(cluster, name) for name in _known(cluster.text)},
        },
        "training": {
            name: value
            for name, value in training.items()
            if name not in (*ELSEWHERE, *WITHOUT) and value != default[name]
        },
        "servers": asdict(cluster.servers),
        "workers": asdict(cluster.workers),
        "simulated": dict(cluster.simulated),
    }
    lines = [f"perturb = {json.dumps(list(cluster.perturb), ensure_ascii=False)}"]
    for table, values in tables.items():
        lines += ["", f"[{table}]"]
        lines += [
            f"{name} = {json.dumps(value, ensure_ascii=False)}" for name, value in values.items()
        ]
    for name, node in cluster.nodes.items():
        lines += ["", f"[nodes.{name}]", f'address = "{node.host}:{node.port}"']
        lines += [f'fingerprint = "{node.fingerprint}"']
        lines += [f'public_key = "{node.public_key}"'] * bool(node.public_key)
    return "\n".join(lines) + "\n"


def hash_of(cluster: Cluster) -> bytes:
    """Return what tells a cluster from any other: all nodes must have the same.

    Addresses and keys are no part of it: nodes may move, and a run goes on with new keys.
    """
    return hashlib.sha256(to_toml(replace(cluster, nodes={})).encode()).digest()


def _group(what: str, values: Mapping[str, Any]) -> Group:
    """Return the group that a table describes."""
    kinds = {"count": int, "f": int, "byzantine": int, "attack": str}
    names = [field.name for field in fields(Group)]
    for name, value in values.items():
        if name not in names:
            raise unknown(f"setting of [{what}]", name, names)
        if type(value) is not kinds[name]:
            wanted = "an integer" if kinds[name] is int else "a string"
            raise TypeError(f"{name} of [{what}] must be {wanted}, got {shown(value)}")
    return Group(**values)


def _training(values: Mapping[str, Any], workers: Group, rule: Any) -> Config:
    """Return the settings of the training."""
    for name in values:
        if name in ELSEWHERE:
            raise ValueError(f"{name} is set by {ELSEWHERE[name]}, not in [training]")
        if name in WITHOUT:
            raise ValueError(f"{name} is no setting of a cluster: it has no meaning here")
    return Config.of(
        {
            **TRAINING,
            **values,
            "workers": workers.count,
            "byzantine": min(workers.byzantine, max(workers.count - 1, 0)),
            "declared": max(workers.f, 0),
            "rule": rule,
            "attack": workers.attack,
        }
    )


def _known(text: Text) -> list[str]:
    """Return the settings of a protocol: those of all, and its own."""
    others = {name for other in PROTOCOLS.values() for name in other.settings}
    return [name for name in SETTINGS if name in text.settings or name not in others]


def _settings(values: Mapping[str, Any], text: Text) -> dict[str, Any]:
    """Return the settings of [protocol]."""
    found = {}
    for name, value in values.items():
        if name not in _known(text):
            for other in PROTOCOLS.values():
                if name in other.settings:
                    raise ValueError(f"{name} is a setting of {other.name}, not of {text.name}")
            raise unknown("setting of [protocol]", name, ["name", "rule", *_known(text)])
        kind = SETTINGS[name]
        if type(value) is not kind and not (kind is float and type(value) is int):
            wanted = {int: "an integer", float: "a number", str: "a string"}[kind]
            raise TypeError(f"{name} of [protocol] must be {wanted}, got {shown(value)}")
        if isinstance(value, int | float) and not 0 <= value < 1e9:
            raise ValueError(f"{name} of [protocol] must be at least 0 and finite, got {value}")
        found[name] = kind(value)
    return found


def _perturb(lines: Any) -> tuple[str, ...]:
    if not isinstance(lines, list) or not all(isinstance(line, str) for line in lines):
        raise TypeError(f"perturb must be a list of strings, got {shown(lines)}")
    return tuple(lines)


def _address(name: str, values: Any) -> Address:
    """Return a node's address."""
    if not isinstance(values, Mapping):
        raise TypeError(f"[nodes.{name}] must be a table, got {shown(values)}")
    for key in values:
        if key not in ("address", "fingerprint", "public_key"):
            raise unknown(
                f"setting of [nodes.{name}]", key, ["address", "fingerprint", "public_key"]
            )
    text, fingerprint = values.get("address"), values.get("fingerprint", "")
    public = values.get("public_key", "")
    host, _, port = str(text).rpartition(":")
    if not host or not port.isdecimal() or not 0 < int(port) < 1 << 16:
        raise ValueError(f"address of [nodes.{name}] must be HOST:PORT, got {shown(text)}")
    if fingerprint and (type(fingerprint) is not str or not _is_hex(fingerprint, 64)):
        raise ValueError(
            f"fingerprint of [nodes.{name}] must be 64 hexadecimal digits, got {shown(fingerprint)}"
        )
    if public and (type(public) is not str or not _is_hex(public, 66)):
        raise ValueError(
            f"public_key of [nodes.{name}] must be 66 hexadecimal digits, got {shown(public)}"
        )
    return Address(host.strip("[]"), int(port), fingerprint, public)


def _is_hex(text: str, length: int) -> bool:
    return len(text) == length and all(digit in "0123456789abcdef" for digit in text)
