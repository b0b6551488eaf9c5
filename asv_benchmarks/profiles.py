"""The axes of the benchmarks, in a fast and a full profile, and the data that they work on."""

import os
from importlib.util import find_spec

import numpy as np

FULL = os.environ.get("FASTGAR_BENCH", "fast") == "full"

RULES = ["median", "trimmed_mean", "krum", "nnm | trimmed_mean"]
ROWS = [11]
COLUMNS = [1_000, 100_000]
DTYPES = ["float32"]
LIBRARIES = ["numpy", "torch"]
THREADS = [2]

if FULL:
    RULES += [
        "mean", "meamed", "phocas", "multi_krum", "bulyan", "mda", "cge", "geometric_median",
        "nnm | krum", "centered_clipping(tau=100.0)", "aksel", "caf", "dnc",
        "arc | nnm | geometric_median", "bucketing(s=2) | median",
    ]  # fmt: skip
    ROWS += [20, 51, 100]
    COLUMNS += [1_000_000]
    DTYPES += ["float64", "float16", "bfloat16"]
    THREADS += [1, 4]


def tolerated(n):
    """Return the f for n rows: 2 of 11, 4 of 20, 12 of 51, 24 of 100."""
    return n * 24 // 100


def rows(n, d, dtype, library):
    """Return n rows of d normal numbers, or skip the benchmark where that cannot be."""
    if find_spec(library) is None:
        raise NotImplementedError(f"{library} is not installed")
    draw = np.random.default_rng(0)
    X = draw.standard_normal((n, d), dtype=np.float32)
    if library == "numpy":
        if dtype == "bfloat16":
            raise NotImplementedError("numpy has no bfloat16")
        return X.astype(dtype)
    import torch

    return torch.from_numpy(X).to(getattr(torch, dtype))


def cores():
    """Return how many cores this process may run on."""
    return len(os.sched_getaffinity(0))
