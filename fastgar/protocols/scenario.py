"""Clusters and faults drawn from a seed, on a problem that costs nothing, to find what breaks.

Sizes, quorums, latency, loss, duplication, partitions that heal, crashes and restarts, disks that
are lost, pauses, clocks, what liars send and to whom: one number stands for all of it.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..statistic import hash_key
from ..train.config import Config
from .cluster import TWINS, Cluster, Group
from .lies import SERVER_ATTACKS, resealed
from .node import Node
from .properties import Broken, Properties
from .record import Record
from .registry import PROTOCOLS
from .scheming import scheme
from .simulated import Simulation

__all__ = ["Quadratic", "drawn", "survive", "told"]

Vector = NDArray[Any]

LONGER = 50  # times as long as a model of six numbers is what goes with signatures
LIMIT = 2_000.0  # virtual seconds; a step takes about one, and the last fault is over by 300


class Quadratic:
    """Each worker pulls the model to a point of its own; `accuracy` is the distance to their mean.

    Parameters
    ----------
    cluster : Cluster
    d : int
        Numbers of the model.
    """

    def __init__(self, cluster: Cluster, d: int = 6) -> None:
        self.cluster, seed = cluster, cluster.training.seed
        draw = np.random.default_rng(seed)
        self.initial: Vector = draw.standard_normal(d, np.float32) * np.float32(4)
        self.points: Vector = draw.standard_normal((cluster.workers.count, d), np.float32)

    def __call__(self, node: Node, step: int, model: Vector) -> Vector:
        """Return a worker's gradient: it depends on worker, step and model alone."""
        worker = self.cluster.of_role("worker").index(node.name)
        noise = hash_key(hash_key(self.cluster.training.seed, step), worker) >> 11
        found: Vector = model - self.points[worker] * np.float32(0.5 + noise * 2.0**-53)
        return found

    def accuracy(self, model: Vector) -> float:
        """Return how far a model is from the mean of the points."""
        return float(np.linalg.norm(model - self.points.mean(axis=0)))


def _garbage(node: Node, kind: str, step: int, vector: Vector, peer: str) -> Vector:
    worst = np.array([np.nan, np.inf, -np.inf, 3e38, -3e38, 1e30], np.float32)
    return np.resize(worst, len(vector))


def _far(node: Node, kind: str, step: int, vector: Vector, peer: str) -> Vector:
    return np.full_like(vector, (-1) ** len(peer) * 1e6)


def _flood(node: Node, kind: str, step: int, vector: Vector, peer: str) -> Vector:
    """Send for other steps, too: long gone, far ahead, and twice for this one."""
    for other in (step - 3, step, step + 1, step + 2, step + 1_000_000):
        if other >= 0:
            node.post(peer, kind, other, vector + np.float32(other))
    node.transport.ask(node, peer, kind, 0)
    return vector


LIES = {**SERVER_ATTACKS, "garbage": _garbage, "far": _far, "flood": _flood}
HALVES, TWINNED = 0.25, 0.15  # shares of the clusters: on a wire of bfloat16, with twins


SCHEMES = {**LIES, "scheme": scheme}
WHOLLY = ("far", "flood", "garbage", "random", "scheme")  # of all messages, not of models alone


def told(lie: str) -> Any:
    """Return what a liar makes of what it sends."""
    return SCHEMES[lie] if lie in WHOLLY else resealed(SCHEMES[lie])


def drawn(
    seed: int, *, steps: int = 20, protocol: str = "byzsgd", agreement: str | None = None
) -> tuple[Cluster, str]:
    """Return a cluster with its faults, and the name of what liars do, that a seed stands for.

    The agreement of byzsgd is drawn, too, unless it is given.
    """
    draw = random.Random(seed)
    f_s, f_w = draw.choice((0, 1, 1, 1, 2)), draw.choice((0, 1, 1, 2, 3))
    servers = 3 * f_s + 2 + draw.choice((0, 0, 1, 2))
    workers = 3 * f_w + 1 + draw.choice((0, 0, 1, 3))
    liars, alone = PROTOCOLS[protocol].liars, protocol in ("vanilla", "aggregathor")
    if alone:
        f_s, servers = 0, 1
    elif not liars:
        servers -= f_s + 1
    own: dict[str, Any] = {}
    other = random.Random(~seed)  # for what was not drawn at first: the rest stays as it was
    rule = PROTOCOLS[protocol].rule
    if protocol == "aggregathor":
        own["resilience"] = other.choice(("weak", "strong"))
        own["holes"] = other.choice(("nan", "zero", "previous"))
        own["pieces"] = other.choice((1, 2, 3, 8))  # of six numbers
        rule = rule if own["resilience"] == "weak" else PROTOCOLS[protocol].strong
        workers = max(workers, (2 if own["resilience"] == "weak" else 4) * f_w + 3)
    lie = draw.choice(sorted(LIES))
    if protocol == "byzsgd":
        third = random.Random(f"agreement {seed}")
        own["agreement"] = third.choice(("dmc", "rbtm")) if agreement is None else agreement
        if own["agreement"] == "rbtm" and third.random() < 0.5:
            lie = "scheme"
    halves = other.random() < HALVES and own.get("agreement") != "rbtm"
    if other.random() < TWINNED:
        lie = TWINS
    bad = {"server": draw.randint(0, f_s), "worker": draw.randint(0, f_w)}
    if protocol == "vanilla" or not liars:
        bad = dict.fromkeys(bad, 0)
    full, signs = draw.random() < 0.3, own.get("agreement") == "rbtm"
    groups = {
        "server": Group(servers, f_s, bad["server"], lie),
        "worker": Group(workers, f_w, bad["worker"], lie),
    }
    config = Config(
        workers=workers, byzantine=bad["worker"], declared=f_w, steps=steps, momentum=0.0, lr=0.1,
        rule=rule, momentum_at="worker", seed=draw.randrange(1 << 30),
    )  # fmt: skip
    cluster = Cluster(
        PROTOCOLS[protocol], config, groups["server"], groups["worker"],
        gather_every=draw.choice((1, 2, 5, 7)),
        quorum_servers=0 if full or alone else draw.randint(
            2 * f_s + 2 if liars else servers // 2 + 1, servers - f_s
        ),
        quorum_workers=0 if full or protocol == "aggregathor" else draw.randint(
            2 * f_w + 1, workers - f_w
        ),
        **own,
        wire="bfloat16" if halves else "float32",
        give_up=LIMIT,
        linger=LIMIT,
        simulated={
            "latency": draw.choice((0.001, 0.02, 0.1)),
            "jitter": draw.choice((0.0, 0.3, 1.0, 2.0)),
            "bandwidth": draw.choice((1e3, 1e5, 1e9)) * (LONGER if signs else 1),
            "loss": draw.choice((0.0, 0.0, 0.05, 0.3)),
            "duplicate": draw.choice((0.0, 0.1)),
            "compute": draw.choice((0.0, 0.01, 0.3)),
            "skew": draw.choice((0.0, 0.01)),
        },
    )  # fmt: skip
    return replace(cluster, perturb=tuple(_faults(draw, cluster, steps))), lie


def _faults(draw: random.Random, cluster: Cluster, steps: int) -> list[str]:
    """Return faults: of each role at most f lie, are gone, or lost their disk."""
    lines: list[str] = []
    left = {role: group.f - group.byzantine for role, group in cluster.groups.items()}
    for _ in range(draw.choice((0, 1, 2, 4, 8))):
        name = draw.choice(cluster.names)
        when, span = f"step {draw.randrange(steps)}", f"{draw.choice((0.1, 1, 5, 30))} s"
        what = draw.choice(("restart", "pause", "partition", "slow", "kill", "lose", "all"))
        if what in ("pause", "slow"):
            lines.append(f"{what} {name} @ {when} for {span}")
        elif what == "partition":
            some = draw.sample(cluster.names, draw.randint(1, len(cluster.names) - 1))
            lines.append(f"partition {','.join(some)} | rest @ {when} for {span}")
        elif what == "all" or what == "restart":
            names = cluster.names if what == "all" else (name,)
            for one in names:
                time = draw.uniform(0, 8)
                lines.append(f"kill {one} @ {time:.4f} s")
                lines.append(f"restart {one} @ {time + draw.uniform(0.001, 20):.4f} s")
        elif name not in cluster.liars and left[cluster.role(name)] > 0:
            left[cluster.role(name)] -= 1
            time = draw.uniform(0, 8)
            if what == "lose" and not cluster.text.liars and name in cluster.of_role("server"):
                what = "kill"  # who remembers nothing must not come back
            lines.append(f"{what} {name} @ {time:.4f} s")
            if what == "lose":
                lines.append(f"restart {name} @ {time + draw.uniform(0.001, 20):.4f} s")
    return lines


def survive(
    seed: int, *, steps: int = 20, protocol: str = "byzsgd", agreement: str | None = None
) -> Simulation:
    """Run what a seed stands for.

    Raises
    ------
    Broken
        If a property does not hold; the message begins with the seed.
    """
    cluster, lie = drawn(seed, steps=steps, protocol=protocol, agreement=agreement)
    work = Quadratic(cluster)
    record = Record(cluster, work)  # type: ignore[arg-type]
    checked = Properties(cluster, record)

    def lie_of(name: str) -> Any:
        return told(lie) if name in cluster.liars - cluster.twins else None

    try:
        simulation = Simulation(cluster, seed, lambda name: work, checked, lie_of)
        gone = _gone(cluster.perturb)

        def finished() -> bool:
            return all(
                name in record.ended_nodes
                for name in cluster.names
                if name not in gone and name not in cluster.liars
            )

        limit = LIMIT * (2 if cluster.signs else 1)  # a gather takes three rounds then, not one
        if not simulation.run(finished, limit):
            raise checked.unfinished(simulation.nodes, gone)
    except Broken as broken:
        raise Broken(f"seed {seed}: {broken}") from broken
    return simulation


def _gone(lines: Sequence[str]) -> set[str]:
    """Return who is dead in the end."""
    last: dict[str, tuple[float, str]] = {}
    for line in lines:
        what, name, _, time = line.split()[:4]
        if what in ("kill", "lose", "restart"):
            last[name] = max(last.get(name, (0.0, "")), (float(time), what))
    return {name for name, (_, what) in last.items() if what != "restart"}
