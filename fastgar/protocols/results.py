"""The folder of a run of a cluster, or of many seeds of it on the simulated network.

================= ==============================================================================
``cluster.toml``  the cluster; its first line says which code began
``results.jsonl`` evaluations, spreads, traffic and a summary at the end, a line each as they
                  come; of processes also what was counted so far, for who goes on
================= ==============================================================================
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ..train.lines import (
    Kinds,
    Lines,
    Mismatch,
    is_number,
    is_table,
    is_text,
    is_whole,
    or_none,
    records,
    write_whole,
)
from ..train.sources import digest, sources
from .cluster import Cluster
from .file import hash_of, read_cluster, to_toml

__all__ = ["Mismatch", "Results"]

CLUSTER, RESULTS = "cluster.toml", "results.jsonl"


def is_texts(value: Any) -> bool:
    return isinstance(value, list) and all(map(is_text, value))


KINDS: Kinds = {  # of many seeds
    "evaluation": {"seed": is_whole, "step": is_whole},
    "spread": {"seed": is_whole, "step": is_whole},
    "traffic": {"seed": is_whole, "step": is_whole},
    "summary": {"seed": is_whole, "accuracy": is_table, "virtual_seconds": is_number},
}


TABLES = ("waited_for", "not_finite", "convicted")
OF_PROCESSES: Kinds = {
    "evaluation": {"node": is_text, "step": is_whole, "accuracy": or_none(is_number)},
    "spread": {"step": is_whole, "spread": or_none(is_number)},
    "convicted": {"node": is_text, "step": is_whole},
    "so_far": {
        **dict.fromkeys(("parts", "crashed", "messages", "bytes", "skipped"), is_whole),
        **dict.fromkeys((*TABLES, "used", "traffic"), is_table),
        "seconds": is_number,
        "killed": is_texts,
        "perturbed": is_texts,
    },
    "summary": {
        **dict.fromkeys(("seed", "messages", "bytes", "crashed", "taken_up"), is_whole),
        **dict.fromkeys((*TABLES, "accuracy", "dropped", "shares"), is_table),
        "seconds": is_number,
        "spread": or_none(is_number),
    },
}


class Results(Lines):
    """The open results of a cluster, in a folder that is made, or taken up.

    Parameters
    ----------
    folder : Path
    cluster : Cluster

    Attributes
    ----------
    one_code : bool
        Whether all that is there was made by the code that runs now.

    Raises
    ------
    Mismatch
        If the folder holds results of something else.
    ValueError
        If its cluster file cannot be read.
    OSError
        If it cannot be written.
    """

    def __init__(self, folder: Path, cluster: Cluster) -> None:
        self.one_code = _take_up(folder, cluster)
        super().__init__(folder / RESULTS)
        self._content = self.mend()

    def of_processes(self) -> list[dict[str, Any]]:
        """Return the lines of a run as processes that were there; what is damaged is passed over.

        Without its traffic, which is written at its end alone.
        """
        return records(self._content, self.path, OF_PROCESSES, skip=True)

    def of_seeds(self) -> list[dict[str, Any]]:
        """Return the lines of seeds that were there; what is damaged of them can be run again."""
        return records(self._content, self.path, KINDS, skip=True)


def _take_up(folder: Path, cluster: Cluster) -> bool:
    """Make a folder, or make sure that it is of this cluster; return whether this code began."""
    folder.mkdir(parents=True, exist_ok=True)
    path, begun = folder / CLUSTER, (folder / RESULTS).exists()
    if begun and not path.exists():
        raise Mismatch(f"{folder} has {RESULTS} but no {CLUSTER}")
    if path.exists() and hash_of(read_cluster(path)) != hash_of(cluster):
        raise Mismatch(f"{folder} holds another run")
    code = json.dumps(sources(drawing=False, cluster=True)).encode()
    first = f"# begun by code {digest(code)[:10]}\n"
    if not begun:
        write_whole(path, f"{first}{to_toml(cluster)}".encode())
    return path.read_text().startswith(first)
