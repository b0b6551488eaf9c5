"""The connections of one node, and which of them live.

A connection begins with hellos, may take the place of another of the same peer, carries messages,
and ends for a reason that is counted. Of two connections that the same two processes have made at
once, both keep the one that the lesser name dialled. A new process with the key of a peer takes the
place of an old one that does not answer, and is refused by one that does.
"""

from __future__ import annotations

import contextlib
import os
import socket
import threading
import time
from collections.abc import Collection

from .hello import About, Hello, Refused, agree, check, differences, exchange, objection
from .link import Inbox, Link
from .peer import Limits, Peer
from .say import Say, log
from .tls import Channel, Ended
from .wire import NOTICE, Format, Violation

__all__ = ["Company"]

QUIET = ("left", "double", "replaced", "closing", "rekey")  # ends that are in order


class Company:
    """All connections of a node.

    Parameters
    ----------
    me : str
        The name of the node.
    about, tolerated, format, inbox, limits, say
        As in `Links`.
    """

    def __init__(
        self,
        me: str,
        about: About,
        tolerated: Collection[str],
        format: Format,
        inbox: Inbox,
        limits: Limits,
        say: Say,
    ) -> None:
        self.me, self.about, self.tolerated = me, dict(about), frozenset(tolerated)
        self.format, self.inbox, self.limits, self.say = format, inbox, limits, say
        self.instance = os.urandom(16).hex()
        check(Hello(me, me, format.run.hex(), self.instance, self.about))
        self.closing = threading.Event()
        self._lock = threading.Lock()
        self._links: set[Link] = set()
        self._meetings: dict[socket.socket, float] = {}  # until when they must be over

    def links(self) -> list[Link]:
        """Return the connections that are up."""
        with self._lock:
            return list(self._links)

    def sockets(self) -> list[socket.socket]:
        """Return the sockets of all connections."""
        return [link.channel.sock for link in list(self._links)] + list(self._meetings)

    def end_meetings(self, late_only: bool = True) -> None:
        """Shut the connections that are not up yet: those whose time is over, or all."""
        now = time.monotonic()
        with self._lock:
            late = [sock for sock, until in self._meetings.items() if now > until or not late_only]
        for sock in late:
            _shut(sock)

    def meet(self, sock: socket.socket, seconds: float | None) -> None:
        """Give a connection so long to become a link, or let it live from now on."""
        with self._lock:
            if seconds is None:
                self._meetings.pop(sock, None)
            else:
                self._meetings[sock] = time.monotonic() + seconds
        if self.closing.is_set():
            _shut(sock)

    def live(self, peer: Peer, channel: Channel, ours: bool) -> tuple[str, float]:
        """Have a connection from its hello to its end; return why it ended, and its length."""
        link = Link(peer, channel, ours, self.format, self.inbox)
        up = False
        try:
            try:
                self.meet(channel.sock, self.limits.handshake + self.limits.twin)
                heard = self._greet(link).heard
            finally:
                self.meet(channel.sock, None)
                with peer.cond:
                    peer.meeting -= 1
            up = True
            self._adopt(link)
            self.inbox.hello(peer.name, heard)
            link.read()
        except Refused as refusal:
            with peer.cond:
                if refusal.reason not in QUIET:
                    peer.refused = str(refusal)
                    peer.second = refusal.by_peer and refusal.reason == "twin"
            if up:  # the other end has taken it for a link, and it has no writer yet
                with contextlib.suppress(OSError):
                    channel.end()
            link.fail(refusal.reason, str(refusal))
        except Violation as violation:
            link.fail(violation.reason, str(violation))
        except Ended as end:
            link.fail("left" if end.in_order or link.leaving else "broken", str(end))
        except OSError as error:
            link.fail("broken", f"the connection broke: {error}")
        except Exception as error:
            log.exception(f"{self.me}: the inbox failed on a message of {peer.name}")
            link.fail("inbox", f"the inbox of this node failed: {type(error).__name__}")
        link.over.set()
        self._ended(link, up)
        assert link.why is not None
        return link.why[0], time.monotonic() - link.since if up else 0.0

    def _greet(self, link: Link) -> Hello:
        """Exchange hellos and verdicts; raise Refused if this connection is not to be."""
        peer = link.peer
        own = Hello(
            self.me, peer.name, self.format.run.hex(), self.instance, self.about,
            self.inbox.heard(peer.name),
        )  # fmt: skip
        theirs = exchange(link.channel, own, self.format.kinds)
        link.instance = theirs.instance
        agree(link.channel, peer.name, objection(own, theirs, self.tolerated) or self._judge(link))
        differs = differences(own, theirs)
        with peer.cond:
            peer.differs = differs
        if differs:
            self.say((peer.name, "differs"), "; ".join(differs.values()))
        return theirs

    def _judge(self, link: Link) -> Refused | None:
        """Say whether a connection may take the place of the one that there is."""
        old = link.peer.link
        if self.closing.is_set():
            return Refused("closing", f"{self.me} ends")
        if old is None or old.why is not None:
            return None
        if old.instance == link.instance:
            return None if self._rank(link) >= self._rank(old) else self._double(link)
        if old.alive(self.limits.twin):
            if old.paused:  # no answer could be heard, so this is no proof
                return self._double(link)
            old.owe(NOTICE)
            return Refused(
                "twin",
                f"{self.me} has a link with another process that uses the key of {link.peer.name}",
            )
        link.replaces = old
        return None

    def _rank(self, link: Link) -> bool:
        """Return whether the lesser name has dialled: of two connections at once both keep that."""
        return link.dialled == (self.me < link.peer.name)

    def _double(self, link: Link) -> Refused:
        return Refused("double", f"{self.me} has a link with {link.peer.name} already")

    def _adopt(self, link: Link) -> None:
        """Make a connection the link to its peer, once the one before it is over."""
        peer = link.peer
        with peer.cond:
            old = peer.link
            same = old is not None and old.instance == link.instance
            if old is not None and old.why is None:
                yields = self._rank(link) >= self._rank(old) if same else link.replaces is old
                if not yields:
                    raise self._double(link)
            with self._lock:
                if self.closing.is_set():
                    raise Refused("closing", f"{self.me} ends")
                self._links.add(link)
            link.since = time.monotonic()
            peer.link, peer.refused, peer.second = link, None, False
            peer.connections += 1
            peer.outbox.again()
            peer.cond.notify_all()
        if old is not None:
            if same:
                old.leave()
                old.over.wait(0.5)
            old.fail("replaced", "a new connection took its place")
            old.over.wait()
        link.writer = threading.Thread(
            name=f"fastgar writes {peer.name}", target=link.write, daemon=True
        )
        link.writer.start()

    def _ended(self, link: Link, up: bool) -> None:
        """Count the end of a connection, and let go of it."""
        peer, channel = link.peer, link.channel
        assert link.why is not None
        reason, sentence = link.why
        if link.writer is not None:
            link.writer.join()
        channel.sock.close()
        with self._lock:
            self._links.discard(link)
        with peer.cond:
            if peer.link is link:
                peer.link = None
            peer.closed[reason] += 1
            peer.bytes_in += channel.received
            peer.bytes_out += channel.sent
            peer.heard = channel.heard
            peer.cond.notify_all()
        if reason not in QUIET and not self.closing.is_set():
            what = "the link with" if up else "a connection with"
            self.say((peer.name, reason), f"{self.me}: {what} {peer.name} was closed: {sentence}")


def _shut(sock: socket.socket) -> None:
    with contextlib.suppress(OSError):
        sock.shutdown(socket.SHUT_RDWR)
