"""What the documentation says is true: examples run, tables are the programs' own output."""

from __future__ import annotations

import doctest
import importlib
import json
import os
import pkgutil
import re
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest

import fastgar as fg

ROOT = Path(__file__).parent.parent
PACKAGE = Path(fg.__file__).parent
README = (ROOT / "README.md").read_text()
FLAGS = doctest.NORMALIZE_WHITESPACE | doctest.ELLIPSIS
GLOBALS = {"fg": fg, "np": np}

MODULES = [
    "fastgar",
    *(
        module.name
        for module in pkgutil.walk_packages([str(PACKAGE)], "fastgar.")
        if not module.name.endswith("__main__")
    ),
]


@pytest.mark.parametrize("name", MODULES)
def test_examples_in_docstrings(name: str) -> None:
    try:
        module = importlib.import_module(name)
    except ModuleNotFoundError as error:
        if (error.name or "").startswith("fastgar"):
            raise
        pytest.skip(f"needs {error.name}")
    result = doctest.testmod(module, extraglobs=dict(GLOBALS), optionflags=FLAGS)
    assert result.failed == 0


def test_every_rule_has_an_example_that_runs() -> None:
    names = [rule.name for rule in fg.list_rules() if hasattr(fg, rule.name)]
    assert len(names) >= 27
    for name in names:
        example = getattr(fg, name).__doc__
        assert ">>> " in example, name


def test_readme_examples() -> None:
    blocks = re.findall(r"```pycon\n(.*?)```", README, re.DOTALL)
    assert blocks
    parser, runner = doctest.DocTestParser(), doctest.DocTestRunner(optionflags=FLAGS)
    scope: dict[str, object] = {}
    for number, block in enumerate(blocks):
        test = parser.get_doctest(block, scope, f"README block {number}", "README.md", 0)
        runner.run(test, clear_globs=False)
        scope = test.globs
    assert runner.summarize().failed == 0


def section(name: str) -> str:
    """Return what stands between the comments <!-- name --> and <!-- end name -->."""
    found = re.search(rf"<!-- {name} -->\n(.*?)<!-- end {name} -->", README, re.DOTALL)
    assert found, f"README.md has no section {name}"
    return found[1].strip()


def test_the_table_of_rules_is_the_command_s() -> None:
    # In a process of its own: other tests may have registered rules in this one.
    printed = subprocess.run(
        [sys.executable, "-m", "fastgar.cli", "rules", "--markdown"], text=True, check=True,
        capture_output=True, env={**os.environ, "PYTHONPATH": str(PACKAGE.parent)},
    )  # fmt: skip
    assert section("rules") == printed.stdout.strip()


def test_the_readme_has_the_commands_that_ci_runs() -> None:
    ci = (ROOT / ".ci" / "run").read_text()
    for command in (
        'pip install -c constraints.txt ".[train]" && fastgar train',
        'pip install -c constraints.txt ".[test]" && pytest',
    ):
        assert command in README
    assert "-c constraints.txt" in ci and re.search(r"^\s*pytest", ci, re.MULTILINE)


def test_links_and_pictures_of_the_readme_exist() -> None:
    for target in re.findall(r"\]\(([^)#]+)\)", README):
        if not target.startswith("http"):
            assert (ROOT / target).exists(), target


@pytest.mark.parametrize("picture", sorted(ROOT.glob("docs/*.png")), ids=lambda path: path.stem)
@pytest.mark.filterwarnings("default")
def test_the_readme_says_where_each_picture_comes_from(picture: Path) -> None:
    """That its code has changed is a warning: it may be a comment, and some take long to redraw."""
    origin = pytest.importorskip("fastgar.train.origin", reason="needs torch")
    assert origin.holds(picture)
    facts = json.loads(picture.with_suffix(".json").read_text())
    below = re.search(rf"\(docs/{picture.name}\)\n\n(.*?)\n\n", README, re.DOTALL)
    assert below
    for words in (f"`{facts['command']}`", facts["fastgar"], facts["date"], listed(facts["seeds"])):
        assert words in below[1].replace("\n", " ")
    if origin.changed(picture):
        again = "python -m fastgar.train.origin docs"
        warnings.warn(f"docs/{picture.name} may be old: {again}", stacklevel=1)


def listed(seeds: list[int]) -> str:
    return f"seeds {seeds[0]} to {seeds[-1]}" if len(seeds) > 1 else f"seed {seeds[0]}"


def test_venues_and_numbers_of_papers() -> None:
    text = " ".join(path.read_text() for path in PACKAGE.rglob("*.py"))
    assert set(re.findall(r'AggregaThor[^."]{0,60}?",? (\w+ 20\d\d)', text)) <= {"MLSys 2019"}
    assert "SysML" not in text.replace("MLSys", "")
    assert "arXiv 2008.04699" in next(r.paper for r in fg.list_rules() if r.name == "cge")


def test_texts_are_in_plain_characters() -> None:
    for path in (*ROOT.glob("*.md"), *ROOT.glob("kernels/*.md")):
        assert path.read_text().isascii(), path
