"""The exact subset searches against trying every subset."""

from __future__ import annotations

import pickle
from itertools import combinations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

import fastgar as fg
from fastgar.errors import SearchLimit
from fastgar.search import subsets
from fastgar.search.bitsets import find_cover, pack, pack_all, unpack
from fastgar.search.diameter import minimum_diameter_subset
from fastgar.search.spectrum import minimum_spectral_subset
from fastgar.search.variance import minimum_variance_subset

SEARCHES = [minimum_diameter_subset, minimum_variance_subset, minimum_spectral_subset]


@pytest.fixture(autouse=True, scope="module", params=["all", "search"])
def how_small_problems_are_solved(request):
    """By looking at all subsets, as usual, or by the search that larger ones need."""
    usual = subsets.FEW
    subsets.FEW = usual if request.param == "all" else 0
    subsets.every.cache_clear()
    yield
    subsets.FEW = usual
    subsets.every.cache_clear()


def test_all_subsets_come_in_order():
    few = subsets.every(5, 3)
    assert (few is None) == (subsets.FEW == 0)
    if few is not None:
        assert few.tolist() == [list(some) for some in combinations(range(5), 3)]
    assert subsets.every(30, 20) is None


def distances(X):
    return np.square(X[:, None] - X).sum(axis=2)


def gram(X, pivot=0):
    return (X - X[pivot]) @ (X - X[pivot]).T


def spectral_width(X):
    """Return the largest eigenvalue of the scatter, from the rows themselves."""
    return np.linalg.norm(X - X.mean(axis=0), 2) ** 2


def best(n, size, width, tie):
    """Return the lexicographically first of the subsets of least width, and that width."""
    candidates = list(combinations(range(n), size))
    widths = np.array([width(list(subset)) for subset in candidates])
    # `<=` alone, as the least may be infinite, and equal rows may round to a little over 0.
    first = np.flatnonzero((widths <= widths.min() * (1 + tie)) | (widths <= tie))[0]
    return list(candidates[first]), widths.min()


def check_distances(D, size):
    n = len(D)
    expected, _ = best(n, size, lambda rows: D[np.ix_(rows, rows)].max(), 0.0)
    assert minimum_diameter_subset(D, size).tolist() == expected
    expected, _ = best(n, size, lambda rows: D[np.ix_(rows, rows)].sum(), 1e-12)
    assert minimum_variance_subset(D, size).tolist() == expected


def check_rows(X, size):
    check_distances(distances(X), size)
    expected, _ = best(len(X), size, lambda rows: spectral_width(X[rows]), 1e-11)
    for pivot in (len(X) // 2, len(X) - 1):
        assert minimum_spectral_subset(gram(X, pivot), size).tolist() == expected


def draw(kind, n, generator):
    """Return n rows: what a search may find hard, or find easy but get wrong."""
    X = generator.normal(size=(n, 4))
    if kind == "wide":
        return generator.normal(size=(n, 400))
    if kind == "lattice":
        return generator.integers(0, 3, size=(n, 2)).astype(float)
    if kind == "copies":
        X[n // 2 :] = X[0]
    elif kind == "pairs":
        X = X[np.arange(n) // 2]
    elif kind == "same":
        X[:] = X[0]
    elif kind == "far":
        X[: n // 2 - 1] *= 1e30
    elif kind == "corners":
        return np.eye(n)
    return X


@pytest.mark.parametrize(
    "kind", ["narrow", "wide", "lattice", "copies", "pairs", "same", "far", "corners"]
)
def test_is_the_best_of_all_subsets(kind):
    generator = np.random.default_rng(0)
    for n in (1, 2, 3, 5, 7, 8, 10):
        for f in range((n - 1) // 2 + 1):
            check_rows(draw(kind, n, generator), n - f)


def test_keeps_few_of_many():
    generator = np.random.default_rng(1)
    for size in (1, 2, 3):
        check_rows(generator.normal(size=(8, 3)), size)


def test_distances_need_not_be_of_points():
    generator = np.random.default_rng(2)
    for case in range(60):
        n = int(generator.integers(2, 11))
        D = np.triu(generator.integers(0, 4, size=(n, n)), 1).astype(float)
        check_distances(D + D.T, n - case % ((n + 1) // 2))


def test_larger_sets():
    generator = np.random.default_rng(3)
    for n, f in ((14, 5), (13, 6), (15, 4)):
        check_rows(generator.normal(size=(n, 3)), n - f)
        check_rows(generator.normal(size=(n, 60)), n - f)
        X = generator.normal(size=(n, 60))
        X[:f] = X[f:].mean(axis=0) - 0.7 + X[:f] / 1e3
        check_rows(generator.permutation(X), n - f)


def test_rows_far_apart():
    """Infinite distances between rows that are not faulty, down to no subset without any."""
    generator = np.random.default_rng(4)
    for density in (0.1, 0.3, 0.6, 1.0):
        for n in (2, 5, 9):
            far = np.triu(generator.random((n, n)) < density, 1)
            D = distances(generator.integers(0, 3, size=(n, 3)).astype(float))
            D[far | far.T] = np.inf
            check_distances(D, n - (n - 1) // 2)


def test_faulty_rows_are_never_chosen():
    generator = np.random.default_rng(5)
    X = generator.normal(size=(11, 3))
    faulty = np.isin(np.arange(11), [0, 4, 9])
    healthy = np.flatnonzero(~faulty)
    D = distances(X)
    D[faulty], D[:, faulty] = np.inf, np.inf
    K = gram(X, pivot=1)
    K[faulty], K[:, faulty] = np.nan, np.nan
    for size in (6, 7, 8):
        for search in (minimum_diameter_subset, minimum_variance_subset):
            within = search(distances(X[healthy]), size)
            assert search(D, size).tolist() == healthy[within].tolist()
        within = minimum_spectral_subset(gram(X[healthy]), size)
        found = minimum_spectral_subset(K, size, allowed=~faulty)
        assert found.tolist() == healthy[within].tolist()
    with pytest.raises(ValueError, match="a subset of 9 rows needs as many usable ones, got 8"):
        minimum_diameter_subset(D, 9)
    with pytest.raises(ValueError, match="needs as many usable ones"):
        minimum_variance_subset(D, 9)
    with pytest.raises(ValueError, match="needs as many usable ones"):
        minimum_spectral_subset(K, 9, allowed=~faulty)


def test_rows_of_infinite_length():
    X = np.random.default_rng(6).normal(size=(9, 3))
    K = gram(X, pivot=8)
    K[[1, 3]], K[:, [1, 3]] = np.nan, np.nan
    K[1, 1] = K[3, 3] = np.inf
    near = np.array([0, 2, 4, 5, 6, 7, 8])
    expected = near[minimum_spectral_subset(gram(X[near]), 6)]
    assert minimum_spectral_subset(K, 6).tolist() == expected.tolist()
    assert minimum_spectral_subset(K, 8).tolist() == list(range(8))


@pytest.mark.parametrize("scale", [1e-150, 1e-30, 1e30, 1e150])
def test_scale_does_not_matter(scale):
    X = np.random.default_rng(7).normal(size=(10, 4))
    for search, matrix in zip(SEARCHES, (distances, distances, gram), strict=True):
        assert search(matrix(X * scale), 6).tolist() == search(matrix(X), 6).tolist()


def test_no_digits_are_lost_to_far_rows():
    """Rows whose squared lengths are 1e300 times the others' leave the choice among those alone."""
    generator = np.random.default_rng(8)
    X = generator.normal(size=(12, 4))
    far = np.isin(np.arange(12), [1, 5, 8])
    X[far] *= 1e150
    near = np.flatnonzero(~far)
    for search, matrix in zip(SEARCHES, (distances, distances, gram), strict=True):
        found = search(matrix(X), 8, work_limit=1_000_000)
        assert found.tolist() == near[search(matrix(X[near]), 8)].tolist()


def test_any_pivot_will_do():
    generator = np.random.default_rng(14)
    for X in (generator.normal(size=(12, 5)), generator.integers(0, 3, size=(12, 3)) + 0.5):
        expected = minimum_spectral_subset(gram(X), 7).tolist()
        for distance in (1.0, 1e3, 1e5):
            moved = X + distance
            assert minimum_spectral_subset(moved @ moved.T, 7).tolist() == expected


@pytest.mark.parametrize("search", SEARCHES)
def test_a_small_difference_is_no_tie(search):
    """Rows at 0, 1, 2, ... have many best subsets; the last is the best by 1 part in 1e9."""
    X = np.arange(9.0)[:, None]
    matrix = gram if search is minimum_spectral_subset else distances
    assert search(matrix(X), 5).tolist() == [0, 1, 2, 3, 4]
    X[8] -= 4e-9
    assert search(matrix(X), 5).tolist() == [4, 5, 6, 7, 8]
    X[8] += 4e-9 - 4e-15
    if search is not minimum_diameter_subset:
        assert search(matrix(X), 5).tolist() == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("search", SEARCHES)
def test_more_rows_than_bits_in_a_word(search):
    """A tight group of 90 among 150 rows, of which 60 are copies of one another."""
    generator = np.random.default_rng(9)
    rows = generator.permutation(150)
    X = np.full((150, 3), 5.0)
    X[rows[:90]] = generator.normal(size=(90, 3)) / 8
    matrix = gram(X) if search is minimum_spectral_subset else distances(X)
    assert search(matrix, 90).tolist() == sorted(rows[:90])


@pytest.mark.parametrize("f", [30, 40, 49])
def test_no_two_of_a_hundred_rows_can_be_exchanged(f):
    """A necessary condition where not all subsets can be tried, for all three measures."""
    X = np.random.default_rng(f).normal(size=(100, 2))
    D = distances(X)
    kept = minimum_diameter_subset(D, 100 - f)
    diameter = D[np.ix_(kept, kept)].max()
    left_out = np.setdiff1d(np.arange(100), kept)
    for row in kept:
        others = np.setdiff1d(kept, row)
        if D[np.ix_(others, others)].max() < diameter:
            assert (D[np.ix_(others, left_out)].max(axis=0) >= diameter).all()
    kept = minimum_variance_subset(D, 100 - f)
    nearest = np.argsort(np.square(X - X[kept].mean(axis=0)).sum(axis=1))[: 100 - f]
    assert kept.tolist() == sorted(nearest)


def test_a_large_group_of_copies():
    """45 copies beside 55 Gaussian rows, with room to leave out either."""
    generator = np.random.default_rng(10)
    rows = generator.permutation(100)
    X = generator.normal(size=(100, 2))
    X[rows[:45]] = 1e6
    assert minimum_diameter_subset(distances(X), 55).tolist() == sorted(rows[45:])
    X[rows[:45]] = X[rows[45]]
    D = distances(X)
    kept = minimum_diameter_subset(D, 55)
    assert np.isin(rows[:46], kept).all()  # 46 equal rows, and the 9 nearest to each other and them
    alone = np.setdiff1d(kept, rows[:46])
    assert alone.size == 9
    assert D[np.ix_(kept, kept)].max() <= np.sort(D[rows[0]])[54] * 4


def near_or_far(n, generator):
    """Squared distances of which each is 1 or 1.1: what liars may choose makes searches hard."""
    D = np.triu(np.where(generator.random((n, n)) < 0.5, 1.0, 1.1), 1)
    return D + D.T


def stopped(search, matrix, size, work_limit):
    """Return the error in which a search ends, if it does."""
    try:
        search(matrix, size, work_limit=work_limit)
    except SearchLimit as error:
        return error
    return None


def test_the_limit_is_an_error_never_an_approximation():
    D = np.triu(np.random.default_rng(11).random((90, 90)), 1)
    with pytest.raises(SearchLimit, match=r"mda is exact.*46 of 90 rows \(f = 44\)") as caught:
        minimum_diameter_subset(D + D.T, 46, work_limit=1)
    error = caught.value
    assert (error.rule, error.n, error.f, len(error.best)) == ("mda", 90, 44, 46)
    for words in ("work_limit", "on_limit='best'", "smaller f", "nnm", f"{error.gap:.1%} below"):
        assert words in str(error)
    again = pickle.loads(pickle.dumps(error))
    assert str(again) == str(error) and vars(again) == vars(error) and again.gap == error.gap


def width_of(search, X, rows):
    """Return a diameter, a variance or a largest eigenvalue of a covariance."""
    D = distances(X[rows])
    if search is minimum_diameter_subset:
        return np.sqrt(D.max())
    if search is minimum_variance_subset:
        return D.mean() / 2
    return spectral_width(X[rows]) / len(rows)


@pytest.mark.parametrize("search", SEARCHES)
def test_what_is_left_at_the_limit(search, monkeypatch):
    """The best rows are robust, their value is theirs, and no subset is below the bound."""
    monkeypatch.setattr(subsets, "FEW", 0)
    subsets.every.cache_clear()
    generator = np.random.default_rng(15)
    gaps, last = [], None
    for kind in ("narrow", "wide", "lattice", "pairs", "far", "corners"):
        X = draw(kind, 10, generator)
        matrix = gram(X, 9) if search is minimum_spectral_subset else distances(X)
        _, least = best(10, 6, lambda rows, X=X: width_of(search, X, list(rows)), 0.0)
        for work_limit in (1, 3000, 10_000, 30_000, 100_000):
            error = stopped(search, matrix, 6, work_limit)
            if error is None:
                break
            last = error
            assert list(error.best) == sorted(set(error.best)) and len(error.best) == 6
            value = width_of(search, X, list(error.best))
            assert error.value == pytest.approx(value, rel=1e-9, abs=1e-12)
            assert error.bound <= least * (1 + 1e-12) + 1e-12
            factor = 10 if search is minimum_spectral_subset else 2
            assert value <= factor * least * (1 + 1e-9) + 1e-12
            assert error.gap == (1 - error.bound / error.value if error.value else 0.0)
            gaps.append(error.gap)
        else:
            raise AssertionError("the search never ends")
    assert last is not None and min(gaps) < 0.01 < max(gaps) < 1


@pytest.mark.parametrize("search", SEARCHES)
@pytest.mark.parametrize(("n", "f"), [(40, 19), (100, 49), (300, 149)])
def test_work_ends_at_the_limit(search, n, f):
    """With the most that the steps may take which are not cut short: that of one elimination."""
    generator = np.random.default_rng(n)
    D = near_or_far(n, generator)
    for case in (D, distances(generator.normal(size=(n, 50)))):
        matrix = (case[0] + case[0][:, None] - case) / 2
        matrix = matrix if search is minimum_spectral_subset else case
        for work_limit in (1, 10**6, 10**7):
            error = stopped(search, matrix, n - f, work_limit)
            assert error is None or work_limit < error.work <= work_limit + 2 * n**3
            assert error is not None or search is minimum_diameter_subset or work_limit > 10**6


@pytest.mark.parametrize("rule", ["mda", "mva", "smea"])
@pytest.mark.parametrize("kind", ["together", "apart", "vast", "faulty", "beside", "little"])
def test_the_best_rows_at_the_limit_are_robust(rule, kind):
    """From the first operation on: no far row among them, and the mean within what is promised."""
    n, f = 41, 19
    X = np.random.default_rng(16).normal(size=(n, 60))
    lies = X[:f]
    if kind == "together":
        lies += 1e6
    elif kind == "apart":
        lies *= 1e6
    elif kind == "vast":
        lies *= 1e200
    elif kind == "faulty":
        lies[::2], lies[1::2] = np.nan, 1e30
    elif kind == "beside":
        lies[:] = X[f:].mean(axis=0) + 1.2 + lies / 100
    else:
        lies[:] = X[f:].mean(axis=0) + lies / 1e3
    with pytest.raises(SearchLimit, match=f"{rule} is exact"):
        fg.rule(f"{rule}(work_limit=1)", f)(X)
    report = fg.inspect(f"{rule}(work_limit=1, on_limit='best')", X, f)
    if kind in ("together", "apart", "vast", "faulty"):
        assert report.selected == tuple(range(f, n))
    honest = X[f:]
    off = np.square(report.aggregate - honest.mean(axis=0)).sum()
    if rule == "mda":
        assert off <= (3 * f / (n - f)) ** 2 * distances(honest).max()
    else:
        assert off <= 5.9 * f / (n - 2 * f) * distances(honest).mean() / 2


@pytest.mark.parametrize("search", SEARCHES)
def test_sizes_that_cannot_be(search):
    for size in (0, 5, -1):
        with pytest.raises(ValueError, match=f"between 1 and 4 of them, not {size}"):
            search(np.zeros((4, 4)), size)


@pytest.mark.parametrize("search", SEARCHES)
def test_layout_does_not_matter_and_the_input_stays(search):
    X = np.random.default_rng(12).normal(size=(12, 5))
    matrix = gram(X) if search is minimum_spectral_subset else distances(X)
    expected = search(matrix, 8).tolist()
    wide = np.zeros((12, 24))
    wide[:, ::2] = matrix
    for same in (np.asfortranarray(matrix), wide[:, ::2], matrix.copy()):
        same.setflags(write=False)
        assert search(same, 8).tolist() == expected
        assert np.array_equal(same, matrix)


def test_cover_against_all_subsets():
    generator = np.random.default_rng(13)
    for case in range(120):
        n = int(generator.integers(1, 10))
        adjacent = np.triu(generator.random((n, n)) < (0.15, 0.35, 0.7)[case % 3], 1)
        adjacent = adjacent | adjacent.T
        undecided = generator.random(n) < 0.9
        rows = np.flatnonzero(undecided)
        least = next(
            size
            for size in range(n + 1)
            for cover in combinations(rows, size)
            if not adjacent[np.ix_(left := np.setdiff1d(rows, cover), left)].any()
        )
        for budget in range(n + 1):
            found, _ = find_cover(pack_all(adjacent), pack(undecided), budget, 1000)
            assert (found is not None) == (budget >= least)
            if found is not None:
                cover = unpack(found, n)
                left = undecided & ~cover
                assert not adjacent[np.ix_(left, left)].any()
                assert np.count_nonzero(cover) <= budget and not (cover & ~undecided).any()


@pytest.mark.parametrize("n", [1, 63, 64, 65, 200])
def test_packing(n):
    flags = np.random.default_rng(n).random((3, n)) < 0.5
    sets = pack_all(flags)
    assert sets == [sum(1 << int(row) for row in np.flatnonzero(flag)) for flag in flags]
    assert sets == [pack(flag) for flag in flags]
    assert all(
        np.array_equal(unpack(rows, n), flag) for rows, flag in zip(sets, flags, strict=True)
    )


@settings(max_examples=60, deadline=None)
@given(
    arrays(np.int8, st.tuples(st.integers(1, 8), st.integers(1, 3)), elements=st.integers(-2, 2)),
    st.integers(0, 3),
)
def test_points_of_a_small_lattice(points, f):
    n = len(points)
    check_rows(points.astype(float), n - min(f, (n - 1) // 2))


def test_a_search_in_slices_finds_the_same(monkeypatch):
    from fastgar.search import spectrum, variance

    generator = np.random.default_rng(21)
    X = generator.normal(size=(17, 40))
    expected = [minimum_variance_subset(distances(X), 11), minimum_spectral_subset(gram(X), 11)]
    for module in (variance, spectrum):
        monkeypatch.setattr(module, "SLICE", 3)
    found = [minimum_variance_subset(distances(X), 11), minimum_spectral_subset(gram(X), 11)]
    assert [rows.tolist() for rows in found] == [rows.tolist() for rows in expected]
