"""AggregaThor: one trusted server, a robust rule, and gradients in pieces that may come too late.

Damaskinos, El-Mhamdi, Guerraoui, Guirguis and Rouault, "AggregaThor: Byzantine machine learning via
robust gradient aggregation", MLSys 2019. Multi-Krum is its weak resilience, Bulyan its strong one.

The server waits for all gradients until the deadline, and then for as many whole ones as it needs.
What has not come by then is a hole. So f_w counts the workers that lie and those that are gone or
late in the same step: the rule copes with f_w rows of both sorts together.

A worker does what it does for any trusted server (`vanilla`): take the model, send a gradient at
it. That the gradient goes in pieces is a matter of how it is sent.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from .cluster import Cluster
from .node import Node
from .vanilla import worker

__all__ = ["filled", "server", "worker"]

Vector = NDArray[Any]


async def server(me: Node, net: Node, c: Cluster) -> Any:
    """Send the model, take gradients until the deadline, fill their holes, go a step."""
    t, theta = me.restore(theta=me.initial)
    rows = [np.zeros_like(theta)] * c.n_w  # in the place of previous ones, after a restart, too
    while t < c.steps:
        net.send(c.of_role("worker"), "model", t, theta)
        got = await net.collect("gradient", t, c.n_w, c.f_w, enough=c.q_w)
        rows = [filled(row, before, c.holes) for row, before in zip(got, rows, strict=True)]
        theta = theta - c.lr(t) * c.rule(rows, t)
        t += 1
        me.save(t, theta=theta)
    return net.send(c.of_role("worker"), "model", t, theta)


def filled(row: Vector, before: Vector, holes: str) -> Vector:
    """Return a row with zeros or the numbers of the row before it where it is NaN, or as it is."""
    if holes == "nan":
        return row
    return np.where(np.isnan(row), np.float32(0) if holes == "zero" else before, row)
