"""What fastgar costs on a GPU: one command, under ten minutes on a large one.

    python asv_benchmarks/gpu.py            # tests, figures, asv_benchmarks/results/gpu-<name>.json
    python asv_benchmarks/gpu.py --quick    # small sizes, no tests

Times are of CUDA events around replays of a graph that holds several calls, on buffers that do not
fit in the cache together, so that neither the host nor the cache is measured; "eager" is what a
call costs the host. Figures are a share of the bandwidth of a plain copy: the bytes that a rule
must move, by the time it takes.
"""

from __future__ import annotations

import argparse
import json
import platform
import subprocess
import sys
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from time import perf_counter
from typing import Any

ROWS = (11, 20, 32, 51, 100)
COLUMNS = (1_000_000, 25_000_000, 100_000_000)
HERE = Path(__file__).resolve().parent
FLOAT = 4  # bytes
TURNS = 7
TORCH_AT_MOST = 3 << 30  # numbers times bytes that torch may take to sort
# The least share of the bandwidth that we want on an H200: (n, share) up to n rows.
BARS = {
    "median": ((32, 0.85), (51, 0.6), (100, 0.35)),
    "trimmed_mean": ((32, 0.85), (51, 0.6), (100, 0.35)),
    "sqdist": ((20, 0.75), (51, 0.5)),
}
KRUM_AT_MOST = 1.25  # times sqdist and one combine
EAGER_AT_MOST, GRAPH_AT_MOST = 60e-6, 15e-6  # seconds of a Krum of 1000 columns


def bar(rule: str, n: int) -> float | None:
    """Return the share of the bandwidth that is wanted."""
    return next((share for most, share in BARS.get(rule, ()) if n <= most), None)


def replayed(torch: Any, calls: list[Callable[[], Any]]) -> float:
    """Return the seconds of one call: several in a graph, the median of some replays."""
    side = torch.cuda.Stream()
    with torch.cuda.stream(side):
        for call in calls:
            call()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for call in calls:
            call()
    return on_events(torch, graph.replay) / len(calls)


def on_events(torch: Any, call: Callable[[], Any], turns: int = TURNS) -> float:
    """Return the seconds between the events around a call, in the median turn."""
    call()
    torch.cuda.synchronize()
    seconds = []
    for _ in range(turns):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        call()
        end.record()
        end.synchronize()
        seconds.append(begin.elapsed_time(end) / 1000)
    return sorted(seconds)[len(seconds) // 2]


def per_call(torch: Any, call: Callable[[], Any], calls: int = 2000) -> float:
    """Return the seconds that a call takes in a row of them, whoever is the slower."""
    for _ in range(200):
        call()
    torch.cuda.synchronize()
    began = perf_counter()
    for _ in range(calls):
        call()
    torch.cuda.synchronize()
    return (perf_counter() - began) / calls


def distances_only(X: Any) -> Callable[[], Any]:
    """Return a call that leaves the distances of the rows on the GPU."""
    from fastgar import arrays, primitives

    def call() -> None:
        T = arrays.table(X)
        backend = primitives._on(T)
        backend.finish(primitives._distances(backend, T, (), None), True)

    return call


def krum_of_torch(torch: Any, X: Any, f: int) -> Any:
    """Krum as it is written with torch."""
    near = torch.cdist(X, X).square().topk(len(X) - f - 1, largest=False).values
    return X.index_select(0, near.sum(dim=1).argmin().reshape(1))


def buffers(torch: Any, n: int, d: int) -> list[Any]:
    """Return rows to rotate over: together over four times the cache, and at least two sets."""
    cache = torch.cuda.get_device_properties(0).L2_cache_size
    free = torch.cuda.mem_get_info()[0]
    size = n * d * FLOAT
    wanted = max(2, min(16, -(-4 * cache // size)))
    count = min(wanted, int(0.7 * free) // (size + d * FLOAT))
    return [torch.randn(n, d, device="cuda") for _ in range(count)]


def measured(torch: Any, n: int, d: int, bandwidth: float) -> list[dict[str, Any]]:
    """Return the figures of every rule for one size."""
    import fastgar as fg

    f = (n - 3) // 4
    sets = buffers(torch, n, d)
    if not sets:
        return []
    rules: dict[str, tuple[Callable[[Any], Any], int]] = {
        "median": (lambda X: lambda: fg.median(X), (n + 1) * d * FLOAT),
        "trimmed_mean": (lambda X: lambda: fg.trimmed_mean(X, f=f), (n + 1) * d * FLOAT),
        "sqdist": (distances_only, n * d * FLOAT),
        "krum": (lambda X: lambda: fg.krum(X, f=f), (n + 2) * d * FLOAT),
        "mean": (lambda X: lambda: fg.mean(X), (n + 1) * d * FLOAT),
    }
    found = []
    for name, (make, moved) in rules.items():
        seconds = replayed(torch, [make(X) for X in sets])
        share = moved / seconds / bandwidth
        found.append({"rule": name, "n": n, "d": d, "f": f, "seconds": seconds, "share": share})
    one = replayed(torch, [lambda X=X: X[0].clone() for X in sets])
    by_name = {entry["rule"]: entry for entry in found}
    krum = by_name["krum"]
    krum["of_sqdist_and_combine"] = krum["seconds"] / (by_name["sqdist"]["seconds"] + one)
    if n * d * FLOAT <= TORCH_AT_MOST:
        X = sets[0]
        compared = {
            "median": [lambda: X.median(dim=0), lambda: X.sort(dim=0)],
            "krum": [lambda: krum_of_torch(torch, X, f)],
            "mean": [lambda: X.mean(dim=0)],
        }
        for name, ways in compared.items():
            try:
                best = min(on_events(torch, way, 3) for way in ways)
            except torch.OutOfMemoryError:
                continue
            by_name[name]["torch_seconds"] = best
            by_name[name]["times_torch"] = best / by_name[name]["seconds"]
    return found


def bandwidth_of_copies(torch: Any) -> float:
    """Return bytes per second, read and written, of torch's copy of 1 GiB."""
    x = torch.ones(1 << 28, device="cuda")
    y = torch.empty_like(x)
    return 2 * x.numel() * FLOAT / on_events(torch, lambda: y.copy_(x), 15)


def overhead(torch: Any) -> dict[str, float]:
    """Return what a Krum of 20 rows of 1000 columns takes, eager and replayed."""
    import fastgar as fg

    X = torch.randn(20, 1000, device="cuda")
    eager = per_call(torch, lambda: fg.krum(X, f=4))
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        fg.krum(X, f=4)
    return {"eager": eager, "graph": per_call(torch, graph.replay)}


def machine(torch: Any) -> dict[str, Any]:
    """Return what is known of the GPU and of the versions."""
    query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        driver = subprocess.run(query, capture_output=True, text=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError):
        driver = "unknown"
    versions = {}
    for name in ("fastgar", "torch", "cupy-cuda12x", "cupy-cuda13x", "numpy", "numba"):
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            continue
    properties = torch.cuda.get_device_properties(0)
    return {
        "gpu": properties.name,
        "compute_capability": f"{properties.major}.{properties.minor}",
        "memory": properties.total_memory,
        "driver": driver.split("\n")[0].strip(),
        "cuda": torch.version.cuda,
        "python": platform.python_version(),
        "versions": versions,
    }


def tests() -> bool:
    """Run the test table on the GPU; return whether it passed."""
    table = str(HERE.parent / "tests" / "test_cuda.py")
    command = [sys.executable, "-m", "pytest", "-q", "-k", "test_gpu", table]
    return subprocess.run(command, cwd=HERE.parent).returncode == 0


def line(entry: dict[str, Any]) -> str:
    """Return one line of the table."""
    wanted = bar(entry["rule"], entry["n"])
    verdict = "" if wanted is None else f"  (wanted {wanted:.2f})"
    text = f"{entry['rule']:<13}{entry['n']:>4}{entry['d']:>12}{entry['seconds'] * 1e6:>12.1f} us"
    text += f"{entry['share']:>7.2f}{verdict:<16}"
    if "of_sqdist_and_combine" in entry:
        text += f" {entry['of_sqdist_and_combine']:.2f} x sqdist + combine"
        text += f" (wanted <= {KRUM_AT_MOST})"
    if "times_torch" in entry:
        text += f" torch takes {entry['times_torch']:.1f} x as long"
    return text


def main() -> int:
    """Run everything, print the table, write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="small sizes, no tests")
    parser.add_argument("--no-tests", action="store_true", help="figures only")
    parser.add_argument("--json", type=Path, metavar="FILE", help="where to write the figures")
    options = parser.parse_args()
    try:
        import torch
    except ImportError:
        print("This measures against torch on a GPU: pip install torch, and fastgar[cuda12].")
        return 1
    if not torch.cuda.is_available():
        print("There is no CUDA GPU that torch can use here, so there is nothing to measure.")
        return 1
    report: dict[str, Any] = {"machine": machine(torch), "tests": None, "results": []}
    print(report["machine"]["gpu"], report["machine"]["driver"], report["machine"]["versions"])
    if not (options.quick or options.no_tests):
        report["tests"] = tests()
        print("tests:", "passed" if report["tests"] else "FAILED", flush=True)
    bandwidth = report["bandwidth"] = bandwidth_of_copies(torch)
    print(f"copy: {bandwidth / 1e12:.2f} TB/s, read and written\n")
    report["overhead"] = overhead(torch)
    eager, graph = report["overhead"]["eager"], report["overhead"]["graph"]
    print(f"krum of 20 x 1000: {eager * 1e6:.1f} us eager (wanted <= {EAGER_AT_MOST * 1e6:.0f}), "
          f"{graph * 1e6:.1f} us as a graph (wanted <= {GRAPH_AT_MOST * 1e6:.0f})\n")  # fmt: skip
    print("rule            n           d        time     share of a copy's bandwidth")
    for d in COLUMNS[:1] if options.quick else COLUMNS:
        for n in ROWS[:2] if options.quick else ROWS:
            for entry in measured(torch, n, d, bandwidth):
                report["results"].append(entry)
                print(line(entry), flush=True)
            torch.cuda.empty_cache()
    name = report["machine"]["gpu"].lower().replace(" ", "-")
    path = options.json or HERE / "results" / f"gpu-{name}.json"
    path.write_text(json.dumps(report, indent=1) + "\n")
    print(f"\nwritten to {path}")
    return 0 if report["tests"] in (None, True) else 1


if __name__ == "__main__":
    sys.exit(main())
