"""The time that is said to be left, by a clock that runs as it is told."""

from __future__ import annotations

import heapq
import re
import sys
from collections.abc import Iterator

import pytest

pytest.importorskip("torch")  # of the package that it is in
pytest.importorskip("tqdm")

from fastgar.progress import Estimate, Kind, Progress, Scene, duration
from fastgar.train.reproduce.grids import momentum, resilience
from fastgar.train.reproduce.setting import Grid, Run

START_UP = 25.0  # seconds of the first run in each process


def cost(run: Run) -> float:
    """Return how long a run takes: some rules and attacks far longer than others."""
    config = run.setting.config
    slow = {"smea": 12.0, "caf": 3.0, "optimal(little)": 6.0, "bulyan": 2.0}
    return 0.5 * slow.get(str(config["rule"]), 1.0) * slow.get(str(config["attack"]), 1.0)


def worked_on(runs: list[Run], processes: int) -> Iterator[tuple[float, Run, float]]:
    """Yield when each run ends, which, and how long it took, so many of them at a time."""
    busy: list[tuple[float, int]] = []
    for number in range(len(runs)):
        began = busy[0][0] if len(busy) == processes else 0.0
        if len(busy) == processes:
            end, which = heapq.heappop(busy)
            yield end, runs[which], took(runs, which, processes)
        heapq.heappush(busy, (began + took(runs, number, processes), number))
    while busy:
        end, which = heapq.heappop(busy)
        yield end, runs[which], took(runs, which, processes)


def took(runs: list[Run], number: int, processes: int) -> float:
    return cost(runs[number]) + (START_UP if number < processes else 0.0)


def seconds(words: str) -> float:
    units = {"s": 1, "min": 60, "h": 3600}
    return sum(int(n) * units[unit] for n, unit in re.findall(r"(\d+) (s|min|h)\b", words))


@pytest.mark.parametrize("processes", [1, 2, 16])
@pytest.mark.parametrize(
    "grid", [resilience.grid(), momentum.grid()], ids=["resilience", "momentum"]
)
def test_a_grid_says_what_is_left_once_it_knows(
    grid: Grid, processes: int, capsys: pytest.CaptureFixture[str]
) -> None:
    runs = grid.runs([1])[:600]
    ends = list(worked_on(runs, processes))
    total = ends[-1][0]
    said = []
    work = (run.work for run in runs)
    with Progress(len(runs), "run", work, at_once=processes) as progress:
        for end, run, length in ends:
            progress.ended(*run.work, "ended", length)
            line = capsys.readouterr().err
            if "left" in line:
                said.append((total - end, seconds(line.split("about ")[1])))
    assert len(said) >= len(runs) - processes - 5
    first = said[: len(said) // 10]
    # Of rules that are to come nothing is known yet. Start-up alone, if counted, is 50 runs' time.
    assert all(true / 3 < guess < 3 * true for true, guess in first)
    late = said[len(said) // 2 : -2 * processes - 10]
    assert all(true / 2 - 45 < guess < 2 * true + 45 for true, guess in late)


def test_nothing_is_said_before_something_is_known() -> None:
    slow, fast = Kind("smea", "none"), Kind("mean", "none")
    estimate = Estimate([(fast, 100), (slow, 100)])
    estimate.done(fast, 1)  # without a time
    for _ in range(3):
        estimate.done(fast, 1, 2.0)
    assert estimate.left() is None and estimate.words() == ""
    estimate.done(fast, 1, 2.0)
    assert estimate.left() == pytest.approx(195 * 2.0)  # of the slow rule nothing is known
    estimate.done(slow, 1, 50.0)
    assert estimate.left() == pytest.approx(95 * 2.0 + 99 * 50.0)
    assert (
        estimate.words()
        == f"about {duration(95 * 2.0 + 99 * 50.0)} left"
        == "about 1 h 26 min left"
    )
    estimate.done(slow, 99)
    estimate.done(fast, 95)
    assert estimate.words() == ""


def test_a_scene_is_drawn_over_itself_on_a_terminal_and_said_now_and_then_elsewhere(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "9")
    for terminal, text in (
        (True, "a1\na2 is lo\n\x1b[2A\x1b[Jb1\n\x1b[1A\x1b[Jc1\n"),
        (False, "a\nc\n"),  # b comes too soon
    ):
        monkeypatch.setattr(sys.stderr, "isatty", lambda terminal=terminal: terminal)
        for quiet in (False, True):
            scene = Scene(quiet=quiet)
            scene.show("a", ["a1", "a2 is long"])
            scene.show("b", ["b1"])
            scene.show("c", ["c1"], last=True)
            assert capsys.readouterr().err == ("" if quiet else text)
