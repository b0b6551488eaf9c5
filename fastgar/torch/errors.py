"""The error that all ranks raise alike when too many of them are faulty."""

from __future__ import annotations

from collections.abc import Sequence

from fastgar.errors import TooManyFaults

__all__ = ["TooManyFaultyRanks"]


class TooManyFaultyRanks(TooManyFaults):
    """More ranks sent NaN or infinity than the rule was asked to survive.

    Every rank of the group raises it at the same step.

    Attributes
    ----------
    ranks : tuple of int
        The faulty ranks, by their numbers in the whole job.
    rows : tuple of int
        Their positions in the process group.
    f : int
        How many the rule tolerates.
    """

    def __init__(self, ranks: Sequence[int], f: int, rows: Sequence[int] | None = None) -> None:
        super().__init__(ranks if rows is None else rows, f)
        self.ranks = tuple(int(rank) for rank in ranks)
        listed = ", ".join(map(str, self.ranks[:20])) + (", ..." if len(self.ranks) > 20 else "")
        plural = "" if len(self.ranks) == 1 else "s"
        self.args = (
            f"{len(self.ranks)} rank{plural} sent NaN or infinity (rank{plural} {listed}) but the "
            f"rule tolerates f = {f}",
        )

    def __reduce__(self) -> tuple[type[TooManyFaultyRanks], tuple[object, ...]]:  # type: ignore[override]
        return type(self), (self.ranks, self.f, self.rows)
