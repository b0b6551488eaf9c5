"""The command that checks a GPU, run to its end without one."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from importlib.util import find_spec
from pathlib import Path

import emulated
import numpy as np
import nvrtc
import pytest
from emulation import needs_compiler

torch = pytest.importorskip("torch")
import pretend_gpu  # noqa: E402  # which knows where the benchmarks are
from pretend_gpu import CASES, ILLEGAL, Wishes  # noqa: E402

from asv_benchmarks import (  # noqa: E402
    assembly,
    gpu,
    gpu_check,
    gpu_environment,
    gpu_figures,
    gpu_process,
    gpu_report,
    gpu_small,
    gpu_stages,
    gpu_tools,
    roofline,
    sass,
)

emulation = needs_compiler()
STAGES = list(gpu_report.STAGES)


@pytest.fixture
def pretend(monkeypatch):
    """A function that puts a GPU into this process, where stages then run."""

    def installed(**wishes):
        pretended = pretend_gpu.install(monkeypatch, Wishes(**wishes))

        def inside(command, seconds, silence, heard):
            pretended.poisoned = False  # as in a new process
            *_, stage, options = command
            try:
                gpu_stages.run(stage, json.loads(options), lambda **r: heard(dumped(r)))
            except gpu_process.Poisoned:
                return gpu_process.Ending(gpu_process.POISONED, "", "the end")
            return gpu_process.Ending(0, "", "")

        monkeypatch.setattr(gpu_process, "streamed", inside)
        return pretended

    monkeypatch.setattr(gpu, "nvidia_smi", pretend_gpu.answer)
    monkeypatch.setattr(gpu_tools, "limited", lambda command, seconds: (0, said(command)))
    monkeypatch.setattr(gpu_tools, "sanitizer", lambda: "compute-sanitizer")
    return installed


def dumped(record):
    return json.loads(json.dumps(record))


def said(command):
    """What the tools say when all is well."""
    if "pytest" in command:
        return "....\n195 passed in 60s\n"
    race = "RACECHECK SUMMARY: 0 hazards displayed (0 errors, 0 warnings)"
    word = race if "racecheck" in command else "ERROR SUMMARY: 0 errors"
    return f"========= COMPUTE-SANITIZER\n27 cases agree with the CPU\n========= {word}\n"


def command(tmp_path, *arguments):
    """Run the command; return its status, the JSON and the Markdown."""
    path = tmp_path / "gpu.json"
    status = gpu.main([*arguments, "--json", str(path)])
    return status, json.loads(path.read_text()), path.with_suffix(".md").read_text()


def verdicts(report):
    return [report["stages"][name]["verdict"] for name in STAGES]


# ------------------------------------------------------------------------------- the whole command


@emulation
def test_the_whole_command(pretend, tmp_path, capsys):
    pretend()
    status, report, text = command(tmp_path)
    assert status == 0 and verdicts(report) == ["passed"] * 5 and report["errors"] == []
    assert report["complete"] and report["skipped"] == [] and report["missing"] is None
    machine = report["machine"]
    assert machine["gpu"] == "Pretend GPU 1" and machine["driver"] == "580.1"
    assert machine["peak_instructions"] == 3 * 128 * 1980e6 and machine["nvrtc"] == "13.2"
    assert [step["step"] for step in report["steps"]] == [s[0] for s in gpu_environment.STEPS]
    correctness = report["correctness"]
    assert correctness["total"] == correctness["passed"] == len(correctness["cases"]) == len(CASES)
    assert report["tests"] == {"verdict": "passed", "summary": "195 passed in 60s"}
    assert list(report["sanitizer"]) == ["memcheck", "racecheck", "synccheck", "initcheck"]
    assert {tool["verdict"] for tool in report["sanitizer"].values()} == {"passed"}
    figures_are_right(report)
    assert "`geometric_median`, `rfa`" in text and "share of the greatest result: 8e-06" in text
    lines = text.splitlines()
    assert lines[2].startswith("**fastgar works on Pretend GPU 1**.")
    assert lines[3] == (
        "Nothing failed: 6 cases agree with the CPU; of the tests 195 passed in 60s; "
        "memcheck, racecheck, synccheck, initcheck found nothing.  "
    )
    assert "Speed: a copy moves 0.00 TB/s. 20 times were measured" in lines[4]
    titles = [line[3:].partition(":")[0] for line in lines if line.startswith("## ")]
    assert titles == ["Environment", *[name.capitalize() for name in STAGES[1:]], "Errors"]
    assert lines[-1] == "None." and "attach this file" in text
    printed = capsys.readouterr().out
    assert "racecheck   passed" in printed and "us as a graph" in printed
    assert printed.count("-> passed") == 5 and "Please attach it" in printed
    if find_spec("matplotlib") is not None:
        assert (tmp_path / "gpu.png").stat().st_size > 10_000


def figures_are_right(report):
    assert report["bandwidth"] == 2 * 5000 * 4 / 1e-3
    found = {(r["rule"], r["n"], r["d"]): r for r in report["results"]}
    rules = ("mean", "median", "trimmed_mean", "sqdist", "krum")
    assert set(found) == {(rule, n, d) for rule in rules for n in (11, 20) for d in (64, 300)}
    for (rule, n, d), r in found.items():
        sets = max(2, min(16, -(-4000 // (n * d * 4))))
        assert r["seconds"] == pytest.approx(1e-3 / sets)
        vectors = n + {"sqdist": 0, "krum": 2}.get(rule, 1)
        least = vectors * d * 4 / report["bandwidth"]  # which is so low that it is the limit
        assert r["share"] == pytest.approx(least / r["seconds"])
        assert r["limit"] == "memory" and r["predicted"] == pytest.approx(least)
        assert r["ratio"] == pytest.approx(1 / r["share"])
        assert r["times_torch"] == pytest.approx(sets) and all(r["torch"].values())
    assert found["krum", 11, 64]["of_sqdist_and_combine"] == pytest.approx(0.5)
    assert report["missed"] == gpu_figures.missed(report)
    assert report["off"] == gpu_figures.off(report) != []


@emulation
def test_processes_of_their_own(monkeypatch, tmp_path):
    """One dies at the third case and another goes on; a wrong bit is found before that."""
    wishes = Wishes(crash="krum", wrong_bit="median")
    for name, value in pretend_gpu.environment(wishes).items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(gpu_process, "command_of", pretend_gpu.command_of)
    monkeypatch.setattr(gpu, "nvidia_smi", pretend_gpu.answer)
    status, report, text = command(tmp_path, "--only", "correctness")
    assert status == 1 and verdicts(report) == ["passed", "FAILED", *["not run"] * 3]
    assert report["correctness"]["passed"] == len(CASES) - 2
    wrong, dead = report["correctness"]["failed"]
    assert wrong["case"] == str(CASES[1])
    assert dead == {"case": str(CASES[2]), "said": "the process was ended by SIGSEGV"}
    (error,) = report["errors"]
    assert error["what"] == str(CASES[2]) and "Fatal Python error" in error["text"]
    assert "2 of 6 cases" in text.splitlines()[3] and "Not run: tests, sanitizer, times." in text


@emulation
def test_a_wrong_bit_is_found_and_named(pretend, tmp_path):
    pretend(wrong_bit="median")
    status, report, text = command(tmp_path)
    assert status == 1
    assert verdicts(report) == ["passed", "FAILED", "passed", "passed", "passed"]
    (wrong,) = report["correctness"]["failed"]
    X = gpu_check.made(torch, CASES[1]).numpy()
    right = np.sort(X[:, 17])[5]  # two rows are the same, and one is NaN, which is the last
    bits = int(right.view(np.uint32))
    assert wrong["case"] == str(CASES[1])
    assert wrong["said"].startswith("1 of 301 differ, first at [17]: GPU ")
    assert f"(0x{bits ^ 1:08x}), CPU {right!s} (0x{bits:08x})" in wrong["said"]
    assert wrong["again"] == "3 more runs gave the same bits each time"
    assert f"- {wrong['case']}: {wrong['said']} ({wrong['again']})" in text.splitlines()
    assert "| `median` | **0 / 1** |" in text.replace(" |  |", " |")
    assert "does not work as it should" in text.splitlines()[2]


def test_bits_that_change_from_run_to_run_are_noticed(monkeypatch):
    numbers = iter(range(10))
    monkeypatch.setattr(gpu_check, "computed", lambda case, X: np.full(3, float(next(numbers))))
    monkeypatch.setattr(gpu_check, "laid_out", lambda *arguments: None)
    assert gpu_check.repeated(torch, CASES[0]) == "3 more runs gave different bits"


@emulation
def test_a_gpu_that_answers_nothing_more_costs_one_case(pretend, tmp_path):
    pretend(poison="krum")
    status, report, text = command(tmp_path)
    assert status == 1
    assert verdicts(report) == ["passed", "FAILED", "passed", "passed", "passed"]
    assert report["correctness"]["passed"] == len(CASES) - 1
    (failed,) = report["correctness"]["failed"]
    assert failed["case"] == str(CASES[2])
    assert failed["said"] == (
        f"it raised RuntimeError: {ILLEGAL}; the GPU answered nothing more, and a new process "
        "went on"
    )
    (error,) = report["errors"]
    assert error["what"] == str(CASES[2])
    assert "Traceback" in error["text"] and "troubled_launch" in error["text"]
    assert f"- {failed['case']}: {failed['said']}" in text.splitlines()


@emulation
def test_a_rule_that_took_a_process_with_it_is_not_tried_again(pretend, tmp_path, monkeypatch):
    pretend(poison="krum")
    table = [CASES[2], CASES[3], *(CASES[2]._replace(d=d) for d in range(5, 12)), CASES[4]]
    monkeypatch.setattr(gpu_check, "cases", lambda quick: table)
    status, report, text = command(tmp_path, "--only", "correctness")
    words = [word for *_, word in report["correctness"]["cases"]]
    assert status == 1 and words == ["FAILED", "passed", *["not run"] * 7, "passed"]
    assert "2 of 3 cases agree, of 10 in the table" in text
    assert "Failed: correctness (1 of 3 cases; 3 of 10 cases were run)." in text


@emulation
def test_an_error_in_every_case_is_told_once(pretend, tmp_path, monkeypatch):
    monkeypatch.setattr(gpu_check, "HOPELESS", 4)
    pretend(raises="everything")
    monkeypatch.setattr(gpu_check, "cases", lambda quick: CASES[:1] * 9)
    status, report, text = command(tmp_path, "--only", "correctness")
    assert status == 1 and len(report["correctness"]["cases"]) == 4
    assert report["stages"]["correctness"]["why"] == "the first 4 cases all raised errors"
    (error,) = report["errors"]
    assert error["times"] == 4 and "and 3 more like it" in text


# ------------------------------------------------------------------------------ what may be missing


def test_without_cupy_nothing_else_is_tried(pretend, tmp_path, capsys):
    pretend(no_cupy=True)
    status, report, text = command(tmp_path)
    assert status == 1 and verdicts(report) == ["FAILED"] + ["not run"] * 4
    assert (
        report["missing"] == "CuPy cannot be imported"
        and report["machine"]["gpu"] == "Pretend GPU 1"
    )
    assert [s["verdict"] for s in report["steps"]] == ["passed", "passed", "FAILED"]
    (error,) = report["errors"]
    assert error["what"] == "CuPy" and "ModuleNotFoundError" in error["text"]
    first, second, third = text.splitlines()[2:5]
    assert first == ("**fastgar could not be tried on Pretend GPU 1**: CuPy cannot be imported.  ")
    assert "Failed: environment (CuPy). Not run: correctness, tests" in second
    assert third == "Speed: not measured (CuPy cannot be imported).  "
    assert text.count("**not run**: CuPy cannot be imported.") == 4
    assert "ModuleNotFoundError" in text.partition("## Errors")[2]
    assert "attach" not in text and "nothing to send yet: install what is missing" in text
    assert "Please attach" not in capsys.readouterr().out


def test_without_nvrtc_the_full_error_is_there(pretend, tmp_path):
    pretend(no_compiler=True)
    status, report, text = command(tmp_path)
    assert status == 1 and verdicts(report) == ["FAILED"] + ["not run"] * 4
    assert report["missing"] == "CuPy cannot run a kernel"
    assert "in of_plain_kernel" in text and "libnvrtc.so.13: cannot open" in text


@emulation
def test_where_only_our_smallest_kernel_fails_all_else_is_tried(pretend, tmp_path, monkeypatch):
    pretend()
    import fastgar as fg

    monkeypatch.setattr(fg, "sign_majority", lambda X: X[0])
    status, report, text = command(tmp_path)
    assert status == 1
    assert verdicts(report) == ["FAILED", "passed", "passed", "passed", "passed"]
    assert "it should have given [1.0, -1.0, 0.0], and gave [1.0, -2.0, 0.0]" in text
    assert report["stages"]["environment"]["why"] == gpu_environment.OURS


def test_without_a_gpu_it_says_so(capsys, tmp_path, monkeypatch):
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    monkeypatch.setattr(gpu, "nvidia_smi", lambda *questions: [""])
    path = tmp_path / "gpu.json"
    assert gpu.main(["--json", str(path)]) == 1
    assert gpu.MISSING[gpu.NO_GPU] in capsys.readouterr().out
    assert not path.exists(), "there is nothing to report"


def test_without_torch_it_says_so(capsys, tmp_path, monkeypatch):
    monkeypatch.setattr(gpu.importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr(gpu, "nvidia_smi", lambda *questions: [""])
    assert gpu.main(["--json", str(tmp_path / "gpu.json")]) == 1
    assert capsys.readouterr().out == gpu.MISSING[gpu.NO_TORCH] + "\n" and not list(
        tmp_path.iterdir()
    )


def test_a_gpu_that_torch_cannot_use_is_reported(pretend, tmp_path, capsys, monkeypatch):
    pretend().cuda.is_available = lambda: False
    status, report, text = command(tmp_path)
    assert status == 1 and report["missing"] == gpu.NO_GPU
    printed = capsys.readouterr().out
    assert (
        f"{gpu.MISSING[gpu.NO_GPU]} The driver sees Pretend GPU 1: https://pytorch.org" in printed
    )
    assert text.splitlines()[2].endswith("**: torch can use no GPU.  ")


def test_the_driver_is_asked_about_the_gpu_of_torch(monkeypatch):
    asked = []
    monkeypatch.setattr(gpu_environment, "output", lambda query: asked.append(query) or "1, 2 MHz")
    assert gpu_environment.nvidia_smi("x", "y", gpu="GPU-7") == ["1", "2 MHz"]
    assert asked[0][-2:] == ["-i", "GPU-7"] and "--query-gpu=x,y" in asked[0]
    assert gpu_environment.nvidia_smi("x") == [""], "two answers to one question"
    monkeypatch.setattr(gpu_environment, "output", lambda query: "")
    assert gpu_environment.nvidia_smi("x", "y") == ["", ""]


# ------------------------------------------------------------------------- stages that fail or stop


@emulation
def test_times_that_cannot_be_taken_leave_the_others(pretend, tmp_path, monkeypatch):
    pretend()
    import fastgar as fg

    def cannot(X):
        raise RuntimeError("no such kernel")

    monkeypatch.setattr(fg, "median", cannot)
    status, report, _ = command(tmp_path, "--only", "times")
    assert status == 1 and report["stages"]["times"]["verdict"] == "FAILED"
    assert [r["rule"] for r in report["results"]] == ["mean"] * 4
    assert "errors at 11 x 64, 20 x 64" in report["stages"]["times"]["why"]
    assert report["errors"][0]["times"] == 4 and "no such kernel" in report["errors"][0]["text"]
    assert report["bandwidth"] and report["overhead"]


@emulation
def test_what_was_found_stays_when_it_is_stopped(pretend, monkeypatch, tmp_path, capsys):
    pretend()
    line = gpu_figures.line

    def stopped(record):
        if record["rule"] == "sqdist":
            raise KeyboardInterrupt
        return line(record)

    monkeypatch.setattr(gpu_figures, "line", stopped)
    status, report, text = command(tmp_path)
    assert status == 130
    assert [r["rule"] for r in report["results"]] == ["mean", "median", "trimmed_mean", "sqdist"]
    assert verdicts(report) == ["passed"] * 4 + ["stopped"] and not report["complete"]
    assert "Not finished: times (stopped, by hand)." in text and "| sqdist |" in text
    assert "stopped" in capsys.readouterr().out


@emulation
def test_quick_takes_the_beginning_of_each(pretend, monkeypatch, tmp_path):
    pretend()
    asked = []
    monkeypatch.setattr(gpu_check, "cases", lambda quick: asked.append(quick) or CASES[:1])
    status, report, text = command(tmp_path, "--quick")
    assert status == 0 and asked == [True]
    assert verdicts(report) == ["passed", "passed", "not run", "not run", "passed"]
    assert {(r["n"], r["d"]) for r in report["results"]} == {(11, 64), (20, 64)}
    first, second = text.splitlines()[2:4]
    assert first.startswith("**fastgar works on Pretend GPU 1**, as far as was tried.")
    assert second.endswith("1 cases agree with the CPU. Not run: tests, sanitizer.  ")


@emulation
def test_what_torch_cannot_do_is_said(pretend, monkeypatch, tmp_path):
    pretend()
    monkeypatch.setattr(gpu_figures, "ROWS", (11,))
    monkeypatch.setattr(gpu_figures, "COLUMNS", (64,))

    def cannot(*arguments, **options):
        raise RuntimeError("CUDA out of memory\nmore")

    monkeypatch.setattr(torch.Tensor, "sort", cannot)
    status, report, _ = command(tmp_path, "--only", "times")
    found = {r["rule"]: r for r in report["results"]}
    assert status == 0 and found["median"]["torch_cannot"] == {"sort": "CUDA out of memory"}
    assert "times_torch" in found["median"] and "times_torch" not in found["trimmed_mean"]


@emulation
def test_no_size_is_begun_when_the_time_is_over(pretend, monkeypatch, tmp_path):
    pretend()
    monkeypatch.setattr(gpu_figures, "HELD_BACK", 1000.0)
    status, report, text = command(tmp_path, "--only", "times")
    assert status == 0 and not report["results"] and not report["complete"]
    assert report["skipped"][0] == {"n": 11, "d": 64, "why": "too little time"}
    assert "Not measured: 11 x 64 (too little time), 20 x 64" in text


def test_a_stage_that_raises_is_reported_and_others_run(pretend, monkeypatch, tmp_path):
    pretend(no_cupy=False)
    monkeypatch.setitem(gpu.RUN, "tests", lambda *arguments: 1 / 0)
    status, report, text = command(tmp_path, "--only", "tests", "sanitizer")
    assert status == 1 and report["stages"]["tests"]["why"] == "ZeroDivisionError: division by zero"
    assert report["stages"]["sanitizer"]["verdict"] == "passed"
    assert "ZeroDivisionError" in text.partition("## Errors")[2]


def test_the_stages_together_take_less_than_ten_minutes():
    for spent in (0.0, 1.0):  # each takes nothing, or all that it may
        used = 0.0
        for name in STAGES:
            limit = gpu.seconds_for(name, used)
            assert limit >= gpu.LEAST[name]
            used += spent * limit
        assert used <= gpu.BUDGET < 600
    assert gpu.seconds_for("times", 0.0) == gpu.MOST["times"]


# -------------------------------------------------------------------------------------- processes


def script(monkeypatch, text):
    """Have every stage be this program: `emit(...)` writes a record, `skip` is the next unit."""
    begin = (
        "import json, os, sys, time\n"
        "def emit(**r): print(json.dumps(r), flush=True)\n"
        "skip = json.loads(sys.argv[2])['skip']\n"
    )
    monkeypatch.setattr(
        gpu_process, "command_of",
        lambda stage, options: [sys.executable, "-c", begin + text, stage, json.dumps(options)],
    )  # fmt: skip


def run_stage(seconds=20.0, silence=10.0):
    heard, lost = [], []
    end = gpu_process.staged(
        "any", dict, seconds, silence, heard.append, lambda *what: lost.append(what)
    )
    return end, [r["found"] for r in heard if "found" in r], lost


UNITS = """
for k in range(skip, 4):
    emit(unit=k, what=f"case {k}")
    if k in (1, 2): print("words", file=sys.stderr, flush=True); TROUBLE
    emit(found=k)
emit(over=True)
"""


@pytest.mark.parametrize(
    ("trouble", "how"),
    [
        ("os.kill(os.getpid(), 11)", "the process was ended by SIGSEGV"),
        ("os._exit(3)", "the process ended with status 3"),
        ("os._exit(86)", "the GPU answered nothing more"),
        ("time.sleep(60)", "nothing was heard for 1 s"),
    ],
)
def test_a_lost_process_costs_its_unit(monkeypatch, trouble, how):
    script(monkeypatch, UNITS.replace("TROUBLE", trouble))
    end, found, lost = run_stage(silence=1.0)
    assert end == ("done", "") and found == [0, 3]
    assert [what for what, _ in lost] == ["case 1", "case 2"]
    assert all(how in why and "words" in why for _, why in lost)


def test_a_stage_that_loses_all_its_processes_is_given_up(monkeypatch):
    script(monkeypatch, "emit(unit=skip, what=f'case {skip}'); os._exit(1)")
    end, _, lost = run_stage()
    assert end.verdict == "FAILED" and "given up at: case 3" in end.why and len(lost) == 4
    script(monkeypatch, "sys.exit('cannot import')")  # before it has begun: so will the next
    end, _, lost = run_stage()
    assert end.verdict == "FAILED" and len(lost) == 1 and "cannot import" in lost[0][1]


def test_a_driver_that_does_not_answer(monkeypatch, tmp_path):
    script(monkeypatch, "emit(unit=1, what='CuPy'); time.sleep(60)")
    monkeypatch.setattr(gpu, "nvidia_smi", pretend_gpu.answer)
    monkeypatch.setitem(gpu.SILENCE, "environment", 1.0)
    status, report, text = command(tmp_path)
    assert status == 1 and verdicts(report) == ["FAILED"] + ["not run"] * 4
    assert report["missing"] == "no answer from: CuPy"
    assert "**fastgar could not be tried on Pretend GPU 1**: no answer from: CuPy." in text
    assert "nothing was heard for 1 s" in text.partition("## Errors")[2]


def test_a_stage_out_of_time_is_killed_with_its_children(monkeypatch, tmp_path):
    child = tmp_path / "child"
    script(
        monkeypatch,
        f"""
import subprocess
child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)'])
open({str(child)!r}, 'w').write(str(child.pid))
emit(unit=0, what='the long one', found=1)
time.sleep(60)
""",
    )
    began = time.monotonic()
    end, found, lost = run_stage(seconds=2.0)
    assert time.monotonic() - began < 20 and found == [1] and not lost
    assert end == ("out of time", "stopped after 2 s at: the long one")
    assert ended(int(child.read_text()))


def test_a_stage_that_never_stops_talking_is_out_of_time(monkeypatch):
    script(monkeypatch, "while True: emit(found=1)")
    end, found, _ = run_stage(seconds=1.0)
    assert end.verdict == "out of time" and found


def ended(pid):
    """Whether a process is gone, or is only waiting for its parent to notice."""
    for _ in range(50):
        try:
            state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        except FileNotFoundError:
            return True
        if state == "Z":
            return True
        time.sleep(0.1)
    return False


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_in_the_middle(tmp_path, number):
    """The report has what is known, and the process of the stage is gone."""
    stage = """
import json, os, sys, time
def emit(**r): print(json.dumps(r), flush=True)
if sys.argv[1] == "environment":
    emit(machine={"gpu": "X"}); emit(over=True); sys.exit()
emit(units=2, unit=0, what="one")
emit(case="one", rule="one", dtype="float32", verdict="passed")
emit(unit=1, what=str(os.getpid()))
time.sleep(60)
"""
    code = f"""
import sys, json
sys.path.insert(0, {str(pretend_gpu.ROOT)!r})
from asv_benchmarks import gpu, gpu_process
gpu_process.command_of = lambda stage, options: [sys.executable, "-c", {stage!r}, stage]
sys.exit(gpu.main(["--only", "correctness", "--json", {str(tmp_path / "gpu.json")!r}]))
"""
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    path = tmp_path / "gpu.json"
    for _ in range(200):
        if path.exists() and json.loads(path.read_text())["correctness"]["passed"]:
            break
        time.sleep(0.1)
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    process.send_signal(number)
    printed, _ = process.communicate(timeout=20)
    assert process.returncode == 130 and "stopped" in printed
    text = path.with_suffix(".md").read_text()
    assert "1 of 1 cases agree, of 2 in the table" in text and "**stopped**" in text
    assert children and all(ended(int(child)) for child in children)


def test_what_a_stage_prints_does_not_meet_its_records():
    code = (
        "from asv_benchmarks.gpu_process import Emit; import os\n"
        "emit = Emit(); print('noise', flush=True); os.system('echo more'); emit(found=1)"
    )
    heard = []
    end = gpu_process.streamed([sys.executable, "-c", code], 20, 20, heard.append)
    assert heard == [{"found": 1}] and end == (0, "", "noise\nmore\n")


# ------------------------------------------------------------------------------------- comparing


def differences(got, want, tolerance=None, case=CASES[0]):
    return gpu_check.difference(case, np.array(got), np.array(want), "CPU", tolerance)


def test_one_bit_is_a_difference_and_nan_is_nan():
    assert differences([1.0, np.nan, np.inf], [1.0, -np.nan, np.inf]) == ""
    assert differences([0.0], [-0.0]) == (
        "1 of 1 differ, in the sign of zero alone, first at [0]: GPU 0.0 (0x0000000000000000), "
        "CPU -0.0 (0x8000000000000000)"
    )
    assert "first at [1]" in differences([1.0, np.nan], [1.0, 2.0])
    assert differences([1.0], [np.float32(1.0)]).startswith("the GPU gives float64(1,)")
    near = [1.0, np.inf, np.nan], [1.0 + 1e-9, np.inf, np.nan]
    assert differences(*near, tolerance=1e-8) == "" != differences(*near, tolerance=1e-10)
    assert differences([np.inf], [1.0], tolerance=1e300) != "" != differences([np.nan], [1.0], 9.0)
    half = gpu_check.Case("mean", "bfloat16", 1, 1)
    want = np.array([1.0], np.float32)
    assert "GPU 2.0 (0x4000), CPU 1.0 (0x3f80)" in gpu_check.difference(
        half, want * 2, want, "CPU", None
    )


def test_the_table_has_every_rule_and_every_input_keeps_to_f():
    import fastgar as fg

    table = gpu_check.cases()
    assert {case.rule.partition("(")[0] for case in table} >= {
        rule.name for rule in fg.list_rules()
    }
    assert {case.dtype for case in table} == set(gpu_check.DTYPES)
    assert {case.layout for case in table} == set(gpu_check.LAYOUTS)
    assert len(set(table)) == len(table) > 400 > len(gpu_check.cases(quick=True)) > 100
    for case in {case._replace(rule="") for case in table if case.input != "edges"}:
        X = gpu_check.made(torch, case)
        faulty = (~torch.isfinite(X)).any(dim=1)
        assert int(faulty.sum()) <= gpu_small.tolerated(case.n)
    X = gpu_check.made(torch, gpu_check.Case("median", "float32", 11, 301, input="edges"))
    bits = X.numpy().view(np.uint32)
    assert ((bits & 0x7F800000 == 0) & (bits & 0x7FFFFF != 0)).any(), "subnormals"
    assert (bits == 0x80000000).any() and (bits == 0).any() and (X.abs() > 5e37).any()
    assert torch.isnan(X).any() and torch.isposinf(X).any() and torch.isneginf(X).any()


def test_rows_lie_as_they_are_said_to():
    pretended, case = pretend_gpu.Torch(), CASES[0]
    X = gpu_check.made(torch, case)
    one, rows, unaligned = (gpu_check.laid_out(pretended, X, each) for each in gpu_check.LAYOUTS)
    assert one.is_contiguous() and len(rows) == case.n and rows[0].stride() == (1,)
    assert unaligned.stride(1) == 1 and unaligned.stride(0) % 2 == 0
    assert (unaligned.data_ptr() - unaligned.untyped_storage().data_ptr()) == 4
    for made in (one, torch.stack(rows), unaligned):
        assert torch.equal(made.nan_to_num(nan=1e9), X.nan_to_num(nan=1e9))


@emulation
def test_the_small_run_meets_every_kernel(monkeypatch):
    device = emulated.torch_on_gpu(monkeypatch)
    count = gpu_small.run(torch.from_numpy, lambda made: made.numpy())
    assert count == len(gpu_small.cases()) > 30
    kernels = {
        "partials", "add", "combine", "columns", "tiles", "votes", "table", "krum", "bulyan",
        "bulyan_averaged",
    }  # fmt: skip
    assert kernels <= set(device.launches)


@emulation
def test_the_small_run_can_fail(monkeypatch):
    emulated.torch_on_gpu(monkeypatch)
    with pytest.raises(AssertionError):
        gpu_small.run(torch.from_numpy, lambda made: made.numpy() + 1.0)


# -------------------------------------------------------------------------- tests and the sanitizer


def tool(tmp_path, text):
    place = tmp_path / "compute-sanitizer"
    place.write_text(f"#!{sys.executable}\nimport sys\n{text}\n")
    place.chmod(0o755)
    return str(place)


WELL = "print('30 cases agree with the CPU\\n========= ERROR SUMMARY: 0 errors')"


@pytest.mark.parametrize(
    ("text", "verdict"),
    [
        (WELL, "passed"),
        (f"{WELL}; sys.exit(77)", "FAILED"),
        ("print('30 cases agree with the CPU')", "FAILED"),  # it looked at nothing
        ("print('========= ERROR SUMMARY: 0 errors')", "FAILED"),  # it ran nothing
        ("import time; time.sleep(60)", "out of time"),
    ],
)
def test_the_sanitizer_is_clean_or_not(tmp_path, text, verdict):
    got = gpu_tools.sanitized(tool(tmp_path, text), "memcheck", 1.5)
    assert got["verdict"] == verdict and ("said" in got) == (verdict != "passed")


def test_one_tool_that_finds_something_is_named(pretend, tmp_path, monkeypatch):
    pretend()
    monkeypatch.setattr(
        gpu_tools, "limited",
        lambda command, seconds: (77 if "racecheck" in command else 0, said(command)),
    )  # fmt: skip
    status, report, text = command(tmp_path, "--only", "sanitizer")
    assert status == 1 and report["stages"]["sanitizer"]["why"] == "racecheck"
    assert "Failed: sanitizer (racecheck)." in text
    assert report["errors"][0]["what"] == "racecheck" and "COMPUTE-SANITIZER" in text


def test_the_sanitizer_is_found_where_it_may_be(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    monkeypatch.delenv("CUDA_HOME", raising=False)
    folder = tmp_path / "toolkit" / "compute-sanitizer"
    folder.mkdir(parents=True)
    place = tool(folder, "")
    monkeypatch.setenv("CUDA_PATH", str(tmp_path / "toolkit"))
    assert gpu_tools.sanitizer() == place
    (tmp_path / "bin").mkdir()
    nearer = tool(tmp_path / "bin", "")
    assert gpu_tools.sanitizer() == nearer


def test_without_the_sanitizer_it_says_so_and_nothing_failed(pretend, tmp_path, monkeypatch):
    pretend()
    monkeypatch.setattr(gpu_tools, "sanitizer", lambda: None)
    status, report, text = command(tmp_path, "--only", "tests", "sanitizer")
    assert status == 0 and "pip install nvidia-cuda-sanitizer-api" in text
    assert report["stages"]["sanitizer"]["verdict"] == "not run"


@pytest.mark.parametrize(
    ("status", "text", "verdict"),
    [
        (0, "...\n3 passed in 1s\n", "passed"),
        (1, "F\n1 failed, 3 passed\n", "FAILED"),
        (0, "s\n3 skipped in 1s\n", "not run"),  # it looked at nothing, and so knows nothing
        (None, "....", "out of time"),
    ],
)
def test_the_tests_passed_or_not(pretend, tmp_path, monkeypatch, status, text, verdict):
    pretend()
    monkeypatch.setattr(gpu_tools, "limited", lambda command, seconds: (status, text))
    code, report, words = command(tmp_path, "--only", "tests")
    assert report["stages"]["tests"]["verdict"] == verdict
    assert code == (verdict in ("FAILED", "out of time"))
    assert ("does not work" in words) == (verdict == "FAILED")
    errors = words.partition("## Errors")[2]
    assert (text.strip() in errors) == (verdict != "passed")


def test_ctrl_c_while_modules_are_loaded_is_no_traceback():
    text = """
import os, runpy, signal, sys, time
class Slow:
    def find_spec(self, name, path, target=None):
        if name == "asv_benchmarks.gpu_figures":
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(5)
sys.meta_path.insert(0, Slow())
runpy.run_module("asv_benchmarks.gpu", run_name="__main__")
"""
    ended = subprocess.run(
        [sys.executable, "-c", text], cwd=gpu_process.ROOT, capture_output=True, text=True
    )
    assert (ended.returncode, ended.stderr) == (130, "")


def test_a_command_is_ended_at_its_limit():
    text = "import time; print('begun', flush=True); time.sleep(60)"
    assert gpu_process.limited([sys.executable, "-c", text], 2) == (None, "begun\n")


# --------------------------------------------------------------------------------------- the report


def test_the_report_names_no_folder_of_the_person_who_runs_it(tmp_path):
    report = gpu_report.Report(tmp_path / "gpu.json", "X")
    text = f"File {Path.home()}/x, {gpu_process.ROOT}/y, {sys.prefix}/z"
    report.error("times", "one", text)
    report.save()
    for place in (tmp_path / "gpu.json", tmp_path / "gpu.md"):
        assert "File ~/x, ./y, <python>/z" in place.read_text()
    assert not list(tmp_path.glob("*.part"))


def test_a_report_that_cannot_be_written_is_said_at_once(tmp_path, capsys):
    (tmp_path / "file").touch()
    assert gpu.main(["--json", str(tmp_path / "file" / "gpu.json")]) == 1
    assert "--json FILE says where else" in capsys.readouterr().out
    for other in (tmp_path, tmp_path / "gpu.md"):
        with pytest.raises(SystemExit):
            gpu.main(["--json", str(other)])
        assert "must name a file that ends in .json" in capsys.readouterr().err
    assert [place.name for place in tmp_path.iterdir()] == ["file"]


def test_folders_with_names_that_begin_alike_are_told_apart(monkeypatch):
    monkeypatch.setattr(gpu_report, "ROOT", Path("/h/me/code"))
    monkeypatch.setattr(gpu_report.sys, "prefix", "/h/me/code-env")
    monkeypatch.setattr(gpu_report.Path, "home", lambda: Path("/h/me"))
    told = gpu_report.anonymous("/h/me/code/a /h/me/code-env/b /h/me/c /h/meadow/d")
    assert told == "./a <python>/b ~/c /h/meadow/d"


def test_the_report_is_named_after_the_gpu():
    report = gpu_report.Report(None, "NVIDIA H200")
    assert report.path.name == "gpu-nvidia-h200.json" and report.written()
    report.data["machine"]["gpu"] = "NVIDIA GeForce RTX 4090 (x)"
    assert report.path.name == "gpu-nvidia-geforce-rtx-4090-x.json"
    assert not gpu_report.Report(None).written()


def test_what_is_wanted_and_what_is_off():
    assert [gpu_figures.bar("median", n) for n in (11, 32, 51, 100, 101)] == [
        0.85, 0.85, 0.6, 0.35, None,
    ]  # fmt: skip
    assert gpu_figures.bar("sqdist", 100) is None and gpu_figures.bar("mean", 11) is None
    report = {
        "overhead": {"eager": 61e-6, "graph": 14e-6},
        "results": [
            {"rule": "median", "n": 51, "d": 10, "share": 0.59, "ratio": 1.49},
            {"rule": "sqdist", "n": 20, "d": 10, "share": 0.76, "ratio": 0.5, "seconds": 1e-4,
             "predicted": 2e-4, "limit": "memory"},
            {"rule": "krum", "n": 20, "d": 10, "share": 0.1, "of_sqdist_and_combine": 1.3,
             "ratio": 2.0, "seconds": 2e-6, "predicted": 1e-6, "limit": "arithmetic"},
        ],
    }  # fmt: skip
    first, second, third = gpu_figures.missed(report)
    assert first == "median of 51 x 10: 0.59 of the bandwidth, wanted 0.6"
    assert "1.30 x (sqdist + combine)" in second and "eager: 61.0 us, wanted 60" in third
    assert gpu_figures.off(report) == [
        "sqdist of 20 x 10: 100 us measured, 2.00 x as fast as predicted (200 us, limit: memory)",
        "krum of 20 x 10: 2.00 us measured, 2.00 x as long as predicted (1.00 us, limit: "
        "arithmetic)",
    ]


# ------------------------------------------------------------------------------------ predictions


def test_instructions_of_a_column():
    assert roofline.operations("sqdist", 11, 2) == 110
    assert roofline.operations("trimmed_mean", 3, 0) == 2 * 3 + 3 + 3  # sorts three values
    assert roofline.operations("median", 3, 1) == 2 + 1 + 1 + 3 + 1  # of which the middle one
    assert roofline.exchanges("median", 20, 4) == 136  # as many as the compiler makes
    assert roofline.turns("median", 20, 4, 128) == roofline.turns("median", 20, 4, 64) + 136
    assert [roofline.lanes(c) for c in ((7, 5), (8, 0), (8, 6), (9, 0), (12, 0))] == [
        64, 64, 128, 128, 128,
    ]  # fmt: skip


def test_a_prediction_is_the_larger_of_two_times():
    few, many = (roofline.predicted("sqdist", n, 2, 1000, 1e9, 1e10) for n in (3, 100))
    assert few.limit == "memory" and few.seconds == 3 * 4 * 1000 / 1e9
    assert many.limit == "arithmetic" and many.seconds == 100 * 99 * 1000 / 1e10
    krum = roofline.predicted("krum", 100, 2, 1000, 1e9, 1e10)
    assert krum.seconds == many.seconds + 2 * 4 * 1000 / 1e9
    assert roofline.predicted("sqdist", 100, 2, 1000, 1e9, None).limit == "memory"


@pytest.mark.skipif(nvrtc.library() is None, reason="NVRTC is not installed")
def test_what_the_compiler_says():
    variant = assembly.variants()[1]
    r = assembly.one(variant, "sm_90", None)
    assert (r["rule"], r["n"], r["bytes"], r["work"]) == ("median", 20, 84, 136 + 20 + 2)
    assert r["local"] == 0 and 20 < r["registers"] < 100
    assert r["memory"] == 84 * 25_000_000 / 4.8e12 > r["arithmetic"] > 0
    text = assembly.table([r], {("median", 20): 5e-4})
    assert text.splitlines()[2].endswith("| 438 us | 500 us |")
    assert text.splitlines()[2].count("|") == text.splitlines()[1].count("|")


def test_both_tables_predict_the_same(monkeypatch):
    """The table of what the compiler says, and the one of what was measured."""
    shown = [variant for variant in assembly.variants() if variant[1] == "float32"]
    assert len(shown) == 16
    for variant in shown:
        said = f"Function properties for {variant[-1]}\n"  # nothing here depends on the rest
        monkeypatch.setattr(nvrtc, "compiled", lambda *arguments, said=said: (b"", said))
        r = assembly.one(variant, "sm_90", None)
        n = r["n"]
        least = roofline.predicted(
            r["rule"], n, (n - 3) // 4, assembly.COLUMNS, assembly.BANDWIDTH, assembly.ISSUED
        )
        assert least.memory == pytest.approx(r["memory"])
        assert least.arithmetic == pytest.approx(r["arithmetic"])


def test_instructions_are_counted(tmp_path):
    listing = (
        "\t.section .text.columns\n.text.columns:\n"
        "        /*0000*/                   LDC R1, c[0x0][0x28] ;\n"
        "        /*0010*/              @!P0 FMNMX R3, R4, R5, PT ;\n"
        "        /*0020*/              @UP1 FMNMX.FTZ R3, R4, R5, PT ;\n"
        "\t.section .text.other\n.text.other:\n        /*0000*/   EXIT ;\n"
    )
    place = tmp_path / "nvdisasm"
    place.write_text(f"#!{sys.executable}\nprint({listing!r})\n")
    place.chmod(0o755)
    assert sass.read(b"", "columns", str(place)).count() == {"LDC": 1, "FMNMX": 2}


@pytest.mark.skipif(find_spec("matplotlib") is None, reason="matplotlib is not installed")
def test_a_figure_of_nothing(tmp_path):
    report = {"machine": {"gpu": "none"}, "bandwidth": 1e12, "results": []}
    roofline.plot(report, tmp_path / "empty.png")
    assert np.frombuffer((tmp_path / "empty.png").read_bytes(), np.uint8).size


def test_it_can_be_called_as_a_file(tmp_path):
    done = subprocess.run(
        [sys.executable, str(gpu_process.ROOT / "asv_benchmarks" / "gpu.py"), "--help"],
        capture_output=True, text=True, cwd=tmp_path, env={**os.environ, "COLUMNS": "100"},
    )  # fmt: skip
    assert done.returncode == 0 and "under ten minutes" in done.stdout
