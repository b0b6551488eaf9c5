"""Ranks over a backend that takes only what NCCL takes: the cases are in strict_cases.py."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")
if not (hasattr(os, "fork") and torch.distributed.is_available()):
    pytest.skip("needs fork and torch.distributed", allow_module_level=True)

sys.path.insert(0, str(Path(__file__).parent))

import rank_cases  # noqa: E402
import strict_cases  # noqa: E402


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[Any]]:
    """Run all cases; return for each what the ranks of its group wrote."""
    folder = tmp_path_factory.mktemp("ranks")
    return rank_cases.outcomes_of("strict_cases.py", folder, strict_cases.CASES)


@pytest.mark.parametrize("name", strict_cases.CASES)
def test_ranks(name: str, outcomes: dict[str, list[Any]]) -> None:
    rank_cases.require_passed(name, strict_cases.CASES[name][0], outcomes.get(name, []))


def test_what_is_left_out_is_there() -> None:
    functions = {function.__name__ for _, function in rank_cases.CASES.values()}
    assert set(strict_cases.LEFT_OUT) <= functions
    assert set(rank_cases.CASES) >= strict_cases.TOO_LONG


def test_the_backend_is_known_once_it_is_imported() -> None:
    code = """
import torch, fastgar as fg
from fastgar.testing import BACKEND, Watch
assert torch.distributed.Backend(BACKEND) == "strict"
make = torch.from_numpy
with Watch(fg), Watch("somewhere.py"):
    assert torch.from_numpy is not make
assert torch.from_numpy is make
"""
    subprocess.run([sys.executable, "-c", code], check=True)
