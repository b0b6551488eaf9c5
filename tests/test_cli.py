"""The command line: what each subcommand prints, writes, refuses and imports."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from importlib.util import find_spec
from itertools import pairwise
from pathlib import Path

import pytest

import fastgar as fg
from fastgar.cli import main, measure
from fastgar.cli.measure import interleaved
from fastgar.cli.tables import markdown_table, text_table

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


# ------------------------------------------------------------------------------------- rules


def test_rules_lists_every_rule_in_100_columns(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["rules"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 100
    for rule in fg.list_rules():
        (line,) = [line for line in lines if line.split()[:1] == [rule.name]]
        assert rule.needs in line and f" {rule.breakdown} " in line and f" {rule.reads} " in line
        assert not rule.paper or rule.paper.split()[0] in line


def test_rules_as_json_has_everything(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["rules", "--json"]) == 0
    records = {record["name"]: record for record in json.loads(capsys.readouterr().out)}
    assert set(records) == {rule.name for rule in fg.list_rules()}
    krum = records["krum"]
    assert krum["needs"] == "n >= 2f + 3" and krum["reads"] == 2 and krum["robust"] is True
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
    assert names.count("slow") == 2 and "slow" in names[:3] and "slow" in names[-6:]
    assert all(a[1] != b[1] for a, b in pairwise(calls))


@needs_bench
def test_bench_prints_writes_and_draws(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import torch

    threads = torch.get_num_threads(), fg.get_threads()
    report, picture = tmp_path / "new" / "bench.json", tmp_path / "bench.png"
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
        (["--repeat", "0"], "--repeat must be at least 1"),
        (["--json", "/dev/null/bench.json"], "cannot write to /dev/null/bench.json"),
    ],
)
def test_bench_refuses_bad_input(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as end:
        main(["bench", *arguments])
    assert end.value.code == 2
    assert message in capsys.readouterr().err


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
