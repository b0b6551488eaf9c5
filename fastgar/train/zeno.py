"""Zeno: rows are believed if a few validation samples say that a step along them would help.

Rules that compare rows with each other need a majority of honest rows. Zeno has an oracle instead,
the loss of the model on some samples that the server holds, and needs but one honest row.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Annotated, Literal

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor
from torch.func import vmap

import fastgar as fg

from ..errors import shown
from ..options import Count, Index, Range, read_options
from .named import configured

__all__ = ["BATCH_BYTES", "NoScore", "Validation", "Zeno", "parse"]

Array = NDArray[np.float64]
Losses = Callable[[Tensor], Tensor]
NotNegative = Annotated[float, Range(0)]
Penalty = Literal["sum", "mean"]

BATCH_BYTES = 256 << 20  # of candidate models in one batched pass; at least one goes at a time


def zeno(
    *, b: Index, rho: NotNegative | None = None, samples: Count = 4, penalty: Penalty = "sum"
) -> None:
    """Name the options of `Zeno`, with their types, as the functions of rules do."""


class NoScore(fg.TooManyFaults):
    """More rows have no finite score than Zeno was asked to survive.

    Attributes
    ----------
    rows : tuple of int
    f : int
        How many it survives: its b.
    """

    def __init__(self, rows: Sequence[int], f: int) -> None:
        super().__init__(rows, f)
        many = f"{len(self.rows)} rows have" if len(self.rows) != 1 else "1 row has"
        self.args = (
            f"{many} no finite score (they hold NaN or infinity, or lead to a model whose loss is "
            f"not finite), but zeno leaves out only b = {f}",
        )


@dataclass(frozen=True)
class Zeno:
    """Average the n - b rows along which a step lowers the validation loss most.

    The score of row g is f(x) - f(x - lr g) - rho |g|^2, with f the loss on a few validation
    samples, new ones in each step, and x the parameters; the n - b best scores win, ties go to the
    lowest index.

    Attributes
    ----------
    b : int
        How many rows are left out; at least the number of liars, and less than n.
    rho : float, optional
        What length costs, at least 0; lr / 200 by default.
    samples : int
        How many validation samples the caller is to draw in each step.
    penalty : {"sum", "mean"}
        "mean" divides |g|^2 by the number of parameters, as the authors' code does.

    Raises
    ------
    TypeError, ValueError
        If an option is of a wrong type or out of range.

    Notes
    -----
    Xie, Koyejo and Gupta, "Zeno: distributed stochastic gradient descent with suspicion-based
    fault-tolerance", ICML 2019, definitions 2 and 3. Their code also takes gradients of the sum of
    a batch of 100 samples, with lr = 0.05 / 100.

    Examples
    --------
    >>> def losses(models):  # of candidates: (k, d) -> (k,)
    ...     return models.square().sum(1)
    >>> x = torch.tensor([1.0, 1.0])
    >>> rows = torch.tensor([[2.0, 2.0], [-2.0, -2.0], [2.0, 1.0], [torch.nan, 0.0]])
    >>> aggregate, weights, scores = Zeno(b=2)(rows, x, 0.1, losses)
    >>> aggregate, weights
    (tensor([2.0000, 1.5000]), array([0.5, 0. , 0.5, 0. ]))
    >>> scores.round(3)
    array([ 0.716, -0.884,  0.547,   -inf])
    """

    b: int
    rho: float | None = None
    samples: int = 4
    penalty: Penalty = "sum"

    def __post_init__(self) -> None:
        for name, option in read_options(zeno).items():
            object.__setattr__(self, name, option.check("zeno", getattr(self, name)))

    def __str__(self) -> str:
        named = ", ".join(
            f"{name}={value!r}"
            for name, value in asdict(self).items()
            if name == "b" or value != getattr(type(self), name)
        )
        return f"zeno({named})"

    def check(self, n: int) -> str | None:
        """Return None if `n` rows can be aggregated, else the sentence that says what is wrong."""
        if self.b < n:
            return None
        return f"zeno averages the n - b best rows: with {n} rows b must be below {n}, got {self.b}"

    def __call__(
        self, rows: Tensor, theta: Tensor, lr: float, losses: Losses
    ) -> tuple[Tensor, Array, Array]:
        """Aggregate the rows.

        Parameters
        ----------
        rows : Tensor, shape (n, d)
            Never written.
        theta : Tensor, shape (d,)
            The parameters, in the dtype of the rows; the losses are those of models on its device.
        lr : float
            The learning rate.
        losses : callable
            From k candidate parameters, (k, d), to the losses of these models on the same
            validation samples, (k,): see `Validation`. The candidates' memory is used again.

        Returns
        -------
        aggregate : Tensor, shape (d,)
        weights : (n,) array
            1 / (n - b) or 0. A row of weight 0 is not read into the aggregate.
        scores : (n,) array
            -inf if the row, or the loss of the model it leads to, is not finite. The loss at theta
            is common to all and has no part in the ranking.

        Raises
        ------
        ValueError
            If b leaves no row, shapes do not fit, or theta or lr is not finite.
        NoScore
            If more than b rows have no finite score; it is a `fastgar.TooManyFaults`.

        Notes
        -----
        All candidates are evaluated in one pass if they fit in `BATCH_BYTES`, else in several.
        """
        n = len(rows)
        self._require(rows, theta, lr)
        size = torch.stack([torch.linalg.vector_norm(row, dtype=torch.float64) for row in rows])
        squared = size.square().cpu().numpy()
        if self.penalty == "mean":
            squared /= max(1, theta.numel())
        rho = lr / 200 if self.rho is None else self.rho
        with torch.no_grad():
            parts = [_checked(losses, part) for part in _candidates(theta, rows, lr)]
        found = np.concatenate(parts)
        with np.errstate(invalid="ignore", over="ignore"):
            merit = -found[1:] - rho * squared  # the score but for f(x), which all have in common
            scores = found[0] + merit
        lost = ~np.isfinite(merit)
        merit[lost] = scores[lost] = -math.inf
        if np.count_nonzero(lost) > self.b:
            raise NoScore(np.flatnonzero(lost).tolist(), self.b)
        best = np.sort(np.argsort(-merit, kind="stable")[: n - self.b])
        weights = np.zeros(n)
        weights[best] = 1 / len(best)
        if rows.is_cpu:
            return fg.combine(weights, rows), weights, scores
        return rows[torch.from_numpy(best).to(rows.device)].mean(0), weights, scores

    def _require(self, rows: Tensor, theta: Tensor, lr: float) -> None:
        """Raise the errors of a call."""
        complaint = self.check(len(rows))
        if complaint is not None:
            raise ValueError(complaint)
        if rows.ndim != 2 or theta.shape != rows.shape[1:] or theta.dtype != rows.dtype:
            raise ValueError(
                "rows must have shape (n, d) and theta (d,), both of one dtype: got "
                f"{tuple(rows.shape)} of {rows.dtype} and {tuple(theta.shape)} of {theta.dtype}"
            )
        if not (math.isfinite(lr) and lr >= 0):
            raise ValueError(f"lr must be a finite number of at least 0, got {shown(lr)}")
        if not bool(torch.isfinite(theta).all()):
            raise ValueError("theta holds NaN or infinity: no step from there can be judged")


def parse(spec: str) -> Zeno:
    """Return the Zeno that a string describes, such as ``"zeno(b=12, samples=8)"``.

    Raises
    ------
    TypeError, ValueError
        If the string describes none, or an option is wrong.

    Examples
    --------
    >>> parse("zeno(b=12, samples=8)")
    Zeno(b=12, rho=None, samples=8, penalty='sum')
    >>> str(parse("zeno(b=12, rho=0.001)"))
    'zeno(b=12, rho=0.001)'
    """
    _, options = configured("rule", spec, {"zeno": zeno})
    return Zeno(**options)


class Validation:
    """The losses of candidate models on validation samples, in one batched pass.

    Parameters
    ----------
    model : callable
        From parameters, shape (d,), and inputs to scores. It has to be a function of these alone,
        such as `torch.func.functional_call` on a module in evaluation mode.
    loss : callable
        From scores and labels to one number.

    Notes
    -----
    `torch.func.vmap` maps over the parameters. Where a model cannot be mapped (it takes decisions
    on values, or draws random numbers), the candidates are evaluated one after the other, and no
    other attempt is made.

    Examples
    --------
    >>> validation = Validation(lambda theta, x: x @ theta.view(2, 3))
    >>> losses = validation.on(torch.eye(2), torch.tensor([0, 2]))
    >>> losses(torch.zeros(5, 6))
    tensor([1.0986, 1.0986, 1.0986, 1.0986, 1.0986])
    """

    def __init__(
        self,
        model: Callable[[Tensor, Tensor], Tensor],
        loss: Callable[[Tensor, Tensor], Tensor] = F.cross_entropy,
    ) -> None:
        self.model = model
        self.loss = loss
        self.batched = True

    def on(self, x: Tensor, y: Tensor) -> Losses:
        """Return what `Zeno` needs: the losses of k models, (k, d) to (k,), on these samples."""

        def single(theta: Tensor) -> Tensor:
            return self.loss(self.model(theta, x), y)

        def losses(thetas: Tensor) -> Tensor:
            if self.batched:
                try:
                    return vmap(single)(thetas)
                except RuntimeError:  # what vmap raises; a fault of the model shows again below
                    pass
            result = torch.stack([single(theta) for theta in thetas])
            self.batched = False
            return result

        return losses


def _candidates(theta: Tensor, rows: Tensor, lr: float) -> Iterator[Tensor]:
    """Yield theta and then theta - lr * row of every row, as many at a time as memory allows."""
    n = len(rows)
    size = max(1, min(n + 1, BATCH_BYTES // max(1, theta.numel() * theta.element_size())))
    space = theta.new_empty(size, theta.numel())
    for begin in range(0, n + 1, size):
        end = min(begin + size, n + 1)
        part = space[: end - begin]
        first = max(begin - 1, 0)  # candidate k is that of row k - 1
        if begin == 0:
            part[0] = theta
        chunk = rows[first : end - 1].to(theta.device)
        torch.sub(theta, chunk, alpha=lr, out=part[len(part) - len(chunk) :])
        yield part


def _checked(losses: Losses, candidates: Tensor) -> Array:
    """Return the losses of some candidates, if that is what came back."""
    found = losses(candidates)
    if found.shape != (len(candidates),):
        raise ValueError(
            f"losses must return one number for each of {len(candidates)} models, got shape "
            f"{tuple(found.shape)}"
        )
    return found.to("cpu", torch.float64).numpy()
