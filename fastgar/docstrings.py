"""Docstrings that are put together: a function's own words, and what all of its kind share."""

from __future__ import annotations

import inspect
import textwrap

__all__ = ["section", "split", "wrapped"]


def split(docstring: str) -> tuple[str, dict[str, str]]:
    """Split a docstring into its text and its sections."""
    lines = inspect.cleandoc(docstring).split("\n")
    parts: dict[str, list[str]] = {"": []}
    title = ""
    for number, line in enumerate(lines):
        following = lines[number + 1] if number + 1 < len(lines) else ""
        if line and following == "-" * len(line):
            title = line
            parts[title] = []
        elif not (title and line and line == "-" * len(title)):
            parts[title].append(line)
    sections = {name: "\n".join(body).strip() for name, body in parts.items()}
    return sections.pop(""), sections


def section(title: str, body: str) -> str:
    """Return a section of a docstring."""
    return f"{title}\n{'-' * len(title)}\n{body}"


def wrapped(text: str, indent: str = "") -> str:
    """Return text in lines that fit, each after an indent."""
    return textwrap.fill(text, 96, initial_indent=indent, subsequent_indent=indent)
