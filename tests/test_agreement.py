"""The agreement "rbtm": what a gather guarantees whoever hears whom, and who is convicted."""

from __future__ import annotations

import itertools
import random
import socket
import threading
import time
import tomllib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import fastgar as fg
from fastgar.network import Signer, make_key, public_key
from fastgar.protocols import evidence, rbtm
from fastgar.protocols.cluster import Address, Cluster
from fastgar.protocols.evidence import PROOF, Proof, proof_of, proved
from fastgar.protocols.file import cluster_of, to_toml
from fastgar.protocols.gathering import Gathering
from fastgar.protocols.learning import Learning
from fastgar.protocols.lies import lie_of, resealed
from fastgar.protocols.mailbox import Want
from fastgar.protocols.node import Node
from fastgar.protocols.perturb import read_perturbation
from fastgar.protocols.port import Port
from fastgar.protocols.process import NodeProcess
from fastgar.protocols.properties import Broken, Properties
from fastgar.protocols.rbtm import trimmed
from fastgar.protocols.record import Record
from fastgar.protocols.scenario import Quadratic, drawn, survive, told
from fastgar.protocols.seals import SEAL, Trial, as_bytes, as_numbers, digest_of, opened, sealed
from fastgar.protocols.simulated import Simulation
from fastgar.protocols.storage import Memory, State
from fastgar.protocols.text import Text

FAR = 1e9

# The rule, whatever comes of a common core of n - f models.


def spread_of(n: int, f: int) -> float:
    """Return the most that two servers differ by, if the honest models are 0 or 1.

    Whatever the honest ones are is a mixture of such: sums of columns of 0 and 1 at thresholds. The
    core is the same of both; besides, each has what an adversary gives it, of whoever is left.
    """
    worst = 0.0
    for lies in range(f + 1):  # in the core, and at either end
        for ones, above in itertools.product(range(n - f - lies + 1), range(lies + 1)):
            core = [0.0] * (n - f - lies - ones) + [1.0] * ones
            core += [FAR] * above + [-FAR] * (lies - above)
            ends = []
            for more in range(f + 1):
                outside = f - lies  # liars that are left: they say another thing to each server
                for ups in range(more + 1):
                    extra = [FAR] * ups + [-FAR] * (more - ups)
                    honest = [min(max(x, 0.0), 1.0) for x in extra]
                    rows = extra[:outside] + honest[outside:]
                    ends.append(trimmed([np.float32([x]) for x in core + rows], f)[0])
            worst = max(worst, float(max(ends) - min(ends)))
    return worst


@pytest.mark.parametrize(("n", "f"), [(5, 1), (7, 1), (8, 2), (4, 1)])
def test_a_common_core_leaves_f_of_n_minus_2f_of_the_spread(n: int, f: int) -> None:
    """The table's 1/3 for (5, 1) and 1/2 for (8, 2) are reached, and are the most."""
    assert spread_of(n, f) == pytest.approx(f / (n - 2 * f), abs=1e-6)


def test_equal_models_stay_what_they_are() -> None:
    row = np.random.default_rng(0).standard_normal(1000).astype(np.float32)
    for count, f in ((3, 1), (5, 1), (7, 2), (7, 3)):
        assert trimmed([row] * count, f).tobytes() == row.tobytes()


# Gathers alone, one after the other, where somebody chooses who hears whom.


class Seen:
    """Nobody who shows anything."""

    def __init__(self) -> None:
        self.ends: dict[str, Node] = {}
        self.times: dict[int, float] = {}
        self.convictions: set[tuple[str, str, int]] = set()

    def convicted(self, node: Node, name: str, step: int) -> None:
        self.convictions.add((node.name, name, step))

    def ended(self, node: Node) -> None:
        self.ends[node.name] = node
        self.times[id(node)] = node.transport.now()

    def ended_at(self, node: Node) -> float:
        return self.times[id(node)]

    def posted(self, *_: Any) -> None: ...
    def taken(self, *_: Any) -> None: ...
    def collected(self, *_: Any) -> None: ...
    def late(self, *_: Any) -> None: ...


class Scheduled(Simulation):
    """A network in which a message takes as long as somebody says."""

    def __init__(self, *arguments: Any, delay: Callable[[str, str, float], float]) -> None:
        super().__init__(*arguments)
        self.delay = delay

    def carry(self, port: Port, peer: str, size: int, call: Callable[[Node], None]) -> None:
        self.messages += 1
        at = self.now + self.delay(port.name, peer, self.now)
        self.at(at, lambda: self._deliver(port, peer, peer, call))


class Idle:
    initial = np.zeros(1, np.float32)


def gathers(
    agreement: str,
    values: dict[str, Any],
    f: int,
    lie: Any,
    delay: Callable[[str, str, float], float],
    steps: int,
    give_up: float = Cluster.give_up,
) -> tuple[list[Any], Seen]:
    """Return the spread of the honest servers, before and after each gather; the last f lie."""
    n = len(values)
    models: list[dict[str, Any]] = [{} for _ in range(steps + 1)]

    async def server(me: Any, net: Any, c: Any) -> Any:
        t, theta = me.restore(theta=values[me.name])
        while t < c.steps:
            models[t][me.name] = theta
            if agreement == "rbtm":
                theta = trimmed((await rbtm.gather(me, net, c, t, theta)).rows, c.f_s)
            else:
                net.send(c.of_role("server"), "gather", t, theta)
                theta = fg.median((await net.first(Want("gather", t, c.q_s, own=theta))).rows, f=f)
            t += 1
            me.save(t, theta=theta)
        models[t][me.name] = theta
        return theta

    async def worker(me: Any, net: Any, c: Any) -> Any:
        return me.initial

    byzsgd = drawn(0)[0].text
    text = Text(
        "gathers", server, worker, byzsgd.kinds, settings=("agreement",),
        agreements=byzsgd.agreements,
    )  # fmt: skip
    cluster = cluster_of(
        {
            "protocol": {"name": "gathers", "agreement": agreement, "give_up": give_up},
            "training": {"steps": steps, "momentum": 0.0},
            "servers": {"count": n, "f": f, "byzantine": f, "attack": "equivocate"},
            "workers": {"count": 1},
        },
        text=text,
    )
    seen = Seen()
    network = Scheduled(
        cluster, 0, lambda name: Idle(), Properties(cluster, seen),
        lambda name: lie if name in cluster.liars else None, delay=delay,
    )  # fmt: skip
    honest = [name for name in values if name not in cluster.liars]
    assert network.run(lambda: seen.ends.keys() >= set(honest), 10_000.0)
    assert {name: seen.ends[name].error for name in honest} == dict.fromkeys(honest)
    rows = [np.stack([each[name] for name in honest]) for each in models]
    return [each.max(axis=0) - each.min(axis=0) for each in rows], seen


def of_five(*honest: float) -> dict[str, Any]:
    """Return the models of four honest servers, and of one that lies."""
    return {f"ps{i}": np.float32([x]) for i, x in enumerate((*honest, 0))}


def test_the_median_may_keep_the_spread_and_the_trimmed_mean_never_does() -> None:
    """0, 0, 1, 1 and a liar: some hear 0, 0, 1 and -big, the others 0, 1, 1 and +big."""
    values = of_five(0, 0, 1, 1)

    def lie(node: Any, kind: str, step: int, vector: Any, peer: str) -> Any:
        return np.full_like(vector, -FAR if peer in ("ps0", "ps1") else FAR)

    def delay(sender: str, peer: str, now: float) -> float:
        slow = {("ps3", "ps0"), ("ps3", "ps1"), ("ps0", "ps2"), ("ps0", "ps3")}
        return 3.0 if (sender, peer) in slow else 0.01

    kept, _ = gathers("dmc", values, 1, lie, delay, 5)
    assert [float(each[0]) for each in kept] == [1.0] * 6
    spreads, seen = gathers("rbtm", values, 1, resealed(lie), delay, 5)
    for before, after in itertools.pairwise(spreads):
        assert after[0] <= before[0] / 3 + 1e-7
    assert {name for _, name, _ in seen.convictions} == {"ps4"}


@pytest.mark.parametrize(("n", "f"), [(5, 1), (8, 2)])
def test_every_gather_contracts_whoever_hears_whom(n: int, f: int) -> None:
    for seed in range(6):
        draw = random.Random(seed)
        rows = np.random.default_rng(seed).integers(0, 2, (n, 8)).astype(np.float32)
        values = {f"ps{i}": row for i, row in enumerate(rows)}
        ups = [random.Random(f"{seed}{i}").choice((-FAR, FAR)) for i in range(n)]

        def two(node: Any, kind: str, step: int, vector: Any, peer: str, seed: int = seed) -> Any:
            return np.full_like(vector, FAR * random.Random(f"{seed}{step}{peer}").choice((-1, 1)))

        def one(node: Any, kind: str, step: int, vector: Any, peer: str, ups: Any = ups) -> Any:
            return np.full_like(vector, ups[int(node.name[2:])])

        lie = (told("scheme"), resealed(two), resealed(one))[seed % 3]

        def delay(sender: str, peer: str, now: float, draw: random.Random = draw) -> float:
            slow = random.Random(f"{seed} {sender} {peer} {int(now)}").random() < 0.4  # noqa: B023
            return draw.uniform(0, 2) if slow else draw.uniform(0, 0.01)

        spreads, _ = gathers("rbtm", values, f, lie, delay, 4)
        for before, after in itertools.pairwise(spreads):
            assert (after <= before * (f / (n - 2 * f)) + 1e-6).all(), seed


def one_sided(node: Any, kind: str, step: int, vector: Any, peer: str) -> Any:
    """Show a model to three of four, so that one of them accepts it, by a list for him alone."""
    if kind == "gather":
        return None if peer == "ps3" else vector
    if kind == "core":
        return np.float32([1, 1, 1, 1, 0])
    if kind.startswith("echo"):
        return vector if peer == "ps0" else None
    return None


def test_the_bound_is_reached() -> None:
    """By what one server alone accepts: all others have 0, 0, 0, 1, and it has a lie more."""
    values = {**of_five(0, 0, 0, 1), "ps4": np.float32([FAR])}

    def delay(sender: str, peer: str, now: float) -> float:
        return 0.01 if sender == "ps4" else 0.02

    spreads, seen = gathers("rbtm", values, 1, one_sided, delay, 1)
    assert spreads[1] == pytest.approx(1 / 3)
    assert not seen.convictions


def test_a_gather_that_is_over_is_no_part_of_the_next_wait() -> None:
    """So who gathers for ever, and is never kept waiting for long, does not give up."""
    values = of_five(0, 0, 1, 1)

    def delay(sender: str, peer: str, now: float) -> float:
        return 4.0  # three rounds take longer than a deadline, and less than all patience

    spreads, _ = gathers("rbtm", values, 1, told("silence"), delay, 6, give_up=30.0)
    assert spreads[-1][0] == 0


# One node, to which a liar says what it likes, and when.


class Desk:
    """Carries nothing: a test says what comes."""

    lossy = False

    def __init__(self, name: str) -> None:
        self.keys, self.time = Trial(name), 0.0
        self.asked: list[tuple[str, str, int]] = []
        self.posted: list[tuple[str, str, int]] = []

    def now(self) -> float:
        return self.time

    def ask(self, node: Node, peer: str, kind: str, step: int) -> None:
        self.asked.append((peer, kind, step))

    def post(self, node: Node, peer: str, kind: str, step: int, vector: Any) -> None:
        self.posted.append((peer, kind, step))

    def hello(self, *_: Any) -> None: ...
    def windows_moved(self, *_: Any) -> None: ...


def gathering(
    servers: int = 5, f: int = 1, disk: Any = None, heard: Any = None
) -> tuple[Node, Desk]:
    """Return ps0, in the gather of step 0; of which others may have heard something."""

    async def server(me: Any, net: Any, c: Any) -> Any:
        return (await rbtm.gather(me, net, c, 0, me.initial)).rows[0]

    byzsgd = drawn(0)[0].text
    text = replace(byzsgd, name="gathers", server=server)
    cluster = cluster_of(
        {**document(name="gathers"), "servers": {"count": servers, "f": f}}, text=text
    )
    desk = Desk("ps0")
    node = Node("ps0", cluster, Idle(), disk or Memory(), desk, Seen())  # type: ignore[arg-type]
    node.begin()
    for name in cluster.names[1:]:
        node.greet(name, 0, heard or {})
    assert node.waiting is not None and node.waiting.kind == "gather"
    return node, desk


def test_a_deadline_counts_though_something_has_come_at_the_same_moment() -> None:
    """What comes in threads is in the mailbox before the node looks: a liar that never ends
    would have it ask for nothing that it lacks."""
    node, desk = gathering()
    node.receive("ps1", "core", 0, np.float32([0, 1, 1, 1, 1]))
    desk.time = node.due
    node.mailbox.put("ps4", "core", 7, np.zeros(5, np.float32))
    node.tick()
    assert ("ps1", "relay/2", 0) in desk.asked


def test_each_peer_has_one_try_to_prove_something_against_another() -> None:
    """Two liars: what one of them has shown is not checked again whatever the other sends."""
    node, _ = gathering(8, 2)
    proof = two_seals()
    numbers = proof_of(proof._replace(second=(proof.second[0], bytes(64))))
    checks, signed = [], Trial.signed

    def counted(self: Trial, *what: Any) -> bool:
        checks.append(what)
        return signed(self, *what)

    with patched(Trial, "signed", counted):
        for peer, step in [("ps6", 0), *(("ps7", step) for step in range(50))]:
            node.receive(peer, "proof/1", step, numbers)
    assert len(checks) <= 4 and node.court is not None and not node.court.convicted


def test_what_a_node_keeps_to_itself_it_does_not_say_in_its_next_life() -> None:
    """What it has forgotten that others have heard, it has sealed."""
    disk = Memory()
    for _ in range(3):
        node, desk = gathering(disk=disk, heard={"gather": 0})
        assert node.muted == 2 and not desk.posted
    assert gathering(heard={"proof/1": 0})[1].posted  # of which nothing can contradict it


def test_a_node_knows_in_its_next_life_whose_models_it_has_vouched_for() -> None:
    """So that who has lost its disk hears of it, though all were killed."""
    disk = Memory()
    node, _ = gathering(disk=disk)
    for name in ("ps1", "ps2", "ps3"):
        row = sealed(Trial(name), name, "gather", 0, node.initial)
        node.receive(name, "gather", 0, row)
    heard = {name: gathering(disk=disk)[0].heard(name)["gather"] for name in ("ps1", "ps4")}
    assert heard == {"ps1": 0, "ps4": -1}


# Drawn clusters.


def test_properties_hold_with_reliable_broadcast_under_drawn_faults() -> None:
    convicted = []
    for seed in range(8):
        convicted += survive(seed, agreement="rbtm", steps=10).watcher.watcher.convictions
    assert convicted
    survive(2072, agreement="rbtm")  # one catches up in a gather, in which another waits for it


def test_a_seed_is_the_same_run_twice_with_signatures() -> None:
    def run() -> tuple[Any, ...]:
        network = survive(1, agreement="rbtm", steps=5)
        record = network.watcher.watcher
        models = {name: end.result.tobytes() for name, end in record.ended_nodes.items()}
        return network.now, network.messages, network.bytes, models, record.lines

    assert run() == run()


@contextmanager
def patched(owner: Any, name: str, value: Any) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(owner, name, value)
        yield


def no_core() -> Any:
    """Go on as soon as n - f models are accepted, whatever the others have."""

    def wrong(self: Any) -> Any:
        accepted = self.accepted()
        if len(accepted) < self.enough:
            return None
        return {name: said[:-SEAL] for name, said in accepted.items()}

    return patched(Gathering, "agreed", wrong)


def one_voucher() -> Any:
    """Accept what has come last, as if it were enough that one server vouches for it."""

    def wrong(self: Any) -> Any:
        found = {name: said for (name, _), said in self.models.items()}
        return {name: found[name] for name in self.servers if name in found}

    return patched(Gathering, "accepted", wrong)


def any_proof() -> Any:
    """Believe whoever shows what looks like a proof."""
    return patched(evidence, "is_sealed", lambda *_: True)


def sealed_anew() -> Any:
    """A server that restarts seals what it has now, whatever it has sealed before."""
    read = Memory.read

    def wrong(self: Memory) -> State | None:
        state = read(self)
        if state is None:
            return None
        return replace(state, kept={k: v for k, v in state.kept.items() if k != "gather"})

    return patched(Memory, "read", wrong)


PLANTED: dict[str, tuple[Callable[[], Any], int, str]] = {
    "no common core": (no_core, 10, "P3"),
    "one voucher is enough": (one_voucher, 10, "P(5|13)"),
    "any proof will do": (any_proof, 10, "P14"),
    "another seal after a restart": (sealed_anew, 10, "P1[04]"),
}


@pytest.mark.parametrize("bug", PLANTED)
def test_a_bug_planted_in_the_agreement_is_found(bug: str) -> None:
    plant, within, name = PLANTED[bug]
    with plant(), pytest.raises(Broken, match=f"{name}:"):
        for seed in range(within):
            survive(seed, agreement="rbtm")


# Evidence.


def test_an_equivocator_is_convicted_by_all_who_are_honest_and_nobody_else_is() -> None:
    cluster = cluster_of(
        {
            "protocol": {"agreement": "rbtm", "gather_every": 2},
            "servers": {"count": 5, "f": 1, "byzantine": 1, "attack": "equivocate"},
            "workers": {"count": 4, "f": 1},
            "training": {"steps": 10, "lr": 0.1, "momentum": 0.0},
        }
    )
    work, seen = Quadratic(cluster), Seen()
    network = Simulation(
        cluster, 0, lambda name: work, Properties(cluster, seen), lambda name: lie_of(cluster, name)
    )
    others = set(cluster.names) - {"ps4"}
    assert network.run(lambda: seen.ends.keys() >= others, 1000.0)
    assert {(who, step) for _, who, step in seen.convictions} == {("ps4", 1)}
    assert {by for by, _, _ in seen.convictions} >= others
    for name in others:  # nothing is taken from it any more, and a new life knows that
        assert network.nodes[name].mailbox.excluded == {"ps4"}
        network.kill(name)
        network.start(name)
        assert network.nodes[name].court.convicted == {"ps4": 1}


def test_who_restarts_at_any_moment_is_never_convicted() -> None:
    """They keep what they have sealed: killed again and again, on a network that loses messages."""
    for seed in range(3):
        cluster, _ = drawn(seed, agreement="rbtm", steps=8)
        draw = random.Random(seed)
        lines = []
        for name in cluster.of_role("server"):
            for _ in range(6):
                when = draw.uniform(0, 6)
                lines.append(f"kill {name} @ {when:.4f} s")
                lines.append(f"restart {name} @ {when + draw.uniform(0.001, 1):.4f} s")
        lines += [f"restart {name} @ 9 s" for name in cluster.of_role("server")]
        cluster = replace(
            cluster, perturb=tuple(lines), gather_every=1,
            servers=replace(cluster.servers, byzantine=0),
            workers=replace(cluster.workers, byzantine=0),
            simulated={**cluster.simulated, "loss": 0.1, "bandwidth": 1e9, "latency": 0.02},
        )  # fmt: skip
        work, seen = Quadratic(cluster), Seen()
        network = Simulation(cluster, seed, lambda name, work=work: work, Properties(cluster, seen))  # type: ignore[misc]
        assert network.run(
            lambda seen=seen, all_=cluster.names: seen.ends.keys() >= set(all_), 4000.0
        )  # type: ignore[misc]
        assert network.crashes > 5
        assert not seen.convictions


def test_who_has_lost_its_disk_is_convicted_in_no_later_life() -> None:
    """It makes another model of a step that it has sealed before, and shows it to nobody."""
    heard: set[str] = set()

    class Heard(Seen):
        def taken(self, node: Node, peer: str, kind: str, step: int, vector: Any) -> None:
            if (peer, kind, step) == ("ps1", "gather", 10):
                heard.add(node.name)

    cluster = cluster_of(
        {
            "protocol": {"agreement": "rbtm", "gather_every": 1},
            "servers": {"count": 5, "f": 1},
            "workers": {"count": 7, "f": 2},
            "training": {"steps": 20, "lr": 0.1, "momentum": 0.0},
        }
    )
    work, seen = Quadratic(cluster), Heard()
    network = Simulation(cluster, 1, lambda name: work, seen)
    network.run(lambda: len(heard) == 2)
    network.kill("ps1")
    network.disks["ps1"].lose()
    network.perturb(read_perturbation("pause ps2 @ 0 s for 20 s", cluster.names))
    network.start("ps1")
    network.run(lambda: network.now > 15)  # the others, of whom one sleeps, are in that gather yet
    assert network.nodes["ps1"].at == 10
    network.kill("ps1")
    network.start("ps1")
    assert network.run(lambda: seen.ends.keys() >= set(cluster.names), 1000.0)
    assert not seen.convictions


def test_a_run_goes_on_with_new_keys() -> None:
    """All are killed in the midst of gathers and get other keys: the old signatures are void."""
    cluster, _ = drawn(0, agreement="rbtm", steps=12)
    cluster = replace(
        cluster, perturb=(), gather_every=1, servers=replace(cluster.servers, byzantine=0),
        workers=replace(cluster.workers, byzantine=0),
    )  # fmt: skip
    for moment in (0.5, 0.52, 0.54, 0.56):
        work, seen = Quadratic(cluster), Seen()
        network = Simulation(
            cluster,
            0,
            lambda name, work=work: work,
            Properties(cluster, seen),  # type: ignore[misc]
        )
        network.run(lambda: False, moment)
        for name in cluster.names:
            network.kill(name)
        sign = Trial.sign
        with patched(Trial, "sign", lambda self, what, sign=sign: sign(self, b"new" + what)):
            network.watcher = seen  # to the properties another seal is another word
            for name in cluster.names:
                network.start(name)
            assert network.run(lambda seen=seen: seen.ends.keys() >= set(cluster.names), 4000.0)  # type: ignore[misc]
        assert all(end.error is None for end in seen.ends.values()) and not seen.convictions


def two_seals(step: int = 7, name: str = "ps1", keys: Any = None) -> Proof:
    found = []
    for number in range(2):
        row = np.full(3, number, np.float32)
        pair = opened(
            Trial(name),
            name,
            "gather",
            step,
            sealed(keys or Trial(name), name, "gather", step, row),
        )
        assert keys is not None or pair is not None
        found.append(pair or (digest_of(row), bytes(64)))
    return Proof(step, *found)


def test_only_two_seals_of_one_node_and_step_are_a_proof() -> None:
    keys, proof = Trial("w0"), two_seals()
    assert len(proof_of(proof)) == PROOF
    assert proved(keys, "ps1", "gather", proof_of(proof)) == proof
    other = two_seals(8)
    forged = {
        "another node": ("ps2", proof),
        "another step": ("ps1", proof._replace(step=8)),
        "of two steps": ("ps1", proof._replace(second=other.second)),
        "one seal": ("ps1", proof._replace(second=proof.first)),
        "no seal": ("ps1", proof._replace(second=(proof.second[0], bytes(64)))),
        "the other's seal": ("ps1", proof._replace(second=(proof.second[0], proof.first[1]))),
        "the liar's own": ("ps1", two_seals(keys=Trial("ps4"))),
    }
    for how, (name, claim) in forged.items():
        assert proved(keys, name, "gather", proof_of(claim)) is None, how
    for strange in (np.nan, np.inf, -1.0, 0.5, 65536.0, 3e38):
        numbers = proof_of(proof)
        numbers[3] = strange
        assert proved(keys, "ps1", "gather", numbers) is None
    assert proved(keys, "ps1", "echo", proof_of(proof)) is None


def test_bytes_are_the_same_after_they_were_numbers() -> None:
    data = bytes(range(256))
    assert as_bytes(as_numbers(data)) == data
    assert np.isfinite(as_numbers(b"\xff" * 64)).all()


# The file, and the keys of the real network.


def document(agreement: str = "rbtm", name: str = "byzsgd") -> dict[str, Any]:
    return {
        "protocol": {"name": name, "agreement": agreement},
        "servers": {"count": 5, "f": 1}, "workers": {"count": 4, "f": 1},
    }  # fmt: skip


def test_an_agreement_is_known_or_refused_in_a_sentence() -> None:
    cluster = cluster_of(document())
    assert cluster_of(tomllib.loads(to_toml(cluster))) == cluster
    assert cluster_of(document("dmc")).agreement == "dmc" == Cluster.agreement
    with pytest.raises(ValueError, match="unknown agreement 'rtbm': did you mean 'rbtm'"):
        cluster_of(document("rtbm"))
    for name in ("vanilla", "aggregathor", "crash_tolerant"):
        with pytest.raises(ValueError, match=f"agreement is a setting of byzsgd, not of {name}$"):
            cluster_of(document(name=name))
    nodes = {name: {"address": "here:1"} for name in cluster.names}
    with pytest.raises(
        ValueError, match=r"\[nodes.ps0\] lacks public_key, .*fastgar keys writes it"
    ):
        cluster_of({**document(), "nodes": nodes})
    nodes["ps0"]["public_key"] = "02"
    with pytest.raises(
        ValueError, match=r"public_key of \[nodes.ps0\] must be 66 hexadecimal digits"
    ):
        cluster_of({**document(), "nodes": nodes})


def test_a_node_signs_with_its_own_key_and_its_run(tmp_path: Path) -> None:
    pytest.importorskip("cryptography")
    paths = {name: tmp_path / f"{name}.pem" for name in ("ps0", "ps1")}
    for name, path in paths.items():
        make_key(path, name)
    keys = {name: public_key(path) for name, path in paths.items()}
    signers = {name: Signer(path, name, keys, b"run") for name, path in paths.items()}
    worker = Signer(paths["ps1"], "w0", {"ps0": keys["ps0"]}, b"run")
    signature = signers["ps0"].sign(b"what")
    assert len(signature) == 64
    assert all(each.signed("ps0", b"what", signature) for each in (*signers.values(), worker))
    other = Signer(paths["ps1"], "ps1", keys, b"another run")
    assert not other.signed("ps0", b"what", signature)
    assert not worker.signed("ps1", b"what", signers["ps1"].sign(b"what"))  # nobody it knows
    for name, what, claim in (
        ("ps1", b"what", signature), ("ps0", b"that", signature), ("ps0", b"what", bytes(64)),
        ("ps0", b"what", b"\xff" * 64), ("ps0", b"what", signature[:63]),
    ):  # fmt: skip
        assert not signers["ps1"].signed(name, what, claim)
    with pytest.raises(ValueError, match=r"ps0.pem holds another key than the public_key of ps1"):
        Signer(paths["ps0"], "ps1", keys, b"run")
    with pytest.raises(ValueError, match="public_key of ps1 is none: '02ff"):
        Signer(paths["ps0"], "ps0", {"ps1": "02" + "f" * 64}, b"run")


# On real links, all nodes in this process.


def on_links(cluster: Cluster, folder: Path) -> dict[str, NodeProcess]:
    """Run a cluster to its end, each node in a thread, and return the nodes."""
    sockets = {name: socket.create_server(("127.0.0.1", 0)) for name in cluster.names}
    paths = {name: folder / f"{name}.pem" for name in cluster.names}
    nodes = {
        name: Address("127.0.0.1", sock.getsockname()[1], make_key(paths[name], name))
        for name, sock in sockets.items()
    }
    if cluster.signs:
        for name in cluster.of_role("server"):
            nodes[name] = replace(nodes[name], public_key=public_key(paths[name]))
    cluster = cluster_of(tomllib.loads(to_toml(replace(cluster, nodes=nodes))))
    learning = Learning(cluster.training)
    found = {
        name: NodeProcess(
            cluster, name, paths[name], learning, Record(cluster, learning), Memory(),
            listen=sock, led=True,
        )
        for name, sock in sockets.items()
    }  # fmt: skip
    threads = [threading.Thread(target=each.run, daemon=True) for each in found.values()]
    for thread in threads:
        thread.start()
    end = time.monotonic() + 400
    while not all(found[name].node.done for name in cluster.names if name not in cluster.liars):
        assert time.monotonic() < end, {name: each.node.at for name, each in found.items()}
        time.sleep(0.02)
    for each in found.values():
        each.node.done = True
        each.release()
    for thread in threads:
        thread.join(60)
    return found


def test_on_real_links_an_equivocator_is_convicted_and_the_rest_agree(tmp_path: Path) -> None:
    pytest.importorskip("cryptography")
    cluster = cluster_of(
        {
            "protocol": {"agreement": "rbtm", "gather_every": 2},
            "servers": {"count": 5, "f": 1, "byzantine": 1, "attack": "equivocate"},
            "workers": {"count": 2},
            "training": {"model": "logistic", "steps": 6, "evaluate_every": 6},
        }
    )
    nodes = on_links(cluster, tmp_path)
    for name in set(cluster.names) - {"ps4"}:
        assert nodes[name].node.error is None
        assert nodes[name].node.court.convicted == {"ps4": 1}, name
    assert nodes["ps0"].watcher.convictions == {"ps4": 1}
