"""Selection kernels for CUDA, run on the host, against the rules on the CPU: the same numbers."""

from __future__ import annotations

import numpy as np
import pytest
from emulation import build, guarded, needs_compiler

import fastgar
from fastgar.cuda.variants import SELECTION_ROWS, selection_scratch, selection_shape
from fastgar.errors import TooManyFaults

pytestmark = needs_compiler()

ORDERS = ("shuffled", "ascending", "descending")


def distances(n, kind, faults=0, seed=0):
    """Squared distances, as `sqdist` gives them, of rows of one kind."""
    rng = np.random.default_rng(seed + 1000 * n)
    if kind == "ties":
        X = rng.integers(0, 2, (n, 3)).astype(float)
    elif kind == "copies":
        X = rng.standard_normal((n, 5))[rng.integers(0, max(1, n // 3), n)]
    elif kind == "far":  # finite rows whose distances overflow
        X = rng.standard_normal((n, 5)) * np.where(np.arange(n) % 5 == 1, 1e200, 1)[:, None]
    else:
        X = rng.standard_normal((n, 5))
    with np.errstate(over="ignore"):
        D = ((X[:, None] - X[None]) ** 2).sum(axis=2)
    bad = rng.permutation(n)[:faults]
    D[bad] = D[:, bad] = np.inf
    return D


def launch(kernel, D, shape, *args, n=None, scratch=False, order="shuffled", kind=np.float64):
    n = len(D) if n is None else n
    out = guarded(np.full(shape, 7, kind))
    block, shared = selection_shape(n)
    arguments = [guarded(D), D.shape[1], n, *args, out]
    if scratch:
        arguments.append(guarded(np.full(selection_scratch(n), 0xAB, np.uint8)))
    build("selection.cu").launch(kernel, 1, block, arguments, shared=shared, order=order)
    return np.array(out)


def decide(rule, D, f):
    return fastgar.rule(rule, f=f).decide(D)


KINDS = ("plain", "ties", "copies", "far")
SIZES = (1, 2, 3, 5, 11, 20, 33, 64, 129)


def cases(least, *, small=False):
    """(n, f, kind of rows, faulty rows) with n >= least(f)."""
    for n in SIZES[:-2] if small else SIZES:
        for f in {0, 1, n // 4, (n - 1) // 2} if n < 50 else {n // 4 - 1}:
            if n < least(f):
                continue
            for kind in KINDS:
                for faults in {0, f}:
                    yield n, f, kind, faults


def needed(rule):
    return lambda f: fastgar.min_n(rule, f=f)


@pytest.mark.parametrize("neighbours", ["n-f-2", "n-f-1"])
@pytest.mark.parametrize("squared", [True, False])
def test_krum_and_multi_krum(neighbours, squared):
    options = f"(neighbours={neighbours!r}, squared={squared})"
    count = 0
    for n, f, kind, faults in cases(needed("krum" + options)):
        D = distances(n, kind, faults)
        kept = n - f - (neighbours == "n-f-2")
        for rule, m in (("krum", 1), ("multi_krum", max(1, n - f - 2))):
            if rule == "multi_krum" and n < fastgar.min_n(rule + options, f=f):
                continue
            want = decide(rule + options, D, f).weights
            for order in ORDERS if n == 33 else ORDERS[:1]:
                got = launch("krum", D, n, f, kept, int(squared), m, order=order)
                assert np.array_equal(got, want), (n, f, kind, faults, rule)
            count += 1
    assert count > 100


@pytest.mark.parametrize("n", [256, 257, 777, SELECTION_ROWS])
def test_krum_of_many_rows(n):
    f = n // 5
    D = distances(n, "plain", f // 2)
    for squared in (True, False):
        want = decide(f"multi_krum(squared={squared})", D, f).weights
        got = launch("krum", D, n, f, n - f - 1, int(squared), n - f - 2)
        assert np.array_equal(got, want)


def test_sums_have_the_bits_of_numpy():
    """Scores one rounding apart decide: here all rows are a rounding apart."""
    n, f = 150, 10
    rng = np.random.default_rng(5)
    D = np.abs(rng.standard_normal((n, n)))
    D = np.sort(D[0])[np.argsort(rng.random((n, n)), axis=1)]  # every row has the same distances
    D *= 1 + rng.integers(0, 3, (n, n)) * 2.0**-52
    np.fill_diagonal(D, 0)
    want = decide("multi_krum(m=60)", D, f).weights
    assert np.array_equal(launch("krum", D, n, f, n - f - 1, 1, 60), want)


@pytest.mark.parametrize("order", ORDERS)
def test_bulyan(order):
    for n, f, kind, faults in cases(needed("bulyan"), small=order != "shuffled"):
        D = distances(n, kind, faults)
        want = decide("bulyan", D, f).mix
        picks = launch("bulyan", D, n - 2 * f, f, scratch=True, order=order, kind=np.int64)
        assert len(set(picks.tolist())) == len(picks)
        assert np.array_equal(picks, want.argmax(axis=1)), (n, f, kind, faults)


def test_bulyan_of_256_rows():
    D = distances(256, "plain", 10)
    want = decide("bulyan", D, 60).mix
    picks = launch("bulyan", D, 256 - 120, 60, scratch=True, kind=np.int64)
    assert np.array_equal(picks, want.argmax(axis=1))


@pytest.mark.parametrize("order", ORDERS)
def test_bulyan_as_its_authors_wrote_it(order):
    rule = "bulyan(selection='averaged')"
    for n, f, kind, faults in cases(needed(rule), small=order != "shuffled"):
        D = distances(n, kind, faults)
        want = decide(rule, D, f).mix
        got = launch("bulyan_averaged", D, (n - 2 * f - 2, n), f, scratch=True, order=order)
        assert np.array_equal(got, want), (n, f, kind, faults)


@pytest.mark.parametrize("order", ORDERS)
def test_nearest_neighbour_mixing(order):
    for n, f, kind, faults in cases(needed("nnm"), small=order != "shuffled"):
        D = distances(n, kind, faults)
        want = decide("nnm", D, f).mix
        got = launch("nnm", D, (n, n), f, order=order)
        assert np.array_equal(got, want, equal_nan=True), (n, f, kind, faults)


def test_cge_sees_the_origin_and_rows_of_a_larger_matrix():
    for n, f, kind, faults in cases(needed("cge"), small=True):
        D = distances(n + 1, kind)
        bad = np.random.default_rng(n).permutation(n)[:faults]
        D[bad] = D[:, bad] = np.inf
        want = decide("cge", D, f).weights[:n]
        assert np.array_equal(launch("cge", D, n, f, n, n=n), want)
        if n >= fastgar.min_n("krum", f=f):
            want = decide("krum", D[:n, :n].copy(), f).weights
            assert np.array_equal(launch("krum", D, n, f, n - f - 1, 1, 1, n=n), want)


@pytest.mark.parametrize("n", [11, 40])
def test_too_many_faults_poison_everything(n):
    f = 2
    D = distances(n, "plain", f + 1)
    with pytest.raises(TooManyFaults):
        decide("krum", D, f)
    assert np.isnan(launch("krum", D, n, f, n - f - 1, 1, 1)).all()
    assert np.isnan(launch("nnm", D, (n, n), f)).all()
    assert np.isnan(launch("cge", D, n, f, 0)).all()
    assert np.isnan(launch("bulyan_averaged", D, (n - 2 * f - 2, n), f, scratch=True)).all()
    assert (launch("bulyan", D, n - 2 * f, f, scratch=True, kind=np.int64) == -1).all()
