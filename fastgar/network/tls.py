"""TLS 1.3 for one reading and one writing thread, and how each end knows the other's key.

A TLS object must never be used by two threads at once: both directions change its state whenever
the peer likes, by a key update. So it lies between two buffers in memory, with one lock around each
use, and the calls of the socket are outside the lock. Only the writing thread sends: a reader that
sent what the other end waits for could wait for the other end's reader, which waits for it.

The dialling end first sends its certificate in the clear. Who listens compares its SHA-256 with
those that it knows before it spends anything on TLS, and then takes that certificate as the only
anchor: the handshake proves that the dialler has its private key. The dialling end compares the
SHA-256 of the certificate that the handshake has proved to be the other's.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import socket
import ssl
import threading
import time
from collections.abc import Callable

from .wire import Violation

__all__ = ["CHUNK", "Channel", "Ended", "client_context", "fingerprint_of", "server_context"]

CHUNK = 128 << 10  # bytes that are encrypted before they are sent
RECEIVE = 256 << 10  # bytes that one call of the socket may bring
BATCH = 32  # records of 16 KB that one hold of the lock decrypts, at most
OWED = 2 * CHUNK  # bytes of answers that a peer may ask TLS for without reading them


class Ended(Exception):
    """The other end has closed the connection: in order, or not."""

    def __init__(self, in_order: bool) -> None:
        self.in_order = in_order
        super().__init__("it left" if in_order else "the connection broke")


def _context(protocol: int, key: str | os.PathLike[str]) -> ssl.SSLContext:
    context = ssl.SSLContext(protocol)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.check_hostname = False  # the pin decides, not the address
    context.load_cert_chain(key, password="")
    return context


def client_context(key: str | os.PathLike[str]) -> ssl.SSLContext:
    """Return what a dialling node uses; it compares the other's fingerprint itself."""
    context = _context(ssl.PROTOCOL_TLS_CLIENT, key)
    context.verify_mode = ssl.CERT_NONE
    return context


def server_context(key: str | os.PathLike[str]) -> ssl.SSLContext:
    """Return what a listening node uses for one peer, once the peer's certificate is loaded."""
    context = _context(ssl.PROTOCOL_TLS_SERVER, key)
    context.verify_mode = ssl.CERT_REQUIRED
    context.verify_flags |= ssl.VERIFY_X509_STRICT
    # A peer that only writes, and closes with tickets unread, would send a reset after its words.
    context.num_tickets = 0
    return context


def fingerprint_of(channel: Channel) -> str:
    """Return the SHA-256 of the certificate that the other end has proved to be its own."""
    return hashlib.sha256(channel.tls.getpeercert(binary_form=True) or b"").hexdigest()


class Channel:
    """A connection on which one thread may read while another writes.

    Parameters
    ----------
    sock : socket
        Connected; `Channel` never closes it.
    context : ssl.SSLContext
        From `client_context` or `server_context`.
    server_side : bool
        Whether this end listened.
    """

    def __init__(self, sock: socket.socket, context: ssl.SSLContext, server_side: bool) -> None:
        self.sock = sock
        self._in, self._out = ssl.MemoryBIO(), ssl.MemoryBIO()
        self.tls = context.wrap_bio(self._in, self._out, server_side=server_side)
        self._lock = threading.Lock()
        self._writing = False
        self._buffer = memoryview(bytearray(RECEIVE))
        self._scratch: memoryview | None = None
        self.received = self.sent = 0  # bytes, on the wire
        self.heard = time.monotonic()
        self.waiting = False  # the reader, for the other end
        self.owed: Callable[[], None] = lambda: None  # called by the reader where `flush` has work

    # ---------------------------------------------------------------- before there are two threads

    def step(self, arrived: bytes | memoryview = b"") -> tuple[bool, bytes]:
        """Go on with the handshake; return whether it is over, and what is to be sent."""
        if arrived:
            self._in.write(arrived)
            self.received += len(arrived)
        try:
            self.tls.do_handshake()
            over = True
        except ssl.SSLWantReadError:
            over = False
        answer = self._out.read()
        self.sent += len(answer)
        return over, answer

    def handshake(self) -> None:
        """Go through the handshake on a blocking socket, whose timeout is for each call."""
        over, answer = self.step()
        while True:
            if answer:
                self.sock.sendall(answer)
            if over:
                return
            count = self.sock.recv_into(self._buffer)
            if not count:
                raise Ended(in_order=False)
            over, answer = self.step(self._buffer[:count])

    # ------------------------------------------------------------------ the reading thread

    def read_into(self, view: memoryview) -> None:
        """Fill a buffer. Raises Ended where the other end has closed."""
        at, end = 0, len(view)
        while at < end:
            starved = False
            with self._lock:
                try:
                    for _ in range(BATCH):
                        count = self.tls.read(end - at, view[at:])
                        if not count:
                            raise Ended(in_order=True)
                        at += count  # type: ignore[operator]
                        if at == end:
                            break
                except ssl.SSLWantReadError:
                    starved = True
                except ssl.SSLZeroReturnError:  # both have said that nothing more comes
                    raise Ended(in_order=True) from None
                owed = 0 if self._writing and self._out.pending < OWED else self._out.pending
            if owed >= OWED:
                raise Violation("updates", "it asks for key updates and does not read the answers")
            if owed:
                self.owed()
            if starved:
                self._receive()

    def skip(self, count: int) -> None:
        """Read so many bytes and forget them."""
        if self._scratch is None:
            self._scratch = memoryview(bytearray(CHUNK))
        while count:
            part = min(count, CHUNK)
            self.read_into(self._scratch[:part])
            count -= part

    def _receive(self) -> None:
        self.waiting = True
        count = self.sock.recv_into(self._buffer)
        self.waiting = False
        if not count:
            raise Ended(in_order=False)
        self.received += count
        self.heard = time.monotonic()
        with self._lock:
            self._in.write(self._buffer[:count])

    # ------------------------------------------------------------------ the writing thread

    def write(self, *views: bytes | memoryview) -> None:
        """Send all of it, however long the other end takes to read."""
        for view in views:
            at, end = 0, len(view)
            while at < end:
                with self._lock:
                    self._writing = True
                    stop = min(end, at + CHUNK)
                    while at < stop:
                        at += self.tls.write(view[at:stop])
                    data = self._out.read() if self._out.pending >= CHUNK else b""
                if data:
                    self._send(data)
        self.flush()

    def flush(self) -> None:
        """Send what TLS has to say, such as answers to key updates."""
        while True:
            with self._lock:
                data = self._out.read()
                self._writing = bool(data)
            if not data:
                return
            self._send(data)

    def end(self) -> None:
        """Say that nothing more will come."""
        with self._lock, contextlib.suppress(ssl.SSLError):  # the other end has not said so yet
            self.tls.unwrap()
        self.flush()
        self.sock.shutdown(socket.SHUT_WR)

    def _send(self, data: bytes) -> None:
        self.sock.sendall(data)
        self.sent += len(data)
