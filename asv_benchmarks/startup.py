"""Import time and the time of first calls, each in a process of its own."""

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import fastgar

from .profiles import FULL, tolerated

CALL = """
import numpy as np, numba, time
import fastgar as fg
X = np.random.default_rng(0).standard_normal(({n}, 1000), dtype=np.float32)
rule = fg.rule({rule!r}, f={f})
began = time.perf_counter()
rule(X)
print(time.perf_counter() - began)
for _ in range({more}):
    rule(X)
"""
IMPORT = """
import time
began = time.perf_counter()
import fastgar
print(time.perf_counter() - began)
"""


def run(code, **environment):
    """Run code in a new process; return the seconds that it prints."""
    path = str(Path(fastgar.__file__).parent.parent)
    environment = {**os.environ, "PYTHONPATH": path, **environment}
    printed = subprocess.check_output([sys.executable, "-c", code], env=environment, text=True)
    return float(printed)


class Import:
    def track_import(self):
        return min(run(IMPORT) for _ in range(3))

    track_import.unit = "s"


class FirstCall:
    """The first call of a process, Numba's own import aside: cold, and with its cache on disk."""

    param_names = ["rule", "n"]
    params = [["median", "krum", "nnm | trimmed_mean"], [11]]
    if FULL:
        params[0] += ["geometric_median", "mva"]
        params[1] += [20, 51, 64, 100]
    timeout = 300

    def setup(self, rule, n):
        once = {"rule": rule, "n": n, "f": tolerated(n)}
        self.code, self.often = CALL.format(**once, more=0), CALL.format(**once, more=50)

    def track_cold(self, rule, n):
        with tempfile.TemporaryDirectory() as cache:
            return run(self.code, NUMBA_CACHE_DIR=cache)

    def track_warm(self, rule, n):
        with tempfile.TemporaryDirectory() as cache:
            run(self.often, NUMBA_CACHE_DIR=cache)  # what is called often is compiled in the end
            return min(run(self.code, NUMBA_CACHE_DIR=cache) for _ in range(3))

    track_cold.unit = track_warm.unit = "s"
