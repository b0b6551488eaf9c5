"""A search for the rows that move a rule the farthest from what it promises: a hill climb.

It starts from rows of the kinds that have fooled rules (`STARTS`), changes them by one random move
at a time (`MOVES`), and keeps a change that is no worse. Most of what is known to fool a rule has
few columns and many equal rows, so that moves take rows that are equal, or near each other, along.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from .promise import Promise, quietly
from .witness import Witness

__all__ = ["climb"]

Array = NDArray[np.float64]
Honest = NDArray[np.bool_]

DRAWN = 0.15  # of the evaluations go to starts; then half of those that climb go on, and again
FAR = 12.0  # moves set rows up to 10^12 honest spreads apart


def climb(promise: Promise, evaluations: int, seed: int) -> Witness:
    """Return the rows that were found to need most of a promise.

    Parameters
    ----------
    promise : Promise
    evaluations : int
        How often the rule may aggregate, at least 100.
    seed : int
        The same seed finds the same.
    """
    if evaluations < 100:
        raise ValueError(f"evaluations must be at least 100, got {evaluations}")
    rng = np.random.default_rng(seed)
    drawn = int(DRAWN * evaluations)
    with quietly():
        climbing = _varied([_start(promise, rng) for _ in range(drawn)])
        rounds = len(climbing).bit_length()
        for _ in range(rounds):
            each = (evaluations - drawn) // (rounds * len(climbing))
            ended = [_ascent(one, each, rng) for one in climbing]
            ended.sort(key=lambda one: one.recorded, reverse=True)
            climbing = ended[: max(1, len(ended) // 2)]
        return climbing[0].shortened()


def _varied(found: list[Witness]) -> list[Witness]:
    """Return the worst for the rule of each number of columns."""
    by_size: dict[int, Witness] = {}
    for one in sorted(found, key=lambda one: one.recorded):
        by_size[one.rows.shape[1]] = one
    return list(by_size.values())


def _ascent(best: Witness, evaluations: int, rng: np.random.Generator) -> Witness:
    for _ in range(evaluations):
        if best.recorded == np.inf:
            break
        rows, honest = best.rows.copy(), best.honest.copy()
        for _ in range(rng.choice([1, 1, 2, 3])):
            MOVES[rng.integers(len(MOVES))](rows, honest, rng)
        ratio = best.promise.ratio(rows, honest)
        if ratio >= best.recorded:
            best = Witness(best.promise, rows, honest, ratio)
    return best


# ------------------------------------------------------------------------------------- starts


def _start(promise: Promise, rng: np.random.Generator) -> Witness:
    """Draw rows of one of the kinds, in one of three orders: liars last, first, or anywhere."""
    n, f = promise.n, promise.f
    rows = STARTS[rng.integers(len(STARTS))](n, f, rng)
    honest = np.arange(n) < n - f
    order = (np.arange(n), np.arange(n)[::-1], rng.permutation(n))[rng.integers(3)]
    rows, honest = rows[order], honest[order]
    return Witness(promise, rows, honest, promise.ratio(rows, honest))


def _clusters(n: int, f: int, rng: np.random.Generator) -> Array:
    """Return few values, each of many rows; one column."""
    values = rng.normal(size=int(rng.integers(2, 5))) * 10 ** rng.uniform(-1, 1)
    shares = rng.dirichlet(np.ones(len(values)))
    rows = np.repeat(values, np.diff(np.round(n * np.cumsum([0, *shares])).astype(int)))
    return rows[rng.permutation(n) if rng.random() < 0.5 else np.arange(n)][:, None]


def _outlier(n: int, f: int, rng: np.random.Generator) -> Array:
    """Return equal honest rows but for a few, and liars beside these."""
    rows = np.zeros((n, 1))
    few = int(rng.integers(1, max(2, (n - f) // 2)))
    rows[n - f - few :] = 1.0
    rows[n - f :] *= 10 ** rng.uniform(-1, 1)
    return rows


def _halves(n: int, f: int, rng: np.random.Generator) -> Array:
    """Return n-f rows on one side and f on the other, of which some are honest."""
    rows = np.zeros((n, 1))
    lying = int(rng.integers(0, f + 1))
    rows[: f - lying] = 1.0
    rows[n - lying :] = 1.0
    return rows


def _simplex(n: int, f: int, rng: np.random.Generator) -> Array:
    """Return honest rows that are all equally far from each other, and liars in one place."""
    rows = np.eye(n)
    rows[n - f :] = 0.0
    place = (slice(None), slice(0, n - f), slice(0, 1), slice(n - 1, n))[rng.integers(4)]
    rows[n - f :, place] = _signed(rng, -1, 1.5)
    return rows


def _orthogonal(n: int, f: int, rng: np.random.Generator) -> Array:
    """Return liars of many lengths in orthogonal directions, and honest rows near the origin."""
    rows = np.zeros((n, f + 1))
    across = int(rng.choice([1, f + 1]))
    rows[: n - f, :across] = rng.normal(size=(n - f, across))
    lengths = 10 ** rng.uniform(0, FAR, size=f) if rng.random() < 0.5 else 10.0 ** np.arange(f)
    rows[np.arange(n - f, n), np.arange(f)] = lengths
    return rows


def _cloud(n: int, f: int, rng: np.random.Generator) -> Array:
    """Return honest rows of normal noise, and liars together at some distance from their mean."""
    d = int(rng.choice([1, 2, 5]))
    rows = rng.normal(size=(n, d))
    rows[n - f :] = 10 ** rng.uniform(-2, 3) * rng.normal(size=d)
    return rows


def _narrow(n: int, f: int, rng: np.random.Generator) -> Array:
    """Return honest rows with hardly any spread, far from the origin, and liars less near."""
    rows = 1.0 + 10 ** rng.uniform(-5.5, -2) * rng.normal(size=(n, 1))
    rows[n - f :] += 10 ** rng.uniform(-5, 1)
    return rows * 10 ** rng.uniform(-6, 6)


STARTS: tuple[Callable[[int, int, np.random.Generator], Array], ...] = (
    _clusters, _outlier, _halves, _simplex, _orthogonal, _cloud, _narrow,
)  # fmt: skip


# -------------------------------------------------------------------------------------- moves


def _spread(rows: Array, honest: Honest) -> float:
    good = rows[honest]
    return float(np.sqrt(np.square(good - good.mean(axis=0)).sum() / len(good)))


def _together(rows: Array, rng: np.random.Generator) -> NDArray[np.intp]:
    """Return a row, or all that are equal to it, or some that are nearest to it."""
    row = int(rng.integers(len(rows)))
    kind = rng.integers(3)
    if kind == 0:
        return np.array([row])
    apart = np.abs(rows - rows[row]).max(axis=1)
    if kind == 1:
        return np.flatnonzero(apart == 0.0)
    nearest: NDArray[np.intp] = apart.argsort(kind="stable")
    return nearest[: int(rng.integers(1, len(rows)))]


def _jiggle(rows: Array, honest: Honest, rng: np.random.Generator) -> None:
    some = _together(rows, rng)
    size = _spread(rows, honest) * 10 ** rng.uniform(-6, 1)
    rows[some] += size * rng.normal(size=(1 if rng.random() < 0.5 else len(some), rows.shape[1]))


def _along(rows: Array, honest: Honest, rng: np.random.Generator) -> None:
    """Move rows along the difference of two."""
    a, b = rng.integers(len(rows), size=2)
    rows[_together(rows, rng)] += _signed(rng, -4, 0.5) * (rows[a] - rows[b])


def _copy(rows: Array, honest: Honest, rng: np.random.Generator) -> None:
    rows[_together(rows, rng)] = rows[rng.integers(len(rows))]


def _about(rows: Array, honest: Honest, rng: np.random.Generator) -> None:
    """Contract rows towards a row or the honest mean, or spread them: mostly by little."""
    some = _together(rows, rng)
    centre = rows[rng.integers(len(rows))] if rng.random() < 0.5 else rows[honest].mean(axis=0)
    factor = np.exp(rng.normal() * 10 ** rng.uniform(-4, 0.5))
    rows[some] = centre + factor * (rows[some] - centre)


def _long(rows: Array, honest: Honest, rng: np.random.Generator) -> None:
    """Give rows distances from the honest mean of quite another order."""
    some, mean = _together(rows, rng), rows[honest].mean(axis=0)
    rows[some] = mean + 10 ** rng.uniform(-FAR, FAR) * (rows[some] - mean)


def _aside(rows: Array, honest: Honest, rng: np.random.Generator) -> None:
    """Set a row apart from the honest mean, along one axis."""
    row, mean = rng.integers(len(rows)), rows[honest].mean(axis=0)
    mean[rng.integers(len(mean))] += _spread(rows, honest) * _signed(rng, -3, FAR)
    rows[row] = mean


def _swap(rows: Array, honest: Honest, rng: np.random.Generator) -> None:
    """Let two rows change places, which decides ties."""
    a, b = rng.integers(len(rows), size=2)
    rows[[a, b]], honest[[a, b]] = rows[[b, a]], honest[[b, a]]


def _convert(rows: Array, honest: Honest, rng: np.random.Generator) -> None:
    """Let a liar be honest, and an honest row lie."""
    liar, other = rng.choice(np.flatnonzero(~honest)), rng.choice(np.flatnonzero(honest))
    honest[liar], honest[other] = True, False


def _round(rows: Array, honest: Honest, rng: np.random.Generator) -> None:
    """Put rows on a grid, where ties are exact."""
    step = _spread(rows, honest) * 2.0 ** rng.integers(-6, 2)
    if step > 0:
        rows[:] = np.round(rows / step) * step


def _shift(rows: Array, honest: Honest, rng: np.random.Generator) -> None:
    """Move all rows, of which the origin does not."""
    rows += _spread(rows, honest) * _signed(rng, -3, 5.5) * rng.normal(size=rows.shape[1])


def _scale(rows: Array, honest: Honest, rng: np.random.Generator) -> None:
    rows *= 10 ** rng.uniform(-2, 2)


def _garbage(rows: Array, honest: Honest, rng: np.random.Generator) -> None:
    rows[rng.choice(np.flatnonzero(~honest))] = rng.choice([np.nan, np.inf, -np.inf, 1e30, -1e300])


def _signed(rng: np.random.Generator, low: float, high: float) -> float:
    return float(rng.choice([-1.0, 1.0]) * 10 ** rng.uniform(low, high))


MOVES: tuple[Callable[[Array, Honest, np.random.Generator], None], ...] = (
    _jiggle, _jiggle, _along, _along, _copy, _about, _about, _long, _aside, _swap, _convert,
    _round, _shift, _scale, _garbage,
)  # fmt: skip
