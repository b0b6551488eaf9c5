"""Times of the kernels on a GPU, beside those that `roofline.py` predicts and the shares we want.

Times are of CUDA events around replays of a graph that holds several calls, on buffers that do not
fit in the cache together, so that neither the host nor the cache is measured; "eager" is what a
call costs the host. A share is that of the bandwidth of a plain copy: the bytes that a rule must
move, by the time it takes.
"""

from __future__ import annotations

import traceback
from collections.abc import Callable, Iterator
from time import perf_counter
from typing import Any, NamedTuple

from .gpu_process import Poisoned, answers, each
from .roofline import FLOAT, predicted, vectors

ROWS = (11, 20, 32, 51, 100)
COLUMNS = (1_000_000, 25_000_000, 100_000_000)
TURNS, CALLS = 7, 2000
TORCH_AT_MOST = 11 << 30  # numbers times bytes that torch may take to sort, which takes thrice that
PATIENCE = 0.5  # seconds: what takes longer is measured once
# The least share of the bandwidth that we want on an H200: (n, share) up to n rows.
BARS = {
    "median": ((32, 0.85), (51, 0.6), (100, 0.35)),
    "trimmed_mean": ((32, 0.85), (51, 0.6), (100, 0.35)),
    "sqdist": ((20, 0.75), (51, 0.5)),
}
KRUM_AT_MOST = 1.25  # times sqdist and one combine
OFF = 1.5  # times as long as predicted, or as short: then the figure is named
HELD_BACK = 20.0  # seconds without which no further size is begun
EAGER_AT_MOST, GRAPH_AT_MOST = 60e-6, 15e-6  # seconds of a Krum of 1000 columns

Call = Callable[[], Any]
Record = dict[str, Any]


def tolerated(n: int) -> int:
    """Return the f for n rows."""
    return (n - 3) // 4


def bar(rule: str, n: int) -> float | None:
    """Return the share of the bandwidth that is wanted, if any is."""
    return next((share for most, share in BARS.get(rule, ()) if n <= most), None)


def off(report: Record) -> list[str]:
    """Return the figures that are far from what was predicted, one sentence each."""
    found = []
    for r in report["results"]:
        ratio = r["ratio"]
        if not 1 / OFF <= ratio <= OFF:
            how = f"{ratio:.2f} x as long as" if ratio > 1 else f"{1 / ratio:.2f} x as fast as"
            found.append(
                f"{r['rule']} of {r['n']} x {r['d']:,}: {microseconds(r['seconds'])} measured, "
                f"{how} predicted ({microseconds(r['predicted'])}, limit: {r['limit']})"
            )
    return found


def microseconds(seconds: float) -> str:
    """Return a time for people."""
    return f"{seconds * 1e6:,.0f} us" if seconds >= 1e-5 else f"{seconds * 1e6:.2f} us"


def missed(report: Record) -> list[str]:
    """Return what was wanted and is not so, one sentence each."""
    found = []
    for r in report["results"]:
        what, wanted = f"{r['rule']} of {r['n']} x {r['d']:,}", bar(r["rule"], r["n"])
        if wanted is not None and r["share"] < wanted:
            found.append(f"{what}: {r['share']:.2f} of the bandwidth, wanted {wanted}")
        times = r.get("of_sqdist_and_combine")
        if times is not None and times > KRUM_AT_MOST:
            found.append(f"{what}: {times:.2f} x (sqdist + combine), wanted {KRUM_AT_MOST}")
    for name, most in (("eager", EAGER_AT_MOST), ("graph", GRAPH_AT_MOST)):
        seconds = (report["overhead"] or {}).get(name, 0.0)
        if seconds > most:
            found.append(
                f"krum of 1000 columns, {name}: {seconds * 1e6:.1f} us, wanted {most * 1e6:.0f}"
            )
    return found


# ------------------------------------------------------------------------------------ the clock


def replayed(torch: Any, calls: list[Call]) -> float:
    """Return the seconds of one call: several in a graph, the median of some replays."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):  # compiles, which a graph cannot hold
        for call in calls:
            call()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for call in calls:
            call()
    return on_events(torch, graph.replay) / len(calls)


def on_events(torch: Any, call: Call, turns: int = TURNS) -> float:
    """Return the seconds between the events around a call, in the median turn."""
    began = perf_counter()
    call()
    torch.cuda.synchronize()
    if perf_counter() - began > PATIENCE:
        turns = 1
    seconds = []
    for _ in range(turns):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        call()
        end.record()
        end.synchronize()
        seconds.append(begin.elapsed_time(end) / 1000)
    return sorted(seconds)[len(seconds) // 2]


def per_call(torch: Any, call: Call) -> float:
    """Return the seconds that a call takes in a row of them, whoever is the slower."""
    for _ in range(CALLS // 10):
        call()
    torch.cuda.synchronize()
    began = perf_counter()
    for _ in range(CALLS):
        call()
    torch.cuda.synchronize()
    return (perf_counter() - began) / CALLS


# ---------------------------------------------------------------------------------- the figures


def bandwidth_of_copies(torch: Any, numbers: int = 1 << 28) -> float:
    """Return bytes per second, read and written, of torch's copy of 1 GiB."""
    x = torch.ones(numbers, device="cuda")
    y = torch.empty_like(x)
    return 2 * numbers * FLOAT / on_events(torch, lambda: y.copy_(x), 15)


def overhead(torch: Any) -> dict[str, float]:
    """Return what a Krum of 20 rows of 1000 columns takes, eager and replayed."""
    import fastgar as fg

    X = torch.randn(20, 1000, device="cuda")
    eager = per_call(torch, lambda: fg.krum(X, f=4))
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        fg.krum(X, f=4)
    return {"eager": eager, "graph": per_call(torch, graph.replay)}


def distances_only(X: Any) -> Call:
    """Return a call that leaves the distances of the rows on the GPU."""
    from fastgar import arrays, primitives

    def call() -> None:
        T = arrays.table(X)
        backend = primitives._on(T)
        backend.finish(primitives._distances(backend, T, (), None), True)

    return call


def combine_only(torch: Any, X: Any) -> Call:
    """Return a call that writes the weighted sum that Krum ends with: of one row."""
    from fastgar import arrays, primitives
    from fastgar.cuda.backend import Numbers

    weights = torch.zeros(len(X), dtype=torch.float64, device="cuda")
    weights[0] = 1.0
    chosen = Numbers(weights.data_ptr(), (len(X),), False, weights)

    def call() -> None:
        T = arrays.table(X)
        (block,), out = T.blocks, T.empty()
        where = (block.addresses, block.columns, block.dtype)
        backend = primitives._on(T)
        backend.combine(chosen, *where, out.places[0])
        backend.flush()

    return call


def ways_of_torch(torch: Any, X: Any, f: int) -> dict[str, dict[str, Call]]:
    """Return how the rules are written with torch, by rule and by name."""
    n = len(X)

    def krum() -> Any:
        near = torch.cdist(X, X).square().topk(n - f - 1, largest=False).values
        return X.index_select(0, near.sum(dim=1).argmin().reshape(1))

    return {
        "mean": {"mean": lambda: X.mean(dim=0)},
        "median": {
            "median": lambda: X.median(dim=0).values,
            "sort": lambda: X.sort(dim=0).values[(n - 1) // 2],
        },
        "trimmed_mean": {"sort": lambda: X.sort(dim=0).values[f : n - f].mean(dim=0)},
        "sqdist": {"cdist": lambda: torch.cdist(X, X)},
        "krum": {"cdist, topk, index": krum},
    }


def buffers(torch: Any, n: int, d: int) -> list[Any]:
    """Return rows to rotate over: together over four times the cache, and two sets if they fit."""
    cache = torch.cuda.get_device_properties(0).L2_cache_size
    free = torch.cuda.mem_get_info()[0]
    size = n * d * FLOAT
    wanted = max(2, min(16, -(-4 * cache // size)))
    count = min(wanted, int(0.7 * free) // (size + d * FLOAT))
    return [torch.randn(n, d, device="cuda") for _ in range(count)]


def measured(torch: Any, n: int, d: int, bandwidth: float, machine: Record) -> Iterator[Record]:
    """Yield the figures of every rule for one size, each as soon as it is known."""
    import fastgar as fg

    f = tolerated(n)
    sets = buffers(torch, n, d)
    if not sets:
        return
    one = replayed(torch, [combine_only(torch, X) for X in sets])
    ours: dict[str, Callable[[Any], Call]] = {
        "mean": lambda X: lambda: fg.mean(X),
        "median": lambda X: lambda: fg.median(X),
        "trimmed_mean": lambda X: lambda: fg.trimmed_mean(X, f=f),
        "sqdist": distances_only,
        "krum": lambda X: lambda: fg.krum(X, f=f),
    }
    theirs = ways_of_torch(torch, sets[0], f)
    distances = 0.0
    for rule, make in ours.items():
        seconds = replayed(torch, [make(X) for X in sets])
        share = vectors(rule, n) * d * FLOAT / seconds / bandwidth
        record = {"rule": rule, "n": n, "d": d, "f": f, "seconds": seconds, "share": share}
        least = predicted(
            rule, n, f, d, bandwidth, machine.get("peak_instructions"), machine.get("lanes", 128)
        )
        record |= {"predicted": least.seconds, "limit": least.limit}
        record["ratio"] = seconds / least.seconds
        if rule == "sqdist":
            distances = seconds
        if rule == "krum":
            record["combine_seconds"] = one
            record["of_sqdist_and_combine"] = seconds / (distances + one)
        if n * d * FLOAT <= TORCH_AT_MOST:
            record["torch"] = {}
            for name, way in theirs[rule].items():
                try:
                    record["torch"][name] = on_events(torch, way, 3)
                except RuntimeError as error:  # out of memory, or more numbers than it takes
                    if not answers(torch):
                        raise
                    record.setdefault("torch_cannot", {})[name] = str(error).split("\n")[0]
                    torch.cuda.empty_cache()
            if record["torch"]:
                record["times_torch"] = min(record["torch"].values()) / seconds
        yield record


# --------------------------------------------------------------------------------------- the stage


class Size(NamedTuple):
    """Rows and columns."""

    n: int
    d: int

    def __str__(self) -> str:
        return f"{self.n} x {self.d:,}"


def sizes(quick: bool) -> list[Size]:
    """Return what is measured."""
    found = [Size(n, d) for d in COLUMNS for n in ROWS]
    return found[:2] if quick else found


def run(options: Record, emit: Callable[..., None]) -> None:
    """Measure from unit `skip` on: the copy, the calls of a small Krum, then every size."""
    import torch

    began = perf_counter()
    machine, bandwidth = options["machine"], options["bandwidth"]
    names = ["the bandwidth of a copy", "the calls of a small Krum"]
    units: list[Any] = [*names, *sizes(options["quick"])]
    for unit in each(units, emit, options["skip"]):
        try:
            if unit == names[0]:
                bandwidth = bandwidth_of_copies(torch)
                emit(bandwidth=bandwidth)
            elif unit == names[1]:
                emit(overhead=overhead(torch))
            else:
                n, d = unit
                why = "" if bandwidth else "no bandwidth to compare with"
                if options["seconds"] - (perf_counter() - began) < HELD_BACK:
                    why = "too little time"
                found = 0
                for record in () if why else measured(torch, n, d, bandwidth, machine):
                    emit(result=record)
                    found += 1
                if not found:
                    emit(skipped={"n": n, "d": d, "why": why or "too little memory"})
                torch.cuda.empty_cache()
        except Exception as error:
            emit(failed=str(unit), error=traceback.format_exc())
            if not answers(torch):
                raise Poisoned from error


def line(r: Record) -> str:
    """Return one line of the table on the terminal."""
    text = f"{r['rule']:<13}{r['n']:>4}{r['d']:>12,}{microseconds(r['seconds']):>12}"
    text += f"{microseconds(r['predicted']):>12}{r['ratio']:>7.2f}{r['share']:>8.2f}"
    wanted = bar(r["rule"], r["n"])
    text += f"{'' if wanted is None else f'{wanted:.2f}':>8}"
    return text + (f"{r['times_torch']:>9.1f}" if "times_torch" in r else "")


HEAD = (
    f"{'rule':<13}{'n':>4}{'d':>12}{'measured':>12}{'predicted':>12}{'ratio':>7}{'share':>8}"
    f"{'wanted':>8}{'torch':>9}"
)


def markdown(report: Record) -> str:
    """Return the table of times in Markdown."""
    lines = [
        "| n | d | rule | measured | predicted | measured / predicted | limit | "
        "share of a copy's bandwidth | wanted | torch / ours |",
        "|" + "---:|" * 2 + "---|" + "---:|" * 3 + "---|" + "---:|" * 3,
    ]
    for r in report["results"]:
        ratio, wanted = f"{r['ratio']:.2f}", bar(r["rule"], r["n"])
        if not 1 / OFF <= r["ratio"] <= OFF:
            ratio = f"**{ratio}**"
        cells = [
            r["n"], f"{r['d']:,}", r["rule"], microseconds(r["seconds"]),
            microseconds(r["predicted"]), ratio, r["limit"], f"{r['share']:.2f}",
            "" if wanted is None else f"{wanted:.2f}",
            f"{r['times_torch']:.2f}" if "times_torch" in r else "",
        ]  # fmt: skip
        lines.append("| " + " | ".join(map(str, cells)) + " |")
    return "\n".join(lines)
