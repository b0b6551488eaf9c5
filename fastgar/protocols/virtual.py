"""A run on the simulated network, from Python."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from torch import nn

from ..train.data import Data
from ..train.threads import threads_for
from .cluster import Cluster
from .file import cluster_of, read_cluster
from .learning import Learning
from .lies import lie_of, work_of
from .outcome import Outcome
from .perturb import killed_for_good
from .properties import Properties
from .record import Record
from .simulated import Simulation

__all__ = ["simulate"]

Source = Cluster | Mapping[str, Any] | str | Path


def simulate(
    cluster: Source,
    seed: int = 0,
    *,
    model: nn.Module | None = None,
    data: Data | None = None,
    check: bool = True,
    write: Callable[[dict[str, Any]], None] = lambda line: None,
) -> Outcome:
    """Run a cluster on the simulated network.

    Parameters
    ----------
    cluster : Cluster, mapping, or path of a cluster file
        A mapping holds the tables of a file: ``{"servers": {"count": 5, "f": 1}, ...}``.
    seed : int
        Of the network: latencies, losses, clocks. What is learned has the seed of the training.
    model : nn.Module, optional
    data : fastgar.train.Data, optional
        Instead of those that the cluster names.
    check : bool
        Whether the properties of `fastgar.protocols.properties` are checked at every event.
    write : callable
        Takes each evaluation as it comes.

    Returns
    -------
    Outcome

    Raises
    ------
    Broken
        If a property does not hold, or a correct node does not end: as it is with more faults than
        the cluster says that it survives.
    TypeError, ValueError
        If something cannot be right; before any work.

    Notes
    -----
    The same cluster and seed give the same bytes.

    Examples
    --------
    >>> outcome = simulate({
    ...     "training": {"model": "logistic", "steps": 20, "lr": 0.2},
    ...     "servers": {"count": 5, "f": 1, "byzantine": 1, "attack": "reverse"},
    ...     "workers": {"count": 4, "f": 1, "byzantine": 1, "attack": "empire"},
    ... })
    >>> outcome.lowest > 0.7
    True
    """
    cluster = as_cluster(cluster)
    learning = Learning(cluster.training, model, data)
    cluster = cluster.fitted(len(learning.initial))
    record = Record(cluster, learning, write)
    watcher = Properties(cluster, record) if check else record
    lies = {name: lie_of(cluster, name) for name in cluster.names}
    simulation = Simulation(cluster, seed, work_of(cluster, learning), watcher, lies.__getitem__)
    gone = killed_for_good(cluster.perturb, cluster.names)

    def finished() -> bool:
        dead = gone - simulation.nodes.keys()
        return all(
            name in record.ended_nodes or name in dead
            for name in cluster.names
            if name not in cluster.liars
        )

    with threads_for(len(learning.initial), cluster.training):
        ended = simulation.run(finished)
    if not ended and isinstance(watcher, Properties):
        raise watcher.unfinished(simulation.nodes, gone)
    dead = gone - simulation.nodes.keys()
    record.finish()
    honest = sum(record.used.values()) and max(record.used.values())
    return Outcome(
        cluster,
        seed,
        {name: found for name, found in record.accuracy.items() if name not in dead},
        record.spread,
        simulation.messages,
        simulation.bytes,
        simulation.now,
        True,
        {"lost": simulation.lost, "skipped": simulation.skipped},
        simulation.crashes,
        dict(record.waited_for),
        {name: record.used[name] / honest for name in cluster.of_role("worker")} if honest else {},
        dict(record.not_finite),
        dict(record.convictions),
        record.lines,
    )


def as_cluster(source: Source) -> Cluster:
    """Return the cluster that a file or a mapping describes."""
    if isinstance(source, Cluster):
        return source
    return cluster_of(source) if isinstance(source, Mapping) else read_cluster(Path(source))
