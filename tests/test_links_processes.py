"""Links of nodes in processes of their own: stopped, killed, forked, ended at any moment."""

from __future__ import annotations

import json
import os
import random
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("cryptography")

from liar import NO_LAYOUT, Answerer, header
from linked import GRADIENT, MODEL, Net, connected, net, until

from fastgar.network import Address, Limits, wire

HERE = Path(__file__).parent
PATHS = os.pathsep.join([str(HERE), str(HERE.parent), os.environ.get("PYTHONPATH", "")])
LATE = {"patience": 60.0}


@contextmanager
def node(
    it: Net, name: str, peers: str, dials: bool = False, **options: Any
) -> Iterator[subprocess.Popen[str]]:
    """Run a node in a process, which is dialled or dials; its address is then known to the net."""
    addresses = {peer: it.addresses[peer] for peer in peers}
    if not dials:
        addresses = {peer: each._replace(host=None) for peer, each in addresses.items()}
    if name in it.sockets:
        it.sockets.pop(name).close()
    process = subprocess.Popen(
        [
            sys.executable, str(HERE / "one_node.py"), str(it.folder), name,
            json.dumps(addresses), json.dumps(options),
        ],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        env={**os.environ, "PYTHONPATH": PATHS},
    )  # fmt: skip
    try:
        assert process.stdout is not None
        port = process.stdout.readline()
        assert port, process.communicate()[1]
        it.addresses[name] = Address("127.0.0.1", int(port), it.addresses[name].fingerprint)
        yield process
    finally:
        process.kill()
        process.wait()
        for stream in (process.stdin, process.stdout, process.stderr):
            assert stream is not None
            stream.close()


def ended(process: subprocess.Popen[str]) -> dict[str, Any]:
    """End a node in order, and return what it says of its peers."""
    out, err = process.communicate("", timeout=60)
    assert process.returncode == 0, err
    assert "Traceback" not in err and "Fatal" not in err
    status: dict[str, Any] = json.loads(out)
    return status


def test_a_node_that_was_stopped_calls_nobody_dead(tmp_path: Path) -> None:
    with net(tmp_path, "a", "b") as it, node(it, "b", "a", limits={"patience": 1.0}) as b:
        a = it.start("a")
        connected(a)
        b.send_signal(signal.SIGSTOP)
        time.sleep(3)
        a.post("b", MODEL, 1, memoryview(bytes(4000)))
        b.send_signal(signal.SIGCONT)
        it.boxes["a"].wait("b", GRADIENT, 1)
        time.sleep(1)
        status = ended(b)["a"]
        assert status["closed"] == {} and status["connected"] and status["reconnects"] == 0


def test_a_step_that_keeps_the_interpreter_is_late_and_not_dead(tmp_path: Path) -> None:
    options = {"limits": {"patience": 1.0}, "hold": 3}
    with net(tmp_path, "a", "b") as it, node(it, "b", "a", **options) as b:
        a = it.start("a")
        connected(a)
        assert b.stdin is not None
        b.stdin.write("hold\n")
        b.stdin.flush()
        a.post("b", MODEL, 1, memoryview(bytes(4000)))
        it.boxes["a"].wait("b", GRADIENT, 1)
        assert a.status()["b"].reconnects == 0 and ended(b)["a"]["closed"] == {}


def test_a_killed_node_is_back_at_once_on_the_same_port(tmp_path: Path) -> None:
    with net(tmp_path, "a", "b") as it:
        with node(it, "b", "a") as b:
            a = it.start("a")
            connected(a)
            b.kill()
            b.wait()
        with node(it, "b", "a", port=it.addresses["b"].port):
            a.post("b", MODEL, 1, memoryview(bytes(4000)))
            it.boxes["a"].wait("b", GRADIENT, 1)
            assert a.status()["b"].reconnects == 1


def test_a_forked_child_holds_no_port_and_no_link(tmp_path: Path) -> None:
    with net(tmp_path, "a", "b") as it, node(it, "b", "a", fork=True) as b:
        a = it.start("a")
        connected(a)
        assert b.stdin is not None and b.stdout is not None
        b.stdin.write("fork\n")
        b.stdin.flush()
        child = int(b.stdout.readline())
        try:
            b.kill()
            b.wait()
            until(lambda: not a.status()["b"].connected)
            again = socket.create_server(("127.0.0.1", it.addresses["b"].port))
            again.close()
            os.kill(child, 0)  # it lives
        finally:
            os.kill(child, signal.SIGKILL)


def test_exits_at_random_moments_leave_no_word(tmp_path: Path) -> None:
    draw = random.Random(0)
    exits = [draw.uniform(0, 0.4) for _ in range(20)]
    with net(tmp_path, "a", "b") as it:
        b = it.start("b", limits=Limits(burst=1000))
        it.boxes["b"].rule = lambda peer, kind, step: False
        with node(it, "a", "b", dials=True, exits=exits, talk=True) as a:
            step = 0
            while a.poll() is None:
                step += 1
                b.post("a", MODEL, step, memoryview(bytes(4000)))
                time.sleep(0.001)
            assert a.stderr is not None
            assert (a.returncode, a.stderr.read()) == (0, "")
        assert b.status()["a"].reconnects > 10 and b.status()["a"].skipped > 100


def test_without_descriptors_new_connections_wait_and_links_live(tmp_path: Path) -> None:
    with net(tmp_path, "a", "b") as it, node(it, "b", "a", descriptors=24, limits=LATE) as b:
        a = it.start("a")
        connected(a)
        strangers = [socket.create_connection(it.addresses["b"][:2]) for _ in range(40)]
        time.sleep(0.5)
        a.post("b", MODEL, 1, memoryview(bytes(4000)))
        it.boxes["a"].wait("b", GRADIENT, 1)
        for sock in strangers:
            sock.close()
        late = socket.create_connection(it.addresses["b"][:2])
        late.settimeout(20)
        late.sendall(b"nonsense")
        assert late.recv(1) == b""  # it was accepted, and refused
        late.close()
        _, err = b.communicate("", timeout=60)
        assert b.returncode == 0 and a.status()["b"].reconnects == 0
        assert err.count("new connections wait: Too many open files") == 1


def liar(it: Net, *numbers: int) -> subprocess.CompletedProcess[str]:
    """Run the peer a, which asks b for key updates."""
    done = subprocess.run(
        [
            sys.executable, str(HERE / "key_updates.py"), str(it.folder),
            str(it.addresses["b"].port), *map(str, numbers),
        ],
        env={**os.environ, "PYTHONPATH": PATHS}, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    if done.returncode == 77:
        pytest.skip(NO_LAYOUT)
    return done


@pytest.mark.parametrize("reads", [1, 0])
@pytest.mark.parametrize(("size", "messages"), [(4000, 600), (100_000, 60)])
def test_a_peer_that_asks_for_key_updates_costs_at_most_its_connection(
    tmp_path: Path, size: int, messages: int, reads: int
) -> None:
    sizes = {MODEL: size, GRADIENT: size}
    options = {"size": size, "talk": True, "limits": {"burst": 1000}}
    with net(tmp_path, "a", "b", "c", sizes=sizes) as it, node(it, "b", "ac", **options) as b:
        for _ in range(2):
            done = liar(it, size, messages, reads)
            assert done.returncode == 0, done.stderr
            updates, got = map(int, done.stdout.split())
            assert updates == messages and (got > size) == bool(reads)
            assert b.poll() is None, "the honest process was killed"
        c = it.start("c", peers={"b": it.addresses["b"]})
        it.boxes["c"].rule = lambda peer, kind, step: kind == GRADIENT
        connected(c)
        c.post("b", MODEL, 1, memoryview(bytes(size)))
        it.boxes["c"].wait("b", GRADIENT, 1)
        status = ended(b)
        assert status["a"]["messages_in"] > messages and status["c"]["closed"] == {}


def test_answers_to_key_updates_are_not_kept_for_who_does_not_read_them(tmp_path: Path) -> None:
    options = {"size": 4 << 20, "talk": True}
    with net(tmp_path, "a", "b") as it, node(it, "b", "a", **options) as b:
        done = liar(it, 0, 100_000, 0)
        assert done.returncode == 1 and "Error" in done.stderr  # it was cut off
        assert ended(b)["a"]["closed"] == {"updates": 1}


def memory(pid: int) -> int:
    """Return the bytes that a process has in memory."""
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


PLAIN, ANSWERED = 0, 1  # key updates, the second of which the other end has to answer


@pytest.mark.parametrize("what", ["tickets", "updates", "updates to answer"])
def test_tickets_and_key_updates_of_who_is_dialled_cost_no_memory(
    tmp_path: Path, what: str
) -> None:
    """Twenty thousand while it comes in, and between any two messages as many as it likes."""
    ping = header(kind=wire.PING, dtype=0, length=0)
    with net(tmp_path, "a", "b", "c") as it:
        listener = it.sockets.pop("c")
        with node(it, "b", "ac", dials=True, limits=LATE) as b:
            a = it.start("a", peers={"b": it.addresses["b"]})
            connected(a)
            try:
                c = Answerer(tmp_path, "c", "b", listener, 20_000 if what == "tickets" else 0)
            except LookupError as error:
                pytest.skip(str(error))
            c.greet()
            most = []
            for _ in range(30):
                for _ in range(1000):
                    if what == "tickets":
                        assert c.library.SSL_new_session_ticket(c.raw)
                    else:
                        how = PLAIN if what == "updates" else ANSWERED
                        assert c.library.SSL_key_update(c.raw, how)
                        c.channel.tls.do_handshake()
                c.send(ping)
                if what == "updates to answer":
                    c.channel.skip(wire.HEADER.size)
                most.append(memory(b.pid))
            c.send(header(), bytes(4000))
            for _ in range(40):  # the answers to pings, and then the model as a gradient
                piece = bytearray(wire.HEADER.size)
                c.channel.read_into(memoryview(piece))
                if wire.HEADER.unpack(piece)[2] == GRADIENT:
                    break
            a.post("b", MODEL, 1, memoryview(bytes(4000)))
            it.boxes["a"].wait("b", GRADIENT, 1)
            assert most[-1] - most[0] < 30_000 * 27 // 2, most  # of what they took on the wire
            status = ended(b)
            assert status["a"]["closed"] == {} and status["c"]["messages_in"] == 1
            assert status["c"]["bytes_in"] > 30_000 * 27
            c.close()
        listener.close()
