"""Links between the nodes of a cluster: bytes, peers and steps, and nothing of learning.

Each pair of nodes has one connection, which either may have dialled. It carries messages of known
sizes (`wire`) under TLS 1.3 between keys that know each other (`tls`), after both have said that
they fit (`hello`). What breaks is dialled again, and the newest messages go out once more.

Each peer has a thread that reads and one that writes (`link`, `company`). Two more accept (`door`)
and look at the time. Only `time.monotonic` is read.
"""

from __future__ import annotations

import atexit
import os
import random
import socket
import threading
import time
import weakref
from collections.abc import Collection, Mapping

from fastgar.errors import shown

from .company import Company
from .connect import dialled, listeners
from .door import Door
from .hello import About
from .keys import certificate, check_key, expiry
from .link import Inbox
from .peer import Address, Limits, Peer, Status
from .say import Say, log
from .tls import Channel, client_context
from .wire import STEPS, Format, Kind, Violation, as_bytes, run_id

__all__ = ["Links"]

TICK = 0.25  # seconds between two looks at everything


class Links:
    """The links of one node to its peers.

    Parameters
    ----------
    me : str
        The name of this node.
    peers : mapping of str to Address
        All other nodes. Who has no host is not dialled. Of two that have one the lesser name dials
        at once, and the other after a second without a link.
    key : path
        The key of this node (`make_key`).
    identity : bytes
        What makes this run this run, such as the cluster file: who has another is refused.
    about : mapping of str to str, number, bool or None
        What must be alike at both ends, such as versions and d. A difference is refused at both,
        in the same sentence.
    kinds : mapping of int to Kind
        The messages that there are.
    inbox : Inbox
        Where they go.
    listen : (host, port), socket or None
        Where to listen: an empty host is every address, port 0 any port. A socket that is bound is
        taken over. None: nobody can dial this node.
    tolerated : collection of str
        Keys of `about` whose differences are reported (`Status.differs`) and not refused.
    limits : Limits
        Seconds and counts.

    Raises
    ------
    ValueError
        In one sentence: if the key cannot be used, or names or kinds make no sense.
    OSError
        If the address cannot be listened on.

    Notes
    -----
    Memory: under 1 MB for each peer that is connected, and what was posted: of each kind the two
    newest messages, which are not copied.
    """

    def __init__(
        self,
        me: str,
        peers: Mapping[str, Address],
        key: str | os.PathLike[str],
        *,
        identity: bytes,
        about: About,
        kinds: Mapping[int, Kind],
        inbox: Inbox,
        listen: tuple[str, int] | socket.socket | None,
        tolerated: Collection[str] = (),
        limits: Limits | None = None,
    ) -> None:
        own = check_key(key)
        for name, address in peers.items():
            if name == me or address.fingerprint == own:
                raise ValueError(
                    f"peers are the other nodes: {shown(name)} has this node's name or key"
                )
            if listen is None and address.host is None:
                raise ValueError(
                    f"{me} and {name} both do not listen, so neither can dial the other"
                )
        self.peers = {
            name: Peer(name, address, first=listen is None or me < name)
            for name, address in peers.items()
        }
        known = {peer.address.fingerprint: peer for peer in self.peers.values()}
        if len(known) < len(peers):
            raise ValueError("two peers have the same key")
        self.me, self.key, self.say = me, key, Say()
        self.limits = Limits() if limits is None else limits
        self.format = Format(run_id(identity), dict(kinds))
        self.company = Company(me, about, tolerated, self.format, inbox, self.limits, self.say)
        self._certificate = certificate(key)
        self._context = client_context(key)
        self._closing = self.company.closing
        self._lock = threading.Lock()
        self._threads: set[threading.Thread] = set()
        listening = [] if listen is None else listeners(listen)
        self.port: int | None = listening[0].getsockname()[1] if listening else None
        self.door: Door | None = None
        if listening:
            self.door = Door(listening, known, key, self.limits, self._welcome, self.say)
        _alive.add(self)

    # ------------------------------------------------------------------ what a node calls

    def start(self) -> None:
        """Begin to listen and to dial."""
        log.info(f"{self.me}: the certificate in {self.key} is valid until {expiry(self.key)}")
        if self.door is not None:
            self.door.start()
            self._threads.add(self.door)
        self._thread("clock", self._watch)
        for peer in self.peers.values():
            if peer.address.host is not None:
                self._thread(f"dials {peer.name}", self._dial, peer)

    def post(
        self, peer: str, kind: int, step: int, payload: memoryview, digest: bytes = b""
    ) -> None:
        """Have a message sent, now or when there is a connection; never blocks.

        Of each kind the two newest steps are kept, and sent again after a reconnect; an older one
        is dropped unless it is already being sent. Posting a step again sends it again.

        Parameters
        ----------
        peer : str
            To whom.
        kind, step : int
            Which message.
        payload : memoryview
            Exactly as many bytes as the kind has. It is not copied: do not write into it, ever.
        digest : bytes
            32 bytes that go with it, such as its SHA-256, or nothing.

        Raises
        ------
        ValueError
            If the message is not one that peers would accept.
        """
        payload = as_bytes(payload)
        form = self.format.kinds.get(kind)
        if form is None or payload.nbytes != form.size:
            raise ValueError(
                f"a message of kind {shown(kind)} has "
                f"{'no size: there is none' if form is None else f'{form.size} bytes'}, "
                f"got {payload.nbytes}"
            )
        if not 0 <= step < STEPS:
            raise ValueError(f"step must be from 0 to {STEPS - 1}, got {shown(step)}")
        if len(digest) not in (0, 32):
            raise ValueError(f"a digest has 32 bytes, got {len(digest)}")
        to = self.peers[peer]
        with to.cond:
            to.outbox.post(kind, step, payload, digest)
            to.cond.notify_all()

    def resume(self, peer: str) -> None:
        """Ask the inbox again for the message of a peer for which it has said LATER."""
        with self.peers[peer].cond:
            self.peers[peer].resumes += 1
            self.peers[peer].cond.notify_all()

    def status(self) -> dict[str, Status]:
        """Return how things stand with each peer."""
        return {name: peer.status() for name, peer in self.peers.items()}

    def strangers(self) -> dict[str, int]:
        """Return how many connections were refused before they were a peer's, for which reason."""
        return {} if self.door is None else dict(self.door.refused)

    def close(self, linger: float = 1.0) -> None:
        """Send what waits, let the others read it, and end all threads.

        Takes at most `linger` seconds and a half. The inbox is not called any more when it returns,
        unless one of its own functions has not.
        """
        until = time.monotonic() + linger
        self._closing.set()
        if self.door is not None:
            self.door.close()
        for peer in self.peers.values():
            with peer.cond:
                peer.cond.notify_all()
        self.company.end_meetings(late_only=False)
        links = self.company.links()
        for link in links:
            link.leave()
        for link in links:
            link.over.wait(max(0.0, until - time.monotonic()))
        for link in links:
            link.fail("closing", "this node ends")
        with self._lock:
            threads = list(self._threads)
        for thread in threads:
            if thread is not threading.current_thread() and thread.ident is not None:
                thread.join(max(0.0, until + 0.5 - time.monotonic()))
        if self.door is not None and self.door.ident is None:
            self.door.drop()
        _alive.discard(self)

    # ------------------------------------------------------------------ connections

    def _thread(self, name: str, target: object, *args: object) -> None:
        thread = threading.Thread(
            name=f"fastgar {name}", target=self._run, args=(target, *args), daemon=True
        )
        with self._lock:  # so that it cannot be over before it is known
            thread.start()
            self._threads.add(thread)

    def _run(self, target: object, *args: object) -> None:
        try:
            target(*args)  # type: ignore[operator]
        finally:
            with self._lock:
                self._threads.discard(threading.current_thread())

    def _welcome(self, peer: Peer, channel: Channel) -> None:
        with peer.cond:
            peer.meeting += 1
        try:
            self._thread(f"reads {peer.name}", self.company.live, peer, channel, False)
        except RuntimeError as error:
            channel.sock.close()
            with peer.cond:
                peer.meeting -= 1
            self.say("threads", f"{peer.name} cannot be let in: {error}")

    def _dial(self, peer: Peer) -> None:
        tries = 0
        while not self._closing.is_set():
            with peer.cond:
                peer.cond.wait_for(lambda: peer.link is None or self._closing.is_set())
                if not peer.first:
                    peer.cond.wait_for(
                        lambda: peer.link is not None or self._closing.is_set(), self.limits.second
                    )
                if peer.link is not None or self._closing.is_set():
                    continue
            reason, lived = "", 0.0
            try:
                channel = dialled(
                    peer,
                    self._certificate,
                    self._context,
                    self.limits,
                    self._closing,
                    self.company.meet,
                )
                with peer.cond:
                    peer.meeting += 1
                reason, lived = self.company.live(peer, channel, True)
            except (OSError, ValueError) as error:
                if self._closing.is_set():  # which is why
                    return
                reason = error.reason if isinstance(error, Violation) else "dial"
                self.say((peer.name, reason), f"{peer.name} was not reached: {error}")
                if isinstance(error, Violation):
                    with peer.cond:
                        peer.refused = str(error)
            tries = 0 if lived >= self.limits.stable else min(tries + 1, 20)
            most = self.limits.backoff_most
            if reason in ("run", "about", "twin", "name"):
                most, tries = self.limits.backoff_refused, 20
            delay = min(most, self.limits.backoff * 2.0**tries)
            self._closing.wait(delay * random.uniform(0.5, 1.0))

    def _watch(self) -> None:
        """Look at all connections four times a second."""
        heartbeat = max(1, round(self.limits.heartbeat / TICK))
        patience = max(2, round(self.limits.patience / TICK))
        twins = dict.fromkeys(self.peers, 0)
        while not self._closing.wait(TICK):
            self.company.end_meetings()
            for link in self.company.links():
                link.tick(heartbeat, patience)
            for name, peer in self.peers.items():
                if peer.twins > twins[name]:
                    self.say("twin", f"{name} refused another process with the key of {self.me}")
                twins[name] = peer.twins


# ----------------------------------------------------------------------------- exits and forks

_alive: weakref.WeakSet[Links] = weakref.WeakSet()


@atexit.register
def _close_all() -> None:
    """Leave no thread to an interpreter that ends."""
    for links in list(_alive):
        links.close(linger=0.0)


def _after_fork() -> None:
    """Let a forked child, such as one that loads data, hold no port and speak on no link."""
    for links in list(_alive):
        for sock in links.company.sockets():
            sock.close()
        if links.door is not None:
            links.door.drop()
    _alive.clear()


os.register_at_fork(after_in_child=_after_fork)
