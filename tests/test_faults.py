"""Faults one by one, each with what must come of it: on the simulated network."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch")

from fastgar.protocols.cluster import Cluster
from fastgar.protocols.file import cluster_of
from fastgar.protocols.learning import Learning
from fastgar.protocols.mailbox import Received, Want
from fastgar.protocols.node import GaveUp, Node
from fastgar.protocols.one_process import in_one_process
from fastgar.protocols.properties import Properties
from fastgar.protocols.record import Record
from fastgar.protocols.scenario import Quadratic
from fastgar.protocols.simulated import Simulation

PLAIN: dict[str, Any] = {
    "protocol": {"name": "vanilla"}, "servers": {"count": 1}, "workers": {"count": 3},
}  # fmt: skip
BYZSGD: dict[str, Any] = {
    "protocol": {"name": "byzsgd", "gather_every": 5},
    "servers": {"count": 5, "f": 1},
    "workers": {"count": 4, "f": 1},
}


class Watched(Record):
    """Keeps what each node collected, when, and its deadline then."""

    network: Simulation

    def __init__(self, cluster: Cluster, work: Any) -> None:
        super().__init__(cluster, work)
        self.events: list[tuple[float, Node, Received, float]] = []

    def collected(self, node: Node, want: Want, received: Received, seconds: float) -> None:
        self.events.append((self.network.now, node, received, node.waits.pace.deadline))
        super().collected(node, want, received, seconds)

    def of(self, name: str, kind: str) -> list[tuple[float, Received, float]]:
        return [
            (now, received, deadline)
            for now, node, received, deadline in self.events
            if node.name == name and received.kind == kind
        ]


def run(
    document: dict[str, Any],
    *perturb: str,
    steps: int = 40,
    until: Callable[[Watched], bool] = Watched.finished,
    work: Callable[[Cluster], Any] = Quadratic,
    lie: Any = None,
    check: bool = True,
    **simulated: Any,
) -> tuple[Simulation, Watched]:
    """Run a cluster to its end."""
    cluster = cluster_of(
        {
            **document,
            "training": {"steps": steps, "lr": 0.1, "momentum": 0.0},
            "perturb": list(perturb),
            "simulated": {"latency": 0.01, "compute": 0.01, **simulated},
        }
    )
    worker = work(cluster)
    record = Watched(cluster, worker)
    network = Simulation(
        cluster, 0, lambda name: worker, Properties(cluster, record) if check else record,
        lambda name: lie if name in cluster.liars else None,
    )  # fmt: skip
    record.network = network
    assert network.run(lambda: until(record), 3000.0), "it does not end"
    return network, record


# Start, membership, time.


def test_who_loads_data_for_minutes_is_waited_for_and_makes_no_deadline_longer() -> None:
    network, record = run(PLAIN, "partition w2 | rest @ 0 s for 400 s", steps=5)
    assert network.now > 400 > record.cluster.give_up
    assert all(node.error is None for node in record.ended_nodes.values())
    assert record.of("ps0", "gradient")[-1][2] < 0.5 and record.of("w0", "model")[-1][2] < 0.5


def test_of_exactly_a_quorum_one_leaves_and_is_waited_for_at_the_same_step() -> None:
    network, record = run(PLAIN, "kill w1 @ 0.2 s", "restart w1 @ 60 s")
    assert network.now > 60 and record.waited_for["w1"] > 5
    wanted = in_one_process(record.cluster, Quadratic(record.cluster)).tobytes()
    assert {node.result.tobytes() for node in record.ended_nodes.values()} == {wanted}  # type: ignore[union-attr]


def test_who_was_late_is_believed_again() -> None:
    document = {**PLAIN, "workers": {"count": 3, "f": 1}}
    _, record = run(document, "pause w2 @ 0.2 s for 1 s", steps=80)
    without = [w for w, got, _ in record.of("ps0", "gradient") if "w2" not in got.names]
    again = [w for w, got, _ in record.of("ps0", "gradient") if "w2" in got.names and w > 1.2]
    assert len([when for when in without if 0.3 < when < 1.2]) > 10 and len(again) > 10


def test_a_deadline_rises_with_a_congestion_and_is_back_twenty_steps_later() -> None:
    _, record = run(PLAIN, "slow w0,w1,w2 @ 1 s for 5 s", steps=120)
    found = record.of("ps0", "gradient")
    before = [deadline for when, _, deadline in found if when < 1][-1]
    during = max(deadline for when, _, deadline in found if 1 < when < 7)
    after = [deadline for when, _, deadline in found if when > 6.5][20]
    assert 3 * before < during <= record.cluster.deadline_ceiling
    assert after <= 1.25 * before


def test_who_comes_back_behind_the_others_is_with_them_soon() -> None:
    _, record = run(BYZSGD, "kill ps1 @ 0.3 s", "restart ps1 @ 2 s", steps=150)
    used = [when for when, got, _ in record.of("ps1", "gradient") if when > 2]
    assert used and used[0] < 4


def test_a_server_that_was_away_for_many_gathers_catches_up() -> None:
    """Though three gathers come before the models that it asks for."""
    document = {**BYZSGD, "protocol": {"gather_every": 1}}
    _, record = run(document, "kill ps1 @ 0.3 s", "restart ps1 @ 1 s", steps=100)
    assert [got for when, got, _ in record.of("ps1", "gradient") if when > 1]


def test_a_link_that_comes_and_goes_is_used_while_it_is_there() -> None:
    flaps = [f"partition w0 | rest @ {4 * k + 2} s for 2 s" for k in range(50)]
    network, record = run(PLAIN, *flaps, steps=1000)
    assert network.now > 60
    steps = [when for when, _, _ in record.of("ps0", "gradient")]
    assert {int(when // 4) for when in steps} == set(range(int(network.now // 4) + 1))


def test_who_asks_for_ever_slows_nobody_down() -> None:
    def asks(node: Node, kind: str, step: int, vector: Any, peer: str) -> Any:
        for _ in range(20):
            node.transport.ask(node, peer, "model", 0)
        return vector

    lying = {**BYZSGD, "workers": {"count": 4, "f": 1, "byzantine": 1, "attack": "little"}}
    times, sizes = [], []
    for lie in (None, asks):
        network, _ = run(lying, lie=lie, bandwidth=1e6, jitter=0.0)
        times.append(network.now)
        sizes.append(network.bytes)
    asked = 64 * 20 * 5 * 40  # what the questions themselves take
    assert times[1] < 1.1 * times[0]
    assert sizes[1] - asked < 1.1 * sizes[0]


def test_less_than_a_quorum_for_good_ends_all_and_says_for_whom_they_waited() -> None:
    def over(record: Watched) -> bool:
        return {"ps0", "w0", "w2"} <= set(record.ended_nodes)

    _, record = run(PLAIN, "kill w1 @ 0.2 s", until=over, check=False)
    errors = {name: str(record.ended_nodes[name].error) for name in ("ps0", "w0", "w2")}
    assert all(isinstance(record.ended_nodes[name].error, GaveUp) for name in errors)
    assert " for gradient of step " in errors["ps0"] and "from w1, and gave up" in errors["ps0"]


# What honest nodes send that nobody can use.


def broken(*names: str) -> Callable[[Cluster], Any]:
    """Return the work of workers of which some send NaN."""

    class Broken(Quadratic):
        def __call__(self, node: Node, step: int, model: Any) -> Any:
            found = super().__call__(node, step, model)
            return np.full_like(found, np.nan) if node.name in names else found

    return Broken


def test_an_honest_worker_that_sends_nan_is_named_and_counts_against_f() -> None:
    document = {**PLAIN, "protocol": {"name": "vanilla", "rule": "median"}}
    document["workers"] = {"count": 4, "f": 1}
    _, record = run(document, work=broken("w1"), steps=20)
    assert set(record.not_finite) == {"w1"} and record.not_finite["w1"] >= 10
    assert np.isfinite(record.ended_nodes["ps0"].result).all()  # type: ignore[call-overload]

    def over(record: Watched) -> bool:
        return "ps0" in record.ended_nodes

    _, record = run(document, work=broken("w0", "w1", "w3"), until=over, check=False)
    said = str(record.ended_nodes["ps0"].error)
    assert said == "w0, w1, w3 sent NaN or infinity as gradient of step 0, and f = 1"


# What is learned from.


def learning(**settings: Any) -> Learning:
    training = {"model": "logistic", "batch": 8, **settings}
    return Learning(cluster_of({**PLAIN, "training": training}).training)


def test_a_batch_depends_on_seed_worker_and_step_alone() -> None:
    one, other = learning(), learning()
    theta = one.initial
    places: Sequence[tuple[int, int]] = [(w, t) for w in range(3) for t in (0, 1, 1000)]
    found = {place: one.gradient(*place, theta).tobytes() for place in places}
    assert {place: other.gradient(*place, theta).tobytes() for place in reversed(places)} == found
    assert len(set(found.values())) == len(places)
    assert learning(seed=1).gradient(0, 0, theta).tobytes() not in found.values()


def test_a_small_share_starts_over_and_steps_are_what_counts() -> None:
    few = learning(batch=32)
    few.shares = [few.shares[0][:10], *few.shares[1:]]
    picks = [set(few._picks(0, step).tolist()) for step in range(100)]
    assert set().union(*picks) == set(few.shares[0].tolist())
    assert np.isfinite(few.gradient(0, 10**6, few.initial)).all()
