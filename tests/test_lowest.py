"""A little of each area: what is tried with the lowest versions too (constraints-lowest.txt)."""

from __future__ import annotations

import tomllib
from pathlib import Path

import numpy as np
import pytest

import fastgar as fg
from fastgar import reference
from fastgar.cli import main

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]

# Not tried: 2 GB of tensorflow (2.18.0 has been tried by hand), CuPy, whose stand-in in the tests
# goes with one version, and tools whose verdict changes: their lowest is what the tests run with.
UNTRIED = {
    "cupy-cuda12x", "cupy-cuda13x", "tensorflow", "ruff", "mypy", "build", "nvidia-cuda-nvrtc",
    "nvidia-cuda-nvdisasm",
}  # fmt: skip


def rows(dtype: str = "float32") -> np.ndarray:
    return np.random.default_rng(0).normal(size=(11, 300)).astype(dtype)


def test_the_lowest_versions_are_the_declared_ones() -> None:
    from packaging.requirements import Requirement
    from packaging.version import Version

    lines = (ROOT / "constraints-lowest.txt").read_text().splitlines()
    lowest = dict(line.split("==") for line in lines if line and not line.startswith("#"))
    extras = PROJECT["optional-dependencies"].values()
    declared: dict[str, Version] = {}
    for text in (text for part in (PROJECT["dependencies"], *extras) for text in part):
        wanted = Requirement(text)
        if wanted.name != "fastgar":
            (limit,) = wanted.specifier
            assert limit.operator == ">=", text
            version = Version(limit.version)
            assert declared.setdefault(wanted.name, version) == version, text
    assert {*declared} - UNTRIED == {*lowest}
    for name, version in lowest.items():
        assert Version(version) == declared[name], name


@pytest.mark.parametrize("name", ["float16", "float32", "float64"])
def test_rules(name: str) -> None:
    X = rows(name)
    rules = ("median", "trimmed_mean", "krum", "geometric_median", "mda", "caf")
    for rule in rules[: 6 if name == "float32" else 1]:
        expected = getattr(reference, rule)(X.astype(np.float64), 2)
        got = getattr(fg, rule)(X, f=2)
        assert got.dtype == X.dtype
        np.testing.assert_allclose(got, expected, rtol=2e-2 if name == "float16" else 1e-4)


def test_pipelines_and_streams() -> None:
    X = rows()
    for spec in ("nnm | trimmed_mean", "arc | nnm | krum", "bulyan", "smea", "nnm | meamed"):
        whole = fg.rule(spec, f=2)(X)
        stream = fg.Streaming(spec, n=11, f=2)
        stream.observe(X)
        assert not stream.again()
        np.testing.assert_allclose(stream.apply(X), whole, rtol=1e-5)
    assert fg.inspect("mda", np.r_[X[:9], 1e9 * X[:2]], f=2).excluded == (9, 10)


@pytest.mark.parametrize("library", ["torch", "jax"])
def test_arrays(library: str) -> None:
    module = pytest.importorskip(library)
    X = rows()
    if library == "torch":
        x, bfloat16 = module.from_numpy(X), module.from_numpy(X).bfloat16()
    else:
        x = module.numpy.asarray(X)
        bfloat16 = x.astype("bfloat16")
    for rule in (fg.median, fg.krum, fg.nnm):
        got = rule(x, f=2)
        assert isinstance(got, type(x))
        np.testing.assert_array_equal(np.asarray(got), rule(X, f=2))
    assert fg.median(bfloat16).dtype == bfloat16.dtype
    assert bool((fg.median([{"a": row, "n": row > 9} for row in x])["a"] == fg.median(x)).all())
    sent = fg.attacks.attack("little")(x)
    np.testing.assert_allclose(np.asarray(sent), fg.attacks.attack("little")(X), rtol=1e-4)


def test_collectives_and_operators(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    import torch.distributed as dist

    import fastgar.torch as fgt

    G = torch.from_numpy(rows())
    compiled = torch.compile(lambda G: fgt.ops.krum(G, 2), fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(G), fg.krum(G, f=2))
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/s", rank=0, world_size=1)
    try:
        assert torch.equal(fgt.all_reduce(G, "median", 0), G)
        model = torch.nn.parallel.DistributedDataParallel(torch.nn.Linear(300, 1))
        model.register_comm_hook(fgt.RobustState("median", 0), fgt.robust_hook)
        model(G).sum().backward()
        (weight, _) = model.parameters()
        torch.testing.assert_close(weight.grad, G.sum(0, keepdim=True))
    finally:
        dist.destroy_process_group()


def test_commands(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("sklearn")
    train = "--steps 4 --rule median --rule krum --attack little --quiet --out"
    assert main(["train", *train.split(), str(tmp_path)]) == 0
    assert list(tmp_path.glob("*.png"))
    bench = "--quick --rules median --no-byzfl --d 1000 --budget 0.1"
    assert main(["bench", *bench.split()]) == 0
    assert "median" in capsys.readouterr().out
