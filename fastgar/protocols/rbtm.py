"""The agreement "rbtm": servers gather by reliable broadcast, and take the trimmed mean.

Of n servers f may lie: n >= 3 f + 1 is what this needs, and ByzSGD has n >= 3 f + 2. A gather:

1. Each server sends its model to all, with its *seal*: its signature under the model's hash.
2. A server *vouches* for the first sealed model that it receives of each: by its own signature
   under that hash. As soon as it has n - f models it sends to all the list of what it vouches for
   ("echo"), and a longer list when there is more, n at most. It vouches for one model of a sender,
   ever: a list is on disk before it is sent, and a longer one goes on from the shorter.
3. A model is *accepted* by who holds it and the signatures of n - f servers that vouch for it.
   When n - f models are accepted, a server says whose, once ("core").
4. It goes on as soon as n - f servers, itself one of them, have said only what it has accepted
   itself; and takes of *all* that it has accepted the coordinate-wise mean without the f greatest
   and the f least.

What holds whatever liars say, whom they say it to, and whoever hears whom when:

- *One model of a sender.* Of two sets of n - f servers n - 2f >= f + 1 are in both, so that one of
  these is honest. It would have vouched for two models of one sender, which it does not do.
- *The honest range.* At least n - f >= 2f + 1 models are accepted, of which at most f are lies, and
  f are taken off at either end.
- *The spread shrinks.* Two honest servers have both waited for the word of one honest server, again
  as n - f and n - f overlap. What that one said it had accepted, n - f models, both have among
  theirs, and f others at most. Look at any threshold between the least and the greatest honest
  value: if c of the n - f lie above it, the trimmed mean has a share of at most min(c, n - 2f) and
  at least max(c - f, 0) of n - 2f above it. So two servers differ by at most f / (n - 2f) of the
  honest spread, in each coordinate.
- *All come through.* All honest servers receive, vouch for and accept each other's models, so all
  get to 3. What one of them said it had accepted the others can accept, too: from the model, and
  n - f signatures that anybody can check. Who lacks a model when a deadline has passed asks those
  who have said that they accepted it ("relay"). An honest one wrote it to disk before it said so,
  and keeps it for as long as what it sent itself: two gathers. Who is further behind catches up, as
  everywhere in ByzSGD: when a deadline has passed it asks for later models, too. Who has caught up
  in the midst of a gather still vouches in it, and says what it has accepted, until the next one.

Two seals of one server that differ convict it, see `fastgar.protocols.evidence`. Nobody vouches for
who is convicted. Nothing above needs that, and what was accepted stays accepted.

====================== ========= =========== =============================
messages of a gather   dmc       rbtm        of these, of d numbers
====================== ========= =========== =============================
5 servers, f = 1       20        80          20
the same, 1 equivocates 20       61          20, and a proof, once
8 servers, f = 2       56        279         56
====================== ========= =========== =============================

Costs: of each pair of servers and direction one message of d numbers, as in "dmc", and two small
ones or a few more (80 n numbers an echo, of which there are at most f + 1, and n a core); of each
server n signatures and about n * n checks; and on disk the models of two gathers.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

import fastgar as fg

from .cluster import Cluster
from .evidence import PROOF
from .gathering import ENTRY, NEWS, Gathering
from .mailbox import Received, Want
from .node import Node
from .seals import SEAL, sealed
from .text import Kind

__all__ = ["KINDS", "gather", "trimmed"]

Vector = NDArray[Any]

KINDS = {
    "gather": Kind("server", ("server",), latest=True, more=SEAL, sealed=True),
    "echo": Kind("server", ("server",), latest=True, model=False, each=ENTRY, copies="f"),
    "core": Kind("server", ("server",), latest=True, model=False, each=1),
    "relay": Kind("server", ("server",), latest=True, more=SEAL, each=SEAL, copies="n", asked=True),
    "proof": Kind("server", ("server", "worker"), latest=True, model=False, more=PROOF, copies="n"),
}


async def gather(me: Node, net: Node, c: Cluster, t: int, theta: Vector) -> Received:
    """Return the models that all servers agree on, or later ones if the others have gone on."""
    began, me.aside = me.transport.now(), None
    known = Gathering(me, c, t)
    said = net.send(
        known.servers, "gather", t, sealed(me.transport.keys, me.name, "gather", t, theta)
    )
    known.model(me.name, said)
    late, turn = False, 0
    while True:
        come = me.mailbox.arrived(NEWS)
        known.go_on()
        rows = known.agreed()
        if rows is not None:
            want = Want("gather", t, known.enough, c.f_s)
            received = Received("gather", t, tuple(rows), list(rows.values()))
            return net.settle(want, received, me.transport.now() - began)
        if late:
            for i, peers in known.lacking():
                net.request(peers[turn % len(peers)], f"relay/{i}", t)
            turn += 1
        wait = Want("gather", t, come, c.f_s, own=theta, news=NEWS)
        got = await net.first(wait, c.of_later_models(t))
        if got.rows:
            me.aside = known.go_on
            return got
        late = got.late


def stay(me: Node, c: Cluster, t: int) -> None:
    """After a restart in a step: take part in the last gather, if it was left before its end."""
    last = t // c.gather_every * c.gather_every - 1
    said = me.kept.get("gather", {}).get(last)
    if said is not None:
        known = Gathering(me, c, last)
        known.model(me.name, said[0])
        me.aside = known.go_on


def trimmed(rows: list[Vector], f: int) -> Vector:
    """Return the mean without the f greatest and least of each coordinate.

    It is rounded once, so that it does not leave their range.
    """
    wide = np.stack(rows).astype(np.float64)
    found: Vector = fg.trimmed_mean(wide, f=f).astype(np.float32)
    return found
