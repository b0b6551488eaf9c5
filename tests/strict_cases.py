"""The cases of rank_cases.py over the backend "strict", and more: python strict_cases.py FOLDER"""

from __future__ import annotations

import sys

import rank_cases

import fastgar.torch as fgt
from fastgar.testing import Watch
from fastgar.train import ranks

LEFT_OUT = {
    "traffic_does_not_grow_with_ranks": "counts what gloo writes to its sockets",
    "nobody_overwrites_what_a_slow_rank_reads": "is of shared memory",
    "memory_in_common_is_given_back_or_done_without": "is of shared memory",
    "nobody_waits_longer_than_the_timeout": "is of what gloo does at its timeout",
    "nobody_waits_longer_than_the_timeout_of_fsdp": "is of what gloo does at its timeout",
    "a_rank_that_dies_is_noticed": "is of how gloo notices that a process ends",
    "a_rank_that_dies_under_fsdp_is_noticed": "is of how gloo notices that a process ends",
}
CASES = {
    name: found for name, found in rank_cases.CASES.items()
    if found[1].__name__ not in LEFT_OUT
}  # fmt: skip
rank_cases.WAYS = ("sockets", "replicated")  # type: ignore[assignment]

if __name__ == "__main__":
    sys.exit(rank_cases.main(CASES, "strict", lambda: Watch(fgt, ranks)))
