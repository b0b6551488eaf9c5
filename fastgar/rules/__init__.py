"""Every rule, one short module per family, and how to add one's own (see `registry`)."""

from __future__ import annotations

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
from .krum import bulyan, krum, multi_krum
from .mixing import bucketing, nnm
from .norms import arc, cge, clip
from .registry import (
    PublicRule,
    column_rule,
    distance_rule,
    forget,
    lookup,
    mixing_rule,
    registered,
)
from .spec import Spec
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

# Where doctest finds the examples: the public functions are made by a decorator elsewhere.
__test__ = {rule.__name__: rule.__doc__ for rule in RULES}
