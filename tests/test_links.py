"""Links between nodes that keep to the rules, over real sockets and whatever happens to these."""

from __future__ import annotations

import hashlib
import os
import socket
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("cryptography")

from linked import ABOUT, GRADIENT, MODEL, Box, connected, net, until

from fastgar.network import LATER, Address, Limits, connect
from fastgar.network.peer import Status

QUICK = Limits(heartbeat=0.25, patience=1.5)


def numbers(step: int, size: int = 4000) -> bytes:
    return step.to_bytes(4, "big") * (size // 4)


def posted(links: Any, peer: str, kind: int, *steps: int, size: int = 4000) -> None:
    for step in steps:
        links.post(peer, kind, step, memoryview(numbers(step, size)))


def test_messages_go_both_ways(tmp_path: Path) -> None:
    with net(tmp_path, "a", "b", sizes={MODEL: 3_000_001, GRADIENT: 8}) as it:
        a, b = it.start("a"), it.start("b")
        big, small = os.urandom(3_000_001), os.urandom(8)
        digest = hashlib.sha256(big).digest()
        a.post("b", MODEL, 0, memoryview(big), digest)
        b.post("a", GRADIENT, 7, memoryview(small))
        assert it.boxes["b"].wait("a", MODEL, 0) == big
        assert it.boxes["b"].digests["a", MODEL, 0] == digest
        assert it.boxes["a"].wait("b", GRADIENT, 7) == small
        assert it.boxes["a"].digests["b", GRADIENT, 7] == b""
        connected(a, b)
        status = b.status()["a"]
        assert status.messages_in == 1 and status.bytes_in > len(big) and status.reconnects == 0
        assert it.boxes["a"].hellos == [("b", {})]


def test_both_ways_at_once_with_full_buffers_nobody_waits_for_ever(tmp_path: Path) -> None:
    size = 24 << 20  # more than all buffers between two nodes hold
    with net(tmp_path, "a", "b", sizes={MODEL: size}) as it:
        a, b = it.start("a"), it.start("b")
        connected(a, b)
        for step in range(3):
            posted(a, "b", MODEL, step, size=size)
            posted(b, "a", MODEL, step, size=size)
            for box, peer in ((it.boxes["a"], "b"), (it.boxes["b"], "a")):
                assert box.wait(peer, MODEL, step, seconds=60) == numbers(step, size)
                box.got.clear()


def test_who_does_not_listen_dials_whatever_its_name(tmp_path: Path) -> None:
    with net(tmp_path, "a") as it:
        it.node("b", listens=False)
        a, b = it.start("a"), it.start("b")
        posted(a, "b", MODEL, 3)
        posted(b, "a", GRADIENT, 4)
        it.boxes["b"].wait("a", MODEL, 3)
        it.boxes["a"].wait("b", GRADIENT, 4)
        assert a.port is not None and b.port is None


def test_the_two_newest_steps_of_a_kind_are_kept_for_who_comes_later(tmp_path: Path) -> None:
    with net(tmp_path, "a", "b") as it:
        a = it.start("a")
        posted(a, "b", MODEL, 0, 1, 2, 3)
        posted(a, "b", GRADIENT, 9, 8, 7)  # in any order
        it.start("b")
        for what in ((MODEL, 2), (MODEL, 3), (GRADIENT, 8), (GRADIENT, 9)):
            it.boxes["b"].wait("a", *what)
        time.sleep(0.1)
        assert len(it.boxes["b"].got) == 4


def test_a_message_half_sent_is_finished_and_the_older_one_behind_it_dropped(
    tmp_path: Path,
) -> None:
    size = 32 << 20
    with net(tmp_path, "a", "b", sizes={MODEL: size}) as it:
        relay = it.relay("b")
        b = it.start("b")
        a = it.start("a")
        connected(a, b)
        relay.hold.add("up")
        posted(a, "b", MODEL, 0, size=size)
        until(lambda: a.status()["b"].bytes_out > 1 << 20)
        posted(a, "b", MODEL, 1, 2, 3, size=size)
        relay.hold.clear()
        for step in (0, 2, 3):
            assert it.boxes["b"].wait("a", MODEL, step, seconds=60) == numbers(step, size)
            it.boxes["b"].got["a", MODEL, step] = bytearray()
        assert ("a", MODEL, 1) not in it.boxes["b"].got


def test_a_step_that_is_posted_again_is_sent_again(tmp_path: Path) -> None:
    with net(tmp_path, "a", "b") as it:
        a, b = it.start("a"), it.start("b")
        posted(a, "b", MODEL, 5)
        it.boxes["b"].wait("a", MODEL, 5)
        posted(a, "b", MODEL, 5)
        until(lambda: b.status()["a"].skipped == 1)
        assert len(it.boxes["b"].got) == 1


def test_a_message_may_be_empty(tmp_path: Path) -> None:
    with net(tmp_path, "a", "b", sizes={MODEL: 0, GRADIENT: 4}) as it:
        a = it.start("a")
        it.start("b")
        a.post("b", MODEL, 3, memoryview(b""), b"d" * 32)
        a.post("b", GRADIENT, 3, memoryview(b"abcd"))
        assert it.boxes["b"].wait("a", MODEL, 3) == b""
        assert it.boxes["b"].wait("a", GRADIENT, 3) == b"abcd"


def test_what_is_kept_is_sent_again_after_the_connection_broke(tmp_path: Path) -> None:
    size = 8 << 20
    with net(tmp_path, "a", "b", sizes={MODEL: size}) as it:
        relay = it.relay("b")
        a, b = it.start("a"), it.start("b")
        connected(a, b)
        posted(a, "b", MODEL, 0, size=size)
        it.boxes["b"].wait("a", MODEL, 0)
        relay.hold.add("up")
        posted(a, "b", MODEL, 1, size=size)
        until(lambda: ("a", MODEL, 1) in it.boxes["b"].slots or a.status()["b"].bytes_out > size)
        relay.cut()
        relay.hold.clear()
        assert it.boxes["b"].wait("a", MODEL, 1) == numbers(1, size)
        status = b.status()["a"]
        assert status.reconnects == 1 and status.skipped == 1  # step 0 came twice
        assert sum(it.boxes["b"].gone.values()) <= 1
        assert it.boxes["a"].hellos[-1] == ("b", {MODEL: (0, "")})


def test_a_slot_whose_message_breaks_off_is_given_back(tmp_path: Path) -> None:
    size = 32 << 20
    with net(tmp_path, "a", "b", sizes={MODEL: size}) as it:
        relay = it.relay("b")
        a, b = it.start("a"), it.start("b")
        connected(a, b)
        relay.delay = 0.01  # 6 MB a second
        posted(a, "b", MODEL, 0, size=size)
        until(lambda: it.boxes["b"].slots)
        relay.delay = 0.0
        relay.cut()
        until(lambda: it.boxes["b"].gone == {("a", MODEL, 0): 1})
        assert it.boxes["b"].wait("a", MODEL, 0, seconds=60) == numbers(0, size)


def test_a_restarted_node_is_back_on_the_same_port(tmp_path: Path) -> None:
    with net(tmp_path, "a", "b") as it:
        a, b = it.start("a"), it.start("b")
        posted(a, "b", MODEL, 11)
        it.boxes["b"].wait("a", MODEL, 11)
        b.close()
        again = it.start("b")
        assert it.boxes["b"].wait("a", MODEL, 11) == numbers(11)
        posted(again, "a", GRADIENT, 1)
        it.boxes["a"].wait("b", GRADIENT, 1)
        assert a.status()["b"].reconnects == 1 and a.status()["b"].closed == {"left": 1}


def test_both_dial_at_once_and_one_connection_remains(tmp_path: Path) -> None:
    with net(tmp_path, "a", "b") as it:
        a = it.start("a", limits=Limits(backoff=0.001, burst=1000))
        ends: Counter[str] = Counter()
        for turn in range(10):
            b = it.start("b", limits=Limits(second=0.0, burst=1000))
            posted(b, "a", MODEL, turn)
            it.boxes["a"].wait("b", MODEL, turn)
            connected(a, b)
            time.sleep(0.1)
            posted(a, "b", GRADIENT, turn)
            it.boxes["b"].wait("a", GRADIENT, turn)
            connected(a, b)
            until(lambda b=b: len(a.company.links()) == len(b.company.links()) == 1)  # type: ignore
            ends.update(b.status()["a"].closed)
            b.close()
        assert not {*ends} - {"double", "replaced", "left"}


def test_who_is_not_the_first_to_dial_dials_where_the_first_does_not(tmp_path: Path) -> None:
    with net(tmp_path, "a", "b") as it:
        b = it.start("b")
        nowhere = it.addresses["b"]._replace(host="nowhere.invalid")
        connected(it.start("a", peers={"b": nowhere}), b)


def test_every_address_of_a_name_is_tried_and_asked_for_each_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with net(tmp_path, "a", "b") as it:
        asked = []
        closed = socket.create_server(("127.0.0.1", 0))
        dead = closed.getsockname()
        closed.close()

        def resolve(host: str, port: int, **options: int) -> list[Any]:
            asked.append(host)
            found = [dead] if len(asked) < 3 else [dead, ("127.0.0.1", port)]
            return [(socket.AF_INET, socket.SOCK_STREAM, 0, "", each) for each in found]

        monkeypatch.setattr(connect.socket, "getaddrinfo", resolve)
        b = it.start("b")
        _, port, pin = it.addresses["b"]
        a = it.start("a", peers={"b": Address("b.example", port, pin)})
        connected(a, b)
        assert asked == ["b.example"] * 3


def test_localhost_has_two_addresses_and_one_of_them_is_listened_at(tmp_path: Path) -> None:
    with net(tmp_path, "a", "b") as it:
        _, port, pin = it.addresses["b"]
        it.addresses["b"] = Address("localhost", port, pin)
        connected(it.start("a"), it.start("b", peers={"a": it.addresses["a"]}))


def test_an_empty_host_is_every_address(tmp_path: Path) -> None:
    with net(tmp_path, "a", "b") as it:
        b = it.start("b", listen=("", 0))
        assert b.port
        it.addresses["b"] = Address("localhost", b.port, it.addresses["b"].fingerprint)
        connected(it.start("a"), b)


def test_the_same_key_twice_the_second_is_refused_and_the_first_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with net(tmp_path, "a", "b") as it:
        a, b = it.start("a"), it.start("b")
        connected(a, b)
        first = it.boxes["a"]
        b_only = {"b": it.addresses["b"]}
        second = it.start("a", peers=b_only, listen=None)
        posted(second, "b", MODEL, 1)
        until(lambda: second.status()["b"].refused)
        sentence = "b refused: b has a link with another process that uses the key of a"
        assert second.status()["b"].refused == sentence
        assert second.status()["b"].second and not a.status()["b"].second
        until(lambda: a.status()["b"].twins == 1)
        until(lambda: "b refused another process with the key of a" in caplog.text)
        posted(a, "b", MODEL, 2)
        posted(b, "a", GRADIENT, 2)
        it.boxes["b"].wait("a", MODEL, 2)
        first.lock.acquire()
        assert first.lock.wait_for(lambda: ("b", GRADIENT, 2) in first.got, 20)
        first.lock.release()
        assert ("a", MODEL, 1) not in it.boxes["b"].got
        assert a.status()["b"].reconnects == 0


def test_a_new_process_takes_the_place_of_one_that_does_not_answer(tmp_path: Path) -> None:
    with net(tmp_path, "a", "b") as it:
        direct = it.addresses["b"]
        relay = it.relay("b")
        b = it.start("b", peers={"a": it.addresses["a"]})
        a = it.start("a")
        connected(a, b)
        relay.swallow |= {"up", "down"}  # as if its machine had lost its power
        again = it.start("a", peers={"b": direct}, listen=None)
        began = time.monotonic()
        posted(again, "b", MODEL, 1)
        it.boxes["b"].wait("a", MODEL, 1)
        assert time.monotonic() - began < 2 * b.limits.twin
        assert b.status()["a"].closed == {"replaced": 1}


def test_a_difference_is_refused_in_the_same_sentence_at_both_ends(tmp_path: Path) -> None:
    with net(tmp_path, "a", "b") as it:
        a = it.start("a")
        b = it.start("b", about=ABOUT | {"d": 1001})
        until(lambda: a.status()["b"].refused and b.status()["a"].refused)
        sentence = "a and b do not fit: d is 1000 at a and 1001 at b"
        for status in (a.status()["b"], b.status()["a"]):
            assert status.refused == sentence
            assert not status.connected


def test_a_difference_that_is_tolerated_is_reported(tmp_path: Path) -> None:
    with net(tmp_path, "a", "b") as it:
        options = {"tolerated": ["torch", "gradient"]}
        a = it.start("a", about=ABOUT | {"torch": "2.13"}, **options)
        b = it.start("b", about=ABOUT | {"torch": "2.14", "gradient": "ab"}, **options)
        connected(a, b)
        assert set(a.status()["b"].differs) == {"torch", "gradient"}
        assert b.status()["a"].differs["torch"] == "torch is '2.13' at a and '2.14' at b"


def test_another_run_is_refused(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with net(tmp_path, "a", "b") as it:
        limits = Limits(backoff_refused=0.1)
        a = it.start("a", identity=b"last week", limits=limits)
        b = it.start("b")
        until(lambda: b.status()["a"].closed.get("run", 0) >= 5)
        for status in (a.status()["b"], b.status()["a"]):
            assert "not in the same run" in str(status.refused)
        assert sum("b: a connection with a" in line for line in caplog.messages) == 1


def test_one_peer_waits_and_the_others_go_on(tmp_path: Path) -> None:
    with net(tmp_path, "a", "b", "c") as it:
        a, b, c = (it.start(name, limits=QUICK) for name in "abc")
        connected(a, b, c)
        box = it.boxes["a"]
        box.rule = lambda peer, kind, step: LATER if peer == "b" and step > 1 else True
        posted(b, "a", MODEL, 1)
        box.wait("b", MODEL, 1)
        posted(b, "a", MODEL, 2)
        posted(b, "a", GRADIENT, 1)  # behind it
        until(lambda: a.status()["b"].paused)
        posted(c, "a", MODEL, 2, 3)
        box.wait("c", MODEL, 3)
        time.sleep(2 * QUICK.patience)  # longer than any of them is silent
        assert ("b", GRADIENT, 1) not in box.got
        assert a.status()["b"].connected and b.status()["a"].connected
        assert a.status()["b"].reconnects == 0
        a.resume("b")  # too early: asked again, and LATER again
        box.rule = lambda peer, kind, step: True
        a.resume("b")
        box.wait("b", MODEL, 2)
        box.wait("b", GRADIENT, 1)


def test_a_node_that_is_slow_to_give_a_slot_calls_nobody_silent(tmp_path: Path) -> None:
    class Slow(Box):
        def slot(self, peer: str, kind: int, step: int) -> Any:
            time.sleep(2 * QUICK.patience)
            return super().slot(peer, kind, step)

    with net(tmp_path, "a", "b") as it:
        box = Slow(it.sizes)
        a, b = it.start("a", limits=QUICK), it.start("b", limits=QUICK, inbox=box)
        connected(a, b)
        posted(a, "b", MODEL, 1)
        box.wait("a", MODEL, 1)
        assert a.status()["b"].closed == b.status()["a"].closed == {}


def test_a_node_that_lets_a_peer_wait_is_closed_all_the_same(tmp_path: Path) -> None:
    with net(tmp_path, "a", "b") as it:
        a, b = it.start("a"), it.start("b")
        it.boxes["b"].rule = lambda peer, kind, step: LATER
        posted(a, "b", MODEL, 1)
        until(lambda: b.status()["a"].paused)
        began = time.monotonic()
        b.close()
        assert time.monotonic() - began < 5 and not it.boxes["b"].slots
        b.resume("a")  # harms nobody


@pytest.mark.parametrize("direction", ["up", "down"])
@pytest.mark.parametrize("way", ["swallow", "hold"])
def test_one_direction_that_is_silent_is_noticed(tmp_path: Path, direction: str, way: str) -> None:
    with net(tmp_path, "a", "b", sizes={MODEL: 16 << 20}) as it:
        relay = it.relay("b")
        a, b = it.start("a", limits=QUICK), it.start("b", limits=QUICK)
        connected(a, b)
        getattr(relay, way).add(direction)
        posted(a, "b", MODEL, 0, size=16 << 20)
        posted(b, "a", MODEL, 0, size=16 << 20)
        silent = a if direction == "down" else b
        (name,) = silent.peers
        until(lambda: silent.status()[name].closed.get("silent"))
        getattr(relay, way).clear()
        it.boxes["a"].wait("b", MODEL, 0)
        it.boxes["b"].wait("a", MODEL, 0)


def test_a_relay_that_forgets_what_is_idle_never_finds_it_idle(tmp_path: Path) -> None:
    with net(tmp_path, "a", "b") as it:
        relay = it.relay("b")
        relay.forget = 1.5
        a, b = it.start("a", limits=QUICK), it.start("b", limits=QUICK)
        connected(a, b)
        time.sleep(3)
        posted(a, "b", MODEL, 0)
        it.boxes["b"].wait("a", MODEL, 0)
        assert a.status()["b"].reconnects == 0


def test_a_relay_that_forgets_is_survived(tmp_path: Path) -> None:
    with net(tmp_path, "a", "b") as it:
        relay = it.relay("b")
        relay.forget = 0.2
        a, b = it.start("a", limits=QUICK), it.start("b", limits=QUICK)
        connected(a, b)
        time.sleep(0.5)
        posted(a, "b", MODEL, 0)
        it.boxes["b"].wait("a", MODEL, 0)


def test_broken_connections_delay_messages_and_lose_none(tmp_path: Path) -> None:
    with net(tmp_path, "a", "b", sizes={MODEL: 1 << 20}) as it:
        relay = it.relay("b")
        a, b = it.start("a", limits=Limits(backoff_most=0.2)), it.start("b")
        connected(a, b)
        relay.loss = 0.03
        for step in range(6):
            posted(a, "b", MODEL, step, size=1 << 20)
            assert it.boxes["b"].wait("a", MODEL, step, seconds=60) == numbers(step, 1 << 20)
        assert a.status()["b"].reconnects > 0


def test_a_partition_heals(tmp_path: Path) -> None:
    with net(tmp_path, "a", "b") as it:
        relay = it.relay("b")
        a, b = it.start("a"), it.start("b")
        connected(a, b)
        relay.refuse = True
        relay.cut()
        until(lambda: relay.connections >= 5)
        assert not a.status()["b"].connected
        relay.refuse = False
        healed = time.monotonic()
        connected(a, b)
        assert time.monotonic() - healed < 5


def test_many_nodes_come_back_to_one_that_was_restarted(tmp_path: Path) -> None:
    names = [f"worker{each}" for each in range(30)]
    with net(tmp_path, "server") as it:
        for name in names:
            it.node(name, listens=False)
        server = it.start("server")
        workers = [it.start(name, {"server": it.addresses["server"]}) for name in names]
        connected(server, *workers)
        server.close()
        server = it.start("server", limits=Limits(handshakes=8))  # fewer than come at once
        connected(server, *workers)
        assert {*server.strangers()} <= {"slow"}
        for worker in workers:
            posted(worker, "server", GRADIENT, 1)
        for name in names:
            it.boxes["server"].wait(name, GRADIENT, 1)


def test_a_flapping_link_is_dialled_ever_more_slowly(tmp_path: Path) -> None:
    with net(tmp_path, "a", "b") as it:
        relay = it.relay("b")
        a, b = it.start("a"), it.start("b")
        end = time.monotonic() + 3
        while time.monotonic() < end:
            if a.status()["b"].connected:
                relay.cut()
            time.sleep(0.005)
        # .05 to .1, .1 to .2, .2 to .4, .4 to .8, .8 to 1.6, 1.6 to 3.2: without, hundreds.
        assert relay.connections <= 8
        healed = time.monotonic()
        connected(a, b)
        assert time.monotonic() - healed < 5


def test_the_clock_of_the_wall_jumps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with net(tmp_path, "a", "b") as it:
        a, b = it.start("a", limits=QUICK), it.start("b", limits=QUICK)
        connected(a, b)
        real = time.time
        for hours in (1, -1):
            monkeypatch.setattr(time, "time", lambda hours=hours: real() + 3600 * hours)
            time.sleep(2 * QUICK.patience)
            posted(a, "b", MODEL, 10 + hours)
            it.boxes["b"].wait("a", MODEL, 10 + hours)
        assert a.status()["b"].reconnects == 0


def test_what_was_posted_before_closing_arrives_whole(tmp_path: Path) -> None:
    with net(tmp_path, "a", "b", sizes={MODEL: 300_000}) as it:
        b = it.start("b", limits=Limits(burst=1000))
        for turn in range(20):
            a = it.start("a")
            connected(a)
            posted(a, "b", MODEL, turn, size=300_000)
            began = time.monotonic()
            a.close(20.0)
            assert time.monotonic() - began < 20
            assert it.boxes["b"].wait("a", MODEL, turn) == numbers(turn, 300_000)
            until(lambda: not b.status()["a"].connected)
        assert b.status()["a"].closed == {"left": 20}


def test_closing_waits_no_longer_than_it_was_told(tmp_path: Path) -> None:
    with net(tmp_path, "a", "b", sizes={MODEL: 64 << 20}) as it:
        relay = it.relay("b")
        a, b = it.start("a"), it.start("b")
        connected(a, b)
        relay.hold |= {"up", "down"}
        posted(a, "b", MODEL, 0, size=64 << 20)
        began = time.monotonic()
        a.close()
        assert time.monotonic() - began < 5
        a.post("b", MODEL, 1, memoryview(bytes(64 << 20)))  # does nothing, and harms nobody


def test_about_says_words_and_numbers(tmp_path: Path) -> None:
    with net(tmp_path, "a") as it:
        listening = it.sockets["a"]
        for about in ({"d": [1]}, {"d": b"1"}, {"d": object()}, {"d": "x" * 9000}):
            with pytest.raises(ValueError, match="about must h"):
                it.start("a", about=about, listen=None)
        listening.close()


def test_a_node_that_never_started_is_closed(tmp_path: Path) -> None:
    from fastgar.network import Links

    with net(tmp_path, "a", "b") as it:
        links = Links(**it.options("a", {"b": it.addresses["b"]}))
        links.close()
        again = it.start("a")  # the port is free
        assert isinstance(again.status()["b"], Status)


def test_what_the_inbox_raises_costs_that_connection(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    class Failing(Box):
        def slot(self, peer: str, kind: int, step: int) -> Any:
            return memoryview(bytearray(3)) if step == 0 else super().slot(peer, kind, step)

    with net(tmp_path, "a", "b") as it:
        box = Failing(it.sizes)
        a, b = it.start("a"), it.start("b", inbox=box)
        posted(a, "b", MODEL, 0)
        until(lambda: b.status()["a"].closed.get("inbox", 0) >= 2)
        posted(a, "b", MODEL, 1, 2)
        box.wait("a", MODEL, 2)
        assert "the inbox failed on a message of a" in caplog.text


WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "itself": ({"peers": {"a": ("h", 1, "00")}}, "'a' has this node's name or key"),
    "two": ({"peers": {"b": ("h", 1, "0"), "c": ("h", 1, "0")}}, "two peers have the same key"),
    "deaf": ({"peers": {"b": (None, 1, "0")}, "listen": None}, "both do not listen"),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_cannot_be_is_said_at_once(tmp_path: Path, case: str) -> None:
    from fastgar.network import Links

    options, sentence = WRONG[case]
    with net(tmp_path, "a") as it:
        options = dict(options)
        options["peers"] = {k: Address(*v) for k, v in options["peers"].items()}
        listening = it.sockets["a"]
        with pytest.raises(ValueError, match=sentence):
            Links(**it.options("a", {}) | options)
        listening.close()


def test_an_address_that_is_taken_is_said_in_one_sentence(tmp_path: Path) -> None:
    with net(tmp_path, "a", "b") as it:
        it.start("b")
        with pytest.raises(OSError, match=r"cannot listen on .*: Address already in use"):
            it.start("b")


def test_what_cannot_be_posted(tmp_path: Path) -> None:
    with net(tmp_path, "a", "b") as it:
        a = it.start("a")
        with pytest.raises(ValueError, match="kind 0 has 4000 bytes, got 3"):
            a.post("b", MODEL, 0, memoryview(b"abc"))
        with pytest.raises(ValueError, match="there is none"):
            a.post("b", 77, 0, memoryview(b"abc"))
        with pytest.raises(ValueError, match="step must be from 0"):
            a.post("b", MODEL, -1, memoryview(bytes(4000)))
        with pytest.raises(ValueError, match="a digest has 32 bytes, got 3"):
            a.post("b", MODEL, 0, memoryview(bytes(4000)), b"abc")
