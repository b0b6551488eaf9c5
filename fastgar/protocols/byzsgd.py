"""ByzSGD: no machine is trusted, neither servers nor workers.

El-Mhamdi, Guerraoui, Guirguis, Hoang and Rouault, "Genuinely distributed Byzantine machine
learning", PODC 2020; Distributed Computing 35, 2022: the asynchronous algorithm. Its gather is the
agreement "dmc"; `fastgar.protocols.rbtm` is another.
"""

from __future__ import annotations

from typing import Any

import fastgar as fg

from . import rbtm
from .cluster import Cluster
from .mailbox import Received, Want
from .node import Node

__all__ = ["server", "worker"]


async def server(me: Node, net: Node, c: Cluster) -> Any:
    """Scatter: send the model, take q_w gradients, go a step. Gather, every T steps: agree."""
    t, theta = me.restore(theta=me.initial)
    while t < c.steps:
        net.send(c.of_role("worker"), "model", t, theta)
        got = await net.first(Want("gradient", t, c.q_w, c.f_w), c.of_later_models(t))
        if got.kind == "gradient":
            theta = theta - c.lr(t) * c.rule(got.rows, t)
            if (t + 1) % c.gather_every == 0:
                got = await _gather(me, net, c, t, theta)
        # The others have gone on without this one, or this was a gather.
        if got.kind == "gather" and c.agreement == "rbtm":
            theta = rbtm.trimmed(got.rows, c.f_s)
        elif got.kind != "gradient":
            theta = fg.median(got.rows, f=c.f_s)
        t = got.step if got.kind == "model" else t + 1
        me.save(t, theta=theta)
    return net.send(c.of_role("worker"), "model", t, theta)


async def _gather(me: Node, net: Node, c: Cluster, t: int, theta: Any) -> Received:
    """Exchange models: by what each has heard (dmc, as published), or by reliable broadcast."""
    if c.agreement == "rbtm":
        return await rbtm.gather(me, net, c, t, theta)
    theta = net.send(c.of_role("server"), "gather", t, theta)
    return await net.first(Want("gather", t, c.q_s, c.f_s, own=theta), c.of_later_models(t))


async def worker(me: Node, net: Node, c: Cluster) -> Any:
    """Take q_s models of one step, and send the gradient at their median."""
    t = me.restore()
    while True:
        t, models = await net.latest("model", t, c.q_s, c.f_s)
        theta = fg.median(models, f=c.f_s)
        if t == c.steps:
            return theta
        gradient = await me.gradient(t, theta)
        me.save(t + 1)
        net.send(c.of_role("server"), "gradient", t, gradient)
        t += 1
