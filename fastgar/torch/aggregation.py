"""One aggregation over a process group: vectors are sent, a decision is made, results come back.

A gradient may come as several vectors (buckets, dtypes). Where distances decide, they are those of
the whole gradient: every rank adds up what the columns that it sees contribute, all ranks add those
sums up in the order of ranks, and so all have the same bits and derive the same weights.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fastgar.arrays import reference, table
from fastgar.errors import TooManyFaults
from fastgar.geometry import Decision
from fastgar.pipeline import Rule
from fastgar.report import usage, weigh

from .errors import TooManyFaultyRanks
from .exchange import Exchange, Slab
from .group import Peers
from .window import Window

__all__ = ["Aggregation", "is_finite"]

Array = NDArray[np.float64]
SAMPLE = 512  # columns of a vector in which a report looks at what a column rule used


class Aggregation:
    """The aggregation of one gradient.

    Parameters
    ----------
    rule : Rule
    peers : Peers
    exchange : Exchange
    checked : bool
        Whether it is known already that not too many ranks are faulty.
    reported : bool
        Whether the weights of the ranks will be asked for.
    beside : Peers, optional
        Ranks that hold other columns of the same rows, and decide together with this one.
    """

    def __init__(
        self, rule: Rule, peers: Peers, exchange: Exchange, *, checked: bool = False,
        reported: bool = False, beside: Peers | None = None,
    ) -> None:  # fmt: skip
        self.rule, self.peers, self.exchange, self.beside = rule, peers, exchange, beside
        peers.require_whole()
        self.slabs: list[Slab] = []
        self.decision: Decision | None = None
        self.faulty: NDArray[np.bool_] = np.zeros(peers.n, bool)
        self._by_columns = rule.reads == 1
        if self._by_columns:
            self.decision = rule.decide(n=peers.n)
        self._checked = checked or not self._by_columns  # distances show who is faulty
        self._used: Array | None = (
            np.zeros(peers.n if self._by_columns else 1) if reported else None
        )
        self._sampled = 0.0
        self._D: Array | None = None
        self._arrived = 0
        self._columns = 0

    # ------------------------------------------------------------------------------- exchanges

    def send(
        self, vector: Tensor, into: Tensor | None = None,
        references: dict[str, Tensor] | None = None, offered: Window | None = None,
    ) -> Slab:  # fmt: skip
        """Begin to send a contiguous 1-D vector, the next part of this rank's gradient.

        The aggregate is written to `into`, which may be the vector; to new memory if that is None.
        """
        if not self._checked and self.exchange.shared:
            self.faulty[self.peers.rank] |= not is_finite(vector)
        slab = self.exchange.send(vector, self._columns, into, offered)
        end = slab.begin + slab.width
        if self.rule.refs:
            known = references or {}
            passed = {name: whole[slab.begin : end] for name, whole in known.items()}
            T = slab.table
            slab.refs = tuple(
                "origin" if name not in passed else reference(T, passed[name], name)
                for name in self.rule.refs
            )
        self._columns += len(vector)
        self.slabs.append(slab)
        return slab

    def advance(self, waiting: int = 1) -> None:
        """Work on what was sent, but for the last few vectors, which are still on their way.

        What is done, and so the order of exchanges, is the same on every rank.
        """
        while self._arrived < len(self.slabs) - waiting:
            slab = self.slabs[self._arrived]
            self.peers.wait(slab.arriving)
            self._arrived += 1
            if self._by_columns:
                if not self._checked and not self.exchange.shared:
                    self.faulty |= [not is_finite(row) for row in slab.rows]
                self._apply(slab)
            else:
                self._D = self.rule.measure(slab.table, slab.refs, self._D)

    def decide(self) -> Decision:
        """Return the decision, the same on every rank.

        Raises
        ------
        TooManyFaultyRanks
            On every rank alike.
        """
        self.advance(waiting=0)
        if self._by_columns:
            self._share_notes()
            assert self.decision is not None
            return self.decision
        assert self._D is not None
        D = self._sum(self._D)
        parts = [(slab.table, slab.refs) for slab in self.slabs]
        try:
            self.decision = self.rule.conclude(D, parts, self._sum)
        except TooManyFaults as error:
            raise self.complaint(error.rows, error.f) from None
        if self.decision.faulty is not None:
            self.faulty = self.decision.faulty
        return self.decision

    def finish(self) -> list[Tensor]:
        """Return the aggregate of each vector that was sent."""
        self.decide()
        for slab in self.slabs:
            if slab.result is None:
                self._apply(slab)
        self.settle()
        self.rule.advance()
        return [self.exchange.collect(slab) for slab in self.slabs]

    def settle(self) -> None:
        """Wait for everything that is on its way."""
        for slab in self.slabs:
            self.peers.wait(slab.gathering)

    def own(self, slab: Slab) -> Tensor:
        """Return the aggregate of the columns that this rank sees."""
        assert self.decision is not None
        if not slab.width:
            return slab.vector.new_empty(0)
        first = slab.offset + slab.begin
        out = self.rule.apply(self.decision, slab.table, slab.refs, offset=first)
        result: Tensor = out.value()
        return result

    def _apply(self, slab: Slab) -> None:
        self._sample(slab)
        self.exchange.gather(slab, self.own(slab))

    # ---------------------------------------------------------------------- what all must know

    def _sum(self, partial: Array) -> Array:
        """Return the sum over all columns of what ranks have, added in the order of ranks."""
        total = partial
        for peers in (self.peers if self.exchange.shared else None, self.beside):
            if peers is not None:
                everyone = peers.exchange(total)
                total = everyone[0].copy()
                for other in everyone[1:]:
                    total += other
        return total

    def _share_notes(self) -> None:
        """Tell the others who was used, and whether this rank's gradient is not finite."""
        if self._used is None and self._checked:
            return
        used = np.zeros(self.peers.n) if self._used is None else self._used
        faulty = self.faulty.astype(np.float64)  # sharded, each rank knows of itself
        *notes, self._sampled = self._sum(np.concatenate([faulty, used, [self._sampled]]))
        self.faulty, self._used = np.array(notes[: len(used)]) != 0, np.array(notes[len(used) :])
        if not self._checked:
            self.require_few(self.faulty)

    def require_few(self, faulty: NDArray[np.bool_]) -> None:
        """Raise the error of a column rule if too many ranks are faulty."""
        self.faulty = faulty
        assert self.decision is not None
        statistic = self.decision.statistic
        assert statistic is not None
        f = 0 if statistic.kind == "mean" else statistic.faults
        if int(faulty.sum()) > f:
            raise self.complaint(np.flatnonzero(faulty).tolist(), f)

    def complaint(self, rows: Any, f: int) -> TooManyFaultyRanks:
        """Return the error for too many faulty ranks, after everything has arrived."""
        self.settle()
        for slab in self.slabs:
            self.exchange.release(slab)
        return TooManyFaultyRanks([self.peers.ranks[row] for row in rows], f, rows=rows)

    # --------------------------------------------------------------------------- who was used

    def _sample(self, slab: Slab) -> None:
        """Count in some of the columns which rows a statistic used."""
        assert self.decision is not None
        statistic, mix = self.decision.statistic, self.decision.mix
        if self._used is None or statistic is None or not slab.width:
            return
        step = -(-slab.width // SAMPLE)
        columns = torch.stack([row[::step] for row in slab.rows]).cpu()
        refs = ("origin",) * len(slab.refs)  # all that a mixing step knows
        count = columns.shape[1]
        self._used = self._used + count * usage(table(columns), statistic, refs, mix)
        self._sampled += count

    def weights(self) -> Array:
        """Return the weight of each rank, after `finish`; of a statistic, the share of columns."""
        decision, n = self.decision, self.peers.n
        assert decision is not None and self._used is not None
        if decision.weights is not None:
            return decision.weights[:n].copy()
        mix, counts, sampled = decision.mix, self._used, self._sampled
        if mix is not None:  # which was not known before: a column rule has told all already
            *parts, sampled = self._sum(np.append(np.zeros(len(mix)) + counts, sampled))
            counts = np.array(parts)
        return weigh(decision, counts / max(sampled, 1))[:n]


def is_finite(vector: Tensor) -> bool:
    """Return whether a vector holds neither NaN nor infinity, in one read and no memory."""
    if not vector.numel():
        return True
    wide = torch.float64 if vector.dtype == torch.float64 else torch.float32
    if bool(torch.isfinite(vector.sum(dtype=wide))):  # half the time of what follows
        return True
    return all(bool(torch.isfinite(extreme)) for extreme in torch.aminmax(vector))
