"""Imports point down: the table of layers in CONTRIBUTING.md, and no circles."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from fnmatch import fnmatchcase
from functools import cache
from graphlib import TopologicalSorter
from pathlib import Path

import fastgar
from fastgar.cpu.compile import COMPILED

PACKAGE = Path(fastgar.__file__).parent
CONTRIBUTING = (Path(__file__).parent.parent / "CONTRIBUTING.md").read_text()
FILES = {
    path.relative_to(PACKAGE).as_posix(): path.read_text() for path in PACKAGE.rglob("*.py")
}  # fmt: skip


def rows() -> Iterator[tuple[int, list[str]]]:
    """Return the floor and the files and folders of each row of the table."""
    for floor, names in re.findall(r"^\| (\d+) \| (.*?) \|", CONTRIBUTING, re.MULTILINE):
        yield int(floor), re.findall(r"`(.*?)`", names)


ROWS = list(rows())


def row_of(file: str) -> int:
    """Return the number of the row that a file is in."""
    found = [
        number
        for number, (_, names) in enumerate(ROWS)
        if file in names or file.partition("/")[0] in names
    ]
    assert len(found) == 1, f"fastgar/{file} must be in one row of the table in CONTRIBUTING.md"
    return found[0]


def file_of(module: str) -> str | None:
    path = module.removeprefix("fastgar").lstrip(".").replace(".", "/")
    return next((f for f in (f"{path}.py", f"{path}/__init__.py".lstrip("/")) if f in FILES), None)


@cache
def imported(file: str, text: str) -> set[str]:
    """Return the files of the package that a file imports, at the top or anywhere else."""
    found = set()
    package = ["fastgar", *Path(file).parts[:-1]]
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) + 1 - node.level] if node.level else []
            base = ".".join([*above, *filter(None, [node.module])])
            each = {f"{base}.{alias.name}" for alias in node.names}
            names = [name if file_of(name) else base for name in each]
        else:
            continue
        names = [name for name in names if name.partition(".")[0] == "fastgar"]
        found |= {to for to in map(file_of, names) if to is not None}
    return found - {file}


def upward(texts: dict[str, str]) -> list[str]:
    """Return the imports that do not point down."""
    odd = []
    for file, text in texts.items():
        own = row_of(file)
        for to in sorted(imported(file, text)):
            other = row_of(to)
            if other != own and ROWS[other][0] >= ROWS[own][0]:
                odd.append(f"{file} of floor {ROWS[own][0]} imports {to} of floor {ROWS[other][0]}")
    return odd


def circle(texts: dict[str, str]) -> list[str] | None:
    """Return files that import each other in a circle, or None."""
    sorter = TopologicalSorter({file: imported(file, text) for file, text in texts.items()})
    try:
        sorter.prepare()
    except ValueError as error:
        return list(error.args[1])
    return None


def test_every_file_is_in_one_row_and_every_row_is_there() -> None:
    assert len(ROWS) > 10 and len({row_of(file) for file in FILES}) == len(ROWS)
    for _, names in ROWS:
        assert all((PACKAGE / name).exists() for name in names)


def test_imports_point_down() -> None:
    odd = upward(FILES)
    assert odd == []


def test_no_modules_import_each_other_in_a_circle() -> None:
    around = circle(FILES)
    assert around is None


def test_what_points_up_or_goes_around_is_found() -> None:
    def with_line(file: str, line: str) -> dict[str, str]:
        return FILES | {file: f"{FILES[file]}\n\ndef late():\n    {line}\n"}

    assert upward(with_line("geometry.py", "from .rules.krum import krum"))
    assert upward(with_line("cuda/variants.py", "from ..cpu import tiles"))  # of the same floor
    assert upward(with_line("statistic.py", "import fastgar.primitives"))
    round_about = with_line("train/roles.py", "from . import loop")
    assert circle(round_about) and not upward(round_about)


def test_machine_code_is_made_anew_when_anything_in_it_changes() -> None:
    """What the fingerprint of machine code is of imports nothing else of the package but errors."""
    compiled = {f for f in FILES if any(fnmatchcase(f, pattern) for pattern in COMPILED)}
    assert {"cpu/tiles.py", "search/mixed.py", "networks.py"} <= compiled
    for file in compiled:
        assert imported(file, FILES[file]) <= compiled | {"errors.py"}
