"""Servers that are behind come on, whoever has helped the others and then fell silent for good."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from fastgar.protocols.byzsgd import caught_up
from fastgar.protocols.cluster import Cluster, Group
from fastgar.protocols.mailbox import Mailbox, Want
from fastgar.protocols.pace import Pace
from fastgar.protocols.properties import Properties
from fastgar.protocols.record import Record
from fastgar.protocols.scenario import Quadratic, drawn
from fastgar.protocols.seals import sealed
from fastgar.protocols.simulated import Simulation
from fastgar.protocols.waits import Waits

CUT, HEALED = 8.0, 25.0  # until when some hear nothing, and when everything comes through
Held = Callable[[str, str, str, int], bool]


class Holding(Simulation):
    """What `held` says of sender, receiver, kind and step does not come before everything does."""

    held: Held = staticmethod(lambda sender, receiver, kind, step: False)

    def arrive(self, node: Any, port: Any, kind: str, step: int, vector: Any) -> None:
        """Give a vector to a node if it comes through."""
        if self.now >= HEALED or not self.held(port.name, node.name, kind.partition("/")[0], step):
            super().arrive(node, port, kind, step, vector)


def cluster_of(
    *perturb: str, f: int = 2, agreement: str = "dmc", gather_every: int = 5, workers: int = 4
) -> Cluster:
    """Return 3 f + 2 servers, and workers of which one may lie, that have gone eight steps."""
    cluster = drawn(0, steps=8, agreement=agreement)[0]
    f_w = (workers - 1) // 3
    return replace(
        cluster, wire="float32", gather_every=gather_every, quorum_servers=0, quorum_workers=0,
        servers=replace(cluster.servers, count=3 * f + 2, f=f, byzantine=0),
        workers=replace(cluster.workers, count=workers, f=f_w, byzantine=0),
        training=replace(cluster.training, workers=workers, byzantine=0, declared=f_w),
        perturb=perturb, deadline_ceiling=1.0, simulated={"latency": 0.01},
    )  # fmt: skip


def ends(cluster: Cluster, held: Held | None = None, steps: dict[str, int] | None = None) -> float:
    """Run it, and return when all have ended but those that are killed.

    Parameters
    ----------
    steps : dict of str to int, optional
        Where servers must be when everything is about to come through: the case is this one.
    """
    work = Quadratic(cluster)
    record = Record(cluster, work)  # type: ignore[arg-type]
    network = Holding(cluster, 0, lambda name: work, Properties(cluster, record))
    if held is not None:
        network.held = held  # type: ignore[method-assign]
    lines = [line.split()[:2] for line in cluster.perturb]
    gone = {name for what, names in lines if what == "kill" for name in names.split(",")}
    gone -= {name for what, name in lines if what == "restart"}
    alive = [name for name in cluster.names if name not in gone]
    network.run(lambda: network.now > HEALED - 0.1)
    assert steps is None or steps == {name: network.nodes[name].at for name in steps}
    assert network.run(lambda: all(name in record.ended_nodes for name in alive), 200.0), {
        name: network.nodes[name].at for name in alive
    }
    return network.now


@pytest.mark.parametrize("agreement", ["dmc", "rbtm"])
@pytest.mark.parametrize("f", [2, 3])
def test_fewer_than_2f_plus_1_are_ahead_and_f_behind(f: int, agreement: str) -> None:
    """F take part while f cannot be heard, and are gone when these are back: f + 2 are ahead."""
    names = [f"ps{i}" for i in range(3 * f + 2)]
    behind, silent = names[f + 2 : 2 * f + 2], names[2 * f + 2 :]
    cluster = cluster_of(
        f"partition {','.join(behind)} | rest @ 0.05 s for {HEALED} s",
        f"kill {','.join(silent)} @ step 5", f=f, agreement=agreement, workers=3,
    )  # fmt: skip
    assert len(names) - len(behind) == cluster.q_s and f + 2 < 2 * f + 1
    ends(cluster)


def test_who_goes_on_to_what_few_have_reached_leaves_no_hole() -> None:
    """PS5 hears of step 2 alone: from two, and from two that are gone then.

    The third worker has none of six models of step 1 but with that of ps5, and ps2, ps3 and ps4
    have no three gradients of step 1 but with that worker's.
    """

    def held(sender: str, receiver: str, kind: str, step: int) -> bool:
        if receiver == "ps5":
            return kind == "gradient" or (kind == "model" and step < 2)
        if receiver == "w2":
            return kind == "model" and step >= 1
        return receiver in ("ps2", "ps3", "ps4") and kind in ("gradient", "model") and step >= 1

    at = {"ps0": 2, "ps1": 2, "ps2": 1, "ps3": 1, "ps4": 1}
    ends(cluster_of("kill ps6,ps7,w3 @ 20 s"), held, at)


def test_who_is_behind_asks_though_one_worker_alone_says_that_others_are_ahead() -> None:
    """W0 has left out step 1: of its gradients there are two, and of step 2 there is one."""

    def held(sender: str, receiver: str, kind: str, step: int) -> bool:
        if receiver in ("w0", "w1", "w2"):
            return kind == "model" and step == (1 if receiver == "w0" else 2)
        return receiver in ("ps4", "ps5") and (sender == "w3" or kind == "model") and step >= 1

    at = {"ps0": 2, "ps1": 2, "ps2": 2, "ps3": 2, "ps4": 1, "ps5": 1}
    ends(cluster_of("kill ps6,ps7,w3 @ 1 s"), held, at)


@pytest.mark.parametrize("restarts", [False, True])
def test_who_leaves_a_gather_by_reliable_broadcast_still_takes_part_in_it(restarts: bool) -> None:
    """PS1 goes on by models of ps0, ps2 and two that are gone then: three are ahead, not four.

    Ps3, ps4 and ps5 wait for what six have accepted, and ps1 had not accepted anything.
    """

    def held(sender: str, receiver: str, kind: str, step: int) -> bool:
        if receiver in ("ps1", "ps3", "ps4", "ps5"):
            ahead = receiver == "ps1" and sender in ("ps0", "ps2", "ps6", "ps7")
            unread = ("core", "echo") if receiver == "ps1" else ("core",)
            return kind in unread or (kind == "model" and not ahead)
        return receiver.startswith("w") and step == 1

    perturb = ["kill ps6,ps7 @ 20 s", *(["kill ps1 @ 22 s", "restart ps1 @ 22.5 s"] * restarts)]
    at = {"ps0": 1, "ps1": 1, "ps2": 1, "ps3": 0, "ps4": 0, "ps5": 0}
    ends(cluster_of(*perturb, agreement="rbtm", gather_every=1, workers=3), held, at)


def pulled(agreement: str, after: float) -> tuple[float, list[float], list[float]]:
    """Have liars pull all back: ps4 and ps5, cut off, hear of step 4 from them and two others.

    From ps2 and ps3 they hear it so many seconds later. The gather of step 4 has ps4 and ps5
    in it, the liars, and two others.

    Returns
    -------
    float, list of float, list of float
        How far from the minimum the first model is, and those of ps0 to ps3 before and after it.
    """
    cluster = cluster_of(agreement=agreement)
    cluster = replace(
        cluster, servers=Group(8, 2, 2, "reverse"), training=replace(cluster.training, lr=0.5)
    )
    work = Quadratic(cluster)
    away = np.sign(work.initial - work.points.mean(axis=0))
    far = (work.initial + 1000 * away).astype(np.float32)
    begins = dict.fromkeys(("ps4", "ps5"), HEALED)  # when they hear of it from ps2 and ps3

    def held(sender: str, receiver: str, kind: str, step: int) -> bool:
        if receiver in begins and kind in ("gradient", "model"):
            if len(network.nodes[receiver].mailbox.held("model", 4)) == 4:
                begins[receiver] = min(begins[receiver], network.now + after)
            first = sender in ("ps0", "ps1", "ps6", "ps7") and network.now > CUT
            comes = first or network.now > begins[receiver]
            return step < 3 if kind == "gradient" else step != 4 or not comes
        pair = {"ps0": "ps1", "ps1": "ps0", "ps2": "ps3", "ps3": "ps2"}
        out = sender in ("ps2", "ps3") if cluster.signs else pair.get(receiver, sender) != sender
        return kind == "gather" and step == 4 and sender in pair and out

    def lie(node: Any, kind: str, step: int, vector: Any, peer: str) -> Any:
        if kind.startswith("echo"):  # it would have another seal
            return None
        if kind == "gather":
            keys = node.transport.keys
            return sealed(keys, node.name, kind, step, far) if cluster.signs else far
        return far if kind == "model" and peer in ("ps4", "ps5") else vector

    record = Record(cluster, work)  # type: ignore[arg-type]
    network = Holding(
        cluster, 0, lambda name: work, Properties(cluster, record),
        lambda name: lie if name in cluster.liars else None,
    )  # fmt: skip
    network.held = held  # type: ignore[method-assign]
    fresh = ["ps0", "ps1", "ps2", "ps3"]

    def came(step: int) -> list[float]:
        assert network.run(lambda: all(network.nodes[name].at >= step for name in fresh), HEALED)
        return [work.accuracy(network.nodes[name].arrays["theta"]) for name in fresh]

    network.run(lambda: len(network.nodes) == len(cluster.names))
    before, behind = came(4), came(5)
    assert network.run(record.finished, 200.0)
    return work.accuracy(work.initial), before, behind


@pytest.mark.parametrize("agreement", ["dmc", "rbtm"])
def test_liars_that_are_heard_first_take_nobody_back(agreement: str) -> None:
    """Ps4 and ps5 have been cut off for long, and the others need a moment more than the liars."""
    first, before, after = pulled(agreement, 0.3)
    assert max(before) < 0.3 * first
    assert max(after) < 0.3 * first


@pytest.mark.parametrize("agreement", ["dmc", "rbtm"])
def test_liars_and_the_network_can_take_all_back_to_where_f_servers_were(agreement: str) -> None:
    """Where others are held back for long, ps4 and ps5 fill up with their first model.

    That is what is not promised. What is, the honest range, is checked at every event.
    """
    first, before, after = pulled(agreement, HEALED)
    assert max(before) < 0.3 * first
    assert min(after) > 0.8 * first


@pytest.mark.parametrize("agreement", ["dmc", "rbtm"])
def test_liars_that_some_never_hear_leave_them_behind_for_no_longer(agreement: str) -> None:
    """All others go on with the liars, step by step: four models of each come, and soon are old."""
    cluster = cluster_of("partition ps4,ps5 | rest @ 0.05 s for 1 s", agreement=agreement)
    cluster = replace(
        cluster, servers=Group(8, 2, 2, "silence"), simulated={"latency": 0.01, "compute": 0.1},
        training=replace(cluster.training, steps=80),
    )  # fmt: skip
    work = Quadratic(cluster)
    record = Record(cluster, work)  # type: ignore[arg-type]

    def lie(node: Any, kind: str, step: int, vector: Any, peer: str) -> Any:
        return None if peer in ("ps4", "ps5") else vector

    network = Simulation(
        cluster, 0, lambda name: work, Properties(cluster, record),
        lambda name: lie if name in cluster.liars else None,
    )  # fmt: skip
    network.run(lambda: len(network.nodes) == len(cluster.names))
    nodes = network.nodes
    assert network.run(lambda: nodes["ps0"].at == 20, 200.0)
    assert nodes["ps4"].at <= 1
    assert nodes["ps5"].at <= 1
    assert network.run(lambda: nodes["ps0"].at == 70, 200.0)
    assert nodes["ps4"].at >= 60
    assert nodes["ps5"].at >= 60
    assert network.run(record.finished, 200.0)


def test_who_is_behind_gives_the_others_time_from_the_first_models_of_a_step_on() -> None:
    """That is ten seconds from the first such step on, and then the same or one more step."""
    names = [f"ps{i}" for i in range(8)]
    mailbox = Mailbox("ps7", {"gradient": ["w0"], "model": names}, ["model"])
    waits = Waits(mailbox, Pace(floor=0.1, ceiling=10.0, usual=0.1), lambda: True)
    behind = Want("model", 1, 5, 2, later=True, enough=4)

    def come(now: float, step: int, *peers: int) -> int | None:
        for peer in peers:
            mailbox.put(names[peer], "model", step, np.zeros(1, np.float32))
        found = waits.ready(None, now)
        return None if found is None else found[1].step

    waits.begin((Want("gradient", 0, 1), behind), 0.0)
    assert come(99.0, 4, 0, 1, 2) is None
    for _ in range(7):
        waits.passed(99.0)
    assert waits.due > 105.0
    assert come(100.0, 4, 3) is None
    assert waits.due <= 100.4  # those that lack are asked soon
    assert come(109.9, 4) is None
    assert come(109.9, 5, 0, 1, 2, 3) is None
    assert come(110.0, 5) == 4
    waits.begin((behind,), 110.0)
    assert come(110.0, 5) is None  # another wait
    assert come(111.0, 6, 0, 1) is None
    assert come(111.0, 6, 2, 3, 4) == 6  # as many as it takes


@pytest.mark.parametrize("f", [2, 3, 5])
def test_a_model_of_ones_own_among_too_few_keeps_it_within_the_honest_range(f: int) -> None:
    draw = np.random.default_rng(f)
    for k in range(f + 2, 2 * f + 2):
        for _ in range(50):
            honest = list(draw.standard_normal((k - f + 1, 7)).astype(np.float32))
            lies = list((1e6 * draw.choice([-1, 1], (f, 7))).astype(np.float32))
            lies[0][:] = np.nan
            found = caught_up(honest[1:] + lies, honest[0], f)
            assert (np.min(honest, axis=0) <= found).all()
            assert (found <= np.max(honest, axis=0)).all()


@pytest.mark.parametrize("f", [2, 3, 5])
def test_f_plus_1_honest_models_of_others_keep_it_within_their_range(f: int) -> None:
    draw = np.random.default_rng(f)
    for k in range(f + 2, 2 * f + 2):
        honest = list(draw.standard_normal((f + 1, 7)).astype(np.float32))
        lies = [np.full(7, 1e6, np.float32)] * (k - f - 1)
        found = caught_up(honest + lies, np.full(7, 10, np.float32), f)
        assert (np.min(honest, axis=0) <= found).all()
        assert (found <= np.max(honest, axis=0)).all()
