"""The protocols on the simulated network: what properties say, and planted bugs found."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

import fastgar as fg
from fastgar.protocols import byzsgd, crash_tolerant
from fastgar.protocols.cluster import TWINS, Cluster
from fastgar.protocols.encoding import WIRES, encoded, numbers
from fastgar.protocols.mailbox import Mailbox, Received, Verdict, Want
from fastgar.protocols.node import Node
from fastgar.protocols.one_process import in_one_process
from fastgar.protocols.properties import Broken, Properties, growth
from fastgar.protocols.record import Record
from fastgar.protocols.registry import PROTOCOLS
from fastgar.protocols.scenario import LIES, Quadratic, drawn, survive, told
from fastgar.protocols.simulated import Simulation
from fastgar.protocols.storage import Memory, State
from fastgar.protocols.twins import Split
from fastgar.protocols.virtual import simulate


def test_a_seed_is_the_same_run_twice() -> None:
    def run() -> tuple[Any, ...]:
        cluster, lie = drawn(7)
        work = Quadratic(cluster)
        record = Record(cluster, work)  # type: ignore[arg-type]
        network = Simulation(
            cluster, 7, lambda name: work, record,
            lambda name: told(lie) if name in cluster.liars else None,
        )  # fmt: skip
        network.run(record.finished, 1000.0)
        models = {name: end.result.tobytes() for name, end in record.ended_nodes.items()}
        return network.now, network.messages, network.bytes, network.lost, models, record.lines

    assert run() == run()


def clean(cluster: Cluster) -> Cluster:
    """Return a cluster in which nothing goes wrong and everybody hears everybody."""
    return replace(
        cluster,
        servers=replace(cluster.servers, f=0, byzantine=0),
        workers=replace(cluster.workers, f=0, byzantine=0),
        training=replace(cluster.training, byzantine=0, declared=0),
        quorum_servers=0, quorum_workers=0, perturb=(),
        simulated={**cluster.simulated, "loss": 0.0},
    )  # fmt: skip


def agree_with_one_process(seed: int, protocol: str = "byzsgd") -> None:
    """Raise Broken unless every node ends with the bytes of one process: P9."""
    cluster = clean(drawn(seed, protocol=protocol)[0])
    if cluster.agreement == "dmc":
        cluster = replace(cluster, wire=WIRES[seed % 2])
    work = Quadratic(cluster)
    record = Record(cluster, work)  # type: ignore[arg-type]
    network = Simulation(cluster, seed, lambda name: work, record)
    assert network.run(record.finished, 1000.0)
    wanted = in_one_process(cluster, work).tobytes()
    for name, end in record.ended_nodes.items():
        if end.result is None or end.result.tobytes() != wanted:
            raise Broken(f"P9: {name} ends with another model")


def mirror(seed: int) -> None:
    """Raise Broken unless changing all signs of a problem changes all signs of the models."""
    ends = []
    for sign in (1, -1):
        cluster = drawn(seed)[0]
        groups = {
            "servers": replace(cluster.servers, byzantine=0),
            "workers": replace(cluster.workers, byzantine=0),
        }
        cluster = replace(cluster, perturb=(), **groups)  # type: ignore[arg-type]
        work = Quadratic(cluster)
        work.initial, work.points = sign * work.initial, sign * work.points
        record = Record(cluster, work)  # type: ignore[arg-type]
        network = Simulation(cluster, seed, lambda name, work=work: work, record)  # type: ignore[misc]
        if not network.run(record.finished, 2000.0):
            raise Broken("a run without faults does not end")
        ends.append({name: sign * end.result for name, end in record.ended_nodes.items()})
    if any((ends[0][name] != ends[1][name]).any() for name in ends[0]):
        raise Broken("the models of a problem with all signs changed are others")


def test_signs_do_not_matter() -> None:
    for seed in range(6):
        mirror(seed)


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_without_faults_all_end_with_the_bytes_of_one_process(protocol: str) -> None:
    for seed in range(6):
        agree_with_one_process(seed, protocol)


def test_the_mean_contraction_is_at_most_six_tenths() -> None:
    """Of the median, with random delays and an equivocating server; P3."""
    factors = []
    for seed in range(40):
        cluster, _ = drawn(seed, agreement="dmc")
        cluster = replace(
            cluster,
            servers=replace(cluster.servers, count=5, f=1, byzantine=1),
            quorum_servers=4, gather_every=2, perturb=(), wire="float32",
            simulated={**cluster.simulated, "jitter": 1.0, "latency": 0.02, "bandwidth": 1e9},
        )  # fmt: skip
        work = Quadratic(cluster)
        record = Record(cluster, work)  # type: ignore[arg-type]
        checked = Properties(cluster, record)
        network = Simulation(
            cluster, seed, lambda name, work=work: work, checked,  # type: ignore[misc]
            lambda name, cluster=cluster: LIES["equivocate"] if name in cluster.liars else None,  # type: ignore[misc]
        )  # fmt: skip
        assert network.run(record.finished, 2000.0)
        factors += [factor for _, factor in checked.gathers]
    assert len(factors) > 200
    assert np.mean(factors) <= 0.6


def test_rounding_is_no_growth_and_a_longer_step_is() -> None:
    """P4 allows for what float32, and the wire, round, and for little more."""
    draw = np.random.default_rng(0)
    for seed in range(300):
        wire, lr, d = WIRES[seed % 2], float(10.0 ** draw.uniform(-6, 1)), int(draw.integers(1, 40))
        scales = 10.0 ** draw.uniform(-30, 30, 3)
        thetas = [(s * draw.standard_normal(d)).astype(np.float32) for s in scales[:2]]
        aggregates = [(scales[2] * draw.standard_normal(d)).astype(np.float32) for _ in "ij"]
        ends = [theta - lr * agg for theta, agg in zip(thetas, aggregates, strict=True)]
        pairs = [
            tuple(numbers(encoded(theta, wire)) for theta in thetas),
            tuple(lr * agg.astype(float) for agg in aggregates),
            tuple(numbers(encoded(theta, wire)) for theta in ends),
        ]
        if np.isfinite(pairs).all():
            grown, most = growth(pairs, wire)  # type: ignore[arg-type]
            assert grown <= most
    one = np.ones(3, np.float32)
    for longer in (1.000001, 2.0):
        ends = [(one - 0.5 * longer * agg).astype(np.float32) for agg in (one, -one)]
        grown, most = growth([(one, one), (0.5 * one, -0.5 * one), (ends[0], ends[1])], "float32")
        assert grown > most


# Twins.


def test_a_split_gives_each_instance_a_half_that_changes() -> None:
    others = [f"w{i}" for i in range(9)]
    seen = []
    for turn in range(50):
        split = Split(others, 3, 0.02)
        halves = [split.heard(name, (turn + 0.5) * split.span) for name in others]
        assert sum(halves) in (4, 5)
        again = [split.heard(name, (turn + 0.9) * split.span) for name in others]
        assert halves == again
        seen.append(tuple(halves))
    assert len(set(seen)) > 25
    assert all({halves[i] for halves in seen} == {0, 1} for i in range(9))
    assert Split(others, 4, 0.02).span != split.span


def test_twins_equivocate_and_forget_and_harm_nobody() -> None:
    """Of servers and of workers: two messages of one step, and now this, now that to one peer."""
    cluster = replace(drawn(11)[0], wire="float32")
    cluster = replace(
        cluster,
        servers=replace(cluster.servers, count=5, f=1, byzantine=1, attack=TWINS),
        workers=replace(cluster.workers, count=7, f=2, byzantine=2, attack=TWINS),
        quorum_servers=0, quorum_workers=0, gather_every=5, perturb=("kill ps4 @ 0.4 s",),
        simulated={},
    )  # fmt: skip
    assert cluster.twins == {"ps4", "w5", "w6"}
    work = Quadratic(cluster)
    record = Record(cluster, work)  # type: ignore[arg-type]
    checked = Properties(cluster, record)
    network = Simulation(cluster, 5, lambda name: work, checked)
    said: dict[tuple[str, str, int], set[bytes]] = {}
    heard: dict[tuple[str, str], set[int]] = {}
    post, take = network.post, checked.taken

    def posted(port: Any, peer: str, kind: str, step: int, vector: Any) -> None:
        said.setdefault((port.name, kind, step), set()).add(vector.tobytes())
        post(port, peer, kind, step, vector)

    def taken(node: Node, peer: str, kind: str, step: int, vector: Any) -> None:
        kept = [network.nodes[instance].kept for instance in network.instances[peer]
                if instance in network.nodes]  # fmt: skip
        of_step = [steps.get(kind, {}).get(step) for steps in kept]
        who = [i for i, it in enumerate(of_step) if it and it[0].tobytes() == vector.tobytes()]
        if len(who) == 1:
            heard.setdefault((peer, node.name), set()).update(who)
        take(node, peer, kind, step, vector)

    network.post, checked.taken = posted, taken  # type: ignore[method-assign]
    assert network.run(record.finished, 1000.0)
    for name in cluster.names:
        two = [key for key, vectors in said.items() if key[0] == name and len(vectors) > 1]
        assert (len(two) > 2) == (name in cluster.twins)
    for name in cluster.twins:
        assert any(len(who) == 2 for (twin, _), who in heard.items() if twin == name)
    assert network.crashes == 1 and not {"ps4", "ps4'"} & network.nodes.keys()


def test_twins_are_part_of_what_is_drawn() -> None:
    clusters = [drawn(seed)[0] for seed in range(60)]
    assert any(cluster.twins for cluster in clusters)
    assert {cluster.wire for cluster in clusters} == set(WIRES)


# Bugs that are put in, and must be found.


@contextmanager
def patched(owner: Any, name: str, value: Any) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(owner, name, value, raising=False)
        yield


def one_too_few() -> Any:
    found = Mailbox._found

    def wrong(self: Mailbox, want: Want, step: int, rows: Any, least: int) -> Received | None:
        few = max(1, least - 1)
        return found(self, replace(want, q=max(1, want.q - 1)), step, rows, few)

    return patched(Mailbox, "_found", wrong)


def f_for_f_plus_1() -> Any:
    def wrong(self: Cluster, t: int) -> Want:
        return Want("model", t + 1, max(1, 2 * self.f_s), self.f_s, later=True)

    return patched(Cluster, "of_later_models", wrong)


def lower_median() -> Any:
    real = fg.median

    class Wrong:
        def __getattr__(self, name: str) -> Any:
            return getattr(fg, name)

        @staticmethod
        def median(rows: Any, f: int) -> Any:
            return real(rows, f=f, middle="lower")

    return patched(byzsgd, "fg", Wrong())


def no_dedupe() -> Any:
    verdict = Mailbox.verdict

    def wrong(self: Mailbox, peer: str, kind: str, step: int) -> Verdict:
        found: Verdict = verdict(self, peer, kind, step)
        again = step in self._steps[kind][peer] and step >= self._floor[kind]
        return Verdict.TAKE if again else found

    return patched(Mailbox, "verdict", wrong)


def no_step_check() -> Any:
    put = Mailbox.put

    def wrong(self: Mailbox, peer: str, kind: str, step: int, vector: Any) -> None:
        put(self, peer, kind, max(step - 1, self._floor[kind]), vector)

    return patched(Mailbox, "put", wrong)


def forgotten_messages() -> Any:
    read = Memory.read

    def wrong(self: Memory) -> State | None:
        state = read(self)
        return None if state is None else State(max(0, state.step - 1), state.arrays, {})

    return patched(Memory, "read", wrong)


def counted_twice() -> Any:
    found = Mailbox._found

    def wrong(self: Mailbox, want: Want, step: int, rows: Any, least: int) -> Received | None:
        few = max(1, least - 1)
        first = found(self, replace(want, q=max(1, want.q - 1)), step, rows, few)
        if first is None or len(first.names) >= want.q:
            return first
        names, vectors = (*first.names, first.names[0]), [*first.rows, first.rows[0]]
        return Received(want.kind, step, names, vectors)

    return patched(Mailbox, "_found", wrong)


def no_deadline() -> Any:
    return patched(Simulation, "_tick", lambda self, node, port: None)


def lies_of_all() -> Any:
    init = Simulation.__init__

    def wrong(self: Simulation, *arguments: Any) -> None:
        init(self, *arguments[:-1], lambda name: LIES["equivocate"])

    return patched(Simulation, "__init__", wrong)


def not_asked() -> Any:
    """A server that is behind never hears of it."""
    return patched(Node, "_ask_if_behind", lambda self, want: None)


@contextmanager
def all_gathers_wait() -> Iterator[None]:
    """A server that is behind reads no further than its third gather from each other."""
    kinds: Any = PROTOCOLS["byzsgd"].kinds
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(kinds, "gather", replace(kinds["gather"], latest=False))
        yield


PLANTED: dict[str, tuple[Callable[[], Any], int]] = {
    "one message too few": (one_too_few, 5),
    "2f models instead of 2f + 1": (f_for_f_plus_1, 20),
    "the lower median": (lower_median, 5),
    "no dedupe": (no_dedupe, 10),
    "no check of the step": (no_step_check, 10),
    "another message after a restart": (forgotten_messages, 20),
    "a liar counts twice": (counted_twice, 10),
    "a deadline that never fires": (no_deadline, 20),
    "the attack is applied to honest nodes": (lies_of_all, 5),
    "nobody asks when behind": (not_asked, 20),
    "a gather holds up what comes after it": (all_gathers_wait, 20),
}


@contextmanager
def other_wants(change: Callable[[Want], Want]) -> Iterator[None]:
    def wrong(*arguments: Any, **settings: Any) -> Want:
        return change(Want(*arguments, **settings))

    with patched(crash_tolerant, "Want", wrong):
        yield


def alone(kind: str) -> Any:
    """A server that is content with itself, or with one other."""
    return other_wants(lambda want: replace(want, q=1) if want.kind == kind else want)


def whole_too_few() -> Any:
    found = Mailbox._in_part

    def wrong(self: Mailbox, want: Want) -> Received | None:
        assert want.enough
        return found(self, replace(want, enough=max(1, want.enough - 1), f=want.f + 1))

    return patched(Mailbox, "_in_part", wrong)


def pieces_elsewhere() -> Any:
    """Pieces are put together in the order in which they came to be sent."""
    found = Mailbox._joined

    def wrong(self: Mailbox, want: Want) -> Received | None:
        received = found(self, want)
        return received and replace(received, rows=[np.roll(row, 1) for row in received.rows])

    return patched(Mailbox, "_joined", wrong)


OTHERS: dict[str, tuple[str, Callable[[], Any], int]] = {
    "the oldest model of a majority": (
        "crash_tolerant", lambda: patched(crash_tolerant, "max", min), 20,
    ),
    "nobody is asked what is stored": ("crash_tolerant", lambda: alone("stand"), 20),
    "no majority has stored it": ("crash_tolerant", lambda: alone("stored"), 60),
    "a dead leader is never succeeded": (
        "crash_tolerant", lambda: other_wants(lambda want: replace(want, enough=None)), 20,
    ),
    "a whole gradient too few": ("aggregathor", whole_too_few, 20),
    "no holes, ever": ("aggregathor", lambda: patched(Mailbox, "_in_part", lambda *_: None), 20),
    "pieces in the wrong places": ("aggregathor", pieces_elsewhere, 5),
}  # fmt: skip


@pytest.mark.parametrize("bug", OTHERS)
def test_a_bug_planted_in_another_protocol_is_found(bug: str) -> None:
    protocol, plant, within = OTHERS[bug]
    with plant(), pytest.raises(Broken):
        for seed in range(within):
            survive(seed, protocol=protocol)


# What they learn.

DIGITS: dict[str, Any] = {
    "training": {"model": "logistic", "steps": 30, "lr": 0.2},
    "servers": {"count": 1},
    "workers": {"count": 9, "f": 2},
}
LYING = {"count": 9, "f": 2, "byzantine": 2, "attack": "empire(k=10)"}


@pytest.mark.parametrize(
    ("protocol", "server_lies", "learns"),
    [("aggregathor", False, True), ("aggregathor", True, False), ("vanilla", False, False)],
)
def test_who_must_be_honest(protocol: str, server_lies: bool, learns: bool) -> None:
    """AggregaThor learns among lying workers, not from a lying server; vanilla does neither."""
    server = {"count": 1, "byzantine": int(server_lies), "attack": "reverse"}
    outcome = simulate(
        {**DIGITS, "protocol": {"name": protocol}, "workers": LYING, "servers": server}
    )
    assert outcome.lowest > 0.85 if learns else outcome.lowest < 0.3


@pytest.mark.parametrize("resilience", ["weak", "strong"])
def test_both_resiliences_learn_among_lying_workers(resilience: str) -> None:
    workers = {**LYING, "count": 11}
    protocol = {"name": "aggregathor", "resilience": resilience}
    assert simulate({**DIGITS, "protocol": protocol, "workers": workers}).lowest > 0.85


@pytest.mark.parametrize("holes", ["nan", "zero", "previous"])
def test_a_slow_worker_leaves_holes_and_is_not_waited_for(holes: str) -> None:
    slow = {**DIGITS, "perturb": ["slow w3 @ step 5 for 1000 s"]}
    settings = {"name": "aggregathor", "holes": holes, "pieces": 8, "deadline_floor": 0.05}
    outcome = simulate({**slow, "protocol": settings})
    waiting = simulate({**slow, "protocol": {**settings, "quorum_workers": 9}})
    assert outcome.shares["w3"] < 0.5
    assert all(share == 1 for name, share in outcome.shares.items() if name != "w3")
    assert set(waiting.shares.values()) == {1.0}
    assert outcome.seconds < waiting.seconds / 1.5
    assert outcome.lowest > 0.85


def test_the_leader_is_succeeded_and_follows_when_it_is_back() -> None:
    base = {**DIGITS, "protocol": {"name": "crash_tolerant"}, "servers": {"count": 3, "f": 1}}
    for perturb in (
        ["kill ps0 @ step 10"],
        ["kill ps0 @ step 10", "restart ps0 @ 8 s"],
        ["partition ps0 | rest @ step 10 for 20 s"],
        ["pause ps0 @ step 10 for 20 s"],
    ):
        outcome = simulate({**base, "perturb": perturb})  # P12 is checked at every event
        shown = {line["node"] for line in outcome.lines if line["kind"] == "evaluation"}
        assert "ps1" in shown
        assert outcome.lowest > 0.85
        assert len(outcome.accuracy) == 2 + (len(perturb) > 1 or "kill" not in perturb[0])
        assert len(set(outcome.accuracy.values())) == 1


def longer_steps(names: str) -> Any:
    """Nodes whose names begin so go twice as far along what they made of gradients."""
    first = Node.first

    async def wrong(self: Node, *wants: Want) -> Received:
        got = await first(self, *wants)
        if got.kind == "gradient" and self.name.startswith(names):
            return replace(got, rows=[2 * row for row in got.rows])
        return got

    return patched(Node, "first", wrong)


def own_unrounded() -> Any:
    """What a node says it has sent is what it was to send."""
    send = Node.send

    def wrong(self: Node, peers: Any, kind: str, step: int, vector: Any) -> Any:
        send(self, peers, kind, step, vector)
        return vector

    return patched(Node, "send", wrong)


def test_a_gather_with_a_model_of_ones_own_that_others_do_not_get_is_found() -> None:
    with own_unrounded(), pytest.raises(Broken, match="took as gather of step"):
        for seed in range(20):
            survive(seed, agreement="dmc")


@pytest.mark.parametrize("names", ["ps0", "ps"])
def test_another_learning_rate_at_a_server_and_an_update_applied_twice_are_found(
    names: str,
) -> None:
    with longer_steps(names), pytest.raises(Broken, match="P4: in step"):
        for seed in range(5):
            survive(seed)


@pytest.mark.parametrize("bug", PLANTED)
def test_a_planted_bug_is_found(bug: str) -> None:
    plant, within = PLANTED[bug]
    with plant(), pytest.raises(Broken):
        for seed in range(within):
            survive(seed)
            agree_with_one_process(seed)
            mirror(seed)
