"""From plain code to the kernels of `fastgar/cpu`, step by step: tables in Markdown.

    python -m asv_benchmarks.ladder
    python -m asv_benchmarks.ladder --rows 51 --columns 1000000 --threads 8

Steps are timed by turns, so that a machine that does other work harms all alike; what is printed is
the least time of each and the median. "Compiled in" is the time of the processor up to the first
result. Nothing but the steps of fastgar looks for NaN.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from statistics import median
from typing import Any, NamedTuple

import numpy as np

RUN = 1024  # columns of a row that stay in the cache while it meets all others


class Step(NamedTuple):
    """One way to compute something from the rows X."""

    name: str
    call: Callable[[], Any]
    compiled: float  # seconds


def jitted(source: str, fastmath: Any = False) -> Any:
    """Return the function `f` of a Python text, compiled by Numba at its first call."""
    from numba import njit

    space: dict[str, Any] = {"np": np}
    exec(source, space)
    return njit(fastmath=fastmath)(space["f"])


INSERTION = """
def f(X, out):
    n, d = X.shape
    column = np.empty(n, X.dtype)
    for c in range(d):
        for i in range(n):
            x, k = X[i, c], i
            while k > 0 and column[k - 1] > x:
                column[k] = column[k - 1]
                k -= 1
            column[k] = x
        out[c] = (column[(n - 1) // 2] + column[n // 2]) * np.float32(0.5)
"""


def network(n: int) -> str:
    """Return the text of a median by a pruned comparator network, one column after the other."""
    from fastgar.networks import pruned, sorting

    low, high = (n - 1) // 2, n // 2
    lines = ["def f(X, out):", " for c in range(X.shape[1]):"]
    lines += [f"  x{i} = X[{i}, c]" for i in range(n)]
    for i, j in pruned(sorting(n), range(low, high + 1)):
        lines += [f"  if x{j} < x{i}:", f"   x{i}, x{j} = x{j}, x{i}"]
    return "\n".join([*lines, f"  out[c] = (x{low} + x{high}) * np.float32(0.5)"])


PAIRS = """
def f(X, D):
    n, d = X.shape
    for begin in range(0, d, RUN):
        end = min(begin + RUN, d)
        for i in range(n):
            x = X[i, begin:end]
            for j in range(i + 1, n):
                y, total = X[j, begin:end], np.float32(0)
                for c in range(end - begin):
                    total += (x[c] - y[c]) ** 2
                D[i, j] += total
""".replace("RUN", str(RUN))


def blocks(size: int) -> str:
    """Return the text of all pairs in blocks of size x size, whose sums stay in registers.

    Rows past the last whole block are left out: it is one step less than the whole.
    """
    here = range(size)
    lines = ["def f(X, D):", " n, d = X.shape", f" for begin in range(0, d, {RUN}):"]
    lines += [f"  end = min(begin + {RUN}, d)", f"  for i in range(0, n - {size - 1}, {size}):"]
    lines += [f"   a{p} = X[i + {p}, begin:end]" for p in here]
    lines += [f"   for j in range(i, n - {size - 1}, {size}):"]
    lines += [f"    b{q} = X[j + {q}, begin:end]" for q in here]
    lines += [f"    s{p}{q} = np.float32(0)" for p in here for q in here]
    lines += ["    for c in range(end - begin):"]
    lines += [f"     s{p}{q} += (a{p}[c] - b{q}[c]) ** 2" for p in here for q in here]
    return "\n".join([*lines, *(f"    D[i + {p}, j + {q}] += s{p}{q}" for p in here for q in here)])


def compiled(name: str, source: str, X: Any, out: Any, fastmath: Any = False) -> Step:
    """Return a step of plain Numba that writes to `out`."""
    function = jitted(source, fastmath)
    return Step(name, lambda: function(X, out), spent(lambda: function(X, out)))


def spent(call: Callable[[], Any]) -> float:
    began = time.process_time()
    call()
    return time.process_time() - began


def ours(name: str, call: Callable[[], Any], threads: int) -> Step:
    """Return a step of fastgar on so many threads."""
    import fastgar as fg

    def on_threads() -> Any:
        fg.set_threads(threads)
        return call()

    return Step(f"{name}, {threads} thread{'s' * (threads > 1)}", on_threads, spent(on_threads))


def medians(X: Any, threads: int) -> list[Step]:
    import fastgar as fg

    out = np.empty(X.shape[1], X.dtype)
    return [
        Step("`numpy.median(X, axis=0)`", lambda: np.median(X, axis=0), 0.0),
        compiled("Numba: insertion sort of each column", INSERTION, X, out),
        compiled("Numba: the network, as `if`s", network(len(X)), X, out),
        ours("`fg.median`", lambda: fg.median(X), 1),
        ours("`fg.median`", lambda: fg.median(X), threads),
    ]


def by_pairs(X: Any) -> Any:
    return [((x - y) ** 2).sum() for i, x in enumerate(X) for y in X[i + 1 :]]


def distances(X: Any, threads: int) -> list[Step]:
    import fastgar as fg
    from fastgar.cpu.vectors import BLOCK

    D = np.zeros((len(X), len(X)))
    any_order = {"reassoc", "contract"}
    whole = PAIRS.replace(f"range(0, d, {RUN})", "range(1)").replace(f"min(begin + {RUN}, d)", "d")
    size = f"{BLOCK} x {BLOCK}"
    return [
        Step("NumPy: pair after pair", lambda: by_pairs(X), 0.0),
        compiled("Numba: pair after pair", whole, X, D, any_order),
        compiled(f"Numba: all pairs of {RUN} columns", PAIRS, X, D, any_order),
        compiled(f"Numba: blocks of {size} pairs", blocks(BLOCK), X, D, any_order),
        ours("`fg.sqdist`", lambda: fg.sqdist(X), 1),
        ours("`fg.sqdist`", lambda: fg.sqdist(X), threads),
    ]


def sums(X: Any, threads: int) -> list[Step]:
    import fastgar as fg

    w = np.full(len(X), 1 / len(X), np.float32)
    return [
        Step("NumPy: row after row", lambda: sum(a * x for a, x in zip(w, X, strict=True)), 0.0),
        Step("NumPy: `w @ X`", lambda: w @ X, 0.0),
        ours("`fg.combine(w, X)`", lambda: fg.combine(w, X), 1),
        ours("`fg.combine(w, X)`", lambda: fg.combine(w, X), threads),
    ]


def timed(steps: list[Step], repeat: int) -> list[list[float]]:
    """Return the seconds of each call, taken by turns."""
    seconds: list[list[float]] = [[] for _ in steps]
    for _ in range(repeat):
        for step, known in zip(steps, seconds, strict=True):
            began = time.perf_counter()
            step.call()
            known.append(time.perf_counter() - began)
    return seconds


def table(title: str, steps: list[Step], repeat: int) -> str:
    lines = [f"| {title} | compiled in | least | median |", "| --- | ---: | ---: | ---: |"]
    for step, seconds in zip(steps, timed(steps, repeat), strict=True):
        made = f"{step.compiled:.2f} s" if step.compiled else ""
        low, middle = (f"{1e3 * x:.3g} ms" for x in (min(seconds), median(seconds)))
        lines.append(f"| {step.name} | {made} | {low} | {middle} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description="From plain code to the kernels for the CPU.")
    parser.add_argument("--rows", type=int, default=20)
    parser.add_argument("--columns", type=int, default=100_000)
    parser.add_argument("--repeat", type=int, default=50)
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    from fastgar.cpu.vectors import BLOCK, lanes

    shape = (arguments.rows, arguments.columns)
    X = np.random.default_rng(0).standard_normal(shape, dtype=np.float32)
    print(f"{shape[0]} rows of {shape[1]:,} float32, vectors of {lanes('float32')}, BLOCK {BLOCK}")
    for title, steps in (("median", medians), ("distances", distances), ("one sum", sums)):
        print(f"\n{table(title, steps(X, arguments.threads), arguments.repeat)}", flush=True)


if __name__ == "__main__":
    main()
