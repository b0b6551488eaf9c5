"""Column rules: each coordinate on its own, one read of the data.

Each returns what to take of a sorted column of n values. A non-finite value ranks as the most
extreme on its side (NaN as +Inf), and a column with more than f of them gives NaN. A result that is
zero is +0.0 (but for `mean`, a weighted sum).
"""

from __future__ import annotations

from dataclasses import replace
from math import sqrt

from ..options import Probability, Seed
from ..statistic import Middle, Statistic, hash_key
from . import proofs
from .decorators import column_rule

__all__ = [
    "condense", "mean", "meamed", "median", "nan_mean", "phocas", "sign_majority", "trimmed_mean",
]  # fmt: skip


@column_rule()
def mean(n: int) -> Statistic:
    """Return the average of the rows.

    No protection at all: one row decides the result. It is here to be compared with.

    Examples
    --------
    >>> fg.mean(np.array([[1.0, 10.0], [3.0, 20.0]]))
    array([ 2., 15.])
    """
    return replace(Statistic.between(n, 0, n, n), kind="mean")


@column_rule(paper="Damaskinos et al., AggregaThor, MLSys 2019 (average-nan)")
def nan_mean(n: int) -> Statistic:
    """Return, for each coordinate, the average of its finite values.

    Made for links that lose packets: a lost value arrives as NaN and is left out. A coordinate
    without any finite value is NaN.

    Examples
    --------
    >>> fg.nan_mean(np.array([[1.0, np.nan], [3.0, 20.0]]))
    array([ 2., 20.])
    """
    return replace(Statistic.between(n, 0, n, n), kind="finite_mean")


@column_rule(
    needs="2f + 1",
    f="optional",
    paper="Yin et al., Byzantine-robust distributed learning, ICML 2018, definition 1",
    guarantee="(f, kappa)",
    kappa=proofs.median,
    variance_ratio=lambda n, f, options: 1 / sqrt(n - f),
)
def median(n: int, f: int, *, middle: Middle = "mean") -> Statistic:
    """Return the median of each coordinate.

    Options
    -------
    middle : {"mean", "lower", "upper"}
        What to take of the two middle values when n is even: their mean as NumPy does, the lower
        as torch does, or the upper.

    Examples
    --------
    >>> fg.median(np.array([[1.0, 5.0], [2.0, 6.0], [np.inf, -1e30]]))
    array([2., 5.])
    """
    return Statistic.median(n, middle, f)


@column_rule(
    needs="2f + 1",
    paper="Yin et al., Byzantine-robust distributed learning, ICML 2018, definition 2",
    guarantee="(f, kappa)",
    kappa=proofs.trimmed_mean,
)
def trimmed_mean(n: int, f: int) -> Statistic:
    """Return, for each coordinate, the mean of what is left without the f least and f greatest.

    The kept values themselves are added up: a sum of everything minus the extremes would lose
    them beside one large value.

    Examples
    --------
    >>> fg.trimmed_mean(np.array([[1.0], [2.0], [4.0], [1e8]]), f=1)
    array([3.])
    """
    return Statistic.between(n, f, n - f, f)


@column_rule(
    needs="2f + 1",
    paper="Xie et al., Generalized Byzantine-tolerant SGD, 2018 (mean around median)",
    guarantee="(f, kappa)",
    kappa=proofs.meamed,
    variants={"aggregathor": {"middle": "upper"}},
)
def meamed(n: int, f: int, *, middle: Middle = "mean") -> Statistic:
    """Return, for each coordinate, the mean of the n-f values closest to the median.

    Of two values equally close, the smaller comes first.

    Options
    -------
    middle : {"mean", "lower", "upper"}
        Which median, when n is even.

    Examples
    --------
    >>> fg.meamed(np.array([[1.0], [2.0], [3.0], [1e8], [2.5]]), f=2)
    array([2.5])
    """
    return Statistic.median(n, middle, f, closest=n - f)


@column_rule(
    needs="2f + 1",
    paper="Xie et al., Phocas: dimensional Byzantine-resilient SGD, 2018",
    kappa=proofs.phocas,
    guarantee="(f, kappa)",
)
def phocas(n: int, f: int) -> Statistic:
    """Return, for each coordinate, the mean of the n-f values closest to the trimmed mean.

    Of two values equally close, the smaller comes first.

    Examples
    --------
    >>> fg.phocas(np.array([[1.0], [2.0], [3.0], [1e8], [2.5]]), f=2)
    array([2.5])
    """
    return Statistic.between(n, f, n - f, f, closest=n - f)


@column_rule(
    needs="2f + 2",
    paper="Guerraoui et al., Garfield, DSN 2021",
    guarantee=lambda options: "trusted" if options["p"] < 1 else "(f, kappa)",
    variants={"epfl": {"middle": "lower"}},
)
def condense(
    n: int, f: int, *, p: Probability = 0.9, middle: Middle = "mean", seed: Seed = 0, step: int = 0
) -> Statistic:
    """Return, for each coordinate, the median with probability p, else the value of row 0.

    Row 0 is trusted, unless p is 1.

    Options
    -------
    p : float
        Probability of the median, between 0 and 1.
    middle : {"mean", "lower", "upper"}
        Which median, when n is even.
    seed : int
        Of the draw, which also depends on the step and the coordinate (and on nothing else).

    Examples
    --------
    >>> fg.condense(np.array([[1.0], [2.0], [3.0], [5.0]]), f=1, p=1.0)
    array([2.5])
    """
    median = Statistic.median(n, middle, f)
    return replace(median, kind="condense", probability=p, key=hash_key(seed, step))


@column_rule(
    needs="2f + 1",
    f="optional",
    paper="Bernstein et al., signSGD with majority vote, ICLR 2019, algorithm 1",
    guarantee="bounded",
)
def sign_majority(n: int, f: int) -> Statistic:
    """Return, for each coordinate, the sign that most rows have: -1, 0 or 1.

    That is the sign of the sum of signs: 0 for a draw. So it is bounded by 1, and by nothing else:
    where the honest rows disagree, f rows decide.

    Examples
    --------
    >>> fg.sign_majority(np.array([[1.0, -1.0], [5.0, 2.0], [-2.0, -9.0]]))
    array([ 1., -1.])
    """
    return replace(Statistic.between(n, 0, n, f), kind="sign")
