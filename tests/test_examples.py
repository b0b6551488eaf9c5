"""Each example runs, in an empty folder, and says what it promises."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

import fastgar as fg

EXAMPLES = Path(__file__).parent.parent / "examples"
PACKAGE = Path(fg.__file__).parent.parent

EXPECTED = {
    "quickstart.py": ("numpy array", "torch tensor", "jax   Array", "11 rows survive 4 liars"),
    "who_is_lying.py": ("not believed: (2, 6)", "accuracy of the robust aggregate"),
    "fool_the_median.py": ("median [2.]", "median [-0.3]", "fool_the_median.png"),
}
RANKS = {  # on four ranks, in fewer steps than they take by themselves
    "ddp_robust.py": ("--steps 10 --out ddp.png", "NaN"),
    "fsdp_robust.py": ("--steps 35 --scope global", "accuracy"),
    "lightning_robust.py": ("--steps 40", "accuracy"),
    "accelerate_robust.py": ("--steps 40", "accuracy"),
}
NEEDS = {
    "quickstart.py": ("torch", "jax"),
    "who_is_lying.py": ("torch", "sklearn"),
    "fool_the_median.py": ("matplotlib",),
    "ddp_robust.py": ("torch", "matplotlib"),
    "fsdp_robust.py": ("torch",),
    "lightning_robust.py": ("torch", "lightning"),
    "accelerate_robust.py": ("torch", "accelerate"),
}


def run(name: str, folder: Path, *arguments: str) -> str:
    result = subprocess.run(
        [sys.executable, str(EXAMPLES / name), *arguments], cwd=folder, capture_output=True,
        text=True, timeout=120, env={**os.environ, "PYTHONPATH": str(PACKAGE)},
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    return result.stdout


def test_every_example_is_tested() -> None:
    assert {path.name for path in EXAMPLES.glob("*.py")} == set(EXPECTED) | set(RANKS)


@pytest.mark.parametrize("name", EXPECTED)
def test_an_example_runs(name: str, tmp_path: Path) -> None:
    for library in NEEDS[name]:
        if find_spec(library) is None:
            pytest.skip(f"needs {library}")
    printed = run(name, tmp_path)
    for text in EXPECTED[name]:
        assert text in printed
    left = [path.name for path in tmp_path.iterdir()]
    assert left == (["fool_the_median.png"] if name == "fool_the_median.py" else [])
    if name == "who_is_lying.py":
        lines = [line.split() for line in printed.splitlines() if line.startswith("accuracy of")]
        accuracy = {words[3]: float(words[-1].rstrip("%")) for words in lines}
        assert accuracy["robust"] > 85 > 20 > accuracy["plain"]


@pytest.mark.parametrize("name", RANKS)
def test_an_example_runs_on_four_ranks(name: str, tmp_path: Path) -> None:
    for library in NEEDS[name]:
        if find_spec(library) is None:
            pytest.skip(f"needs {library}")
    arguments, words = RANKS[name]
    launch = f"-m torch.distributed.run --standalone --nproc-per-node 4 {EXAMPLES / name}"
    result = subprocess.run(
        [sys.executable, *launch.split(), *arguments.split()],
        cwd=tmp_path, capture_output=True, text=True, timeout=200,
        env={**os.environ, "PYTHONPATH": str(PACKAGE)},
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    line = next(line for line in result.stdout.splitlines()[::-1] if line.startswith(words))
    average, robust = (float(number) for number in re.findall(r"([\d.]+)%", line))
    assert robust > average + 30
    assert [path.name for path in tmp_path.iterdir()] == (["ddp.png"] if "ddp" in name else [])


def test_a_picture_goes_where_it_is_told_to(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    run("fool_the_median.py", tmp_path, "--out", "other.png")
    assert [path.name for path in tmp_path.iterdir()] == ["other.png"]
    assert (tmp_path / "other.png").read_bytes().startswith(b"\x89PNG")
