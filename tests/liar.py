"""A peer with a good key that sends what it likes."""

from __future__ import annotations

import contextlib
import ctypes
import socket
import ssl
import time
from pathlib import Path
from typing import Any

from linked import ABOUT, IDENTITY, MODEL

from fastgar.network import Address, wire
from fastgar.network.hello import Hello, agree, claimed, exchange, preamble, receive, send
from fastgar.network.keys import certificate
from fastgar.network.tls import Channel, Ended, client_context

__all__ = ["NO_LAYOUT", "RUN", "Answerer", "Liar", "closed", "connect", "header", "openssl"]

RUN = wire.run_id(IDENTITY)
NO_LAYOUT = "this Python does not show where its OpenSSL is"


def openssl(tls: Any) -> tuple[ctypes.CDLL, ctypes.c_void_p]:
    """Return the OpenSSL that this Python has loaded, and its object behind one of `ssl`.

    Raises
    ------
    LookupError
        If this Python is not laid out as expected.
    """
    for line in Path("/proc/self/maps").read_text().splitlines():
        if "libssl" in line:
            library = ctypes.CDLL(line.split()[-1])
            break
    else:
        raise LookupError(NO_LAYOUT)
    raw = ctypes.c_void_p(ctypes.c_void_p.from_address(id(tls._sslobj) + 24).value)
    library.SSL_version.argtypes = [ctypes.c_void_p]
    library.SSL_key_update.argtypes = [ctypes.c_void_p, ctypes.c_int]
    library.SSL_new_session_ticket.argtypes = [ctypes.c_void_p]
    if library.SSL_version(raw) != 0x304:
        raise LookupError(NO_LAYOUT)
    return library, raw


def connect(address: Address) -> socket.socket:
    """Return a connection, as a stranger has it."""
    sock = socket.create_connection((address.host, address.port), timeout=20)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return sock


def closed(sock: socket.socket) -> bool:
    """Return whether the other end closes this connection before it says anything."""
    try:
        return not sock.recv(1)
    except ConnectionError:
        return True


def header(**changes: Any) -> bytes:
    """Return the header of a model of 4000 bytes at step 0, with other fields."""
    fields = {
        "magic": wire.MAGIC, "version": wire.VERSION, "kind": MODEL, "dtype": 1, "run": RUN,
        "step": 0, "offset": 0, "length": 4000, "digest": bytes(32),
    }  # fmt: skip
    return wire.HEADER.pack(*(fields | changes).values())


class Liar:
    """A connection of the node `name` to the node `to`; after `greet` it is a link there."""

    def __init__(self, folder: Path, name: str, to: str, address: Address, **about: Any) -> None:
        self.name, self.to = name, to
        key = folder / f"{name}.pem"
        self.sock = connect(address)
        self.sock.sendall(preamble(certificate(key)))
        self.channel = Channel(self.sock, client_context(key), server_side=False)
        self.channel.handshake()
        self.hello = Hello(name, to, RUN.hex(), "1" * 32, ABOUT | about)

    def greet(self, **changes: Any) -> Liar:
        """Go through the hello and the verdict, with other words in the hello."""
        if not changes:
            exchange(self.channel, self.hello, [0, 1])
            agree(self.channel, self.to, None)
        else:
            send(self.channel, self.hello.as_json() | changes)
            receive(self.channel)
            send(self.channel, {"refused": None})
            receive(self.channel)
        return self

    def send(self, *parts: bytes) -> None:
        """Send bytes, as far as the other end lets it."""
        with contextlib.suppress(OSError):
            for part in parts:
                self.channel.write(part)

    def is_closed(self, seconds: float = 20) -> bool:
        """Return whether the other end closes the connection; what it says is read."""
        self.sock.settimeout(seconds)
        end = time.monotonic() + seconds
        with contextlib.suppress(TimeoutError):
            while time.monotonic() < end:
                try:
                    self.channel.skip(1)
                except (Ended, ConnectionError):
                    return True
        return False

    def close(self) -> None:
        self.sock.close()


class Answerer(Liar):
    """The other end of a connection that `to` has made to the node `name`: it accepts one.

    Attributes
    ----------
    library, raw
        See `openssl`.
    """

    def __init__(
        self, folder: Path, name: str, to: str, listener: socket.socket, tickets: int = 0
    ) -> None:
        self.name, self.to = name, to
        listener.settimeout(20)
        self.sock, _ = listener.accept()
        self.sock.settimeout(20)
        text = b""
        while (found := claimed(text)) is None:
            text += self.sock.recv(8192)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(folder / f"{name}.pem")
        context.num_tickets = tickets
        self.channel = Channel(self.sock, context, server_side=True)
        self.sock.sendall(self.channel.step(text[found[1] :])[1])
        self.channel.handshake()
        self.library, self.raw = openssl(self.channel.tls)
        self.hello = Hello(name, to, RUN.hex(), "1" * 32, ABOUT)
