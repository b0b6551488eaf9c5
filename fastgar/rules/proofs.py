"""Bounds of kappa, each with its proof: how far off the honest mean a rule can be.

S is any set of h = n-f rows, mu its mean, s^2 the average over S of |x - mu|^2, F the result. To
show is |F - mu|^2 <= kappa s^2; for a column rule, coordinate by coordinate. Two lemmas:

(1) The mean of q rows of S is within sqrt((h-q)/q) s of mu, for the other h-q rows balance it.
(2) If |m - mu|^2 <= k s^2, then the average over S of |x - m|^2 is at most (1+k) s^2.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import sqrt
from typing import Any

__all__ = [
    "ENOUGH", "aksel", "bulyan", "dnc", "geometric_median", "krum", "least_spread", "mda", "meamed",
    "median", "multi_krum_variance_ratio", "phocas", "trimmed_mean", "with_arc", "with_bucketing",
    "with_nnm",
]  # fmt: skip

Options = Mapping[str, Any]

ENOUGH = 200  # steps after which `geometric_median` has converged, or warns


def median(n: int, f: int, options: Options) -> float:
    """Return the bound of any middle value of n.

    On its side of mu there are ceil(n/2) values at it or beyond, of which at least q = ceil(n/2)-f
    in S, whose mean is no nearer to mu: (1). It is f/(n-2f), the least there is, for n = 2f+1.
    """
    return n // 2 / (n - n // 2 - f)


def trimmed_mean(n: int, f: int, options: Options) -> float:
    """Return the least bound that there is.

    The value of rank i among n is at most that of rank i in S. So the mean of ranks f+1 to n-f is
    at most that of the q = n-2f greatest of S, and from below likewise: (1).
    """
    return f / (n - 2 * f)


def _nearest(centre: float, n: int, f: int) -> float:
    """Return the bound of the mean of the n-f rows (P) nearest to a centre with such a bound.

    F - mu is 1/h times the sum over P without S, less that over S without P, of x - centre. Both
    have r <= f rows, and those of P are nearer; so it is at most 2/h times the sum of r distances
    of rows of S, and that at most sqrt(r h (1 + centre)) s by Cauchy and Schwarz and (2).
    """
    return 4 * f / (n - f) * (1 + centre)


def meamed(n: int, f: int, options: Options) -> float:
    """Return the bound of the mean of the n-f values nearest to the median."""
    return _nearest(median(n, f, options), n, f)


def phocas(n: int, f: int, options: Options) -> float:
    """Return the bound of the mean of the n-f values nearest to the trimmed mean."""
    return _nearest(trimmed_mean(n, f, options), n, f)


def _few_nearest(centre: float, ratio: float = 1.0) -> float:
    """Return the bound of the mean of some rows nearest to a centre with such a bound.

    The average of |x - centre|^2 over them is at most that over as many rows of S, the nearest, and
    so at most `ratio` times that over S: (2). Their mean is no farther from the centre.
    """
    distance = sqrt(ratio * (1 + centre)) + sqrt(centre)
    return distance * distance


def aksel(n: int, f: int, options: Options) -> float:
    """Return the bound of the mean of the rows nearest to the median."""
    centre = median(n, f, options)
    return _nearest(centre, n, f) if options["mode"] == "n-f" else _few_nearest(centre)


def krum(n: int, f: int, options: Options) -> float:
    """Return the bound of the mean of at most n-f rows with the least Krum scores.

    The nearest rows that count for row i, itself among them, have a set Q of q rows in S, and
    q >= n-2f ("n-f-1" neighbours) or n-2f-1 ("n-f-2"). |x_i - mean of Q| is at most the root of
    score_i/q, or score_i/q where distances are not squared, and |mean of Q - mu| is (1). The m best
    of all rows have on average no higher scores than the m best of S, and these than all of S: 2h
    s^2, or sqrt(2) h s, as the average |x_i - x_j|^2 in S is 2 s^2.
    """
    q = n - 2 * f - (1 if options["neighbours"] == "n-f-2" else 0)
    h = n - f
    to_mean_of_q = sqrt(2 * h / q) if options["squared"] else sqrt(2) * h / q
    distance = to_mean_of_q + sqrt((h - q) / q)
    return distance * distance


def multi_krum_variance_ratio(n: int, f: int, options: Options) -> float:
    """Return a condition that follows from kappa.

    With g the expectation of the rows of S and v their variance, |E F - g|^2 <= E|F - mu|^2 <=
    kappa E s^2 = kappa (1 - 1/h) v. Below |g|^2, F points in the direction of g on average.
    """
    h = n - f
    return 1 / sqrt(krum(n, f, options) * (1 - 1 / h)) if h > 1 else float("inf")


def bulyan(n: int, f: int, options: Options) -> float | None:
    """Return the bound for any n-2f picks that are different rows.

    A median of the picks has at least q = ceil((n-2f)/2) - f values of S at it or beyond: (1). At
    least n-3f of the picks are in S, and n-4f of the picks are averaged: as in `_few_nearest`, with
    the average over those n-3f rows, which is at most h/(n-3f) times that over S.
    """
    if options["selection"] != "repeated":
        return None  # picks are averages of rows; there is a bound, but not one that says much
    picks, h = n - 2 * f, n - f
    q = picks - picks // 2 - f
    return _few_nearest((h - q) / q, h / (n - 3 * f))


def mda(n: int, f: int, options: Options) -> float:
    """Return the bound of the mean of n-f rows (P) of least diameter.

    F - mu is 1/h times the sum of r <= f differences of a row of P and one of S. Each is at most
    twice the diameter of S, by way of a row in both; and that is at most sqrt(2h) s. Where the
    search may stop at its limit, three times: it begins with the h rows nearest to one, which are
    at most twice as wide as S, as a row of S has all of S within that diameter.
    """
    return (18 if options["on_limit"] == "best" else 8) * f * f / (n - f)


def least_spread(n: int, f: int, options: Options) -> float:
    """Return the bound of the mean of n-f rows (P) of least variance, or least top eigenvalue.

    P and S share q >= n-2f rows, and (1) says how far the mean of these is from those of P and of
    S: sqrt(f/(n-2f)) s at most, as P spreads no more than S. The same along the direction of the
    difference, with the top eigenvalue of the covariance of S in place of s^2.

    Where the search may stop at its limit, P spreads up to sqrt(2) times as far: it begins with the
    h rows nearest to one, and the sum of squares about a row of S is, for one of them, 2h s^2 at
    most. (The top eigenvalue of P is then below that too, but not below that of S.)
    """
    return (1 + sqrt(2 if options["on_limit"] == "best" else 1)) ** 2 * f / (n - 2 * f)


def geometric_median(n: int, f: int, options: Options) -> float:
    """Return the bound of a point whose sum of distances is the least, or nearly.

    Let c be a point, and the sum of distances to F at most that to c plus e |F - c|, where e is the
    length of the sum of unit vectors, at most tol * n. The triangle inequality, once in S and once
    outside, gives (n - 2f - e) |F - c| <= 2 * the sum over S of |x - c|. At mu that is 2h s.
    The first step starts from the row with the least sum, and none makes it longer; so after any
    number of steps e = 0 for c a row of S, and on average over these the sum is sqrt(2) h s.
    """
    h = n - f
    e: float = options["tol"] * n
    stopped = 8 * (h / (n - 2 * f)) ** 2
    if options["max_iter"] < ENOUGH or e >= n - 2 * f:
        return stopped
    return min(stopped, 4 * (h / (n - 2 * f - e)) ** 2)


def dnc(n: int, f: int, options: Options) -> float | None:
    """Return the bound of what is left when f rows have left one by one.

    Let x be the first row of S that leaves (if none does, F = mu), Q the rows before that, S and B
    others, with mean m; along the main direction let a, b, y be the distances from m of mu, of the
    mean of the B, and of x. As h a = B b and y is the greatest of all, y >= (h/B) a; and y <= a +
    |x - mu| <= a + sqrt(h-1) s. So y <= sqrt(h-1) s h/(h-B). The variance of Q in any direction is
    at most y^2 (1.1 y^2, as that much is proved of the direction found), hence (1) puts the mean of
    any h rows of Q, such as mu and F, within sqrt(B/h) y of m; and B <= f.
    """
    if options["removal"] == "at once":
        return None
    h = n - f
    return 1.1 * 4 * f * h * (h - 1) / (n - 2 * f) ** 2


# ------------------------------------------------------------------------ a mixing step and a rule


def with_nnm(kappa: float, n: int, f: int, options: Options) -> float:
    """Return the bound with nnm before a rule (Allouah et al., AISTATS 2023, lemma 1).

    As in `_nearest`, |y_i - mu|^2 <= 4f/h^2 * the sum over S of |x - x_i|^2 for the mixed row y_i,
    on average over S at most 8f/h s^2. With v^2 the spread of these rows and m their mean, that
    average is v^2 + |m - mu|^2, and |F - mu| <= sqrt(kappa) v + |m - mu|: Cauchy and Schwarz.
    """
    return 8 * f / (n - f) * (kappa + 1)


def with_arc(kappa: float, n: int, f: int, options: Options) -> float:
    """Return the bound with arc before a rule (Allouah et al., ICLR 2025).

    Let r_i be what is cut off row i of S: v^2 + the variance of the r_i <= s^2, where v^2 is the
    spread of the cut rows, as cutting is a projection on a ball. Their mean is at most that of the
    r_i away from mu, and at most 2f(n-f)/n of the h are not 0: (1). Cauchy and Schwarz.
    """
    return kappa + 2 * f / (n - 2 * f)


def with_bucketing(kappa: float, n: int, f: int, options: Options) -> float:
    """Return the bound with bucketing before a rule with such a bound for the buckets.

    f buckets less, all others are of S; in the average over their means no row weighs more than w =
    1/(their number * the least size). About mu, rows with these weights have a second moment of at
    most w h s^2: the spread of the means, the square of how far off their average is, and more.
    """
    s: int = options["s"]
    buckets, least = -(-n // s) - f, n % s or s
    return (kappa + 1) * (n - f) / (buckets * least)
