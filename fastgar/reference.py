"""Every rule again, in plain NumPy: slow, obvious, and the judge of the fast code.

Every rule is called as ``reference.<name>(X, f=f, **options)`` with ``X`` of shape (n, d). An
aggregation rule returns a (d,) float64 array, a mixing rule (``nnm``, ``bucketing``, ``clip``,
``arc``) an (m, d) float64 array, so that a pipeline is plain function composition. Rules that
need f take it without a default; the others default to (n - 1) // 2, the most that can be told
from the honest, and use it only to decide how many non-finite values are too many. `RULES` maps
names to functions; `COLUMN`, `DISTANCE` and `MIXING` list the names of each kind.

What happens to non-finite input, everywhere in this file:

- column rules: NaN ranks as +Inf; a column with more than f non-finite entries is NaN (`mean`,
  `nan_mean`, `condense` and `sign_majority` have their own say, in their docstrings); -0 and +0
  are equal, and a result that is zero is +0 (of all column rules but `mean`, which adds);
- all other rules: a row with a non-finite entry is *faulty*. It is infinitely far from every row
  and never read, n and f stay what they were, and more than f such rows raise `TooManyFaults`;
- mixing rules give a faulty row back as a row of NaN.

Ties go to the lowest row index, and between values of a column to the smaller one. Rows are
averaged in the order of their indices, so that the same set of rows gives the same bits.

The arithmetic inside is ``numpy.longdouble``: where that has 80 bits or more, a row of length
1e300 has a finite square, and rows 1e16 times longer than the others do not drown them. Distances
are always taken from differences of the vectors themselves, never by algebra on other distances.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from itertools import combinations
from typing import Any

import numpy as np
import numpy.typing as npt

from fastgar.errors import TooManyFaults, unknown

Rows = npt.NDArray[np.float64]
Wide = npt.NDArray[Any]  # long double, in fact: NumPy's stubs lose that type at the first operation
Mask = npt.NDArray[np.bool_]

# Two sums of the same numbers in another order differ by about 1e-15: candidates that close are
# tied, and the one that comes first in the order of enumeration wins.
TIE = 1e-12


# Checks and helpers --------------------------------------------------------------------------


def _rows(rule: str, X: npt.ArrayLike, f: int | None, need: tuple[int, int]) -> tuple[Wide, int]:
    """Return (the rows in long double, f) after checking that n >= need[0] * f + need[1]."""
    x = np.asarray(X).astype(np.longdouble)
    if x.ndim != 2 or len(x) == 0:
        raise ValueError(f"{rule} needs an (n, d) array with n >= 1, got shape {x.shape}")
    n = len(x)
    if f is None:
        f = (n - 1) // 2
    if f < 0:
        raise ValueError(f"{rule} needs f >= 0, got {f}")
    times, plus = need
    if n < times * f + plus:
        formula = f"{times if times > 1 else ''}f + {plus}"
        raise ValueError(
            f"{rule} needs n >= {formula}: with f={f} that is {times * f + plus} rows, got {n}"
        )
    return x, int(f)


def _vectors(
    rule: str, X: npt.ArrayLike, f: int | None, need: tuple[int, int]
) -> tuple[Wide, Mask, int]:
    """Return (rows, which rows are finite, f) for a rule that reads whole vectors."""
    x, f = _rows(rule, X, f, need)
    finite: Mask = np.asarray(np.isfinite(x).all(axis=1))
    faulty = np.flatnonzero(~finite)
    if len(faulty) > f:
        raise TooManyFaults(faulty.tolist(), f)
    return x, finite, f


def _trusted(name: str, vector: npt.ArrayLike, d: int) -> Wide:
    """Return a vector that the caller vouches for, so it must be finite and of length d."""
    v = np.asarray(vector).astype(np.longdouble)
    if v.shape != (d,):
        raise ValueError(f"{name} must have shape ({d},), got {v.shape}")
    if not np.isfinite(v).all():
        raise ValueError(f"{name} is trusted, so it must be finite")
    return v


def _choose(option: str, value: str, known: Iterable[str]) -> None:
    if value not in (known := tuple(known)):
        raise unknown(option, value, known)


def _out(x: Wide) -> Rows:
    return x.astype(np.float64)


def _norm(x: Wide) -> Wide:
    """Lengths along the last axis; 1e300 squared is finite in long double."""
    length: Wide = np.sqrt((x * x).sum(axis=-1))
    return length


def _sqdist(x: Wide, finite: Mask) -> Wide:
    """Squared distances from direct differences; +Inf where a faulty row is involved."""
    D: Wide = np.full((len(x), len(x)), np.inf, dtype=np.longdouble)
    for i in np.flatnonzero(finite):
        difference = x[finite] - x[i]
        D[i, finite] = (difference * difference).sum(axis=1)
    return D


def _least(scores: Wide, k: int) -> list[int]:
    """Indices of the k least scores, ties by lowest index, best first."""
    return [int(i) for i in np.argsort(scores, kind="stable")[:k]]


def _average(x: Wide, chosen: Iterable[int]) -> Wide:
    """Mean of the chosen rows, added in the order of their indices whatever order they come in."""
    mean: Wide = x[sorted(chosen)].mean(axis=0)
    return mean


def _top(x: Wide) -> tuple[Any, Wide]:
    """Largest squared singular value and its right singular vector of an (m, d) array.

    Scaled before LAPACK sees it, because that works in float64. The sign of the vector is
    whatever it is: every use squares it.
    """
    scale = np.abs(x).max(initial=0)
    if scale == 0:
        return np.longdouble(0), np.zeros(x.shape[1], dtype=np.longdouble)
    _, sigma, right = np.linalg.svd((x / scale).astype(np.float64), full_matrices=False)
    return (np.longdouble(sigma[0]) * scale) ** 2, right[0].astype(np.longdouble)


def _main_directions(x: Wide) -> Wide:
    """Return the right singular vectors of the largest singular value, as columns."""
    scale = np.abs(x).max(initial=0) or 1
    _, sigma, right = np.linalg.svd((x / scale).astype(np.float64), full_matrices=False)
    return np.asarray(right[sigma >= sigma.max(initial=0) * (1 - 1e-9)].T.astype(np.longdouble))


# Randomness ----------------------------------------------------------------------------------


def hash64(seed: int, step: int, index: npt.ArrayLike) -> npt.NDArray[np.uint64]:
    """Return 64 well-mixed bits for every index: a counter hash, the same on every machine.

    All arithmetic is modulo 2^64. ``z = seed * 0x9E3779B97F4A7C15 + step * 0xBF58476D1CE4E5B9
    + index * 0x94D049BB133111EB``, and then twice the finaliser of SplitMix64 (Steele, Lea and
    Flood, OOPSLA 2014): ``z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9``, ``z = (z ^ z >> 27) *
    0x94D049BB133111EB``, ``z = z ^ z >> 31``.

    >>> [hex(h) for h in hash64(1, 2, [0, 3])]
    ['0xc077a0b82b883736', '0xfe2968fdfa1603f6']
    """
    key = (seed * 0x9E3779B97F4A7C15 + step * 0xBF58476D1CE4E5B9) % 2**64
    with np.errstate(over="ignore"):  # wrapping around is the point
        z = np.uint64(key) + np.asarray(index, dtype=np.uint64) * np.uint64(0x94D049BB133111EB)
        for _ in range(2):
            z = (z ^ z >> np.uint64(30)) * np.uint64(0xBF58476D1CE4E5B9)
            z = (z ^ z >> np.uint64(27)) * np.uint64(0x94D049BB133111EB)
            z = z ^ z >> np.uint64(31)
    return np.asarray(z)


def uniform(seed: int, step: int, index: npt.ArrayLike) -> npt.NDArray[np.float64]:
    """Return a number in [0, 1) for every index: the upper 53 bits of `hash64` times 2^-53."""
    return np.asarray((hash64(seed, step, index) >> np.uint64(11)) * 2.0**-53)


# Column rules --------------------------------------------------------------------------------


def _ranked(x: Wide, f: int) -> tuple[Wide, Mask]:
    """Return (every column in ascending order, which columns have more than f bad entries).

    NaN has become +Inf. Columns past help are zeros, so that nobody computes with them.
    """
    lost: Mask = (~np.isfinite(x)).sum(axis=0) > f
    return np.sort(np.where(lost, 0, np.where(np.isnan(x), np.inf, x)), axis=0), lost


def _middle(ranked: Wide, middle: str) -> Wide:
    """Return the median of ascending columns; for an even count there are three conventions."""
    _choose("middle", middle, ("mean", "lower", "upper"))
    lower, upper = ranked[(len(ranked) - 1) // 2], ranked[len(ranked) // 2]
    if middle == "mean":
        return np.asarray((lower + upper) / 2)
    return np.asarray(lower if middle == "lower" else upper)


def _closest(ranked: Wide, centre: Wide, k: int) -> Wide:
    """Return the mean of the k values closest to the centre, of two equally close the smaller."""
    nearest = np.argsort(np.abs(ranked - centre), axis=0, kind="stable")[:k]
    return np.asarray(np.take_along_axis(ranked, np.sort(nearest, axis=0), axis=0).mean(axis=0))


def _positive(x: Wide) -> Rows:
    """Return the results, rounded; a zero is +0."""
    return _out(x) + 0.0


def mean(X: npt.ArrayLike, f: int | None = None) -> Rows:
    """Average of the rows. Survives nothing: what is infinite or NaN goes through."""
    x, _ = _rows("mean", X, f, (0, 1))
    with np.errstate(invalid="ignore"):  # Inf - Inf is NaN, as it should be
        return _out(x.mean(axis=0))


def nan_mean(X: npt.ArrayLike, f: int | None = None) -> Rows:
    """Per column the mean of the finite entries, NaN where there is none.

    For messages with lost pieces, not against attackers ("average-nan": Damaskinos et al.,
    AggregaThor, MLSys 2019).
    """
    x, _ = _rows("nan_mean", X, f, (0, 1))
    finite = np.isfinite(x)
    count = finite.sum(axis=0)
    total = np.where(finite, x, 0).sum(axis=0)
    return _positive(np.where(count == 0, np.nan, total / np.maximum(count, 1)))


def median(X: npt.ArrayLike, f: int | None = None, *, middle: str = "mean") -> Rows:
    """Coordinate-wise median (Yin et al., ICML 2018); n >= 2f + 1.

    For even n the `middle` is the ``"mean"`` of the two middle values, the ``"lower"`` (torch)
    or the ``"upper"`` of them.
    """
    x, f = _rows("median", X, f, (2, 1))
    ranked, lost = _ranked(x, f)
    return _positive(np.where(lost, np.nan, _middle(ranked, middle)))


def trimmed_mean(X: npt.ArrayLike, f: int) -> Rows:
    """Per column the mean of what is left without the f least and the f greatest entries.

    n >= 2f + 1 (Yin et al., ICML 2018).
    """
    x, f = _rows("trimmed_mean", X, f, (2, 1))
    ranked, lost = _ranked(x, f)
    return _positive(np.where(lost, np.nan, ranked[f : len(x) - f].mean(axis=0)))


def meamed(X: npt.ArrayLike, f: int, *, middle: str = "mean") -> Rows:
    """Per column the mean of the n - f entries closest to the median; n >= 2f + 1.

    Xie, Koyejo and Gupta, Generalized Byzantine-tolerant SGD, 2018 ("mean around median").
    """
    x, f = _rows("meamed", X, f, (2, 1))
    ranked, lost = _ranked(x, f)
    value = _closest(ranked, _middle(ranked, middle), len(x) - f)
    return _positive(np.where(lost, np.nan, value))


def phocas(X: npt.ArrayLike, f: int) -> Rows:
    """Per column the mean of the n - f entries closest to the trimmed mean; n >= 2f + 1.

    Xie, Koyejo and Gupta, Phocas: dimensional Byzantine-resilient SGD, 2018.
    """
    x, f = _rows("phocas", X, f, (2, 1))
    ranked, lost = _ranked(x, f)
    value = _closest(ranked, ranked[f : len(x) - f].mean(axis=0), len(x) - f)
    return _positive(np.where(lost, np.nan, value))


def condense(X: npt.ArrayLike, f: int, *, p: float = 0.9, seed: int = 0, step: int = 0) -> Rows:
    """Column j is its median if ``uniform(seed, step, j) < p``, else the entry of row 0.

    n >= 2f + 2 (Guerraoui et al., Garfield, DSN 2021). Row 0 is trusted: where it is taken, its
    entry goes through as it is (but -0 as +0).
    """
    x, f = _rows("condense", X, f, (2, 2))
    if not 0 <= p <= 1:
        raise ValueError(f"p is a probability, got {p}")
    ranked, lost = _ranked(x, f)
    take_median = uniform(seed, step, np.arange(x.shape[1])) < p
    middle = np.where(lost, np.nan, _middle(ranked, "mean"))
    return _positive(np.where(take_median, middle, x[0]))


def sign_majority(X: npt.ArrayLike, f: int | None = None) -> Rows:
    """Sign of the sum of signs, 0 for a tie (Bernstein et al., signSGD, ICLR 2019).

    NaN ranks as +Inf and so votes +1, which is no more than any attacker can do. n >= 2f + 1.
    """
    x, f = _rows("sign_majority", X, f, (2, 1))
    ranked, lost = _ranked(x, f)
    return _positive(np.where(lost, np.nan, np.sign(np.sign(ranked).sum(axis=0))))


# Distance rules that select ------------------------------------------------------------------


def _krum_scores(D: Wide, count: int) -> Wide:
    """Sum of the `count` least distances of every row to others; +Inf if there are too few.

    Added in ascending order: rows with the same distances get the same bits, hence a tie.
    """
    others = D + np.diag(np.full(len(D), np.inf, dtype=np.longdouble))
    return np.asarray(np.sort(others, axis=1)[:, :count].sum(axis=1))


def _krum_ranking(
    rule: str, X: npt.ArrayLike, f: int, neighbours: str, squared: bool
) -> tuple[Wide, Wide, int]:
    """Return (rows, Krum scores, f)."""
    _choose("neighbours", neighbours, ("n-f-2", "n-f-1"))
    wide = neighbours == "n-f-1"
    x, finite, f = _vectors(rule, X, f, (2, 1) if wide else (2, 3))
    D = _sqdist(x, finite)
    return x, _krum_scores(D if squared else np.sqrt(D), len(x) - f - (1 if wide else 2)), f


def krum(X: npt.ArrayLike, f: int, *, neighbours: str = "n-f-2", squared: bool = True) -> Rows:
    """Return the row with the least sum of (squared) distances to its nearest others.

    The score of a row adds its n-f-2 least distances, or with ``neighbours="n-f-1"`` one more;
    n >= 2f + 3, then 2f + 1. Blanchard et al., NeurIPS 2017.
    """
    x, scores, _ = _krum_ranking("krum", X, f, neighbours, squared)
    return _out(x[_least(scores, 1)[0]])


def multi_krum(
    X: npt.ArrayLike,
    f: int,
    *,
    m: int | None = None,
    neighbours: str = "n-f-2",
    squared: bool = True,
) -> Rows:
    """Mean of the m rows with the least Krum scores (Blanchard et al., NeurIPS 2017).

    m is n-f-2 if not given (1 if that is less than 1), and at most n-f-2; with
    ``neighbours="n-f-1"`` at most n-f.
    """
    x, scores, f = _krum_ranking("multi_krum", X, f, neighbours, squared)
    m = max(1, len(x) - f - 2) if m is None else m
    most = len(x) - f - (0 if neighbours == "n-f-1" else 2)
    if not 1 <= m <= most:
        raise ValueError(f"multi_krum needs 1 <= m <= {most}, got m={m}")
    return _out(_average(x, _least(scores, m)))


def bulyan(X: npt.ArrayLike, f: int, *, variant: str = "paper", middle: str | None = None) -> Rows:
    """Select theta vectors by Krum, then per column average the beta closest to their median.

    n >= 4f + 3; El Mhamdi, Guerraoui and Rouault, ICML 2018.

    - ``"paper"``: theta = n - 2f rows, each the Krum choice among the rows left. With m rows left
      the score adds max(1, m - f - 2) neighbours, but no more than m - 1. beta = theta - 2f.
    - ``"epfl"``, as the authors' C++ code does it: theta = n - 2f - 2 and beta = n - 4f - 2. Every
      row keeps the n - f - 2 nearest neighbours that it had at the start; pick k = 0, 1, ... is
      the mean of the n - f - 2 - k rows with the least scores, and then the best row leaves, and
      its distance leaves the scores of those that had it as a neighbour, with no replacement.

    `middle` is the median of an even number of picks: ``"mean"`` in the paper's variant,
    ``"upper"`` (what the C++ code does) in the other, unless given. Picks are always finite.
    """
    _choose("variant", variant, ("paper", "epfl"))
    x, finite, f = _vectors("bulyan", X, f, (4, 3))
    D = _sqdist(x, finite)
    if variant == "paper":
        picks = x[_bulyan_paper(D, f)]
    else:
        picks = _bulyan_epfl(x, D, f)
        middle = middle or "upper"
    ranked = np.sort(picks, axis=0)
    return _out(_closest(ranked, _middle(ranked, middle or "mean"), len(picks) - 2 * f))


def _bulyan_paper(D: Wide, f: int) -> list[int]:
    left = list(range(len(D)))
    picked: list[int] = []
    while len(picked) < len(D) - 2 * f:
        m = len(left)
        scores = _krum_scores(D[np.ix_(left, left)], min(max(1, m - f - 2), m - 1))
        picked.append(left.pop(_least(scores, 1)[0]))
    return picked


def _bulyan_epfl(x: Wide, D: Wide, f: int) -> Wide:
    n = len(x)
    kept: list[list[int]] = []
    for i in range(n):
        others = [j for j in range(n) if j != i]
        kept.append([others[k] for k in _least(D[i, others], n - f - 2)])
    left = list(range(n))
    picks = []
    for k in range(n - 2 * f - 2):
        scores = [sum(D[i, j] for j in kept[i] if j in left) for i in left]
        order = _least(np.array(scores, dtype=np.longdouble), n - f - 2 - k)
        picks.append(_average(x, [left[i] for i in order]))
        del left[order[0]]
    return np.array(picks)


def _best_subset(
    finite: Mask, size: int, cost: Callable[[list[int]], Any], tie: float
) -> list[int]:
    """Return the cheapest set of `size` finite rows, tried in lexicographic order.

    A later set wins only if it is cheaper by more than the relative amount `tie`.
    """
    best: list[int] = []
    least: Any = np.inf
    for candidate in combinations(np.flatnonzero(finite).tolist(), size):
        subset = list(candidate)
        price = cost(subset)
        if not best or price < least * (1 - tie):
            best, least = subset, price
    return best


def mda(X: npt.ArrayLike, f: int) -> Rows:
    """Minimum-diameter averaging: mean of the n - f rows whose two farthest are the closest.

    n >= 2f + 1; El Mhamdi et al., PODC 2020 (EPFL's "brute"). By brute force. Of several sets
    with the least diameter the lexicographically first; diameters are single distances, so they
    are compared exactly.
    """
    x, finite, f = _vectors("mda", X, f, (2, 1))
    D = _sqdist(x, finite)
    return _out(_average(x, _best_subset(finite, len(x) - f, lambda s: D[np.ix_(s, s)].max(), 0)))


def _centred(x: Wide, subset: list[int]) -> Wide:
    """Rows of the subset minus their mean, by way of its first row: equal rows give exact 0."""
    shifted = x[subset] - x[subset[0]]
    return np.asarray(shifted - shifted.mean(axis=0))


def mva(X: npt.ArrayLike, f: int) -> Rows:
    """Minimum-variance averaging: mean of the n - f rows with the least covariance trace.

    n >= 2f + 1; by brute force. Variances within 1e-12 of each other are tied, and the
    lexicographically first set wins.
    """
    x, finite, f = _vectors("mva", X, f, (2, 1))

    def variance(subset: list[int]) -> Any:
        return (_centred(x, subset) ** 2).sum()

    return _out(_average(x, _best_subset(finite, len(x) - f, variance, TIE)))


def smea(X: npt.ArrayLike, f: int) -> Rows:
    """Smallest maximum eigenvalue averaging: mean of the n - f rows of least largest eigenvalue.

    The eigenvalues are those of the covariance of the set. n >= 2f + 1; Allouah et al., On the
    privacy-robustness-utility trilemma in distributed learning, ICML 2023. By brute force, ties
    as in `mva`.
    """
    x, finite, f = _vectors("smea", X, f, (2, 1))

    def eigenvalue(subset: list[int]) -> Any:
        return _top(_centred(x, subset))[0]

    return _out(_average(x, _best_subset(finite, len(x) - f, eigenvalue, TIE)))


def cge(X: npt.ArrayLike, f: int) -> Rows:
    """Comparative gradient elimination: mean of the n - f rows of least norm; n > f.

    Gupta, Liu and Vaidya, 2021. Faulty rows are infinitely long.
    """
    x, finite, f = _vectors("cge", X, f, (1, 1))
    lengths = np.full(len(x), np.inf, dtype=np.longdouble)
    lengths[finite] = _norm(x[finite])
    return _out(_average(x, _least(lengths, len(x) - f)))


def _nearest(x: Wide, finite: Mask, centre: Wide, k: int) -> list[int]:
    distances = np.full(len(x), np.inf, dtype=np.longdouble)
    distances[finite] = _norm(x[finite] - centre)
    return _least(distances, k)


def aksel(X: npt.ArrayLike, f: int, *, mode: str = "mid") -> Rows:
    """Mean of the c rows closest to the coordinate-wise median; n >= 2f + 1.

    c is (n + 1) // 2 with ``mode="mid"`` and n - f with ``mode="n-f"``. The finite entries of a
    faulty row do enter the median, where its others rank as infinite; the row itself is never
    chosen. Boussetta et al., AKSEL: fast Byzantine SGD, OPODIS 2020.
    """
    _choose("mode", mode, ("mid", "n-f"))
    x, finite, f = _vectors("aksel", X, f, (2, 1))
    centre = _middle(_ranked(x, f)[0], "mean")
    c = (len(x) + 1) // 2 if mode == "mid" else len(x) - f
    return _out(_average(x, _nearest(x, finite, centre, c)))


def monna(X: npt.ArrayLike, f: int, *, pivot: int = 0) -> Rows:
    """Mean of the n - f rows closest to the row that is trusted, itself included; n >= 2f + 1.

    Farhadkhani et al., ICML 2023. A faulty pivot is a ValueError.
    """
    x, finite, f = _vectors("monna", X, f, (2, 1))
    if not 0 <= pivot < len(x):
        raise ValueError(f"pivot must be a row index from 0 to {len(x) - 1}, got {pivot}")
    centre = _trusted(f"the pivot, row {pivot},", x[pivot], x.shape[1])
    return _out(_average(x, _nearest(x, finite, centre, len(x) - f)))


def dnc(X: npt.ArrayLike, f: int, *, removal: str = "one by one") -> Rows:
    """Drop the f rows that stand out most along the main direction of spread; average the rest.

    The direction is the top right singular vector of the centred rows, the score of a row its
    squared projection. ``"one by one"``: the row with the greatest leaves (of several, the last),
    and the rest are centred anew. ``"at once"``: the f greatest leave, as in divide-and-conquer
    (Shejwalkar and Houmansadr, NDSS 2021), here over all columns. Faulty rows are the first of the
    f to go. n > 2f.
    """
    _choose("removal", removal, ("one by one", "at once"))
    x, finite, f = _vectors("dnc", X, f, (2, 1))
    left = np.flatnonzero(finite)
    while len(left) > len(x) - f:
        scores, constant = _standing_out(x[left])
        if removal == "at once":
            go = np.argsort(scores, kind="stable")[len(x) - f :]
        else:  # equal but for rounding is equal
            go = np.flatnonzero(scores + constant >= (scores.max() + constant) * (1 - 1e-9))[-1:]
        left = np.delete(left, go)
    return _out(_average(x, left.tolist()))


def _standing_out(x: Wide) -> tuple[Wide, Any]:
    """Return the squared projections of the centred rows on the main direction, less a constant.

    If there are several such directions, on the space of them. (p - q)^2 = p (p - 2q) + q^2, with q
    the mean of p: without the constant q^2 the scores of ordinary rows stay distinct even when one
    row 1e16 times longer pulls the mean far away.
    """
    p = (x - np.median(x, axis=0)) @ _main_directions(x - x.mean(axis=0))
    q = p.mean(axis=0)
    return np.asarray((p * (p - 2 * q)).sum(axis=1)), (q * q).sum()


# Distance rules that weigh -------------------------------------------------------------------


def geometric_median(
    X: npt.ArrayLike, f: int | None = None, *, tol: float = 1e-12, max_iter: int = 1000
) -> Rows:
    """Point with the least sum of distances to the finite rows; n >= 2f + 1.

    The gradient at v is minus the `pull`, the sum of the unit vectors from v to the rows. A row
    is a minimiser if the pull of the rows elsewhere is no longer than the number of rows there
    (Vardi and Zhang, PNAS 2000), and then the first such row is the result. Otherwise the
    minimiser is not a row: Newton steps where a full one at least halves the shortest pull so
    far, and else the better of Weiszfeld's step and a line search along Newton's, until the pull
    is no longer than tol times the number of rows. The minimiser is unique unless the rows lie on
    one line and their number is even: then every point between the two middle rows is one, and
    the result is the middle row that comes first.
    """
    x, finite, f = _vectors("geometric_median", X, f, (2, 1))
    x = x[finite]
    # Start from the best row, as the origin: a large common part would cost the digits of tol.
    origin = x[_least(np.array([_norm(x - row).sum() for row in x]), 1)[0]]
    x = x - origin
    for row in x:
        pull, here = _pull(x, row)
        if _norm(pull) <= here * (1 + tol):
            return _out(row + origin)
    v = np.zeros_like(origin)
    shortest: Any = np.inf
    for _ in range(max_iter):
        pull, here = _pull(x, v)
        size = _norm(pull)
        if size <= here + tol * len(x):
            break
        shortest = min(shortest, size)
        away = (x != v).any(axis=1)
        inverse = 1 / _norm(x[away] - v)
        step = weiszfeld = pull / inverse.sum() * (1 - here / size)  # rows at v hold it back
        if not here:
            step = _newton(_unit(x - v), inverse / inverse.sum(), weiszfeld)
            if _norm(_pull(x, v + step)[0]) > shortest / 2:
                step = step * _downhill(x, v, step)
                if _fall(x, v, step) < _fall(x, v, weiszfeld):
                    step = weiszfeld
        if (v + step == v).all():  # the pull is rounding error
            break
        v = v + step
    return _out(v + origin)


def _pull(x: Wide, v: Wide) -> tuple[Wide, int]:
    """Return (sum of the unit vectors from v to the rows elsewhere, how many rows are at v)."""
    away = (x != v).any(axis=1)
    return np.asarray(_unit(x[away] - v).sum(axis=0)), len(x) - int(away.sum())


def _unit(x: Wide) -> Wide:
    return np.asarray(x / _norm(x)[:, None])


def _fall(x: Wide, v: Wide, step: Wide) -> Any:
    """By how much the sum of distances falls, from |a| - |b| = (a - b)'(a + b) / (|a| + |b|)."""
    a, b = x - v, x - (v + step)
    total = _norm(a) + _norm(b)
    return (((a - b) * (a + b)).sum(axis=1) / np.where(total > 0, total, 1)).sum()


def _downhill(x: Wide, v: Wide, step: Wide) -> Any:
    """How many steps along the step the sum of distances is least, by bisection of its slope."""
    low, high = np.longdouble(0), np.longdouble(1)
    for _ in range(40):
        if _pull(x, v + high * step)[0] @ step <= 0:
            break
        low, high = high, 2 * high
    for _ in range(40):
        middle = (low + high) / 2
        if _pull(x, v + middle * step)[0] @ step > 0:
            low = middle
        else:
            high = middle
    return low


def _newton(units: Wide, share: Wide, step: Wide) -> Wide:
    """Solve (I - sum share_i u_i u_i') s = step, as an n x n system by Woodbury's identity.

    That matrix is the Hessian of the sum of distances over the sum of inverse distances; the
    shares add to 1. float64 is enough for a direction that is checked before it is taken.
    """
    size = _norm(step)
    a = (np.sqrt(share)[:, None] * units).astype(np.float64)
    b = (step / size).astype(np.float64)
    inner = np.linalg.lstsq(np.eye(len(a)) - a @ a.T, a @ b, rcond=None)[0]
    return np.asarray((b + a.T @ inner) * size)


def rfa(
    X: npt.ArrayLike,
    f: int | None = None,
    *,
    T: int = 3,
    nu: float = 0.1,
    relative: bool = True,
) -> Rows:
    """T smoothed Weiszfeld steps from the origin; n >= 2f + 1.

    A step is the weighted mean of the finite rows with weights 1 / max(nu, |x_i - v|), where nu is
    times the lower median of the n distances if it is relative. Pillutla, Kakade and Harchaoui,
    IEEE Transactions on Signal Processing, 2022, as ByzFL does it.
    """
    x, finite, f = _vectors("rfa", X, f, (2, 1))
    if T < 1 or nu <= 0:
        raise ValueError(f"rfa needs T >= 1 and nu > 0, got T={T} and nu={nu}")
    middle = (len(x) - 1) // 2
    x = x[finite]
    v = np.zeros(x.shape[1], dtype=np.longdouble)
    for _ in range(T):
        distances = _norm(x - v)
        least = nu * np.sort(distances)[middle] if relative else np.longdouble(nu)
        if least == 0:  # most rows are here
            break
        weights = 1 / np.maximum(distances, least)
        v = (weights[:, None] * x).sum(axis=0) / weights.sum()
    return _out(v)


def centered_clipping(
    X: npt.ArrayLike,
    f: int | None = None,
    *,
    tau: float,
    iters: int = 1,
    start: npt.ArrayLike | None = None,
) -> Rows:
    """Move `iters` times by the mean of the rows' differences, each shortened to length tau.

    From `start`, or the origin. The mean divides by n, and a faulty row contributes 0.
    Karimireddy, He and Jaggi, ICML 2021.
    """
    x, finite, f = _vectors("centered_clipping", X, f, (0, 1))
    if not tau > 0 or iters < 1:
        raise ValueError(f"centered_clipping needs tau > 0 and iters >= 1, got {tau} and {iters}")
    v = _trusted("start", np.zeros(x.shape[1]) if start is None else start, x.shape[1])
    for _ in range(iters):
        v = v + _shorten(x[finite] - v, tau).sum(axis=0) / len(x)
    return _out(v)


def _shorten(x: Wide, length: Any) -> Wide:
    """Scale the rows that are longer down to the length."""
    norms = _norm(x)
    factor = np.ones(len(x), dtype=np.longdouble)
    longer = norms > length
    factor[longer] = length / norms[longer]
    return np.asarray(x * factor[:, None])


def caf(X: npt.ArrayLike, f: int) -> Rows:
    """Covariance-bound-agnostic filter: fade out the rows along the direction of greatest spread.

    Weights c start at 1, at 0 for a faulty row. While their sum exceeds n - 2f: take the weighted
    mean and the top eigenpair of the weighted covariance; remember the mean of the least
    eigenvalue so far (the first of equals); multiply c_i by 1 - tau_i / tau_max, where tau_i is
    the squared projection of row i on the eigenvector, and tau_max the largest over c_j > 0. Every
    round sets a weight to 0, so there are at most 2f rounds; it also ends when tau_max is 0. Sums
    up to 1e-9 n above n - 2f count as equal to it. With f = 0 the result is the mean. A top
    eigenvalue that is not simple leaves the result undefined. n >= 2f + 1; Allouah, Guerraoui
    and Stephan, Towards trustworthy federated learning with untrusted participants, ICML 2025.
    """
    x, finite, f = _vectors("caf", X, f, (2, 1))
    n, d = x.shape
    c = finite.astype(np.longdouble)
    least: Any = np.inf
    best = np.zeros(d, dtype=np.longdouble)
    while True:
        on = c > 0
        share = c[on] / c.sum()
        shifted = x[on] - x[on][0]  # equal rows give exactly 0
        centre = share @ shifted
        eigenvalue, direction = _top(np.sqrt(share)[:, None] * (shifted - centre))
        if eigenvalue < least:
            least, best = eigenvalue, x[on][0] + centre
        tau = ((shifted - centre) @ direction) ** 2
        if f == 0 or tau.max(initial=0) == 0:
            break
        c[on] *= 1 - tau / tau.max()
        if c.sum() <= n - 2 * f + 1e-9 * n:
            break
    return _out(best)


def fltrust(X: npt.ArrayLike, f: int | None = None, *, reference: npt.ArrayLike) -> Rows:
    """Weighted mean of the rows, rescaled to the length of a trusted vector.

    The weight of a row is its cosine with `reference`, or 0 if that is negative or the row is 0.
    Zeros if all weights are 0. Cao et al., FLTrust, NDSS 2021.
    """
    x, finite, f = _vectors("fltrust", X, f, (0, 1))
    trusted = _trusted("reference", reference, x.shape[1])
    length = _norm(trusted)
    total = np.zeros(x.shape[1], dtype=np.longdouble)
    weights = np.longdouble(0)
    for row in x[finite]:
        norm = _norm(row)
        if norm > 0 and length > 0:
            weight = max(np.longdouble(0), (row / norm) @ (trusted / length))
            total = total + weight * (row / norm) * length
            weights = weights + weight
    return _out(total / weights if weights > 0 else np.zeros_like(total))


# Mixing rules --------------------------------------------------------------------------------


def _lines(x: Wide, finite: Mask, mixed: Wide) -> Rows:
    """Put the mixed rows in their places, with NaN for the faulty."""
    full = np.full(x.shape, np.nan, dtype=np.longdouble)
    full[finite] = mixed
    return _out(full)


def nnm(X: npt.ArrayLike, f: int) -> Rows:
    """Nearest-neighbour mixing: every row becomes the mean of its n - f nearest, itself included.

    n >= 2f + 1; Allouah et al., Fixing by mixing, AISTATS 2023.
    """
    x, finite, f = _vectors("nnm", X, f, (2, 1))
    near = [_nearest(x, finite, row, len(x) - f) for row in x[finite]]
    return _lines(x, finite, np.array([_average(x, chosen) for chosen in near]))


def bucketing(
    X: npt.ArrayLike, f: int | None = None, *, s: int = 2, seed: int = 0, step: int = 0
) -> Rows:
    """Means of ceil(n / s) buckets of s rows, the last maybe smaller.

    Rows are put in ascending order of ``hash64(seed, step, row index)``, equal hashes by index,
    and every s in a row make a bucket. A bucket with a faulty row is faulty. Karimireddy, He and
    Jaggi, ICLR 2022.
    """
    x, finite, f = _vectors("bucketing", X, f, (0, 1))
    if s < 1:
        raise ValueError(f"bucketing needs s >= 1, got {s}")
    order = np.argsort(hash64(seed, step, np.arange(len(x))), kind="stable").tolist()
    buckets = [order[i : i + s] for i in range(0, len(x), s)]
    faulty = np.full(x.shape[1], np.nan, dtype=np.longdouble)
    return _out(np.array([_average(x, b) if finite[b].all() else faulty for b in buckets]))


def clip(X: npt.ArrayLike, f: int | None = None, *, c: float) -> Rows:
    """Scale every row that is longer than c to length c."""
    x, finite, f = _vectors("clip", X, f, (0, 1))
    if not c > 0:
        raise ValueError(f"clip needs c > 0, got {c}")
    return _lines(x, finite, _shorten(x[finite], c))


def arc(X: npt.ArrayLike, f: int) -> Rows:
    """Adaptive robust clipping: scale the 2f(n-f)//n longest rows to the next norm below them.

    Faulty rows count among the longest; they are never more than those, since n >= 2f + 1.
    Allouah et al., Adaptive gradient clipping for robust federated learning, ICLR 2025.
    """
    x, finite, f = _vectors("arc", X, f, (2, 1))
    n = len(x)
    norms = np.full(n, np.inf, dtype=np.longdouble)
    norms[finite] = _norm(x[finite])
    return _lines(x, finite, _shorten(x[finite], np.sort(norms)[n - 2 * f * (n - f) // n - 1]))


# Names ---------------------------------------------------------------------------------------

COLUMN = (
    *("mean", "nan_mean", "median", "trimmed_mean", "meamed", "phocas"),
    *("condense", "sign_majority"),
)
DISTANCE = (
    *("krum", "multi_krum", "bulyan", "mda", "mva", "smea", "geometric_median", "rfa"),
    *("centered_clipping", "cge", "aksel", "monna", "caf", "fltrust", "dnc"),
)
MIXING = ("nnm", "bucketing", "clip", "arc")
RULES: dict[str, Callable[..., Rows]] = {
    name: globals()[name] for name in (*COLUMN, *DISTANCE, *MIXING)
}

__all__ = ["COLUMN", "DISTANCE", "MIXING", "RULES", "hash64", "uniform", *RULES]
