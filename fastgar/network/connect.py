"""Sockets: where a node listens, and how it reaches a peer."""

from __future__ import annotations

import contextlib
import errno
import os
import select
import socket
import ssl
import threading
import time
from collections.abc import Callable

from .hello import preamble
from .peer import Limits, Peer
from .tls import Channel, Ended, fingerprint_of
from .wire import Violation

__all__ = ["dialled", "listeners", "tuned"]

BACKLOG = 1024


def listeners(listen: tuple[str, int] | socket.socket) -> list[socket.socket]:
    """Return sockets that listen on all addresses of a name, or the one that is given.

    Raises
    ------
    OSError
        In one sentence, if that cannot be.
    """
    found: list[socket.socket] = []
    try:
        if isinstance(listen, socket.socket):
            found.append(listen)
            listen.listen(BACKLOG)
        else:
            host, port = listen
            flags = socket.AI_PASSIVE
            infos = socket.getaddrinfo(host or None, port, type=socket.SOCK_STREAM, flags=flags)
            for family, _, _, _, address in dict.fromkeys(infos):
                if found and port == 0:  # one port for all addresses
                    address = (address[0], found[0].getsockname()[1], *address[2:])
                with contextlib.suppress(OSError) if found else contextlib.nullcontext():
                    found.append(socket.create_server(address, family=family, backlog=BACKLOG))
    except OSError as error:
        for sock in found:
            sock.close()
        why = (error.strerror or "").split(" (while")[0]  # there Python has the address again
        where = "the socket" if isinstance(listen, socket.socket) else f"{listen[0]}:{listen[1]}"
        raise OSError(error.errno, f"cannot listen on {where}: {why}") from None
    for sock in found:
        sock.setblocking(False)
    return found


def tuned(sock: socket.socket, limits: Limits) -> None:
    """Set what both ends of a connection want."""
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    if hasattr(socket, "TCP_USER_TIMEOUT"):
        # Also of a peer that lives and does not read, so it is no short time: pings notice the
        # rest.
        milliseconds = round(4000 * limits.patience)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, milliseconds)


def dialled(
    peer: Peer,
    certificate: bytes,
    context: ssl.SSLContext,
    limits: Limits,
    closing: threading.Event,
    meet: Callable[[socket.socket, float | None], None],
) -> Channel:
    """Return a channel to a peer whose key has been proved.

    The name is resolved now, and each of its addresses is tried.

    Raises
    ------
    Violation
        If somebody else answered at the last address that answered.
    OSError
        If nobody answered.
    """
    host, port, fingerprint = peer.address
    infos = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    failure: Exception = OSError(f"{host} has no address")
    for family, kind, protocol, _, address in infos:
        if closing.is_set():
            break
        sock = socket.socket(family, kind, protocol)
        try:
            _connect(sock, address, limits.connect, closing)
            tuned(sock, limits)
            meet(sock, limits.handshake)  # the clock ends it
            sock.sendall(preamble(certificate))
            channel = Channel(sock, context, server_side=False)
            channel.handshake()
            if fingerprint_of(channel) != fingerprint:
                raise Violation("key", f"who answers at {host} port {port} has another key")
            return channel
        except (OSError, Ended, Violation) as error:
            meet(sock, None)
            sock.close()
            failure = error
    if isinstance(failure, Ended | ssl.SSLError):
        failure = OSError(
            f"who answers at {host} port {port} ended the handshake: it may not know this key"
        )
    raise failure


def _connect(
    sock: socket.socket, address: object, seconds: float, closing: threading.Event
) -> None:
    """Connect within so many seconds, and give up at once when this node ends."""
    sock.setblocking(False)
    code = sock.connect_ex(address)  # type: ignore[arg-type]
    until = time.monotonic() + seconds
    poll = select.poll()
    poll.register(sock, select.POLLOUT)
    while code in (errno.EINPROGRESS, errno.EALREADY):
        if poll.poll(100):
            code = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        elif closing.is_set() or time.monotonic() > until:
            code = errno.ETIMEDOUT
    if code:
        raise OSError(code, os.strerror(code))
    sock.setblocking(True)
