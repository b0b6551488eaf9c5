"""Benchmarks for asv: time, peak memory, import time, first-call time.

    asv check                                     imports every benchmark
    asv machine --yes                             once: asv wants to know the machine
    asv run --quick --python=same                 fast profile, one sample of each
    FASTGAR_BENCH=full asv run --python=same      every rule, size, dtype and library

They run from a checkout in the environment of the caller (see asv.conf.json): the package need not
be installed, its dependencies and the extra `bench` must be.
"""

import sys
from importlib.util import find_spec
from pathlib import Path

if find_spec("fastgar") is None:
    sys.path.insert(0, str(Path(__file__).parent.parent))
