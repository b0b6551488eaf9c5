"""What is built from this repository: wheel, source distribution, editable install, metadata."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
pytest.importorskip("setuptools", minversion="77")

PATTERNS = (
    "fastgar/**/*.py", "fastgar/py.typed", "fastgar/cpu/README.md", "kernels/*.cu*",
    "kernels/README.md",
)  # fmt: skip
SOURCES = sorted(path for pattern in PATTERNS for path in ROOT.glob(pattern))


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a clean copy of what a build reads, so that nothing is left in the checkout."""
    copy = tmp_path_factory.mktemp("tree")
    for path in (*SOURCES, *(ROOT / name for name in ("pyproject.toml", "README.md", "LICENSE"))):
        target = copy / path.relative_to(ROOT)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, target)
    if (ROOT / "MANIFEST.in").exists():
        shutil.copy(ROOT / "MANIFEST.in", copy)
    return copy


def build(tree: Path, kind: str, out: Path) -> Path:
    """Build without isolation, hence without a network: the test needs setuptools alone."""
    code = f"from setuptools import build_meta; print(build_meta.build_{kind}({str(out)!r}))"
    result = subprocess.run(
        [sys.executable, "-c", code], cwd=tree, capture_output=True, text=True, timeout=120
    )
    assert result.returncode == 0, result.stderr
    return out / result.stdout.splitlines()[-1]


def installed_names() -> Iterator[str]:
    for path in SOURCES:
        relative = path.relative_to(ROOT)
        yield str(Path("fastgar") / relative if relative.parts[0] == "kernels" else relative)


@pytest.fixture(scope="module")
def wheel(tree: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(tree, "wheel", tmp_path_factory.mktemp("wheel"))


def test_the_wheel_holds_the_package_and_nothing_else(wheel: Path) -> None:
    assert wheel.name.endswith("-py3-none-any.whl")
    names = set(zipfile.ZipFile(wheel).namelist())
    package = {name for name in names if ".dist-info/" not in name}
    assert package == set(installed_names())
    assert any(name.endswith(".dist-info/licenses/LICENSE") for name in names)


def test_the_wheel_holds_every_kernel(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    for path in (ROOT / "kernels").iterdir():
        if path.suffix in (".cu", ".cuh", ".md"):
            assert f"fastgar/kernels/{path.name}" in names


def test_metadata(wheel: Path) -> None:
    archive = zipfile.ZipFile(wheel)
    (name,) = [name for name in archive.namelist() if name.endswith("METADATA")]
    metadata = archive.read(name).decode()
    assert "License-Expression: MIT\n" in metadata and "License-File: LICENSE\n" in metadata
    assert "Requires-Python: >=3.11\n" in metadata
    required = re.findall(r"^Requires-Dist: ([\w-]+)[^;\n]*$", metadata, re.MULTILINE)
    assert sorted(required) == ["numba", "numpy"]
    assert "torchvision" not in metadata.split("\n\n")[0]
    (name,) = [name for name in archive.namelist() if name.endswith("entry_points.txt")]
    assert "fastgar = fastgar.cli:main" in archive.read(name).decode()


def run_elsewhere(code: str, folder: Path, *paths: Path) -> str:
    """Run code in another folder, with these paths and without the checkout."""
    result = subprocess.run(
        [sys.executable, "-c", code], cwd=folder, capture_output=True, text=True, timeout=120,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(map(str, paths))},
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    return result.stdout


def test_the_installed_wheel_runs(wheel: Path, tmp_path: Path) -> None:
    site = tmp_path / "site"
    zipfile.ZipFile(wheel).extractall(site)
    code = """
from importlib.resources import files
import fastgar, numpy as np
print(fastgar.__file__)
print(fastgar.median(np.eye(3)))
print((files("fastgar") / "kernels" / "README.md").is_file())
"""
    lines = run_elsewhere(code, tmp_path, site).splitlines()
    assert Path(lines[0]).is_relative_to(site)
    assert lines[1:] == ["[0. 0. 0.]", "True"]


def test_an_editable_install_points_to_the_checkout(tree: Path, tmp_path: Path) -> None:
    archive = zipfile.ZipFile(build(tree, "editable", tmp_path))
    text = "".join(
        archive.read(name).decode() for name in archive.namelist() if name.endswith((".py", ".pth"))
    )
    assert repr(str(tree / "fastgar")) in text
    # There the kernels are not inside the package but beside it, where the checkout has them.
    assert (tree / "fastgar" / ".." / "kernels" / "README.md").is_file()


def test_the_source_distribution_builds_the_same_wheel(
    tree: Path, wheel: Path, tmp_path: Path
) -> None:
    archive = build(tree, "sdist", tmp_path)
    with tarfile.open(archive) as file:
        file.extractall(tmp_path, filter="data")
    (unpacked,) = [path for path in tmp_path.iterdir() if path.is_dir()]
    (tmp_path / "again").mkdir()
    again = build(unpacked, "wheel", tmp_path / "again")
    assert zipfile.ZipFile(again).namelist() == zipfile.ZipFile(wheel).namelist()


def test_every_folder_of_the_package_is_listed() -> None:
    folders = {".".join(p.parent.relative_to(ROOT).parts) for p in ROOT.glob("fastgar/**/*.py")}
    assert set(PROJECT["tool"]["setuptools"]["packages"]) == folders | {"fastgar.kernels"}
    for folder in folders:
        assert (ROOT / folder.replace(".", "/") / "__init__.py").exists()
    assert not (ROOT / "kernels" / "__init__.py").exists()  # would shadow others' `kernels`


def test_the_version_is_said_once_in_two_places() -> None:
    import fastgar

    assert PROJECT["project"]["version"] == fastgar.__version__
    changes = (ROOT / "CHANGELOG.md").read_text()
    assert f"## {fastgar.__version__}" in changes


def test_constraints_pin_what_the_tests_need_and_name_no_address() -> None:
    text = (ROOT / "constraints.txt").read_text()
    lines = [line for line in text.splitlines() if line and not line.startswith("#")]
    assert all(re.fullmatch(r"[\w.-]+==[\w.]+", line) for line in lines)
    pinned = {line.split("==")[0].lower().replace("_", "-") for line in lines}
    assert "torch==2.13.0" in lines
    extras = PROJECT["project"]["optional-dependencies"]
    wanted = {*PROJECT["project"]["dependencies"], *extras["test"], *extras["dev"]}
    wanted |= {*extras["train"], *extras["bench"], *extras["jax"]}
    names = {re.match(r"[\w-]+", requirement)[0].lower() for requirement in wanted}
    assert names - {"fastgar"} <= pinned
    assert "torchvision" not in pinned
