"""Learning in which no machine is trusted (extra `train`; `cluster` to make keys).

`simulate` runs a cluster on a simulated network. `cluster_of` and `read_cluster` make the cluster
of tables or of a file. A protocol is a `Text`: two coroutines, and the `Kind` of each message.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ..later import later

if TYPE_CHECKING:
    from .cluster import Address, Cluster, Group
    from .file import cluster_of, read_cluster
    from .mailbox import Want
    from .outcome import Outcome
    from .properties import Broken
    from .registry import PROTOCOLS
    from .text import Kind, Text
    from .virtual import simulate

__all__ = [
    "PROTOCOLS", "Address", "Broken", "Cluster", "Group", "Kind", "Outcome", "Text", "Want",
    "cluster_of", "read_cluster", "simulate",
]  # fmt: skip

LATER = {  # where to find what needs torch: `import fastgar` must not import it
    "PROTOCOLS": "registry", "Address": "cluster", "Broken": "properties", "Cluster": "cluster",
    "Group": "cluster", "Kind": "text", "Outcome": "outcome", "Text": "text", "Want": "mailbox",
    "cluster_of": "file", "read_cluster": "file", "simulate": "virtual",
}  # fmt: skip


def __getattr__(name: str) -> Any:
    """Import what is imported when it is first asked for."""
    return later(__name__, name, LATER, extra="train")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
