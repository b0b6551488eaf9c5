"""The robust counterpart of `torch.distributed.all_reduce`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fastgar.errors import SearchLimit, require_name
from fastgar.pipeline import Rule

from .aggregation import Aggregation
from .calls import agree, hashes
from .exchange import MODES, exchange_of
from .group import Peers, configured, peers_of
from .memory import memory_of
from .sendable import is_finite, require_sendable

__all__ = ["all_reduce"]

Tensors = Tensor | Sequence[Tensor] | Mapping[str, Tensor]
FIELDS = ("the rule", "f", "the rule's step", "the mode", "the tensors", "start or reference")


def all_reduce(
    tensors: Any,
    rule: str | Rule,
    f: int | None = None,
    *,
    group: Any = None,
    mode: str = "sharded",
    start: Any = None,
    reference: Any = None,
    out: Any = None,
) -> Any:
    """Return the robust aggregate of what the ranks of a group have.

    Parameters
    ----------
    tensors : tensor, sequence of tensors, or mapping of tensors
        This rank's row: the same shapes and dtypes on every rank (float16, bfloat16, float32 or
        float64). Several tensors are one row: distances are those of the whole. Not written,
        unless they are `out`.
    rule : str or Rule
        A rule's name or a pipeline, as `fastgar.rule` takes it; the same on every rank.
    f : int, optional
        How many ranks may send anything.
    group : ProcessGroup, optional
        The default group if None.
    mode : {"sharded", "replicated"}
        Sharded: rank r aggregates the r-th range of columns for all. Ranks are trusted to
        aggregate, and only what they send may be corrupt (bad data, a faulty GPU). Replicated:
        every rank gathers all rows, from their owners, and aggregates for itself, so that no rank's
        word is taken for another's columns; it receives n d numbers. A rank that sends different
        rows to different ranks can still make their results differ.
    start, reference : like tensors, optional
        What a rule refers to (`fastgar.rule`); the same on every rank.
    out : like tensors, optional
        What the aggregate is written to. The tensors themselves make the call work in place, as
        `torch.distributed.all_reduce` does, and save the time that new memory takes.

    Returns
    -------
    tensor, list of tensors or dict of tensors
        `out`, or new memory; the same on every rank. Gradients do not flow.

    Raises
    ------
    TooManyFaultyRanks
        More than f ranks sent NaN or infinity: on every rank alike. Also for column rules.
    ValueError
        Too few ranks for f (the message says the largest), or ranks that do not call alike. Where
        one rank alone cannot take part, all others raise an error that names it and says why.
    TypeError
        Tensors that cannot be aggregated or sent.
    RuntimeError
        A rank that has missed a call of the others, or left one before its end.

    Notes
    -----
    Sharded, each rank sends and receives about 2 d numbers, as in a ring all-reduce, and for
    distance rules n^2 float64 numbers more; it computes 1/n of the aggregate. Replicated, it sends
    and receives n d. Ranks on one machine share memory instead of sending (not if the environment
    variable FASTGAR_SHARED_MEMORY is 0). Buffers for d numbers (replicated: n d) are kept for the
    next call, until the process group is gone.

    Randomised stages of a rule that is given as a string draw anew in each call; a `Rule` counts
    its own calls.

    Examples
    --------
    >>> import fastgar.torch as fgt  # doctest: +SKIP
    >>> gradient = fgt.all_reduce(gradient, "median", f=1)  # doctest: +SKIP
    >>> fgt.all_reduce(gradient, "median", f=1, out=gradient)  # doctest: +SKIP
    """
    peers = peers_of(group)

    def prepare() -> tuple[_Call, float, list[float]]:
        refs = {"start": start, "reference": reference}
        call = _Call(peers, tensors, rule, f, mode, refs, out)
        return call, call.faulty, call.described

    try:
        call, faulty = agree(peers, "fgt.all_reduce", FIELDS, prepare)
    except BaseException:  # of vectors of other lengths, perhaps
        memory_of(peers).forget_windows()
        raise
    with peers.exchanging(ValueError, SearchLimit):  # what a rule raises, all ranks raise
        return call.result(faulty != 0)


class _Call:
    """One call of one rank, checked."""

    def __init__(
        self, peers: Peers, tensors: Any, rule: str | Rule, f: int | None, mode: str,
        references: dict[str, Any], out: Any,
    ) -> None:  # fmt: skip
        require_name("mode", mode, MODES)
        self.peers, self.mode = peers, mode
        found = configured(rule, f, peers.n)
        self.rule = found if isinstance(rule, Rule) else peers.rules.setdefault(found, found)
        self.keys, self.parts = self._parts(tensors)
        self.single = isinstance(tensors, Tensor)
        self.out, self.into = out, self._into(out)
        given = {name: value for name, value in references.items() if value is not None}
        for name in given:
            if name not in self.rule.refs:
                raise ValueError(f"{self.rule} takes no {name}")
        if "reference" in self.rule.refs and "reference" not in given:
            raise TypeError(f"{self.rule} needs reference=: the gradient that is trusted")
        self.vectors = _vectors(self.parts)
        self.references = {name: self._like(name, value) for name, value in given.items()}
        # A column rule cannot see from its columns who is faulty elsewhere.
        self.tell = self.rule.reads == 1 and mode == "sharded"
        self.faulty = self.tell and not all(is_finite(vector) for vector in self.vectors)
        self.described = hashes(
            str(self.rule), self.rule.f, self.rule.step, mode,
            [(part.dtype, tuple(part.shape)) for part in self.parts], sorted(given),
        )  # fmt: skip
        self.exchange = exchange_of(mode, peers, memory_of(peers), self.parts[0].device)
        self.offered = [self.exchange.offer(vector) for vector in self.vectors]

    def _into(self, out: Any) -> list[Tensor]:
        """Return what the aggregate is to be written to, checked."""
        if out is None:
            return []
        keys, parts = self._parts(out)
        if keys != self.keys or _kinds(parts) != _kinds(self.parts):
            raise ValueError("out must have the shapes, dtypes and device of the tensors")
        return parts

    def _parts(self, tensors: Any) -> tuple[list[str] | None, list[Tensor]]:
        """Return the tensors, and their names if they have some, checked."""
        keys, parts = _listed(tensors)
        for part in parts:
            require_sendable(part, self.peers.devices)
            if part.device != parts[0].device:
                raise ValueError(
                    f"all tensors must be on one device, got {parts[0].device} and {part.device}"
                )
        return keys, [part.detach() for part in parts]

    def _like(self, name: str, value: Any) -> list[Tensor]:
        """Return the vectors of a start or reference, which must be like the tensors."""
        keys, parts = self._parts(value)
        if keys != self.keys or _kinds(parts) != _kinds(self.parts):
            raise ValueError(f"{name} must have the shapes, dtypes and device of the tensors")
        return _vectors(parts)

    def result(self, faulty: NDArray[np.bool_]) -> Any:
        """Return the aggregate, where some ranks are known to be faulty."""
        try:
            aggregation = Aggregation(self.rule, self.peers, self.exchange, checked=self.tell)
            if self.tell:
                aggregation.require_few(faulty)
        except ValueError:
            for window in self.offered:
                if window is not None:
                    memory_of(self.peers).give(window)
            raise
        whole = self.into[0] if len(self.into) == 1 and self.into[0].is_contiguous() else None
        for k, vector in enumerate(self.vectors):
            own = {name: vectors[k] for name, vectors in self.references.items()}
            into = None if whole is None else whole.view(-1)
            aggregation.send(vector, into, own, self.offered[k])
        found = _shaped(aggregation.finish(), self.parts)
        if self.out is not None:
            if whole is None:
                for part, aggregate in zip(self.into, found, strict=True):
                    part.copy_(aggregate)
            return self.out
        if self.single:
            return found[0]
        return found if self.keys is None else dict(zip(self.keys, found, strict=True))


def _listed(tensors: Any) -> tuple[list[str] | None, list[Tensor]]:
    """Return the tensors, and their names if they have some."""
    keys = None
    if isinstance(tensors, Mapping):
        keys, parts = list(tensors), list(tensors.values())
    elif isinstance(tensors, Tensor):
        parts = [tensors]
    elif isinstance(tensors, Sequence):
        parts = list(tensors)
    else:
        raise TypeError(
            "a tensor, or a sequence or mapping of tensors, is needed: got "
            f"{type(tensors).__name__}"
        )
    if not parts:
        raise ValueError("there are no tensors: pass at least one")
    return keys, parts


def _vectors(parts: Sequence[Tensor]) -> list[Tensor]:
    """Return one contiguous vector for each dtype, without a copy of a single tensor."""
    vectors = []
    for dtype in dict.fromkeys(part.dtype for part in parts):
        flat = [part.reshape(-1) for part in parts if part.dtype == dtype]
        vectors.append(flat[0].contiguous() if len(flat) == 1 else torch.cat(flat))
    return vectors


def _shaped(vectors: Sequence[Tensor], parts: Sequence[Tensor]) -> list[Tensor]:
    """Return what `_vectors` put together in the shapes of the parts."""
    dtypes = list(dict.fromkeys(part.dtype for part in parts))
    rest = dict(zip(dtypes, vectors, strict=True))
    shaped = []
    for part in parts:
        flat = rest[part.dtype]
        shaped.append(flat[: part.numel()].view(part.shape))
        rest[part.dtype] = flat[part.numel() :]
    return shaped


def _kinds(parts: Sequence[Tensor]) -> list[Any]:
    return [(part.dtype, part.shape, part.device) for part in parts]
