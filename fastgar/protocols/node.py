"""A node: the verbs that a protocol's text uses, and what a driver moves it with.

It does no input or output and has no clock: a driver hands it messages, tells it the time, and
carries what it sends. So the same node runs on the simulated network and on the real one.

====================== =========================================================================
for the text           `send`, `first`, `collect`, `latest`, `save`, `restore`, `gradient`
for the driver         `begin`, `greet`, `verdict`, `receive`, `look`, `ask`, `tick`, `resume`
====================== =========================================================================
"""

from __future__ import annotations

import types
from collections.abc import Coroutine, Generator, Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from ..errors import TooManyFaults
from .cluster import Cluster
from .encoding import numbers
from .mailbox import WINDOW, Mailbox, Received, Verdict, Want
from .pace import Pace
from .storage import State, Storage

__all__ = ["GaveUp", "Node", "Transport"]

Vector = NDArray[Any]

FOLLOWED = 8  # steps for which a node that asked gets what it asked for

DOUBT, MOST_DOUBT = 1.0, 5.0  # so that a slow network is not taken for a dead leader for ever

COMPUTE = object()  # what a text yields where it computes


class GaveUp(RuntimeError):
    """A node waited for so long that it ended."""


class Transport(Protocol):
    """What carries messages, and tells the time.

    Attributes
    ----------
    lossy : bool
        Whether what is posted may be lost, so that it is to be posted again.
    """

    lossy: bool

    def now(self) -> float:
        """Return seconds on a clock that never jumps."""

    def post(self, node: Node, peer: str, kind: str, step: int, vector: Vector) -> None:
        """Send a vector at some time, as it is encoded; a newer one may replace it."""

    def ask(self, node: Node, peer: str, kind: str, step: int) -> None:
        """Ask a peer for its vectors of a kind from a step on."""

    def hello(self, node: Node) -> None:
        """Have every peer call `Node.greet`, and this node for every peer."""

    def windows_moved(self, node: Node, kind: str) -> None:
        """Hand over what was to come later."""

    def computes(self, node: Node) -> bool:
        """Say whether `Node.resume` will be called when a computation is over."""


class Watcher(Protocol):
    """Somebody who sees what happens, to check it or to show it."""

    def collected(self, node: Node, want: Want, received: Received, seconds: float) -> None: ...
    def late(self, node: Node, want: Want, lacking: Sequence[str]) -> None: ...
    def ended(self, node: Node) -> None: ...


class Node:
    """A node of a cluster.

    Parameters
    ----------
    name : str
    cluster : Cluster
    work : callable
        What `gradient` returns: it takes this node, a step and a model. Its `initial` is the model
        that everybody starts from.
    storage : Storage
    transport : Transport
    watcher : Watcher

    Attributes
    ----------
    at : int
        The step that it is in.
    done : bool
        Whether its text is over; `result` is then what the text returned.
    error : Exception or None
        What ended it.
    waiting : Want or None
        What it waits for.
    """

    def __init__(
        self,
        name: str,
        cluster: Cluster,
        work: Any,
        storage: Storage,
        transport: Transport,
        watcher: Watcher,
    ) -> None:
        self.name, self.cluster = name, cluster
        self.storage, self.transport, self.watcher = storage, transport, watcher
        self.role = cluster.role(name)
        self._place = cluster.of_role(self.role).index(name) % cluster.pieces
        self.mailbox = Mailbox(
            name,
            {
                kind: cluster.of_role(way.senders)
                for kind, way in cluster.kinds.items()
                if self.role in way.receivers
            },
            [kind for kind, way in cluster.kinds.items() if way.latest],
            cluster.parts,
        )
        self.pace = Pace(cluster.deadline_floor, cluster.deadline_ceiling)
        self.at, self.started, self.done = 0, False, False
        self.result: Vector | None = None
        self.error: Exception | None = None
        self.waiting: Want | None = None
        self.since = self.due = 0.0
        self.muted = -1  # no message of this step or an earlier one is sent
        self.collected: dict[str, Received] = {}
        self.arrays: dict[str, Vector] = {}  # of the text and of `work`, saved with every message
        self.kept: dict[str, dict[int, tuple[Vector, tuple[str, ...]]]] = {}
        self.lie: Any = None  # what a liar makes of what it sends: see `fastgar.protocols.lies`
        self.initial: Vector = work.initial
        self._work = work
        self._wants: tuple[Want, ...] = ()
        self._waits = self._late = 0
        self._vain, self._quiet = False, 0.0  # whether the last wait was, and since when they are
        self._doubt = 0.0  # deadlines that a want without a message gets more: some were too few
        self._enough_at: float | None = None
        self._claims: dict[str, tuple[int, dict[str, int]]] = {}
        self._followers: dict[tuple[str, str], int] = {}
        self._answered: dict[str, float] = {}
        self._coroutine: Coroutine[Any, Any, Vector] | None = None
        state = storage.read()
        if state is not None:
            self.at, self.arrays, self.kept = state.step, dict(state.arrays), state.kept

    # For the driver.

    def begin(self) -> None:
        """Start: the text runs when enough peers have greeted, see `greet`."""
        self.since = self.transport.now()
        self.due = self.since + self.cluster.starting_deadline
        self.transport.hello(self)
        self._start()

    def heard(self, peer: str) -> dict[str, int]:
        """Return the newest step of each kind that has come from a peer."""
        return {
            kind: newest[peer] for kind, newest in self.mailbox.newest.items() if peer in newest
        }

    def greet(self, peer: str, at: int, heard: dict[str, int]) -> None:
        """Take note of the step that a peer is in, and of what it has heard from this node."""
        self._claims[peer] = (at, heard)
        if not self.started:
            self._start()
        elif self.waiting is not None and not self._late:  # it may have come back behind others
            self.due = min(self.due, self.transport.now() + self._deadline())

    def verdict(self, peer: str, kind: str, step: int) -> Verdict:
        """Say what would become of a message."""
        found: Verdict = self.mailbox.verdict(peer, kind, step)
        return found

    def receive(self, peer: str, kind: str, step: int, vector: Vector) -> None:
        """Take a message whose verdict is TAKE."""
        self.mailbox.put(peer, kind, step, vector)
        self.look(kind)

    def look(self, kind: str) -> None:
        """Go on if what has come of a kind, or of a piece of it, is what the text waits for."""
        self._look(kind.partition("/")[0])

    def _look(self, kind: str | None) -> None:
        if self.waiting is None:
            return
        try:
            received = self._ready(kind)
        except TooManyFaults as error:
            self._fail(error)
            return
        if received is not None:
            self._run(received)

    def ask(self, peer: str, kind: str, step: int) -> None:
        """Send a peer that is behind what it asks for: what is kept, and what comes in some steps.

        A peer that asks for ever costs what one more receiver costs.
        """
        now = self.transport.now()
        self._followers[kind, peer] = self.at + FOLLOWED
        if now - self._answered.get(peer, -np.inf) < self.pace.floor:
            return
        self._answered[peer] = now
        for kept, (vector, _) in sorted(self.kept.get(kind, {}).items()):
            if kept >= step:
                self._post(kind, kept, vector, (peer,))

    def tick(self) -> None:
        """Do what is due: say who is late, send again what may be lost, ask if others are ahead."""
        now = self.transport.now()
        if now < self.due:
            return
        if not self.started:
            self.due = now + self.cluster.starting_deadline
            self.transport.hello(self)
            return
        self._late += 1
        self.due = now + min(self._deadline() * 2 ** min(self._late, 30), self.pace.ceiling)
        if self.transport.lossy:
            self.send_again()
        want = self.waiting
        if self.done or want is None:
            return
        self.watcher.late(self, want, self.mailbox.lacking(want))
        if now - self._quiet > self.cluster.give_up and not self.starting:
            lacking = ", ".join(self.mailbox.lacking(want))
            self._fail(
                GaveUp(
                    f"{self.name} waited {now - self._quiet:.0f} s for {want.kind} of step "
                    f"{want.step} from {lacking}, and gave up"
                )
            )
            return
        if any(each.enough is not None for each in self._wants):
            self._look(None)
        if self.waiting is want:
            self._ask_if_behind(want)

    def resume(self) -> None:
        """Go on after a computation."""
        self._run(None)

    def send_again(self, peer: str | None = None) -> None:
        """Post what is kept once more, to everybody or to one peer."""
        for kind, steps in self.kept.items():
            for step, (vector, peers) in sorted(steps.items()):
                if peer is None:
                    self._post(kind, step, vector, peers)
                elif peer in peers:
                    self._post(kind, step, vector, (peer,))

    @property
    def starting(self) -> bool:
        """Whether it is in the first wait of a run, and so are those that it waits for.

        They may load data for as long as they like. Messages of f peers are no proof that it is
        over, as these may lie.
        """
        want = self.waiting
        if self.done or self.at:
            return False
        return not self.started or (
            want is not None
            and self._waits == 1
            and self.mailbox.reached(want.kind, want.f + 1) < 0
        )

    # For the text.

    def restore(self, **initial: Vector) -> Any:
        """Return the step to go on at, and the arrays of these names: saved, or as given."""
        self.arrays = {**initial, **self.arrays}
        values = [self.arrays[name] for name in initial]
        return (self.at, *values) if values else self.at

    def save(self, step: int, **arrays: Vector) -> None:
        """Set the step and arrays that a restart goes on from; the next message writes them."""
        self.at = step
        self.arrays.update(arrays)

    def send(self, peers: Sequence[str], kind: str, step: int, vector: Vector) -> Vector:
        """Send a vector to peers, and return what was sent.

        That is another one if a vector was sent for this step before, perhaps in an earlier life:
        nobody ever hears two. And it is rounded as the cluster's `wire` says: the numbers returned
        are those that others get.
        """
        kept = self.kept.setdefault(kind, {})
        if step not in kept:
            others = tuple(peer for peer in peers if peer != self.name)
            kept[step] = (self.cluster.encoded(kind, vector), others)
            while len(kept) > WINDOW:
                del kept[min(kept)]
            self.storage.write(State(self.at, self.arrays, self.kept))
        vector, peers = kept[step]
        followers = [
            peer
            for (what, peer), until in self._followers.items()
            if what == kind and until >= step
        ]
        self._post(kind, step, vector, [*peers, *(f for f in followers if f not in peers)])
        return numbers(vector)

    async def first(self, *wants: Want) -> Received:
        """Wait for the first of some wants."""
        return await _wait(wants)

    async def collect(
        self, kind: str, step: int, q: int, f: int = 0, *, enough: int | None = None
    ) -> list[Vector]:
        """Wait for q messages of a step; return the vectors in the order of their senders.

        After the deadline `enough` of them will do: then there is NaN where nothing has come.
        """
        return (await _wait((Want(kind, step, q, f, enough=enough),))).rows

    async def latest(self, kind: str, step: int, q: int, f: int = 0) -> tuple[int, list[Vector]]:
        """Wait for q messages of one step, this or a later one; return it and the vectors."""
        received = await _wait((Want(kind, step, q, f, later=True),))
        return received.step, received.rows

    async def gradient(self, step: int, model: Vector) -> Vector:
        """Return what this worker has to send for a step, at a model."""
        await _compute()
        found: Vector = self._work(self, step, model)
        return found

    # Inside.

    def _start(self) -> None:
        cluster = self.cluster
        if self.done or self._coroutine is not None:
            return
        for role in cluster.groups:
            others = [name for name in cluster.of_role(role) if name != self.name]
            needed = cluster.enough(self.role, role) - (role == self.role)
            if sum(name in self._claims for name in others) < needed:
                return
        self.started = True
        self._mute()
        self.send_again()
        text = cluster.text.server if self.role == "server" else cluster.text.worker
        self._coroutine = text(self, self, cluster)
        self._run(None)

    def _mute(self) -> None:
        """Stay silent for steps that this node has sent, as others say, and its disk does not know.

        No single peer decides: of a role, one more than may lie must have heard it, or have come
        so far.
        """
        ahead, said = 0, -1
        for role, group in self.cluster.groups.items():
            claims = [
                self._claims[name] for name in self.cluster.of_role(role) if name in self._claims
            ]
            if len(claims) > group.f:
                steps = sorted((at for at, _ in claims), reverse=True)
                heard = sorted((max(of.values(), default=-1) for _, of in claims), reverse=True)
                ahead, said = max(ahead, steps[group.f]), max(said, heard[group.f])
        known = max((step for steps in self.kept.values() for step in steps), default=-1)
        if said > known:
            self.muted = max(ahead, said) + WINDOW

    def _deadline(self) -> float:
        """Return seconds: few where nothing is usual yet, and more than f of a role are ahead.

        So that who comes back behind the others asks them soon.
        """
        if self.pace.usual is None:
            for role, group in self.cluster.groups.items():
                names = self.cluster.of_role(role)
                ahead = [self._claims[name][0] > self.at for name in names if name in self._claims]
                if sum(ahead) > group.f:
                    return self.pace.floor
        return self.pace.deadline

    def _post(self, kind: str, step: int, vector: Vector, peers: Sequence[str]) -> None:
        if step <= self.muted:
            return
        for peer in peers:
            said = vector
            if self.lie is not None:
                said = self.lie(self, kind, step, numbers(vector), peer)
            if said is not None:
                self.post(peer, kind, step, said)

    def post(self, peer: str, kind: str, step: int, vector: Vector) -> None:
        """Post what goes to a peer; each node begins with another piece of what goes in pieces."""
        vector = self.cluster.encoded(kind, vector)
        parts = self.cluster.parts.get(kind)
        if parts is None:
            self.transport.post(self, peer, kind, step, vector)
            return
        ends, first = self.cluster.ends(len(vector)), self._place
        for i in (*range(first, len(parts)), *range(first)):
            start, stop = ends[i]
            self.transport.post(self, peer, parts[i], step, vector[start:stop])

    def _run(self, value: Any) -> None:
        assert self._coroutine is not None
        while True:
            try:
                request = self._coroutine.send(value)
                value = None
                if request is COMPUTE:
                    if self.transport.computes(self):
                        return
                    continue
                self._wants, self.waiting = request, request[0]
                self._waits += 1
                self._late, self._enough_at = 0, None
                self.since = self.transport.now()
                if not self._vain:
                    self._quiet = self.since
                self.due = self.since + self._deadline()
                moved = [
                    part
                    for want in request
                    for part in self.mailbox.parts_of(want.kind)
                    if self.mailbox.forget_before(part, want.step)
                ]
                for kind in moved:
                    self.transport.windows_moved(self, kind)
                if self.waiting is None:  # what was to come later has come, and was enough
                    return
                received = self._ready(None)
                if received is None:
                    return
                value = received
            except StopIteration as end:
                self.done, self.result, self.waiting = True, end.value, None
                self.watcher.ended(self)
                return
            except Exception as error:
                self._fail(error)
                return

    def _ready(self, kind: str | None) -> Received | None:
        for want in self._wants:
            if kind is None or want.kind == kind:
                received: Received | None = self.mailbox.look(want, self._is_late(want))
                if self._enough_at is None and self._is_enough(want):
                    self._enough_at = self.transport.now()
                if received is not None:
                    self.waiting = None
                    now = self.transport.now()
                    self._vain = not received.rows
                    if want.enough == 0:
                        change = DOUBT if self._vain else -DOUBT / 10
                        self._doubt = min(max(0.0, self._doubt + change), MOST_DOUBT)
                    seconds = (now if self._enough_at is None else self._enough_at) - self.since
                    usual = self._waits > 1 and not self._vain  # the first is that of a start
                    if usual and want is self._wants[0]:
                        self.pace.took(seconds)
                    self.collected[received.kind] = received
                    self.watcher.collected(self, want, received, seconds)
                    return received
        return None

    def _is_late(self, want: Want) -> bool:
        return self._late >= want.patience + (self._doubt if want.enough == 0 else 0.0)

    def _is_enough(self, want: Want) -> bool:
        return bool(want.enough) and len(self.mailbox.whole(want)) >= (want.enough or 0)

    def _ask_if_behind(self, want: Want) -> None:
        """Ask for what will do instead, if a peer that is honest has gone on."""
        if want.later or self.mailbox.reached(want.kind, want.f + 1) <= want.step:
            return
        for other in self._wants:
            if other.later:
                for peer in self.mailbox.senders[other.kind]:
                    if peer != self.name:
                        self.transport.ask(self, peer, other.kind, other.step)

    def _fail(self, error: Exception) -> None:
        self.error, self.done, self.waiting = error, True, None
        if self._coroutine is not None:
            self._coroutine.close()
        self.watcher.ended(self)


@types.coroutine
def _wait(wants: tuple[Want, ...]) -> Generator[tuple[Want, ...], Received, Received]:
    received = yield wants
    return received


@types.coroutine
def _compute() -> Generator[object, None, None]:
    yield COMPUTE
