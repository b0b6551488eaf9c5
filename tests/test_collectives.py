"""Robust collectives between processes, and the operators that need none.

The cases that ranks run are in rank_cases.py: the processes are started once, and each test asks
what became of one case on every rank.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
if not (hasattr(os, "fork") and torch.distributed.is_available()):
    pytest.skip("needs fork and torch.distributed", allow_module_level=True)

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))

import rank_cases  # noqa: E402

import fastgar as fg  # noqa: E402
import fastgar.torch as fgt  # noqa: E402
from fastgar.torch import window  # noqa: E402
from fastgar.torch.suspicion import Tally  # noqa: E402


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[Any]]:
    """Run all cases; return for each what the ranks of its group wrote."""
    folder = tmp_path_factory.mktemp("ranks")
    return rank_cases.outcomes_of("rank_cases.py", folder, rank_cases.CASES)


@pytest.mark.parametrize("name", rank_cases.CASES)
def test_ranks(name: str, outcomes: dict[str, list[Any]]) -> None:
    rank_cases.require_passed(name, rank_cases.CASES[name][0], outcomes.get(name, []))


def test_without_a_process_group() -> None:
    with pytest.raises(RuntimeError, match="init_process_group"):
        fgt.all_reduce(torch.ones(3), "median", 1)
    state = fgt.RobustState("krum", 1)  # ranks are counted later
    assert state.report is None and state.state_dict()["momentum"] == {}


def test_threads_of_ranks_on_one_machine() -> None:
    code = "import fastgar as fg; print(fg.get_threads())"
    cores = os.cpu_count() or 1
    expected = {
        (): len(os.sched_getaffinity(0)),
        (("LOCAL_WORLD_SIZE", str(cores)),): 1,
        (("LOCAL_WORLD_SIZE", "1"), ("OMP_NUM_THREADS", "1")): 1,
        (("LOCAL_WORLD_SIZE", "1"), ("NUMBA_NUM_THREADS", "1")): 1,
    }
    names = ("LOCAL_WORLD_SIZE", "OMP_NUM_THREADS", "NUMBA_NUM_THREADS")
    for settings, threads in expected.items():
        rest = {name: value for name, value in os.environ.items() if name not in names}
        found = subprocess.run(
            [sys.executable, "-c", code], env=rest | dict(settings), capture_output=True,
            text=True, check=True,
        )  # fmt: skip
        assert int(found.stdout) == threads, settings


def test_fastgar_itself_does_not_import_torch() -> None:
    code = "import sys, fastgar; assert 'torch' not in sys.modules; fastgar.torch.all_reduce"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_memory_in_common_never_has_a_name() -> None:
    """So it is gone with its processes, killed at whatever moment: here, before others have it."""
    code = """
import os, signal
from fastgar.torch import window

class Peers:
    on_one_machine = True

    def exchange(self, values, device):
        process, file = map(int, values[1:3])
        found = os.stat(f"/proc/{process}/fd/{file}")
        print(process == os.getpid(), found.st_nlink, found.st_size, flush=True)
        os.kill(process, signal.SIGKILL)

window.open_window(Peers(), 4096)
"""
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert found.returncode == -signal.SIGKILL, found.stderr
    assert found.stdout.split() == ["True", "0", str(4096 + window.TOKEN)]


def test_only_the_memory_of_a_rank_is_taken_for_it(tmp_path: Path) -> None:
    token, size = b"t" * window.TOKEN, 64
    file = window._make(size, token)
    assert file is not None
    path = Path(f"/proc/self/fd/{file}")
    mine, theirs = (window._map(path, token, size, writable) for writable in (True, False))
    mine[5] = 7
    assert theirs[5] == 7 and len(theirs) == size
    (tmp_path / "file").write_bytes(bytes(size))
    os.mkfifo(tmp_path / "pipe")  # to open it would take for ever
    others = [tmp_path / "file", tmp_path / "pipe", tmp_path / "none", Path("/dev/null")]
    for other, said in [(path, b"?" * window.TOKEN), *((each, token) for each in others)]:
        with pytest.raises(OSError):
            window._map(other, said, size, False)
    os.close(file)


@pytest.mark.parametrize("extra", ["torch", "train"])
def test_without_torch_the_extra_is_named(extra: str) -> None:
    code = f"import sys; sys.modules['torch'] = None; from fastgar.{extra} import *"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert f'torch is not installed: pip install "fastgar[{extra}]"' in found.stderr


def test_the_error_survives_pickling() -> None:
    import pickle

    error = pickle.loads(pickle.dumps(fgt.TooManyFaultyRanks([5, 7], 1, rows=[1, 3])))
    assert error.ranks == (5, 7) and error.rows == (1, 3) and "ranks 5, 7" in str(error)


# ------------------------------------------------------------------------------------- suspicion


def named_after(tally: Tally, distrust: Any, steps: int, pace: float = 1.0) -> int | None:
    """Return the step, counted from 1, in which some rank is named first."""
    for step in range(1, steps + 1):
        x = distrust()
        if tally.count(x, x == 1, np.zeros(len(x), bool), pace).dropped_too_often.any():
            return step
    return None


@pytest.mark.parametrize("momentum", [0.0, 0.9])
@pytest.mark.parametrize("kind", ["dropped", "weighted"])
def test_honest_ranks_are_not_named(kind: str, momentum: float) -> None:
    draw, alarms, runs = np.random.default_rng(0), 0, 60
    for run in range(runs):
        n, f = ((4, 1), (11, 2), (5, 2))[run % 3]
        sums = np.zeros((n, 8))

        def distrust(n: int = n, f: int = f, sums: Any = sums) -> Any:
            """Return what n gradients of the same kind, some of them long, are distrusted."""
            scale = np.exp(draw.normal(size=(n, 1)))
            sums[:] = momentum * sums + scale * draw.normal(size=sums.shape)
            far = ((sums - np.median(sums, axis=0)) ** 2).sum(axis=1) + 1e-9
            dropped = np.argsort(far).argsort() >= n - f
            return 1 - far.min() / far if kind == "weighted" else dropped.astype(np.float64)

        found = named_after(Tally(), distrust, 120, 1 - momentum)
        alarms += found is not None
    assert alarms <= 1  # expected at most 0.06: more than 1 in one of 580 such tests


def test_chance_would_name_honest_ranks_that_were_dropped_in_a_row() -> None:
    draw = np.random.default_rng(1)
    streaks = 0
    for _ in range(20):  # what a count of steps in a row makes of the same honest ranks
        tally = Tally()
        for _ in range(100):
            x = np.eye(4)[draw.integers(4)]
            tally.count(x, x == 1, np.zeros(4, bool))
            streaks += int((tally.streak == 3).any())
    assert streaks > 20


@pytest.mark.parametrize(
    ("n", "f", "at_once", "later"),
    [(4, 1, 8, 21), (11, 2, 7, 18), (5, 2, 12, 31), (64, 16, 10, 23)],
)
def test_a_rank_that_is_always_dropped_is_named_in_time(
    n: int, f: int, at_once: int, later: int
) -> None:
    draw = np.random.default_rng(0)

    def distrust() -> Any:
        x = np.zeros(n)
        x[[0, *1 + draw.choice(n - 1, f - 1, replace=False)]] = 1
        return x

    found = named_after(Tally(), distrust, at_once)
    assert found is not None and found >= at_once - 1
    tally = Tally()
    tally.count(np.zeros(n), np.zeros(n, bool), np.zeros(n, bool))
    tally.step = 9_998
    tally.capital[:] = 0.0  # as if all was lost so far
    found = named_after(tally, distrust, later)
    assert found is not None and found >= later - 2
    assert tally.suspicion()[0] == 1 and tally.named[0]
    slow = named_after(Tally(), distrust, 12 * at_once, pace=0.1)
    assert slow is not None and 9 * (at_once - 1) <= slow <= 10 * at_once


def test_news_of_a_rank_is_told_once() -> None:
    tally, x = Tally(), np.array([0.0, 0.0, 0.0, 1.0])
    told: list[Any] = []
    for step in range(450):
        faulty = np.array([step == 300 or 20 <= step < 40, False, False, False])
        events = tally.count(np.where(faulty, 1.0, x), x == 1, faulty)
        told += [("often", i) for i in np.flatnonzero(events.dropped_too_often)]
        told += [("infinite", i) for i in np.flatnonzero(events.not_finite)]
    assert told == [("often", 3), ("infinite", 0), ("infinite", 0)]


def test_reports_of_many_ranks_fit_a_screen() -> None:
    n = 1000
    suspicion = np.linspace(0, 0.5, n)[::-1].copy()
    report = fgt.RankReport(
        3, "krum", tuple(range(n)), np.full(n, 1 / n), None, (7,), (7, 990), suspicion
    )
    lines = repr(report).splitlines()
    assert len(lines) < 25 and "   7    0.001       0.50   not finite" in lines
    assert any("990" in line and "dropped" in line for line in lines)
    assert len(repr(fg.inspect("krum", np.random.default_rng(0).normal(size=(n, 3)), 1))) < 8000
    assert "of fastgar.rule('krum', f=1), sharded, after 0 steps" in repr(
        fgt.RobustState("krum", 1)
    )


# ------------------------------------------------------------------------------------- operators


def operands(n: int = 7, d: int = 33) -> Any:
    return torch.randn(n, d, generator=torch.Generator().manual_seed(0))


def test_operators_are_taken_into_a_graph() -> None:
    G = operands()
    calls = {
        "krum": lambda G: fgt.ops.krum(G * 2, 2) + 1,
        "named": lambda G: fgt.ops.multi_krum(G * 2, f=1, m=3) + 1,
        "mean": lambda G: fgt.ops.mean(G * 2) + 1,
        "nnm": lambda G: fgt.ops.nnm(G * 2, 2) + 1,
        "pipeline": lambda G: fgt.ops.rule("nnm | median", 1)(G * 2) + 1,
        "rows": lambda G: fgt.ops.median([row * 2 for row in G.unbind()], 2) + 1,
        "step": lambda G: fgt.ops.bucketing(G * 2, 1, s=2, step=3) + 1,
    }
    wanted = {
        "krum": fg.krum(G * 2, 2), "named": fg.multi_krum(G * 2, f=1, m=3), "mean": (2 * G).mean(0),
        "nnm": fg.nnm(G * 2, 2), "pipeline": fg.rule("nnm | median", 1)(2 * G),
        "rows": fg.median(G * 2, 2), "step": fg.bucketing(G * 2, 1, s=2, step=3),
    }  # fmt: skip
    for name, call in calls.items():
        compiled = torch.compile(call, fullgraph=True, backend="aot_eager")
        torch.testing.assert_close(compiled(G), wanted[name] + 1, msg=name)
        torch.testing.assert_close(call(G), wanted[name] + 1, msg=name)


def test_what_a_cuda_graph_cannot_hold_is_an_operator_that_says_so(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As it would be compiled for rows on a GPU; n may change from call to call."""
    found: list[Any] = []

    def backend(graph: Any, inputs: Any) -> Any:
        found.extend(node.target for node in graph.graph.nodes if "fastgar" in str(node.target))
        return graph.forward

    monkeypatch.setattr(fgt.ops, "_on_gpu", lambda x: True)
    unsafe = torch.Tag.cudagraph_unsafe
    for spec, dtype, waits in (
        ("krum", torch.float32, False), ("median", torch.float64, False),
        ("nnm | median", torch.float32, False), ("nnm | median", torch.float64, True),
        ("geometric_median", torch.float32, True), ("nnm", torch.float32, True),
    ):  # fmt: skip
        call = torch.compile(fgt.ops.rule(spec, 1), fullgraph=True, dynamic=True, backend=backend)
        for n in (7, 9):
            G = operands(n).to(dtype)
            assert torch.equal(call(G), fg.rule(spec, 1)(G))
        assert found, spec
        assert all((unsafe in each.default.tags) == waits for each in found), spec
        found.clear()
    call = torch.compile(fgt.ops.rule("krum", 1), fullgraph=True, dynamic=True, backend=backend)
    call(operands(1025))  # rows of which the host chooses
    assert [unsafe in each.default.tags for each in found] == [True]


def test_operators_and_rules_agree_on_what_waits() -> None:
    tau = {"centered_clipping": "(tau=2.0)", "clip": "(c=3.0)"}
    single = [each.name + tau.get(each.name, "") for each in fg.list_rules()]
    pipelines = [f"{first} | {last}" for first in ("nnm", "arc", "nnm | nnm") for last in single]
    pipelines += ["krum(squared=False)", "multi_krum(m=2)", "bulyan(variant='epfl')"]
    compared = 0
    for spec in single + pipelines:
        for n, dtype in ((23, "float32"), (23, "float64"), (1024, "float32"), (1025, "float32")):
            try:
                waits = fg.rule(spec, 2).waits(n, dtype)
            except (TypeError, ValueError):  # no such pipeline
                continue
            found = fgt.ops._waits(spec, n, getattr(torch, dtype))
            assert found or not waits, (spec, n, dtype)  # the other way round costs only speed
            assert found == waits or "nnm | " in spec, (spec, n, dtype)
            compared += 1
    assert compared > 100


def test_what_is_no_number_of_rows_is_not_taken_for_one() -> None:
    fgt.ops.rule("krum", 1)(operands())
    for f in (True, 1.0):
        with pytest.raises(TypeError, match="f must be"):
            fgt.ops.rule("krum", f)(operands())  # type: ignore[arg-type]


def test_operators_say_what_they_give_before_they_run() -> None:
    aggregate = torch.ops.fastgar.aggregate
    for rows, spec in (([operands()], "krum"), ([operands()], "nnm"), (list(operands()), "median")):
        torch.library.opcheck(aggregate, (rows, spec, 1, 0))
    half = operands().to(torch.bfloat16).view(7, 3, 11)
    torch.library.opcheck(aggregate, ([half], "bucketing(s=2) | median", 0, 4))


def test_gradients_do_not_flow_and_shapes_may_change() -> None:
    compiled = torch.compile(
        lambda G: fgt.ops.median(G, 1), fullgraph=True, dynamic=True, backend="aot_eager"
    )
    for n, d in ((5, 7), (6, 40)):
        G = operands(n, d).requires_grad_()
        assert not fgt.ops.median(G, 1).requires_grad
        found = compiled(G)
        assert not found.requires_grad
        torch.testing.assert_close(found, fg.median(G, 1))


def test_eager_calls_do_not_reach_the_dispatcher(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*arguments: Any) -> Any:
        raise AssertionError("dispatched")

    monkeypatch.setattr(fgt.ops, "_compiled", fail)
    G = operands()
    assert torch.equal(fgt.ops.krum(G, 2), fg.krum(G, 2))
    assert torch.equal(fgt.ops.nnm(G, 2), fg.nnm(G, 2))
    assert torch.equal(fgt.ops.rule("nnm | krum", 2)(G), fg.rule("nnm | krum", 2)(G))


def test_operators_of_rules_of_ones_own() -> None:
    @fg.rules.column_rule(needs="1", paper="of your own")
    def least(n: int) -> list[float]:
        """Return the least value."""
        return [1.0] + [0.0] * (n - 1)

    try:
        G = operands()
        assert torch.equal(fgt.ops.least(G), G.amin(0))
        assert "least" in dir(fgt.ops)
    finally:
        fg.rules.forget("least")
    with pytest.raises(AttributeError, match="unknown rule 'krumm': did you mean 'krum'"):
        fgt.ops.__getattr__("krumm")
    with pytest.raises(TypeError, match="f"):
        fgt.ops.krum(operands())
