"""The kernels under threads, forks, other processes, and without a place to cache."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
import textwrap
import threading
from pathlib import Path

import numpy as np
import pytest

import fastgar

ROOT = Path(fastgar.__file__).parent.parent


def python(code, **environment):
    """Run code in a fresh interpreter and return what it printed."""
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)],
        env={**os.environ, "PYTHONPATH": str(ROOT), **environment},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_import_is_light_and_compiles_nothing():
    heavy = python(
        """
        import sys, fastgar
        heavy = ("numba", "llvmlite", "torch", "jax", "tensorflow", "cupy", "scipy", "sklearn")
        print([name for name in heavy if name in sys.modules])
        """
    )
    assert heavy.strip() == "[]"


def test_python_threads_call_at_once():
    X = np.random.default_rng(0).standard_normal((20, 300_000)).astype(np.float32)
    want = fastgar.krum(X, f=4), fastgar.median(X)
    wrong = []

    def work():
        for _ in range(5):
            got = fastgar.krum(X, f=4), fastgar.median(X)
            wrong.extend(1 for a, b in zip(got, want, strict=True) if a.tobytes() != b.tobytes())

    threads = [threading.Thread(target=work) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=60)
    assert not any(thread.is_alive() for thread in threads)
    assert not wrong


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs os.fork")
def test_forked_children_compute():
    out = python(
        """
        import os, numpy as np, fastgar
        fastgar.set_threads(2)
        X = np.random.default_rng(0).standard_normal((11, 100_000)).astype(np.float32)
        want = fastgar.krum(X, f=2).tobytes(), fastgar.median(X).tobytes()
        children = []
        for _ in range(3):
            child = os.fork()
            if child == 0:
                got = fastgar.krum(X, f=2).tobytes(), fastgar.median(X).tobytes()
                os._exit(0 if got == want else 1)
            children.append(child)
        print([os.waitpid(child, 0)[1] for child in children])
        """
    )
    assert out.strip() == "[0, 0, 0]"


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs os.fork")
def test_forked_children_compute_after_torch_did():
    pytest.importorskip("torch")
    out = python(
        """
        import os, torch, fastgar
        torch.set_num_threads(2), fastgar.set_threads(2)
        X = torch.randn(11, 100_000)
        want = fastgar.median(X)
        child = os.fork()
        if child == 0:
            torch.set_num_threads(1)
            os._exit(0 if bytes(fastgar.median(X.numpy())) == bytes(want.numpy()) else 1)
        print(os.waitpid(child, 0)[1])
        """
    )
    assert out.strip() == "0"


@pytest.mark.skipif(sys.platform != "linux", reason="OpenMP's entry has another name elsewhere")
def test_the_threads_of_torch_are_borrowed_by_the_main_thread_alone():
    pytest.importorskip("torch")
    out = python(
        """
        import threading, torch, fastgar
        torch.set_num_threads(2), fastgar.set_threads(2)
        X = torch.randn(11, 100_000)
        own = lambda: sum(t.name.startswith("fastgar-") for t in threading.enumerate())
        def call():
            results.append(fastgar.median(X))
            print(own())
        results = []
        call()
        other = threading.Thread(target=call)
        other.start(), other.join()
        torch.set_num_threads(1)
        call()
        print(all(bool((r == results[0]).all()) for r in results))
        """
    )
    assert out.split() == ["0", "1", "1", "True"]


@pytest.mark.skipif(sys.platform != "linux", reason="OpenMP's entry has another name elsewhere")
def test_what_a_kernel_says_in_a_region_is_heard():
    """All arguments arrive, every thread calls, and a single failure is an error."""
    torch = pytest.importorskip("torch")
    from fastgar.cpu import region, team
    from fastgar.cpu.compile import Kernel
    from fastgar.cpu.tiles import put_integer, take

    def kernel(calls, sums, failing, a, b, c, d, e, f, g, h, i, j, k, m, n, o, p, q, r, s, t, u, v):
        call = take(calls)
        total = a + b + c + d + e + f + g + h + i + j + k + m + n + o + p + q + r + s + t + u + v
        put_integer(sums, call, total)
        return call != failing

    entry = Kernel(kernel, region.ARGUMENTS).specialised()
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        for failing in (-1, 0, 1):
            numbers = np.array([0, -1, -1])
            where = numbers.ctypes.data, numbers.ctypes.data + 8, failing
            arguments = *where, *(3**power for power in range(21))
            done = team.parallel(entry, arguments, 2)
            assert numbers.tolist() == [2, (3**21 - 1) // 2, (3**21 - 1) // 2]
            assert done is (failing < 0)
        assert team.parallel(lambda *_: True, (), 2) is None
        assert team.parallel(entry, (), 3) is None
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("pieces", [1, 2])
def test_a_kernel_without_memory_is_an_error(pieces):
    from fastgar.cpu import threads

    fastgar.set_threads(2)
    try:
        with pytest.raises(MemoryError, match="no memory for a kernel"):
            threads.run(lambda counter: False, pieces=pieces)
    finally:
        fastgar.set_threads(None)


def test_torch_keeps_its_threads():
    pytest.importorskip("torch")
    out = python(
        """
        import torch, fastgar
        torch.set_num_threads(2)
        fastgar.krum(torch.randn(11, 50_000), f=2)
        fastgar.median(torch.randn(11, 50_000))
        print(torch.get_num_threads())
        """
    )
    assert out.strip() == "2"


CACHE_PROBE = """
    import numpy as np, fastgar, fastgar.cpu.columns as columns
    fastgar.median(np.ones((7, 1000), np.float32))
    stats = columns.FIXED._function.stats
    print(sum(stats.cache_hits.values()), sum(stats.cache_misses.values()))
"""


def test_the_disk_cache_works_across_processes(tmp_path):
    assert python(CACHE_PROBE, NUMBA_CACHE_DIR=str(tmp_path)).split() == ["0", "1"]
    assert python(CACHE_PROBE, NUMBA_CACHE_DIR=str(tmp_path)).split() == ["1", "0"]


def test_computes_where_nothing_can_be_cached():
    code = """
        import warnings, numpy as np
        from numba.core import caching
        caching.CacheImpl._locator_classes = []  # as in a read-only package and home
        import fastgar
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            X = np.arange(15, dtype=np.float32).reshape(5, 3)
            print(fastgar.median(X).tolist(), fastgar.krum(X, f=1).tolist())
        print(sum("NUMBA_CACHE_DIR" in str(one.message) for one in caught))
    """
    assert python(code).split("\n")[:2] == ["[6.0, 7.0, 8.0] [3.0, 4.0, 5.0]", "1"]


def test_computes_where_the_cache_is_damaged(tmp_path):
    """As after a crash or on a full disk: the files are cut, or cannot be replaced."""
    code = """
        import warnings, numpy as np, fastgar
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            print(fastgar.krum(np.arange(15, dtype=np.float32).reshape(5, 3), f=1).tolist())
        print(sum("NUMBA_CACHE_DIR" in str(one.message) for one in caught))
    """
    assert python(code, NUMBA_CACHE_DIR=str(tmp_path)).split("\n")[1] == "0"
    files = list(tmp_path.rglob("*.nb*"))
    assert files
    for path in files:
        path.write_bytes(path.read_bytes()[:40])
    assert python(code, NUMBA_CACHE_DIR=str(tmp_path)).split("\n")[:2] == ["[3.0, 4.0, 5.0]", "1"]
    full = """
        import errno
        from numba.core.caching import FunctionCache
        def refuse(self, signature, data):
            raise OSError(errno.ENOSPC, "No space left on device")
        FunctionCache.save_overload = refuse
    """
    elsewhere = str(tmp_path / "elsewhere")
    out = python(full + code, NUMBA_CACHE_DIR=elsewhere)
    assert out.split("\n")[:2] == ["[3.0, 4.0, 5.0]", "1"]


def test_a_changed_number_of_rows_does_not_compile_each_time():
    out = python(
        """
        import numpy as np, fastgar
        from fastgar.cpu.backend import _Tiers
        from fastgar.cpu.columns import FIXED
        X = np.random.default_rng(0).standard_normal((64, 100)).astype(np.float32)
        for n in range(5, 64):
            want = np.median(X[:n], axis=0)
            np.testing.assert_allclose(fastgar.median(X[:n]), want, rtol=1e-5, atol=1e-7)
        print(_Tiers.NUMBERS, len(FIXED._entries))
        for _ in range(3):
            fastgar.median(X[:9])
        print(len(FIXED._entries))
        """
    )
    assert out.split() == ["4", "4", "5"]


@pytest.mark.parametrize(
    ("environment", "threads"),
    [({"OMP_NUM_THREADS": "1"}, "1"), ({"NUMBA_NUM_THREADS": "1"}, "1")],
)
def test_default_threads_follow_the_environment(environment, threads):
    out = python("import fastgar; print(fastgar.get_threads())", **environment)
    assert out.strip() == threads


@pytest.mark.parametrize("threads", [0, -1, 1.5, True, "2"])
def test_set_threads_refuses_nonsense(threads):
    with pytest.raises((TypeError, ValueError), match="threads must be"):
        fastgar.set_threads(threads)
    assert fastgar.get_threads() >= 1


def test_ctrl_c_waits_for_the_helpers(monkeypatch):
    """A helper writes into the caller's memory: an interrupt must not free that memory first."""
    from fastgar.cpu import threads

    running, release, left = threading.Event(), threading.Event(), []

    def work(counter):
        if threading.current_thread() is threading.main_thread():
            running.wait(10)
            threading.Timer(0.2, release.set).start()
            raise KeyboardInterrupt
        running.set()
        release.wait(10)
        left.append("helper done")

    fastgar.set_threads(2)
    try:
        with pytest.raises(KeyboardInterrupt):
            threads.run(work, pieces=2)
    finally:
        fastgar.set_threads(None)
    assert left == ["helper done"]


@pytest.mark.skipif(platform.machine() != "x86_64", reason="names x86 instruction sets")
def test_narrower_vectors_give_the_same_results(tmp_path):
    """Machines without AVX-512 run with half the lanes and smaller blocks."""
    code = """
        import numpy as np, fastgar as fg
        from fastgar.cpu.vectors import BLOCK, lanes
        for dtype in (np.float32, np.float16):
            X = np.random.default_rng(0).standard_normal((11, 9001)).astype(dtype)
            W = np.random.default_rng(1).dirichlet(np.ones(11), 6)
            print(fg.median(X).tobytes().hex(), fg.trimmed_mean(X, 2).tobytes().hex())
            print(fg.combine(W, X).tobytes().hex(), fg.combine(W[0], X).tobytes().hex())
            print(fg.columns(X, "median", W=W).tobytes().hex())
            print(fg.krum(X, f=2).tobytes().hex())
            near = ((X[:, None].astype(float) - X) ** 2).sum(axis=2)
            print(np.allclose(fg.sqdist(X), near, rtol=1e-5))
        print(BLOCK, lanes("float32"))
    """
    *here, _ = python(code).splitlines()
    features = "sse sse2 sse3 ssse3 sse4.1 sse4.2 popcnt avx avx2 fma f16c bmi bmi2 64bit cx8 cmov"
    *there, vectors = python(
        code,
        NUMBA_CPU_NAME="haswell",
        NUMBA_CPU_FEATURES=",".join(f"+{name}" for name in features.split()),
        NUMBA_CACHE_DIR=str(tmp_path),
    ).splitlines()
    assert vectors == "3 8"
    assert there == here
    assert here.count("True") == 2
