"""What makes a protocol: the texts of its servers and workers, and who sends what to whom."""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Mapping
from dataclasses import dataclass, field
from typing import Any

__all__ = ["Kind", "Text"]


def _fits_any(cluster: Any) -> str | None:
    return None


Verbs = Callable[[Any, Any, Any], Coroutine[Any, Any, Any]]


@dataclass(frozen=True)
class Kind:
    """A kind of message.

    Attributes
    ----------
    senders : {"server", "worker"}
    receivers : tuple of {"server", "worker"}
    latest : bool
        Whether a newer step replaces an older one where it is received. If not, who is behind holds
        two and reads nothing more of their sender until it gets there: nothing that helps it to
        catch up may come from the same peers.
    pieces : bool
        Whether it goes in as many pieces as the cluster says, each of a kind of its own.
    model : bool
        Whether it holds as many numbers as the model.
    more : int
        How many numbers it holds besides.
    each : int
        How many more for each server.
    copies : {"", "f", "n"}
        Whether there are several kinds ``name/0``, ``name/1``, ...: f + 1 or n, of the servers.
    asked : bool
        Whether it is taken from those alone that were asked for it.
    sealed : bool
        Whether its sender signs it, and is convicted by two signatures that differ.
    """

    senders: str
    receivers: tuple[str, ...]
    latest: bool = False
    pieces: bool = False
    model: bool = True
    more: int = 0
    each: int = 0
    copies: str = ""
    asked: bool = False
    sealed: bool = False


@dataclass(frozen=True)
class Text:
    """A protocol.

    Attributes
    ----------
    name : str
    server, worker : coroutine functions
        Each is called with the node twice, as who it is and as the network, and the cluster; it
        returns the final model. The verbs that it may use are those of `fastgar.protocols.node`.
    kinds : mapping of str to Kind
        By the names of messages. What servers send as "model" is what is evaluated.
    rule : str
        The rule where a cluster names none.
    complaint : callable
        It returns what is wrong with a cluster, in a sentence, or None.
    strong : str
        The rule where it names none, but ``resilience = "strong"``.
    settings : tuple of str
        Those of a cluster that only this protocol has.
    everybody : bool
        Whether the rule gets a row of every worker, rather than of a quorum.
    liars : bool
        Whether it is made for nodes that lie.
    agreements : mapping of str to mapping of str to Kind
        For each agreement between servers that it has, the kinds of messages that are new with it,
        or others.

    Notes
    -----
    `cluster_of` takes a text that nobody else has to know. With a name that a distribution offers
    as an entry point of ``fastgar.protocols``, a text runs on machines and from the command line,
    too.
    """

    name: str
    server: Verbs
    worker: Verbs
    kinds: Mapping[str, Kind]
    rule: str = "mean"
    complaint: Callable[[Any], str | None] = _fits_any
    strong: str = ""
    settings: tuple[str, ...] = ()
    everybody: bool = False
    liars: bool = True
    agreements: Mapping[str, Mapping[str, Kind]] = field(default_factory=dict)
