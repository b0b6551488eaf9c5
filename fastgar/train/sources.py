"""Digests of the code that results rest on, and of the code that only shows them.

A digest is of the text of a definition: a function, a class or a constant at the top of a file. So
code that moves from one file to another stays the same code. Imports do not count; that one of
them takes another definition of the same name is not seen.
"""

from __future__ import annotations

import ast
import hashlib
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import NamedTuple

import fastgar as fg

__all__ = ["PACKAGE", "digest", "sources"]

PACKAGE = Path(fg.__file__).parent
# Of the package: what decides on the results of a run.
DECIDING = (
    "attacks/**/*.py", "rules/*.py", "train/**/*.py", "calls.py", "options.py", "registry.py",
    "spec.py",
)  # fmt: skip
OF_CLUSTERS = ("protocols/*.py", "network/laws.py")  # what besides, if it is one of a cluster
SHOWING = {"figures", "momentum_figures", "momentum_tables", "origin", "plot", "sources"}  # files
# In the file of a grid, what does a run, and what is made of results. All else serves one of them.
RUNNING, SHOWN = {"grid", "search", "execute"}, {"tables", "figures", "words", "finish"}


class Definition(NamedTuple):
    """A statement at the top of a file: what it defines, and the names in it."""

    name: str
    text: str
    names: set[str]


@cache
def sources(*, drawing: bool, cluster: bool = False, package: Path = PACKAGE) -> dict[str, str]:
    """Return digests by name of the definitions that draw, or of those that results rest on.

    Those of a cluster rest on the protocols, too. A name that several files define has the digests
    of all, in order.
    """
    found: dict[str, list[str]] = {}
    patterns = (*DECIDING, *OF_CLUSTERS) if cluster else DECIDING
    for path in (path for pattern in patterns for path in package.glob(pattern)):
        parts = list(_definitions(path.read_text()))
        showing = path.stem in SHOWING
        running = _reached(parts) if path.parent.name == "grids" else {each.name for each in parts}
        for each in parts:
            if (showing or each.name not in running) == drawing:
                found.setdefault(each.name, []).append(digest(each.text.encode())[:10])
    return {name: " ".join(sorted(found[name])) for name in sorted(found)}


def digest(content: bytes) -> str:
    """Return what tells a content from all others."""
    return hashlib.sha256(content).hexdigest()


def _definitions(text: str) -> Iterator[Definition]:
    """Yield what a file has at its top, but for imports, its docstring and `__all__`."""
    lines = text.splitlines()
    for node in ast.parse(text).body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            name = node.name
            first = min([node.lineno, *(each.lineno for each in node.decorator_list)])
        elif _passed_over(node):
            continue
        else:
            targets = [each for each in ast.walk(node) if isinstance(each, ast.Name)]
            stored = [each.id for each in targets if isinstance(each.ctx, ast.Store)]
            name, first = " ".join(stored) or type(node).__name__, node.lineno
        names = {each.id for each in ast.walk(node) if isinstance(each, ast.Name)}
        if name != "__all__":
            yield Definition(name, "\n".join(lines[first - 1 : node.end_lineno]), names)


def _passed_over(node: ast.stmt) -> bool:
    """Return whether it imports, or says something and no more."""
    if isinstance(node, ast.If | ast.With):
        return all(map(_passed_over, [*node.body, *getattr(node, "orelse", [])]))
    says = isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
    return says or isinstance(node, ast.Import | ast.ImportFrom)


def _reached(parts: Sequence[Definition]) -> set[str]:
    """Return the names of what does the runs of a grid, and of what that needs."""
    reached: set[str] = set()
    wanted = RUNNING
    while wanted:
        chosen = [
            each for each in parts
            if each.name not in reached and not wanted.isdisjoint(each.name.split())
        ]  # fmt: skip
        reached |= {each.name for each in chosen}
        wanted = set().union(*(each.names for each in chosen)) - SHOWN
    return reached
