"""Who comes in: one thread accepts connections and goes through all handshakes at once.

A stranger costs a descriptor and at most a few kilobytes, for a bounded time: nothing of TLS is
made before the SHA-256 of the certificate that a connection shows is one of those that are known.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import selectors
import socket
import ssl
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from .connect import tuned
from .hello import claimed
from .peer import Limits, Peer
from .say import Say
from .tls import Channel, fingerprint_of, server_context
from .wire import Violation

__all__ = ["Door"]

SHORT = {errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM}
REST = 1.0  # seconds without an `accept` when descriptors are short
MEETING = 3  # connections of one peer that may say hello at once


class Guest:
    """A connection that has been accepted, and is nobody yet."""

    def __init__(self, sock: socket.socket, address: Any) -> None:
        self.sock, self.host = sock, str(address[0])
        self.since = time.monotonic()
        self.text = bytearray()
        self.peer: Peer | None = None
        self.channel: Channel | None = None


class Door(threading.Thread):
    """Accepts until it is closed.

    Parameters
    ----------
    listeners : sequence of socket
        They listen; this thread closes them.
    known : mapping of str to Peer
        By fingerprint.
    key : path
        The key of this node.
    limits : Limits
        How many, how long.
    welcome : callable
        Gets each peer with the channel to it, after TLS; must not block.
    say : Say
        The log.
    """

    def __init__(
        self,
        listeners: Sequence[socket.socket],
        known: Mapping[str, Peer],
        key: str | os.PathLike[str],
        limits: Limits,
        welcome: Callable[[Peer, Channel], None],
        say: Say,
    ) -> None:
        super().__init__(name="fastgar door", daemon=True)
        self.listeners, self.known, self.key = listeners, known, key
        self.limits, self.welcome, self.say = limits, welcome, say
        self.refused: Counter[str] = Counter()
        self.guests: dict[socket.socket, Guest] = {}
        self._contexts: dict[str, ssl.SSLContext] = {}
        self._selector = selectors.DefaultSelector()
        self._bell, self._ring = socket.socketpair()
        self._selector.register(self._bell, selectors.EVENT_READ)
        self._open = False
        self._rest_until = 0.0
        self._buffer = memoryview(bytearray(8192))

    def close(self) -> None:
        """End the thread."""
        with contextlib.suppress(OSError):
            self._ring.send(b"x")

    def drop(self) -> None:
        """Close all descriptors, once the thread is over or was never started here."""
        self._selector.close()
        for sock in (*self.listeners, *self.guests, self._bell, self._ring):
            sock.close()

    def run(self) -> None:
        """Accept, shake hands, hand over."""
        try:
            while self._turn():
                pass
        finally:
            self.drop()

    def _turn(self) -> bool:
        now = time.monotonic()
        self._let_in(len(self.guests) < self.limits.handshakes and now >= self._rest_until)
        for ready, _ in self._selector.select(0.05 if self.guests or not self._open else None):
            if ready.fileobj is self._bell:
                return False
            if ready.data is None:
                self._accept(ready.fileobj)  # type: ignore[arg-type]
            else:
                self._hear(ready.data)
        self._send_away()
        return True

    def _let_in(self, willing: bool) -> None:
        if willing == self._open:
            return
        for listener in self.listeners:
            if willing:
                self._selector.register(listener, selectors.EVENT_READ)
            else:
                self._selector.unregister(listener)
        self._open = willing

    def _accept(self, listener: socket.socket) -> None:
        while len(self.guests) < self.limits.handshakes:
            try:
                sock, address = listener.accept()
            except BlockingIOError:
                return
            except OSError as error:
                if error.errno in SHORT:
                    self._rest_until = time.monotonic() + REST
                    self.say("descriptors", f"new connections wait: {error.strerror}")
                    return
                continue  # one that was given up before it was accepted
            sock.setblocking(False)
            tuned(sock, self.limits)
            self.guests[sock] = guest = Guest(sock, address)
            self._selector.register(sock, selectors.EVENT_READ, guest)

    def _hear(self, guest: Guest) -> None:
        if guest.sock not in self.guests:
            return
        try:
            count = guest.sock.recv_into(self._buffer)
            if not count:
                raise Violation("gone", "it left before it was known")
            if self._shake(guest, self._buffer[:count]):
                self._hand_over(guest)
        except BlockingIOError:
            return
        except Violation as refusal:
            self._refuse(guest, refusal.reason, str(refusal))
        except ssl.SSLError:
            self._refuse(guest, "tls", "it does not have the key that belongs to its certificate")
        except OSError:
            self._refuse(guest, "gone", "it left before it was known")

    def _shake(self, guest: Guest, data: bytes | memoryview) -> bool:
        """Go on with a handshake; return whether it is over."""
        if guest.channel is None:
            guest.text += data
            found = claimed(guest.text)
            if found is None:
                return False
            certificate, end = found
            fingerprint = hashlib.sha256(certificate).hexdigest()
            peer = self.known.get(fingerprint)
            if peer is None:
                raise Violation("key", "its key is in no cluster of this node")
            if not peer.may_connect(self.limits, take=False):
                raise Violation("often", f"{peer.name} connects again and again")
            if fingerprint not in self._contexts:
                self._contexts[fingerprint] = server_context(self.key, certificate)
            guest.peer = peer
            guest.channel = Channel(guest.sock, self._contexts[fingerprint], server_side=True)
            data = bytes(guest.text[end:])
            if not data:
                return False
        over, answer = guest.channel.step(data)
        if answer and guest.sock.send(answer) < len(answer):
            raise Violation("slow", "it does not read the answers to its handshake")
        return over

    def _hand_over(self, guest: Guest) -> None:
        peer, channel = guest.peer, guest.channel
        assert peer is not None and channel is not None
        if fingerprint_of(channel) != peer.address.fingerprint:
            raise Violation("tls", "it has proved another key than it showed")
        peer.may_connect(self.limits, take=True)
        if peer.meeting >= MEETING:
            raise Violation("often", f"{peer.name} connects again before it has said hello")
        self._forget(guest)
        guest.sock.setblocking(True)
        self.welcome(peer, channel)

    def _forget(self, guest: Guest) -> None:
        self._selector.unregister(guest.sock)
        del self.guests[guest.sock]

    def _refuse(self, guest: Guest, reason: str, sentence: str) -> None:
        self.refused[reason] += 1
        self._forget(guest)
        guest.sock.close()
        cause = "stranger" if guest.peer is None else guest.peer.name
        self.say((cause, reason), f"a connection from {guest.host} was refused: {sentence}")

    def _send_away(self) -> None:
        """Close what has had its time; less of it where others wait and not a word was heard."""
        now = time.monotonic()
        full = len(self.guests) >= self.limits.handshakes
        for guest in list(self.guests.values()):
            if now - guest.since > self.limits.handshake or (
                full and guest.peer is None and now - guest.since > self.limits.grace
            ):
                self._refuse(guest, "slow", "it did not say in time who it is")
