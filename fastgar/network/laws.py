"""How a simulated network behaves: latency, bandwidth, loss, and how long work takes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

import numpy as np

from ..errors import shown, unknown

__all__ = ["Draws", "Laws"]


@dataclass(frozen=True)
class Laws:
    """The laws of a simulated network.

    Attributes
    ----------
    latency : float
        The median of the seconds that a message takes, besides its transfer.
    jitter : float
        The deviation of the latency's logarithm: 0 is a constant latency, .5 varies by a half.
    bandwidth : float
        Bytes a second that a node can send.
    loss, duplicate : float
        Shares of the messages that are lost, and that come twice.
    compute : float
        The median of the seconds that a gradient takes; it has half the jitter.
    skew : float
        By how much the clocks of nodes run fast or slow, at most: .01 is a percent.
    """

    latency: float = 0.01
    jitter: float = 0.5
    bandwidth: float = 1e9
    loss: float = 0.0
    duplicate: float = 0.0
    compute: float = 0.01
    skew: float = 0.0

    def __post_init__(self) -> None:
        for name, low, high in (
            ("latency", 0, 1e6), ("jitter", 0, 5), ("bandwidth", 1, 1e18), ("loss", 0, 0.9),
            ("duplicate", 0, 1), ("compute", 0, 1e6), ("skew", 0, 0.5),
        ):  # fmt: skip
            value = getattr(self, name)
            if type(value) not in (int, float) or not low <= value <= high:
                raise ValueError(
                    f"{name} must lie between {low:g} and {high:g}, got {shown(value)}"
                )

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> Laws:
        """Return the laws of these names, the others at their defaults."""
        names = [field.name for field in fields(cls)]
        for name in values:
            if name not in names:
                raise unknown("setting of [simulated]", name, names)
        return cls(**values)


class Draws:
    """Random numbers, drawn many at a time.

    Parameters
    ----------
    seed : int
    """

    MANY = 4096

    def __init__(self, seed: int) -> None:
        self._draw = np.random.Generator(np.random.Philox(seed))
        self._normal: list[float] = []
        self._uniform: list[float] = []

    def lognormal(self, median: float, deviation: float) -> float:
        """Return a number of this median, whose logarithm has this deviation."""
        if not self._normal:
            self._normal = np.exp(self._draw.standard_normal(self.MANY)).tolist()
        return float(median * self._normal.pop() ** deviation)

    def uniform(self) -> float:
        """Return a number between 0 and 1."""
        if not self._uniform:
            self._uniform = self._draw.random(self.MANY).tolist()
        return self._uniform.pop()
