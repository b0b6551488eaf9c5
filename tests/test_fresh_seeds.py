"""Properties under drawn faults: seeds that nobody has run, for a minute of CPU.

A failure prints its seed: `fastgar.protocols.scenario.survive` runs it again.
"""

from __future__ import annotations

import os
import random
import time

import pytest

from fastgar.protocols.registry import PROTOCOLS
from fastgar.protocols.scenario import survive

SECONDS = float(os.environ.get("FASTGAR_SCENARIO_SECONDS", "60"))
PARTS = 60  # many, as files of many tests come first
spent = 0.0


@pytest.mark.parametrize("part", range(PARTS))
def test_properties_hold_under_fresh_faults(part: int) -> None:
    global spent
    draw = random.SystemRandom()
    while spent < SECONDS * (part + 1) / PARTS:
        seed, began = draw.randrange(1 << 40), time.process_time()
        protocol = draw.choice(["byzsgd"] * 2 + list(PROTOCOLS))
        print(f"survive({seed}, protocol={protocol!r})")
        survive(seed, protocol=protocol)
        spent += time.process_time() - began
