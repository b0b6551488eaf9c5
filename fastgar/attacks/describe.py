"""The docstring of a public attack: its own words, and what all attacks share, said once.

An attack's own docstring may have the sections Options (but for the seed), View (what it is used
for), Returns (what is particular), Raises, Notes and Examples. One that has Parameters is complete.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Any

from ..docstrings import section, split, wrapped

__all__ = ["document"]

ROWS = """\
honest : array, shape (h, ...)
    The honest rows: float16, bfloat16, float32 or float64, of numpy, torch, jax or another
    library with their operators. Never written.
q : int, optional
    How many attackers there are; by default as many as the view says, 1 without a view."""

SEED = """\
seed : int
    Of the draw, besides the run's seed and the step that the view knows."""

LOOKED_AT = "What else the adversary sees."
IGNORED = "What else the adversary sees; here only how many attackers there are."

ONE_ROW = """\
array, shape (...)
    What every attacker sends."""

ALIKE = "In the library, dtype and device of the honest rows."

RAISES = """\
TypeError, ValueError
    Where the rows, q, the view or an option cannot be right."""

NON_FINITE = "NaN and infinity in honest rows may reach what is sent."
WIDE = (
    "16-bit rows are computed with as float32, and beyond the range of float16 its largest number "
    "is sent."
)


def document(
    formula: Callable[..., Any], options: Collection[str], takes_view: bool, wide: bool
) -> str:
    """Return the numpydoc text of an attack, of which a `Declared` says as much."""
    own = formula.__doc__ or f"Send what {formula.__name__} does."
    text, sections = split(own)
    if "Parameters" in sections:
        return own
    parameters = [ROWS]
    if "Options" in sections:
        parameters.append(sections["Options"])
    if "seed" in options:
        parameters.append(SEED)
    seen = sections.get("View", LOOKED_AT if takes_view else IGNORED)
    parameters.append("view : View, optional\n" + wrapped(" ".join(seen.split()), "    "))
    returns = f"{sections.get('Returns', ONE_ROW)} {ALIKE}".split("\n", 1)
    raises = "\n".join(filter(None, (RAISES, sections.get("Raises"))))
    facts = f"{NON_FINITE} {WIDE}" if wide else NON_FINITE
    parts = [
        text,
        section("Parameters", "\n".join(parameters)),
        section("Returns", f"{returns[0]}\n" + wrapped(" ".join(returns[1].split()), "    ")),
        section("Raises", raises),
        section("Notes", "\n\n".join(filter(None, (sections.get("Notes"), wrapped(facts))))),
    ]
    if "Examples" in sections:
        parts.append(section("Examples", sections["Examples"]))
    return "\n\n".join(parts) + "\n"
