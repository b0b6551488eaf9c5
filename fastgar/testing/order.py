"""Whether all ranks of a group call the same collectives in the same order.

NCCL matches them by their order alone: where ranks differ, it hangs or mixes up what they send.
Here each rank looks up what the first to get there has called, and tells those that wait already.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from .frames import complain

__all__ = ["Order"]

BROKEN = "broken"


class Order:
    """The collectives that this rank has called in a group.

    Parameters
    ----------
    store : Store
        Of the group alone.
    rank : int
        Of this process in the group.
    """

    def __init__(self, store: Any, rank: int) -> None:
        self.store, self.rank, self.count = store, rank, 0

    def next(
        self, op: str, where: str, *, size: int | None = None, root: int | None = None,
        sizes: tuple[Sequence[int], Sequence[int]] | None = None,
    ) -> None:  # fmt: skip
        """Compare the next collective of this rank with that of the rank that came first.

        `size` are the bytes that all ranks must agree on; `sizes` those that this one sends to each
        rank and receives from it, where each pair of ranks must agree.
        """
        key, self.count = f"call/{self.count}", self.count + 1
        mine = {"rank": self.rank, "op": op, "size": size, "root": root, "sizes": sizes}
        text = json.dumps({**mine, "where": where})
        first = json.loads(self.store.compare_set(key, "", text))
        theirs = first["rank"]
        same = all(first[name] == mine[name] for name in ("op", "size", "root"))
        if same and sizes is not None:
            (sent, received), (their_sent, their_received) = sizes, first["sizes"]
            same = sent[theirs] == their_received[self.rank]
            same = same and received[theirs] == their_sent[self.rank]
        if not same:
            words = (
                f"as collective {self.count} of their group {_said(json.loads(text))}, and "
                f"{_said(first)}: NCCL would hang, or mix them up"
            )
            self.store.set(BROKEN, words)
            complain(words)

    def differing(self) -> None:
        """Complain if another rank has found out that ranks differ."""
        if self.store.check([BROKEN]):
            complain(f"another rank found: {self.store.get(BROKEN).decode()}")


def _said(call: dict[str, Any]) -> str:
    words = f"rank {call['rank']} calls {call['op']}"
    if call["size"] is not None:
        words += f" of {call['size']} bytes"
    if call["sizes"] is not None:
        sent, received = map(sum, call["sizes"])
        words += f" of {sent} bytes to and {received} bytes from the ranks"
    if call["root"] is not None:
        words += f" from {call['root']}"
    return f"{words} at {call['where']}"
