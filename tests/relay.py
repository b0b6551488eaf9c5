"""A relay between two nodes that does what bad networks do: it needs no rights, only sockets."""

from __future__ import annotations

import contextlib
import random
import socket
import threading
import time

__all__ = ["Relay"]


class Relay:
    """Carries connections to a target.

    Attributes
    ----------
    delay : float
        Seconds that every portion of bytes is held back.
    swallow : set of str
        "up" (towards the target) and "down": bytes of these directions vanish, nobody is told.
    hold : set of str
        The same directions: nothing is read, so that buffers fill.
    refuse : bool
        New connections are closed at once: with `cut`, a partition.
    forget : float
        Connections that were idle for so many seconds are remembered by nobody: both directions
        vanish from then on.
    loss : float
        The chance that a connection breaks with a portion of bytes.
    """

    def __init__(self, host: str | None, port: int, seed: int = 0) -> None:
        self.target = host, port
        self.delay, self.forget, self.loss = 0.0, float("inf"), 0.0
        self.swallow: set[str] = set()
        self.hold: set[str] = set()
        self.refuse = False
        self.carried = self.connections = 0
        self.draw = random.Random(seed)
        self.pairs: list[tuple[socket.socket, socket.socket]] = []
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.host, self.port = self.listener.getsockname()
        self.closed = False
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            try:
                near, _ = self.listener.accept()
            except OSError:
                return
            self.connections += 1
            try:
                if self.refuse or self.closed:
                    raise OSError
                far = socket.create_connection(self.target, timeout=5)
            except OSError:
                near.close()
                continue
            far.settimeout(None)
            self.pairs.append((near, far))
            last = [time.monotonic()]
            for name, one, other in (("up", near, far), ("down", far, near)):
                threading.Thread(
                    target=self._pump, args=(name, one, other, last), daemon=True
                ).start()

    def _pump(self, name: str, one: socket.socket, other: socket.socket, last: list[float]) -> None:
        forgotten = False
        with contextlib.suppress(OSError):
            while True:
                while name in self.hold and not self.closed:
                    time.sleep(0.01)
                data = one.recv(65536)
                now = time.monotonic()
                forgotten = forgotten or now - last[0] > self.forget
                if forgotten:
                    last[0] = float("-inf")
                    continue
                last[0] = max(last[0], now)
                if not data:
                    other.shutdown(socket.SHUT_WR)
                    return
                if name in self.swallow:
                    continue
                if self.draw.random() < self.loss:
                    break
                if self.delay:
                    time.sleep(self.delay)
                other.sendall(data)
                self.carried += len(data)
        for sock in (one, other):
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)

    def cut(self) -> None:
        """Break all connections that there are."""
        pairs, self.pairs = self.pairs, []
        for sock in (each for pair in pairs for each in pair):
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """End the relay."""
        self.closed = True
        with contextlib.suppress(OSError):
            self.listener.shutdown(socket.SHUT_RDWR)
        self.listener.close()
        self.cut()
