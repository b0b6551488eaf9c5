"""Properties under drawn faults: the same seeds each time, for about a minute, each a test.

They are a file of their own, as those of `test_fresh_seeds.py` are: so each takes its minute in
another process, and early, as files of many tests come first.
"""

from __future__ import annotations

import pytest

from fastgar.protocols.registry import PROTOCOLS
from fastgar.protocols.scenario import survive


@pytest.mark.parametrize("agreement", ["dmc", "rbtm"])
@pytest.mark.parametrize("seed", range(90))
def test_properties_hold_under_drawn_faults(seed: int, agreement: str) -> None:
    survive(seed, agreement=agreement)


@pytest.mark.parametrize("protocol", [name for name in PROTOCOLS if name != "byzsgd"])
@pytest.mark.parametrize("seed", range(110))
def test_properties_hold_for_the_other_protocols(seed: int, protocol: str) -> None:
    survive(seed, protocol=protocol)


def test_two_disks_are_lost_and_all_others_killed() -> None:
    """Four of eight servers are ahead then, and two of the others fall silent for good."""
    survive(6341)
