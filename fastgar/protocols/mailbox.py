"""What a node has received: at most two messages of a kind from a peer, each of another step."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from functools import wraps
from threading import RLock
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import TooManyFaults
from .pool import Pool

__all__ = ["Mailbox", "Received", "TooManyFaulty", "Verdict", "Want"]

Vector = NDArray[Any]

WINDOW = 2  # steps of which a node holds, and keeps for others, the messages


class Verdict(Enum):
    """What becomes of a message: taken, skipped (old, or a second one), or not yet to be read."""

    TAKE = "take"
    SKIP = "skip"
    LATER = "later"


@dataclass(frozen=True)
class Want:
    """What a node waits for: q messages of one kind and step, of which at most f are not finite.

    Attributes
    ----------
    kind : str
    step : int
    q : int
        How many, the node's own included if it is given.
    f : int
        How many of the senders may lie.
    own : array, optional
        What the node itself has to say.
    later : bool
        Whether any later step will do as well.
    enough : int, optional
        How many will do when the deadline has passed: the others have holes then. Where any later
        step will do, the others are left out: those that have not come some deadlines after the
        first so many of that step, see `fastgar.protocols.waits`. If 0, nothing is what comes of
        it, so that a text hears of the deadline.
    patience : int
        How many deadlines have to pass, each twice as long as the one before it.
    news : tuple of str
        If there are any: what is waited for is that more than q messages of these kinds have come
        since the node began, or the deadline. Nothing is what comes of it: a text that makes more
        of messages than rows looks at them by itself.
    """

    kind: str
    step: int
    q: int
    f: int = 0
    own: Vector | None = None
    later: bool = False
    enough: int | None = None
    patience: int = 1
    news: tuple[str, ...] = ()


@dataclass(frozen=True)
class Received:
    """What came of a want: rows in the order of the nodes' names.

    Those of `holes` have not come whole: what is missing is NaN. Those of `faulty` have sent NaN or
    infinity; their rows may be among the others or not. It is `late` if what was waited for was
    news, and the deadline has passed.
    """

    kind: str
    step: int
    names: tuple[str, ...]
    rows: list[Vector]
    holes: tuple[str, ...] = ()
    faulty: tuple[str, ...] = ()
    late: bool = False


class TooManyFaulty(TooManyFaults):
    """Everybody has sent, and more of them than may lie have sent NaN or infinity."""

    def __init__(self, want: Want, names: Sequence[str], rows: Sequence[int]) -> None:
        super().__init__(rows, want.f)
        self.args = (
            f"{', '.join(names)} sent NaN or infinity as {want.kind} of step {want.step}, and "
            f"f = {want.f}",
        )


def locked(method: Callable[..., Any]) -> Any:
    """Let one thread at a time into a method: messages come in threads of their own."""

    @wraps(method)
    def inside(self: Mailbox, *arguments: Any) -> Any:
        with self.lock:
            return method(self, *arguments)

    return inside


class Mailbox:
    """Messages by kind, step and peer.

    Parameters
    ----------
    me : str
        The node's name.
    senders : mapping of str to sequence of str
        For each kind, who sends it, in the order in which rows are handed on.
    latest : collection of str
        The kinds of which a newer step replaces an older one; the others are held until they are
        asked for.
    parts : mapping of str to sequence of str
        For each kind that comes in pieces, the kinds of the pieces.
    """

    def __init__(
        self,
        me: str,
        senders: Mapping[str, Sequence[str]],
        latest: Sequence[str] = (),
        parts: Mapping[str, Sequence[str]] = MappingProxyType({}),
    ) -> None:
        self.me, self.lock, self.parts = me, RLock(), parts
        self.senders = {kind: tuple(names) for kind, names in senders.items()}
        self.newest = {kind: dict.fromkeys(names, -1) for kind, names in self.senders.items()}
        self.excluded: set[str] = set()
        self._families: dict[str, list[str]] = {}
        for kind in self.senders:
            self._families.setdefault(kind.partition("/")[0], []).append(kind)
        self._pools: dict[str, Pool] = {}
        self._arrived = dict.fromkeys(self.senders, 0)
        self._latest = frozenset(latest)
        self._floor = dict.fromkeys(self.senders, 0)
        self._held: dict[str, dict[int, dict[str, Vector]]] = {kind: {} for kind in self.senders}
        self._steps: dict[str, dict[str, list[int]]] = {
            kind: {name: [] for name in names} for kind, names in self.senders.items()
        }

    @locked
    def verdict(self, peer: str, kind: str, step: int) -> Verdict:
        """Return what would become of a message, and remember that the peer has come so far."""
        newest = self.newest[kind]
        if peer in self.excluded:
            return Verdict.SKIP
        if step > newest[peer]:
            newest[peer] = step
        steps = self._steps[kind][peer]
        if step < self._floor[kind] or step in steps:
            return Verdict.SKIP
        if len(steps) < WINDOW:
            return Verdict.TAKE
        if kind not in self._latest:
            return Verdict.LATER
        return Verdict.TAKE if step > min(steps) else Verdict.SKIP

    @locked
    def put(self, peer: str, kind: str, step: int, vector: Vector) -> None:
        """Keep a message that is to be taken."""
        steps = self._steps[kind][peer]
        if len(steps) == WINDOW:
            self._drop(peer, kind, min(steps))
        steps.append(step)
        self._arrived[kind] += 1
        self._held[kind].setdefault(step, {})[peer] = vector

    @locked
    def exclude(self, peer: str) -> None:
        """Drop what has come from a peer, and take nothing from it any more."""
        self.excluded.add(peer)
        for kind, peers in self._steps.items():
            for step in list(peers.get(peer, ())):
                self._drop(peer, kind, step)

    @locked
    def arrived(self, kinds: Sequence[str]) -> int:
        """Return how many messages of some kinds have been taken."""
        return sum(self._arrived[each] for kind in kinds for each in self.family(kind))

    @locked
    def held(self, kind: str, step: int) -> dict[str, Vector]:
        """Return what is held of a kind and step, by sender."""
        return dict(self._held[kind].get(step, {}))

    def family(self, kind: str) -> list[str]:
        """Return the kinds as which a kind comes: itself, or its copies."""
        return self._families.get(kind, [])

    @locked
    def forget_before(self, kind: str, step: int) -> bool:
        """Drop what is older than a step, and say whether there was something."""
        if step <= self._floor[kind]:
            return False
        self._floor[kind] = step
        old = [held for held in self._held[kind] if held < step]
        for held in old:
            for peer in list(self._held[kind][held]):
                self._drop(peer, kind, held)
        return bool(old)

    @locked
    def reached(self, kind: str, k: int) -> int:
        """Return the step that at least k senders of a kind have come to, as far as is known."""
        steps = sorted(self.newest[self.parts_of(kind)[0]].values(), reverse=True)
        return steps[k - 1] if 0 < k <= len(steps) else -1

    @locked
    def anybody_past(self, step: int) -> bool:
        """Return whether anything has come from anybody for a later step."""
        return any(max(of.values(), default=-1) > step for of in self.newest.values())

    @locked
    def lacking(self, want: Want) -> list[str]:
        """Return whose messages a want lacks."""
        if want.later:
            held = self._held[want.kind]
            have = {peer for step, rows in held.items() if step >= want.step for peer in rows}
        else:
            have = self.whole(want)
        for kind in want.news:
            if kind in self._held:
                have &= self._held[kind].get(want.step, {}).keys()
        mine = self.me if want.own is not None else None
        return [name for name in self._order(want.kind) if name not in have and name != mine]

    @locked
    def whole(self, want: Want) -> set[str]:
        """Return who has sent all pieces of what is wanted of one step."""
        parts = [self._held[part].get(want.step, {}) for part in self.parts_of(want.kind)]
        return set(parts[0]).intersection(*parts[1:])

    def parts_of(self, kind: str) -> Sequence[str]:
        """Return the kinds of the pieces of a kind; itself if it comes in one."""
        return self.parts.get(kind) or (kind,)

    def kinds_of(self, want: Want) -> list[str]:
        """Return the kinds of the messages that a want is about."""
        return [
            *self.parts_of(want.kind),
            *(each for kind in want.news for each in self.family(kind)),
        ]

    @locked
    def steps_of(self, want: Want) -> list[int]:
        """Return the steps of which as many messages are there as will do."""
        held = self._held[want.kind].items()
        least = want.q if want.enough is None else want.enough
        return [step for step, rows in held if step >= want.step and len(rows) >= least]

    @locked
    def look(self, want: Want, late: bool = False, few: Collection[int] = ()) -> Received | None:
        """Return what is wanted if it is there, or what will do if it is late, or of some steps.

        Raises
        ------
        TooManyFaulty
            If everybody has sent, and too many vectors hold NaN or infinity.
        """
        if want.news:
            come = late or self.arrived(want.news) > want.q
            return Received(want.kind, want.step, (), [], late=late) if come else None
        if want.kind in self.parts:
            found = self._joined(want)
            return self._in_part(want) if found is None and late and want.enough else found
        held = self._held[want.kind]
        steps: Sequence[int] = (want.step,)
        if want.later:
            steps = sorted((step for step in held if step >= want.step), reverse=True)
        least = [(step, want.q) for step in steps]
        least += [(step, want.enough or want.q) for step in steps if step in few]
        for step, number in least:
            found = self._found(want, step, held.get(step), number)
            if found is not None:
                return found
        return Received(want.kind, want.step, (), []) if late and want.enough == 0 else None

    @property
    def size(self) -> int:
        """Bytes held."""
        return sum(
            vector.nbytes
            for steps in self._held.values()
            for rows in steps.values()
            for vector in rows.values()
        )

    def _order(self, kind: str) -> tuple[str, ...]:
        return self.senders[self.parts_of(kind)[0]]

    def _joined(self, want: Want) -> Received | None:
        """Return the rows of a kind that comes in pieces, if they are whole."""
        parts = [self._held[part].get(want.step, {}) for part in self.parts[want.kind]]
        if min(map(len, parts)) < want.q:
            return None
        rows = {
            name: self._row(want.kind, [part[name] for part in parts]) for name in self.whole(want)
        }
        return self._found(want, want.step, rows, want.q)

    def _row(self, kind: str, parts: Sequence[Vector]) -> Vector:
        """Return pieces as one vector, in memory that nobody else refers to any more."""
        if len(parts) == 1:
            return parts[0]
        pool = self._pools.setdefault(kind, Pool(sum(map(len, parts)), parts[0].dtype))
        return np.concatenate(parts, out=pool.take())

    def _in_part(self, want: Want) -> Received | None:
        """Return the rows of everybody, with holes, if enough are whole, and f at most are not."""
        parts = [self._held[part].get(want.step, {}) for part in self.parts[want.kind]]
        whole, order = self.whole(want), self._order(want.kind)
        good = [name for name in whole if all(is_finite(part[name]) for part in parts)]
        if len(whole) < (want.enough or 0) or len(good) < max(1, len(order) - want.f):
            return None
        pairs = [(part, np.full_like(part[good[0]], np.nan)) for part in parts]
        rows = [
            self._row(want.kind, [part.get(name, hole) for part, hole in pairs]) for name in order
        ]
        missing = tuple(name for name in order if name not in whole)
        faulty = tuple(name for name in order if name in whole and name not in good)
        return Received(want.kind, want.step, order, rows, missing, faulty)

    def _found(
        self, want: Want, step: int, rows: dict[str, Vector] | None, least: int
    ) -> Received | None:
        """Return q of some rows, or what there is of them if that is the least that will do."""
        own = want.own is not None
        if rows is None:
            rows = {}
        if len(rows) + own < least:
            return None
        order = self._order(want.kind)
        finite = [peer for peer, vector in rows.items() if is_finite(vector)]
        holes = [peer for peer in rows if peer not in finite] if len(finite) < len(rows) else []
        faulty = tuple(name for name in order if name in holes)
        chosen = (finite + holes[: want.f])[: want.q - own]
        if len(chosen) + own < least:
            if len(rows) + own == len(order):
                raise TooManyFaulty(want, faulty, [order.index(name) for name in faulty])
            return None
        if own:
            chosen.append(self.me)
        names = tuple(name for name in order if name in chosen)
        if own:
            rows = {**rows, self.me: want.own}  # type: ignore[dict-item]
        return Received(want.kind, step, names, [rows[name] for name in names], faulty=faulty)

    def _drop(self, peer: str, kind: str, step: int) -> None:
        self._steps[kind][peer].remove(step)
        rows = self._held[kind][step]
        del rows[peer]
        if not rows:
            del self._held[kind][step]


def is_finite(vector: Vector) -> bool:
    """Return whether a vector holds neither NaN nor infinity."""
    with np.errstate(over="ignore", invalid="ignore"):
        if np.isfinite(vector.sum()):  # a sum that overflows says nothing
            return True
    return bool(np.isfinite(vector).all())
