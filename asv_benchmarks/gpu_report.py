"""What `gpu.py` knows so far: one file in JSON, and the same as Markdown for people.

Both are written again, as a whole, with everything that becomes known: a kill loses nothing.
"""

from __future__ import annotations

import json
import os
import re
import sys
from collections import Counter
from pathlib import Path
from time import perf_counter
from typing import Any

from .gpu_environment import NO_CUPY, NO_TORCH
from .gpu_figures import EAGER_AT_MOST, GRAPH_AT_MOST, OFF
from .gpu_figures import markdown as table_of_times
from .gpu_process import ROOT
from .gpu_tools import TOOLS

RESULTS = Path(__file__).resolve().parent / "results"
STAGES = {
    "environment": "what there is to run on",
    "correctness": "every kernel against the CPU, bit by bit",
    "tests": "the table of tests",
    "sanitizer": "NVIDIA's compute-sanitizer on a small run",
    "times": "measured and predicted",
}
BAD = ("FAILED", "out of time", "stopped")
SHOWN = 40  # failing cases in the Markdown
ERRORS = 40  # different errors that are kept in full

Record = dict[str, Any]


class Report:
    """What is known so far."""

    def __init__(self, path: Path | None = None, seen: str = "") -> None:
        self.chosen, self.seen = path, seen  # the GPU that the driver sees, whoever can use it
        self.began = perf_counter()
        cases: Record = {"total": 0, "passed": 0, "failed": [], "cases": [], "tolerances": ""}
        self.data: Record = {
            "complete": False, "seconds": 0.0, "missing": None, "seen": seen, "machine": {},
            "steps": [], "stages": {}, "correctness": cases, "tests": None,
            "sanitizer": {}, "bandwidth": None, "overhead": None, "results": [], "skipped": [],
            "off": [], "missed": [], "errors": [],
        }  # fmt: skip

    @property
    def path(self) -> Path:
        """Where the JSON goes: the Markdown and the picture go beside it."""
        gpu = self.data["machine"].get("gpu") or self.seen
        name = re.sub(r"[^a-z0-9]+", "-", gpu.lower())
        return self.chosen or RESULTS / f"gpu-{name.strip('-')}.json"

    def written(self) -> bool:
        """Return whether there is anything to report: a GPU, even if nobody can use it."""
        return bool(self.data["machine"].get("gpu") or self.seen)

    def save(self, **news: Any) -> None:
        """Write everything, so that a kill at any time loses nothing."""
        self.data.update(news, seconds=round(perf_counter() - self.began, 1))
        if not self.written():
            return
        path = self.path
        path.parent.mkdir(parents=True, exist_ok=True)
        for suffix, text in ((".json", json.dumps(self.data, indent=1)), (".md", self.markdown())):
            place = path if suffix == ".json" else path.with_suffix(suffix)
            part = place.with_name(place.name + ".part")
            part.write_text(text + "\n", encoding="utf-8")
            os.replace(part, place)

    def stage(self, name: str, verdict: str, why: str = "", seconds: float = 0.0) -> None:
        """Keep how a stage ended."""
        self.data["stages"][name] = {
            "verdict": verdict, "why": anonymous(why), "seconds": round(seconds, 1),
        }  # fmt: skip
        self.save()

    def verdict(self, name: str) -> str:
        """Return how a stage ended, "" where it did not begin."""
        return str(self.data["stages"].get(name, {}).get("verdict", ""))

    def error(self, stage: str, what: str, text: str) -> None:
        """Keep an error in full; the same once."""
        text, errors = anonymous(text), self.data["errors"]
        for known in errors:
            if (known["stage"], known["text"]) == (stage, text):
                known["times"] += 1
                return
        if len(errors) < ERRORS:
            errors.append({"stage": stage, "what": what, "text": text, "times": 1})

    def failed(self) -> bool:
        """Return whether any stage failed, or was not finished."""
        return any(self.verdict(name) in BAD for name in STAGES)

    def markdown(self) -> str:
        """Return the report for people."""
        return markdown(self.data)


def anonymous(text: str) -> str:
    """Return a text without the folders of the person who runs this."""
    places = {str(Path.home()): "~", str(ROOT): ".", sys.prefix: "<python>"}
    for place in sorted(places, key=len, reverse=True):  # one may lie in another
        if len(place) > 1:
            text = re.sub(rf"{re.escape(place)}(?![\w.-])", places[place], text)
    return text


# ------------------------------------------------------------------------------------ the verdict


def verdict(data: Record) -> list[str]:
    """Return three lines: whether it works, what failed, and how fast it is."""
    words = {name: data["stages"].get(name, {}).get("verdict", "not run") for name in STAGES}
    wrong = [name for name, word in words.items() if word == "FAILED"]
    broken = [name for name, word in words.items() if word in BAD and word != "FAILED"]
    left = [name for name, word in words.items() if word == "not run"]
    gpu = data["machine"].get("gpu") or data["seen"] or "this machine"
    if data["missing"]:
        first = f"**fastgar could not be tried on {gpu}**: {data['missing']}."
    elif wrong:
        first = f"**fastgar does not work as it should on {gpu}.**"
    elif words["correctness"] == "passed":
        first = f"**fastgar works on {gpu}**" + (", as far as was tried." if broken + left else ".")
    else:
        first = f"**It is not known whether fastgar works on {gpu}**: too little was run."
    second = "Nothing failed: " + done(data)
    if wrong:
        second = "Failed: " + "; ".join(f"{name} ({sentence(data, name)})" for name in wrong) + "."
    if broken:
        second += f" Not finished: {'; '.join(f'{n} ({sentence(data, n)})' for n in broken)}."
    if left:
        second += f" Not run: {', '.join(left)}."
    return [first, second, speed(data)]


def sentence(data: Record, name: str) -> str:
    """Return why a stage failed or was not finished, in a few words."""
    why, word = data["stages"][name]["why"], data["stages"][name]["verdict"]
    cases, failed = data["correctness"]["cases"], data["correctness"]["failed"]
    if name == "correctness" and failed:
        ran = sum(word != "not run" for *_, word in cases)
        count = f"{len(failed)} of {ran} cases"
        why = f"{count}; {why}" if why else count
    if word != "FAILED":
        why = f"{word}, {why}" if why else word
    return str(why)


def done(data: Record) -> str:
    """Return what was found to be right."""
    correctness, tests = data["correctness"], data["tests"] or {}
    found = []
    if correctness["passed"]:
        found.append(f"{correctness['passed']} cases agree with the CPU")
    if tests.get("verdict") == "passed":
        found.append(f"of the tests {tests['summary']}")
    clean = [kind for kind, r in data["sanitizer"].items() if r["verdict"] == "passed"]
    if clean:
        found.append(f"{', '.join(clean)} found nothing")
    return "; ".join(found) + "." if found else "nothing was tried."


def speed(data: Record) -> str:
    """Return one line on the times."""
    if not data["results"]:
        why = data["stages"].get("times", {}).get("why") or "that stage did not run"
        return f"Speed: not measured ({why})."
    count, off = len(data["results"]), len(data["off"])
    how = "all are" if not off else f"{count - off} are" if count > off else "none is"
    return (
        f"Speed: a copy moves {data['bandwidth'] / 1e12:.2f} TB/s. {count} times were measured, "
        f"{how} within a factor of {OFF} of what was predicted."
    )


# ------------------------------------------------------------------------------------ the sections


def markdown(data: Record) -> str:
    """Return the whole report in Markdown."""
    lines = ["# fastgar on a GPU", ""]
    for each in verdict(data):
        lines += [each + "  "]
    lines += ["", how_to_send(data), "", "## Environment", "", *environment(data)]
    for name, section in (("correctness", correctness), ("tests", tests), ("sanitizer", sanitizer),
                          ("times", times)):  # fmt: skip
        lines += ["", f"## {name.capitalize()}: {STAGES[name]}", "", *state(data, name)]
        lines += section(data)
    text = "\n".join([*lines, "", "## Errors", "", *errors(data)])
    return re.sub(r"\n\n\n+", "\n\n", text)


def worth_sending(data: Record) -> bool:
    """Return whether the report holds more than that something is not installed."""
    return data["missing"] not in (NO_TORCH, NO_CUPY)


def how_to_send(data: Record) -> str:
    """Return what to do with this file."""
    if not worth_sending(data):
        return "There is nothing to send yet: install what is missing, and run this again."
    return (
        "To send it: open an issue of fastgar, and attach this file and the one in JSON beside it. "
        "They hold versions, numbers and errors, and no data of yours."
    )


def state(data: Record, name: str) -> list[str]:
    """Return how a stage ended, as the first lines of its section."""
    stage = data["stages"].get(name, {"verdict": "not run", "why": "", "seconds": 0.0})
    text = f"**{stage['verdict']}**"
    if stage["verdict"] != "not run":
        text += f", after {stage['seconds']:.0f} s"
    return [text + (f": {stage['why']}." if stage["why"] else "."), ""]


def environment(data: Record) -> list[str]:
    """Return the steps that were taken, and what was found."""
    lines = state(data, "environment")
    if data["steps"]:
        lines += ["| step | | |", "|---|---|---|"]
        lines += [f"| {s['step']} | {marked(s['verdict'])} | {cell(s['said'])} |"
                  for s in data["steps"]]  # fmt: skip
        lines.append("")
    m = data["machine"]
    facts = [
        ("GPU", m.get("gpu")),
        ("compute capability", m.get("compute_capability")),
        ("GPUs", m.get("gpus")),
        ("multiprocessors", m.get("processors")),
        ("highest clock", f"{m['clock'] / 1e6:.0f} MHz" if m.get("clock") else None),
        ("memory", f"{m['memory'] / 2**30:.1f} GiB" if m.get("memory") else None),
        ("cache", f"{m['cache'] / 2**20:.1f} MiB" if m.get("cache") else None),
        ("busy before this began", m.get("busy_before")),
        ("driver", m.get("driver")),
        ("CUDA of the driver, at most", m.get("cuda_of_driver")),
        ("CUDA of torch", m.get("cuda_of_torch")),
        ("CUDA of CuPy", m.get("cuda_of_cupy")),
        ("NVRTC", m.get("nvrtc") and f"{m['nvrtc']}, {m.get('nvrtc_from')}"),
        ("CUDA_PATH", m.get("cuda_path")),
        ("Python", m.get("python")),
        ("system", m.get("system")),
        ("processor cores", m.get("processor_cores")),
        ("fastgar from", m.get("fastgar_from")),
        ("commit", m.get("commit")),
        ("packages", ", ".join(f"{k} {v}" for k, v in m.get("versions", {}).items())),
    ]
    known = [(what, value) for what, value in facts if value]
    if known:
        lines += ["| | |", "|---|---|"]
        lines += [f"| {what} | {cell(anonymous(str(value)))} |" for what, value in known]
    return lines


def marked(word: str) -> str:
    """Return a verdict so that one that failed is seen."""
    return f"**{word}**" if word in BAD else word


def cell(text: str) -> str:
    """Return a text that does not end its cell."""
    return anonymous(text).replace("|", "\\|").replace("\n", " ")


def correctness(data: Record) -> list[str]:
    """Return the failing cases one by one, all by rule and dtype."""
    found = data["correctness"]
    if not found["cases"]:
        return []
    ran = found["passed"] + len(found["failed"])
    lines = [
        f"{found['passed']} of {ran} cases agree, of {found['total']} in the table. A case is a "
        "rule, a dtype, a number of rows and columns, how the rows lie in memory, and what is in "
        "them (`asv_benchmarks/gpu_inputs.py`).",
        "",
        found["tolerances"],
    ]
    if found["failed"]:
        lines += ["", "Not so:", ""]
        for each in found["failed"][:SHOWN]:
            again = f" ({each['again']})" if each.get("again") else ""
            lines.append(f"- {each['case']}: {each['said']}{again}")
        if len(found["failed"]) > SHOWN:
            lines.append(f"- and {len(found['failed']) - SHOWN} more, which the JSON has")
    return [*lines, "", *by_rule(found["cases"])]


def by_rule(cases: list[list[str]]) -> list[str]:
    """Return a table of how many cases agree, by rule and dtype."""
    total: Counter[tuple[str, str]] = Counter()
    right: Counter[tuple[str, str]] = Counter()
    for _, rule, dtype, word in cases:
        total[rule, dtype] += word != "not run"
        right[rule, dtype] += word == "passed"
    dtypes = list(dict.fromkeys(dtype for _, dtype in total))
    lines = ["<details><summary>All cases, by rule and dtype: agree / run</summary>", ""]
    lines += ["| rule | " + " | ".join(dtypes) + " |", "|---|" + "---:|" * len(dtypes)]
    for rule in dict.fromkeys(rule for rule, _ in total):
        counts = [(right[rule, dtype], total[rule, dtype]) for dtype in dtypes]
        cells = [f"{a} / {b}" if a == b else f"**{a} / {b}**" for a, b in counts]
        shown = ["" if text == "0 / 0" else text for text in cells]
        lines.append(f"| `{cell(rule)}` | " + " | ".join(shown) + " |")
    return [*lines, "", "</details>"]


def tests(data: Record) -> list[str]:
    """Return the last line of pytest."""
    found = data["tests"] or {}
    return [found["summary"]] if found.get("verdict") in ("passed", "FAILED") else []


def sanitizer(data: Record) -> list[str]:
    """Return one line for each tool."""
    found = data["sanitizer"]
    if not found:
        return []
    lines = ["| tool | | |", "|---|---|---|"]
    return lines + [
        f"| {kind} | {marked(found[kind]['verdict'])} | {cell(found[kind]['summary'])} |"
        for kind in TOOLS
        if kind in found
    ]


def times(data: Record) -> list[str]:
    """Return what was measured beside what was predicted, and what is far from it."""
    lines = []
    if data["bandwidth"]:
        lines.append(f"Copy of 1 GiB: {data['bandwidth'] / 1e12:.2f} TB/s, read and written.")
    if data["overhead"]:
        eager, graph = (1e6 * data["overhead"][name] for name in ("eager", "graph"))
        lines.append(
            f"Krum of 20 x 1000: {eager:.1f} us a call (wanted: {EAGER_AT_MOST * 1e6:.0f}), "
            f"{graph:.1f} us as a graph (wanted: {GRAPH_AT_MOST * 1e6:.0f})."
        )
    if data["results"]:
        lines += [
            "",
            "All of float32. *Predicted* is the larger of the time that the bytes need at the "
            "bandwidth of the copy and the time that the instructions need at the highest clock: "
            f"the least that there can be. A ratio beyond a factor of {OFF} is bold. *Limit* is "
            "which of the two. *Wanted* is the least share that we want on an H200. *torch / "
            "ours* is how many times as long the fastest way of torch takes.",
            "",
            table_of_times(data),
        ]
    for title, found in ((f"Beyond a factor of {OFF} of what was predicted:", data["off"]),
                         ("Less than was wanted on an H200:", data["missed"])):  # fmt: skip
        if found:
            lines += ["", title, "", *(f"- {each}" for each in found)]
    if data["skipped"]:
        left = ", ".join(f"{s['n']} x {s['d']:,} ({s['why']})" for s in data["skipped"])
        lines += ["", f"Not measured: {left}."]
    return lines


def errors(data: Record) -> list[str]:
    """Return all errors with their full text."""
    if not data["errors"]:
        return ["None."]
    lines = []
    for each in data["errors"]:
        often = f", and {each['times'] - 1} more like it" if each["times"] > 1 else ""
        lines += [f"### {each['stage']}: {each['what']}{often}", "", "````text"]
        lines += [each["text"].strip(), "````", ""]
    return lines[:-1]
