"""How many threads torch has for a step."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from .config import Config

__all__ = ["SMALL", "threads_for"]

# Products of fewer numbers are too small to share: a thread that waits for its next part spins, and
# where something else wants its core that costs 2 to 40 times what a single thread takes.
SMALL = 100_000_000


@contextmanager
def threads_for(parameters: int, config: Config) -> Iterator[None]:
    """Leave torch one thread inside the block if steps are small, else those that it has.

    However a run is started, its steps are taken in such a block, one by one: whoever started it
    has its own setting back after each.
    """
    samples = config.workers * config.batch * config.local_steps
    before = torch.get_num_threads()
    if samples * parameters < SMALL:
        torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
