"""Does fastgar work on this GPU, and how fast? One command, under ten minutes.

    pip install -e ".[cuda12,test]" nvidia-cuda-sanitizer-api     # or cuda13, as that of torch
    python -m asv_benchmarks.gpu            # everything
    python -m asv_benchmarks.gpu --quick    # the beginning of each, no tests and no sanitizer
    python -m asv_benchmarks.gpu --only correctness times

Run it in a checkout. Five stages: what there is to run on; every kernel against the CPU, bit by
bit; the table of tests; compute-sanitizer, where it is found; times, beside those that were
predicted. A stage that fails, hangs or takes the GPU down with it is reported, and the next runs.

`asv_benchmarks/results/gpu-<name>.md` is for people and for bug reports, `gpu-<name>.json` for
programs, `gpu-<name>.png` is the roofline (with matplotlib). The first two are written again with
everything that becomes known, so what was found stays when it is stopped.
"""

from __future__ import annotations

import os
import signal

if __name__ == "__main__":  # before all else is loaded, which Ctrl-C would end with a traceback
    signal.signal(signal.SIGINT, lambda number, frame: os._exit(130))

import argparse
import importlib.util
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from time import perf_counter
from typing import Any

if not __package__:  # run as a file, whose neighbours are modules of a package
    sys.path[0] = str(Path(__file__).resolve().parent.parent)
    from asv_benchmarks.gpu import main

    sys.exit(main())

from . import gpu_figures as figures
from . import gpu_tools as tools
from .gpu_environment import NO_CUPY, NO_GPU, NO_KERNEL, NO_TORCH, nvidia_smi
from .gpu_process import Outcome, staged
from .gpu_report import STAGES, Record, Report, verdict, worth_sending

BUDGET = 570.0  # seconds in all
# Seconds that a stage may take, and those that are kept for it while earlier ones run.
MOST = {"environment": 100, "correctness": 170, "tests": 180, "sanitizer": 160, "times": 240}
LEAST = {"environment": 0, "correctness": 60, "tests": 60, "sanitizer": 40, "times": 90}
EACH_TOOL = 60.0  # of the sanitizer
SILENCE = {"environment": 95.0, "correctness": 60.0, "times": 75.0}  # then a process is lost
PRINTED = 20  # failing cases; all are in the report
QUICK = ("environment", "correctness", "times")
INSTALL = 'pip install -e ".[cuda12,test]"'
FITTING = f"{INSTALL}, or [cuda13,test], as the CUDA of torch is"
MISSING = {
    NO_TORCH: f"This needs torch for the GPU. In the checkout: {INSTALL}",
    NO_GPU: "There is no CUDA GPU that torch can use here.",
    NO_CUPY: f"This needs CuPy. In the checkout: {FITTING}.",
    NO_KERNEL: "CuPy is there and does not work, see above: pip uninstall -y cupy-cuda12x "
    f"cupy-cuda13x, then in the checkout {FITTING}.",
}
SEEN = "The driver sees {}: https://pytorch.org/get-started says which torch fits."


def seconds_for(stage: str, used: float) -> float:
    """Return the seconds that a stage may take when so many are used up."""
    later = list(STAGES)[list(STAGES).index(stage) + 1 :]
    return max(min(MOST[stage], BUDGET - used - sum(LEAST[name] for name in later)), 1.0)


# ------------------------------------------------------------------------------------- the stages


def environment(report: Report, seconds: float, quick: bool) -> Outcome:
    """Find out what there is to run on, and whether one kernel does run."""
    missing = []

    def heard(record: Record) -> None:
        report.data["machine"].update(record.get("machine", {}))
        missing.extend([record["missing"]] if "missing" in record else [])
        if "step" in record:
            step = {key: record[key] for key in ("step", "verdict", "said")}
            report.data["steps"].append(step)
            if "error" in record:
                report.error("environment", record["step"], record["error"])
            print(f"  {step['step']:<27}{step['verdict']:<8}{step['said']}", flush=True)

    def lost(what: str, why: str) -> None:
        missing.append(f"no answer from: {what}")
        report.error("environment", what, why)

    end = staged(
        "environment", dict, seconds, SILENCE["environment"], heard, lost, lives=1
    )  # fmt: skip
    report.data["missing"] = missing[0] if missing else None
    failed = [step["step"] for step in report.data["steps"] if step["verdict"] == "FAILED"]
    if end.verdict == "done":
        return Outcome("FAILED", "; ".join(failed)) if failed else Outcome("passed")
    report.data["missing"] = missing[0] if missing else "no answer in time"
    return end


def correctness(report: Report, seconds: float, quick: bool) -> Outcome:
    """Compare every kernel with the CPU."""
    found, began = report.data["correctness"], perf_counter()
    hopeless: list[str] = []
    without: list[str] = []  # rules that took a process with them

    def heard(record: Record) -> None:
        if "units" in record:
            found["total"] = record["units"]
        if "tolerances" in record:
            found["tolerances"] = record["tolerances"]
        hopeless.extend([record["hopeless"]] if "hopeless" in record else [])
        if "case" in record:
            case = {key: record[key] for key in ("case", "said", "again") if key in record}
            keep(case, record["rule"], record["dtype"], record["verdict"])
            if "error" in record:
                report.error("correctness", record["case"], record["error"])

    def keep(case: Record, rule: str, dtype: str, word: str) -> None:
        found["cases"].append([case["case"], rule, dtype, word])
        if word == "FAILED":
            found["failed"].append(case)
            if len(found["failed"]) <= PRINTED:
                print(f"  FAILED  {case['case']}: {case['said']}", flush=True)
        if word == "passed":
            found["passed"] += 1
            if found["passed"] % 100 == 0:
                spent = perf_counter() - began
                print(f"  {found['passed']} of {found['total']} agree, {spent:.0f} s", flush=True)
        report.save()

    def lost(what: str, why: str) -> None:
        rule, *rest = what.rsplit(", ", 4)  # as a case is written
        if found["failed"] and found["failed"][-1]["case"] == what:  # it could say so itself
            found["failed"][-1]["said"] += f"; {why.splitlines()[0]}"
        else:
            report.error("correctness", what, why)
            if rest:
                keep({"case": what, "said": why.splitlines()[0]}, rule, rest[0], "FAILED")
        without.append(rule)

    def options() -> Record:
        return {"quick": quick, "without": without}

    end = staged("correctness", options, seconds, SILENCE["correctness"], heard, lost)
    ran = sum(word != "not run" for *_, word in found["cases"])
    why = "" if ran == found["total"] else f"{ran} of {found['total']} cases were run"
    if end.verdict != "done":
        return Outcome(end.verdict, "; ".join(filter(None, [end.why, why])))
    if hopeless:
        return Outcome("FAILED", hopeless[0])
    return Outcome("FAILED", why) if found["failed"] else Outcome("passed")


def tests(report: Report, seconds: float, quick: bool) -> Outcome:
    """Run the table of tests."""
    found = tools.tests(seconds)
    if "said" in found:
        report.error("tests", found["summary"], found.pop("said"))
    report.save(tests=found)
    print(f"  {found['summary']}", flush=True)
    return Outcome(found["verdict"], found["summary"] if found["verdict"] != "passed" else "")


def sanitizer(report: Report, seconds: float, quick: bool) -> Outcome:
    """Run the tools of compute-sanitizer."""
    tool, began = tools.sanitizer(), perf_counter()
    if tool is None:
        return Outcome("not run", tools.NO_SANITIZER)
    found = report.data["sanitizer"]
    for kind in tools.TOOLS:
        left = seconds - (perf_counter() - began)
        if left < min(EACH_TOOL, seconds) / 4:
            found[kind] = {"verdict": "not run", "summary": "too little time was left"}
        else:
            found[kind] = tools.sanitized(tool, kind, min(EACH_TOOL, left))
        if "said" in found[kind]:
            report.error("sanitizer", kind, found[kind].pop("said"))
        report.save()
        print(f"  {kind:<12}{found[kind]['verdict']}  {found[kind]['summary']}", flush=True)
    words = {kind: r["verdict"] for kind, r in found.items()}
    for bad in ("FAILED", "out of time"):
        if bad in words.values():
            return Outcome(bad, ", ".join(k for k, word in words.items() if word == bad))
    return Outcome("passed")


def times(report: Report, seconds: float, quick: bool) -> Outcome:
    """Measure, and compare with what was predicted."""
    data, failed = report.data, []

    def heard(record: Record) -> None:
        if "bandwidth" in record:
            data["bandwidth"] = record["bandwidth"]
            print(f"  copy: {data['bandwidth'] / 1e12:.2f} TB/s, read and written")
        if "overhead" in record:
            data["overhead"] = record["overhead"]
            eager, graph = (1e6 * record["overhead"][name] for name in ("eager", "graph"))
            print(f"  krum of 20 x 1000: {eager:.1f} us a call, {graph:.1f} us as a graph\n")
            print("  " + figures.HEAD, flush=True)
        if "result" in record:
            data["results"].append(record["result"])
            data.update(missed=figures.missed(data), off=figures.off(data))
            print("  " + figures.line(record["result"]), flush=True)
        if "skipped" in record:
            data["skipped"].append(record["skipped"])
        if "failed" in record:
            failed.append(record["failed"])
            report.error("times", record["failed"], record["error"])
            print(f"  FAILED  {record['failed']}", flush=True)
        if not record.keys() & {"unit", "units"}:
            report.save()

    def lost(what: str, why: str) -> None:
        if what not in failed:  # else it could say so itself
            report.error("times", what, why)
            failed.append(what)

    def options() -> Record:
        return {"quick": quick, "bandwidth": data["bandwidth"], "machine": data["machine"]}

    end = staged("times", options, seconds, SILENCE["times"], heard, lost)
    if end.verdict != "done":
        return end
    if failed:
        return Outcome("FAILED", "errors at " + ", ".join(failed))
    skipped = len(data["skipped"])
    return Outcome("passed", f"{skipped} sizes were skipped" if skipped else "")


RUN: dict[str, Callable[[Report, float, bool], Outcome]] = {
    "environment": environment, "correctness": correctness, "tests": tests,
    "sanitizer": sanitizer, "times": times,
}  # fmt: skip


# ------------------------------------------------------------------------------------ the command


def one_stage(report: Report, name: str, number: int, quick: bool) -> None:
    """Run a stage, and keep how it ended, whatever happens."""
    used = perf_counter() - report.began
    limit = seconds_for(name, used)
    print(f"\n{number} of {len(STAGES)}  {name}: {STAGES[name]}, at most {limit:.0f} s", flush=True)
    began = perf_counter()
    try:
        end = RUN[name](report, limit, quick)
    except KeyboardInterrupt:
        report.stage(name, "stopped", "by hand", perf_counter() - began)
        raise
    except Exception as error:  # of ours, not of the GPU: the other stages may still work
        import traceback

        report.error(name, type(error).__name__, traceback.format_exc())
        end = Outcome("FAILED", f"{type(error).__name__}: {error}")
    spent = perf_counter() - began
    report.stage(name, end.verdict, end.why, spent)
    why = f": {end.why}" if end.why else ""
    print(f"  -> {end.verdict}, {spent:.0f} s{why}", flush=True)


def run(report: Report, chosen: Sequence[str], quick: bool) -> int:
    """Run the stages; return the status of the command."""
    for number, name in enumerate(STAGES, 1):
        missing = report.data["missing"]
        if name not in chosen:
            report.stage(name, "not run", "not asked for")
        elif missing:
            report.stage(name, "not run", missing)
        else:
            one_stage(report, name, number, quick)
    missing = report.data["missing"]
    if missing in MISSING:
        seen = SEEN.format(report.seen) if report.seen and missing in (NO_TORCH, NO_GPU) else ""
        print(f"\n{MISSING[missing]} {seen}".rstrip())
    report.save(complete=not report.failed() and not report.data["skipped"])
    return int(report.failed())


@contextmanager
def terminated_as_interrupted() -> Iterator[None]:
    """Have Ctrl-C and a polite kill end the stages, so that no process of one is left behind."""

    def stop(number: int, frame: Any) -> None:
        raise KeyboardInterrupt

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    ends = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)  # the last when a connection breaks
    before = [signal.signal(number, stop) for number in ends]
    try:
        yield
    finally:
        for number, handler in zip(ends, before, strict=True):
            signal.signal(number, handler)


def finish(report: Report) -> None:
    """Draw the picture, and say what was found and where it is."""
    path = report.path
    if report.data["results"]:
        try:
            from . import roofline

            roofline.plot(report.data, path.with_suffix(".png"))
        except Exception as error:  # matplotlib is missing or broken: all else is written
            print(f"\nno picture ({error}): pip install matplotlib")
    print("\n" + "\n".join(line.replace("**", "") for line in verdict(report.data)))
    print(f"\nThe report is {path.with_suffix('.md')}")
    if worth_sending(report.data):
        print(f"Please attach it, and {path.name} beside it, to an issue of fastgar.")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run everything; return 0 if nothing failed, 130 when it was stopped."""
    parser = argparse.ArgumentParser(
        prog="python -m asv_benchmarks.gpu", description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.add_argument("--quick", action="store_true", help="two minutes instead of ten")
    parser.add_argument("--only", nargs="+", metavar="STAGE", choices=list(STAGES),
                        help=f"some of: {', '.join(STAGES)}")  # fmt: skip
    parser.add_argument("--json", type=Path, metavar="FILE", help="where to write the report")
    options = parser.parse_args(arguments)
    if options.json is not None and (options.json.suffix != ".json" or options.json.is_dir()):
        parser.error(f"--json must name a file that ends in .json, got {options.json}")
    report = Report(options.json, nvidia_smi("name")[0])
    if importlib.util.find_spec("torch") is None and not report.seen:
        print(MISSING[NO_TORCH])
        return 1
    try:
        report.path.parent.mkdir(parents=True, exist_ok=True)
        report.path.with_suffix(".part").touch()
        report.path.with_suffix(".part").unlink()
    except OSError as error:
        print(f"The report cannot be written ({error}): --json FILE says where else.")
        return 1
    chosen = {"environment", *(options.only or (QUICK if options.quick else STAGES))}
    most = "two minutes" if options.quick else "ten minutes"
    print(f"fastgar on a GPU: at most {most}. Ctrl-C stops it, and keeps what is known.")
    try:
        with terminated_as_interrupted():
            status = run(report, sorted(chosen), options.quick)
    except KeyboardInterrupt:
        status = 130
        report.save()
        print("\nstopped")
    if report.written():
        finish(report)
    return status


if __name__ == "__main__":
    sys.exit(main())
