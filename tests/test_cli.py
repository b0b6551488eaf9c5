"""The command line: what each subcommand prints, writes, refuses and imports."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from importlib.util import find_spec
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

import fastgar as fg
from fastgar import machine
from fastgar.cli import bench, main, measure
from fastgar.cli.bench_tables import disturbance
from fastgar.cli.measure import Timing, interleaved
from fastgar.cli.tables import markdown_table, text_table
from fastgar.machine import Others, seconds_of_others

ROOT = Path(fg.__file__).parent.parent
needs_bench = pytest.mark.skipif(
    not (find_spec("torch") and find_spec("matplotlib")), reason="needs the extra `bench`"
)


def python(code: str, *paths: Path) -> str:
    """Run code in a new process that finds this fastgar, and return what it prints."""
    path = os.pathsep.join(map(str, (*paths, ROOT)))
    result = subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, "PYTHONPATH": path},
        capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    return result.stdout


# ------------------------------------------------------------------------------------- tables


def test_a_table_wraps_its_last_column() -> None:
    table = text_table(("a", "bb"), [("1", "one two three"), ("22", "")], right=(0,), width=14)
    assert table.splitlines() == [" a  bb", "--  ----------", " 1  one two", "    three", "22"]


def test_a_table_may_have_nothing_in_its_last_column() -> None:
    table = text_table(("a", ""), [("1", ""), ("22", "")], right=(0,))
    assert table.splitlines() == [" a", "--", " 1", "22"]
    assert text_table(("a", ""), [("1", "")], width=1).splitlines() == ["a", "-", "1"]


def test_a_table_wraps_its_widest_columns_and_splits_no_word() -> None:
    rows = [("one two three", "x", "four five six seven")]
    assert text_table(("a", "b", "c"), rows, width=23).splitlines() == [
        "a          b  c",
        "---------  -  ---------",
        "one two    x  four five",
        "three         six seven",
    ]
    tight = text_table(("a", "b"), [("centered_clipping", "one two")], width=1)
    assert "centered_clipping  one" in tight.splitlines()


def test_markdown_escapes_bars() -> None:
    table = markdown_table(("rule", "n"), [("nnm | krum", "11")], right=(1,))
    assert table.splitlines() == ["| rule | n |", "| --- | ---: |", "| nnm \\| krum | 11 |"]


# ----------------------------------------------------------------------------------- fastgar


def test_the_version_is_the_package_s(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        main(["--version"])
    assert end.value.code == 0
    assert capsys.readouterr().out == f"fastgar {fg.__version__}\n"


@pytest.mark.parametrize("command", [[], ["train"], ["bench"], ["rules"]])
def test_help_fits_and_names_every_flag(
    command: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as end:
        main([*command, "--help"])
    assert end.value.code == 0
    text = capsys.readouterr().out
    flags = {
        "train": "workers byzantine declared rule attack steps lr momentum momentum-at seed data "
        "out batch quiet fresh",
        "bench": "n d rules dtype threads repeat quick json plot markdown",
        "rules": "json markdown",
    }
    for flag in flags.get("".join(command), "version").split():
        assert f"--{flag}" in text


def test_an_unknown_command_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        main(["trian"])
    assert end.value.code == 2
    assert "train" in capsys.readouterr().err


def command(*arguments: str, output: Any) -> tuple[int, str]:
    """Run ``python -m fastgar`` with its output sent somewhere; return its status and errors."""
    result = subprocess.run(
        [sys.executable, "-m", "fastgar", *arguments], stdout=output, stderr=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": str(ROOT)}, text=True, timeout=120,
    )  # fmt: skip
    return result.returncode, result.stderr


def test_the_package_runs_as_a_module(tmp_path: Path) -> None:
    with (tmp_path / "out").open("w") as output:
        assert command("--version", output=output) == (0, "")
    assert (tmp_path / "out").read_text() == f"fastgar {fg.__version__}\n"


@pytest.mark.skipif(not Path("/dev/full").is_char_device(), reason="needs /dev/full")
def test_a_full_disk_is_told_in_one_line() -> None:
    with open("/dev/full", "w") as full:
        assert command("rules", output=full) == (1, "fastgar rules: No space left on device\n")


def test_a_reader_that_has_gone_is_no_news() -> None:
    read, write = os.pipe()
    os.close(read)
    with os.fdopen(write, "w") as nobody:
        assert command("rules", output=nobody) == (1, "")


def test_a_failing_file_is_named(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(options: object) -> int:
        print("what there was")
        raise OSError(28, "No space left on device", "bench.json.part")

    monkeypatch.setattr(bench, "run", fail)
    assert main(["bench"]) == 1
    printed = capsys.readouterr()
    assert printed.err == "fastgar bench: bench.json.part: No space left on device\n"
    assert printed.out == "what there was\n"


# ------------------------------------------------------------------------------------- rules


@pytest.mark.parametrize("width", [60, 80, 160])
def test_rules_fits_the_terminal(
    width: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", str(width))
    assert main(["rules"]) == 0
    text = capsys.readouterr().out
    assert width - 15 < max(map(len, text.splitlines())) <= width
    first = {line.split()[0] for line in text.splitlines() if line}
    assert {rule.name for rule in fg.list_rules()} <= first


def test_rules_lists_every_rule_in_100_columns(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("COLUMNS", raising=False)
    monkeypatch.setattr(sys, "__stdout__", None)  # no terminal, whoever runs this
    assert main(["rules"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 100
    for rule in fg.list_rules():
        (line,) = [line for line in lines if line.split()[:1] == [rule.name]]
        assert rule.needs in line and rule.guarantee in line
        assert f" {rule.breakdown} " in line and f" {rule.reads} " in line
        assert not rule.paper or rule.paper.split()[0] in line


def test_rules_as_json_has_everything(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["rules", "--json"]) == 0
    records = {record["name"]: record for record in json.loads(capsys.readouterr().out)}
    assert set(records) == {rule.name for rule in fg.list_rules()}
    krum = records["krum"]
    assert krum["needs"] == "n >= 2f + 3" and krum["reads"] == 2
    assert krum["guarantee"] == "(f, kappa)"
    assert "Blanchard" in krum["paper"]


def test_rules_imports_neither_frameworks_nor_numba() -> None:
    heavy = ("torch", "jax", "numba", "llvmlite", "sklearn", "matplotlib", "tensorflow", "cupy")
    code = "import sys; from fastgar.cli import main; main(['rules']); "
    printed = python(code + f"print([name for name in {heavy} if name in sys.modules])")
    assert printed.splitlines()[-1] == "[]"


@pytest.mark.parametrize(("command", "extra"), [("train", "train"), ("bench", "bench")])
def test_a_missing_extra_is_named(command: str, extra: str, tmp_path: Path) -> None:
    code = f"""
import sys
sys.modules["torch"] = None  # as if it were not installed
from fastgar.cli import main
try:
    main([{command!r}])
except SystemExit as end:
    print(end.code)
"""
    result = subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, "PYTHONPATH": str(ROOT)}, cwd=tmp_path,
        capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert result.stdout == "2\n"
    assert f"torch is not installed: pip install 'fastgar[{extra}]'" in result.stderr
    assert not list(tmp_path.iterdir())


# ------------------------------------------------------------------------------------- bench


def test_measurements_interleave_and_rotate_buffers() -> None:
    calls: list[tuple[str, int]] = []
    now = [0.0]

    def contestant(name: str, seconds: float):
        def call(buffer: int) -> None:
            calls.append((name, buffer))
            now[0] += seconds

        return call

    def broken(buffer: int) -> None:
        raise RuntimeError("not enough memory")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(measure, "perf_counter", lambda: now[0])
        takers = [contestant("fast", 0.01), broken, contestant("slow", 1.5)]
        timings, rounds = interleaved(takers, [0, 1, 2], repeat=6, budget=4.0)
        calls.clear()
        left = list(rounds)
    assert left == [5, 4, 3, 2, 1, 0]
    fast, failure, slow = timings
    assert failure == "not enough memory"
    assert len(fast.seconds) == 6 and len(slow.seconds) == slow.turns == 2
    assert fast.median == pytest.approx(0.01) and slow.median == pytest.approx(1.5)
    names = [name for name, _ in calls]
    assert names.count("slow") == 2
    fast_turns = [names[:at].count("fast") for at in range(len(names)) if names[at] == "slow"]
    assert fast_turns[1] - fast_turns[0] > 2  # apart, and not one after the other
    assert all(a[1] != b[1] for a, b in pairwise(calls))


def test_every_round_has_another_order_and_the_same_ones_every_time() -> None:
    def orders() -> list[list[str]]:
        calls: list[str] = []
        now = [0.0]

        def contestant(name: str) -> Callable[[int], None]:
            def call(buffer: int) -> None:
                calls.append(name)
                now[0] += 1.0  # long enough for no untimed call

            return call

        found = []
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(measure, "perf_counter", lambda: now[0])
            _, rounds = interleaved([contestant(c) for c in "abcd"], [0, 1], 30, budget=100.0)
            calls.clear()
            for _ in rounds:
                found.append(list(calls))
                calls.clear()
        return found

    found = orders()
    assert found == orders()
    assert all(sorted(order) == ["a", "b", "c", "d"] for order in found)
    for name in "abcd":
        before = {order[order.index(name) - 1] for order in found if order[0] != name}
        assert len(before) == 3  # everybody else was just before it once


def test_a_short_turn_begins_with_as_many_untimed_calls() -> None:
    now, calls = [0.0], [0]

    def call(buffer: int) -> None:
        calls[0] += 1
        now[0] += 1e-4 if calls[0] % 20 > 10 else 2e-4  # what follows somebody else is slow

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(measure, "perf_counter", lambda: now[0])
        (timing,), rounds = interleaved([call], [0, 1], 3, budget=1.0)
        assert isinstance(timing, Timing)
        timing.calls, timing.untimed, calls[0] = 10, timing.untimed * 10 // timing.calls, 0
        list(rounds)
    assert timing.untimed == 10 and calls[0] == 60
    assert timing.least <= timing.median < 1.2e-4


def test_who_fails_in_a_later_round_is_left_out_of_the_rest() -> None:
    left = [10_000]

    def fails_later(buffer: int) -> None:
        left[0] -= 1
        if left[0] < 0:
            raise RuntimeError("the search was stopped")

    timings, rounds = interleaved([fails_later, lambda buffer: None], [0, 1], 4, budget=1.0)
    left[0] = 9
    assert list(rounds) == [3, 2, 1, 0]
    assert timings[0] == "the search was stopped" and left[0] == -1
    assert isinstance(timings[1], Timing) and len(timings[1].seconds) == 4


@pytest.mark.parametrize(("budget", "turns"), [(float("inf"), 15), (0.8, 4), (1e-9, 2)])
def test_the_budget_limits_the_turns(budget: float, turns: int) -> None:
    assert Timing(0.2, 15, budget).turns == turns


# ------------------------------------------------------------------------ a machine in use


def test_the_time_of_others_is_what_our_cores_did_beyond_ourselves() -> None:
    tick = os.sysconf("SC_CLK_TCK")
    counters = (
        "cpu  9 9 9 9 9 9 9 9 9 9\n"
        f"cpu0 {2 * tick} {tick} {tick} {50 * tick} {7 * tick} 0 {tick} {tick} 0 0\n"
        f"cpu1 {3 * tick} 0 0 {60 * tick} 0 0 0 0 0 0\n"
        f"cpu2 {900 * tick} 0 0 0 0 0 0 0 0 0\n"
        "intr 5\n"
    )
    assert seconds_of_others(counters, {0, 1}, own=2.5) == pytest.approx(6 + 3 - 2.5)
    assert seconds_of_others("intr 5\n", {0, 1}, own=2.5) is None


def test_others_are_counted_from_now_on(monkeypatch: pytest.MonkeyPatch) -> None:
    now, used = [10.0], [3.0]
    monkeypatch.setattr(machine, "perf_counter", lambda: now[0])
    monkeypatch.setattr(machine, "seconds_of_others", lambda *known: used[0])
    monkeypatch.setattr(Path, "read_text", lambda path: "")
    others = Others()
    now[0], used[0] = 10.1, 3.1
    assert others.busy() is None  # too early to tell
    now[0], used[0] = 14.0, 5.0
    assert others.busy() == pytest.approx(0.5)
    used[0] = 2.9  # ticks are coarse
    assert others.busy() == 0.0


TWO_CORES = {"cores": 2, "threads": 2}


def figures(others: float | None = 0.0, **seconds: tuple[float, float]) -> list[dict[str, Any]]:
    return [
        {"name": name, "seconds": median, "least": least, "others": others}
        for name, (median, least) in seconds.items()
    ]


def test_a_quiet_machine_is_not_complained_of() -> None:
    steady = {"mean": (1.0, 0.9), "median": (1.2, 0.7)}
    assert disturbance(figures(0.1, **steady), TWO_CORES) == ""
    assert disturbance(figures(None, **steady), TWO_CORES) == ""
    assert disturbance(figures(1.1, **steady), {"cores": 2, "threads": 1}) == ""  # one is enough
    assert disturbance(figures(0.1, **steady), {"cores": 2, "threads": 4}) == ""


def test_a_busy_core_is_told_though_every_turn_was_as_slow() -> None:
    text = disturbance(figures(1.03, mean=(3.3, 3.2), median=(0.13, 0.13)), TWO_CORES)
    assert "other programs kept 1.0 of 2 cores busy beside our 2 threads" in text
    assert text.endswith("or with --threads 1.")
    text = disturbance(figures(1.4, mean=(3.3, 3.2)), {"cores": 2, "threads": 1})
    assert "our 1 thread," in text and "--threads" not in text


def test_unsteady_times_are_told() -> None:
    text = disturbance(figures(None, mean=(3.27, 0.07), median=(0.13, 0.12)), TWO_CORES)
    assert "the median of mean is over 2 times the least" in text
    many = dict.fromkeys("abcde", (3.0, 1.0))
    assert "of a, b, c and 2 more is" in disturbance(figures(None, **many), TWO_CORES)


class Faked:
    """Stands in for the machine and the clock: `times` are (turns, ...) by contestant."""

    def __init__(self, times: dict[str, list[float]], *, others: float | None = 0.0) -> None:
        self.times, self.others = times, others
        self.stop_after: int | None = None
        self.looks: list[Callable[[], None]] = []

    def busy(self) -> float | None:
        return self.others

    def contestants(self, *size: object, **more: object) -> list[Any]:
        peers = {"torch.median": "median", "numpy.median": "median", "torch.cdist": "krum"}
        return [
            bench.Contestant(name, lambda rows: None, 1, peers.get(name, "")) for name in self.times
        ]

    def interleaved(
        self, calls: Sequence[object], *rest: object
    ) -> tuple[list[Timing | str], Iterator[int]]:
        timings: list[Timing | str] = [Timing(1e-3, 15, 4.0) for _ in calls]
        return timings, self.rounds(timings)

    def rounds(self, timings: Sequence[Any]) -> Iterator[int]:
        turns = max(map(len, self.times.values()))
        for turn in range(turns):
            if turn == self.stop_after:
                raise KeyboardInterrupt
            for timing, seconds in zip(timings, self.times.values(), strict=True):
                timing.seconds += seconds[turn : turn + 1]
            for look in self.looks:
                look()
            yield turns - turn - 1


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Faked]:
    def install(times: dict[str, list[float]], **more: Any) -> Faked:
        faked = Faked(times, **more)
        monkeypatch.setattr(bench, "read_bandwidth", lambda: 1e10)
        monkeypatch.setattr(bench, "contestants", faked.contestants)
        monkeypatch.setattr(bench, "interleaved", faked.interleaved)
        monkeypatch.setattr(bench, "Others", lambda: faked)
        monkeypatch.setattr(bench, "cores", lambda: {0, 1})
        return faked

    return install


SMALL = ["bench", "--n", "7", "--d", "50", "--no-byzfl", "--threads", "2"]


@needs_bench
def test_bench_gives_ratios_of_medians_and_of_least_times(
    fake: Callable[..., Faked], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fake({"torch.mean": [70e-6, 3.3e-3, 3.2e-3], "median": [140e-6, 130e-6, 150e-6]})
    assert main([*SMALL, "--json", str(tmp_path / "b.json")]) == 0
    printed = capsys.readouterr().out
    (line,) = [line.split() for line in printed.splitlines() if line.startswith("median ")]
    assert line[1:7] == ["140", "us", "0.04", "130", "us", "1.86"]
    assert "NOT QUIET: the median of torch.mean is over 2 times the least" in printed
    mean, median = json.loads((tmp_path / "b.json").read_text())["results"]
    assert median["ratio"] == pytest.approx(140e-6 / 3.2e-3) and median["others"] == 0.0
    assert median["ratio_of_least"] == pytest.approx(130 / 70) and mean["ratio_of_least"] == 1.0


@needs_bench
def test_bench_tells_of_a_busy_machine_wherever_figures_go(
    fake: Callable[..., Faked], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    steady = {"torch.mean": [1.0, 1.0], "median": [1.0, 1.0]}
    for others, told in ((1.1, True), (0.0, False)):
        fake(steady, others=others)
        assert main(SMALL) == 0
        assert ("NOT QUIET: other programs kept 1.1" in capsys.readouterr().out) == told
        assert main([*SMALL, "--markdown"]) == 0
        assert ("NOT QUIET: other programs kept 1.1" in capsys.readouterr().out) == told
        assert main([*SMALL, "--plot", str(tmp_path / "b.svg")]) == 0
        capsys.readouterr()
        assert ("NOT QUIET" in svg_text(tmp_path / "b.svg")) == told


@needs_bench
def test_bench_without_a_peer_in_the_table(
    fake: Callable[..., Faked], capsys: pytest.CaptureFixture[str]
) -> None:
    fake({"torch.mean": [1.0], "nnm": [2.0]})
    assert main([*SMALL, "--dtype", "bfloat16", "--rules", "nnm"]) == 0
    (line,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("nnm")]
    assert line.split()[:4] == ["nnm", "2.00", "s", "2.00"]


@needs_bench
def test_ctrl_c_keeps_the_turns_so_far(
    fake: Callable[..., Faked],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    faked = fake({"torch.mean": [1.0, 2.0, 9.0], "median": [2.0, 3.0, 9.0], "late": [0.0][1:]})
    faked.stop_after = 2
    assert main([*SMALL, "--json", str(tmp_path / "b.json")]) == 130
    printed = capsys.readouterr()
    assert "d = 50 (interrupted after 2 turns)" in printed.out
    saved = json.loads((tmp_path / "b.json").read_text())
    assert saved["interrupted"] is True
    assert [(r["name"], r["turns"], r["seconds"]) for r in saved["results"]] == [
        ("torch.mean", 2, 1.5), ("median", 2, 2.5)
    ]  # fmt: skip
    screen = [""]
    for piece in printed.err.replace("\n", "\r\n\r").split("\r"):  # a carriage return overwrites
        if piece == "\n":
            screen.append("")
        else:
            screen[-1] = piece + screen[-1][len(piece) :]
    assert "1 rounds to go" in printed.err
    assert [line.strip() for line in screen] == ["interrupted", ""]


@needs_bench
def test_ctrl_c_before_the_baseline_had_its_turn(
    fake: Callable[..., Faked], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    faked = fake({"torch.mean": [], "median": [2.0, 3.0]})
    faked.stop_after = 1
    assert main([*SMALL, "--markdown", "--json", str(tmp_path / "b.json")]) == 130
    printed = capsys.readouterr()
    assert printed.err.splitlines() == [
        "n=7 d=50: torch.mean has no time to compare with", "interrupted"
    ]  # fmt: skip
    assert printed.out == "" and not list(tmp_path.iterdir())


@needs_bench
def test_no_file_is_there_before_it_holds_something(
    fake: Callable[..., Faked], tmp_path: Path
) -> None:
    faked = fake({"torch.mean": [1.0, 1.0]})
    seen: list[Path] = []
    faked.looks.append(lambda: seen.extend(tmp_path.iterdir()))
    files = ["--json", str(tmp_path / "b.json"), "--plot", str(tmp_path / "b.png")]
    assert main([*SMALL, *files]) == 0
    assert seen == []
    assert sorted(path.name for path in tmp_path.iterdir()) == ["b.json", "b.png"]
    assert all(path.stat().st_size for path in tmp_path.iterdir())


def svg_text(path: Path) -> str:
    """Return the texts of a picture, which matplotlib writes as comments beside their shapes."""
    return "\n".join(re.findall("<!-- (.*?) -->", path.read_text()))


@needs_bench
def test_the_plot_shows_every_rule_that_was_asked_for(
    fake: Callable[..., Faked], tmp_path: Path
) -> None:
    rules = ["median", "krum", "mda", "multi_krum", "bulyan", "cge", "meamed", "phocas"]
    theirs = ["torch.median", "numpy.median", "torch.cdist", "ByzFL Krum"]
    fake({name: [1.0] for name in ("torch.mean", *rules, *theirs)})
    picture = tmp_path / "b.svg"
    assert main([*SMALL, "--plot", str(picture), "--rules", *rules]) == 0
    shown = svg_text(picture).splitlines()
    assert set(rules) | set(theirs) | {"torch.mean"} <= set(shown)
    assert main([*SMALL, "--plot", str(picture)]) == 0  # a choice, where nobody asked
    shown = svg_text(picture).splitlines()
    assert {"median", "krum", "torch.mean", "torch.median", "numpy.median"} <= set(shown)
    assert not {"mda", "phocas"} & set(shown)


@needs_bench
def test_the_plot_says_what_was_measured_where(
    fake: Callable[..., Faked], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bench, "processor", lambda: "An Engine")
    fake({"torch.mean": [1.0], "median": [1.0]})
    arguments = ["--n", "11", "20", "--d", "2000", "--dtype", "float64", "--threads", "2"]
    picture = tmp_path / "b.svg"
    assert main(["bench", *arguments, "--no-byzfl", "--plot", str(picture)]) == 0
    text = svg_text(picture)
    assert f"float64, 2 threads of An Engine, fastgar {fg.__version__}" in text
    assert "columns d, with n = 20 rows and f = 4" in text
    assert "rows n and f, with d = 2,000 columns" in text and "f=2" in text


@needs_bench
def test_bench_prints_writes_and_draws(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import torch

    threads = torch.get_num_threads(), fg.get_threads()
    report, picture = tmp_path / "bench.json", tmp_path / "bench.png"
    arguments = ["--n", "7", "9", "--d", "2000", "--rules", "median", "krum", "nnm | krum"]
    arguments += ["--repeat", "2", "--threads", "1", "--no-byzfl"]
    assert main(["bench", *arguments, "--json", str(report), "--plot", str(picture)]) == 0
    assert (torch.get_num_threads(), fg.get_threads()) == threads
    printed = capsys.readouterr().out
    assert "n = 9, f = 2, d = 2,000" in printed and "nnm | krum" in printed
    assert picture.read_bytes().startswith(b"\x89PNG")
    saved = json.loads(report.read_text())
    assert saved["machine"]["threads"] == 1 and saved["machine"]["bytes_per_second"] > 1e8
    found = {(r["n"], r["d"], r["name"]): r for r in saved["results"]}
    names = {"torch.mean", "median", "krum", "nnm | krum"}
    names |= {"torch.median", "numpy.median", "torch.cdist"}
    assert {name for n, d, name in found if (n, d) == (7, 2000)} == names
    assert (9, 1000, "krum") in found  # for the plot
    krum, mean = found[9, 2000, "krum"], found[9, 2000, "torch.mean"]
    assert krum["ratio"] == pytest.approx(krum["seconds"] / mean["seconds"])
    assert krum["reads"] == 2 and krum["f"] == 2
    assert krum["bytes_per_second"] == pytest.approx(2 * 9 * 2000 * 4 / krum["seconds"])


@needs_bench
def test_bench_prints_the_table_of_the_readme(capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--n", "7", "11", "--d", "500", "--rules", "median", "bulyan", "--repeat", "2"]
    assert main(["bench", *arguments, "--markdown", "--no-byzfl", "--dtype", "float16"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "|  | n=7, f=1 | n=11, f=2 |"
    assert [line.split("`")[1] for line in lines[2:5]] == ["torch.mean", "median", "bulyan"]
    assert "d = 500, float16" in lines[-1] and "float16" in lines[-1]


@needs_bench
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--rules", "medain"], "unknown rule 'medain': did you mean 'median'"),
        (["--n", "0"], "--n must be at least 1, got 0"),
        (["--d", "-3"], "--d must be at least 1, got -3"),
        (["--threads", "0"], "--threads must be at least 1, got 0"),
        (["--repeets", "3"], "--repeets 3: did you mean --repeat?"),
        (["--repeat", "0"], "--repeat must be at least 1, got 0"),
        (["--budget", "nan"], "--budget must be above 0 seconds, got nan"),
        (["--budget", "-1"], "--budget must be above 0 seconds, got -1"),
        (["--plot", "b.xyz"], "--plot must end in .png, .svg, .pdf or .jpg, got b.xyz"),
        (["--plot", "b"], "--plot must end in .png, .svg, .pdf or .jpg, got b"),
        (["--plot", "new/b.png"], "cannot write to new/b.png: there is no folder new"),
        (["--json", "new/b.json"], "cannot write to new/b.json: there is no folder new"),
        (["--json", "device"], "cannot write to device: what is there is not a regular file"),
        (["--json", "folder"], "cannot write to folder: what is there is not a regular file"),
        (["--json", "b" * 999], "File name too long"),
        (["--n", "20000", "--d", "100000000"], "take 16,000.0 GB, and 8.0 GB of memory are free"),
        (["--n", "9", "--d", "9" * 30, "--dtype", "float16"], "take a smaller --n or --d"),
    ],
)
def test_bench_refuses_bad_input_before_any_work(
    arguments: list[str],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("folder").mkdir()
    Path("device").symlink_to("/dev/zero")
    before = sorted(tmp_path.iterdir())
    monkeypatch.setattr(bench, "free_memory", lambda: 8_000_000_000, raising=False)
    monkeypatch.setattr(bench, "_measure", lambda *asked: pytest.fail("it went to work"))
    with pytest.raises(SystemExit) as end:
        main(["bench", *arguments])
    assert end.value.code == 2
    assert message in capsys.readouterr().err
    assert sorted(tmp_path.iterdir()) == before


@needs_bench
def test_bench_refuses_rows_for_which_memory_runs_out(
    fake: Callable[..., Faked], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import torch

    def full(*size: int, **more: object) -> None:
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory")

    fake({"torch.mean": [1.0]})
    monkeypatch.setattr(torch, "randn", full)
    with pytest.raises(SystemExit) as end:
        main(SMALL)
    assert end.value.code == 2
    assert "no memory for rows with n=7 d=50: take a smaller" in capsys.readouterr().err


def test_an_absent_torchvision_does_not_keep_byzfl_out(tmp_path: Path) -> None:
    package = tmp_path / "byzfl"
    package.mkdir()
    (package / "__init__.py").write_text(
        "from torchvision import datasets, transforms\n"
        "flip = transforms.Compose([transforms.ToTensor()])\n"
        "answer = 42\n"
    )
    code = """
import sys
from importlib.util import find_spec
from fastgar.cli.contestants import with_byzfl
present = find_spec("torchvision") is not None
print(with_byzfl().answer, "torchvision" in sys.modules and not present)
"""
    assert python(code, tmp_path) == "42 False\n"
    code = "from fastgar.cli.contestants import with_byzfl; print(with_byzfl())"
    if find_spec("byzfl") is None:
        assert python(code) == "None\n"
