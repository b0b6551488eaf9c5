"""Tables for the terminal and for Markdown."""

from __future__ import annotations

from collections.abc import Sequence
from textwrap import wrap

__all__ = ["markdown_table", "text_table"]

Row = Sequence[str]


def text_table(
    heads: Row, rows: Sequence[Row], *, right: Sequence[int] = (), width: int | None = None
) -> str:
    """Return a table for the terminal.

    Parameters
    ----------
    heads, rows
        Text of the cells.
    right : sequence of int
        Columns to align at the right.
    width : int, optional
        The last column is wrapped so that no line is longer.
    """
    widths = [max(len(row[c]) for row in (heads, *rows)) for c in range(len(heads))]
    if width is not None:
        widths[-1] = max(10, min(widths[-1], width - sum(widths[:-1]) - 2 * (len(widths) - 1)))

    def line(cells: Row) -> str:
        padded = [
            cell.rjust(w) if c in right else cell.ljust(w)
            for c, (cell, w) in enumerate(zip(cells, widths, strict=True))
        ]
        return "  ".join(padded).rstrip()

    lines = [line(heads), "  ".join("-" * w for w in widths)]
    for row in rows:
        last = wrap(row[-1], widths[-1]) or [""]
        lines.append(line([*row[:-1], last[0]]))
        lines += [line([*[""] * (len(row) - 1), more]) for more in last[1:]]
    return "\n".join(lines)


def markdown_table(heads: Row, rows: Sequence[Row], *, right: Sequence[int] = ()) -> str:
    """Return a table in Markdown."""
    marks = ["---:" if c in right else "---" for c in range(len(heads))]

    def line(cells: Row) -> str:
        return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"

    return "\n".join([line(heads), line(marks), *map(line, rows)])
