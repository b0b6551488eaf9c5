"""Comparator networks sort, and pruning keeps what the wanted ranks need."""

from __future__ import annotations

import numpy as np
import pytest

from fastgar.networks import bitonic_merge, pruned, sorting

# Comparators of the best networks known (n <= 16) and of our splits and merges beyond.
BEST = {2: 1, 3: 3, 4: 5, 5: 9, 6: 12, 7: 16, 8: 19, 9: 25, 10: 29, 11: 35, 12: 39, 13: 45, 14: 51}


def applied(network, values):
    values = values.copy()
    for i, j in network:
        low = np.minimum(values[:, i], values[:, j])
        values[:, j] = np.maximum(values[:, i], values[:, j])
        values[:, i] = low
    return values


@pytest.mark.parametrize("n", range(19))
def test_sorts_every_sequence_of_zeros_and_ones(n):
    """Which proves it for all sequences (the 0-1 principle)."""
    zeros_and_ones = (np.arange(2**n)[:, None] >> np.arange(n) & 1).astype(np.int8)
    assert np.array_equal(applied(sorting(n), zeros_and_ones), np.sort(zeros_and_ones, axis=1))


@pytest.mark.parametrize("n", range(19, 130))
def test_sorts_random_sequences(n):
    values = np.random.default_rng(n).integers(0, n, (200, n))
    assert np.array_equal(applied(sorting(n), values), np.sort(values, axis=1))


def test_sizes_are_the_best_known():
    assert {n: len(sorting(n)) for n in BEST} == BEST
    assert [len(sorting(n)) for n in (15, 16, 32, 64)] == [56, 60, 185, 531]


@pytest.mark.parametrize("n", [3, 8, 11, 20, 51])
def test_pruned_networks_deliver_the_wanted_ranks(n):
    values = np.random.default_rng(n).random((500, n))
    for wanted in ([0], [n // 2], [(n - 1) // 2, n // 2], range(n // 4, n - n // 4)):
        network = pruned(sorting(n), wanted)
        assert len(network) <= len(sorting(n))
        got = applied(network, values)[:, list(wanted)]
        assert np.array_equal(got, np.sort(values, axis=1)[:, list(wanted)])
    assert len(pruned(sorting(n), [0])) < len(sorting(n))


@pytest.mark.parametrize("size", [2, 4, 8, 16])
def test_bitonic_merge_sorts_a_run_that_rises_and_falls(size):
    rng = np.random.default_rng(size)
    for _ in range(100):
        values = np.sort(rng.random(size))
        turn = rng.integers(0, size + 1)
        bitonic = np.concatenate([values[:turn], values[turn:][::-1]])[None]
        assert np.array_equal(applied(bitonic_merge(size), bitonic)[0], values)
