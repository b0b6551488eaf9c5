"""The largest eigenvalue against LAPACK's."""

from __future__ import annotations

import numpy as np
import pytest

import fastgar as fg
from fastgar import reference
from fastgar.search import eigen


def with_eigenvalues(values, first):
    """Return a symmetric matrix with these eigenvalues, and its first eigenvector at right angles
    to what `first` is at right angles to, all but one."""
    n = len(values)
    basis = np.random.default_rng(1).normal(size=(n, n))
    basis[:, 0] = first
    basis, _ = np.linalg.qr(basis)
    A = basis * values @ basis.T
    return (A + A.T) / 2, basis[:, 0]


@pytest.mark.parametrize("n", [1, 24, 25, 70, 150])
@pytest.mark.parametrize("kind", ["apart", "equal", "pair", "zero"])
def test_it_is_the_largest(n, kind):
    generator = np.random.default_rng(n)
    values = np.sort(generator.random(n))[::-1]
    values[0] = 1.5
    if kind == "equal":
        values[:] = 1.5
    elif kind == "pair":
        values[:2] = 1.5
    elif kind == "zero":
        values[:] = 0.0
    A, _ = with_eigenvalues(values, generator.normal(size=n))
    value, vector = eigen.largest_eigenpair(A)
    assert value == pytest.approx(values[0], rel=1e-12)
    np.testing.assert_allclose(A @ vector, value * vector, atol=1e-12)
    assert np.linalg.norm(vector) == pytest.approx(1.0, abs=1e-12)


def test_a_start_at_right_angles_to_the_answer_is_found_out():
    n = 60
    start = np.random.default_rng(0).normal(size=n)
    first = np.random.default_rng(2).normal(size=n)
    first -= start * (first @ start) / (start @ start)
    others = np.repeat([1.0, 0.5], n // 2)
    A, vector = with_eigenvalues(np.concatenate(([1.1], others[1:])), first)
    value, found = eigen.largest_eigenpair(A)
    assert value == pytest.approx(1.1, rel=1e-12)
    assert abs(found @ vector) == pytest.approx(1.0, abs=1e-9)


@pytest.mark.parametrize("kind", ["spread", "shifted", "copies"])
def test_caf_of_many_rows(kind):
    X = np.random.default_rng(3).normal(size=(80, 6)) * np.arange(1.0, 7.0)
    if kind == "shifted":
        X[:30] += 50.0
    elif kind == "copies":
        X[:30] = X[31] * 9
    np.testing.assert_allclose(fg.caf(X, 30), reference.caf(X, 30), atol=1e-8)


@pytest.mark.parametrize("n", [7, 24, 25, 60])
@pytest.mark.parametrize("equal", [1, 2, 3, 6])
def test_all_main_directions_are_found_but_no_more_than_four_of_many(n, equal):
    values = np.linspace(1.0, 0.5, n)
    values[:equal] = 2.0
    A, _ = with_eigenvalues(values, np.random.default_rng(n).normal(size=n))
    value, vectors = eigen.largest_eigenspace(A, 1 - 1e-9)
    assert value == pytest.approx(2.0, rel=1e-12)
    assert vectors.shape == (n, equal if n <= 24 else min(equal, 4))
    np.testing.assert_allclose(A @ vectors, 2.0 * vectors, atol=1e-11)
    np.testing.assert_allclose(vectors.T @ vectors, np.eye(vectors.shape[1]), atol=1e-10)
