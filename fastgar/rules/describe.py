"""The docstring of a public rule: its own words, and what all rules share, said once."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..docstrings import section, split, wrapped

if TYPE_CHECKING:
    from ..spec import Spec

__all__ = ["document"]

X = """\
X : array of shape (n, ...), sequence of n arrays, or sequence of n structures
    One row per worker: float16, bfloat16, float32 or float64, of any array library. A structure
    is a state_dict or another nesting of mappings and sequences. Never written."""

F = """\
f : int
    How many rows may hold anything."""

F_OPTIONAL = """\
f : int, optional
    How many rows may hold anything; (n-1)//2 by default."""

STEP = """\
step : int
    Which draw. `fastgar.rule` gives an object that counts its steps instead."""

START = """\
start : like one row of X, optional
    Where to start, such as the last aggregate; the origin by default."""

REFERENCE = """\
reference : like one row of X
    The vector that is trusted. It must be finite."""

BUFFERS = """\
buffers : {"median", "first", "selected", "error"}
    What becomes of integer leaves of structures, as in calling a `fastgar.Rule`."""

DISTANCE_ON = """\
distance_on : "all" or callable
    For structures: a function of a leaf's path that says whether the leaf counts in distances.
    The result has all leaves."""

CHECK = """\
check : bool
    Rows on a GPU are aggregated without waiting for it, and more than f faulty rows give NaN
    there: wait, and raise TooManyFaults."""

NON_FINITE = {
    "column": "A non-finite value ranks as the most extreme on its side (NaN as +infinity). A "
    "coordinate with more than f of them is NaN.",
    "other": "A row with a non-finite value is infinitely far from all others and gets no weight. "
    "More than f such rows raise `TooManyFaults`.",
    "open": "Non-finite values may reach the result.",
}
GUARANTEE = {
    "(f, kappa)": "within sqrt(kappa) times the root-mean-square distance of the honest rows from "
    "their mean, whatever f rows hold",
    "bounded": "finite and bounded whatever f rows hold, but not by the spread of the honest rows",
    "trusted": "bounded where the row or the reference that it trusts is honest",
    "none": "lies may pass",
}
ZERO = " A coordinate that is zero is +0.0, whatever the signs of the zeros in it."


def document(spec: Spec) -> str:
    """Return the numpydoc text of a rule."""
    text, sections = split(spec.mathematics.__doc__ or f"Aggregate by {spec.name}.")
    parameters = [X]
    if spec.f != "no":
        parameters.append(F if spec.f == "required" else F_OPTIONAL)
    if "Options" in sections:
        parameters.append(sections["Options"])
    if spec.randomised:
        parameters.append(STEP)
    if "start" in spec.references:
        parameters.append(START)
    if "reference" in spec.references:
        parameters.append(REFERENCE)
    if spec.variants:
        choices = ", ".join(f'"{name}"' for name in spec.variant_names)
        presets = "; ".join(
            f"{name}: " + ", ".join(f"{option}={value!r}" for option, value in preset.items())
            for name, preset in spec.variants.items()
        )
        meaning = f"Options as published code has them ({presets}). Options that are given win."
        parameters.append(f"variant : {{{choices}}}\n" + wrapped(meaning, "    "))
    parameters.append(BUFFERS)
    if spec.kind != "column":
        parameters.append(DISTANCE_ON)
    if spec.queued and spec.kind == "distance":
        parameters.append(CHECK)
    if spec.kind == "mixing":
        result = (
            "stack of rows\n    The mixed rows, in the library, dtype and structure of X: an array "
            "if X is one, else\n    a list. Always new memory."
        )
    else:
        result = (
            "aggregate\n    In the library, device, dtype, structure and shape of one row of X; "
            "always new memory."
        )
    raises = "TypeError, ValueError\n    Where X, f or an option cannot be right; before any work."
    if spec.kind != "column":
        raises += "\nTooManyFaults\n    More than f rows hold a non-finite value."
    guarantee = spec.guaranteed(spec.defaults)
    if guarantee == "none" and spec.kind == "column":
        handling = NON_FINITE["open"]
    else:
        handling = NON_FINITE["column" if spec.kind == "column" else "other"]
    if spec.kind == "column" and spec.name != "mean":  # which is a weighted sum
        handling += ZERO
    third = (
        " (one more where a row is over 1000 times as far away as is usual)" if spec.inner else ""
    )
    needs = spec.needs_text()
    reads = "1 pass" if spec.reads == 1 else f"{spec.reads} passes"
    facts = [
        f"Needs {needs}. Breakdown point {spec.breakdown}.",
        f"Guarantee {guarantee}: {GUARANTEE[guarantee]}.",
        f"Cost: {reads} over X{third}.",
        handling,
        f"Reference: {spec.paper}." if spec.paper else "",
    ]
    parts = [
        text,
        section("Parameters", "\n".join(parameters)),
        section("Returns", result),
        section("Raises", raises),
        section("Notes", "\n".join(wrapped(fact) for fact in facts if fact)),
    ]
    if "Examples" in sections:
        parts.append(section("Examples", sections["Examples"]))
    return "\n\n".join(parts) + "\n"
