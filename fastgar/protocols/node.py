"""A node: the verbs that a protocol's text uses, and what a driver moves it with.

It does no input or output and has no clock: a driver hands it messages, tells it the time, and
carries what it sends. So the same node runs on the simulated network and on the real one.

====================== =========================================================================
for the text           `send`, `first`, `collect`, `latest`, `save`, `restore`, `gradient`;
                       `request` and `settle` where it reads messages by itself
for the driver         `begin`, `greet`, `verdict`, `receive`, `look`, `ask`, `tick`, `resume`
====================== =========================================================================

What it says is in `fastgar.protocols.speech`, what it has heard in `mailbox` and `greetings`, how
long it waits in `waits`; what it asks of a driver in `driver`.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import Any

from numpy.typing import NDArray

from ..errors import TooManyFaults
from .awaits import COMPUTE, computation, messages
from .cluster import Cluster
from .driver import Transport, Watcher
from .evidence import Court
from .greetings import Greetings, is_own_word
from .mailbox import Mailbox, Received, Verdict, Want
from .pace import Pace
from .speech import Speaker
from .storage import Storage
from .waits import Waits

__all__ = ["GaveUp", "Node"]

Vector = NDArray[Any]


class GaveUp(RuntimeError):
    """A node waited for so long that it ended."""


class Node(Speaker):
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
    done : bool
        Whether its text is over; `result` is then what the text returned.
    error : Exception or None
        What ended it.
    waiting : Want or None
        What it waits for.
    court : Court or None
        Whom it has convicted, where servers sign.
    aside : callable or None
        What a text has left that others may still wait for: called when messages have come.
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
        super().__init__(name, cluster, storage, transport)
        self.watcher = watcher
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
        self._greetings = Greetings(name, cluster)
        self.waits = Waits(
            self.mailbox,
            Pace(cluster.deadline_floor, cluster.deadline_ceiling),
            lambda: self._greetings.are_ahead(self.at),
        )
        self.started, self.done = False, False
        self.result: Vector | None = None
        self.error: Exception | None = None
        self.waiting: Want | None = None
        self.collected: dict[str, Received] = {}
        self.initial: Vector = work.initial
        self._work = work
        self._asked: set[tuple[str, str, int]] = set()
        self.court = Court(self) if cluster.signs else None
        self.aside: Callable[[], None] | None = None
        self._coroutine: Coroutine[Any, Any, Vector] | None = None

    # For the driver.

    @property
    def due(self) -> float:
        """When `tick` has something to do."""
        return self.waits.due

    def begin(self) -> None:
        """Start: the text runs when enough peers have greeted, see `greet`."""
        self.waits.since = self.transport.now()
        self.waits.due = self.waits.since + self.cluster.starting_deadline
        self.transport.hello(self)
        self._start()

    def heard(self, peer: str) -> dict[str, int]:
        """Return the newest step of each kind that has come from a peer."""
        return {
            kind: newest[peer] for kind, newest in self.mailbox.newest.items() if peer in newest
        }

    def greet(self, peer: str, at: int, heard: dict[str, int]) -> None:
        """Take note of the step that a peer is in, and of what it has heard from this node."""
        self._greetings.take(peer, at, heard)
        if not self.started:
            self._start()
        elif self.waiting is not None:  # it may have come back behind others
            self.waits.hurry(self.transport.now())

    def verdict(self, peer: str, kind: str, step: int) -> Verdict:
        """Say what would become of a message."""
        if self.cluster.kinds[kind].asked and (peer, kind, step) not in self._asked:
            return Verdict.SKIP
        return self.mailbox.verdict(peer, kind, step)  # type: ignore[no-any-return]

    def receive(self, peer: str, kind: str, step: int, vector: Vector) -> None:
        """Take a message whose verdict is TAKE."""
        self.mailbox.put(peer, kind, step, vector)
        self.look(kind)

    def look(self, kind: str) -> None:
        """Go on if what has come of a kind, or of a piece of it, is what the text waits for."""
        whole = kind.partition("/")[0]
        if whole == "proof" and self.court is not None:
            self.court.look(kind)
        if self.aside is not None:
            try:
                self.aside()
            except TooManyFaults as error:
                self._fail(error)
        self._look(whole)

    def ask(self, peer: str, kind: str, step: int) -> None:
        """Answer a peer that is behind and asks for a kind, from a step on."""
        self._answer(peer, kind, step, self.waits.pace.floor)

    def tick(self) -> None:
        """Do what is due: say who is late, send again what may be lost, ask if others are ahead."""
        now = self.transport.now()
        if now < self.due:
            return
        if not self.started:
            self.waits.due = now + self.cluster.starting_deadline
            self.transport.hello(self)
            return
        self.waits.passed(now)
        if self.transport.lossy:
            self.send_again()
        want = self.waiting
        if self.done or want is None:
            return
        lacking = self.mailbox.lacking(want)
        self.watcher.late(self, want, lacking)
        waited = now - self.waits.quiet
        if waited > self.cluster.give_up and not self.starting:
            self._fail(
                GaveUp(
                    f"{self.name} waited {waited:.0f} s for {want.kind} of step {want.step} from "
                    f"{', '.join(lacking)}, and gave up"
                )
            )
            return
        if want.news:
            self._ask_if_behind(want)
        if any(each.enough is not None or each.news for each in self.waits.wants):
            self._look(None)
        if self.waiting is want:
            self._ask_if_behind(want)

    def resume(self) -> None:
        """Go on after a computation."""
        self._run(None)

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
            and self.waits.first
            and self.mailbox.reached(want.kind, want.f + 1) < 0
        )

    # For the text.
    async def first(self, *wants: Want) -> Received:
        """Wait for the first of some wants."""
        return await messages(wants)

    async def collect(
        self, kind: str, step: int, q: int, f: int = 0, *, enough: int | None = None
    ) -> list[Vector]:
        """Wait for q messages of a step; return the vectors in the order of their senders.

        After the deadline `enough` of them will do: then there is NaN where nothing has come.
        """
        return (await messages((Want(kind, step, q, f, enough=enough),))).rows

    async def latest(self, kind: str, step: int, q: int, f: int = 0) -> tuple[int, list[Vector]]:
        """Wait for q messages of one step, this or a later one; return it and the vectors."""
        received = await messages((Want(kind, step, q, f, later=True),))
        return received.step, received.rows

    async def gradient(self, step: int, model: Vector) -> Vector:
        """Return what this worker has to send for a step, at a model."""
        await computation()
        found: Vector = self._work(self, step, model)
        return found

    def request(self, peer: str, kind: str, step: int) -> None:
        """Ask a peer for what is only taken if it was asked for."""
        self._asked = {each for each in self._asked if each[2] == step} | {(peer, kind, step)}
        self.transport.ask(self, peer, kind, step)

    def settle(self, want: Want, received: Received, seconds: float) -> Received:
        """Take note of what a text has made of messages: as if it had been waited for."""
        if received.rows:
            self.waits.settled()
        self.collected[received.kind] = received
        self.watcher.collected(self, want, received, seconds)
        return received

    # Inside.

    def _start(self) -> None:
        if self.done or self._coroutine is not None or not self._greetings.are_enough():
            return
        self.started = True
        own = [steps for kind, steps in self.kept.items() if is_own_word(kind)]
        known = max((step for steps in own for step in steps), default=-1)
        self.muted = self._greetings.silent_until(known)
        self.send_again()
        text = self.cluster.text
        self._coroutine = (text.server if self.role == "server" else text.worker)(
            self, self, self.cluster
        )
        self._run(None)

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
                self.waiting = request[0]
                self.waits.begin(request, self.transport.now())
                moved = [
                    part
                    for want in request
                    for part in self.mailbox.kinds_of(want)
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

    def _ready(self, kind: str | None) -> Received | None:
        """Return what ends the wait, if it is there."""
        found = self.waits.ready(kind, self.transport.now())
        if found is None:
            return None
        want, received, seconds = found
        self.waiting = None
        return received if want.news else self.settle(want, received, seconds)

    def _ask_if_behind(self, want: Want) -> None:
        """Ask for what will do instead, if a peer that is honest has gone on, or may have."""
        gone = self.mailbox.reached(want.kind, want.f + 1) > want.step
        if self.waits.long:  # who has gone on need not say so in this kind, nor may f others
            gone = gone or self.mailbox.anybody_past(want.step)
        if want.later or not (gone or want.news):
            return
        for other in self.waits.wants:
            if other.later:
                for peer in self.mailbox.senders[other.kind]:
                    if peer != self.name:
                        self.transport.ask(self, peer, other.kind, other.step)

    def _fail(self, error: Exception) -> None:
        self.error, self.done, self.waiting = error, True, None
        if self._coroutine is not None:
            self._coroutine.close()
        self.watcher.ended(self)
