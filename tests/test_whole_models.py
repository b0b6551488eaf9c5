"""Whole models: state_dicts and other structures, with leaves that are not floating numbers."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import fastgar as fg
from fastgar.arrays import rounded_mean


def models(n: int = 7, count: int = 1) -> list[dict[str, Any]]:
    """Return models at distances from the first, which is an outlier, with an integer leaf each."""
    at = [900.0, *map(float, range(n - 1))]
    codes = np.arange(n * count).reshape(n, count) * 3
    return [{"w": np.full(4, x), "i": code} for x, code in zip(at, codes, strict=True)]


def quantised(n: int = 7) -> tuple[np.ndarray, list[dict[str, Any]]]:
    rng = np.random.default_rng(0)
    W, rows = rng.normal(size=500), []
    for k in range(n):
        own = W + 0.01 * rng.normal(size=W.shape)
        scale = np.abs(own).max() / 127 * (1 + k / 2)
        rows.append({"code": np.rint(own / scale).astype(np.int8), "scale": np.array([scale])})
    return W, rows


def test_a_rule_that_takes_one_row_takes_its_integers() -> None:
    W, rows = quantised()
    got = fg.krum(rows, f=2)
    assert np.linalg.norm(got["code"] * got["scale"] - W) < 0.03 * np.linalg.norm(W)
    chosen = fg.inspect("krum", rows, f=2).selected
    np.testing.assert_array_equal(got["code"], rows[chosen[0]]["code"])


@pytest.mark.parametrize("spec", ["mean", "trimmed_mean", "multi_krum", "nnm | nan_mean", "nnm"])
def test_codes_are_not_mixed(spec: str) -> None:
    _, rows = quantised()
    rule = fg.rule(spec, f=2)
    with pytest.raises(TypeError, match=r"leaf 'code' holds 500 integers that differ.*dequantise"):
        rule(rows)
    assert rule.step == 0
    for got in np.atleast_1d(rule(rows, buffers="selected")):
        assert any(np.array_equal(got["code"], row["code"]) for row in rows)


def test_integers_that_most_rows_have_alike_are_no_mixture() -> None:
    """Such as the numbers of positions in a model of text, which f rows may hold otherwise."""
    rows = [{"w": np.full(2, float(i)), "at": np.arange(5)} for i in range(7)]
    rows[0]["at"], rows[6]["at"] = np.zeros(5, int), np.ones(5, int)
    for spec in ("mean", "median", "multi_krum", "geometric_median", "nnm | condense"):
        np.testing.assert_array_equal(fg.rule(spec, 2)(rows)["at"], np.arange(5))


@pytest.mark.parametrize(
    ("spec", "buffers", "want"),
    [("krum", "median", 6), ("krum", "first", 6), ("multi_krum(m=3)", "median", 9),
     ("multi_krum(m=3)", "first", 6), ("cge", "median", 9), ("cge", "first", 3),
     ("cge", "selected", 3), ("median", "median", 9), ("median", "first", 12),
     ("median", "selected", 12), ("mean", "median", 9), ("trimmed_mean", "first", 9),
     ("bucketing(s=1) | nan_mean", "median", 9)],
)  # fmt: skip
def test_counters_come_from_rows_that_were_believed(spec: str, buffers: str, want: int) -> None:
    """Row 0, an outlier, counts 0, and row k counts 3 k; cge leaves out rows 0 and 6."""
    rows = models()
    rule = fg.rule(spec, 2)
    got, report = rule(rows, buffers=buffers), fg.inspect(spec, rows, 2, buffers=buffers)
    assert got["i"].tolist() == report.aggregate["i"].tolist() == [want]


def test_the_mean_of_integers_is_rounded() -> None:
    rows = [{"w": np.ones(1), "i": np.array(i)} for i in (1, 1, 9)]
    assert fg.mean(rows)["i"] == 4 and fg.median(rows)["i"] == 1
    assert fg.mean([row | {"i": np.array(2**62 + 1)} for row in rows])["i"] == 2**62 + 1
    assert rounded_mean(np.array([[True], [True], [False]])).tolist() == [True]
    assert rounded_mean(np.array([[255], [254], [255]], np.uint8)).tolist() == [255]


def test_integers_alone_are_refused() -> None:
    with pytest.raises(TypeError, match=r"no leaf holds floating numbers.*'i' holds int64"):
        fg.krum([{"i": row["i"]} for row in models()], f=2)


def test_a_weighted_sum_takes_integers_of_rows_with_a_weight() -> None:
    rows = models()
    assert fg.combine([0, 0, 0.5, 0, 0.5, 0, 0], rows)["i"].tolist() == [6]
    assert [m["i"].tolist() for m in fg.combine(np.eye(7)[[5, 2]], rows)] == [[15], [6]]
