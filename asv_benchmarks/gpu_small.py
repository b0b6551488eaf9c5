"""A small run of every kernel on a GPU, for compute-sanitizer: see `gpu.py`.

Each array is an allocation of its own, without a pool, so that one number too far is seen. CuPy's
arrays are used, since torch would take a minute to load under the sanitizer.

    compute-sanitizer --tool memcheck python -m asv_benchmarks.gpu_small
"""

from __future__ import annotations

from typing import Any

import numpy as np

import fastgar as fg

SHAPES = ((11, 1003), (1, 40), (40, 517), (140, 70))
RULES = [
    "mean", "median", "trimmed_mean", "meamed", "nan_mean", "sign_majority", "condense", "krum",
    "multi_krum", "bulyan", "bulyan(variant='epfl')", "nnm | median", "bucketing(s=2) | median",
    "cge", "geometric_median",
]  # fmt: skip
FEW = ["median", "multi_krum", "nnm | median"]  # for other dtypes
SOME = [*FEW, "trimmed_mean", "mean", "bulyan"]  # for other numbers of rows


def cases() -> list[tuple[str, str, int, int, bool]]:
    """Return what is run: rule, dtype, rows, columns, and whether rows are a list."""
    found = [(spec, "float32", *SHAPES[0], False) for spec in RULES]
    found += [(spec, "float32", n, d, d == 517) for n, d in SHAPES[1:] for spec in SOME]
    found += [(s, k, *SHAPES[0], k == "float16") for s in FEW for k in ("float64", "float16")]
    return [case for case in found if fg.rule(case[0], tolerated(case[2])).check(case[2]) is None]


def tolerated(n: int) -> int:
    """Return the f for n rows."""
    return max(0, (n - 3) // 4)


def run(to_gpu: Any, to_host: Any) -> int:
    """Compare every case with the CPU; return how many there were."""
    for spec, dtype, n, d, as_list in cases():
        X = np.random.default_rng(n).standard_normal((n, d)).astype(dtype)
        if n > 4:
            X[2, 5], X[3] = np.nan, X[4]
        f = tolerated(n)
        rows = [to_gpu(row) for row in X] if as_list else to_gpu(X)
        got = np.asarray(to_host(fg.rule(spec, f).at(1)(rows)), np.float64)
        want = np.asarray(fg.rule(spec, f).at(1)(X), np.float64)
        np.testing.assert_allclose(got, want, rtol=1e-3, atol=1e-5, err_msg=f"{spec} {dtype} {n}")
    return len(cases())


def main() -> None:
    """Run on CuPy's arrays, each an allocation of its own."""
    import cupy

    cupy.cuda.set_allocator(None)
    print(f"{run(cupy.asarray, cupy.asnumpy)} cases agree with the CPU", flush=True)


if __name__ == "__main__":
    main()
