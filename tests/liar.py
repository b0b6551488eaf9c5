"""A peer with a good key that sends what it likes."""

from __future__ import annotations

import contextlib
import socket
import time
from pathlib import Path
from typing import Any

from linked import ABOUT, IDENTITY, MODEL

from fastgar.network import Address, wire
from fastgar.network.hello import Hello, agree, exchange, preamble, receive, send
from fastgar.network.keys import certificate
from fastgar.network.tls import Channel, Ended, client_context

__all__ = ["RUN", "Liar", "closed", "connect", "header"]

RUN = wire.run_id(IDENTITY)


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
