"""Several servers, of which some may crash: the lowest that is alive leads. Nobody lies.

What a majority of the servers has stored is the history, and workers see nothing else. Messages
carry numbers: term * span + step. Each term has a leader, by turns. A server that has not heard
from the leader for some deadlines stands for a later term: it says what it has stored last, and
takes nothing of an earlier term any more. The leader of that term goes on from the newest model of
a majority, and nothing that workers ever saw is newer: so a leader that comes back finds no
majority for anything else.

It assumes that at most f_s of n_s >= 2 f_s + 1 servers are gone at a time, that what was saved
stays saved (a server that lost its disk must stay away), and that messages come at some time.
Clocks that run at any speed, and partitions, cost time and nothing else. A server that returns
follows until the leader is lost; then the lowest leads again. A worker that is shown a step once
more, by a new leader, counts it twice in its momentum.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from .cluster import Cluster
from .mailbox import Received, Want
from .node import Node

__all__ = ["later", "number_of", "server", "stamped", "worker"]

Vector = NDArray[Any]
Turn = tuple[int, Vector, bool]  # number to go on at, what is stored, and whether that was the end

STORED = np.zeros(1, np.float32)  # what there is to say by saying that a model is stored
PATIENCE = 3  # deadlines: what was lost is sent again after the first


async def server(me: Node, net: Node, c: Cluster) -> Any:
    """Lead or follow, and stand for each term before there is a model of it."""
    n, stored = me.restore(stored=stamped(me.initial, 0, c))
    over = False
    while not over:
        start = n - n % c.span
        if number_of(stored, c) < start:
            me.save(n, stored=stored)
            net.send(c.of_role("server"), "stand", start, stored)
        part = _lead if c.leader(n) == me.name else _follow
        n, stored, over = await part(me, net, c, n, stored)
    me.save(n, stored=stored)
    return net.send(c.names, "final", n, stored[:-2])


async def _follow(me: Node, net: Node, c: Cluster, n: int, stored: Vector) -> Turn:
    """Store what is proposed, and say so."""
    proposal = Want("proposal", n, 1, 1, later=True, enough=0, patience=PATIENCE)
    got = await net.first(proposal, *_changes(n, c))
    if got.kind != "proposal" or not got.rows:
        return _turn(got, c, n, stored)
    stored = stamped(got.rows[0], got.step, c)
    me.save(got.step + 1, stored=stored)
    net.send((c.leader(got.step),), "stored", got.step, STORED)
    return got.step + 1, stored, False


async def _lead(me: Node, net: Node, c: Cluster, n: int, stored: Vector) -> Turn:
    """Go on from the newest model of a majority; show workers what a majority has stored."""
    start = n - n % c.span
    if number_of(stored, c) < start:
        stand = Want("stand", start, c.q_s, c.q_s, own=stored, enough=0, patience=PATIENCE)
        got = await net.first(stand)
        if not got.rows:
            return _turn(got, c, n, stored)
        stored = max(got.rows, key=lambda row: number_of(row, c))
        n = start + c.step(number_of(stored, c))
    theta = stored[:-2]
    while True:
        stored = stamped(theta, n, c)
        me.save(n, stored=stored)
        net.send(c.of_role("server"), "proposal", n, theta)
        got = await net.first(Want("stored", n, c.q_s, own=STORED), *_changes(n, c))
        if got.kind != "stored" or c.step(n) == c.steps:
            return _turn(got, c, n, stored)
        net.send(c.of_role("worker"), "model", n, theta)
        got = await net.first(Want("gradient", n, c.q_w, c.f_w), *_changes(n, c))
        if got.kind != "gradient":
            return _turn(got, c, n, stored)
        theta = theta - c.lr(c.step(n)) * c.rule(got.rows, c.step(n))
        n += 1


async def worker(me: Node, net: Node, c: Cluster) -> Any:
    """Send the leader a gradient at the newest model, until one is the last."""
    n = me.restore()
    while True:
        model = Want("model", n, 1, 1, later=True)
        got = await net.first(model, Want("final", 0, 1, 1, later=True))
        n, (theta,) = got.step, got.rows
        if got.kind == "final":
            return theta
        gradient = await me.gradient(c.step(n), theta)
        me.save(n + 1)
        net.send((c.leader(n),), "gradient", n, gradient)
        n += 1


def _changes(n: int, c: Cluster) -> tuple[Want, Want]:
    """Return what ends a term: the last model, or somebody who stands for a later one."""
    after = n - n % c.span + c.span
    return Want("final", 0, 1, 1, later=True), Want("stand", after, 1, 1, later=True)


def _turn(got: Received, c: Cluster, n: int, stored: Vector) -> Turn:
    """Return where to go on after the end of a term, or of the run."""
    if got.kind == "stored":
        return n, stored, True
    if got.kind == "final":
        return got.step, stamped(got.rows[0], got.step, c), True
    if got.kind == "stand" and got.rows:
        return got.step, stored, False
    return later(n, c, led=number_of(stored, c) >= n - n % c.span), stored, False


def later(n: int, c: Cluster, *, led: bool) -> int:
    """Return the first number of the term to stand for after a leader was silent.

    If it has led in its term, that of the lowest other server; if it never did, of the next server.
    """
    term, servers = n // c.span, c.servers.count
    silent = term % servers
    wanted = silent + 1 if not led else int(silent == 0)
    return (term + 1 + (wanted - term - 1) % servers) * c.span


def stamped(theta: Vector, number: int, c: Cluster) -> Vector:
    """Return a model with its number as two more: they are exact below 2**24 terms and steps."""
    marks = np.array([number // c.span, number % c.span], np.float32)
    return np.append(theta, marks).astype(np.float32)


def number_of(stored: Vector, c: Cluster) -> int:
    """Return the number of a model that is stored."""
    term, step = stored[-2:].tolist()
    return int(term) * c.span + int(step)
