"""Robust aggregation of gradients and models, at the speed of averaging.

>>> X = np.array([[2.0, 2.0], [3.0, 1.0], [1.0, 3.0], [np.inf, -1e9], [2.0, 4.0]])
>>> fg.krum(X, f=1)  # a rule: rows in, one row out, whatever one of the rows holds
array([2., 2.])
>>> fg.rule("nnm | trimmed_mean", f=1)(X)  # a pipeline: mixing steps, then a rule
array([2. , 2.5])
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

from . import rules
from .api import columns, combine, sqdist
from .bounds import kappa, list_rules, max_f, min_n, variance_ratio
from .cpu.threads import get_threads, set_threads
from .errors import SearchLimit, TooManyFaults, nearest
from .pipeline import Rule, rule
from .report import Report, inspect
from .rules import (
    aksel,
    arc,
    bucketing,
    bulyan,
    caf,
    centered_clipping,
    cge,
    clip,
    condense,
    dnc,
    fltrust,
    geometric_median,
    krum,
    mda,
    meamed,
    mean,
    median,
    monna,
    multi_krum,
    mva,
    nan_mean,
    nnm,
    phocas,
    rfa,
    sign_majority,
    smea,
    trimmed_mean,
)
from .statistic import CHUNK
from .streaming import Streaming

__version__ = "0.1.0"

LATER = ("attacks", "protocols", "testing", "torch", "train")


def __getattr__(name: str) -> Any:
    """Import what is imported when it is first asked for."""
    if name in LATER:
        return import_module(f"fastgar.{name}")
    close = None if name.startswith("_") else nearest(name, (*__all__, *LATER))
    hint = "" if close is None else f": did you mean {close!r}?"
    raise AttributeError(f"module 'fastgar' has no attribute {name!r}{hint}")


__all__ = [
    "CHUNK", "Report", "Rule", "SearchLimit", "Streaming", "TooManyFaults", "aksel", "arc",
    "bucketing", "bulyan", "caf", "centered_clipping", "cge", "clip", "columns", "combine",
    "condense", "dnc", "fltrust", "geometric_median", "get_threads", "inspect", "kappa", "krum",
    "list_rules", "max_f", "mda", "mean", "meamed", "median", "min_n", "monna", "multi_krum",
    "mva", "nan_mean", "nnm", "phocas", "rfa", "rule", "rules", "set_threads", "sign_majority",
    "smea", "sqdist", "trimmed_mean", "variance_ratio",
]  # fmt: skip
