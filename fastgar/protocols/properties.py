"""What must hold at every event of a simulated run; the numbers are those of the documentation.

==== ==========================================================================================
P1   after a gather each coordinate of an honest server lies within the honest servers' range
     before it; of a server that caught up, within their models of the step that it took, and its
     own where these were fewer than 2 f + 1
P2   a gather does not widen the spread of the honest servers that take part, in no coordinate
P3   with the agreement "rbtm" a gather leaves at most f / (n - 2 f) of that spread
P4   between gathers the distance of two honest servers grows in a step by at most the learning
     rate times the distance of what the rule made of their gradients, but for rounding (`growth`)
P5   after the last fault every honest node ends
P6   what a quorum holds is of the step that it is for, and was sent by whom it names (in a gather
     a server's own model, too: as others get it); no honest node is past a step that a quorum has
     not reached
P7   one message of a kind, step and peer is accepted in a life of a node
P8   a node holds at most two messages of each kind and peer
P10  an honest node never sends two different messages of a kind and step
P12  where one server leads after another, all models of a step that workers see are the same, and
     a quorum has stored each
P13  with "rbtm" no two honest servers use different models of one sender in a gather
P14  nobody convicts an honest node
==== ==========================================================================================

A protocol of one's own is held to P5, P7, P8, P10 and the first half of P6: what the others say is
of models, gradients and gathers as ours have them.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .cluster import Cluster
from .encoding import ROUNDING, numbers
from .mailbox import WINDOW, Received, Want
from .node import Node
from .registry import PROTOCOLS

__all__ = ["Broken", "Properties"]

Vector = NDArray[Any]

REMEMBERED = 64  # steps


class Broken(AssertionError):
    """A property that does not hold."""


class Properties:
    """Watches a run, and raises `Broken` when a property does not hold.

    Parameters
    ----------
    cluster : Cluster
    watcher : Watcher
        Who else watches.
    """

    def __init__(self, cluster: Cluster, watcher: Any) -> None:
        self.cluster, self.watcher = cluster, watcher
        lost = {
            name
            for line in cluster.perturb
            if line.startswith("lose")
            for name in cluster.names
            if name in line.replace(",", " ").split()
        }
        self.honest = frozenset(cluster.names) - cluster.liars - lost  # who keeps its word
        self._needed = {
            ("gradient", "server"): cluster.q_w,
            ("model", "worker"): cluster.q_s,
            ("model", "server"): min(2 * cluster.f_s + 1, cluster.f_s + 2),
            ("gather", "server"): cluster.servers.count - cluster.f_s
            if cluster.agreement == "rbtm"
            else cluster.q_s,
        }
        self._ours = PROTOCOLS.get(cluster.text.name) is cluster.text
        self._history: dict[int, Vector] = {}  # by step, what workers were shown
        self._moves: dict[int, dict[str, Vector]] = {}  # by step, what servers subtract
        self.gathers: list[tuple[int, float]] = []  # step, and the factor of the spread
        self._sent: dict[tuple[str, int], dict[str, Vector]] = {}
        self._forgotten: set[tuple[str, int]] = set()  # as late ones still send it again
        self._taken: dict[int, set[tuple[str, str, int]]] = {}
        self._nodes: dict[int, Node] = {}
        self._used: dict[int, dict[str, Vector]] = {}
        self._quorums: dict[tuple[str, str, int], Received] = {}
        self._last: dict[str, tuple[Want, Received]] = {}  # of each node
        self._gathered: dict[int, set[str]] = {}  # by step, whose models of it come of a gather

    def posted(self, sender: str, peer: str, kind: str, step: int, vector: Vector) -> None:
        """Check a message that is sent: P1, P2, P4, P6, P10."""
        if sender in self.honest and (kind, step) not in self._forgotten:
            sent = self._sent.setdefault((kind, step), {})
            before, said = sent.get(sender), numbers(vector)
            if before is None:
                sent[sender] = said
                self._first(sender, kind, step, said)
            elif before is not said and before.tobytes() != said.tobytes():
                raise Broken(f"P10: {sender} sent two different vectors as {kind} of step {step}")
        self.watcher.posted(sender, peer, kind, step, vector)

    def taken(self, node: Node, peer: str, kind: str, step: int, vector: Vector) -> None:
        """Check a message that is accepted: P7."""
        taken = self._taken.setdefault(id(node), set())
        self._nodes[id(node)] = node  # so that no other gets its id
        if (peer, kind, step) in taken:
            raise Broken(f"P7: {node.name} accepted {kind} of step {step} from {peer} twice")
        taken.add((peer, kind, step))
        self.watcher.taken(node, peer, kind, step, vector)

    def collected(self, node: Node, want: Want, received: Received, seconds: float) -> None:
        """Check a quorum: P6, P8."""
        kind, step, names = received.kind, received.step, received.names
        ours = self._ours and self.cluster.text.liars
        needed = self._needed[kind, node.role] if ours else want.q
        if want.enough == 0 and not names:
            needed = 0  # it was the deadline that came
        whole = len(names) - len(received.holes)
        if len(set(names)) != len(names) or whole < needed or len(received.rows) != len(names):
            raise Broken(f"P6: {node.name} took {names} as {needed} {kind}s of step {step}")
        if step != want.step and not (want.later and step > want.step):
            raise Broken(f"P6: {node.name} took {kind} of step {step} for {want.step}")
        for name, row in zip(names, received.rows, strict=True):
            if name in self.honest and (name != node.name or kind == "gather"):
                self._as_sent(node, kind, step, name, row, name in received.holes)
        if node.name in self.honest:
            self._quorums[node.name, kind, step] = received
            self._last[node.name] = want, received
            self._remember(step)
            if kind == "gather" and self.cluster.signs:
                self._agree(node, received)
        limit = sum(
            len(senders) * self.cluster.length(of, len(node.initial))
            for of, senders in node.mailbox.senders.items()
        )
        if node.mailbox.size > limit * WINDOW * node.initial.itemsize:
            raise Broken(f"P8: {node.name} holds {node.mailbox.size} bytes")
        self.watcher.collected(node, want, received, seconds)

    def convicted(self, node: Node, name: str, step: int) -> None:
        """Check who is convicted: P14."""
        if name in self.honest:
            raise Broken(f"P14: {node.name} convicted {name} of step {step}, and it is honest")
        self.watcher.convicted(node, name, step)

    def late(self, node: Node, want: Want, lacking: Sequence[str]) -> None:
        """Pass on that a deadline passed."""
        self.watcher.late(node, want, lacking)

    def ended(self, node: Node) -> None:
        """Check how a node ends: P5."""
        if isinstance(node.error, Broken):
            raise node.error
        if node.error is not None and node.name not in self.cluster.liars:
            raise Broken(f"P5: {node.name} ended at step {node.at}: {node.error}") from node.error
        if not self.cluster.text.liars and node.result is not None and node.name in self.honest:
            self._in_history(node.name, self.cluster.steps, node.result)
        self.watcher.ended(node)

    def ended_at(self, node: Node) -> float:
        """Return when a node ended."""
        result: float = self.watcher.ended_at(node)
        return result

    def unfinished(self, nodes: dict[str, Node], gone: Collection[str] = ()) -> Broken:
        """Return what is broken if a run does not end: P5."""
        where = ", ".join(
            f"{name} at step {nodes[name].at}" if name in nodes else f"{name} (dead)"
            for name in self.cluster.names
            if name not in self.cluster.liars
            and name not in gone
            and not (name in nodes and nodes[name].done)
        )
        return Broken(f"P5: not done: {where}")

    def _first(self, sender: str, kind: str, step: int, vector: Vector) -> None:
        """Check the first time that a vector is sent."""
        if not self._ours:
            return
        if not self.cluster.text.liars:
            if kind == "model":
                self._in_history(sender, self.cluster.step(step), vector)
                if (sender, "stored", step) not in self._quorums:
                    raise Broken(f"P12: {sender} showed a model of {step} before a quorum had it")
            return
        if kind.partition("/")[0] == "gradient":
            self._reached("model", step, self.cluster.q_s, sender)
            return
        if kind == "gather":
            self._grows(sender, kind, step, step)
        if kind != "model" or step == 0:
            return
        if sender not in self._last:
            raise Broken(f"P6: {sender} came to step {step} without a quorum")
        want, last = self._last[sender]
        came = last.kind, last.step
        if came == ("gather", step - 1):
            self._gathered.setdefault(step, set()).add(sender)
            self._within(sender, *came, vector)
        elif came in (("model", step), ("model", step + 1)):
            self._within(sender, *came, vector, self._own(sender, want, last))
        elif came == ("gradient", step - 1):
            self._reached("gradient", step - 1, self.cluster.q_w, sender)
            self._grows(sender, kind, step, step - 1)
        else:
            raise Broken(f"P6: {sender} came to step {step} without a quorum")

    def _own(self, sender: str, want: Want, received: Received) -> list[Vector]:
        """Return what a server that caught up may have put beside too few models of others."""
        if len(received.names) > 2 * self.cluster.f_s:
            return []
        said = [self._sent.get((kind, want.step - 1), {}) for kind in ("model", "gather")]
        return [each[sender] for each in said if sender in each]

    def _grows(self, sender: str, kind: str, step: int, t: int) -> None:
        """Check how far a server is from others after its step t: P4."""
        before, after = self._sent.get(("model", t), {}), self._sent[kind, step]
        quorum = self._quorums.get((sender, "gradient", t))
        if quorum is None or sender not in before:
            return  # it was silent for the step, as it had lost its disk
        moves = self._moves.setdefault(t, {})
        moves[sender] = self.cluster.lr(t) * np.asarray(self.cluster.rule(quorum.rows, t), float)
        for other in moves.keys() & after.keys() - {sender}:
            d = len(moves[sender])  # after which there may be a seal
            pairs = [(each[sender][:d], each[other][:d]) for each in (before, moves, after)]
            grown, most = growth(pairs, self.cluster.dtype(kind))
            if grown > most:
                raise Broken(
                    f"P4: in step {t} {sender} and {other} went apart by {grown:.6g}, and what "
                    f"they made of gradients only by {most:.6g}"
                )

    def _reached(self, kind: str, step: int, q: int, who: str) -> None:
        first, *_ = self.cluster.parts.get(kind, (kind,))
        there = len(self._sent.get((first, step), {}))
        senders = self.cluster.of_role(self.cluster.text.kinds[kind].senders)
        if there < q - len(set(senders) - self.honest):
            raise Broken(f"P6: {who} is past step {step}, to which {there} honest peers have come")

    def _as_sent(
        self, node: Node, kind: str, step: int, name: str, row: Vector, holes: bool
    ) -> None:
        """Check that a row is what its sender sent: P6."""
        parts = self.cluster.parts.get(kind, (kind,))
        ends = self.cluster.ends(len(row)) if kind in self.cluster.parts else [(0, len(row))]
        for part, (start, stop) in zip(parts, ends, strict=True):
            piece, sent = row[start:stop], self._sent.get((part, step), {}).get(name)
            if (part, step) in self._forgotten or (holes and np.isnan(piece).all()):
                continue
            if sent is None and name == node.name:
                continue  # it is silent
            if sent is None or sent[: len(piece)].tobytes() != piece.tobytes():  # then a seal
                raise Broken(
                    f"P6: {node.name} took as {part} of step {step} from {name} what it never sent"
                )

    def _in_history(self, who: str, step: int, vector: Vector) -> None:
        """Check that there is one model of a step: P12."""
        if self._history.setdefault(step, vector).tobytes() != vector.tobytes():
            raise Broken(f"P12: {who} has another model of step {step}: the history forks")

    def _within(
        self, sender: str, kind: str, step: int, vector: Vector, own: Sequence[Vector] = ()
    ) -> None:
        sent = self._sent.get((kind, step), {})
        before = np.stack([each[: len(vector)] for each in (*sent.values(), *own)])
        low, high = before.min(axis=0), before.max(axis=0)
        if not ((vector >= low) & (vector <= high)).all():
            raise Broken(f"P1: {sender} left the honest range in {kind} of step {step}")
        if kind == "gather" and len(before) > 1:
            models = self._sent[("model", step + 1)]
            after = np.stack([models[name] for name in self._gathered[step + 1]])
            wide, narrow = high - low, after.max(axis=0) - after.min(axis=0)
            if (narrow > wide).any():
                raise Broken(f"P2: the gather of step {step} widened the spread")
            if self.cluster.agreement == "rbtm":
                n, f = self.cluster.servers.count, self.cluster.f_s
                rounding = np.spacing(np.maximum(np.abs(low), np.abs(high)))
                if (narrow > wide * (f / (n - 2 * f)) + rounding).any():
                    raise Broken(f"P3: the gather of step {step} left too much of the spread")
            if len(after) == len(before) and wide.any():
                factor = float(np.sqrt(np.square(narrow).sum() / np.square(wide).sum()))
                self.gathers.append((step, factor))

    def _agree(self, node: Node, received: Received) -> None:
        """Check that honest servers use the same model of each sender: P13."""
        for name, row in zip(received.names, received.rows, strict=True):
            used = self._used.setdefault(received.step, {}).setdefault(name, row)
            if used.tobytes() != row.tobytes():
                raise Broken(
                    f"P13: {node.name} used another model of {name} than others at {received.step}"
                )

    def _remember(self, step: int) -> None:
        """Forget what is older than any honest node may still use."""
        if step % REMEMBERED:
            return
        alive = step - 4 * REMEMBERED
        for key in [key for key in self._sent if key[1] < alive]:
            del self._sent[key]
            self._forgotten.add(key)
        for old in [step for step in self._used if step < alive]:
            del self._used[old]
        for quorum in [key for key in self._quorums if key[2] < alive]:
            del self._quorums[quorum]
        for by_step in (self._moves, self._gathered):
            for t in [t for t in by_step if t < alive]:
                del by_step[t]


def growth(pairs: Sequence[tuple[Vector, Vector]], wire: str) -> tuple[float, float]:
    """Return by how much the distance of two servers has grown in a step, and the most it may: P4.

    Parameters
    ----------
    pairs : sequence of (array, array)
        Of the two servers: what they sent before the step, what they subtracted (learning rate
        times aggregate, in float64), and what they sent after it.
    wire : {"float32", "bfloat16"}
        As what it was sent.

    Notes
    -----
    A server computes theta' = fl(theta - fl(fl(lr) g)) in float32, where each fl errs by at most
    u = 2**-24 of its result, or by 2**-150 where that is subnormal. So in each coordinate theta' is
    off theta - lr g by at most u |theta'| + (2 u + u^2) lr |g|, in norm by as much of norms;
    3 u is more than 2 u + u^2. Of theta and theta' bfloat16 shows each number but for 2**-8 of it,
    or for 2**-134 where it is subnormal. The norms are of d squares in float64, which err by
    at most d + 4 roundings.
    """
    d, seen, u = len(pairs[0][0]), ROUNDING[wire], 2.0**-24
    before, moved, after = ([np.asarray(each, float) for each in pair] for pair in pairs)
    apart = [float(np.linalg.norm(a - b)) for a, b in (before, moved, after)]
    was, move, now = (sum(map(float, map(np.linalg.norm, pair))) for pair in (before, moved, after))
    rounding = seen * was + 3 * u * move + (seen + u * (1 + seen)) * now + d**0.5 * 2.0**-130
    computed = (d + 4) * 2.0**-52 * (was + move + now)
    return apart[2] - apart[0], apart[1] + rounding + computed
