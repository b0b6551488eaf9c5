"""One server that everybody trusts, and the mean: what others are compared with."""

from __future__ import annotations

from typing import Any

from .cluster import Cluster
from .node import Node

__all__ = ["server", "worker"]


async def server(me: Node, net: Node, c: Cluster) -> Any:
    """Send the model, take q_w gradients, go a step along their mean."""
    t, theta = me.restore(theta=me.initial)
    while t < c.steps:
        net.send(c.of_role("worker"), "model", t, theta)
        theta = theta - c.lr(t) * c.rule(await net.collect("gradient", t, c.q_w, c.f_w), t)
        t += 1
        me.save(t, theta=theta)
    return net.send(c.of_role("worker"), "model", t, theta)


async def worker(me: Node, net: Node, c: Cluster) -> Any:
    """Take the model, and send a gradient at it."""
    t = me.restore()
    while True:
        t, (theta,) = await net.latest("model", t, 1)
        if t == c.steps:
            return theta
        gradient = await me.gradient(t, theta)
        me.save(t + 1)
        net.send(c.of_role("server"), "gradient", t, gradient)
        t += 1
