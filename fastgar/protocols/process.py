"""One node as a process on the real network."""

from __future__ import annotations

import hashlib
import platform
import threading
import time
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

import fastgar as fg

from ..dtypes import ITEMSIZE
from ..network import Address, Kind, Limits, Links, Signer
from .cluster import Cluster
from .file import hash_of
from .inbox import ASK, ASKS, CONTROL, OVER, NodeInbox
from .learning import Learning
from .lies import lie_of, work_of
from .node import GaveUp, Node
from .pool import Pool
from .seals import Keys, Trial
from .storage import Storage

__all__ = ["NodeProcess"]

Vector = NDArray[Any]

SAYS, SAYS_AT_LAST = 2.0, 60.0  # seconds between two sentences of a node that waits to start
AWAY = 1.0  # seconds that a wait may take longer than it was to: else the process was asleep


class NodeProcess:
    """A node, its links and its disk.

    Parameters
    ----------
    cluster : Cluster
        With the addresses of all nodes.
    name : str
    key : Path
        The node's private file.
    learning : Learning
    watcher : Watcher
    storage : Storage
    listen : (host, port) or socket, optional
        By default all addresses of this machine, and the port of the node's address.
    led : bool
        Whether who started this process says when to end (`released`) after the last step, and
        nobody will start others later: a start that takes too long is given up.

    Attributes
    ----------
    released : threading.Event
        Set it to have a process that is led end, once it is done.

    Raises
    ------
    ValueError
        If the key is not that of the node of this name.
    OSError
        If the port cannot be listened on.
    """

    lossy = False

    def __init__(
        self,
        cluster: Cluster,
        name: str,
        key: Path,
        learning: Learning,
        watcher: Any,
        storage: Storage,
        *,
        listen: Any = None,
        limits: Limits | None = None,
        led: bool = False,
    ) -> None:
        d, identity = len(learning.initial), hash_of(cluster)
        cluster = cluster.fitted(d)
        self.led, self.released = led, threading.Event()
        self.cluster, self.name, self.watcher = cluster, name, watcher
        names = dict(enumerate(cluster.kinds))
        self._numbers = {kind: number for number, kind in names.items()}
        lengths = {kind: cluster.length(kind, d) for kind in cluster.kinds}
        pools = {length: Pool(length) for length in lengths.values()}
        self.inbox = NodeInbox(
            names,
            {kind: pools[lengths[kind]] for kind in lengths},
            [kind for kind in cluster.kinds if cluster.dtype(kind) == "bfloat16"],
        )
        own = cluster.nodes[name]
        self.keys = keys_of(cluster, name, key)
        self.slow = 1.0  # times that its work takes
        work = work_of(cluster, learning)(name)
        self.node = Node(name, cluster, _Slowed(work, self), storage, self, watcher)
        self.node.lie = lie_of(cluster, name)
        self.inbox.node = self.node
        self.links = Links(
            name,
            {
                peer: Address(node.host, node.port, node.fingerprint)
                for peer, node in cluster.nodes.items()
                if peer != name and cluster.talks(cluster.role(peer), cluster.role(name))
            },
            key,
            identity=identity,
            about=_about(d, cluster.wire, learning),
            kinds={
                **{
                    number: Kind(ITEMSIZE[cluster.dtype(kind)] * lengths[kind], cluster.dtype(kind))
                    for number, kind in names.items()
                },
                **dict.fromkeys(CONTROL, Kind(1, "bytes")),
                **{
                    ASKS + number: Kind(1, "bytes")
                    for number, kind in names.items()
                    if cluster.kinds[kind].asked
                },
            },
            inbox=self.inbox,
            listen=("", own.port) if listen is None else listen,
            tolerated=("torch", "numpy", "machine", "gradient"),
            limits=limits,
        )
        self._asleep = 0.0

    def run(
        self,
        *,
        final: Vector | None = None,
        say: Callable[[str], None] = lambda sentence: None,
        done: Callable[[Vector], None] = lambda model: None,
    ) -> Vector:
        """Run to the end of the last step, then answer the others until they are there, too.

        Parameters
        ----------
        final : array, shape (d,), optional
            The final model of a node that was done in an earlier life: it only answers.
        say : callable
            Takes sentences about who is waited for.
        done : callable
            Takes the final model, before the others are answered.

        Returns
        -------
        array, shape (d,)
            The final model.

        Raises
        ------
        GaveUp, TooManyFaults, ...
            What ended the node before its last step.
        """
        node, inbox = self.node, self.inbox
        if final is not None:
            node.done, node.result = True, final
        self.links.start()
        try:
            if final is None:
                node.begin()
            else:
                node.send_again()
            began = said = self.now()
            pause = SAYS
            while not node.done:
                self._wait(node.due if node.started else min(node.due, said + pause))
                inbox.work_off()
                node.tick()
                now = self.now()
                if now - said < pause and not node.done:
                    continue
                said, pause = now, min(2 * pause, SAYS_AT_LAST)
                self._require_to_be_alone()
                if not node.started:
                    say(f"waits to start: {self.lacking()}")
                self._give_up_starting(now - began)
            if node.error is not None:
                raise node.error
            assert node.result is not None
            done(node.result)
            self._linger()
            return node.result
        finally:
            self.links.close()

    def lacking(self) -> str:
        """Return the names of those that there is no link with, and why if they were refused."""
        status = self.links.status()
        gone = [name for name, state in status.items() if not state.connected]
        refused = [f"{name} ({status[name].refused})" for name in gone if status[name].refused]
        return ", ".join(refused[:3] or gone[:12]) or "nobody; not enough have greeted"

    def release(self) -> None:
        """Have a process that is led end, once it is done; from any thread."""
        self.released.set()
        self.inbox.call(lambda node: None)

    def cut(self, peers: Collection[str]) -> None:
        """Neither hear these peers nor speak to them, until it is called again with others."""
        healed = self.inbox.cut - set(peers)
        self.inbox.cut = frozenset(peers)
        for peer in healed & set(self.links.peers):
            self.links.resume(peer)
            self.inbox.call(lambda node, peer=peer: node.send_again(peer))  # type: ignore[misc]

    def _linger(self) -> None:
        """Answer until all others are over or the linger deadline passes, or until released."""
        for peer in self.links.peers:
            self.links.post(peer, OVER, 0, memoryview(bytes(1)))
        until = self.now() + self.cluster.linger
        while not self.released.is_set():
            now = self.now()
            if not self.led and (now >= until or self.inbox.over.issuperset(self.links.peers)):
                return
            self._wait(now + 1.0 if self.led else until)
            self.inbox.work_off()

    def _wait(self, until: float) -> None:
        """Wait for something to happen, and take note if this process was stopped meanwhile.

        What lies in the sockets when it wakes is read before a deadline is judged.
        """
        before = time.monotonic()
        seconds = max(0.0, min(until - self.now(), 1.0))
        self.inbox.wait(before + seconds)
        longer = time.monotonic() - before - seconds
        if longer > AWAY:
            self._asleep += longer

    def _require_to_be_alone(self) -> None:
        """Raise if more peers than may lie say that another process uses the key of this node."""
        status = self.links.status()
        for role, group in self.cluster.groups.items():
            say = [
                name
                for name in self.cluster.of_role(role)
                if name in status and status[name].second
            ]
            if len(say) > group.f:
                raise RuntimeError(
                    f"another process uses the key of {self.name}, says {', '.join(say[:12])}: "
                    "end it first"
                )

    def _give_up_starting(self, waited: float) -> None:
        """Raise if others should have been there by now: nobody will start them later."""
        node = self.node
        patience = max(self.cluster.give_up, self.cluster.starting_deadline)
        begins = node.starting or not node.started
        if begins and (self.led or node.at) and waited > patience and not node.done:
            want = node.waiting
            lacking = self.lacking() if want is None else ", ".join(node.mailbox.lacking(want))
            raise GaveUp(f"{self.name} waited {waited:.0f} s to start: {lacking}, and gave up")

    # As the node's transport.

    def now(self) -> float:
        """Return seconds that never jump, without those in which this process was stopped."""
        return time.monotonic() - self._asleep

    def post(self, node: Node, peer: str, kind: str, step: int, vector: Vector) -> None:
        """Send a vector."""
        if peer in self.inbox.cut:
            return
        self.watcher.posted(self.name, peer, kind, step, vector)
        self.links.post(peer, self._numbers[kind], step, np.ascontiguousarray(vector).data)

    def ask(self, node: Node, peer: str, kind: str, step: int) -> None:
        """Ask a peer for models from a step on, or for what it only sends if it is asked."""
        asked = self.cluster.kinds[kind].asked
        number = ASKS + self._numbers[kind] if asked else ASK
        self.links.post(peer, number, step, memoryview(bytes(1)))

    def hello(self, node: Node) -> None:
        """Do nothing: links greet by themselves."""

    def windows_moved(self, node: Node, kind: str) -> None:
        """Let those speak again that had to wait."""
        for peer in self.inbox.moved(kind):
            self.links.resume(peer)

    def computes(self, node: Node) -> bool:
        """Return that nobody calls: a computation is over when it returns."""
        return False


def keys_of(cluster: Cluster, name: str, key: Path) -> Keys:
    """Return what a node signs with, if servers of this cluster do.

    Raises
    ------
    ValueError
        If a key cannot be used, or the package `cryptography` is not there.
    """
    if not cluster.signs:
        return Trial(name)  # of which nothing is asked
    known = {server: cluster.nodes[server].public_key for server in cluster.of_role("server")}
    try:
        return Signer(key, name, known, hash_of(cluster))
    except ModuleNotFoundError as error:
        raise ValueError(f"agreement = {cluster.agreement!r} signs: {error}") from error


class _Slowed:
    """Work that takes some times as long, if it is told to."""

    def __init__(self, work: Any, process: NodeProcess) -> None:
        self.work, self.process, self.initial = work, process, work.initial

    def __call__(self, node: Node, step: int, model: Vector) -> Vector:
        """Return what the work returns."""
        began = time.monotonic()
        found: Vector = self.work(node, step, model)
        if self.process.slow > 1:
            time.sleep((self.process.slow - 1) * (time.monotonic() - began))
        return found


def _about(d: int, wire: str, learning: Learning) -> dict[str, Any]:
    """Return what must be alike at all nodes, or is told if it is not."""
    gradient = learning.gradient(0, 0, learning.initial)
    return {
        "fastgar": fg.__version__,
        "d": d,
        "dtype": wire,
        "torch": str(torch.__version__),
        "numpy": np.__version__,
        "machine": platform.machine(),
        "gradient": hashlib.sha256(gradient.tobytes()).hexdigest()[:16],
    }
