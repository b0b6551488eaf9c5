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

from fastgar import primitives
from fastgar.arrays import reference, table
from fastgar.errors import TooManyFaults
from fastgar.geometry import Decision
from fastgar.pipeline import Rule
from fastgar.usage import usage, weigh

from .calls import Call
from .errors import TooManyFaultyRanks
from .exchange import Exchange, Ranges, Slab
from .group import Peers
from .sendable import is_finite
from .sums import Sums, total
from .window import Window

__all__ = ["Aggregation"]

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
        Ranks that hold other columns of the same rows, or copies of them, and decide together with
        this one.
    """

    def __init__(
        self, rule: Rule, peers: Peers, exchange: Exchange, *, checked: bool = False,
        reported: bool = False, beside: Peers | None = None,
    ) -> None:  # fmt: skip
        self.rule, self.peers, self.exchange, self.beside = rule, peers, exchange, beside
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
        self._alike: bool | None = None  # as far as this rank has looked at columns that are not 0
        self._D = Sums()
        self._left = False
        self._call: Call | None = None  # of the last vector
        self._arrived = 0
        self._columns = 0

    # ------------------------------------------------------------------------------- exchanges

    def begin(self, call: Call, vector: Tensor, copies: Ranges = ()) -> None:
        """Begin to send a vector in a call of its own, in the place of which the aggregate comes.

        `copies` are ranges of it that the ranks beside this one have, too.

        An error of that call, the same on every rank, may come in the next one or in `finish`: so
        no rank waits for the others here where all have memory in common.
        """
        offered = None if call.failure is not None else self.exchange.offer(vector)
        self.meet(call)
        if offered is None:  # nothing is sent, and no window opened, before all are known to do so
            if self.exchange.late:
                self.advance(waiting=0)
            self._check()
        self.send(vector, into=vector, offered=offered).copies = copies
        self.advance()

    def meet(self, call: Call) -> None:
        """Begin a call in which nothing is sent."""
        self._check()
        call.post()
        self._call = call

    def _check(self) -> None:
        """Raise, on every rank, where the ranks did not go together in the last call."""
        call, self._call = self._call, None
        if call is None:
            return
        try:
            call.check()
        except BaseException as error:
            if self.peers.knows(error):
                self._leave()
                self._left = True
            raise

    def tell_beside(self) -> None:
        """Tell the ranks beside this one, where they will decide, that all here have left."""
        if self._left and self.beside is not None:
            self._left, n = False, self.peers.n
            size = 2 * n + 1 if self._by_columns else (n + len(self.rule.refs)) ** 2
            self._add_beside(np.zeros(size), self.beside, leaving=True)

    def _leave(self) -> None:
        """Give back everything, once it has arrived, where all ranks leave."""
        for slab in self.slabs:
            self.peers.wait(slab.arriving)
        self.settle()
        self.exchange.memory.forget_windows()  # of vectors of other lengths, perhaps

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
        own = slice(slab.begin, slab.begin + slab.width)
        slab.passed = {name: whole[own] for name, whole in (references or {}).items()}
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
            slab.refs = tuple(
                reference(slab.table, slab.passed[name], name) if name in slab.passed else "origin"
                for name in self.rule.refs
            )
            if self._by_columns:
                if not self._checked and not self.exchange.shared:
                    self.faulty |= [not is_finite(row) for row in slab.rows]
                self._apply(slab)
            else:
                self._D.add(slab, self.rule.measure)

    def decide(self) -> Decision:
        """Return the decision, the same on every rank.

        Raises
        ------
        TooManyFaultyRanks
            On every rank alike.
        """
        self._check()
        self.advance(waiting=0)
        if self._by_columns:
            self._share_notes()
            assert self.decision is not None
            return self.decision
        try:
            self.decision = self._conclude(self._sum(self._value(self._D)))
        except TooManyFaults as error:
            self.faulty[list(error.rows)] = True
            raise self.complaint(error.rows, error.f) from None
        if self.decision.faulty is not None:
            self.faulty = self.decision.faulty
        return self.decision

    def _conclude(self, D: Array) -> Decision:
        """Return what follows from the distances, with another read where some row is very long."""
        rescale, inner = self.rule.wants_inner(D), None
        if rescale is not None:
            sums, read = Sums(), primitives.inner
            for slab in self.slabs:
                sums.add(slab, lambda T, refs, start: read(T, refs, *rescale, start=start))
            inner = self._sum(self._value(sums))
        return self.rule.decide(D, inner)

    def _value(self, sums: Sums) -> Array:
        """Return what this rank adds to the sum of all."""
        return sums.value(1 if self.beside is None else self.beside.n)

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
        if self.exchange.shared:
            partial = total(self.peers.exchange(partial))
        return partial if self.beside is None else self._add_beside(partial, self.beside)

    def _add_beside(self, partial: Array, beside: Peers, leaving: bool = False) -> Array:
        """Return the sum over the ranks beside this one, unless some of them leave this call."""
        everyone = beside.exchange(np.append(partial, leaving))
        absent = np.flatnonzero(everyone[:, -1])
        if len(absent) and not leaving:
            self._leave()
            complaint = ValueError(
                f"{beside.name(absent)} could not take part, and nothing was aggregated of the "
                "other shards of the same replica"
            )
            self.peers.know(complaint)
            raise complaint
        return total(everyone[:, :-1]).reshape(partial.shape)

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
        if columns.any():
            self._alike = self._alike is not False and bool((columns == columns[0]).all())
        self._used = self._used + count * usage(table(columns), statistic, refs, mix)
        self._sampled += count

    def weights(self) -> Array:
        """Return the weight of each rank, after `finish`; of a statistic, the share of columns."""
        decision, n = self.decision, self.peers.n
        assert decision is not None and self._used is not None
        if decision.weights is not None:
            return weigh(decision, None)[:n]
        mix, counts, sampled = decision.mix, self._used, self._sampled
        if mix is not None:  # which was not known before: a column rule has told all already
            *parts, sampled = self._sum(np.append(np.zeros(len(mix)) + counts, sampled))
            counts = np.array(parts)
        return weigh(decision, counts / max(sampled, 1))[:n]

    def alike(self) -> bool:
        """Return whether all ranks sent the same, after `finish`; of a statistic, in a sample."""
        D = None if self.decision is None else self.decision.distances
        return bool(self._alike) if D is None else not D.any()
