"""Who holds which samples: the training set dealt to the workers, evenly or by class."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated

import numpy as np

from ..options import Probability, Range
from .named import configured

if TYPE_CHECKING:
    import torch
    from torch import Generator, Tensor
else:  # who only checks the name of a split need not wait for the import
    from ..later import torch

__all__ = ["SPLITS", "check", "split"]

# Beyond a million all shares are equal to a thousandth; far beyond, their sum would overflow.
Concentration = Annotated[float, Range(1e-6, 1e6)]


def iid(y: Tensor, workers: int, generator: Generator, classes: int) -> list[Tensor]:
    """Deal the samples in a random order: every share is like every other."""
    return _similar(y, workers, generator, 1.0)


def extreme(y: Tensor, workers: int, generator: Generator, classes: int) -> list[Tensor]:
    """Sort the samples by class and cut: a worker holds one class, or the seam of some."""
    return _similar(y, workers, generator, 0.0)


def gamma(
    y: Tensor, workers: int, generator: Generator, classes: int, *, similarity: Probability
) -> list[Tensor]:
    """Deal a part `similarity` of the samples in a random order, the rest sorted by class."""
    return _similar(y, workers, generator, similarity)


def dirichlet(
    y: Tensor, workers: int, generator: Generator, classes: int, *, alpha: Concentration
) -> list[Tensor]:
    """Divide each class among the workers in proportions drawn from Dirichlet(alpha)."""
    # torch draws from no Dirichlet distribution with a generator of one's own.
    draw = np.random.default_rng(int(torch.randint(2**62, (), generator=generator)))
    order = torch.randperm(len(y), generator=generator)
    labels = y.cpu()[order]
    shares: list[list[Tensor]] = [[] for _ in range(workers)]
    for label in range(classes):
        members = order[labels == label]
        cumulative = draw.dirichlet(np.full(workers, alpha)).cumsum()[:-1]
        cuts = np.rint(cumulative.clip(max=1.0) * len(members)).astype(int).tolist()
        for share, part in zip(shares, members.tensor_split(cuts), strict=True):
            share.append(part)
    return _repaired([torch.cat(share) for share in shares])


SPLITS: dict[str, Callable[..., list[Tensor]]] = {
    "iid": iid,
    "extreme": extreme,
    "gamma": gamma,
    "dirichlet": dirichlet,
}


def split(
    y: Tensor, workers: int, how: str = "iid", *, generator: Generator, classes: int
) -> list[Tensor]:
    """Return the indices of the samples that each worker holds.

    Every sample goes to exactly one worker, and every worker holds at least one.

    Parameters
    ----------
    y : Tensor of int64, shape (samples,)
        Labels, from 0.
    workers : int
        How many share the samples; at most as many as there are samples.
    how : str
        - ``"iid"``: in a random order. Sizes differ by at most one.
        - ``"extreme"``: sorted by class and cut into consecutive shares of equal size (to one):
          with as many workers as classes of equal size, each holds one class.
        - ``"gamma(0.5)"``: half of every share is dealt as ``"iid"`` does, the rest as
          ``"extreme"`` does; 1 is ``"iid"`` and 0 is ``"extreme"``. This is the "s % similarity"
          of Karimireddy et al., SCAFFOLD, ICML 2020, section 7, called gamma-similarity by
          Allouah et al. 2024, who rather take the first half of the data set than a random one.
        - ``"dirichlet(0.1)"``: for each class, what part of it a worker gets is drawn from a
          symmetric Dirichlet distribution over the workers; 1 is moderately, 0.1 very uneven. So
          Yurochkin et al., ICML 2019, and most code since; Hsu et al. 2019, to whom it is
          credited, draw the classes of a worker rather than the workers of a class, and keep the
          sizes equal. Sizes differ here. A worker that would hold nothing takes one sample from
          the worker that holds most, the lowest index first.
    generator : torch.Generator
        All randomness; the same state gives the same shares.
    classes : int
        How many classes there are.

    Returns
    -------
    list of Tensor of int64, one per worker

    Raises
    ------
    TypeError, ValueError
        If there is no such split, a value cannot be right, or there are too few samples.

    Examples
    --------
    >>> y = torch.tensor([0, 1, 2, 0, 1, 2])
    >>> shares = split(y, 3, "extreme", generator=torch.Generator().manual_seed(1), classes=3)
    >>> [sorted(share.tolist()) for share in shares]
    [[0, 3], [1, 4], [2, 5]]
    """
    name, options = configured("split", how, SPLITS)
    if workers < 1:
        raise ValueError(f"workers must be at least 1, got {workers}")
    if workers > len(y):
        raise ValueError(f"workers must be at most {len(y)}, one sample each")
    if int(y.min()) < 0 or int(y.max()) >= classes:
        raise ValueError(f"labels must be from 0 to {classes - 1}, the last of {classes} classes")
    return SPLITS[name](y, workers, generator, classes, **options)


def check(how: str) -> None:
    """Raise the error that `split` would, without any data, if there is no such split.

    Examples
    --------
    >>> check("gama(0.5)")
    Traceback (most recent call last):
    ValueError: unknown split 'gama': did you mean 'gamma'?
    """
    configured("split", how, SPLITS)


def _similar(y: Tensor, workers: int, generator: Generator, similarity: float) -> list[Tensor]:
    """Deal `similarity` of the samples in a random order and the others sorted by class."""
    order = torch.randperm(len(y), generator=generator)
    mixed, rest = order.tensor_split([round(similarity * len(y))])
    rest = rest[y.cpu()[rest].argsort(stable=True)]
    # Sizes that differ by one in all, not by one in each of the two parts.
    even = _sizes(len(y), workers) - _sizes(len(mixed), workers)
    parts = mixed.tensor_split(workers), rest.tensor_split(even.cumsum(0)[:-1])
    return [torch.cat(pair) for pair in zip(*parts, strict=True)]


def _sizes(samples: int, workers: int) -> Tensor:
    """Return how many samples each worker gets when they are dealt one by one."""
    return samples // workers + (torch.arange(workers) < samples % workers).long()


def _repaired(shares: list[Tensor]) -> list[Tensor]:
    """Give each empty share one sample of the largest."""
    for worker, share in enumerate(shares):
        if not len(share):
            largest = max(range(len(shares)), key=lambda other: len(shares[other]))
            shares[worker] = shares[largest][-1:]
            shares[largest] = shares[largest][:-1]
    return shares
