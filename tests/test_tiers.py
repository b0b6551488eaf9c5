"""Functions of n x n numbers that are interpreted at first and compiled later: the same bits."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from fastgar.cpu import compile as tiers
from fastgar.cpu.compile import INTERPRETED, Tiered, step
from fastgar.errors import SearchLimit
from fastgar.search import geometric, selection, spectrum, subsets, variance
from fastgar.statistic import (
    CGE,
    MDA,
    MVA,
    NNM,
    Bulyan,
    CenteredClipping,
    GeometricMedian,
    Krum,
    MoNNA,
)


@step
def halved(value):
    return value / 2


def total(values):
    result = 0.0
    for value in values:
        result += halved(value)
    return result


def fresh(**seconds):
    """A tiered function that has found nothing on the disk, whatever earlier runs left there."""
    tiered = Tiered(total, **seconds)
    tiered._sought = True
    return tiered


def compiled(tiered):
    return len(tiered._compiled.signatures)


def test_what_is_quick_is_interpreted():
    tiered = fresh()
    assert tiered(np.arange(5.0)) == 5.0
    assert not compiled(tiered)


def test_it_is_compiled_when_it_took_long(monkeypatch):
    clock = iter(np.arange(100.0))
    monkeypatch.setattr(tiers, "perf_counter", lambda: next(clock))  # each call takes a second
    tiered = fresh(make=1.5)
    values = np.array([0.1, 0.7, 1e20, -3.0])
    results = [tiered(values) for _ in range(2)]
    assert not compiled(tiered)
    results.append(tiered(values))
    assert compiled(tiered)
    assert len(set(results)) == 1


def test_many_rows_are_not_interpreted():
    tiered = fresh()
    tiered(np.ones(INTERPRETED))
    assert not compiled(tiered)
    tiered(np.ones(INTERPRETED + 1))
    assert compiled(tiered)


def test_the_next_process_finds_it_on_the_disk(tmp_path):
    code = """
import sys
import numpy as np
from fastgar.search.subsets import CLOSEST
subsets = np.array([[0, 1], [0, 2], [1, 2]])
D = np.array([[0.0, 3.0, 2.0], [3.0, 0.0, 1.0], [2.0, 1.0, 0.0]])
CLOSEST._spent = float(sys.argv[1])
print(CLOSEST(D, subsets, False, np.zeros(3)), CLOSEST._ready, len(CLOSEST._compiled.signatures))
"""
    environment = {**os.environ, "NUMBA_CACHE_DIR": str(tmp_path)}

    def run(*arguments):
        command = [sys.executable, "-c", code, *arguments]
        return subprocess.check_output(command, env=environment, text=True).split()

    assert run("0") == run("0.001") == ["2", "False", "0"]  # it was sought, and is not there
    assert run("1") == ["2", "True", "1"]
    assert list(Path(tmp_path).rglob("*.nbc"))
    assert run("0.001") == ["2", "True", "1"]
    assert run("0") == ["2", "False", "0"]  # reading would take longer


def squared_distances(n, kind, seed):
    rng = np.random.default_rng(seed)
    X = rng.standard_normal((n, 4))
    if kind == "ties":
        X = rng.integers(0, 2, (n, 3)).astype(float)
    if kind == "far":
        X[0] *= 1e200
    with np.errstate(over="ignore"):
        D = np.square(X[:, None] - X).sum(axis=2)
    if kind == "faulty":
        D[1] = D[:, 1] = np.inf
    return D


CHOICES = [
    Krum(f=2, kept=5, squared=True, m=1), Krum(f=2, kept=6, squared=False, m=3),
    CGE(f=2), MoNNA(f=2, pivot=3), NNM(f=2), Bulyan(f=2), MDA(f=2), MVA(f=2),
    CenteredClipping(f=2, tau=1.5), GeometricMedian(f=2, tol=1e-9, max_iter=200),
    NNM(f=2, then=Krum(f=2, kept=5, squared=True, m=3)), NNM(f=2, then=MoNNA(f=2, pivot=3)),
    NNM(f=2, then=Bulyan(f=2)),
]  # fmt: skip


@pytest.mark.parametrize("choice", CHOICES, ids=lambda choice: type(choice).__name__)
@pytest.mark.parametrize("kind", ["plain", "ties", "far", "faulty"])
def test_both_ways_choose_the_same(choice, kind, monkeypatch):
    """Bit for bit: nobody can tell when a function was compiled."""

    def made(way):
        for name, value in vars(selection).items():
            if isinstance(value, Tiered):
                monkeypatch.setattr(selection, name, getattr(value, way))
        with np.errstate(all="ignore"):
            pairs = [selection.choose(squared_distances(11, kind, seed), choice) for seed in (0, 1)]
            found = [chosen for chosen, _ in pairs]
        monkeypatch.undo()
        return found

    for one, other in zip(made("_function"), made("_compiled"), strict=True):
        assert (one is None) == (other is None)
        if one is not None:
            np.testing.assert_array_equal(one, other)


SEARCHING = {
    "shift": (variance, variance.minimum_variance_subset),
    "lighter": (variance, variance.minimum_variance_subset),
    "swap": (variance, variance.minimum_variance_subset),
    "width": (spectrum, spectrum.minimum_spectral_subset),
    "join": (spectrum, spectrum.minimum_spectral_subset),
    "narrower": (spectrum, spectrum.minimum_spectral_subset),
}


@pytest.mark.parametrize("name", SEARCHING)
def test_searches_are_the_same(name, monkeypatch):
    module, search = SEARCHING[name]
    tiered = getattr(module, name.upper())
    monkeypatch.setattr(subsets, "FEW", 0)
    subsets.every.cache_clear()
    calls = []

    def both(*arguments):
        copies = [copied(argument) for argument in arguments]
        with np.errstate(all="ignore"):
            one, other = tiered._function(*copies), tiered._compiled(*arguments)
        assert one == other
        for a, b in zip(flat(copies), flat(arguments), strict=True):
            np.testing.assert_array_equal(a, b)
        calls.append(one)
        return other

    monkeypatch.setattr(module, name.upper(), both)
    for seed in range(3):
        D = squared_distances(20, "plain", seed)
        search(D if module is variance else (D[0] + D[0][:, None] - D) / 2, 13)
    subsets.every.cache_clear()
    assert calls


@pytest.mark.parametrize("module", [variance, spectrum], ids=["mva", "smea"])
def test_searches_end_at_the_same_point(module, monkeypatch):
    """The limit is of work that is counted, whoever does it."""
    D = np.triu(np.random.default_rng(5).integers(10, 12, (24, 24)), 1) / 10
    D = D + D.T
    arguments = (D, 13) if module is variance else ((D[0] + D[0][:, None] - D) / 2, 13)
    search = SEARCHING["swap" if module is variance else "width"][1]
    for work_limit in (5_000, 50_000, 200_000):
        ends = []
        for way in ("_function", "_compiled"):
            for name, value in vars(module).items():
                if isinstance(value, Tiered):
                    monkeypatch.setattr(module, name, getattr(value, way))
            with np.errstate(all="ignore"), pytest.raises(SearchLimit) as caught:
                search(*arguments, work_limit)
            monkeypatch.undo()
            ends.append(vars(caught.value))
        assert ends[0] == ends[1]


@pytest.mark.parametrize("kind", ["plain", "copies", "negative", "long", "vast", "faulty"])
def test_descents_are_the_same(kind):
    """Also from a matrix of products with the rounding of mixed rows on its diagonal."""
    rng = np.random.default_rng(3)
    X, length = rng.standard_normal((9, 4)), np.ones(9)
    if kind == "copies":
        X[1:7] = X[0]
    gram = (X - X[0]) @ (X - X[0]).T
    if kind == "negative":
        gram = np.diag([-1e-20, 1.0, -1e-20, 2.0, 0.0, 1.0, -1e-18, 3.0, 1.0])
    if kind == "long":
        length[2:5] = 1e8, 1e200, 1e300
    if kind == "vast":
        gram *= 1e306
    if kind == "faulty":
        gram[3, 3] = np.nan
    found = []
    for way in (geometric.DESCEND._function, geometric.DESCEND._compiled):
        room, system = np.zeros((geometric.LINES, 9)), np.empty((9, 9))
        with np.errstate(all="ignore"):
            gap = way(gram.copy(), 1 / length, 1e-9, 50, room, system)
        found.append((gap, *room[geometric.FOUND]))
    np.testing.assert_array_equal(*found)
    assert np.isfinite(found[0]).all()
    assert kind in ("vast", "faulty") or found[0][0] <= 1e-9


def copied(argument):
    if isinstance(argument, tuple):
        return tuple(copied(part) for part in argument)
    return argument.copy() if isinstance(argument, np.ndarray) else argument


def flat(arguments):
    for argument in arguments:
        if isinstance(argument, tuple):
            yield from flat(argument)
        elif isinstance(argument, np.ndarray):
            yield argument


def test_code_of_other_files_is_not_mistaken_for_today_s(monkeypatch):
    """Machine code holds that of all functions called: an edit anywhere must make it anew."""
    cache = Tiered(total)._compiled._cache
    target = selection.KRUM._compiled.targetctx.codegen()
    before = cache._index_key((), target)
    monkeypatch.setattr(tiers, "_fingerprint", lambda: 0)
    assert cache._index_key((), target) != before
