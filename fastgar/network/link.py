"""One connection to one peer: a thread that reads, a thread that writes, and how it ends."""

from __future__ import annotations

import contextlib
import select
import socket
import threading
import time
from enum import Enum
from typing import Literal, Protocol

from .hello import Heard
from .peer import Peer
from .tls import Channel
from .wire import CONTROL, HEADER, NOTICE, PING, PONG, Format, Header, Violation, as_bytes, pieces

__all__ = ["LATER", "Inbox", "Later", "Link"]


REKEY = 1 << 38  # bytes: AES-GCM is proved for 2^24.5 records of 16 KB under one key


class Later(Enum):
    """The type of LATER."""

    LATER = "later"


LATER: Literal[Later.LATER] = Later.LATER


class Inbox(Protocol):
    """Where messages go. Every peer has a thread of its own that calls these."""

    def slot(self, peer: str, kind: int, step: int) -> memoryview | Later | None:
        """Return where a message is to be written: exactly as many bytes as its kind has.

        None: it is old, or there already; it is read, counted and forgotten. LATER: its step is
        past the window; nothing more is read from that peer until `Links.resume`.
        """

    def arrived(self, peer: str, kind: int, step: int, digest: bytes) -> None:
        """Take note that the slot is full. The digest is what the peer says it is, unverified."""

    def lost(self, peer: str, kind: int, step: int) -> None:
        """Take note that the rest will not come: the slot is free again."""

    def hello(self, peer: str, heard: Heard) -> None:
        """Take note of what that peer says that it last heard from this node."""

    def heard(self, peer: str) -> Heard:
        """Return what this node last heard from that peer."""


class Link:
    """One connection.

    Parameters
    ----------
    peer : Peer
        Who is at the other end.
    channel : Channel
        After its handshake.
    dialled : bool
        Whether this node dialled.
    format : Format
        How headers look.
    inbox : Inbox
        Where messages go.
    """

    def __init__(
        self, peer: Peer, channel: Channel, dialled: bool, format: Format, inbox: Inbox
    ) -> None:
        self.peer, self.channel, self.dialled = peer, channel, dialled
        self.format, self.inbox = format, inbox
        self.instance = ""  # of the process at the other end
        self.replaces: Link | None = None
        self.since = time.monotonic()
        self.why: tuple[str, str] | None = None
        self.paused = False
        self.leaving = False
        self.over = threading.Event()  # its reader calls the inbox no more
        self.writer: threading.Thread | None = None
        self.pings, self.ponged = 0, 0
        self.controls: dict[int, int] = {}  # what is owed: of each kind one, with its number
        self.silence = self.quiet = 0  # ticks in which nothing came, nothing went
        self.counts = (-1, -1)
        channel.owed = self._wake

    # ------------------------------------------------------------------ from any thread

    def fail(self, reason: str, sentence: str) -> None:
        """End this connection, for the first reason that is given."""
        with self.peer.cond:
            if self.why is None:
                self.why = reason, sentence
            self.peer.cond.notify_all()
        with contextlib.suppress(OSError):
            self.channel.sock.shutdown(socket.SHUT_RDWR)

    def leave(self) -> None:
        """Send what waits, say that nothing more comes, and read until the other end closes."""
        with self.peer.cond:
            self.leaving = True
            self.peer.cond.notify_all()

    def owe(self, kind: int, number: int = 0) -> None:
        """Have a header without a payload sent before the next piece."""
        with self.peer.cond:
            self.controls[kind] = number
            self.peer.cond.notify_all()

    def ping(self) -> int:
        """Have a ping sent, and return its number."""
        with self.peer.cond:
            self.pings += 1
            self.owe(PING, self.pings)
            return self.pings

    def tick(self, heartbeat: int, patience: int) -> None:
        """Send a ping after so many ticks without a word of ours, end after so many without one of
        theirs.

        Ticks are counted, and no clock is read: a process that was stopped for an hour, or whose
        threads waited for the interpreter, has missed one tick, and reads before the next.
        """
        counts = self.channel.received, self.channel.sent
        same = [now == then for now, then in zip(counts, self.counts, strict=True)]
        self.counts = counts
        self.silence = self.silence + 1 if same[0] and self.channel.waiting else 0
        self.quiet = self.quiet + 1 if same[1] else 0
        if max(counts) > REKEY:
            self.fail("rekey", "new keys are due after so many bytes")
        elif self.silence >= patience:
            self.fail("silent", "nothing came from it for longer than a live node is silent")
        elif self.quiet and self.quiet % heartbeat == 0:
            self.ping()

    def alive(self, seconds: float) -> bool:
        """Return whether the other end still answers: a ping, by anything that is not old."""
        number, turns = self.ping(), max(10, round(seconds / 0.1))
        for turn in range(turns):
            with self.peer.cond:
                self.peer.cond.wait_for(lambda: self.ponged >= number or self.why is not None, 0.1)
                if self.why is not None:
                    return False
                if self.ponged >= number:
                    return True
            if turn == 5:  # what had come before has been read
                received = self.channel.received
            if turn > 5 and (self.channel.received != received or self._unread_and_open()):
                return True
        return False

    def _unread_and_open(self) -> bool:
        """Return whether it is this node that does not read, while the connection stands."""
        poll = select.poll()
        try:
            poll.register(self.channel.sock, select.POLLRDHUP)
            return self.paused and not poll.poll(0)
        except (OSError, ValueError):
            return False

    def _wake(self) -> None:
        with self.peer.cond:
            self.controls.setdefault(-1, 0)
            self.peer.cond.notify_all()

    # ------------------------------------------------------------------ the reading thread

    def read(self) -> None:
        """Read messages until the connection ends; raises what ended it."""
        raw = memoryview(bytearray(HEADER.size))
        under_way: Header | None = None
        slot: memoryview | None = None
        name = self.peer.name
        try:
            while True:
                self.channel.read_into(raw)
                piece = self.format.decode(raw, under_way)
                if piece.kind >= CONTROL:
                    self._control(piece)
                    continue
                if under_way is None:
                    slot = self._slot(piece)
                end = piece.offset + piece.length
                under_way = piece._replace(offset=end)
                if slot is None:
                    self.channel.skip(piece.length)
                else:
                    self.channel.read_into(slot[piece.offset : end])
                if end < self.format.kinds[piece.kind].size:
                    continue
                under_way = None
                if slot is None:
                    self.peer.skipped += 1
                else:
                    slot = None
                    self.peer.messages_in += 1
                    self.inbox.arrived(name, piece.kind, piece.step, piece.digest)
        finally:
            if under_way is not None and slot is not None:
                self.inbox.lost(name, under_way.kind, under_way.step)

    def _slot(self, piece: Header) -> memoryview | None:
        """Return where a message goes, after waiting for as long as the inbox says LATER."""
        while not self.leaving:
            seen = self.peer.resumes
            slot = self.inbox.slot(self.peer.name, piece.kind, piece.step)
            if slot is None:
                return None
            if not isinstance(slot, Later):
                slot = as_bytes(slot)
                size = self.format.kinds[piece.kind].size
                if slot.nbytes != size or slot.readonly:
                    raise TypeError(f"a slot of {size} writable bytes is needed, got {slot.nbytes}")
                return slot
            with self.peer.cond:
                self.paused = True
                while self.peer.resumes == seen and not self.leaving and self.why is None:
                    self.peer.cond.wait()
                self.paused = False
                if self.why is not None:
                    raise Violation(*self.why)
        return None

    def _control(self, piece: Header) -> None:
        if piece.kind == PING:
            self.owe(PONG, piece.step)
        elif piece.kind == NOTICE:
            self.peer.twins += 1
        else:
            with self.peer.cond:
                if piece.step > self.pings:
                    raise Violation("pong", "it answered a ping that it was not sent")
                self.ponged = max(self.ponged, piece.step)
                self.peer.cond.notify_all()

    # ------------------------------------------------------------------ the writing thread

    def write(self) -> None:
        """Send what the outbox has until the connection ends."""
        try:
            while True:
                with self.peer.cond:
                    message = None
                    while self.why is None and not self.controls:
                        message = self.peer.outbox.next() if self.peer.link is self else None
                        if message is not None or self.leaving:
                            break
                        self.peer.cond.wait()
                    if self.why is not None:
                        return
                    leave = self.leaving and message is None and not self.controls
                if leave:
                    self.channel.end()
                    return
                self._send_controls()
                if message is None:
                    continue
                for offset, length in pieces(message.payload.nbytes):
                    if offset:
                        self._send_controls()
                    header = self.format.encode(
                        message.kind, message.step, offset, length, message.digest
                    )
                    self.channel.write(header, message.payload[offset : offset + length])
                self.peer.messages_out += 1
        except Exception as error:
            if isinstance(error, ConnectionError):
                self.over.wait(1.0)  # the reader sees better why
            self.fail("broken", f"writing to it failed: {type(error).__name__}")

    def _send_controls(self) -> None:
        with self.peer.cond:
            owed, self.controls = self.controls, {}
        headers = [self.format.encode(k, n, 0, 0, b"") for k, n in owed.items() if k >= 0]
        self.channel.write(*headers)  # and what TLS has to say
