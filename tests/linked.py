"""Nodes for the tests of links: an inbox that keeps what came, and links on ephemeral ports."""

from __future__ import annotations

import socket
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from relay import Relay

from fastgar.network import LATER, Address, Kind, Later, Limits, Links, make_key

MODEL, GRADIENT = 0, 1
IDENTITY = b"the cluster file"
ABOUT = {"version": "0.1.0", "d": 1000, "dtype": "float32"}


class Box:
    """An inbox that keeps everything once, or what `rule` says."""

    def __init__(self, sizes: Mapping[int, int]) -> None:
        self.sizes = sizes
        self.lock = threading.Condition()
        self.slots: dict[tuple[str, int, int], bytearray] = {}
        self.got: dict[tuple[str, int, int], bytearray] = {}
        self.digests: dict[tuple[str, int, int], bytes] = {}
        self.gone: Counter[tuple[str, int, int]] = Counter()
        self.hellos: list[tuple[str, dict[int, tuple[int, str]]]] = []
        self.last: dict[str, dict[int, tuple[int, str]]] = {}
        self.rule: Callable[[str, int, int], Later | bool] = lambda peer, kind, step: True

    def slot(self, peer: str, kind: int, step: int) -> memoryview | Later | None:
        with self.lock:
            what = peer, kind, step
            said = self.rule(peer, kind, step)
            if said is LATER:
                return LATER
            if what in self.got or what in self.slots or not said:
                return None
            self.slots[what] = bytearray(self.sizes[kind])
            return memoryview(self.slots[what])

    def arrived(self, peer: str, kind: int, step: int, digest: bytes) -> None:
        with self.lock:
            what = peer, kind, step
            self.got[what] = self.slots.pop(what)
            self.digests[what] = digest
            self.last.setdefault(peer, {})[kind] = (step, digest.hex())
            self.lock.notify_all()

    def lost(self, peer: str, kind: int, step: int) -> None:
        with self.lock:
            del self.slots[peer, kind, step]
            self.gone[peer, kind, step] += 1

    def hello(self, peer: str, heard: Mapping[int, tuple[int, str]]) -> None:
        with self.lock:
            self.hellos.append((peer, dict(heard)))
            self.lock.notify_all()

    def heard(self, peer: str) -> dict[int, tuple[int, str]]:
        with self.lock:
            return dict(self.last.get(peer, {}))

    def wait(self, *what: Any, seconds: float = 20) -> bytes:
        with self.lock:
            assert self.lock.wait_for(lambda: what in self.got, seconds), (what, list(self.got))
            return bytes(self.got[what])


def until(condition: Callable[[], Any], seconds: float = 20.0) -> None:
    """Wait until something holds."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not come to pass"
        time.sleep(0.01)


class Net:
    """Nodes of one test, each with a key and a port of its own."""

    def __init__(self, folder: Path, sizes: Mapping[int, int] | None = None) -> None:
        self.folder = folder
        self.sizes = {MODEL: 4000, GRADIENT: 4000} if sizes is None else dict(sizes)
        self.sockets: dict[str, socket.socket] = {}
        self.addresses: dict[str, Address] = {}
        self.boxes: dict[str, Box] = {}
        self.links: list[Links] = []
        self.relays: list[Relay] = []

    def node(self, name: str, listens: bool = True) -> Address:
        """Give a node a key and a place."""
        key = self.folder / f"{name}.pem"
        pin = make_key(key, name)
        if listens:
            self.sockets[name] = socket.create_server(("127.0.0.1", 0))
            host, port = self.sockets[name].getsockname()
            self.addresses[name] = Address(host, port, pin)
        else:
            self.addresses[name] = Address(None, 0, pin)
        return self.addresses[name]

    def start(self, name: str, peers: Mapping[str, Address] | None = None, **options: Any) -> Links:
        """Start a node; `peers` are all others unless they are given."""
        if peers is None:
            peers = {k: v for k, v in self.addresses.items() if k != name}
        links = Links(**self.options(name, peers) | options)
        self.links.append(links)
        links.start()
        return links

    def options(self, name: str, peers: Mapping[str, Address]) -> dict[str, Any]:
        """Return what `Links` takes."""
        listen: Any = self.sockets.pop(name, None)
        if listen is None and self.addresses[name].host is not None:
            listen = self.addresses[name][:2]  # a restart, on the same port
        self.boxes[name] = Box(self.sizes)
        return {
            "me": name, "peers": peers, "key": self.folder / f"{name}.pem", "identity": IDENTITY,
            "about": ABOUT, "kinds": {kind: Kind(size) for kind, size in self.sizes.items()},
            "inbox": self.boxes[name], "listen": listen, "limits": Limits(),
        }  # fmt: skip

    def relay(self, name: str) -> Relay:
        """Put a relay before a node: who starts from now on dials it there."""
        host, port, pin = self.addresses[name]
        relay = Relay(host, port)
        self.relays.append(relay)
        self.addresses[name] = Address(relay.host, relay.port, pin)
        return relay

    def close(self) -> None:
        for links in self.links:
            links.close(0)
        for relay in self.relays:
            relay.close()
        for sock in self.sockets.values():
            sock.close()


@contextmanager
def net(folder: Path, *names: str, sizes: Mapping[int, int] | None = None) -> Iterator[Net]:
    """Yield a net of nodes that are not started yet; no thread of theirs is left behind."""
    made = Net(folder, sizes)
    for name in names:
        made.node(name)
    try:
        yield made
    finally:
        made.close()
        until(lambda: not left())


def left() -> list[str]:
    """Return the names of the threads of links that still run."""
    return [each.name for each in threading.enumerate() if each.name.startswith("fastgar ")]


def connected(*links: Links) -> None:
    """Wait until all of them have all their peers."""
    until(lambda: all(s.connected for each in links for s in each.status().values()))
