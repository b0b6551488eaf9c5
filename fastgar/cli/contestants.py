"""What ``fastgar bench`` measures: rules, and what people use today, on the same tensors."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any
from unittest.mock import MagicMock

import fastgar as fg

if TYPE_CHECKING:
    import torch

__all__ = ["BASELINE", "RULES", "Contestant", "contestants", "with_byzfl"]

RULES = (
    "median", "trimmed_mean", "meamed", "phocas", "krum", "multi_krum", "mda", "nnm | krum",
    "geometric_median", "centered_clipping(tau=100.0)", "cge", "bulyan", "nnm | trimmed_mean",
)  # fmt: skip
BASELINE = "torch.mean"

# Each name in ByzFL beside the rule of ours that computes the same thing or its nearest relative.
BYZFL = {
    "Median": "median",
    "TrMean": "trimmed_mean",
    "Meamed": "meamed",
    "Krum": "krum",
    "NNM": "nnm",
    "GeometricMedian": "geometric_median",
}


@dataclass(frozen=True)
class Contestant:
    """Something to time.

    Attributes
    ----------
    name : str
    call : callable
        Takes an (n, d) tensor.
    reads : int
        Passes over the tensor that it needs at least.
    peer : str
        The rule of this package to compare with, "" for those rules themselves.
    """

    name: str
    call: Callable[[Any], Any]
    reads: int = 1
    peer: str = ""


def contestants(
    n: int, f: int, dtype: torch.dtype, rules: Sequence[str], *, byzfl: Any = None
) -> list[Contestant]:
    """Return who takes part with n rows; rules that need more rows are left out."""
    import numpy as np
    import torch

    found = [Contestant(BASELINE, lambda X: torch.mean(X, 0))]
    for name in rules:
        rule = fg.rule(name, f=f)
        if rule.check(n) is None:
            found.append(Contestant(name, rule, rule.reads))
    if dtype.itemsize >= 4:
        found.append(Contestant("torch.median", lambda X: torch.median(X, 0), peer="median"))
        found.append(Contestant("torch.cdist", lambda X: torch.cdist(X, X), peer="krum"))
        found.append(
            Contestant("numpy.median", lambda X: np.median(X.numpy(), axis=0), peer="median")
        )
    if byzfl is not None and dtype.itemsize >= 4:
        for theirs, ours in BYZFL.items():
            kind = getattr(byzfl, theirs)
            call = kind() if theirs in ("Median", "GeometricMedian") else kind(f=f)
            found.append(Contestant(f"ByzFL {theirs}", call, peer=ours))
    return found


def with_byzfl() -> Any:
    """Return the module byzfl, or None if it cannot be imported.

    It imports torchvision and seaborn at the top, for data sets and pictures. Where one is missing,
    an empty module stands in for it, in this process alone.
    """
    if find_spec("byzfl") is None:
        return None
    absent = [name for name in ("torchvision", "seaborn") if find_spec(name) is None]
    sys.modules.update({name: MagicMock() for name in absent})
    try:
        return import_module("byzfl")
    except ImportError as error:
        print(f"byzfl is installed but cannot be imported: {error}", file=sys.stderr)
        return None
    finally:
        for name in absent:
            sys.modules.pop(name, None)
