"""Robust collectives between processes, and the operators that need none.

The cases that ranks run are in rank_cases.py: the processes are started once, and each test asks
what became of one case on every rank.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

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

fg.rules.forget("least_sum")  # registered by rank_cases, for its processes


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[Any]]:
    """Run all cases; return for each what the ranks of its group wrote."""
    folder = tmp_path_factory.mktemp("ranks")
    process = subprocess.Popen(
        [sys.executable, str(HERE / "rank_cases.py"), str(folder)], stderr=subprocess.PIPE,
        text=True, start_new_session=True,
    )  # fmt: skip
    try:
        _, errors = process.communicate(timeout=240)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        raise
    assert process.returncode == 0, errors
    found: dict[str, list[Any]] = {}
    for rank in range(rank_cases.SIZE):
        for line in (folder / f"{rank}.jsonl").read_text().splitlines():
            name, trouble, _ = json.loads(line)
            if rank < rank_cases.CASES[name][0]:
                found.setdefault(name, []).append(trouble)
    return found


@pytest.mark.parametrize("name", rank_cases.CASES)
def test_ranks(name: str, outcomes: dict[str, list[Any]]) -> None:
    troubles = outcomes.get(name, [])
    first = next((trouble for trouble in troubles if trouble), None)
    assert first is None, first
    size = rank_cases.CASES[name][0]
    died = name.startswith("a_rank_that_dies")
    assert len(troubles) == size - died, "an earlier case failed on some rank"


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


def test_the_error_survives_pickling() -> None:
    import pickle

    error = pickle.loads(pickle.dumps(fgt.TooManyFaultyRanks([5, 7], 1, rows=[1, 3])))
    assert error.ranks == (5, 7) and error.rows == (1, 3) and "ranks 5, 7" in str(error)


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
