"""Attacks: every formula against NumPy written out again, every library, every way to name one."""

from __future__ import annotations

import doctest
import importlib.metadata
import inspect
import math
import pickle
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from statistics import NormalDist
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import fastgar as fg
from fastgar import attacks, primitives
from fastgar.attacks import Attack, View, attack, forget, label_flip, list_attacks, register
from fastgar.attacks import registry as registry_module
from fastgar.attacks.registry import lookup
from fastgar.attacks.search import line_maximum

Array = np.ndarray


def made(h: int = 9, shape: tuple[int, ...] = (37,), seed: int = 1, mean: float = 0.5) -> Array:
    return np.random.default_rng([seed, h]).standard_normal((h, *shape)) + mean


HONEST = made()
OWN = made(3, seed=2)
LIBRARIES = ["numpy", "torch", "jax"]


def to(library: str, X: Array, dtype: str = "float32") -> Any:
    """Return X as an array of a library, which is skipped if it is not there."""
    if library == "numpy":
        return X.astype(dtype)
    if library == "torch":
        torch = pytest.importorskip("torch")
        return torch.from_numpy(X.copy()).to(getattr(torch, dtype))
    jnp = pytest.importorskip("jax.numpy")
    return jnp.asarray(X.astype("float32")).astype(dtype)


def back(x: Any) -> Array:
    """Return an array of any library in float64."""
    return np.asarray(x.float() if hasattr(x, "detach") else x, dtype=np.float64)


def squares(A: Array, B: Array) -> Array:
    return ((A[:, None] - B[None]) ** 2).sum(-1)


@pytest.fixture(autouse=True)
def leave_no_attack_behind() -> Iterator[None]:
    before = set(list_attacks())
    yield
    for name in set(list_attacks()) - before:
        forget(name)


# ---------------------------------------------------- the formulas, in float64 and written anew


def little_oracle(X: Array, q: int, k: float = 1.5) -> Array:
    mean = X.sum(0) / len(X)
    return mean - k * np.sqrt(((X - mean) ** 2).sum(0) / len(X))


def auto_oracle(X: Array, q: int) -> Array:
    n = len(X) + q
    return little_oracle(X, q, abs(NormalDist().inv_cdf((n - math.floor(n / 2 + 1)) / (n - q))))


def bulyan_oracle(X: Array, k: float, coordinate: int | None) -> Array:
    row = X.mean(0)
    row[slice(None) if coordinate is None else coordinate] += k
    return row


def perturbation(X: Array, direction: str) -> Array:
    mean = X.mean(0)
    return -{"unit": mean / np.linalg.norm(mean), "sign": np.sign(mean), "std": X.std(0)}[direction]


def bisected(inside: Callable[[float], bool]) -> float:
    """Return the largest number for which a condition holds, as the paper finds it."""
    low, high = 0.0, 1.0
    while inside(high):
        low, high = high, 2 * high
    for _ in range(80):
        middle = (low + high) / 2
        low, high = (middle, high) if inside(middle) else (low, middle)
    return low


def min_max_oracle(X: Array, direction: str) -> Array:
    mean, p = X.mean(0), perturbation(X, direction)
    diameter = squares(X, X).max()
    gamma = bisected(lambda g: squares((mean + g * p)[None], X).max() <= diameter)
    return mean + gamma * p


def min_sum_oracle(X: Array, direction: str) -> Array:
    mean, p = X.mean(0), perturbation(X, direction)
    limit = squares(X, X).sum(1).max()
    gamma = bisected(lambda g: squares((mean + g * p)[None], X).sum() <= limit)
    return mean + gamma * p


def anti_cge_oracle(X: Array, f: int) -> Array:
    X = X[np.argsort(np.linalg.norm(X, axis=1))]
    total = X[: len(X) - f].sum(0)
    return -total / np.linalg.norm(total) * np.linalg.norm(X[len(X) - f]) * 0.999


def mimic_oracle(X: Array) -> Array:
    return X[np.linalg.norm(X - X.mean(0), axis=1).argmax()]


def heuristic_oracle(X: Array) -> Array:
    _, _, directions = np.linalg.svd(X - X.mean(0))
    return X[np.abs((X - X.mean(0)) @ directions[0]).argmax()]


def krum_picks(X: Array, f: int, neighbours: int) -> int:
    scores = np.sort(squares(X, X), axis=1)[:, 1 : neighbours + 1].sum(1)
    return int(scores.argmin())


def fang_oracle(X: Array, q: int) -> Array:
    (h, d), n, signs = X.shape, len(X) + q, np.sign(X.mean(0))
    nearest = np.sort(squares(X, X), axis=1)[:, 1 : n - q - 1]
    largest = math.sqrt(nearest.sum(1).min() / ((n - 2 * q - 1) * d))
    largest += np.linalg.norm(X, axis=1).max() / math.sqrt(d)
    for _ in range(60):
        row = -largest * signs
        if krum_picks(np.concatenate([X, [row] * q]), q, n - q - 2) >= h:
            break
        largest /= 2
    return row


FORMULAS: dict[str, Callable[[Array, int], Array]] = {
    "little": little_oracle,
    "little(k=-2)": lambda X, q: little_oracle(X, q, -2.0),
    "little(k='auto')": auto_oracle,
    "little(ddof=1)": lambda X, q: X.mean(0) - 1.5 * X.std(0, ddof=1),
    "empire": lambda X, q: -0.1 * X.mean(0),
    "empire(k=10)": lambda X, q: -9 * X.mean(0),
    "empire_strict": lambda X, q: -0.1 * X.mean(0),
    "empire_strict(eps=2)": lambda X, q: -2 * X.mean(0),
    "sign_flip": lambda X, q: -X.mean(0),
    "reverse": lambda X, q: -100 * X.mean(0),
    "reverse(x=0.5)": lambda X, q: -0.5 * X.mean(0),
    "bit_flip": lambda X, q: -X[0],
    "bulyan": lambda X, q: bulyan_oracle(X, 1.0, -1),
    "bulyan(k=-7, coordinate=0)": lambda X, q: bulyan_oracle(X, -7.0, 0),
    "bulyan(k=3, coordinate='all')": lambda X, q: bulyan_oracle(X, 3.0, None),
    "anti_cge": anti_cge_oracle,
    "mimic": lambda X, q: mimic_oracle(X),
    "mimic_heuristic": lambda X, q: heuristic_oracle(X),
    **{
        f"min_max(direction='{p}')": lambda X, q, p=p: min_max_oracle(X, p)
        for p in ("unit", "sign", "std")
    },
    **{
        f"min_sum(direction='{p}')": lambda X, q, p=p: min_sum_oracle(X, p)
        for p in ("unit", "sign", "std")
    },
    "fang": fang_oracle,
    "zero": lambda X, q: np.zeros(X.shape[1]),
    "inf": lambda X, q: np.full(X.shape[1], np.inf),
    "nan": lambda X, q: np.full(X.shape[1], np.nan),
    "huge": lambda X, q: np.full(X.shape[1], 1e30),
}


@pytest.mark.parametrize("shape", [(37,), (2, 3), ()], ids=str)
@pytest.mark.parametrize("q", [1, 3])
@pytest.mark.parametrize("spec", FORMULAS)
def test_formulas(spec: str, q: int, shape: tuple[int, ...]) -> None:
    X = made(9, shape)
    if shape == () and "std" not in spec:
        X[4] = 7.0  # so that in one dimension rows differ in more than rounding
    sent = attack(spec)(X, q)
    expected = FORMULAS[spec](X.reshape(9, -1), q).reshape(shape)
    assert sent.shape == shape and sent.dtype == np.float64
    np.testing.assert_allclose(sent, expected, rtol=2e-6, atol=2e-6)


@pytest.mark.parametrize("spec", ["min_max", "min_sum"])
def test_the_default_direction_is_the_unit_vector(spec: str) -> None:
    assert attack(spec) == attack(f"{spec}(direction='unit')")


@pytest.mark.parametrize("name", [n for n in list_attacks() if n != "label_flip"])
@pytest.mark.parametrize("library", LIBRARIES)
def test_every_library_gets_the_same(name: str, library: str) -> None:
    X = to(library, HONEST)
    before = back(X).copy()
    rule = fg.rule("krum", f=3)
    view = View(3, rule=rule, step=4, own=to(library, OWN), seed=2)
    sent = getattr(attacks, name)(X, q=3, view=view)
    numpy_view = View(3, rule=rule, step=4, own=OWN.astype(np.float32), seed=2)
    ours = attack(name)(HONEST.astype(np.float32), 3, view=numpy_view)
    assert type(sent) is type(X) and sent.dtype == X.dtype
    assert tuple(sent.shape) in ((37,), (3, 37)) and tuple(sent.shape) == ours.shape
    np.testing.assert_allclose(back(sent), ours, rtol=2e-5, atol=1e-5)
    assert np.array_equal(back(X), before)
    if library == "numpy":
        sent[...] = 5.0  # what is returned is not a part of the honest rows
        assert np.array_equal(X, HONEST.astype(np.float32))


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
@pytest.mark.parametrize("library", LIBRARIES)
def test_dtypes_are_kept_and_16_bits_computed_in_32(library: str, dtype: str) -> None:
    if (library, dtype) == ("numpy", "bfloat16"):
        pytest.importorskip("ml_dtypes")
    # 400^2 overflows in half precision, 1e-5^2 vanishes.
    X = to(library, made(20, (5,)) * np.array([400.0, 1e-4, 1, 1, 1]), dtype)
    for spec in ("little", "min_max", "anti_cge", "gaussian", "optimal"):
        sent = attack(spec)(X, view=View(1, rule=fg.rule("krum", f=1)))
        assert sent.dtype == X.dtype and np.isfinite(back(sent)).all()
    eps = {"float16": 2.0**-10, "bfloat16": 2.0**-7, "float32": 1e-6}[dtype]
    got, expected = back(attack("little")(X)), little_oracle(back(X), 1)
    np.testing.assert_allclose(got, expected, rtol=4 * eps, atol=1e-6)


def test_half_precision_does_not_overflow_by_accident() -> None:
    X = (10 * made(9, (5,))).astype(np.float16)
    sent = attack("optimal(empire)")(X, 2, view=View(2, rule=fg.rule("mean")))
    assert np.array_equal(np.abs(sent), np.full(5, 65504))
    assert np.isinf(attack("inf")(X)).all()
    assert np.array_equal(attack("huge(value=-1e30)")(X), np.full(5, -65504))


def test_layout_does_not_matter() -> None:
    wide = np.zeros((20, 74), dtype=np.float32)
    wide[::2, ::2][:9] = HONEST
    X = wide[::2, ::2][:9]
    X.flags.writeable = False
    for name in ("little", "min_max", "mimic", "drop"):
        np.testing.assert_allclose(
            attack(name)(X, 2), attack(name)(HONEST.astype(np.float32), 2), rtol=1e-5
        )


def test_gradients_do_not_flow_through_attacks() -> None:
    torch = pytest.importorskip("torch")
    X = to("torch", HONEST).requires_grad_()
    for name in ("little", "mimic", "min_max"):
        sent = attack(name)(X)
        assert not sent.requires_grad
    assert isinstance(sent, torch.Tensor)


# ------------------------------------------------------------------------- one attack at a time


def test_little_needs_a_minority_to_choose_its_factor() -> None:
    # 11 rows: 6 make a majority, so that 5 of the 9 honest ones may lie further in.
    k = NormalDist().inv_cdf(5 / 9)
    np.testing.assert_allclose(
        attacks.little(HONEST, 2, k="auto"), little_oracle(HONEST, 2, k), rtol=1e-6
    )
    with pytest.raises(ValueError, match="minority of attackers, got 12 of 21 rows"):
        attacks.little(HONEST, 12, k="auto")


@pytest.mark.parametrize("d", [1, 3, 70_000])
def test_deviations_are_the_same_in_blocks(d: int) -> None:
    # 9 rows have 58,254 columns in a block.
    X = made(9, (d,)).astype(np.float32)
    np.testing.assert_allclose(attacks.little(X), little_oracle(X, 1), rtol=1e-4, atol=1e-5)


def test_bit_flip_turns_what_the_first_attacker_would_send() -> None:
    assert np.array_equal(attacks.bit_flip(HONEST, 3, view=View(3, own=OWN)), -OWN[0])


@given(
    seed=st.integers(0, 10**6),
    h=st.integers(2, 12),
    d=st.integers(1, 50),
    mean=st.sampled_from([0.0, 0.1, 3.0, 1000.0]),
    direction=st.sampled_from(["unit", "sign", "std"]),
)
@settings(deadline=None, max_examples=60)
def test_min_max_and_min_sum_are_at_their_boundary(
    seed: int, h: int, d: int, mean: float, direction: str
) -> None:
    X = made(h, (d,), seed, mean)
    D, centre = squares(X, X), X.mean(0)
    for name, reached, limit in (
        ("min_max", lambda row: squares(row[None], X).max(), D.max()),
        ("min_sum", lambda row: squares(row[None], X).sum(), D.sum(1).max()),
    ):
        row = attack(f"{name}(direction='{direction}')")(X)
        assert reached(row) <= limit * (1 + 1e-9)
        assert reached(centre + (row - centre) * 1.001) > limit


@given(seed=st.integers(0, 10**6), h=st.integers(2, 15), q=st.integers(1, 6), f=st.integers(0, 6))
@settings(deadline=None, max_examples=60)
def test_anti_cge_survives_cge(seed: int, h: int, q: int, f: int) -> None:
    f %= min(q, h - 1) + 1
    X = made(h, (20,), seed)
    view = View(q, rule=fg.rule("cge", f))
    row = attacks.anti_cge(X, q, view=view)
    everyone = np.concatenate([X, [row] * q])
    assert (fg.inspect("cge", everyone, f).weights[h:] > 0).all()
    kept = np.argsort(np.linalg.norm(X, axis=1))[: h - f]
    np.testing.assert_allclose(
        row / np.linalg.norm(row), -X[kept].sum(0) / np.linalg.norm(X[kept].sum(0)), rtol=1e-6
    )
    if f:  # longer by 1 %, and the last attacker gives way to an honest row
        everyone[h:] *= 1.01
        weights = fg.inspect("cge", everyone, f).weights  # equal rows share what one of them lost
        assert weights[h:].sum() < (q - 0.5) / (h + q - f)


def test_anti_cge_takes_f_from_the_rule() -> None:
    sent = attacks.anti_cge(HONEST, 3, view=View(3, rule=fg.rule("cge", 1)))
    np.testing.assert_allclose(sent, anti_cge_oracle(HONEST, 1))


@pytest.mark.parametrize(
    "rule", ["mean", "median", "krum", "multi_krum", "nnm | geometric_median", "bulyan", "aksel"]
)
def test_mimic_copies_the_row_that_hurts_most(rule: str) -> None:
    for seed in range(4):
        X = made(12, (4,), seed)
        X[seed] += 3
        chosen = fg.rule(rule, f=None if rule == "mean" else 2)

        def harm(row: Array, X: Array = X, chosen: fg.Rule = chosen) -> float:
            return float(np.linalg.norm(chosen(np.concatenate([X, [row, row]])) - X.mean(0)))

        worst = max(harm(row) for row in X)
        sent = attacks.mimic(X, 2, view=View(2, rule=chosen))
        assert (sent == X).all(1).any()
        assert harm(sent) == pytest.approx(worst, rel=1e-6)


@given(seed=st.integers(0, 10**6), f=st.integers(1, 4), noise=st.sampled_from([0.1, 1.0, 10.0]))
@settings(deadline=None, max_examples=60)
def test_fang_makes_krum_choose_an_attacker(seed: int, f: int, noise: float) -> None:
    X = made(4 * f + 3, (30,), seed, 0.0) * noise + 1
    row = attacks.fang(X, f)
    everyone = np.concatenate([X, [row] * f])
    assert len(set(np.abs(row))) == 1
    if np.array_equal(fg.krum(everyone, f), row):
        assert (np.sign(row) == -np.sign(X.mean(0))).all()
    else:  # no length was taken; then even a row near 0 is not
        assert np.abs(row).max() < 1e-12
        everyone[-f:] = 0
        assert not np.array_equal(fg.krum(everyone, f), everyone[-1])


def test_fang_attacks_krum_where_noise_dominates_and_with_its_options() -> None:
    X = made(11, (200,), 3, 0.05)
    for spec in ("krum", "krum(neighbours='n-f-1')", "multi_krum(m=2)"):
        rule = fg.rule(spec, f=3)
        row = attack("fang")(X, 3, view=View(3, rule=rule))
        weights = fg.inspect(rule, np.concatenate([X, [row] * 3])).weights
        assert weights[11:].sum() > 0, spec


@pytest.mark.parametrize("target", ["median", "trimmed_mean"])
def test_fang_lies_just_beyond_the_honest_values(target: str) -> None:
    X = made(9, (500,), mean=0.3)
    X[:, :100] += 10  # all positive
    X[:, 100:200] -= 10
    sent = attacks.fang(X, 4, target=target, b=3.0)
    assert sent.shape == (4, 500) and len(np.unique(sent)) == sent.size
    low, high = X.min(0), X.max(0)
    down = X.mean(0) > 0
    nearest = np.where(down, low, high)
    # by a factor from 1 to 3 outwards: down from negative values, towards 0 from positive ones
    ratio = sent / nearest
    grows = np.where(down, low < 0, high > 0)
    ratio = np.where(grows, ratio, 1 / ratio)
    assert ((ratio > 1 - 1e-6) & (ratio < 3)).all()
    assert ratio.min() < 1.05 and ratio.max() > 2.9
    honest = np.median(X, axis=0) if target == "median" else X.mean(0)
    moved = fg.rule(target, 4)(np.concatenate([X, sent])) - honest
    assert (moved[down] < 0).all() and (moved[~down] > 0).all()


def test_fang_takes_its_target_from_the_rule() -> None:
    def shape(rule: Any) -> tuple[int, ...]:
        return tuple(attacks.fang(HONEST, 3, view=View(3, rule=rule)).shape)

    assert shape(fg.rule("median")) == shape(fg.rule("nnm | trimmed_mean", 3)) == (3, 37)
    assert shape(fg.rule("geometric_median")) == shape(fg.rule("krum", 3)) == shape(None) == (37,)
    assert shape(lambda X: X[0]) == (37,)


def test_label_flip_changes_labels_and_sends_nothing() -> None:
    assert np.array_equal(label_flip(np.array([0, 3, 9]), 10), [9, 6, 0])
    poison = attack("label_flip")
    assert poison.poisons and not attack("little").poisons
    assert np.array_equal(poison.labels(np.array([0, 1]), 2), [1, 0])
    labels = np.array([0, 1])
    assert attack("little").labels(labels, 2) is labels
    torch = pytest.importorskip("torch")
    flipped = poison.labels(torch.tensor([0, 2]), 3)
    assert flipped.tolist() == [2, 0] and flipped.dtype == torch.int64
    with pytest.raises(TypeError, match="changes labels and sends no vector"):
        poison(HONEST, 2)
    with pytest.raises(ValueError, match="labels must be from 0 to 2, got 0 to 3"):
        label_flip(np.array([0, 3]), 3)


# ------------------------------------------------------------------------------ random numbers


@pytest.mark.parametrize("spec", ["gaussian", "random", "drop", "fang(target='median')"])
def test_draws_follow_from_seed_and_step(spec: str) -> None:
    X = HONEST.astype(np.float32)

    def draw(seed: int = 0, step: int = 0, own: str = spec) -> Array:
        result: Array = attack(own)(X, 3, view=View(3, seed=seed, step=step, own=OWN))
        return result

    first = draw()
    assert np.array_equal(first, draw())
    assert first.shape == (3, 37) and not np.array_equal(first[0], first[1])
    seeded = spec[:-1] + ", seed=1)" if "(" in spec else spec + "(seed=1)"
    others = [draw(seed=1), draw(step=1), draw(step=2), draw(own=seeded)]
    for i, a in enumerate([first, *others]):
        for b in others[i:]:
            assert not np.array_equal(a, b)


def test_draws_are_what_their_names_say() -> None:
    X = np.ones((3, 40_000))
    normal = attacks.gaussian(X, 2, std=5.0)
    assert abs(normal.mean()) < 0.1 and normal.std() == pytest.approx(5, rel=0.02)
    assert (np.abs(normal) < 5).mean() == pytest.approx(0.6827, abs=0.01)
    assert attacks.gaussian(X).std() == pytest.approx(200, rel=0.02)
    uniform = attacks.random(X, 2, scale=4.0)
    assert 0 <= uniform.min() < 0.01 and 3.99 < uniform.max() < 4
    assert uniform.mean() == pytest.approx(2, rel=0.02)
    assert attacks.random(X).max() < 1


def test_drop_loses_coordinates() -> None:
    X = made(3, (20_000,))
    sent = attacks.drop(X, 5, p=0.2)
    whole = X[[0, 1, 2, 0, 1]]
    assert (sent == 0).mean() == pytest.approx(0.2, abs=0.01)
    assert np.array_equal(sent[sent != 0], whole[sent != 0])
    assert not np.array_equal(sent[0], sent[3])
    assert np.array_equal(attacks.drop(X, 5, p=0), whole)
    lossy = attacks.drop(X, 5, p=0.2, lost="nan")
    assert np.array_equal(np.isnan(lossy), sent == 0)
    own = made(2, (20_000,), seed=5)
    mine = attacks.drop(X, view=View(2, own=own))
    assert np.array_equal(mine[mine != 0], own[mine != 0])


# -------------------------------------------------------------------------------- the best factor


@given(
    peak=st.floats(0, 1e4), left=st.floats(0.1, 5), cliff=st.booleans(),
    tries=st.just(40) | st.integers(1, 39),
)  # fmt: skip
@settings(max_examples=200)
def test_line_maximum_returns_the_best_that_it_tried(
    peak: float, left: float, cliff: bool, tries: int
) -> None:
    seen: list[tuple[float, float]] = []

    def score(x: float) -> float:
        value = x * left + 1 if x <= peak else 0.5 if cliff else 1 + peak * left - (x - peak)
        seen.append((value, x))
        return value

    best = line_maximum(score, tries)
    assert len(seen) == tries and seen[0][1] == 0
    assert all(x >= 0 for _, x in seen)
    found = {x: value for value, x in seen}[best]
    assert found * (1 + 1e-5) >= max(value for value, _ in seen)
    if tries == 40 and peak > 1e-3:
        assert best == pytest.approx(peak, rel=1e-3, abs=1e-3)


def test_line_maximum_is_deterministic_and_steps_double() -> None:
    seen: list[float] = []

    def rises(x: float) -> float:
        seen.append(x)
        return x

    assert line_maximum(rises, 6) == 31.0
    assert seen == [0, 1, 3, 7, 15, 31]
    assert line_maximum(lambda x: 2.0, 16) == 0.0
    assert line_maximum(lambda x: math.nan, 16) == 0.0
    assert line_maximum(lambda x: 1 + 1e-6 * x, 4) == 0.0  # that is rounding


class Hidden:
    """A rule of which nothing is known but what it returns."""

    def __init__(self, rule: fg.Rule) -> None:
        self.rule = rule
        self.refs = rule.refs

    def __call__(self, X: Any, **keywords: Any) -> Any:
        return self.rule.at(self.rule.step)(X, **keywords)


def plain_factor(
    X: Array, q: int, rule: fg.Rule, base: Array, direction: Array, places: list[int],
    start: Array | None, evaluations: int = 16,
) -> float:  # fmt: skip
    """Search with the rule on whole matrices, written without the code under test."""
    n = len(X) + q
    keywords = {"start": start} if "start" in rule.refs else {}

    def score(factor: float) -> float:
        everyone = np.empty((n, X.shape[1]), X.dtype)
        everyone[places] = base + factor * direction
        everyone[[i for i in range(n) if i not in places]] = X
        aggregate = rule.at(rule.step)(everyone, **keywords).astype(np.float64)
        return float(((aggregate - X.mean(0, dtype=np.float64)) ** 2).sum())

    return line_maximum(score, evaluations)


DISTANCE_RULES = [
    "krum", "multi_krum", "krum(neighbours='n-f-1', squared=False)", "geometric_median", "rfa",
    "cge", "mda", "mva", "smea", "caf", "dnc", "monna(pivot=2)", "nnm | krum",
    "centered_clipping(tau=2.0)", "centered_clipping(tau=2.0, iters=3)",
    "clip(c=4.0) | multi_krum", "arc | nnm | geometric_median", "bucketing(s=2) | krum",
    "nnm | centered_clipping(tau=1.0)",
]  # fmt: skip
OTHER_RULES = [
    "mean", "median", "trimmed_mean", "phocas", "bulyan", "aksel", "nnm | trimmed_mean",
    "condense(seed=3)", "bucketing(s=2) | median",
]  # fmt: skip


def lines(X: Array) -> dict[str, tuple[Array, Array]]:
    """Return base and direction of some attacks with a factor."""
    mean = X.mean(0)
    last = np.zeros_like(mean)
    last[-1] = 1
    return {
        "little": (mean, -X.std(0)),
        "empire": (mean, -mean),
        "empire_strict": (0 * mean, -mean),
        "bulyan": (mean, last),
        "sign_flip": (mean, -2 * mean),
        "min_max(direction='std')": (mean, min_max_oracle(X, "std") - mean),
    }


@pytest.mark.parametrize("inner", ["little", "empire", "empire_strict", "bulyan", "sign_flip",
                                   "min_max(direction='std')"])  # fmt: skip
@pytest.mark.parametrize("rule", DISTANCE_RULES + OTHER_RULES)
def test_both_ways_find_the_same_factor(rule: str, inner: str) -> None:
    q = 3
    X = made(14, (60,), mean=0.2)
    start = made(1, (60,), seed=7)[0]
    chosen = fg.rule(rule, f=None if rule == "mean" else 3).at(4)
    base, direction = lines(X)[inner]
    for places in ([14, 15, 16], [0, 5, 6]):
        view = View(q, rule=chosen, start=start, positions=tuple(places))
        sent = attack(f"optimal({inner})")(X, q, view=view)
        factor = plain_factor(X, q, chosen, base, direction, places, start)
        np.testing.assert_allclose(sent, base + factor * direction, rtol=1e-5, atol=1e-6)
        hidden = View(q, rule=Hidden(chosen), start=start, positions=tuple(places))
        slow = attack(f"optimal({inner})")(X, q, view=hidden)
        np.testing.assert_allclose(slow, sent, rtol=1e-5, atol=1e-6)
        assert chosen.step == 4


@pytest.mark.parametrize("library", LIBRARIES)
@pytest.mark.parametrize("rule", ["krum", "nnm | trimmed_mean", "centered_clipping(tau=2.0)"])
def test_both_ways_work_in_every_library(rule: str, library: str) -> None:
    X = made(14, (2, 3), mean=0.2)
    start = made(1, (2, 3), seed=7)[0]
    chosen = fg.rule(rule, f=3)
    base, direction = lines(X.reshape(14, 6))["little"]
    factor = plain_factor(
        X.reshape(14, 6), 3, chosen, base, direction, [14, 15, 16], start.reshape(6)
    )
    for rule_of_view in (chosen, Hidden(chosen)):
        view = View(3, rule=rule_of_view, start=to(library, start))
        sent = attack("optimal")(to(library, X), 3, view=view)
        assert tuple(sent.shape) == (2, 3)
        expected = (base + factor * direction).reshape(2, 3)
        np.testing.assert_allclose(back(sent), expected, rtol=1e-4, atol=1e-4)


def test_distance_rules_cost_one_read_of_the_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    reads: list[str] = []
    for name in ("sqdist", "inner", "combine", "columns", "sqdist_to", "select", "values"):
        whole = getattr(primitives, name)

        def counted(*args: Any, _name: str = name, _whole: Any = whole, **keywords: Any) -> Any:
            reads.append(_name)
            return _whole(*args, **keywords)

        monkeypatch.setattr(primitives, name, counted)
    X = made(14, (60,))
    for spec in ("optimal", "optimal(empire, evaluations=40)", "mimic"):
        for rule in DISTANCE_RULES:
            reads.clear()
            attack(spec)(X, 3, view=View(3, rule=fg.rule(rule, f=3)))
            assert reads == ["sqdist"], (spec, rule)
    reads.clear()
    attack("optimal(evaluations=7)")(X, 3, view=View(3, rule=fg.rule("median")))
    assert reads == ["columns"] * 7
    reads.clear()
    attacks.fang(X, 3)
    assert reads == ["sqdist", "sqdist"]


def test_very_long_rows_are_looked_at() -> None:
    # An honest row a million times as long: inner products from distances would lose the others.
    X = made(14, (60,), mean=0.2)
    X[3] *= 1e6
    for rule in ("geometric_median", "nnm | krum", "arc | nnm | geometric_median"):
        chosen = fg.rule(rule, f=4)
        base, direction = X.mean(0), -X.mean(0)
        factor = plain_factor(X, 3, chosen, base, direction, [14, 15, 16], None)
        sent = attack("optimal(empire)")(X, 3, view=View(3, rule=chosen))
        np.testing.assert_allclose(sent, base + factor * direction, rtol=1e-5)


@pytest.mark.parametrize("rule", ["krum", "geometric_median", "median", "nnm | krum", "mean"])
def test_the_best_factor_hurts_more_than_the_usual_one(rule: str) -> None:
    for seed in range(5):
        X = made(14, (60,), seed, 0.1)
        chosen = fg.rule(rule, f=None if rule == "mean" else 3)

        def harm(spec: str, X: Array = X, chosen: fg.Rule = chosen) -> float:
            row = attack(spec)(X, 3, view=View(3, rule=chosen))
            return float(np.linalg.norm(chosen(np.concatenate([X, [row] * 3])) - X.mean(0)))

        assert harm("optimal(little)") >= harm("little(k=1)") * (1 - 1e-6)
        assert harm("optimal(little)") >= harm("little(k=0)") * (1 - 1e-6)
        assert harm("optimal(little, evaluations=32)") >= harm("little(k=1.5)") * 0.999


def test_a_randomised_rule_is_tried_with_the_draw_that_the_server_will_use() -> None:
    X = made(14, (5,), mean=0.2)
    rule = fg.rule("bucketing(s=2, seed=1) | median", f=2)
    sent = []
    for step in range(6):
        view = View(2, rule=rule.at(step))
        sent.append(attack("optimal(bulyan)")(X, 2, view=view))
        assert view.rule.step == step
    assert len({row.tobytes() for row in sent}) > 1  # the draw matters

    class Counting(Hidden):
        """A function that counts its calls as a rule does."""

        step = 3

        def at(self, step: int) -> Counting:
            return Counting(self.rule.at(step))

        def __call__(self, X: Any, **keywords: Any) -> Any:
            return self.rule(X, **keywords)

    row = attack("optimal(bulyan)")(X, 2, view=View(2, rule=Counting(rule.at(3))))
    np.testing.assert_allclose(row, sent[3])


def test_rows_that_are_not_finite_leave_nothing_to_search() -> None:
    X = HONEST.copy()
    X[2, 5] = np.nan
    for rule in ("krum", "median"):
        sent = attack("optimal(empire)")(X, 2, view=View(2, rule=fg.rule(rule, f=2)))
        assert np.isnan(sent[5]) and np.isfinite(np.delete(sent, 5)).all()
    for name in ("min_max", "min_sum", "mimic", "mimic_heuristic", "anti_cge", "fang"):
        assert attack(name)(X, 2).shape == (37,)


def test_rows_that_are_all_the_same_leave_nothing_to_choose() -> None:
    X = np.ones((9, 4))
    view = View(2, rule=fg.rule("krum", f=2))
    for name in ("little", "min_max(direction='std')", "min_sum", "min_max", "mimic", "optimal"):
        np.testing.assert_allclose(attack(name)(X, 2, view=view), np.ones(4))
    for name in ("min_max", "min_sum", "anti_cge", "optimal(empire)", "fang(target='median')"):
        assert np.array_equal(np.abs(attack(name)(0 * X, 2, view=view)).max(), 0.0)


# ---------------------------------------------------------------------------------- by name


def test_the_table_is_complete() -> None:
    assert set(list_attacks()) == {
        "little", "empire", "empire_strict", "sign_flip", "reverse", "bit_flip", "label_flip",
        "bulyan", "anti_cge", "mimic", "mimic_heuristic", "min_max", "min_sum", "fang", "gaussian",
        "random", "zero", "inf", "nan", "drop", "huge", "optimal",
    }  # fmt: skip


@pytest.mark.parametrize("name", [name for name in list_attacks() if hasattr(attacks, name)])
def test_documentation(name: str) -> None:
    function = getattr(attacks, name)
    documentation = inspect.getdoc(function)
    assert function.__name__ == name and documentation is not None
    for section in ("Parameters", "Returns", "Raises", "Notes", "Examples"):
        assert documentation.count(f"\n{section}\n{'-' * len(section)}\n") == 1, section
    for section in ("Options", "View"):
        assert f"\n{section}\n" not in documentation
    described = documentation.split("Parameters\n")[1].split("Returns\n")[0]
    found = re.findall(r"^(\w+) : ", described, re.MULTILINE)
    assert sorted(found) == sorted(inspect.signature(function).parameters)
    assert max(map(len, documentation.splitlines())) <= 100
    tests = doctest.DocTestParser().get_doctest(documentation, vars(attacks).copy(), name, None, 0)
    assert tests.examples
    assert doctest.DocTestRunner(optionflags=doctest.NORMALIZE_WHITESPACE).run(tests).failed == 0


def test_a_docstring_with_parameters_is_left_as_it_is() -> None:
    @register()
    def whole(honest: Any, q: int) -> Any:
        """Send the first row.

        Parameters
        ----------
        honest, q
            As for all.
        """
        return honest[0]

    assert whole.__doc__ == lookup("whole").formula.__doc__
    forget("whole")


def test_names_need_neither_torch_nor_numba() -> None:
    code = (
        "import sys, fastgar.attacks as a; a.list_attacks(); a.attack('optimal(empire)')\n"
        "print(sorted({'torch', 'numba', 'jax', 'sklearn'} & set(sys.modules)))"
    )
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert printed.stdout.strip() == "[]", printed.stderr


def test_an_attack_prints_as_it_is_written() -> None:
    for spec, printed in {
        " little ": "little",
        "empire(k=10)": "empire(k=10)",
        "little(k='auto')": "little(k='auto')",
        "optimal": "optimal",
        "optimal(empire)": "optimal(empire)",
        "optimal('empire', evaluations=8)": "optimal(empire, evaluations=8)",
        "optimal(evaluations=8, inner=bulyan(coordinate='all'))": (
            "optimal(bulyan(coordinate='all'), evaluations=8)"
        ),
        "optimal(inner=\"bulyan(coordinate='all')\")": "optimal(bulyan(coordinate='all'))",
    }.items():
        made_of = attack(spec)
        assert str(made_of) == printed
        assert attack(str(made_of)) == made_of
        assert eval(repr(made_of), {"fastgar": fg}) == made_of
        assert attack(made_of) is made_of
        assert pickle.loads(pickle.dumps(made_of)) == made_of


def test_equal_are_attacks_that_do_the_same() -> None:
    assert attack("little") == attack("little(k=1.5)") != attack("little(k=1.4)")
    assert attack("empire(k=2)") == attack("empire(k=2.0)") == Attack("empire", {"k": 2})
    assert attack("optimal") == attack("optimal(little)") != attack("optimal(empire)")
    assert attack("little") != attack("empire") and attack("little") != "little"
    same = {attack("little"), attack("little(k=1.5)"), attack("optimal"), attack("optimal(little)")}
    assert len(same) == 2


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("litle", "unknown attack 'litle': did you mean 'little'"),
        ("little(kk=2)", "unknown option of little 'kk': did you mean 'k'"),
        ("optimal(empir)", "unknown attack 'empir': did you mean 'empire'"),
        ("optimal(empire, evaluation=3)", "did you mean 'evaluations'"),
        ("little(2)", "name the options of little, as in option=value"),
        ("optimal(little, empire)", "name the options of optimal"),
        ("optimal(little(k=2))", "optimal searches for little's k: leave it out"),
        ("optimal(label_flip)", "label_flip has no factor to search for"),
        ("optimal(optimal)", "optimal has no factor to search for"),
        ("optimal(evaluations=0)", "evaluations must be an integer between 1 and 1000, got 0"),
        ("little | empire", "is no attack"),
        ("little(k=open)", "little(k=...) must be a literal, such as 2 or 'a'"),
        ("little(k=1, k=2)", "is no attack: little has k twice"),
        ("little(**{})", "is no attack"),
        ("a.b", "is no attack"),
        ("little(", "is no attack"),
        ("", "is no attack"),
        ("little(k='most')", "k must be a finite number or 'auto', got 'most'"),
        ("little(k=1e400)", "k must be"),
        ("reverse(x=-1)", "x must be a finite number above 0"),
        ("min_max(direction='up')", "direction must be 'unit' or 'sign' or 'std'"),
        ("drop(p=2)", "p must be a finite number between 0 and 1"),
        ("fang(b=0.5)", "b must be a finite number at least 1"),
        ("gaussian(seed=-1)", "seed must be an integer between 0"),
        ("x" * 3000, "at most 2000 characters"),
    ],
)
def test_an_attack_that_cannot_be_is_refused(spec: str, message: str) -> None:
    with pytest.raises(ValueError) as refused:
        attack(spec)
    assert message in str(refused.value)


def test_wrong_types_are_refused() -> None:
    for wrong, message in (
        (3, "by a string, got 3"), ("bulyan(coordinate=1.5)", "an integer or 'all', got 1.5"),
        ("little(k=None)", "a finite number or 'auto', got None"),
        ("optimal(3)", "by a string, got 3"),
    ):  # fmt: skip
        with pytest.raises(TypeError, match=message):
            attack(wrong)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: attacks.little([[1.0]]), TypeError, "are a list, not an array"),
        (lambda: attacks.little(np.ones((2, 2), int)), TypeError, "are int64, but gradients are"),
        (lambda: attacks.little(np.ones((2, 2), bool)), TypeError, "are bool"),
        (lambda: attacks.little(np.ones((2, 2), complex)), TypeError, "are complex128"),
        (lambda: attacks.little(np.ones((0, 2))), ValueError, "at least one honest row"),
        (lambda: attacks.little(np.ones((1, 2)), ddof=1), ValueError, "needs two honest rows"),
        (lambda: attacks.little(np.ones((3, 2)), ddof=2), ValueError, "between 0 and 1, got 2"),
        (lambda: attacks.little(np.float64(3)), ValueError, "at least one honest row"),
        (lambda: attacks.little(HONEST, 0), ValueError, "q must be an integer at least 1, got 0"),
        (lambda: attacks.little(HONEST, 1.5), TypeError, "q must be an integer"),
        (lambda: attacks.little(HONEST, kk=1), ValueError, "did you mean 'k'"),
        (lambda: attacks.little(HONEST, k="much"), ValueError, "or 'auto', got 'much'"),
        (lambda: attacks.little(HONEST, view=3), TypeError, "view must be a View, got int"),
        (lambda: attacks.little(HONEST, 2, view=View(3)), ValueError, "that of 3 attackers"),
        (lambda: attacks.bulyan(HONEST, coordinate=37), ValueError, "between -37 and 36"),
        (lambda: attacks.optimal(HONEST, 2), ValueError, "rule=fastgar.rule(name, f)"),
        (lambda: trial("krum", 5), ValueError, "krum needs n >= 2f + 3: with f=5 that is 13"),
        (lambda: trial("nnm", 2), ValueError, "gives a row per worker"),
        (lambda: trial("fltrust", 2), ValueError, "trusted reference"),
        (lambda: trial("krum", 2, "nan"), ValueError, "finite"),
        (lambda: trial("krum", 2, "gaussian"), ValueError, "one vector for all attackers"),
        (lambda: attacks.fang(HONEST, 9), ValueError, "fang: krum needs n >= 2f + 3"),
        (lambda: View(0), ValueError, "at least one attacker"),
        (lambda: View(2, rule="krum"), TypeError, "pass fastgar.rule('krum', f)"),
        (lambda: View(2, positions=(1, 1)), ValueError, "2 different rows, got (1, 1)"),
        (lambda: View(2, positions=(1,)), ValueError, "2 different rows"),
        (lambda: trial("krum", 2, positions=(1, 11)), ValueError, "below n = 11"),
        (
            lambda: attacks.bit_flip(HONEST, view=View(2, own=OWN)),
            ValueError,
            "view.own must hold 2 x 37 numbers, got shape (3, 37)",
        ),
    ],
)
def test_what_cannot_be_right_is_refused(
    call: Callable[[], Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error) as refused:
        call()
    assert message in str(refused.value)


def trial(rule: str, f: int, inner: str = "little", **seen: Any) -> Any:
    return attacks.optimal(HONEST, inner=inner, view=View(2, rule=fg.rule(rule, f), **seen))


# ------------------------------------------------------------------------------- one's own


def test_one_s_own_attack_has_a_name_like_all_others() -> None:
    @register()
    def towards_start(honest: Any, q: int, *, share: float = 0.5, view: View | None = None) -> Any:
        """Send a point between the mean and what the rule starts from."""
        assert view is not None
        return (1 - share) * honest.mean(0) + share * view.start

    start = np.full((2, 3), 7.0)
    X = made(5, (2, 3))
    view = View(2, start=start, rule=fg.rule("krum", 1))
    expected = 0.25 * X.mean(0) + 0.75 * 7
    np.testing.assert_allclose(towards_start(X, share=0.75, view=view), expected)
    np.testing.assert_allclose(attack("towards_start(share=0.75)")(X, 2, view=view), expected)
    assert list_attacks()[-1] == "towards_start"
    # Without a factor of its own, what it adds to the mean is what is scaled.
    sent = attack("optimal(towards_start, evaluations=3)")(
        X, view=View(2, start=start, rule=fg.rule("mean"))
    )
    np.testing.assert_allclose(sent, X.mean(0) + 3 * 0.5 * (7 - X.mean(0)))
    with pytest.raises(ValueError, match="already registered"):
        register()(towards_start)
    with pytest.raises(ValueError, match="did you mean 'share'"):
        attack("towards_start(shar=1)")
    forget("towards_start")
    with pytest.raises(ValueError, match="unknown attack 'towards_start'"):
        attack("towards_start")


def test_one_s_own_factor_is_what_optimal_searches_for() -> None:
    def ahead(honest: Any) -> tuple[Any, Any]:
        return honest.mean(0), honest[0]

    @register(factor="times", line=ahead)
    def add_first(honest: Any, q: int, *, times: float = 1.0) -> Any:
        """Add the first honest row to the mean."""
        return honest.mean(0) + times * honest[0]

    view = View(2, rule=fg.rule("mean"))
    sent = attack("optimal(add_first, evaluations=4)")(HONEST, view=view)
    np.testing.assert_allclose(sent, HONEST.mean(0) + 7 * HONEST[0])
    with pytest.raises(ValueError, match="searches for add_first's times"):
        attack("optimal(add_first(times=2))")


def test_one_s_own_attack_may_poison_or_send_a_row_each() -> None:
    @register(poisons=True)
    def next_label(labels: Any, classes: int, *, by: int = 1) -> Any:
        """Return the next label."""
        return (labels + by) % classes

    assert attack("next_label(by=2)").labels(np.array([0, 9]), 10).tolist() == [2, 1]
    assert next_label(np.array([9]), 10).tolist() == [0]

    @register()
    def each(honest: Any, q: int) -> Any:
        """Send the first q honest rows."""
        return honest[:q]

    assert np.array_equal(each(HONEST, 3), HONEST[:3])

    @register()
    def wrong(honest: Any, q: int) -> Any:
        """Send too much."""
        return honest

    with pytest.raises(ValueError, match=r"a row of 37 numbers or 3 of them, got shape \(9, 37\)"):
        wrong(HONEST, 3)


def test_declarations_that_cannot_be_are_refused() -> None:
    def nothing(honest: Any, q: int) -> Any:
        """Send nothing."""

    with pytest.raises(ValueError, match="together or not at all"):
        register(factor="k")(nothing)
    with pytest.raises(ValueError, match="has no such option"):
        register(factor="k", line=lambda honest: (honest, honest))(nothing)


def test_other_distributions_can_offer_attacks(monkeypatch: pytest.MonkeyPatch) -> None:
    class Entry:
        def __init__(self, works: bool) -> None:
            self.works = works

        def load(self) -> None:
            if not self.works:
                raise ImportError("no such module")

            @register()
            def from_elsewhere(honest: Any, q: int) -> Any:
                """Send the first row."""
                return honest[0]

    offered = [Entry(False), Entry(True)]
    monkeypatch.setattr(importlib.metadata, "entry_points", lambda group: offered)
    monkeypatch.setattr(registry_module, "_entry_points_loaded", False)
    with pytest.warns(UserWarning, match="could not be loaded"):
        assert np.array_equal(attack("from_elsewhere")(HONEST), HONEST[0])
