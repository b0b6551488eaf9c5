"""Where a picture comes from: which command drew it, of which seeds, and from which code.

    python -m fastgar.train.origin docs      which pictures of a folder are older than their code

Beside each picture lies a file that says so, with digests of the code that results rest on. A
picture that is older than its code may still be right: what has changed may be a comment.
"""

from __future__ import annotations

import json
import sys
import textwrap
from collections.abc import Iterable, Sequence
from datetime import date
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

import fastgar as fg

from ..machine import commit
from .sources import PACKAGE, digest, sources

__all__ = ["Origin", "changed", "holds", "main"]

DPI = 150


class Origin(NamedTuple):
    """What is to be said with a picture.

    Attributes
    ----------
    title : str
        What it shows.
    command : str
        What draws it.
    seeds : tuple of int
        Of the runs that are in it.
    sources : dict, optional
        What `sources` gave when they were made; None: they have been made just now.
    cluster : bool
        Whether they are runs of a cluster.
    """

    title: str
    command: str
    seeds: tuple[int, ...]
    sources: dict[str, str] | None = None
    cluster: bool = False

    def caption(self, spread: str) -> str:
        """Return the line below the picture."""
        at = commit(PACKAGE.parent)
        version = f"fastgar {fg.__version__}" + (f" ({at})" if at else "")
        return f"{self.command}   {version}   {_listed(self.seeds)}: {spread}"

    def save(self, figure: Any, picture: Path, spread: str) -> None:
        """Write a figure as PNG, with a line below on where it comes from, and a file beside it.

        Parameters
        ----------
        figure : matplotlib Figure
        picture : Path
        spread : str
            How the figure shows that runs of several seeds differ.
        """
        figure.savefig(picture, dpi=DPI)
        _write_below(picture, self.caption(spread))
        now = sources(drawing=False, cluster=self.cluster)
        facts = {
            "command": self.command,
            "fastgar": fg.__version__,
            "commit": commit(PACKAGE.parent) or None,
            "date": date.today().isoformat(),
            "seeds": list(self.seeds),
            "picture": digest(picture.read_bytes()),
            "sources": now if self.sources is None else self.sources,
            "drawing": sources(drawing=True, cluster=self.cluster),
            **({"cluster": True} if self.cluster else {}),
        }
        _beside(picture).write_text(json.dumps(facts, indent=1) + "\n")


def holds(picture: Path) -> bool:
    """Return whether the file beside a picture is there, and is about this very picture."""
    facts = _facts(picture)
    return facts is not None and facts["picture"] == digest(picture.read_bytes())


def changed(picture: Path) -> list[str]:
    """Return the definitions that are not what they were when a picture was drawn."""
    facts, found = _facts(picture) or {}, set()
    for key, drawing in ("sources", False), ("drawing", True):
        now = sources(drawing=drawing, cluster=facts.get("cluster", False))
        then = facts.get(key, {})
        found |= {name for name in then.keys() | now.keys() if then.get(name) != now.get(name)}
    return sorted(found)


def main(folders: Sequence[str]) -> int:
    """Print for each picture of some folders whether it is as new as its code; 1 if one is not."""
    status = 0
    for picture in sorted(path for folder in folders for path in Path(folder).glob("*.png")):
        names = changed(picture)
        if not holds(picture):
            words = f"not the picture that {_beside(picture).name} is about, or there is none"
        elif names:
            more = f" and {len(names) - 3} more" if len(names) > 3 else ""
            words = f"older than {', '.join(names[:3])}{more}"
        else:
            words = "as new as its code"
        status |= bool(names) or not holds(picture)
        print(f"{picture}: {words}")
    return status


def _write_below(picture: Path, text: str) -> None:
    """Put a strip with a small text below a picture, where no legend can meet it."""
    from matplotlib import image
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    above = (255 * image.imread(picture)).astype(np.uint8)
    width = above.shape[1] / DPI
    lines = textwrap.wrap(text, int(16 * width))  # letters of 7.5 points: 16 to an inch
    strip = Figure(figsize=(width, 0.08 + 0.13 * len(lines)), dpi=DPI)
    strip.text(0.1 / width, 0.5, "\n".join(lines), fontsize=7.5, color="#555555", va="center")
    canvas: Any = FigureCanvasAgg(strip)
    canvas.draw()
    image.imsave(picture, np.concatenate([above, np.asarray(canvas.buffer_rgba())]), dpi=DPI)


def _beside(picture: Path) -> Path:
    return picture.with_suffix(".json")


def _facts(picture: Path) -> dict[str, Any] | None:
    path = _beside(picture)
    facts: dict[str, Any] | None = json.loads(path.read_text()) if path.exists() else None
    return facts


def _listed(seeds: Iterable[int]) -> str:
    """Return seeds in words."""
    ordered = sorted(seeds)
    if len(ordered) == 1:
        return f"seed {ordered[0]}"
    if ordered == list(range(ordered[0], ordered[-1] + 1)):
        return f"seeds {ordered[0]} to {ordered[-1]}"
    return f"seeds {', '.join(map(str, ordered))}"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
