"""Every rule, one short module per family, and how to add one's own (see `decorators`)."""

from __future__ import annotations

from ..registry import lookup, registered, remove
from ..spec import Spec
from .centres import centered_clipping, geometric_median, rfa
from .columns import (
    condense,
    meamed,
    mean,
    median,
    nan_mean,
    phocas,
    sign_majority,
    trimmed_mean,
)
from .decorators import PublicRule, column_rule, configured, distance_rule, mixing_rule
from .krum import bulyan, krum, multi_krum
from .mixing import bucketing, nnm
from .norms import arc, cge, clip
from .spectral import caf, dnc
from .subsets import mda, mva, smea
from .trust import aksel, fltrust, monna

RULES: tuple[PublicRule, ...] = (
    mean, nan_mean, median, trimmed_mean, meamed, phocas, condense, sign_majority,
    krum, multi_krum, bulyan, mda, mva, smea, geometric_median, rfa, centered_clipping,
    cge, aksel, monna, caf, fltrust, dnc, nnm, bucketing, clip, arc,
)  # fmt: skip

__all__ = [
    "PublicRule", "RULES", "Spec", "aksel", "arc", "bucketing", "bulyan", "caf",
    "centered_clipping", "cge", "clip", "column_rule", "condense", "distance_rule", "dnc",
    "fltrust", "forget", "geometric_median", "krum", "lookup", "mda", "mean", "meamed", "median",
    "mixing_rule", "monna", "multi_krum", "mva", "nan_mean", "nnm", "phocas", "registered", "rfa",
    "sign_majority", "smea", "trimmed_mean",
]  # fmt: skip


def forget(name: str) -> None:
    """Take a rule out of the registry (a notebook cell that defines one can then run again)."""
    if any(lookup(name) is rule.spec for rule in RULES):
        raise ValueError(f"{name} is one of fastgar's own rules, which stay")
    remove(name)
    configured.cache_clear()


# Where doctest finds the examples: the public functions are made by a decorator elsewhere.
__test__ = {rule.__name__: rule.__doc__ for rule in RULES}
