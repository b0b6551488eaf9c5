"""The power fails at any operation of a disk: only what was synced is sure to be there afterwards.

Files and folders are in memory here. What was written or renamed since the last sync survives as a
whole, not at all, or in any part: so a file may have holes, and a name may be an older file's.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("torch")

from fastgar.protocols import storage
from fastgar.protocols.cluster import Cluster
from fastgar.protocols.file import cluster_of
from fastgar.protocols.properties import Properties
from fastgar.protocols.record import Record
from fastgar.protocols.registry import PROTOCOLS
from fastgar.protocols.scenario import Quadratic
from fastgar.protocols.simulated import Simulation
from fastgar.protocols.storage import Disk, State, pack

STEPS = 3
CHANCES = (0.0, 1.0, 0.5, 0.5)  # for what was not synced to survive


class PowerLoss(BaseException):
    """The machine is dark."""


@dataclass(eq=False, repr=False)
class File:
    """What is on the platter of one file, and what is not yet."""

    drive: Drive
    content: bytes = b""
    waiting: list[tuple[int, bytes]] = field(default_factory=list)
    at: int = 0

    def __enter__(self) -> File:
        return self

    def __exit__(self, *raised: object) -> None:
        pass

    def fileno(self) -> File:
        return self

    def write(self, data: Any) -> None:
        self.drive.turn()
        self.waiting.append((self.at, bytes(data)))
        self.at += len(bytes(data))

    def flush(self) -> None:
        pass

    def sync(self, survives: Any = lambda: True) -> None:
        """Bring what survives of what waits onto the platter."""
        for at, data in self.waiting:
            if survives():
                before = self.content.ljust(at, b"\0")
                self.content = before[:at] + data + before[at + len(data) :]
        self.waiting = []


@dataclass(eq=False, repr=False)
class Drive:
    """A folder of files, and the paths in it: as far as `Disk` uses them."""

    name: str = "state"
    files: dict[str, File] = field(default_factory=dict)  # as a process sees them
    platter: dict[str, File] = field(default_factory=dict)
    waiting: list[tuple[str | None, str, File]] = field(default_factory=list)  # renames, new files
    operations: int = 0
    fails_at: int = -1
    before: Callable[[], None] = lambda: None

    def turn(self) -> None:
        """Be about to do something."""
        self.before()
        if self.operations == self.fails_at:
            raise PowerLoss
        self.operations += 1

    def path(self, name: str) -> Any:
        return SimpleNamespace(
            name=name, parent=self, with_name=self.path,
            open=lambda mode: self.open(name), read_bytes=lambda: self.read(name),
        )  # fmt: skip

    def open(self, name: str) -> File:
        self.turn()
        self.files[name] = file = File(self)  # of one that was there nothing would be left
        self.waiting.append((None, name, file))
        return file

    def read(self, name: str) -> bytes:
        if name not in self.files:
            raise FileNotFoundError(name)
        return self.files[name].content

    def replace(self, name: str, other: str) -> None:
        self.turn()
        self.files[other] = file = self.files.pop(name)
        self.waiting.append((name, other, file))

    def sync(self, survives: Any = lambda: True) -> None:
        for old, name, file in self.waiting:
            if survives():
                if old is not None and self.platter.get(old) is file:
                    del self.platter[old]
                self.platter[name] = file
        self.waiting = []

    def fail(self, survives: Any) -> None:
        """Lose what does not survive."""
        for file in self.known():
            file.sync(survives)
        self.sync(survives)
        self.files, self.fails_at = dict(self.platter), -1

    def after(self, survives: Any) -> Drive:
        """Return the drive as it would be if the power failed now."""
        copies = {id(file): File(self, file.content, list(file.waiting)) for file in self.known()}
        of = lambda names: {name: copies[id(file)] for name, file in names.items()}  # noqa: E731
        waiting = [(old, name, copies[id(file)]) for old, name, file in self.waiting]
        drive = Drive(files=of(self.files), platter=of(self.platter), waiting=waiting)
        drive.fail(survives)
        return drive

    def known(self) -> list[File]:
        return [*self.files.values(), *self.platter.values(), *(each for *_, each in self.waiting)]


class Calls:
    """The functions of `os` that `Disk` uses, for drives."""

    name, O_RDONLY = "posix", 0

    @staticmethod
    def fsync(what: File | Drive) -> None:
        (what.drive if isinstance(what, File) else what).turn()
        what.sync()

    @staticmethod
    def replace(path: Any, other: Any) -> None:
        path.parent.replace(path.name, other.name)

    @staticmethod
    def open(folder: Drive, flags: int) -> Drive:
        return folder

    @staticmethod
    def close(folder: Drive) -> None:
        pass


class Watched(Disk):
    """A disk that is held to what was written."""

    def __init__(self, name: str) -> None:
        self.drive = Drive(before=self.ask)
        super().__init__(self.drive.path("state"), name)
        self.good: list[bytes | None] = [None]  # what was written, and what is being written
        self.draw = random.Random(0)

    def write(self, state: State) -> None:
        text = packed(state)
        self.good.append(text)
        super().write(state)
        self.good = [text]

    def ask(self) -> None:
        """Ask what there would be if the power failed now."""
        for chance in CHANCES:
            self.check(self.drive.after(lambda: self.draw.random() < chance))  # noqa: B023

    def check(self, drive: Drive) -> bytes | None:
        """Raise unless a drive has what was written last, or is being written."""
        found = Disk(drive.path("state"), self.run).read()
        text = None if found is None else packed(found)
        assert text in self.good, "an older state came back"
        return text

    def fail(self, chance: float) -> None:
        """Lose what does not survive."""
        self.drive.fail(lambda: self.draw.random() < chance)
        self.good = [self.check(self.drive)]


def packed(state: State) -> bytes:
    return b"".join(map(bytes, pack(state, "")))


class Judge(Properties):
    """Holds nodes to it that they write what they send before, beside all other properties."""

    disks: dict[str, Watched]

    def posted(self, sender: str, peer: str, kind: str, step: int, vector: Any) -> None:
        if sender in self.disks:
            found = self.disks[sender].read()
            assert found is not None
            steps = found.kept.get(kind) or found.kept.get(kind.partition("/")[0])  # of pieces
            said = found.arrays[f"{kind}/{step}"] if steps is None else steps[step][0]
            assert vector.tobytes() in said.tobytes(), "it was not written"
        super().posted(sender, peer, kind, step, vector)


class World:
    """A simulated cluster, two nodes of which have drives."""

    def __init__(self, cluster: Cluster) -> None:
        work = Quadratic(cluster)
        self.record = Record(cluster, work)  # type: ignore[arg-type]
        judge = Judge(cluster, self.record)
        self.network = Simulation(cluster, 1, lambda name: work, judge)
        judge.disks = self.disks = {name: Watched(name) for name in ("ps0", "w0")}
        self.network.disks.update(self.disks)  # type: ignore[arg-type]

    def run(self) -> bool:
        return self.network.run(self.record.finished, 1000.0)

    def power_loss(self, name: str, chance: float) -> None:
        """End a node whose machine has no power, and start it again from what its drive has."""
        self.disks[name].fail(chance)
        self.network.kill(name)
        self.network.at(self.network.now + 0.05, lambda: self.network.start(name))


def cluster(protocol: str, **settings: Any) -> Cluster:
    """Return a small cluster of a protocol in which a node may be away."""
    servers = {"byzsgd": {"count": 5, "f": 1}, "crash_tolerant": {"count": 3, "f": 1}}
    return cluster_of(
        {
            "protocol": {"name": protocol, **settings},
            "servers": servers.get(protocol, {"count": 1}),
            "workers": {"count": 5, "f": 0 if protocol == "vanilla" else 1},
            "training": {"model": "logistic", "steps": STEPS, "evaluate_every": STEPS},
        }
    )


CLUSTERS = [
    cluster("byzsgd", gather_every=1),
    cluster("byzsgd", gather_every=1, agreement="rbtm"),
    *(cluster(protocol) for protocol in PROTOCOLS if protocol != "byzsgd"),
]


@pytest.mark.parametrize("it", CLUSTERS, ids=lambda it: f"{it.text.name} {it.agreement}")
def test_what_survives_never_contradicts_what_was_sent(
    it: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At each operation; and from some of them the node goes on, and all properties hold."""
    monkeypatch.setattr(storage, "os", Calls)
    whole, draw = World(it), random.Random(1)
    assert whole.run()
    for name, disk in whole.disks.items():
        count = disk.drive.operations
        assert count > 8 * STEPS
        for at in sorted(draw.sample(range(count), 4)):
            world = World(it)
            world.disks[name].drive.fails_at = at
            with pytest.raises(PowerLoss):
                world.run()
            world.power_loss(name, draw.choice(CHANCES))
            assert world.run(), (name, at)
