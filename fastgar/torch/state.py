"""What a robust communication hook remembers from step to step."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from torch import Tensor, nn

from fastgar.errors import require_name
from fastgar.pipeline import Rule, rule

from .aggregation import Aggregation
from .calls import Call, agree, hashes
from .exchange import MODES, Ranges, exchange_of
from .group import Peers, configured, named, peers_of, ranks_of
from .memory import Memory
from .momentum import Momentum
from .report import RankReport, distrust
from .sendable import require_sendable
from .suspicion import ALARM, Events, Tally

__all__ = ["RobustState"]

Array = NDArray[np.float64]
log = logging.getLogger("fastgar.torch")
ALIKE = 3  # steps in a row in which all ranks send the same, after which the log says so
FIELDS = ("the rule", "f", "the step", "the mode", "momentum", "too_many")


class RobustState:
    """The state of `robust_hook`: the rule, momentum at the workers, and who was believed.

    `make_robust` makes and returns one.

    Parameters
    ----------
    rule : str or Rule
        A rule's name or a pipeline, as `fastgar.rule` takes it; the same on every rank.
    f : int, optional
        How many ranks may send anything.
    group : ProcessGroup, optional
        The process group of the model, if that is not the default group. The hook raises at the
        first bucket where the model has another.
    mode : {"sharded", "replicated"}
        Sharded: rank r aggregates the r-th range of columns for all. Ranks are trusted to
        aggregate, and only their gradients may be corrupt (bad data, a faulty GPU). Replicated:
        every rank gathers all gradients, from their owners, and aggregates for itself, so that no
        rank's word is taken for another's columns; it costs n d numbers of traffic and memory. A
        rank that sends different gradients to different ranks can still make their models differ
        (and CPUs of different kinds may round differently).
    momentum : float
        Momentum at the worker: each rank sends ``m = momentum * m + gradient`` instead of its
        gradient, which makes honest ranks alike. The optimizer must have none then, and there can
        be no `torch.amp.GradScaler`, which changes the scale of gradients between steps.
    too_many : {"raise", "nan"}
        What follows where more than f ranks sent NaN or infinity: `TooManyFaultyRanks` on every
        rank at the end of the backward pass, or a gradient of NaN on every rank, by which
        `torch.amp.GradScaler` skips the step.
    patience : int, optional
        A line is logged (by logger "fastgar.torch", on one rank) at once where a rank sends NaN or
        infinity, and where one is dropped in more steps than chance explains: that names an honest
        rank in one run of 1000, if all are alike (`fastgar.torch.suspicion`). With `patience`, also
        after so many steps in a row in which a rank was dropped, which chance does too. A line also
        says where all ranks sent the same gradient in 3 steps in a row.
    callback : callable, optional
        Called with the `RankReport` of every step.

    Attributes
    ----------
    report : RankReport or None
        On the last step.

    Examples
    --------
    >>> state = fgt.RobustState("median", f=1, group=model.process_group)  # doctest: +SKIP
    >>> model.register_comm_hook(state, fgt.robust_hook)  # doctest: +SKIP
    """

    def __init__(
        self,
        rule_: str | Rule,
        f: int | None = None,
        *,
        group: Any = None,
        mode: str = "sharded",
        momentum: float = 0.0,
        too_many: str = "raise",
        patience: int | None = None,
        callback: Callable[[RankReport], None] | None = None,
    ) -> None:
        require_name("mode", mode, MODES)
        require_name("way to go on with too many faulty ranks", too_many, ("raise", "nan"))
        if patience is not None and patience < 1:
            raise ValueError(f"patience must be at least 1 step, got {patience}")
        if dist.is_available() and dist.is_initialized():
            given = configured(rule_, f, dist.get_world_size(group))
        else:
            given = rule(rule_, f)  # ranks are counted when there are some
        if "reference" in given.refs:
            raise ValueError(
                f"{given} needs a trusted gradient in every step, which a hook does not have: call "
                "fgt.all_reduce(gradients, rule, reference=...) after the backward pass, or use "
                "monna(pivot=r), which trusts rank r"
            )
        self.rule = given.at(0)  # counts the steps of this model only
        self.group, self.mode, self.too_many = group, mode, too_many
        self.momentum = Momentum(momentum)
        self.patience, self.callback = patience, callback
        self.report: RankReport | None = None
        self.tally = Tally()
        self.alike = 0  # steps in a row in which all ranks sent the same
        self.memory = Memory()
        self.peers: Peers | None = None
        self.registered = False  # by `make_robust`: the group is that of the model
        self.underway: object = None  # of the hook: the buckets of this backward pass

    def begin(
        self, device: torch.device, group: Any, beside: Any = None, whole: bool = True
    ) -> Aggregation:
        """Return a new aggregation, for a gradient on that device."""
        near = None if beside is None else peers_of(beside)
        peers = self.join(group, near)
        exchange = exchange_of(self.mode, peers, self.memory, device, whole)
        return Aggregation(self.rule, peers, exchange, reported=True, beside=near)

    def join(self, group: Any, beside: Peers | None = None) -> Peers:
        """Return the ranks of the group, after checking that they go together with this state."""
        peers = peers_of(group)
        if self.peers is not peers:
            try:
                agree(peers, "RobustState", FIELDS, lambda: (None, 0.0, self._described(peers)))
            except BaseException:
                if beside is not None:
                    beside.exchange(np.ones(1))
                raise
            if beside is not None and beside.exchange(np.zeros(1)).any():
                raise ValueError("ranks that hold other shards of the same model did not agree")
            self.peers = peers
        return peers

    def call(
        self, peers: Peers, kind: str, place: Mapping[str, Any], vector: Tensor,
        parts: Callable[[], tuple[Sequence[Tensor], Sequence[Any], Ranges]],
    ) -> tuple[Call, Ranges]:  # fmt: skip
        """Return the call in which a vector is sent, with momentum, and which of it are copies.

        `place` is where in the step that is, in words and values, and the same on every rank;
        `parts` gives the gradients in the vector, what each is of, and ranges that are copies.
        """
        failure, copies = None, cast(Ranges, ())
        try:
            require_sendable(vector, peers.devices)
            gradients, owners, copies = parts()
            if self.momentum.factor:
                self.momentum.replace(vector, gradients, owners)
        except Exception as error:
            failure = error
        fields = {
            "the step": (self.rule.step, self.tally.step), **place,
            "shape and dtype of what is sent": (tuple(vector.shape), vector.dtype),
        }  # fmt: skip
        call = Call(peers, kind, list(fields), hashes(*fields.values()), failure=failure)
        return call, copies

    def _described(self, peers: Peers) -> list[float]:
        """Return what must be the same on every rank; raise if that cannot go with the ranks."""
        known = self.tally.n if self.peers is None else self.peers.n
        if known not in (0, peers.n):
            raise ValueError(
                f"this state has seen {known} ranks, and the group has {peers.n}: momentum and "
                "suspicion belong to ranks, so make a new RobustState for them"
            )
        own = ranks_of(self.group)
        if own != peers.ranks:
            raise ValueError(
                f"this RobustState is for the process group of {named(own)}, and the model's "
                f"DistributedDataParallel has that of {named(peers.ranks)}: call "
                "fgt.make_robust(model, ...), which takes it from there, or pass it as group="
            )
        configured(self.rule, None, peers.n)
        return hashes(
            str(self.rule), self.rule.f, (self.rule.step, self.tally.step), self.mode,
            self.momentum.factor, self.too_many,
        )  # fmt: skip

    def report_on(self, aggregation: Aggregation) -> None:
        """Take in what an aggregation that is finished found out about the ranks."""
        weights, decision = aggregation.weights(), aggregation.decision
        assert decision is not None
        self.account(
            aggregation.peers, weights, decision.scores, aggregation.faulty, aggregation.alike()
        )

    def account(
        self, peers: Peers, weights: Array, scores: Array | None, faulty: NDArray[np.bool_],
        alike: bool = False,
    ) -> None:  # fmt: skip
        """Take what a step found out about the ranks into the report."""
        if scores is not None and len(scores) != peers.n:
            scores = None  # they rank buckets, not ranks
        f = (peers.n - 1) // 2 if self.rule.f is None else self.rule.f
        step = self.tally.step
        dropped, distrusted = distrust(weights, scores, faulty, f)
        events = self.tally.count(distrusted, dropped, faulty, 1 - self.momentum.factor)
        self.report = RankReport(
            step, str(self.rule), peers.ranks, weights, scores, _named(faulty, peers),
            _named(dropped, peers), self.tally.suspicion(),
        )  # fmt: skip
        self.alike = self.alike + 1 if alike else 0
        self._log(dropped, events)
        if self.callback is not None:
            self.callback(self.report)

    def _log(self, dropped: NDArray[np.bool_], events: Events) -> None:
        """Say what is news of a rank, on the first rank that has not been dropped."""
        report, peers = self.report, self.peers
        assert report is not None and peers is not None
        if dropped.all() or int(np.argmin(dropped)) != peers.rank:
            return
        step, rule = report.step, report.rule
        if self.alike == ALIKE and peers.n > 1:
            log.warning(
                "all ranks sent the same gradient in %d steps in a row, up to step %d: is the "
                "sampler distributed?", ALIKE, step,
            )  # fmt: skip
        for rank in _named(events.not_finite, peers):
            log.warning("rank %d sent NaN or infinity in step %d: not finite", rank, step)
        for rank in _named(events.dropped_too_often, peers):
            log.warning(
                "rank %d is dropped by %s in more steps than chance explains, up to step %d (an "
                "honest rank is named so in one run of %.0f, if all have data alike)",
                rank, rule, step, 1 / ALARM,
            )  # fmt: skip
        if self.patience is not None:
            for rank in _named(self.tally.streak == self.patience, peers):
                log.warning(
                    "rank %d was dropped by %s in %d step%s in a row, up to step %d (patience)",
                    rank, rule, self.patience, "" if self.patience == 1 else "s", step,
                )  # fmt: skip

    def __repr__(self) -> str:
        """Return the rule, and how far it has come."""
        return f"<RobustState of {self.rule!r}, {self.mode}, after {self.tally.step} steps>"

    # ------------------------------------------------------------------------------ checkpoints

    def state_dict(self, model: nn.Module | None = None) -> dict[str, Any]:
        """Return what a checkpoint needs: momentum, suspicion, the count of steps.

        Parameters
        ----------
        model : Module, optional
            Whose parameters' names the momentum gets; required if there is momentum.

        Notes
        -----
        Momentum is a rank's own: every rank must save its state, and load that again.
        """
        return {
            "rule": repr(self.rule), "ranks": self.tally.n,
            "rank": None if self.peers is None else self.peers.rank,
            "draws": self.rule.step, "step": self.tally.step,
            "tally": {
                name: torch.from_numpy(value.copy())
                for name, value in vars(self.tally).items() if name != "step"
            },
            "momentum": self.momentum.state_dict(model),
        }  # fmt: skip

    def load_state_dict(self, saved: Mapping[str, Any], model: nn.Module | None = None) -> None:
        """Take up where `state_dict` was called.

        Raises
        ------
        ValueError
            The state of another rank, of another number of ranks or of other parameters.
        """
        if dist.is_available() and dist.is_initialized():
            n, rank = dist.get_world_size(self.group), dist.get_rank(self.group)
            if saved["ranks"] not in (0, n):
                raise ValueError(
                    f"this is the state of one of {saved['ranks']} ranks, and there are {n}: "
                    "momentum and suspicion belong to ranks, so begin with a new RobustState"
                )
            if saved["rank"] not in (None, rank):
                raise ValueError(
                    f"this is the state of rank {saved['rank']}, and here is rank {rank}: momentum "
                    "is a rank's own, so every rank must save and load its state"
                )
        self.momentum.load_state_dict(saved["momentum"], model)
        arrays = {name: value.cpu().numpy().copy() for name, value in saved["tally"].items()}
        self.tally = Tally(saved["step"], **arrays)
        self.rule.step = saved["draws"]


def _named(chosen: NDArray[np.bool_], peers: Peers) -> tuple[int, ...]:
    return tuple(peers.ranks[i] for i in np.flatnonzero(chosen))
