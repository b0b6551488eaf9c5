"""ByzSGD: no machine is trusted, neither servers nor workers.

El-Mhamdi, Guerraoui, Guirguis, Hoang and Rouault, "Genuinely distributed Byzantine machine
learning", PODC 2020; Distributed Computing 35, 2022: the asynchronous algorithm. Its gather is the
agreement "dmc"; `fastgar.protocols.rbtm` is another.

A server that the others have left behind catches up by models of a later step s, and stays safe:

- It takes the median of 2 f_s + 1, of which f_s may lie. Where these do not come, k >= f_s + 2
  will do, with 2 f_s + 1 - k copies of its own model: that is honest to itself, so that each
  coordinate lies within the range of honest models, its own among them. Two of k are honest, so
  that liars make up no step, nor a model.
- Before that it gives the others time, from when f_s + 2 models of one step have come: four
  deadlines, and not less than the longest. Of another step it gives the same, or, as the others may
  not stay at one for so long, until as many of a still later one have come. When f_s + 1 honest
  models of s are there by then, copies and lies are f_s at most, and the median lies within these
  models, however far behind its own is.
- If f_s >= 2, liars may still have it take its own old model for step s, with a network that holds
  back for so long what all but f_s honest servers say. Where f_s servers do that at once, the next
  gather may take all to it: back to where these were, however long ago. No choice among k models
  helps, as any two of them may be the honest ones; and to wait for more may be to wait for those
  who are gone. It would take signed models, 2 f_s + 2 of a step, passed on by who had them.
- It goes on with step s - 1, or with s if it has sent a model of s - 1 before, and takes part in a
  gather of s - 1. So nobody waits for a message that it has left out.

All come on when faults are over and liars silent for good. Let M be the newest step of an honest
server. The first one there had gradients of M - 1 of an honest worker, which had q_s >= 2 f_s + 2
models of M - 1: f_s + 2 honest servers have sent one, and keep it, as they are at M - 1 or M. So
who is before M - 1 can catch up. Then all honest servers, n_s - f_s >= q_s, have sent a model of
M - 1: no worker lacks one. If an honest worker has computed at M, f_s + 2 have sent models of M,
and the same holds of M. If not, all honest workers compute at M - 1, and all servers have gradients
of it, and the gather, if one is due, has all honest servers in it: they go to M. With "rbtm" who
has left a gather for the step after it takes part in it on the side, until the next one.
"""

from __future__ import annotations

from typing import Any

import fastgar as fg

from . import rbtm
from .cluster import Cluster
from .mailbox import Want
from .node import Node

__all__ = ["server", "worker"]


async def server(me: Node, net: Node, c: Cluster) -> Any:
    """Scatter: send the model, take q_w gradients, go a step. Gather, every T steps: agree."""
    t, theta = me.restore(theta=me.initial)
    if c.agreement == "rbtm":
        rbtm.stay(me, c, t)
    while t < c.steps:
        net.send(c.of_role("worker"), "model", t, theta)
        got = await net.first(Want("gradient", t, c.q_w, c.f_w), c.of_later_models(t))
        if got.kind == "gradient":
            theta = theta - c.lr(t) * c.rule(got.rows, t)
        else:
            theta = caught_up(got.rows, theta, c.f_s)
        if got.step > t + 1:
            t = got.step - 1
        elif (t + 1) % c.gather_every == 0:
            t, theta = await _gather(me, net, c, t, theta)
        else:
            t += 1
        me.save(t, theta=theta)
    return net.send(c.of_role("worker"), "model", t, theta)


def caught_up(rows: list[Any], own: Any, f: int) -> Any:
    """Return the median of others' models of a later step, filled up to 2 f + 1 with one's own."""
    return fg.median([*rows, *[own] * (2 * f + 1 - len(rows))], f=f)


async def _gather(me: Node, net: Node, c: Cluster, t: int, theta: Any) -> tuple[int, Any]:
    """Exchange models: by what each has heard (dmc, as published), or by reliable broadcast.

    Return the step that this leads to, and the model: the others may have gone on.
    """
    if c.agreement == "rbtm":
        got = await rbtm.gather(me, net, c, t, theta)
    else:
        theta = net.send(c.of_role("server"), "gather", t, theta)
        want = Want("gather", t, c.q_s, c.f_s, own=theta)
        got = await net.first(want, c.of_later_models(t))
    if got.kind == "model":
        return max(t + 1, got.step - 1), caught_up(got.rows, theta, c.f_s)
    found = rbtm.trimmed(got.rows, c.f_s) if c.agreement == "rbtm" else fg.median(got.rows, f=c.f_s)
    return t + 1, found


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
