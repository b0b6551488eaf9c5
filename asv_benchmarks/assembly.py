"""What the compiler makes of the kernels, for a GPU that need not be there: tables in Markdown.

    pip install nvidia-cuda-nvrtc nvidia-cuda-nvdisasm
    python -m asv_benchmarks.assembly                    # for sm_90: H100, H200
    python -m asv_benchmarks.assembly --measured asv_benchmarks/results/gpu-nvidia-h200.json

"Predicted" is the larger of two times for d columns: that in which the bytes that must move come at
the bandwidth of the data sheet, and that in which the instructions of the arithmetic are issued, at
the highest clock. It is the least time that there can be, and nothing measured it; `gpu.py`
measures, and `--measured` puts its times beside.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
BANDWIDTH = 4.8e12  # bytes a second of an H200, by its data sheet
ISSUED = 132 * 128 * 1.98e9  # instructions a second that it can issue: lanes times clock
COLUMNS = 25_000_000
ROWS = (11, 20, 32, 51, 100)


def variants() -> list[tuple[str, str, int, str, dict[str, object], str]]:
    """Return rule, dtype, n, file, macros and kernel of what is shown."""
    from fastgar.cuda.shapes import pair_shape
    from fastgar.cuda.variants import columns_variant
    from fastgar.dtypes import CODES, ITEMSIZE
    from fastgar.statistic import Statistic

    def column(rule: str, dtype: str, n: int, statistic: Statistic) -> Any:
        variant = columns_variant(statistic, n, n, dtype, table=False, mix=0, alignment=16)
        return rule, dtype, n, variant.file, dict(variant.defines), variant.kernel

    found = [column("median", "float32", n, Statistic.median(n)) for n in ROWS]
    for n in ROWS:
        f = (n - 3) // 4
        found.append(column("trimmed_mean", "float32", n, Statistic.between(n, f, n - f, f)))
    for dtype, n in (("float64", 20), ("float16", 20), ("bfloat16", 20), ("bfloat16", 100)):
        found.append(column("median", dtype, n, Statistic.median(n)))
    for n in ROWS:
        shape = pair_shape(n, False, False, True)
        macros: dict[str, object] = dict(shape.defines(CODES["float32"], False, 4, False))
        found.append(("sqdist", "float32", n, "distances.cu", macros, "partials"))
    macros = {"FG_DTYPE": 2, "FG_TABLE": 0, "FG_K": 1}
    macros["FG_PACK"] = 16 // ITEMSIZE["float32"]
    found.append(("combine", "float32", 1, "combine.cu", macros, "combine"))
    return found


def one(variant: Any, architecture: str, tool: str | None) -> dict[str, Any]:
    """Return what the compiler says of one variant, and the two times."""
    import nvrtc

    from . import sass
    from .roofline import FLOAT, exchanges, operations, predicted, vectors

    rule, dtype, n, file, macros, kernel = variant
    code, said = nvrtc.compiled(file, macros, f"-arch={architecture}", *nvrtc.OPTIONS)
    about = said[said.rindex(f"Function properties for {kernel}\n") :]
    registers = re.search(r"Used (\d+) registers", about)
    local = re.search(r"(\d+) bytes stack frame, (\d+) bytes spill stores", about)
    shared = re.search(r"(\d+) bytes smem", about)
    size = {"float64": 8, "float32": 4}.get(dtype, 2)
    f = (n - 3) // 4
    needed = exchanges(rule, n, f)
    least = predicted(rule, n, f, COLUMNS, BANDWIDTH * FLOAT / size, ISSUED)
    machine = sass.read(code, kernel, tool) if tool else sass.Code("")
    counts, ahead = machine.count(), "?"
    if tool:  # other loops of the distances are for what is not finite
        sqdist = rule == "sqdist"
        loads = [machine.loads_under_way(machine.busiest)] if sqdist else machine.load_loops()
        ahead = min(loads)
    found = ""
    if needed and counts["FMNMX"]:
        found = f"{(counts['FMNMX'] + 2 * counts['FMNMX3']) / int(macros['FG_PACK']):g} / {needed}"
    return {
        "rule": rule, "dtype": dtype, "n": n,
        "registers": int(registers.group(1)) if registers else "?",
        "local": sum(map(int, local.groups())) if local else "?",
        "shared": int(shared.group(1)) if shared else 0,
        "instructions": counts.total() or "?", "ahead": ahead, "exchanges": found,
        "work": operations(rule, n, f), "bytes": vectors(rule, n) * size,
        "memory": least.memory,
        "arithmetic": least.arithmetic if dtype == "float32" else None,
    }  # fmt: skip


def table(found: list[dict[str, Any]], measured: dict[tuple[str, int], float]) -> str:
    """Return the table in Markdown."""
    lines = [
        "| kernel | dtype | n | registers | local memory | shared memory | instructions | "
        "loads under way | minima and maxima / needed | needed a column | bytes a column | memory "
        "| arithmetic | predicted | measured |",
        "|" + "---|" * 15,
    ]
    for r in found:
        times = [r["memory"], r["arithmetic"]]
        shown = [f"{t * 1e6:.0f} us" if t is not None else "" for t in times]
        predicted = "" if times[1] is None else f"{max(times) * 1e6:.0f} us"
        seconds = measured.get((r["rule"], r["n"])) if r["dtype"] == "float32" else None
        clocked = "not yet" if seconds is None else f"{seconds * 1e6:.0f} us"
        cells = [
            r["rule"], r["dtype"], r["n"], r["registers"], r["local"], r["shared"],
            r["instructions"], r["ahead"], r["exchanges"], f"{r['work']:.0f}", r["bytes"], *shown,
            predicted, clocked,
        ]  # fmt: skip
        lines.append("| " + " | ".join(map(str, cells)) + " |")
    return "\n".join(lines)


def main() -> int:
    """Compile, count and print."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--arch", default="sm_90", help="such as sm_90")
    parser.add_argument("--measured", type=Path, metavar="FILE", help="what gpu.py wrote")
    options = parser.parse_args()
    sys.path.append(str(HERE.parent / "tests"))
    import nvrtc

    if nvrtc.library() is None:
        print("NVRTC is not installed: pip install nvidia-cuda-nvrtc")
        return 1
    from .sass import disassembler

    tool = disassembler()
    if tool is None:
        print("nvdisasm is not installed, instructions are not counted: "
              "pip install nvidia-cuda-nvdisasm", file=sys.stderr)  # fmt: skip
    measured = {}
    if options.measured:
        for r in json.loads(options.measured.read_text())["results"]:
            if r["d"] == COLUMNS:
                measured[r["rule"], r["n"]] = r["seconds"]
    print(table([one(variant, options.arch, tool) for variant in variants()], measured))
    return 0


if __name__ == "__main__":
    sys.exit(main())
