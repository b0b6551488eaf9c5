"""One stage in a process of its own, as `gpu.py` starts it: see `gpu_process.py`."""

from __future__ import annotations

import faulthandler
import json
import os
import sys
from collections.abc import Callable, Sequence
from typing import Any

from .gpu_process import POISONED, Emit, Poisoned


def run(stage: str, options: dict[str, Any], emit: Callable[..., None]) -> None:
    """Run a stage to its end."""
    if stage == "environment":
        from . import gpu_environment

        gpu_environment.run(options, emit)
    elif stage == "correctness":
        from . import gpu_check

        gpu_check.run(options, emit)
    else:
        from . import gpu_figures

        gpu_figures.run(options, emit)


def main(arguments: Sequence[str]) -> int:
    """Run the stage of this name with these options in JSON."""
    stage, options = arguments
    emit = Emit()
    faulthandler.enable()
    try:
        run(stage, json.loads(options), emit)
    except Poisoned:
        sys.stderr.flush()
        os._exit(POISONED)  # at once: to clean up would be to wait for the GPU
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
