"""Data sets and splits: the files that are read, what is refused, who holds which samples.

Nothing here uses a network: the tests write small sets in the layout of scikit-learn's cache.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import shutil
import socket
import sys
import tracemalloc
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any
from urllib.error import URLError

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("sklearn")

from sklearn.datasets import load_digits  # noqa: E402

from fastgar.train import openml  # noqa: E402
from fastgar.train.data import DATA, SOURCES, Data, Source, load  # noqa: E402
from fastgar.train.split import check, split  # noqa: E402

RNG = np.random.default_rng(5)


@pytest.fixture(autouse=True)
def _no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def urlopen(*args: Any, **options: Any) -> None:
        raise URLError("no network")

    monkeypatch.setattr("sklearn.datasets._openml.urlopen", urlopen)
    monkeypatch.setattr("time.sleep", lambda seconds: None)  # between scikit-learn's tries


# ------------------------------------------------------------------------------- small data sets


def write(
    home: Path,
    number: int,
    columns: dict[str, str],
    rows: Sequence[Sequence[object]],
) -> Path:
    """Write a set, of which the last column is the target, as fetch_openml keeps it."""

    def put(path: str, text: str) -> Path:
        file = home / "openml" / "openml.org" / f"{path}.gz"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(gzip.compress(text.encode()))
        return file

    arff = "@RELATION small\n"
    arff += "".join(f"@ATTRIBUTE {name} {kind}\n" for name, kind in columns.items())
    arff += "@DATA\n" + "".join(",".join(map(str, row)) + "\n" for row in rows)
    features = [
        {
            "index": str(index),
            "name": name,
            "data_type": "nominal" if "{" in kind else "numeric",
            "is_target": str(index == len(columns) - 1).lower(),
            "is_ignore": "false",
            "is_row_identifier": "false",
            "number_of_missing_values": "0",
        }
        for index, (name, kind) in enumerate(columns.items())
    ]
    description = {
        "id": str(number),
        "name": "small",
        "version": "1",
        "description": "a small set",
        "format": "ARFF",
        "status": "active",
        "file_id": "7",
        "url": "https://www.openml.org/data/v1/download/7/small.arff",
        "md5_checksum": hashlib.md5(arff.encode()).hexdigest(),
    }
    quality = [{"name": "NumberOfInstances", "value": str(len(rows))}]
    api = "api/v1/json/data"
    put(f"{api}/{number}", json.dumps({"data_set_description": description}))
    put(f"{api}/features/{number}", json.dumps({"data_features": {"feature": features}}))
    put(f"{api}/qualities/{number}", json.dumps({"data_qualities": {"quality": quality}}))
    put("data/v1/download/7", arff)  # where older versions of scikit-learn look
    return put("data/v1/download/7/small.arff", arff)


def small(monkeypatch: pytest.MonkeyPatch, name: str, **changes: Any) -> Source:
    """Let `name` stand for a set of these sizes."""
    source = SOURCES[name]._replace(**changes)
    monkeypatch.setitem(SOURCES, name, source)
    return source


def images(
    home: Path, source: Source, labels: Sequence[object], kind: str = ""
) -> tuple[Path, np.ndarray]:
    """Write random images with these labels; return the file and the bytes."""
    pixels = np.random.default_rng(1).integers(0, 256, (len(labels), int(np.prod(source.shape))))
    columns = {f"pixel{i}": "REAL" for i in range(pixels.shape[1])}
    columns["class"] = kind or "{" + ",".join(sorted({str(label) for label in labels})) + "}"
    rows = [[*row, label] for row, label in zip(pixels.tolist(), labels, strict=True)]
    return write(home, source.number, columns, rows), pixels


LABELS = [0, 1, 0, 1, 0, 1, 0, 1]  # the last of class 0 and the last two of class 1 are for testing
TRAIN, TEST = [0, 1, 2, 3, 4], [5, 6, 7]
SMALL = {"shape": (1, 2, 2), "train": (3, 2), "test": (1, 2)}


# -------------------------------------------------------------------------------------- the sets


def test_digits_are_the_same_split_in_every_run() -> None:
    data = load("digits")
    assert data.x.shape == (1437, 1, 8, 8) and data.x_test.shape == (360, 1, 8, 8)
    assert data.x.dtype == torch.float32 and data.y.dtype == torch.int64
    assert (data.classes, data.name) == (10, "digits")
    assert float(data.x.min()) == 0 and float(data.x.max()) == 1
    digits = load_digits()
    order = np.random.default_rng(0).permutation(1797)
    np.testing.assert_array_equal(data.x_test.numpy()[:, 0], digits.images[order[:360]] / 16)
    np.testing.assert_array_equal(data.x.numpy()[:, 0], digits.images[order[360:]] / 16)
    np.testing.assert_array_equal(data.y.numpy(), digits.target[order[360:]])


def test_the_table_of_sources_adds_up() -> None:
    sizes = {name: (sum(s.train), sum(s.test), len(s.train)) for name, s in SOURCES.items()}
    assert sizes == {
        "mnist": (60_000, 10_000, 10),
        "fashion-mnist": (60_000, 10_000, 10),
        "cifar10": (50_000, 10_000, 10),
        "cifar100": (50_000, 10_000, 100),
        "phishing": (8_400, 2_655, 2),
    }
    for source in SOURCES.values():
        assert len(source.train) == len(source.test)
        assert len(source.mean) == len(source.deviation) and len(source.mean) in (
            0,
            source.shape[0],
        )
    assert ("digits", *SOURCES) == DATA


def test_mnist_is_normalised_as_published(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    source = small(monkeypatch, "mnist", **SMALL)
    _, pixels = images(tmp_path, source, LABELS)
    data = load("mnist", tmp_path)
    expected = ((pixels / 255 - 0.1307) / 0.3081).reshape(-1, 1, 2, 2)
    np.testing.assert_allclose(data.x.numpy(), expected[TRAIN], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(data.x_test.numpy(), expected[TEST], rtol=1e-5, atol=1e-6)
    assert data.y.tolist() == [0, 1, 0, 1, 0] and data.y_test.tolist() == [1, 0, 1]
    assert data.x.dtype == torch.float32 and data.y.dtype == torch.int64
    assert (data.classes, data.name) == (2, "mnist")


def test_fashion_mnist_is_between_0_and_1(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    source = small(monkeypatch, "fashion-mnist", **SMALL)
    _, pixels = images(tmp_path, source, LABELS)
    np.testing.assert_allclose(
        load("fashion-mnist", tmp_path).x_test.numpy().reshape(3, 4), pixels[TEST] / 255, rtol=1e-6
    )


def test_cifar_holds_one_plane_per_channel(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    source = small(monkeypatch, "cifar10", **{**SMALL, "shape": (3, 2, 2)})
    _, pixels = images(tmp_path, source, LABELS)
    x = load("cifar10", tmp_path).x.numpy()
    assert x.shape == (5, 3, 2, 2)
    for channel, mean, deviation in ((0, 0.4914, 0.2023), (1, 0.4822, 0.1994), (2, 0.4465, 0.2010)):
        plane = pixels[TRAIN, 4 * channel : 4 * channel + 4].reshape(5, 2, 2) / 255
        np.testing.assert_allclose(x[:, channel], (plane - mean) / deviation, rtol=1e-4, atol=1e-5)


def test_labels_are_numbered_in_the_order_of_their_values(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    labels = [10, 9, 2] * 2
    source = small(monkeypatch, "cifar100", shape=(3, 1, 1), train=(1,) * 3, test=(1,) * 3)
    for folder, kind in (("nominal", ""), ("numeric", "REAL")):
        images(tmp_path / folder, source, labels, kind)
        assert load("cifar100", tmp_path / folder).y.tolist() == [2, 1, 0]
    images(tmp_path / "names", source, ["worm", "bee", "apple"] * 2)
    assert load("cifar100", tmp_path / "names").y_test.tolist() == [2, 1, 0]


def test_phishing_has_a_column_per_value(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    source = small(monkeypatch, "phishing", shape=(5,), train=(6, 9), test=(4, 6))
    labels = RNG.permutation([-1] * 10 + [1] * 15)
    first, second = RNG.choice([-1, 1], 25), RNG.choice([-1, 0, 1], 25)
    columns = {"URL": "{1,-1}", "anchor": "{-1,1,0}", "Result": "{-1,1}"}
    rows = list(zip(first, second, labels, strict=True))
    write(tmp_path, source.number, columns, rows)
    data = load("phishing", tmp_path)
    assert (
        data.x.shape == (15, 5) and data.x_test.shape == (10, 5) and data.x.dtype == torch.float32
    )
    assert torch.bincount(data.y).tolist() == [6, 9]
    assert torch.bincount(data.y_test).tolist() == [4, 6]
    # All samples, in any order: 0 or 1 for URL = -1, 1 and anchor = -1, 0, 1.
    expected = [[a == -1, a == 1, b == -1, b == 0, b == 1, c == 1] for a, b, c in rows]
    parts = ((data.x, data.y), (data.x_test, data.y_test))
    found = torch.cat([torch.cat([x, y[:, None]], 1) for x, y in parts])
    assert sorted(found.int().tolist()) == sorted([list(map(int, row)) for row in expected])
    again = load("phishing", tmp_path)
    assert torch.equal(again.x, data.x) and torch.equal(again.y_test, data.y_test)
    # The parts are drawn: in the file's order, the first would be for training.
    in_order = [row for row, label in zip(expected, labels, strict=True) if label == -1][:6]
    assert data.x[data.y == 0].int().tolist() != [list(map(int, row[:5])) for row in in_order]


def test_no_pandas_is_needed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    images(tmp_path, small(monkeypatch, "mnist", **SMALL), LABELS)
    monkeypatch.setitem(sys.modules, "pandas", None)
    assert len(load("mnist", tmp_path).x) == 5


def test_scikit_learn_s_folder_is_the_default(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    images(tmp_path, small(monkeypatch, "mnist", **SMALL), LABELS)
    monkeypatch.setenv("SCIKIT_LEARN_DATA", str(tmp_path))
    assert len(load("mnist").x) == 5
    (tmp_path / "file").touch()
    monkeypatch.setenv("SCIKIT_LEARN_DATA", str(tmp_path / "file"))
    with pytest.raises(ValueError, match="cannot make scikit-learn's data folder"):
        load("mnist")


def test_require_counts_the_training_samples() -> None:
    x, y = torch.zeros(4, 2), torch.zeros(4, dtype=torch.int64)
    data = Data(x, y, x[:1], y[:1], classes=2)
    data.require(4)
    with pytest.raises(ValueError, match="workers must be at most 4"):
        data.require(5)


# ------------------------------------------------------------------------------ the compact file


def test_later_loads_read_the_compact_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    source = small(monkeypatch, "mnist", **SMALL)
    images(tmp_path, source, LABELS)
    first = load("mnist", tmp_path)
    shutil.rmtree(tmp_path / "openml")
    for one, other in zip(first, load("mnist", str(tmp_path)), strict=True):
        assert torch.equal(one, other) if isinstance(one, torch.Tensor) else one == other
    assert [path.name for path in (tmp_path / "fastgar").iterdir()] == ["openml-554.npz"]


def test_a_folder_that_cannot_be_written_is_read(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    images(tmp_path, small(monkeypatch, "mnist", **SMALL), LABELS)
    (tmp_path / "fastgar").touch()  # so that there can be no folder of this name
    assert len(load("mnist", tmp_path).x) == 5


def test_a_damaged_compact_file_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    small(monkeypatch, "mnist", **SMALL)
    compact = tmp_path / "fastgar" / "openml-554.npz"
    compact.parent.mkdir()
    good = {"x": np.zeros((8, 4), np.uint8), "y": np.array(LABELS)}
    np.savez(compact, **good)
    assert len(load("mnist", tmp_path).x) == 5  # the file as it must be
    whole = compact.read_bytes()
    compact.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match=r"openml-554.npz is damaged .*; remove it"):
        load("mnist", tmp_path)
    flipped = bytearray(whole)
    flipped[whole.index(bytes(20))] ^= 1
    for content in (b"", bytes(flipped)):
        compact.write_bytes(content)
        with pytest.raises(ValueError, match="is damaged"):
            load("mnist", tmp_path)
    for wrong in ({"x": good["x"].astype(float)}, {"y": good["y"][:7]}, {"x": np.array([None])}):
        np.savez(compact, **{**good, **wrong})
        with pytest.raises(ValueError, match="is damaged"):
            load("mnist", tmp_path)
    np.savez(compact, x=good["x"])
    with pytest.raises(ValueError, match="is damaged"):
        load("mnist", tmp_path)
    np.savez(compact, x=good["x"][:-1], y=good["y"][:-1])
    with pytest.raises(ValueError, match=r"openml-554.npz holds 7 samples .* where 8 are meant"):
        load("mnist", tmp_path)


def test_bytes_never_become_doubles(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    small(monkeypatch, "cifar10", train=(500, 500), test=(100, 100))
    (tmp_path / "fastgar").mkdir()
    y = np.tile([0, 1], 600)
    x = RNG.integers(0, 256, (1200, 3072), dtype=np.uint8)
    np.savez(tmp_path / "fastgar" / "openml-40927.npz", x=x, y=y)
    load("cifar10", tmp_path)  # so that imports do not count
    tracemalloc.start()
    data = load("cifar10", tmp_path)
    peak = tracemalloc.get_traced_memory()[1]  # of NumPy's arrays: torch's are not traced
    tracemalloc.stop()
    assert data.x.dtype == torch.float32
    assert x.nbytes <= peak < 3 * x.nbytes


# ------------------------------------------------------------------------------- what is refused


def test_an_unknown_set_is_named_with_the_nearest() -> None:
    with pytest.raises(ValueError, match=r"unknown data set 'mnits': did you mean 'mnist'\?"):
        load("mnits")


def test_a_missing_folder(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"there is no data folder .*nowhere: make it"):
        load("mnist", tmp_path / "nowhere")
    assert not (tmp_path / "nowhere").exists()


def test_without_a_network_the_message_says_how(tmp_path: Path) -> None:
    with pytest.raises(ValueError) as caught:
        load("fashion-mnist", tmp_path)
    message = str(caught.value)
    assert f"cannot load fashion-mnist from {tmp_path}: it is not there" in message
    assert "(no network)" in message
    assert "from fastgar.train.data import load; load('fashion-mnist', 'data')" in message
    assert message.endswith(f"copy what is then in data to {tmp_path}")


def test_waiting_for_the_network_is_limited(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    limits: list[float | None] = []

    def urlopen(*args: Any, **options: Any) -> None:
        limits.append(socket.getdefaulttimeout())
        raise TimeoutError("timed out")

    monkeypatch.setattr("sklearn.datasets._openml.urlopen", urlopen)
    with pytest.raises(ValueError, match="timed out"):
        load("mnist", tmp_path)
    assert set(limits) == {openml.SECONDS} and socket.getdefaulttimeout() is None


@pytest.mark.parametrize("how", ["cut", "changed", "nothing"])
def test_a_damaged_file(how: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    file, _ = images(tmp_path, small(monkeypatch, "mnist", **SMALL), LABELS)
    whole = file.read_bytes()
    changed = gzip.compress(gzip.decompress(whole).replace(b",0\n", b",1\n", 1))
    file.write_bytes({"cut": whole[:-20], "changed": changed, "nothing": b""}[how])
    with pytest.raises(ValueError, match=r"small.arff.gz was damaged and is removed, and openml"):
        load("mnist", tmp_path)
    assert not (tmp_path / "fastgar").exists()


@pytest.mark.parametrize("content", ["{", '{"data_set_description": {}}'])
def test_a_damaged_description(
    content: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    images(tmp_path, small(monkeypatch, "mnist", **SMALL), LABELS)
    file = tmp_path / "openml" / "openml.org" / "api" / "v1" / "json" / "data" / "554.gz"
    file.write_bytes(gzip.compress(content.encode()))
    with pytest.raises(ValueError, match=r"cannot load mnist.*damaged"):
        load("mnist", tmp_path)


def test_a_folder_that_cannot_be_used(tmp_path: Path) -> None:
    (tmp_path / "openml").touch()
    with pytest.raises(ValueError, match="must be a folder that can be read and written"):
        load("mnist", tmp_path)


@pytest.mark.parametrize(
    ("labels", "changes", "message"),
    [
        (LABELS[:-1], {}, "holds 7 samples of it where 8 are meant"),
        (LABELS, {"shape": (1, 2, 3)}, "holds 4 values per sample of it where 6 are meant"),
        ([0, 1, 0, 1, 0, 1, 0, 2], {}, "holds 3 classes of it where 2 are meant"),
        ([0] * 8, {}, "holds 1 classes of it where 2 are meant"),
        ([0, 0, *LABELS[2:]], {}, "holds 5 samples of class 0 of it where 4 are meant"),
    ],
)
def test_a_wrong_file(
    labels: list[int],
    changes: dict[str, Any],
    message: str,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    source = small(monkeypatch, "mnist", **SMALL)
    images(tmp_path, source, labels)
    monkeypatch.setitem(SOURCES, "mnist", source._replace(**changes))
    with pytest.raises(ValueError, match=message):
        load("mnist", tmp_path)
    assert not (tmp_path / "fastgar").exists()


@pytest.mark.parametrize("value", [0.5, 256, -1, "?"])
def test_pixels_are_bytes(value: object, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    source = small(monkeypatch, "mnist", **SMALL)
    columns = {**{f"pixel{i}": "REAL" for i in range(4)}, "class": "{0,1}"}
    write(tmp_path, source.number, columns, [[1, 2, value, 3, label] for label in LABELS])
    with pytest.raises(ValueError, match="no integers from 0 to 255"):
        load("mnist", tmp_path)


# ---------------------------------------------------------------------------------------- splits

BALANCED = torch.from_numpy(np.random.default_rng(2).permutation(np.repeat(np.arange(10), 100)))
UNEVEN = torch.from_numpy(np.random.default_rng(3).choice(10, 997, p=np.arange(1, 11) / 55))
HOW = ["iid", "extreme", "gamma(0.3)", "dirichlet(1)", "dirichlet(0.01)", "dirichlet(alpha=1000)"]


def shares(y: Any, workers: int, how: str, seed: int = 1, classes: int = 10) -> list[np.ndarray]:
    draw = torch.Generator().manual_seed(seed)
    return [part.numpy() for part in split(y, workers, how, generator=draw, classes=classes)]


@pytest.mark.parametrize("how", HOW)
@pytest.mark.parametrize("workers", [1, 2, 7, 51, 997])
def test_every_sample_goes_to_one_worker(how: str, workers: int) -> None:
    parts = shares(UNEVEN, workers, how)
    assert len(parts) == workers and min(map(len, parts)) >= 1
    assert sorted(np.concatenate(parts).tolist()) == list(range(997))
    if "dirichlet" not in how:
        assert max(map(len, parts)) - min(map(len, parts)) <= 1


@pytest.mark.parametrize("how", HOW)
def test_the_generator_decides(how: str) -> None:
    torch.manual_seed(7)
    np.random.seed(7)
    before = torch.get_rng_state(), np.random.get_state()[1].tolist()
    first, second, other = (shares(UNEVEN, 5, how, seed) for seed in (1, 1, 2))
    assert all(map(np.array_equal, first, second))
    assert not all(map(np.array_equal, first, other))
    assert torch.equal(torch.get_rng_state(), before[0])
    assert np.random.get_state()[1].tolist() == before[1]


def test_extreme_sorts_by_class() -> None:
    assert [set(BALANCED.numpy()[part]) for part in shares(BALANCED, 10, "extreme")] == [
        {label} for label in range(10)
    ]
    for workers in (3, 25, 51):
        held = [UNEVEN.numpy()[part] for part in shares(UNEVEN, workers, "extreme")]
        for left, right in pairwise(held):
            assert left.max() <= right.min()


def test_iid_shares_are_alike() -> None:
    counts = [np.bincount(BALANCED.numpy()[p], minlength=10) for p in shares(BALANCED, 4, "iid")]
    # 250 of 1,000 without replacement: a class counts 25 with deviation 4.1.
    assert np.abs(np.array(counts) - 25).max() < 5 * 4.2
    assert len(set(map(tuple, counts))) > 1


@pytest.mark.parametrize("similarity", [0.0, 0.25, 0.5, 0.75, 1.0])
def test_gamma_is_the_part_that_is_mixed(similarity: float) -> None:
    y = BALANCED.repeat(10)
    parts = shares(y, 10, f"gamma({similarity})")
    own = np.mean([np.mean(y.numpy()[part] == worker) for worker, part in enumerate(parts)])
    assert own == pytest.approx((1 - similarity) + similarity / 10, abs=0.03)


def test_gamma_ends_at_iid_and_extreme() -> None:
    for how, same in (("gamma(1)", "iid"), ("gamma(0)", "extreme")):
        assert all(map(np.array_equal, shares(UNEVEN, 7, how), shares(UNEVEN, 7, same)))


@pytest.mark.parametrize("alpha", [0.1, 1.0, 10.0])
def test_dirichlet_spreads_each_class_as_it_should(alpha: float) -> None:
    workers, y = 5, torch.arange(2).repeat(1000)
    found = [
        np.bincount(y.numpy()[part], minlength=2) / 1000
        for seed in range(200)
        for part in shares(y, workers, f"dirichlet({alpha})", seed, classes=2)
    ]
    mean = 1 / workers
    variance = mean * (1 - mean) / (workers * alpha + 1)
    assert np.mean(found) == pytest.approx(mean)
    assert np.var(found) == pytest.approx(variance, rel=0.15)
    # Classes are drawn one by one.
    assert abs(np.corrcoef(np.array(found).T)[0, 1]) < 0.15


def test_dirichlet_leaves_no_worker_empty() -> None:
    y = torch.zeros(30, dtype=torch.int64)
    # One class and a tiny alpha: one worker draws everything, and gives one sample to each other.
    sizes = [len(part) for part in shares(y, 20, "dirichlet(1e-6)", classes=1)]
    assert sorted(sizes) == [1] * 19 + [11]


@pytest.mark.parametrize(
    ("how", "kind", "message"),
    [
        ("idd", ValueError, "unknown split 'idd': did you mean 'iid'"),
        ("dirichlett(1)", ValueError, "did you mean 'dirichlet'"),
        ("gamma", ValueError, r"gamma needs a value: write gamma\(similarity=...\)"),
        ("dirichlet()", ValueError, r"dirichlet needs a value: write dirichlet\(alpha=...\)"),
        ("gamma(1.5)", ValueError, "must be a finite number between 0 and 1, got 1.5"),
        ("dirichlet(0)", ValueError, "alpha must be a finite number between"),
        ("dirichlet('a')", TypeError, "alpha must be a finite number"),
        ("dirichlet(beta=1)", ValueError, "unknown option of dirichlet 'beta'"),
        ("iid(2)", ValueError, r"'iid\(2\)' is no split: iid has no options"),
        ("gamma(0.5, 1)", ValueError, "name the options"),
        ("gamma(open)", ValueError, r"no split: gamma\(...\) must be a literal, such as 2 or 'a'"),
        ("gamma(0.5))(", ValueError, "is no split"),
        ("", ValueError, "is no split"),
        (3, TypeError, "a split is described by a string, got 3"),
    ],
)
def test_strings_that_are_no_split(how: Any, kind: type[Exception], message: str) -> None:
    with pytest.raises(kind, match=message):
        check(how)
    with pytest.raises(kind, match=message):
        shares(UNEVEN, 2, how)


def test_numbers_that_make_no_split() -> None:
    with pytest.raises(ValueError, match="workers must be at least 1, got 0"):
        shares(UNEVEN, 0, "iid")
    with pytest.raises(ValueError, match="workers must be at most 997, one sample each"):
        shares(UNEVEN, 998, "dirichlet(1)")
    with pytest.raises(ValueError, match="labels must be from 0 to 8"):
        shares(UNEVEN, 2, "iid", classes=9)
