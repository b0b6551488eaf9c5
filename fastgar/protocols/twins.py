"""Twins: a liar that is two correct instances with one name, of which each half hears one.

Bano, Sonnino, Chursin, Perelman, Li, Ching and Malkhi, "Twins: BFT systems made robust", OPODIS
2021. Both run the honest text and hear everybody, each after delays of its own, so they come to use
other messages, and say other things: to two peers at once (equivocation), and to one that hears now
this, now that one (amnesia). Nothing of it is an attack's code.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ..statistic import hash64, hash_key

__all__ = ["Split"]

SHORTEST, LONGEST = 2.0, 20.0  # times a latency and a computation, until another half hears it
LEAST = 1e-3  # seconds, where both take none


class Split:
    """Who hears which instance of one name, by turns.

    Parameters
    ----------
    others : sequence of str
        Who is divided.
    seed : int
        Two instances of one seed divide in the same way.
    usual : float
        Virtual seconds of a latency and a computation.
    """

    def __init__(self, others: Sequence[str], seed: int, usual: float) -> None:
        self.others, self.seed = tuple(others), seed
        share = float(hash64(hash_key(seed, 0), np.zeros(1, np.uint64))[0]) * 2.0**-64
        self.span = LEAST + (SHORTEST + (LONGEST - SHORTEST) * share) * usual
        self._turn, self._second = -1, frozenset[str]()

    def heard(self, peer: str, now: float) -> int:
        """Return which instance a peer hears at a time, 0 or 1."""
        turn = int(now / self.span)
        if turn != self._turn:
            n = len(self.others)
            order = np.argsort(hash64(hash_key(self.seed, turn + 1), np.arange(n, dtype=np.uint64)))
            half = order[: (n + turn % 2) // 2].tolist()
            self._turn, self._second = turn, frozenset(self.others[i] for i in half)
        return int(peer in self._second)
