"""What a node has received: at most two messages of a kind from a peer, each of another step."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from functools import wraps
from threading import RLock
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import TooManyFaults

__all__ = ["Mailbox", "Received", "Verdict", "Want"]

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
    """

    kind: str
    step: int
    q: int
    f: int = 0
    own: Vector | None = None
    later: bool = False


@dataclass(frozen=True)
class Received:
    """What came of a want: rows in the order of the nodes' names."""

    kind: str
    step: int
    names: tuple[str, ...]
    rows: list[Vector]


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
    """

    def __init__(
        self, me: str, senders: Mapping[str, Sequence[str]], latest: Sequence[str] = ()
    ) -> None:
        self.me, self.lock = me, RLock()
        self.senders = {kind: tuple(names) for kind, names in senders.items()}
        self.newest = {kind: dict.fromkeys(names, -1) for kind, names in self.senders.items()}
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
        self._held[kind].setdefault(step, {})[peer] = vector

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
        steps = sorted(self.newest[kind].values(), reverse=True)
        return steps[k - 1] if 0 < k <= len(steps) else -1

    @locked
    def lacking(self, want: Want) -> list[str]:
        """Return whose messages a want lacks."""
        held = self._held[want.kind]
        if want.later:
            have = {peer for step, rows in held.items() if step >= want.step for peer in rows}
        else:
            have = set(held.get(want.step, ()))
        mine = self.me if want.own is not None else None
        return [name for name in self.senders[want.kind] if name not in have and name != mine]

    @locked
    def look(self, want: Want) -> Received | None:
        """Return what is wanted if it is there.

        Raises
        ------
        TooManyFaults
            If everybody has sent, and too many vectors hold NaN or infinity.
        """
        held = self._held[want.kind]
        if not want.later:
            return self._found(want, want.step, held.get(want.step))
        for step in sorted((step for step in held if step >= want.step), reverse=True):
            found = self._found(want, step, held[step])
            if found is not None:
                return found
        return None

    @property
    def size(self) -> int:
        """Bytes held."""
        return sum(
            vector.nbytes
            for steps in self._held.values()
            for rows in steps.values()
            for vector in rows.values()
        )

    def _found(self, want: Want, step: int, rows: dict[str, Vector] | None) -> Received | None:
        own = want.own is not None
        if rows is None:
            rows = {}
        if len(rows) + own < want.q:
            return None
        order = self.senders[want.kind]
        finite = [peer for peer, vector in rows.items() if is_finite(vector)]
        holes = [peer for peer in rows if peer not in finite] if len(finite) < len(rows) else []
        chosen = (finite + holes[: want.f])[: want.q - own]
        if len(chosen) + own < want.q:
            if len(rows) + own == len(order):
                raise TooManyFaults([order.index(peer) for peer in holes], want.f)
            return None
        if own:
            chosen.append(self.me)
        names = tuple(name for name in order if name in chosen)
        if own:
            rows = {**rows, self.me: want.own}  # type: ignore[dict-item]
        return Received(want.kind, step, names, [rows[name] for name in names])

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
