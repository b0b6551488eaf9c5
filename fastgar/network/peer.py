"""What is known of one peer, whatever connection there is to it at the moment."""

from __future__ import annotations

import threading
import time
from collections import Counter
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from .outbox import Outbox

__all__ = ["Address", "Limits", "Peer", "Status"]


class Address(NamedTuple):
    """Where a node listens, and the SHA-256 of its certificate (64 hexadecimal digits).

    A node with `host` None is one that others cannot dial.
    """

    host: str | None
    port: int
    fingerprint: str


@dataclass(frozen=True)
class Limits:
    """Seconds and counts; the defaults are for a cluster of up to 100 nodes."""

    handshakes: int = 128  # connections that are accepted and not yet known
    handshake: float = 10.0  # for all of it, on a connection that was accepted or dialled
    grace: float = 0.2  # for the first word, while there are as many as `handshakes`
    connect: float = 3.0  # for each address of a name
    heartbeat: float = 2.0  # after so much silence of its own a node sends a ping
    patience: float = 30.0  # after so much silence of a peer its connection is closed
    second: float = 1.0  # without a link before who is not the first to dial dials too
    twin: float = 5.0  # for the answer to the ping that decides which of two connections lives
    backoff: float = 0.1  # before dialling again, doubled each time, and drawn from its upper half
    backoff_most: float = 4.0
    backoff_refused: float = 30.0
    stable: float = 10.0  # a connection that lived so long lets `backoff` begin anew
    burst: int = 10  # connections that one peer may make at once, and then one a second


@dataclass(frozen=True)
class Status:
    """How things stand with one peer; all times are of `time.monotonic`."""

    connected: bool
    since: float | None  # when the present connection came up
    heard: float | None  # when the last byte came
    reconnects: int
    bytes_in: int
    bytes_out: int
    messages_in: int
    messages_out: int
    skipped: int  # messages that the inbox did not want
    paused: bool  # the inbox lets it wait
    refused: str | None  # why the last attempt ended, if one of the two refused
    second: bool  # it refused as it has a link with another process that uses this node's key
    differs: dict[str, str]  # differences that are tolerated
    twins: int  # how often this peer has refused another process with our key
    closed: dict[str, int]  # how many connections ended for which reason


@dataclass(eq=False)
class Peer:
    """One peer: its outbox, its present link, and counts over all of its links.

    `cond` guards every field, and is notified when there is something to send, a link comes or
    goes, or the inbox says `resume`.
    """

    name: str
    address: Address
    first: bool  # this node dials at once, else after a while without a link
    outbox: Outbox = field(default_factory=Outbox)
    cond: threading.Condition = field(default_factory=threading.Condition)
    link: Any = None  # a `Link`, whose module knows this one
    meeting: int = 0  # connections that say hello just now
    connections: int = 0
    resumes: int = 0
    bytes_in: int = 0
    bytes_out: int = 0
    messages_in: int = 0
    messages_out: int = 0
    skipped: int = 0
    twins: int = 0
    refused: str | None = None
    second: bool = False
    differs: dict[str, str] = field(default_factory=dict)
    closed: Counter[str] = field(default_factory=Counter)
    heard: float | None = None
    tokens: float | None = None
    counted: float = 0.0

    def may_connect(self, limits: Limits, take: bool) -> bool:
        """Return whether this peer has not connected too often, and count one if `take`."""
        now = time.monotonic()
        with self.cond:
            left = limits.burst if self.tokens is None else self.tokens + now - self.counted
            self.tokens, self.counted = min(left, float(limits.burst)), now
            if self.tokens < 1:
                return False
            if take:
                self.tokens -= 1
            return True

    def status(self) -> Status:
        """Return how things stand now."""
        with self.cond:
            link = self.link
            channel = None if link is None else link.channel
            return Status(
                connected=link is not None,
                since=None if link is None else link.since,
                heard=self.heard if channel is None else channel.heard,
                reconnects=max(0, self.connections - 1),
                bytes_in=self.bytes_in + (0 if channel is None else channel.received),
                bytes_out=self.bytes_out + (0 if channel is None else channel.sent),
                messages_in=self.messages_in,
                messages_out=self.messages_out,
                skipped=self.skipped,
                paused=link is not None and link.paused,
                refused=self.refused,
                second=self.second,
                differs=dict(self.differs),
                twins=self.twins,
                closed=dict(self.closed),
            )
