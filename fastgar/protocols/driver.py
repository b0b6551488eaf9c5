"""What a node asks of the driver that moves it, and of who watches it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

from numpy.typing import NDArray

from .mailbox import Received, Want
from .seals import Keys

__all__ = ["Transport", "Watcher"]

Vector = NDArray[Any]


class Transport(Protocol):
    """What carries messages, and tells the time.

    Attributes
    ----------
    lossy : bool
        Whether what is posted may be lost, so that it is to be posted again.
    keys : Keys
        What the node signs with, where servers sign.
    """

    lossy: bool
    keys: Keys

    def now(self) -> float:
        """Return seconds on a clock that never jumps."""

    def post(self, node: Any, peer: str, kind: str, step: int, vector: Vector) -> None:
        """Send a vector at some time, as it is encoded; a newer one may replace it."""

    def ask(self, node: Any, peer: str, kind: str, step: int) -> None:
        """Ask a peer for its vectors of a kind from a step on."""

    def hello(self, node: Any) -> None:
        """Have every peer call `Node.greet`, and this node for every peer."""

    def windows_moved(self, node: Any, kind: str) -> None:
        """Hand over what was to come later."""

    def computes(self, node: Any) -> bool:
        """Say whether `Node.resume` will be called when a computation is over."""


class Watcher(Protocol):
    """Somebody who sees what happens, to check it or to show it."""

    def collected(self, node: Any, want: Want, received: Received, seconds: float) -> None: ...
    def late(self, node: Any, want: Want, lacking: Sequence[str]) -> None: ...
    def convicted(self, node: Any, name: str, step: int) -> None: ...
    def ended(self, node: Any) -> None: ...
