"""What holds whatever f rows hold: what rules declare, and that it is so."""

from __future__ import annotations

import pytest

import fastgar as fg


@pytest.mark.parametrize(
    ("spec", "guarantee"),
    [
        ("krum", "(f, kappa)"),
        ("centered_clipping(tau=1.0)", "bounded"),
        ("cge", "bounded"),
        ("monna", "trusted"),
        ("condense", "trusted"),
        ("condense(p=1.0)", "(f, kappa)"),
        ("mean", "none"),
        ("nnm | krum", "(f, kappa)"),
        ("arc | nnm | median", "(f, kappa)"),
        ("bucketing(s=2) | krum", "(f, kappa)"),
        ("clip(c=1.0) | krum", "bounded"),
        ("nnm | cge", "bounded"),
        ("nnm | monna", "trusted"),
        ("clip(c=1.0) | fltrust", "trusted"),
        ("nnm | mean", "none"),
        ("nnm", "(f, kappa)"),
    ],
)
def test_a_pipeline_is_as_good_as_its_weakest_stage(spec: str, guarantee: str) -> None:
    assert fg.rule(spec, f=2).guarantee == guarantee
