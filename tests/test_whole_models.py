"""Whole models: state_dicts and other structures, with leaves that are not floating numbers."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import fastgar as fg
from fastgar.arrays import rounded_mean
from fastgar.cpu.compile import Kernel


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


@pytest.mark.parametrize(
    "spec", ["krum", "median", "nnm | trimmed_mean", "geometric_median", "nnm"]
)
def test_tied_weights_count_once_and_stay_tied(spec: str) -> None:
    for seed in range(20):
        draw = np.random.default_rng(seed)
        once = [{"w": draw.normal(size=(4, 2)), "b": draw.normal(size=3)} for _ in range(7)]
        rows = [{"head": x["w"][:], "b": x["b"], "body": [x["w"]]} for x in once]
        rule = fg.rule(spec, 1)
        found, wanted = rule(rows), rule(once)
        for got, want in zip(*([x] if spec != "nnm" else x for x in (found, wanted)), strict=True):
            assert got["head"] is got["body"][0]
            np.testing.assert_array_equal(got["head"], want["w"])
            np.testing.assert_array_equal(got["b"], want["b"])


def test_tied_weights_have_all_their_names() -> None:
    draw = np.random.default_rng(0)
    rows = [
        {"first": w, "second": w[:], "b": draw.normal(size=2)} for w in draw.normal(size=(7, 3))
    ]
    heads = [{"first": row["first"]} for row in rows]
    for name in ("first", "second"):
        got = fg.krum(rows, 1, distance_on=name.__eq__)
        np.testing.assert_array_equal(got["second"], fg.krum(heads, 1)["first"])
    rows[3]["second"] = rows[3]["second"].copy()  # not tied in every row: two leaves
    assert fg.median(rows)["first"] is not fg.median(rows)["second"]
    start = {"first": np.ones(3), "second": np.ones(3), "b": np.ones(2)}
    assert fg.centered_clipping(rows, 1, tau=1.0, start=start)["b"].shape == (2,)
    rows[3]["second"] = rows[3]["first"]
    got = fg.centered_clipping(rows, 1, tau=1.0, start=start)
    assert got["first"] is got["second"]
    with pytest.raises(ValueError, match="has not: all rows must have one structure"):
        fg.centered_clipping(rows, 1, tau=1.0, start={"first": np.ones(3), "b": np.ones(2)})


def test_what_is_missing_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(TypeError, match="n must be the number of rows of each chunk, got None"):
        fg.Streaming("krum", None, f=1)  # type: ignore[arg-type]
    monkeypatch.setattr("numba.config.DISABLE_JIT", 1)
    kernel = Kernel(lambda a, k: None, 1)
    with pytest.raises(RuntimeError, match="NUMBA_DISABLE_JIT is set, but"):
        kernel.specialised(1)
