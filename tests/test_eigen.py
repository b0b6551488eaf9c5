"""The main directions of the spread against LAPACK's, and what they cost."""

from __future__ import annotations

import numpy as np
import pytest

import fastgar as fg
from fastgar import reference
from fastgar.errors import SearchLimit
from fastgar.search import eigen
from fastgar.search.subsets import Limit


def with_eigenvalues(values, seed=1):
    """Return inner products of centred rows, of which these are the eigenvalues besides a 0."""
    n = len(values) + 1
    basis = np.random.default_rng(seed).normal(size=(n, n))
    basis[:, 0] = 1.0
    basis, _ = np.linalg.qr(basis)
    A = basis[:, 1:] * values @ basis[:, 1:].T
    return (A + A.T) / 2


def spread_of(K, work_limit=10**12):
    return eigen.Spread(K, Limit("dnc", len(K), len(K), work_limit))


def to_rounding(values, vectors, lengths):
    """Ask for the first vector, and for those that have the same eigenvalue."""
    for k, length in enumerate(lengths):
        if k and values[k] + length < values[0] * (1 - 1e-9):
            return None
        if length > eigen.ROUNDING * values[0]:
            return k
    return None


@pytest.mark.parametrize("n", [2, 24, 25, 68, 69, 150])
@pytest.mark.parametrize("kind", ["apart", "equal", "pair", "zero", "vast"])
def test_it_is_the_largest(n, kind):
    values = np.sort(np.random.default_rng(n).random(n - 1))[::-1]
    values[0] = 1.5
    if kind == "equal":
        values[:] = 1.5
    elif kind == "pair":
        values[:2] = 1.5
    elif kind == "zero":
        values[:] = 0.0
    unit = 2.0**900 if kind == "vast" else 1.0
    K = with_eigenvalues(values)
    found, vectors = spread_of(K * unit).main(to_rounding)
    assert found[0] / unit == pytest.approx(values[0], rel=1e-12)
    np.testing.assert_allclose(K @ vectors[0], values[0] * vectors[0], atol=1e-12)
    np.testing.assert_allclose(vectors @ vectors.T, np.eye(len(vectors)), atol=1e-12)


@pytest.mark.parametrize("n", [20, 25, 60, 100])
@pytest.mark.parametrize("equal", [2, 3, 4])
def test_directions_with_the_same_spread_are_all_found(n, equal):
    values = np.linspace(1.0, 0.5, n - 1)
    values[:equal] = 2.0
    K = with_eigenvalues(values, seed=n)
    found, vectors = spread_of(K).main(to_rounding)
    assert (found[: equal + 1] >= 2.0 * (1 - 1e-9)).sum() == equal
    np.testing.assert_allclose(K @ vectors[:equal].T, 2.0 * vectors[:equal].T, atol=1e-11)


@pytest.mark.parametrize("kind", ["plain", "far", "apart", "copies"])
def test_rows_that_go_one_after_another(kind):
    """What is found again is what a matrix of those left has; also when the longest have gone."""
    X = np.random.default_rng(4).normal(size=(80, 110))
    if kind == "far":
        X[:30] *= 10.0 ** np.arange(30)[:, None]
    elif kind == "apart":
        X[:30, :30] += np.diag(1.1 ** np.arange(100, 130))
    elif kind == "copies":
        X[:30] = 7 * X[30]
    spread = spread_of(X @ X.T)
    for goes in range(40):
        values, vectors = spread.main(to_rounding)
        Y = X[spread.rows] - X[spread.rows].mean(axis=0)
        scale = np.linalg.norm(Y, 2)
        assert np.sqrt(values[0]) == pytest.approx(scale, rel=1e-10)
        np.testing.assert_allclose(Y @ (vectors[0] @ Y) / scale**2, vectors[0], atol=1e-7)
        spread.drop(np.abs(vectors[0]).argmax())
        assert len(spread.rows) == len(set(spread.rows)) == 79 - goes


def test_weights_that_fall():
    generator = np.random.default_rng(5)
    X = generator.normal(size=(90, 120))
    spread, c = spread_of(X @ X.T), np.ones(90)
    for turn in range(8):
        c *= generator.random(90)
        c[[turn, 50 + turn]] = 0.0
        spread.weigh(c[spread.rows])
        values, vectors = spread.main(to_rounding)
        rows, share = spread.rows, c[spread.rows]
        assert sorted(rows) == np.flatnonzero(c).tolist()
        Y = X[rows] - share @ X[rows] / share.sum()
        assert values[0] == pytest.approx(np.linalg.norm(Y * np.sqrt(share)[:, None], 2) ** 2)
        direction = (np.sqrt(share) * vectors[0]) @ Y
        found = spread.projections(vectors[0])
        np.testing.assert_allclose(found, Y @ direction, atol=1e-10)


def test_a_direction_that_nothing_leads_to_is_found_out(monkeypatch):
    """If chance fails, and all starts are at right angles to it, a proof does not."""
    n = 60
    K = with_eigenvalues(np.linspace(1.0, 0.5, n - 1))
    first = np.linalg.eigh(K)[1][:, -1]
    K += 0.1 * np.outer(first, first)

    def beside(self, count):
        vectors = np.random.default_rng(6).normal(size=(count, n))
        return vectors - np.outer(vectors @ first, first)

    monkeypatch.setattr(eigen.Spread, "_by_chance", beside)

    def soon(values, vectors, lengths):
        return None if lengths[0] < 1e-3 else 0

    uncertain, _ = spread_of(K).main(soon, certain=False)
    assert uncertain[0] < 1.05
    monkeypatch.setattr(eigen, "PROVED", 1.0)
    values, vectors = spread_of(K).main(soon)
    assert values[0] == pytest.approx(1.1, rel=1e-12)
    assert abs(vectors[0] @ first) == pytest.approx(1.0, abs=1e-9)
    spread = spread_of(K)
    assert spread.proves(1.1) and not spread.proves(1.0)


def test_chance_is_drawn_by_the_rows():
    """So that nobody can aim beside it, and everybody has the same."""
    K = with_eigenvalues(np.linspace(1.0, 0.5, 39))
    first, again = (spread_of(K)._by_chance(2) for _ in range(2))
    np.testing.assert_array_equal(first, again)
    K[0, 0] = np.nextafter(K[0, 0], 2)
    assert np.abs(spread_of(K)._by_chance(2) - first).min() > 0


@pytest.mark.parametrize("n", [1, 5, 63, 64, 65, 130, 333])
def test_is_positive(n):
    K = with_eigenvalues(np.linspace(1.0, 0.5, n))[1:, 1:]
    most = np.linalg.eigvalsh(K)[-1]
    for share, positive in ((1 + 1e-9, True), (1 - 1e-9, False), (np.nan, False)):
        assert eigen.POSITIVE(share * most * np.eye(n) - K) is positive


@pytest.mark.parametrize("n", [1, 2, 7, 70, 101])
@pytest.mark.parametrize("count", [1, 3, 4, 9])
def test_products(n, count):
    generator = np.random.default_rng(n)
    K = generator.normal(size=(n + 3, n + 3))
    K = K + K.T
    X, products = generator.normal(size=(count, n)), np.full((count, n), np.nan)
    eigen.TIMES(K, X, products)
    np.testing.assert_allclose(products, X @ K[:n, :n], atol=1e-12)


@pytest.mark.parametrize("kind", ["spread", "shifted", "copies"])
def test_caf_of_many_rows(kind):
    X = np.random.default_rng(3).normal(size=(80, 6)) * np.arange(1.0, 7.0)
    if kind == "shifted":
        X[:30] += 50.0
    elif kind == "copies":
        X[:30] = X[31] * 9
    np.testing.assert_allclose(fg.caf(X, 30), reference.caf(X, 30), atol=1e-8)


@pytest.mark.parametrize("kind", ["plain", "far", "near", "copies", "twins"])
def test_dnc_of_many_rows(kind):
    """The row that leaves is the one that stands out, also where others do nearly as much."""
    X = np.random.default_rng(7).normal(size=(48, 60))
    if kind == "far":
        X[:20] *= 1.5 ** np.arange(20)[:, None]
    elif kind == "near":
        X[:20] = X[20] + 1e-3 * X[:20]
    elif kind == "copies":
        X[:20] = 2 * X[20]
    elif kind == "twins":
        X[:20:2] = X[1:21:2]
    np.testing.assert_allclose(fg.dnc(X, 20), reference.dnc(X, 20), rtol=1e-9)


@pytest.mark.parametrize(("rule", "n"), [("caf", 20), ("caf", 90), ("dnc", 20), ("dnc", 90)])
def test_the_limit_of_what_is_counted(rule, n):
    """The same end each time; the best weights of caf are those of the least eigenvalue so far."""
    X = np.random.default_rng(8).normal(size=(n, 100))
    f = n // 2 - 1
    whole = fg.inspect(rule, X, f).weights
    for work_limit in (1, 10**5, 10**6, 10**7, 10**9):
        ends = []
        for _ in range(2):
            try:
                np.testing.assert_array_equal(
                    fg.inspect(f"{rule}(work_limit={work_limit})", X, f).weights, whole
                )
            except SearchLimit as error:
                ends.append(vars(error))
                assert work_limit < error.work <= work_limit + 100_000 + 10 * n**2 + n**3
                for words in (rule, "nnm | trimmed_mean", "smaller f", "larger work_limit"):
                    assert words in str(error)
                assert "on_limit" not in str(error) and error.bound == 0 and error.gap == 1
        if not ends:
            break
        assert ends == [ends[0], ends[0]]
        error = ends[0]
        if rule == "dnc" or not error["best"]:
            assert error["best"] == () and error["value"] == np.inf
        else:
            c = np.array(error["best"])
            assert len(c) == n and c.sum() == pytest.approx(1)
            Y = (X - c @ X) * np.sqrt(c)[:, None]
            assert error["value"] == pytest.approx(np.linalg.norm(Y, 2) ** 2)
    else:
        raise AssertionError("it never ends")
