"""What a protocol computes when nothing goes wrong: one loop, no network."""

from __future__ import annotations

from typing import Any

from numpy.typing import NDArray

import fastgar as fg

from ..train.threads import threads_for
from .cluster import Cluster
from .encoding import numbers

__all__ = ["in_one_process"]

Vector = NDArray[Any]


class _Worker:
    """Who a work asks for its name and its arrays."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.arrays: dict[str, Vector] = {}


def in_one_process(cluster: Cluster, work: Any) -> Vector:
    """Return the final model of a cluster in which everybody hears everybody, and nobody lies.

    Parameters
    ----------
    cluster : Cluster
    work : callable
        As a node's.
    """
    workers = [_Worker(name) for name in cluster.of_role("worker")]
    theta: Vector = work.initial

    def sent(kind: str, vector: Vector) -> Vector:
        return numbers(cluster.encoded(kind, vector))

    with threads_for(len(theta), cluster.training):  # as in nodes: more of them, other last bits
        for t in range(cluster.steps):
            seen = sent("model", theta)
            if cluster.servers.count > 1:
                seen = fg.median([seen] * cluster.servers.count)
            gradients = [sent("gradient", work(worker, t, seen)) for worker in workers]
            theta = theta - cluster.lr(t) * cluster.rule(gradients, t)
            if "gather" in cluster.text.kinds and (t + 1) % cluster.gather_every == 0:
                theta = sent("gather", theta)
    return sent("model", theta)
