"""The n x n mathematics against the vectors that it stands for."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import fastgar as fg
from fastgar.geometry import PAIRWISE, Geometry, medoid, rescaling
from fastgar.statistic import FAR


def vectors(n: int, d: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng([n, d, seed]).normal(size=(n, d)) + 0.5


def distances(points: np.ndarray) -> np.ndarray:
    return np.square(points[:, None] - points[None]).sum(axis=-1)


def geometry(X: np.ndarray, refs: np.ndarray | None = None, *, third: bool = False) -> Geometry:
    """Return the geometry of rows and references, from distances or from a third read as well."""
    points = X if refs is None else np.concatenate([X, refs])
    names = () if refs is None else ("origin", "reference")[: len(refs)]
    D = distances(points)
    if not third:
        return Geometry(D, names)
    found = rescaling(D, len(X))
    pivot, scale = found if found is not None else (0, np.ones(len(points)))
    scaled = scale[:, None] * (points - points[pivot])
    return Geometry(D, names, (scaled @ scaled.T, scale))


def mixture(rng: np.random.Generator, m: int, points: int) -> np.ndarray:
    W = rng.normal(size=(m, points)) * (rng.random(size=(m, points)) < 0.5)
    W[:, 0] += 1.0 - W.sum(axis=1)
    return W


@pytest.mark.parametrize("third", [False, True])
@pytest.mark.parametrize("n", [2, 7, 20, PAIRWISE + 5])
def test_distances_of_mixed_rows(n: int, third: bool) -> None:
    rng = np.random.default_rng(n)
    X = vectors(n, 6)
    if third:
        X[0] *= 1e5
    refs = np.stack([np.zeros(6), rng.normal(size=6)])
    points = np.concatenate([X, refs])
    g = geometry(X, refs, third=third)
    W = mixture(rng, n - 1, n + 2)
    V = mixture(rng, n + 1, n + 1)
    once, twice = g.mix(W), g.mix(W).mix(V)
    rows = W @ points
    scale = np.square(points).sum(axis=1).max() * np.square(W).sum(axis=1).max()
    np.testing.assert_allclose(
        once.all_distances, distances(np.concatenate([rows, refs])), atol=1e-12 * scale
    )
    rows = V @ np.concatenate([rows, refs])
    np.testing.assert_allclose(twice.rows_over_original() @ points, rows, atol=1e-10 * scale)
    np.testing.assert_allclose(twice.D, distances(rows), rtol=1e-9, atol=1e-9 * scale)


@pytest.mark.parametrize("length", [1e2, 1e4, 1e8, 1e16])
def test_what_a_long_row_costs(length: float) -> None:
    """Mixed rows that hold a share of a long row, cut down to size, keep their distances."""
    X = vectors(9, 12)
    X[3] *= length
    origin = np.zeros((1, 12))
    g = geometry(X, origin, third=length > FAR)
    W = np.eye(9, 10)
    W[3, 3], W[3, 9] = 2.0 / length, 1.0 - 2.0 / length
    rows = np.concatenate([np.delete(X, 3, axis=0), X[3:4] * (2.0 / length)])
    order = [0, 1, 2, 8, 3, 4, 5, 6, 7]
    np.testing.assert_allclose(g.mix(W).D, distances(rows)[order][:, order], rtol=1e-7, atol=1e-9)


def test_equal_rows_are_exactly_0_apart() -> None:
    X = vectors(8, 5)
    X[5] = X[2]
    W = np.zeros((4, 8))
    W[0, [0, 1, 2]] = W[1, [0, 1, 2]] = W[2, [0, 1, 5]] = 1 / 3
    W[3, 7] = 1.0
    for rows in (X, np.concatenate([X[:7], 1e6 * X[7:]])):
        D = geometry(rows).mix(W).D
        assert D[0, 1] == 0 and D[0, 2] == 0
        assert (D == D.T).all()
        assert (np.diagonal(D) == 0).all()
        assert (np.delete(D[3], 3) > 0).all()
        assert not np.isnan(D).any()


def test_pairs_that_differ_alike_tie_exactly() -> None:
    """Rows a and b swapped in two different neighbourhoods: one distance, not two."""
    g = geometry(vectors(9, 7))
    W = np.zeros((4, 9))
    for row, members in enumerate([(0, 1, 2), (0, 1, 3), (4, 5, 2), (4, 5, 3)]):
        W[row, list(members)] = 1 / 3
    D = g.mix(W).D
    assert D[0, 1] == D[2, 3]


def test_rounding_never_makes_a_distance_negative() -> None:
    """The middle of rows 0 and 1 is row 2, but distances that were rounded do not say so."""
    X = np.array([[0.0, 0.0], [2.0, 2.0], [1.0, 1.0]])
    W = np.array([[0.5, 0.5, 0.0], [0.0, 0.0, 1.0]])
    for n in (0, PAIRWISE):
        D = distances(np.concatenate([X, np.arange(2.0 * n).reshape(n, 2)]))
        D[0, 1] = D[1, 0] = 8.001
        mixed = Geometry(D).mix(np.concatenate([np.eye(n, n + 3, 3), np.pad(W, ((0, 0), (0, n)))]))
        assert mixed.D[n, n + 1] == 0
        assert (mixed.D >= 0).all()


def test_identity_changes_nothing() -> None:
    X = vectors(11, 5)
    g = geometry(X)
    assert (g.mix(np.eye(11)).D == g.D).all()


@pytest.mark.parametrize("third", [False, True])
def test_faulty_rows_through_mixing(third: bool) -> None:
    X = vectors(7, 5)
    X[1] *= 1e4 if third else 1.0
    D = distances(X)
    D[4] = D[:, 4] = np.inf
    inner = None
    if third:
        found = rescaling(D, 7)
        assert found is not None
        pivot, scale = found
        assert scale[4] == 0
        scaled = scale[:, None] * (X - X[pivot])
        inner = (scaled @ scaled.T, scale)
    g = Geometry(D, (), inner)
    assert g.any_faulty and g.faulty.tolist() == [False] * 4 + [True] + [False] * 2
    assert g.sound().tolist() == [0, 1, 2, 3, 5, 6]
    assert (g.gram[4] == 0).all() and (g.gram[:, 4] == 0).all()
    W = np.eye(7)
    W[4] = np.nan
    W[0, [0, 2]] = 0.5
    mixed = g.mix(W)
    assert mixed.faulty.tolist() == g.faulty.tolist()
    assert np.isinf(mixed.D[4]).all() and np.isinf(mixed.D[:, 4]).all()
    assert np.isnan(mixed.rows_over_original()[4]).all()
    sound = [0, 1, 2, 3, 5, 6]
    rows = np.where(np.isnan(W), 0.0, W) @ X
    np.testing.assert_allclose(
        mixed.D[np.ix_(sound, sound)], distances(rows)[np.ix_(sound, sound)], rtol=1e-9
    )


def test_order_puts_faulty_rows_last_and_ties_by_index() -> None:
    D = distances(vectors(6, 3))
    D[1] = D[:, 1] = np.inf
    g = Geometry(D)
    scores = np.array([np.inf, np.inf, 2.0, 1.0, 2.0, np.inf])
    assert g.order(scores).tolist() == [3, 2, 4, 0, 5, 1]


def test_nearest_puts_the_row_itself_first() -> None:
    X = np.zeros((5, 2))
    X[3] = 1.0
    near = geometry(X).nearest()
    assert near[:, 0].tolist() == [0, 1, 2, 3, 4]
    assert near[4].tolist() == [4, 0, 1, 2, 3]


def test_nearest_where_squares_overflow() -> None:
    X = vectors(7, 3)
    X[0], X[1], X[2] = 1e200, 1.1e200, -1e200
    with np.errstate(over="ignore"):
        D = distances(X)
    assert np.isinf(D[0, 1]) and np.isinf(D[0, 3])
    found = rescaling(D, 7)
    assert found is not None
    pivot, scale = found
    scaled = scale[:, None] * (X - X[pivot])
    g = Geometry(D, (), (scaled @ scaled.T, scale))
    assert g.nearest()[0, :2].tolist() == [0, 1]
    assert g.nearest()[0, -1] == 2


@pytest.mark.parametrize("third", [False, True])
def test_distances_to_points_and_references(third: bool) -> None:
    rng = np.random.default_rng(3)
    X = vectors(8, 5)
    X[6] *= 1e6 if third else 1.0
    refs = np.stack([np.zeros(5), rng.normal(size=5)])
    points = np.concatenate([X, refs])
    g = geometry(X, refs, third=third)
    np.testing.assert_allclose(g.distance_to("origin"), np.linalg.norm(X, axis=1), rtol=1e-12)
    np.testing.assert_allclose(
        g.distance_to("reference"), np.linalg.norm(X - refs[1], axis=1), rtol=1e-12
    )
    weights = rng.random(10)
    weights[6] = 1e-9
    weights /= weights.sum()
    expected = np.linalg.norm(X - weights @ points, axis=1)
    np.testing.assert_allclose(g.distance_to_point(weights), expected, rtol=1e-7)
    one = np.zeros(10)
    one[4] = 1.0
    assert g.distance_to_point(one)[4] == 0
    cosine = X @ refs[1] / np.linalg.norm(X, axis=1) / np.linalg.norm(refs[1])
    np.testing.assert_allclose(g.cosines(8, 9), cosine, rtol=1e-8, atol=1e-9)


def test_the_gram_matrix_is_about_a_row() -> None:
    X = vectors(9, 4)
    for third in (False, True):
        gram = geometry(X, third=third).gram
        pivot = int(np.flatnonzero(gram.diagonal() == 0)[0])
        centred = X - X[pivot]
        np.testing.assert_allclose(gram, centred @ centred.T, atol=1e-12)


# ------------------------------------------------------------------------------------ long rows


def test_the_medoid_is_honest() -> None:
    rng = np.random.default_rng(0)
    for n, f in ((3, 1), (5, 2), (11, 5), (12, 5)):
        honest = rng.normal(size=(n - f, 4))
        X = np.concatenate([np.full((f, 4), 50.0), honest])  # a dense cluster of liars
        pivot, usual = medoid(distances(X), n)
        assert pivot >= f
        assert usual <= distances(honest).max()


def test_the_medoid_among_copies() -> None:
    X = np.zeros((7, 2))
    X[5], X[6] = 1e-3, 5.0
    pivot, usual = medoid(distances(X), 7)
    assert pivot == 0 and usual == pytest.approx(2e-6)
    assert medoid(np.zeros((4, 4)), 4) == (0, 1.0)


def test_a_third_read_is_asked_for_long_rows_only() -> None:
    X = vectors(11, 20)
    assert rescaling(distances(X), 11) is None
    for factor, wanted in ((100.0, False), (1e4, True), (1e12, True)):
        Y = X.copy()
        Y[3] *= factor
        found = rescaling(distances(Y), 11)
        assert (found is not None) == wanted
        if found is not None:
            pivot, scale = found
            assert pivot != 3
            usual = np.sqrt(medoid(distances(Y), 11)[1])
            assert scale[3] * np.linalg.norm(Y[3] - Y[pivot]) == pytest.approx(usual)
            assert (scale[[i for i in range(11) if i != 3]] > 0.3).all()


def test_a_third_read_for_a_far_reference() -> None:
    X = vectors(9, 5) + 1e5  # rows near each other, far from the origin
    points = np.concatenate([X, np.zeros((1, 5))])
    assert rescaling(distances(X), 9) is None
    assert rescaling(distances(points), 9) is not None


# ------------------------------------------------------------------------------ never NaN, ever


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10_000))
def test_no_nan_and_no_warning_whatever_the_lengths(seed: int) -> None:
    rng = np.random.default_rng(seed)
    n = int(rng.integers(3, 9))
    X = rng.normal(size=(n, 4))
    for i in range((n - 1) // 2):
        X[i] *= 10.0 ** rng.integers(-300, 300)
    refs = np.zeros((1, 4))
    points = np.concatenate([X, refs])
    with np.errstate(over="ignore", under="ignore"):
        D = distances(points)
    found = rescaling(D, n)
    inner = None
    if found is not None:
        pivot, scale = found
        scaled = scale[:, None] * (points - points[pivot])
        inner = (scaled @ scaled.T, scale)
    with np.errstate(over="raise", divide="raise", invalid="raise"):
        g = Geometry(D, ("origin",), inner)
        W = np.abs(mixture(rng, n, n + 1))
        W /= W.sum(axis=1, keepdims=True)
        for each in (g, g.mix(W), g.mix(W).mix(np.eye(n, n + 1))):
            assert not np.isnan(each.D).any() and (each.D >= 0).all()
            assert not np.isnan(each.gram).any()
            assert np.isfinite(each.distance_to("origin")).all()
            assert (each.D == each.D.T).all()


def test_the_distances_that_users_see() -> None:
    X = vectors(7, 30)
    np.testing.assert_allclose(fg.sqdist(X), distances(X), rtol=1e-12)
    D = fg.sqdist(X, refs=["origin", X[0]])
    np.testing.assert_allclose(D[7, :7], np.square(X).sum(axis=1))
    assert D[8, 0] == 0
