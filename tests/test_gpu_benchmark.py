"""The command that measures on a GPU, run to its end without one."""

from __future__ import annotations

import json
import sys
from contextlib import contextmanager, nullcontext
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace as Space

import emulated
import numpy as np
import nvrtc
import pytest
from emulation import needs_compiler

from fastgar import arrays

torch = pytest.importorskip("torch")
ROOT = Path(__file__).resolve().parent.parent
sys.path.append(str(ROOT))  # where the benchmarks are, with or without the package beside them
from asv_benchmarks import assembly, gpu, gpu_figures, gpu_small, roofline, sass  # noqa: E402

emulation = needs_compiler()


class Event:
    """Every interval takes a millisecond."""

    def __init__(self, enable_timing):
        assert enable_timing

    def record(self):
        pass

    synchronize = record

    def elapsed_time(self, other):
        return 1.0


class Graph:
    replays = 0

    def replay(self):
        Graph.replays += 1


class Torch:
    """Torch with a GPU whose memory is the host's."""

    def __init__(self):
        properties = Space(
            name="Pretend GPU 1", major=9, minor=0, multi_processor_count=3, total_memory=1 << 30,
            L2_cache_size=1000,
        )  # fmt: skip
        self.cuda = Space(
            is_available=lambda: True, Stream=lambda: Space(wait_stream=lambda other: None),
            current_stream=lambda: None, stream=nullcontext, synchronize=lambda: None,
            CUDAGraph=Graph, graph=self.graph, Event=Event, empty_cache=lambda: None,
            get_device_properties=lambda index: properties, mem_get_info=lambda: (1 << 30, 1 << 30),
        )  # fmt: skip
        self.version = Space(cuda="13.0")

    @contextmanager
    def graph(self, graph):
        yield

    def __getattr__(self, name):
        made = getattr(torch, name)
        if name in ("randn", "ones", "zeros"):
            return lambda *shape, device, **options: made(*shape, **options)
        return made


@pytest.fixture
def pretend(monkeypatch):
    """A GPU that is not there, and small sizes."""
    arrays.table(torch.zeros(1, 1))  # fastgar keeps the torch that it sees first
    emulated.torch_on_gpu(monkeypatch)
    pretended = Torch()
    monkeypatch.setitem(sys.modules, "torch", pretended)
    monkeypatch.setattr(gpu_figures, "ROWS", (11, 20))
    monkeypatch.setattr(gpu_figures, "COLUMNS", (64, 300))
    monkeypatch.setattr(gpu_figures, "CALLS", 10)
    copies = gpu_figures.bandwidth_of_copies
    monkeypatch.setattr(gpu_figures, "bandwidth_of_copies", lambda t: copies(t, 5000))
    monkeypatch.setattr(gpu, "_nvidia_smi", lambda *questions: ["580.1", "1980 MHz"])
    return pretended


@emulation
def test_the_whole_command(pretend, monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(gpu, "limited", lambda command, seconds: (0, said(command)))
    monkeypatch.setattr(gpu, "sanitizer", lambda: "compute-sanitizer")
    path = tmp_path / "figures.json"
    assert gpu.main(["--json", str(path)]) == 0
    report = json.loads(path.read_text())
    assert report["complete"] and report["skipped"] == []
    assert report["machine"]["gpu"] == "Pretend GPU 1" and report["machine"]["driver"] == "580.1"
    assert report["machine"]["peak_instructions"] == 3 * 128 * 1980e6
    assert report["tests"] == {"verdict": "passed", "summary": "195 passed in 60s"}
    assert list(report["sanitizer"]) == ["memcheck", "racecheck", "synccheck"]
    assert {tool["verdict"] for tool in report["sanitizer"].values()} == {"passed"}
    assert report["bandwidth"] == 2 * 5000 * 4 / 1e-3
    found = {(r["rule"], r["n"], r["d"]): r for r in report["results"]}
    rules = ("mean", "median", "trimmed_mean", "sqdist", "krum")
    assert set(found) == {(rule, n, d) for rule in rules for n in (11, 20) for d in (64, 300)}
    for (rule, n, d), r in found.items():
        sets = max(2, min(16, -(-4000 // (n * d * 4))))
        assert r["seconds"] == pytest.approx(1e-3 / sets)
        vectors = n + {"sqdist": 0, "krum": 2}.get(rule, 1)
        assert r["share"] == pytest.approx(vectors * d * 4 / r["seconds"] / report["bandwidth"])
        assert r["times_torch"] == pytest.approx(sets) and all(r["torch"].values())
    assert found["krum", 11, 64]["of_sqdist_and_combine"] == pytest.approx(0.5)
    assert report["missed"] == gpu_figures.missed(report)
    printed = capsys.readouterr().out
    assert "racecheck: passed" in printed and "us as a graph (wanted <= 15)" in printed
    assert path.with_suffix(".png").stat().st_size > 10_000
    table = path.with_suffix(".md").read_text().splitlines()
    assert len(table) == 2 + len(found) and len({text.count("|") for text in table}) == 1


def said(command):
    """What the tools say when all is well."""
    if "pytest" in command:
        return "....\n=== 195 passed in 60s ===\n".replace("=== ", "").replace(" ===", "")
    race = "RACECHECK SUMMARY: 0 hazards displayed (0 errors, 0 warnings)"
    word = race if "racecheck" in command else "ERROR SUMMARY: 0 errors"
    return f"========= COMPUTE-SANITIZER\n27 cases agree with the CPU\n========= {word}\n"


@emulation
def test_what_was_found_stays_when_it_is_killed(pretend, monkeypatch, tmp_path):
    path = tmp_path / "figures.json"

    def killed(record):
        if record["rule"] == "sqdist":
            raise KeyboardInterrupt
        return "a line"

    monkeypatch.setattr(gpu_figures, "line", killed)
    with pytest.raises(KeyboardInterrupt):
        gpu.main(["--quick", "--json", str(path)])
    report = json.loads(path.read_text())
    assert [r["rule"] for r in report["results"]] == ["mean", "median", "trimmed_mean", "sqdist"]
    assert report["overhead"] and not report["complete"]


@emulation
def test_what_torch_cannot_do_is_said(pretend, monkeypatch, tmp_path):
    monkeypatch.setattr(gpu_figures, "ROWS", (11,))
    monkeypatch.setattr(gpu_figures, "COLUMNS", (64,))
    path = tmp_path / "figures.json"

    def cannot(*arguments, **options):
        raise RuntimeError("CUDA out of memory\nmore")

    monkeypatch.setattr(torch.Tensor, "sort", cannot)
    assert gpu.main(["--no-tests", "--json", str(path)]) == 0
    found = {r["rule"]: r for r in json.loads(path.read_text())["results"]}
    assert found["median"]["torch_cannot"] == {"sort": "CUDA out of memory"}
    assert "times_torch" in found["median"] and "times_torch" not in found["trimmed_mean"]


@emulation
def test_no_size_is_begun_when_the_time_is_over(pretend, monkeypatch, tmp_path):
    path = tmp_path / "figures.json"
    monkeypatch.setattr(gpu, "BUDGET", gpu.HELD_BACK)
    assert gpu.main(["--no-tests", "--json", str(path)]) == 0
    report = json.loads(path.read_text())
    assert len(report["skipped"]) == 4 and not report["results"] and not report["complete"]
    assert report["skipped"][0] == {"n": 11, "d": 64, "why": "too little time"}


@emulation
def test_the_small_run_meets_every_kernel(monkeypatch):
    device = emulated.torch_on_gpu(monkeypatch)
    count = gpu_small.run(torch.from_numpy, lambda made: made.numpy())
    assert count == len(gpu_small.cases()) > 30
    kernels = {
        "partials", "add", "combine", "columns", "votes", "table", "krum", "bulyan",
        "bulyan_averaged",
    }  # fmt: skip
    assert kernels <= set(device.launches)


@emulation
def test_the_small_run_can_fail(monkeypatch):
    emulated.torch_on_gpu(monkeypatch)
    with pytest.raises(AssertionError):
        gpu_small.run(torch.from_numpy, lambda made: made.numpy() + 1.0)


# ------------------------------------------------------------------------------------- the steps


def script(tmp_path, text):
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
def test_the_sanitizer_is_clean_or_not(tmp_path, text, verdict, capsys):
    got = gpu.sanitized(script(tmp_path, text), "memcheck", 1.5)
    assert got["verdict"] == verdict
    assert gpu.failed(Space(data={"tests": None, "sanitizer": {"x": got}})) == (verdict != "passed")


def test_the_sanitizer_is_found_where_it_may_be(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    monkeypatch.delenv("CUDA_HOME", raising=False)
    folder = tmp_path / "toolkit" / "compute-sanitizer"
    folder.mkdir(parents=True)
    place = script(folder, "")
    monkeypatch.setenv("CUDA_PATH", str(tmp_path / "toolkit"))
    assert gpu.sanitizer() == place
    (tmp_path / "bin").mkdir()
    nearer = script(tmp_path / "bin", "")
    assert gpu.sanitizer() == nearer


def test_without_the_sanitizer_it_says_so(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(gpu, "tests", lambda seconds: {"verdict": "FAILED", "summary": "1 failed"})
    monkeypatch.setattr(gpu, "sanitizer", lambda: None)
    report = gpu.Report(tmp_path / "figures.json", {})
    gpu.check(report)
    assert "pip install nvidia-cuda-sanitizer-api" in capsys.readouterr().out
    assert report.data["sanitizer"]["memcheck"]["verdict"] == "not run"
    assert gpu.failed(report)


def test_the_tests_are_run_within_their_time(monkeypatch, capsys):
    monkeypatch.setattr(gpu, "limited", lambda command, seconds: (1, "F\n1 failed, 3 passed\n"))
    assert gpu.tests(10) == {"verdict": "FAILED", "summary": "1 failed, 3 passed"}
    monkeypatch.setattr(gpu, "limited", lambda command, seconds: (None, "...."))
    assert gpu.tests(10)["verdict"] == "out of time"
    assert gpu.limited([sys.executable, "-c", "import time; time.sleep(60)"], 1) == (None, "....")


def test_what_is_wanted():
    assert [gpu_figures.bar("median", n) for n in (11, 32, 51, 100, 101)] == [
        0.85, 0.85, 0.6, 0.35, None,
    ]  # fmt: skip
    assert gpu_figures.bar("sqdist", 100) is None and gpu_figures.bar("mean", 11) is None
    report = {
        "overhead": {"eager": 61e-6, "graph": 14e-6},
        "results": [
            {"rule": "median", "n": 51, "d": 10, "share": 0.59},
            {"rule": "sqdist", "n": 20, "d": 10, "share": 0.76},
            {"rule": "krum", "n": 20, "d": 10, "share": 0.1, "of_sqdist_and_combine": 1.3},
        ],
    }
    first, second, third = gpu_figures.missed(report)
    assert first == "median of 51 x 10: 0.59 of the bandwidth, wanted 0.6"
    assert "1.30 x (sqdist + combine)" in second and "eager: 61.0 us, wanted 60" in third


def test_instructions_of_a_column():
    assert roofline.operations("sqdist", 11, 2) == 110
    assert roofline.operations("trimmed_mean", 3, 0) == 2 * 3 + 3 + 3  # sorts three values
    assert roofline.operations("median", 3, 1) == 2 + 1 + 1 + 3 + 1  # of which the middle one
    assert roofline.exchanges("median", 20, 4) == 136  # as many as the compiler makes


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


def test_without_a_gpu_it_says_so(capsys):
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    assert gpu.main([]) == 1
    assert "There is no CUDA GPU" in capsys.readouterr().out


@pytest.mark.skipif(find_spec("matplotlib") is None, reason="matplotlib is not installed")
def test_a_figure_of_nothing(tmp_path):
    report = {"machine": {"gpu": "none"}, "bandwidth": 1e12, "results": []}
    roofline.plot(report, tmp_path / "empty.png")
    assert np.frombuffer((tmp_path / "empty.png").read_bytes(), np.uint8).size
