"""The folder that ``cluster`` and ``simulate`` write to."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .cluster_report import headline
from .refuse import Refused

if TYPE_CHECKING:
    from ..protocols.cluster import Cluster
    from ..protocols.results import Results

__all__ = ["draw", "open_results"]


def open_results(folder: Path, cluster: Cluster) -> Results:
    """Open the results of a folder, new or taken up; say so if other code began.

    Raises
    ------
    Refused
        If they are of something else, or cannot be written.
    """
    from ..protocols.results import Results

    try:
        results = Results(folder, cluster)
    except OSError as error:
        raise Refused(f"cannot write to --out {folder}: {error.strerror}") from error
    except ValueError as error:
        raise Refused(f"{error}: take another --out, or delete it") from error
    if not results.one_code:
        print(
            f"note: {folder} was begun by other code, and goes on with this: another --out has all "
            "of one code",
            file=sys.stderr,
        )
    return results


def draw(
    lines: Sequence[dict[str, Any]], cluster: Cluster, results: Results, command: str,
    seeds: Sequence[int],
) -> Path:  # fmt: skip
    """Draw what came of a cluster beside its results, and return where."""
    from ..protocols.plot import plot_run
    from ..train.origin import Origin

    # Results of several codes are of none: whoever asks is told that they are older than any.
    code: dict[str, str] | None = None if results.one_code else {}
    picture = results.path.with_name("cluster.png")
    plot_run(
        lines,
        cluster,
        picture,
        Origin(headline(cluster), command, tuple(seeds), code, cluster=True),
    )
    return picture
