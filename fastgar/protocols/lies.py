"""What lying nodes do: workers send what an attack makes of the honest ones, servers other models.

A liar runs the honest text. A lying worker computes what all honest workers would send at the model
that it has, which it can as it knows data and seed, and sends what the attack makes of that. A
lying server says something else than it computed, perhaps something else to everybody. Twins, of
servers or of workers, do none of this: each is two correct instances (`fastgar.protocols.twins`).
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ..attacks import View, attack, list_attacks
from ..errors import unknown
from ..statistic import hash_key
from .cluster import TWINS, Cluster
from .gathering import ENTRY
from .node import Node
from .seals import SEAL, as_numbers, digest_of, seal_of, sealed, statement

if TYPE_CHECKING:
    from .learning import Learning

__all__ = [
    "SERVER_ATTACKS", "Adversary", "Honest", "check_attacks", "check_machines", "lie_of",
    "relisted", "resealed", "work_of",
]  # fmt: skip

Vector = NDArray[Any]
Lie = Callable[[Node, str, int, Vector, str], "Vector | None"]

REMEMBERED = 64  # models at which the adversary knows what honest workers would send


class Honest:
    """The work of an honest worker: its gradient, or the sum of those so far as its momentum."""

    def __init__(self, cluster: Cluster, learning: Learning) -> None:
        self.cluster, self.learning = cluster, learning
        self.initial = learning.initial

    def __call__(self, node: Node, step: int, model: Vector) -> Vector:
        """Return what the worker sends."""
        worker = self.cluster.of_role("worker").index(node.name)
        found = self.learning.gradient(worker, step, model)
        mu = self.cluster.training.momentum
        if mu:
            before = node.arrays.get("momentum")
            if before is not None:
                found = found + np.float32(mu) * before
            node.arrays["momentum"] = found
        return found


class Adversary:
    """The work of lying workers.

    Parameters
    ----------
    cluster : Cluster
    learning : Learning
    """

    def __init__(self, cluster: Cluster, learning: Learning) -> None:
        self.cluster, self.learning = cluster, learning
        self.initial = learning.initial
        self.attack = attack(cluster.workers.attack)
        names = cluster.of_role("worker")
        self.honest = [i for i, name in enumerate(names) if name not in cluster.liars]
        self.liars = [i for i, name in enumerate(names) if name in cluster.liars]
        self._known: OrderedDict[tuple[int, bytes], Any] = OrderedDict()
        self._sums = np.zeros((len(names), len(learning.initial)), np.float32)
        self._summed = -1

    def __call__(self, node: Node, step: int, model: Vector) -> Vector:
        """Return what the worker sends."""
        key = step, model.tobytes()
        if key not in self._known:
            self._known[key] = self._rows(step, model)
            if len(self._known) > REMEMBERED:
                self._known.popitem(last=False)
        sent = self._known[key]
        place = self.liars.index(self.cluster.of_role("worker").index(node.name))
        row: Vector = sent[place] if sent.ndim == 2 else sent
        return row

    def _rows(self, step: int, model: Vector) -> Any:
        learning, mu = self.learning, np.float32(self.cluster.training.momentum)
        if self.attack.poisons:
            rows = learning.gradients(self.liars, step, model, labels=self.attack.labels)
            return self._with_momentum(rows, self.liars, step, mu)
        everybody = [*self.honest, *self.liars]
        rows = learning.gradients(everybody, step, model)
        sent = self._with_momentum(rows, everybody, step, mu)
        h = len(self.honest)
        view = View(
            q=len(self.liars),
            rule=self.cluster.aggregation.at(step),
            step=step,
            own=sent[h:],
            sampled=rows[:h],
            model=model,
            seed=self.cluster.training.seed,
        )
        return np.asarray(self.attack(sent[:h], view=view))

    def _with_momentum(self, rows: Any, who: list[int], step: int, mu: Any) -> Any:
        """Return sums as honest workers keep them: of the models that the adversary has seen."""
        if not mu:
            return rows
        sums = rows + mu * self._sums[who]
        if step > self._summed:
            self._sums[who], self._summed = sums, step
        return sums


def _random(node: Node, kind: str, step: int, vector: Vector, peer: str) -> Vector:
    return _noise(node, step, vector, "everybody")


def _reverse(node: Node, kind: str, step: int, vector: Vector, peer: str) -> Vector:
    return -vector


def _equivocate(node: Node, kind: str, step: int, vector: Vector, peer: str) -> Vector:
    return vector + _noise(node, step, vector, peer)


def _silence(node: Node, kind: str, step: int, vector: Vector, peer: str) -> None:
    return None


SERVER_ATTACKS: dict[str, Lie] = {
    "random": _random,
    "reverse": _reverse,
    "equivocate": _equivocate,
    "silence": _silence,
}


def _noise(node: Node, step: int, vector: Vector, peer: str) -> Vector:
    """Return a random vector of about the length of a model, another for each step and peer."""
    number = int.from_bytes(f"{node.name}/{peer}".encode()[-8:], "little")
    draw = np.random.default_rng(hash_key(hash_key(node.cluster.training.seed, step), number))
    scale = np.float32(np.sqrt(np.mean(np.square(vector))) + 1e-3)
    return scale * draw.standard_normal(len(vector), np.float32)


class _Drift:
    """A model that goes where an attack on the gradients would have it."""

    def __init__(self, cluster: Cluster) -> None:
        self.cluster, self.attack = cluster, attack(cluster.servers.attack)
        self.drift: Vector | None = None
        self.step = -1

    def __call__(self, node: Node, kind: str, step: int, vector: Vector, peer: str) -> Vector:
        got = node.collected.get("gradient")
        if got is not None and got.step > self.step:
            self.step = got.step
            honest = [
                row
                for name, row in zip(got.names, got.rows, strict=True)
                if name not in self.cluster.liars and name not in got.holes
            ]
            sent = np.asarray(self.attack(np.stack(honest), 1)).reshape(-1)
            moved = self.cluster.lr(self.cluster.step(got.step)) * (np.mean(honest, axis=0) - sent)
            self.drift = moved if self.drift is None else self.drift + moved
        if self.drift is None or len(self.drift) != len(vector):
            return vector
        return (vector + self.drift).astype(vector.dtype)


def resealed(lie: Lie) -> Lie:
    """Return a lie about models alone, with valid seals, where servers sign.

    So its author takes part in everything else, and is a worse neighbour than one who is silent.
    """

    def said(node: Node, kind: str, step: int, vector: Vector, peer: str) -> Vector | None:
        way = node.cluster.ways[kind.partition("/")[0]]
        if way.sealed:
            model = lie(node, kind, step, vector[:-SEAL], peer)
            keys = node.transport.keys
            return None if model is None else sealed(keys, node.name, kind, step, model)
        if way.model and not way.asked:
            return lie(node, kind, step, vector, peer)
        if kind.startswith("proof/"):  # it would be against itself, which knows what it has sealed
            return None
        if kind.startswith("echo/") and step in node.kept.get("gather", {}):
            model = lie(node, "gather", step, node.kept["gather"][step][0][:-SEAL], peer)
            return None if model is None else relisted(node, step, vector, model)
        return None if lie(node, kind, step, vector, peer) is None else vector

    return said


def relisted(node: Node, step: int, vector: Vector, model: Vector) -> Vector:
    """Return a list in which a node vouches for another model as its own."""
    keys, i = node.transport.keys, node.cluster.of_role("server").index(node.name)
    said, digest = sealed(keys, node.name, "gather", step, model), digest_of(model)
    signature = keys.sign(statement("received", node.name, "gather", step, digest))
    found = vector.copy()
    found[i * ENTRY : (i + 1) * ENTRY] = np.concatenate(
        [as_numbers(digest), seal_of(said), as_numbers(signature)]
    )
    return found


def lie_of(cluster: Cluster, name: str) -> Lie | None:
    """Return what a lying server makes of what it has to say; None for all other nodes."""
    if name not in cluster.liars - cluster.twins or cluster.role(name) == "worker":
        return None
    how = cluster.servers.attack
    return resealed(SERVER_ATTACKS[how] if how in SERVER_ATTACKS else _Drift(cluster))


def check_attacks(cluster: Cluster) -> None:
    """Raise the error that a lying node would, if there is no such attack."""
    if cluster.workers.attack not in ("none", TWINS):
        attack(cluster.workers.attack)
    how = cluster.servers.attack
    if how in ("none", TWINS, *SERVER_ATTACKS):
        return
    if how.split("(")[0].strip() not in list_attacks():
        raise unknown("attack of a server", how, {TWINS, *SERVER_ATTACKS, *list_attacks()})
    if attack(how).poisons:
        raise ValueError(f"{how} changes labels, of which a server has none")


def check_machines(cluster: Cluster) -> None:
    """Raise ValueError if a cluster can be simulated only."""
    if cluster.twins:
        raise ValueError(
            "twins are for fastgar simulate: on machines nodes refuse a second process with a key "
            "that another one uses"
        )


def work_of(cluster: Cluster, learning: Learning) -> Callable[[str], Any]:
    """Return the function from a node's name to its work."""
    honest = Honest(cluster, learning)
    lying = {name for name in cluster.of_role("worker") if name in cluster.liars - cluster.twins}
    adversary = Adversary(cluster, learning) if lying else None

    def work(name: str) -> Any:
        return adversary if name in lying else honest

    return work
