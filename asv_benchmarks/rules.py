"""Time and peak memory of rules on data that are there already."""

import fastgar as fg

from .profiles import (
    COLUMNS,
    DTYPES,
    FULL,
    LIBRARIES,
    ROWS,
    RULES,
    THREADS,
    cores,
    rows,
    tolerated,
)


class Rules:
    """One call, result allocation included, compiled before."""

    param_names = ["rule", "n", "d", "dtype", "library", "threads"]
    params = [RULES, ROWS, COLUMNS, DTYPES, LIBRARIES, THREADS]
    timeout = 600

    def setup(self, rule, n, d, dtype, library, threads):
        if threads > cores():
            raise NotImplementedError(f"{threads} threads on {cores()} cores")
        self.rule = fg.rule(rule, f=tolerated(n))
        if self.rule.check(n) is not None:
            raise NotImplementedError(self.rule.check(n))
        self.X = rows(n, d, dtype, library)
        fg.set_threads(threads)
        self.rule(self.X)

    def teardown(self, *parameters):
        fg.set_threads(None)

    def time_rule(self, *parameters):
        self.rule(self.X)


class Memory:
    """Peak memory of a process that holds the input and calls a rule once."""

    param_names = ["rule", "n", "d"]
    params = [["mean", "median", "krum", "nnm | trimmed_mean"], [20], [1_000_000]]
    if FULL:
        params[2] += [10_000_000]

    def setup(self, rule, n, d):
        self.rule = fg.rule(rule, f=tolerated(n))
        self.rule(rows(n, 1_000, "float32", "numpy"))
        self.X = rows(n, d, "float32", "numpy")

    def peakmem_input(self, rule, n, d):
        pass

    def peakmem_rule(self, rule, n, d):
        self.rule(self.X)


class Averaging:
    """What plain averaging costs on the same data: the mark to compare with."""

    param_names = ["n", "d", "library"]
    params = [ROWS, COLUMNS, LIBRARIES]

    def setup(self, n, d, library):
        self.X = rows(n, d, "float32", library)

    def time_mean(self, n, d, library):
        self.X.mean(0)
