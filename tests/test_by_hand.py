"""Clusters as the README has them: each node is started by hand, on machines of their own."""

from __future__ import annotations

import random
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("cryptography")

from by_hand import PATIENCE, computed, keys, said, start
from machines import Machine, machines
from nursery import Forked, Nursery, nursery

from fastgar.protocols.file import read_cluster
from fastgar.protocols.learning import Learning

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="forks, and looks into /proc")


@pytest.fixture(scope="module")
def forks() -> Iterator[Nursery]:
    with nursery() as made:
        yield made


@contextmanager
def ended(nodes: dict[str, Forked]) -> Iterator[None]:
    """Leave none of them behind."""
    try:
        yield
    finally:
        for each in nodes.values():
            each.kill()


def test_nine_nodes_in_any_order_say_whom_they_wait_for(tmp_path: Path, forks: Nursery) -> None:
    """One comes when the others are at their steps, and learns the same."""
    file = keys(
        tmp_path,
        {
            "servers": {"count": 5, "f": 1},
            "workers": {"count": 4, "f": 1},
            "training": {"model": "logistic", "steps": 60, "evaluate_every": 10},
        },
    )
    cluster = read_cluster(file)
    order = list(cluster.names)
    random.Random(6).shuffle(order)
    assert order[-1].startswith("ps")
    nodes: dict[str, Forked] = {}
    with ended(nodes):
        for name in order[:4]:
            nodes[name] = start(forks, file, name)
        for name in order[:4]:
            waits = said(nodes[name], "waits to start: ").split(": ")[1].strip().split(", ")
            role = cluster.role(name)
            needed = {peer for peer in order[4:] if cluster.talks(cluster.role(peer), role)}
            assert needed <= set(waits), (name, waits)
        for name in order[4:8]:
            nodes[name] = start(forks, file, name)
        server = next(name for name in order if name.startswith("ps"))
        said(nodes[server], f"{server} step 30: accuracy")
        late = order[-1]
        nodes[late] = start(forks, file, late)
        ends = {name: each.wait(PATIENCE) for name, each in nodes.items()}
    assert ends == dict.fromkeys(order, 0)
    models = {name: np.load(tmp_path / name / "model.npy") for name in order}
    learning = Learning(cluster.training)
    assert min(learning.accuracy(model) for model in models.values()) > 0.85


# Three machines.


@pytest.fixture
def three() -> Iterator[list[Machine]]:
    """Yield three machines that were started an hour apart."""
    with ExitStack() as stack:
        try:
            found = stack.enter_context(machines(0, 3600, 7200))
        except OSError as error:
            pytest.skip(f"no namespaces with a network and a clock here: {error}")
        yield found


def test_three_machines_one_of_which_loses_its_network(
    tmp_path: Path, forks: Nursery, three: list[Machine]
) -> None:
    """At real addresses, with clocks an hour apart; all end with the bytes of one process."""
    document = {
        "protocol": {"name": "vanilla", "deadline_ceiling": 0.5},
        "servers": {"count": 1},
        "workers": {"count": 2},
        "training": {"model": "logistic", "steps": 100, "evaluate_every": 10},
    }
    file = keys(tmp_path, document, [f"10.0.0.{number}:29400" for number in (1, 2, 3)])
    names = ("ps0", "w0", "w1")
    nodes: dict[str, Forked] = {}
    with ended(nodes):
        for name, machine in zip(names, three, strict=True):
            nodes[name] = start(forks, file, name, machine=machine.pid)
        said(nodes["ps0"], "ps0 step 20: accuracy")
        three[2].do("ip link set eth0 down")
        step = said(nodes["ps0"], "from w1\n").split("step ")[1].split()[0]
        time.sleep(1)
        three[2].do("ip link set eth0 up")
        assert [node.wait(PATIENCE) for node in nodes.values()] == [0, 0, 0]
    assert 20 <= int(step) < 100
    cluster = read_cluster(file)
    learning = Learning(cluster.training)
    learned = computed(cluster, learning)
    assert learning.accuracy(learned) > 0.85
    for name in names:
        assert np.load(tmp_path / name / "model.npy").tobytes() == learned.tobytes()
