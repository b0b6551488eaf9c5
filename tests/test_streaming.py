"""Chunk by chunk gives the whole: bitwise at multiples of CHUNK, within rounding elsewhere."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

import fastgar as fg

SPECS = [
    "median", "trimmed_mean", "mean", "condense(p=0.6, seed=3)", "sign_majority", "krum",
    "multi_krum", "bulyan", "mda", "geometric_median", "centered_clipping(tau=30.0, iters=3)",
    "fltrust", "caf", "cge", "nnm | krum", "nnm | trimmed_mean", "arc | nnm | geometric_median",
    "bucketing(s=2, seed=5) | median", "nnm", "clip(c=20.0)", "clip(c=90.0) | sign_majority",
]  # fmt: skip


def rows(d: int, dtype: Any = np.float32, n: int = 11) -> np.ndarray:
    return (np.random.default_rng([n, d]).normal(size=(n, d)) + 0.1).astype(dtype)


def f_of(spec: str) -> int | None:
    return None if spec in ("mean", "sign_majority") else 2


def cut(X: np.ndarray, *edges: int) -> Iterator[np.ndarray]:
    """Cut columns at the edges; rows of a piece keep the stride of the whole."""
    for low, high in zip((0, *edges), (*edges, X.shape[1]), strict=True):
        yield X[:, low:high]


def stream(spec: str, X: np.ndarray, *edges: int, **at_call: np.ndarray) -> np.ndarray:
    streaming = fg.Streaming(spec, n=len(X), f=f_of(spec))
    return once(streaming, X, *edges, **at_call)


def once(streaming: fg.Streaming, X: np.ndarray, *edges: int, **at_call: np.ndarray) -> np.ndarray:
    pieces = list(cut(X, *edges))
    parts = {name: list(cut(v[None], *edges)) for name, v in at_call.items()}
    more = [{name: part[i][0] for name, part in parts.items()} for i in range(len(pieces))]
    for piece, each in zip(pieces, more, strict=True):
        streaming.observe(piece, **each)
    while streaming.again():
        for piece, each in zip(pieces, more, strict=True):
            streaming.observe(piece, **each)
    applied = [streaming.apply(p, **each) for p, each in zip(pieces, more, strict=True)]
    return np.concatenate(applied, axis=-1)


@pytest.mark.parametrize("long_row", [False, True])
@pytest.mark.parametrize("spec", SPECS)
def test_cuts_at_multiples_of_chunk_give_the_same_bits(spec: str, long_row: bool) -> None:
    X = rows(3 * fg.CHUNK + 77)
    if long_row:
        X[3] *= 1e7
    at_call = {"reference": X[0]} if spec == "fltrust" else {}
    whole = fg.rule(spec, f_of(spec))(X, **at_call)
    for edges in ((fg.CHUNK,), (fg.CHUNK, 3 * fg.CHUNK), (2 * fg.CHUNK,)):
        np.testing.assert_array_equal(stream(spec, X, *edges, **at_call), whole)


@pytest.mark.parametrize("spec", [*SPECS, "aksel"])
def test_other_cuts_agree_within_rounding(spec: str) -> None:
    X = rows(1000, np.float64)
    at_call = {"reference": X[0]} if spec == "fltrust" else {}
    whole = fg.rule(spec, f_of(spec))(X, **at_call)
    for edges in ((1,), (137, 138, 731), (999,)):
        got = stream(spec, X, *edges, **at_call)
        np.testing.assert_allclose(got, whole, rtol=1e-9, atol=1e-12)


def test_start_comes_in_pieces_too() -> None:
    X = rows(2 * fg.CHUNK + 5)
    start = rows(2 * fg.CHUNK + 5, n=3)[1]
    spec = "centered_clipping(tau=9.0, iters=2)"
    whole = fg.centered_clipping(X, 2, tau=9.0, iters=2, start=start)
    np.testing.assert_array_equal(stream(spec, X, fg.CHUNK, start=start), whole)


def test_any_library_and_structures() -> None:
    X = rows(600)
    leaves = [{"a": x[:200], "b": x[200:]} for x in X]
    streaming = fg.Streaming("krum", n=11, f=2)
    for name in ("a", "b"):
        streaming.observe([{name: leaf[name]} for leaf in leaves])
    got = [streaming.apply([{name: leaf[name]} for leaf in leaves]) for name in ("a", "b")]
    expected = fg.krum(leaves, 2)
    np.testing.assert_array_equal(got[0]["a"], expected["a"])
    np.testing.assert_array_equal(got[1]["b"], expected["b"])
    torch = pytest.importorskip("torch")
    streaming = fg.Streaming("nnm | median", n=11, f=2)
    streaming.observe(torch.from_numpy(X))
    applied = streaming.apply(torch.from_numpy(X))
    assert isinstance(applied, torch.Tensor)
    np.testing.assert_array_equal(applied.numpy(), fg.rule("nnm | median", 2)(X))


def test_a_column_rule_need_not_observe() -> None:
    X = rows(700)
    streaming = fg.Streaming("condense(p=0.5)", n=11, f=2)
    assert streaming.reads == 1
    for step in range(2):
        got = np.concatenate([streaming.apply(piece) for piece in cut(X, 300)])
        np.testing.assert_array_equal(got, fg.condense(X, 2, p=0.5, step=step))
        streaming.restart()


def test_steps_count_on() -> None:
    X = rows(300)
    streaming = fg.Streaming("bucketing(s=2) | median", n=11, f=2)
    rule = fg.rule("bucketing(s=2) | median", 2)
    for _ in range(3):
        np.testing.assert_array_equal(once(streaming, X, 100), rule(X))


def test_passes_are_counted() -> None:
    X = rows(500)
    assert fg.Streaming("krum", n=11, f=2).reads == 2
    streaming = fg.Streaming("geometric_median", n=11, f=2)
    once(streaming, X, 100)
    assert streaming.reads == 2
    X[3] *= 1e6
    once(streaming, X, 100)
    assert streaming.reads == 3


def test_cut_differently_the_second_time() -> None:
    X = rows(500, np.float64)
    streaming = fg.Streaming("nnm | geometric_median", n=11, f=2)
    for piece in cut(X, 100, 400):
        streaming.observe(piece)
    got = np.concatenate([streaming.apply(piece) for piece in cut(X, 250)])
    np.testing.assert_allclose(got, fg.rule("nnm | geometric_median", 2)(X), rtol=1e-9)


# ---------------------------------------------------------------------------------------- misuse


def test_misuse_is_refused() -> None:
    X = rows(300)
    with pytest.raises(ValueError, match="krum needs n >= 2f"):
        fg.Streaming("krum", n=6, f=2)
    with pytest.raises(ValueError, match="unknown rule"):
        fg.Streaming("krumm", n=6, f=2)
    streaming = fg.Streaming("krum", n=11, f=2)
    with pytest.raises(ValueError, match="observe every chunk before apply: krum"):
        streaming.apply(X)
    with pytest.raises(ValueError, match="n = 11 rows, got 10"):
        streaming.observe(X[:10])
    with pytest.raises(TypeError, match="X is int64, but only"):
        streaming.observe(X.astype(int))
    streaming.observe(X)
    streaming.apply(X[:, :200])
    with pytest.raises(ValueError, match="300 columns were observed, and with this chunk 500"):
        streaming.apply(X)
    with pytest.raises(ValueError, match="200 of 300 columns have been applied"):
        streaming.observe(X)
    streaming.restart()
    streaming.observe(X)
    np.testing.assert_array_equal(streaming.apply(X), fg.krum(X, 2))


def test_a_forgotten_second_look_is_refused() -> None:
    X = rows(300)
    X[4] *= 1e6
    streaming = fg.Streaming("geometric_median", n=11, f=2)
    streaming.observe(X)
    with pytest.raises(ValueError, match="observed once more"):
        streaming.apply(X)
    assert streaming.again()
    streaming.observe(X[:, :120])
    with pytest.raises(ValueError, match="120 of 300 columns were observed once more"):
        streaming.again()
    with pytest.raises(ValueError, match="120 of 300"):
        streaming.apply(X)
    streaming.observe(X[:, 120:])
    assert not streaming.again()
    np.testing.assert_allclose(streaming.apply(X), fg.geometric_median(X, 2), rtol=1e-6)


def test_too_many_faults_in_different_chunks() -> None:
    X = rows(300)
    X[1, 10] = X[5, 150] = X[7, 290] = np.nan
    streaming = fg.Streaming("krum", n=11, f=2)
    for piece in cut(X, 100, 200):
        streaming.observe(piece)
    with pytest.raises(fg.TooManyFaults) as raised:
        streaming.apply(X)
    assert raised.value.rows == (1, 5, 7)
