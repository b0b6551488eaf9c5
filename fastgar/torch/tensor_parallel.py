"""Which ranks hold other parts of the same parameters, or copies of them: tensor parallelism."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import torch.distributed as dist

__all__ = ["beside", "is_split"]


def beside(tensors: Iterable[Any], group: Any) -> Any:
    """Return the group over which some of these are split, besides that of the workers; or None.

    Raises
    ------
    ValueError
        There are several such groups.
    """
    found = {ranks: part for each in tensors for ranks, part, _ in _others(each, group)}
    if len(found) > 1:
        raise ValueError(
            "beside its workers this model is parallel in two ways (over ranks "
            f"{' and '.join(str(list(ranks)) for ranks in found)}), and a rule can decide for one: "
            "tensor parallelism alone"
        )
    return next(iter(found.values()), None)


def is_split(tensor: Any, group: Any) -> bool:
    """Return whether ranks beside the workers have other parts of it, rather than copies."""
    return any(placement.is_shard() for _, _, placement in _others(tensor, group))


def _others(tensor: Any, group: Any) -> Iterator[tuple[tuple[int, ...], Any, Any]]:
    """Return ranks, group and placement of the ways in which a DTensor is parallel besides."""
    mesh: Any = getattr(tensor, "device_mesh", None)
    own = set(dist.get_process_group_ranks(group))
    for k in range(0 if mesh is None else mesh.ndim):
        part = mesh.get_group(k)
        ranks = tuple(dist.get_process_group_ranks(part))
        if set(ranks) != own and len(ranks) > 1:
            yield ranks, part, tensor.placements[k]
