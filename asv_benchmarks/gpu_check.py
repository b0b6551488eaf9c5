"""Every kernel against the CPU, bit by bit: a table of rules, dtypes, sizes, layouts and inputs.

Rules on columns and rules that pick rows must give the CPU's bits. Where weights follow from
distances, rounding may differ: by `ROUNDING` of the greatest result, four times. Of float64 the
results are compared with `fastgar.reference` too, which shares no code with either.
"""

from __future__ import annotations

import traceback
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from .gpu_inputs import INPUTS
from .gpu_process import Poisoned, answers, each
from .gpu_small import tolerated

ROUNDING = {"float32": 2e-6, "float64": 1e-12, "bfloat16": 2.0**-7, "float16": 2.0**-9}
WEIGHTED = ("geometric", "rfa", "centered", "caf", "fltrust", "clip", "arc", "sqdist")
COLUMN = (
    "mean", "nan_mean", "median", "trimmed_mean", "meamed", "phocas", "condense", "sign_majority",
)  # fmt: skip
PRIMITIVES = ("sqdist", "combine", "columns")  # by themselves, so that a bad one is named
OPTIONS: dict[str, dict[str, Any]] = {"centered_clipping": {"tau": 2.0}, "clip": {"c": 3.0}}
PIPELINES = (
    "krum(neighbours='n-f-1', squared=False)", "multi_krum(m=3)", "bulyan(variant='epfl')",
    "median(middle='lower')", "nnm | trimmed_mean", "nnm | krum", "arc | nnm | meamed",
    "bucketing(s=2) | median", "bucketing(s=2) | mean", "nnm | sign_majority",
)  # fmt: skip
SOME = (*PRIMITIVES, "mean", "median", "trimmed_mean", "meamed", "krum", "multi_krum", "bulyan",
        "nnm | median", "cge")  # fmt: skip
FEW = ("columns", "median", "trimmed_mean", "multi_krum", "nnm | median")
DTYPES = ("float32", "float64", "bfloat16", "float16")
LAYOUTS = ("one array", "list of rows", "unaligned rows")
ROWS = (1, 2, 20, 40, 100, 131, 300)  # 11 has a table of its own
COLUMNS = (1, 3, 31, 2049, 8197, 100_003)
RERUN, AGAIN = 5, 3  # failing cases that are run again, and how often
HOPELESS = 12  # errors in a row at the very beginning after which nothing more is tried


class Case(NamedTuple):
    """One line of the table."""

    rule: str
    dtype: str
    n: int
    d: int
    layout: str = "one array"
    input: str = "rows"

    def __str__(self) -> str:
        return f"{self.rule}, {self.dtype}, {self.n} x {self.d:,}, {self.layout}, {self.input}"


# ------------------------------------------------------------------------------------- the table


def every_rule() -> list[str]:
    """Return the primitives, all rules and some pipelines."""
    import fastgar as fg

    named = []
    for rule in fg.list_rules():
        options = OPTIONS.get(rule.name, {})
        inside = ", ".join(f"{key}={value}" for key, value in options.items())
        named.append(f"{rule.name}({inside})" if inside else rule.name)
    return [*PRIMITIVES, *named, *PIPELINES]


def fitting(rule: str, n: int) -> bool:
    """Return whether a rule takes n rows, as few faults as we allow."""
    import fastgar as fg

    return rule in PRIMITIVES or fg.rule(rule, tolerated(n)).check(n) is None


def own_input(rule: str) -> str:
    """Return the input that is hard on a rule: columns want other numbers than distances."""
    return "edges" if rule.partition("(")[0] in (*COLUMN, "columns") else "rows"


def cases(quick: bool = False) -> list[Case]:
    """Return the table, the most telling lines first."""
    rules = every_rule()
    found = [Case(rule, "float32", 11, 301, input=own_input(rule)) for rule in rules]
    if not quick:
        found += [Case(r, k, 11, 301, input=own_input(r)) for k in DTYPES[1:] for r in rules]
    else:
        found += [Case(r, k, 11, 301, input=own_input(r)) for k in DTYPES[1:] for r in FEW]
    for layout in LAYOUTS[1:]:
        found += [Case(r, "float32", 11, 301, layout, own_input(r)) for r in SOME]
        found += [Case(r, k, 11, 301, layout, own_input(r)) for k in DTYPES[1:] for r in FEW]
    for kind in ("subnormal", "small", "huge"):
        found += [Case(r, "float32", 11, 301, input=kind) for r in SOME]
        found += [Case(r, k, 11, 301, input=kind) for k in DTYPES[1:] for r in FEW]
    if not quick:
        found += [Case(r, "float32", n, 257, input=own_input(r)) for n in ROWS for r in SOME]
        found += [Case(r, "float32", 11, d, input=own_input(r)) for d in COLUMNS for r in SOME]
        found += [
            Case(r, k, n, 257, input=own_input(r))
            for k in DTYPES[1:]
            for n in (20, 100, 131)
            for r in ("median", "multi_krum")
        ]
    return [case for case in found if fitting(case.rule, case.n)]


# ---------------------------------------------------------------------------------- the two sides


def made(torch: Any, case: Case) -> Any:
    """Return the rows of a case, on the host."""
    X = INPUTS[case.input](case.n, case.d, tolerated(case.n), case.dtype)
    with np.errstate(over="ignore"):
        return torch.from_numpy(X).to(getattr(torch, case.dtype))


def laid_out(torch: Any, X: Any, layout: str) -> Any:
    """Return a copy of the rows on the GPU, in this layout."""
    n, d = X.shape
    wide = torch.zeros(n, d + 3, dtype=X.dtype, device="cuda")
    if layout == "unaligned rows":  # a step of an odd number of numbers, beginning at the second
        there = wide[:, 1 : d + 1]
        there.copy_(X)
        return there
    there = torch.zeros(n, d, dtype=X.dtype, device="cuda")
    there.copy_(X)
    return [row.clone() for row in there] if layout == "list of rows" else there


def computed(case: Case, X: Any) -> Any:
    """Return what a case makes of its rows, wherever they are."""
    import fastgar as fg

    f = tolerated(case.n)
    W = np.random.default_rng(0).random((3, case.n))
    if case.rule == "sqdist":
        return fg.sqdist(X)
    if case.rule == "combine":
        return fg.combine(W, X)
    if case.rule == "columns":
        return fg.columns(X, "median", W=W)
    options = {"reference": X[0].clone()} if case.rule == "fltrust" else {}
    return fg.rule(case.rule, f).at(1)(X, **options)


def on_host(case: Case, X: Any) -> Any:
    """Return what the CPU makes of the rows."""
    return computed(case, X)


def judged(case: Case, X: Any) -> Any:
    """Return what `fastgar.reference` says, None where there is nothing to compare with.

    At the ends of float64 distances overflow or vanish, which the reference knows nothing of.
    """
    from fastgar import reference

    name = case.rule.partition("(")[0]
    options = OPTIONS.get(name, {})
    plain = case.rule == name or bool(options)
    small = case.n <= 20 and case.d <= 1000 and case.input in ("edges", "rows")
    if case.dtype != "float64" or not (plain and small) or name not in reference.RULES:
        return None
    if name == "fltrust":
        options = {"reference": X[0].numpy()}
    if name in ("condense", "bucketing"):
        options = {"step": 1}
    return reference.RULES[name](X.numpy(), f=tolerated(case.n), **options)


# ------------------------------------------------------------------------------------- comparing


def host_numbers(x: Any) -> np.ndarray:
    """Return an array on the host, bfloat16 as float32, which loses nothing."""
    if isinstance(x, np.ndarray):
        return x
    if isinstance(x, list):  # of rows, as they went in
        return np.stack([host_numbers(row) for row in x])
    x = x.cpu()
    return np.asarray(x.float().numpy() if str(x.dtype) == "torch.bfloat16" else x.numpy())


def differing(got: np.ndarray, want: np.ndarray, tolerance: Any) -> np.ndarray:
    """Return where the two differ: in a bit, or by more than the tolerance. NaN equals NaN."""
    nan = np.isnan(got) & np.isnan(want)
    if tolerance is None:
        whole = f"u{got.dtype.itemsize}"
        return (got.view(whole) != want.view(whole)) & ~nan
    with np.errstate(invalid="ignore", over="ignore"):
        near = np.abs(got.astype(np.longdouble) - want) <= tolerance
    return ~(near | (got == want) | nan)


def hexadecimal(value: Any, dtype: str) -> str:
    """Return a value and its bits."""
    digits = value.tobytes()[::-1].hex()
    digits = digits[:4] if dtype == "bfloat16" else digits
    return f"{value!s} (0x{digits})"


def allowed(case: Case, want: np.ndarray) -> float | None:
    """Return the tolerance of a case, None for none."""
    if not case.rule.startswith(WEIGHTED):
        return None
    finite = np.abs(want[np.isfinite(want)])
    return 4 * ROUNDING[case.dtype] * float(finite.max(initial=0.0))


def difference(case: Case, got: Any, want: Any, whose: str, tolerance: Any) -> str:
    """Return one sentence on where two results differ, nothing where they do not."""
    got, want = np.ascontiguousarray(got), np.ascontiguousarray(want)
    if got.shape != want.shape or got.dtype != want.dtype:
        return f"the GPU gives {got.dtype}{got.shape}, {whose} {want.dtype}{want.shape}"
    places = np.argwhere(differing(got, want, tolerance))
    if not len(places):
        return ""
    zeros = ", in the sign of zero alone" if (got == want)[tuple(places.T)].all() else ""
    first = tuple(places[0])
    where = ", ".join(map(str, first))
    left, right = (hexadecimal(each[first], case.dtype) for each in (got, want))
    count = f"{len(places):,} of {got.size:,} differ{zeros}"
    return f"{count}, first at [{where}]: GPU {left}, {whose} {right}"


EXACT = ("median", "krum", "sign_majority", "condense")  # rules that give a number of the column


def margin(case: Case, X: np.ndarray) -> Any:
    """Return how far a result may be from the reference, which rounds less: None for not at all.

    In each column a share of its greatest number. The mean of two middle values is rounded twice
    where they are subnormal.
    """
    if case.rule in EXACT and case.n % 2:
        return None
    return 1e-9 * np.where(np.isfinite(X), np.abs(X), 0.0).max(axis=0)


def compared(torch: Any, case: Case) -> str:
    """Run one case; return what differs, nothing where nothing does."""
    X = made(torch, case)
    there = laid_out(torch, X, case.layout)
    got = host_numbers(computed(case, there))
    want = host_numbers(on_host(case, X))
    found = difference(case, got, want, "CPU", allowed(case, want))
    judge = None if found else judged(case, X)
    if judge is None:
        return found
    got, judge = got + 0.0, judge + 0.0  # the sign of zero is between GPU and CPU
    return difference(case, got, judge, "reference", margin(case, X.numpy()))


def repeated(torch: Any, case: Case) -> str:
    """Return whether the GPU gives the same bits each time."""
    there = laid_out(torch, made(torch, case), case.layout)
    first, *others = (host_numbers(computed(case, there)) for _ in range(AGAIN))
    same = not any(differing(first, other, None).any() for other in others)
    return f"{AGAIN} more runs gave " + ("the same bits each time" if same else "different bits")


# --------------------------------------------------------------------------------------- the stage


def run(options: dict[str, Any], emit: Callable[..., None]) -> None:
    """Run the table from case number `skip` on, one record for each.

    `without` names the rules that have taken a process with them: each would take another.
    """
    import torch

    emit(tolerances=tolerances())
    rerun, errors, compares = RERUN, 0, False
    for case in each(cases(options["quick"]), emit, options["skip"]):
        record: dict[str, Any] = {"case": str(case), "rule": case.rule, "dtype": case.dtype}
        if case.rule in options["without"]:
            emit(**record, verdict="not run")
            continue
        try:
            found = compared(torch, case)
            record["verdict"], compares = "FAILED" if found else "passed", True
            if found:
                record["said"] = found
                if rerun:
                    rerun -= 1
                    record["again"] = repeated(torch, case)
        except Exception as error:
            errors += 1
            record |= {"verdict": "FAILED", "said": "it raised " + first_line(error)}
            record["error"] = traceback.format_exc()
            emit(**record)
            if not answers(torch):
                raise Poisoned from error
            if errors == HOPELESS and not compares:
                emit(hopeless=f"the first {HOPELESS} cases all raised errors", over=True)
                return
            continue
        emit(**record)


def tolerances() -> str:
    """Return in words what must be equal, and how nearly."""
    shares = ", ".join(f"{4 * share:.0e} of {dtype}" for dtype, share in ROUNDING.items())
    names = ", ".join(f"`{name}`" for name in every_rule() if name.startswith(WEIGHTED))
    return (
        "Results must have the CPU's bits, the sign of zero included; any NaN is as good as "
        f"another. Only where weights follow from distances ({names}) rounding may differ, by this "
        f"share of the greatest result: {shares}."
    )


def first_line(error: Exception) -> str:
    """Return the kind of an error and its first line."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__
