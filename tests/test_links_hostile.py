"""Links against strangers, and against peers with a good key that keep to no rule."""

from __future__ import annotations

import contextlib
import json
import os
import resource
import ssl
import struct
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("cryptography")

from hypothesis import given, settings
from hypothesis import strategies as st
from liar import RUN, Liar, closed, connect, header
from linked import GRADIENT, MODEL, Net, connected, left, net, until

from fastgar.network import LATER, Kind, Limits, Links, Violation, hello, make_key, wire
from fastgar.network.keys import certificate
from fastgar.network.tls import Channel, Ended, client_context

FORMAT = wire.Format(RUN, {MODEL: Kind(4000), GRADIENT: Kind(3 << 20, "bfloat16")})
MANY = Limits(burst=1000)


@contextmanager
def honest(folder: Path, **options: Any) -> Iterator[tuple[Net, Links]]:
    """Yield a net with the node b, which waits for a and c and does not dial them."""
    with net(folder, "a", "b", "c") as it:
        it.relayed.add("b")
        yield it, it.start("b", **{"limits": MANY} | options)


# ----------------------------------------------------------------------------- strangers


def test_an_honest_node_is_in_within_5_s_while_1000_are_silent_and_20_slow(tmp_path: Path) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, max(soft, 4096)), hard))
    with honest(tmp_path) as (it, _):
        text = hello.preamble(certificate(tmp_path / "c.pem"))
        strangers = [connect(it.addresses["b"]) for _ in range(1000)]
        slow = [connect(it.addresses["b"]) for _ in range(20)]
        began = time.monotonic()
        a = it.start("a", peers={"b": it.addresses["b"]})
        for at in range(100):
            for sock in slow:
                try:
                    sock.sendall(text[at : at + 1])
                except ConnectionError:
                    continue
            if a.status()["b"].connected:
                break
            time.sleep(0.05)
        assert time.monotonic() - began < 5 and a.status()["b"].connected
        for sock in (*strangers, *slow):
            sock.close()
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_who_shows_a_nodes_certificate_and_waits_does_not_keep_the_node_out(tmp_path: Path) -> None:
    with honest(tmp_path, limits=Limits(handshakes=32)) as (it, b):
        text = hello.preamble(certificate(tmp_path / "a.pem"))
        impostors = [connect(it.addresses["b"]) for _ in range(200)]
        for sock in impostors:
            with contextlib.suppress(ConnectionError):
                sock.sendall(text + b"\x16")
        began = time.monotonic()
        connected(it.start("a", peers={"b": it.addresses["b"]}))
        assert time.monotonic() - began < 5 and b.strangers()["slow"] > 100
        for sock in impostors:
            sock.close()


def test_the_deadline_is_for_the_whole_handshake(tmp_path: Path) -> None:
    with honest(tmp_path, limits=Limits(handshake=0.5)) as (it, b):
        sock = connect(it.addresses["b"])
        text = hello.preamble(certificate(tmp_path / "a.pem"))
        for at in range(len(text)):
            try:
                sock.sendall(text[at : at + 1])
            except ConnectionError:
                break
            time.sleep(0.05)
        else:
            pytest.fail("it may say a byte at a time for ever")
        assert b.strangers() == {"slow": 1}
        sock.close()


def test_a_stranger_is_refused_before_tls_begins(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(*of: Any, **options: Any) -> None:
        raise AssertionError("TLS has begun")

    with honest(tmp_path) as (it, b):
        make_key(tmp_path / "stranger.pem", "a")  # the right name, another key
        monkeypatch.setattr("fastgar.network.door.Channel", never)
        sock = connect(it.addresses["b"])
        sock.sendall(hello.preamble(certificate(tmp_path / "stranger.pem")))
        assert closed(sock)
        assert b.strangers() == {"key": 1}
        sock.close()


def test_who_shows_the_certificate_of_another_has_not_its_key(tmp_path: Path) -> None:
    with honest(tmp_path) as (it, b):
        make_key(tmp_path / "stranger.pem", "a")
        sock = connect(it.addresses["b"])
        sock.sendall(hello.preamble(certificate(tmp_path / "a.pem")))
        channel = Channel(sock, client_context(tmp_path / "stranger.pem"), server_side=False)
        channel.handshake()
        with pytest.raises((ssl.SSLError, ConnectionError, Ended)):
            hello.receive(channel)
        until(lambda: b.strangers() == {"tls": 1})
        assert not b.status()["a"].connected and not it.boxes["b"].hellos
        sock.close()


def test_a_listener_with_another_key_hears_nothing(tmp_path: Path) -> None:
    with net(tmp_path, "a", "b", "c") as it:
        wrong = it.addresses["b"]._replace(fingerprint=it.addresses["c"].fingerprint)
        it.start("b", peers={"a": it.addresses["a"]})
        a = it.start("a", peers={"c": wrong})
        a.post("c", MODEL, 0, memoryview(bytes(4000)))
        until(lambda: a.status()["c"].refused)
        assert "has another key" in str(a.status()["c"].refused)
        assert not it.boxes["b"].hellos and not it.boxes["b"].got


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (b"GET / HTTP/1.1\r\n\r\n", "preamble"),
        (b"\x16\x03\x01\x02\x00\x01\x00", "preamble"),
        (hello.PREAMBLE + b"\xff\xff", "preamble"),
        (hello.PREAMBLE + b"\0\0", "preamble"),
        (hello.PREAMBLE + b"\0\x04abcd", "key"),
        (os.urandom(5000), "preamble"),
    ],
)
def test_garbage_is_refused(tmp_path: Path, text: bytes, reason: str) -> None:
    with honest(tmp_path) as (it, b):
        sock = connect(it.addresses["b"])
        sock.sendall(text)
        assert closed(sock)
        assert b.strangers() == {reason: 1}
        sock.close()


def test_strangers_grow_neither_the_log_nor_memory(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with honest(tmp_path) as (it, b):
        for _ in range(500):
            sock = connect(it.addresses["b"])
            sock.sendall(hello.PREAMBLE + b"\0\x04abcd")
            assert closed(sock)
            sock.close()
        assert b.strangers() == {"key": 500}
        assert b.door is not None and not b.door.guests and not b.door._anchored
        assert len([line for line in caplog.messages if "refused" in line]) == 1
        assert len(b.say._last) <= 3


def test_a_peer_that_connects_again_and_again_is_let_wait(tmp_path: Path) -> None:
    with honest(tmp_path, limits=Limits(burst=5)) as (it, b):
        began = time.monotonic()
        for turn in range(30):
            try:
                Liar(tmp_path, "a", "b", it.addresses["b"]).close()
            except (OSError, Ended):
                assert turn >= 5
        let_in = 30 - b.strangers()["often"]
        assert 5 <= let_in <= 5 + time.monotonic() - began  # and then one a second
        connected_to_c = it.start("c", peers={"b": it.addresses["b"]})
        connected(connected_to_c)


# ----------------------------------------------------------------------------- hellos


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"name": "c"}, "name"),
        ({"to": "c"}, "name"),
        ({"name": 7}, "hello"),
        ({"run": "00" * 16}, "run"),
        ({"about": {"d": 7}}, "about"),
        ({"about": {}}, "about"),
        ({"about": {"d": [1]}}, "hello"),
        ({"about": None}, "hello"),
        ({"heard": {"0": [-1, ""]}}, "hello"),
        ({"heard": {"0": [1 << 60, ""]}}, "hello"),
        ({"heard": {"0": [True, ""]}}, "hello"),
        ({"heard": {"0": [1, "xyz"]}}, "hello"),
        ({"heard": {"7": [1, ""]}}, "hello"),
        ({"heard": {"00000000": [1, ""]}}, "hello"),
        ({"heard": 3}, "hello"),
    ],
)
def test_a_hello_that_is_not_right(tmp_path: Path, changes: Any, reason: str) -> None:
    with honest(tmp_path) as (it, b):
        liar = Liar(tmp_path, "a", "b", it.addresses["b"])
        with pytest.raises((Ended, OSError)):
            liar.greet(**changes)
            liar.channel.skip(1)  # what is said after a verdict
        until(lambda: b.status()["a"].closed == {reason: 1})
        assert not b.status()["a"].connected and not it.boxes["b"].hellos
        liar.close()


@pytest.mark.parametrize(
    "text", [b"\xff\xff\xff\xff", b"\0\0\x40\x01", b"\0\0\0\x02{]", b"\0\0\x40\0" + b"[" * 16384]
)
def test_a_hello_that_is_none(tmp_path: Path, text: bytes) -> None:
    with honest(tmp_path) as (it, b):
        liar = Liar(tmp_path, "a", "b", it.addresses["b"])
        liar.send(text)
        until(lambda: b.status()["a"].closed == {"hello": 1})
        liar.close()


def test_a_refusal_cannot_write_what_it_likes_into_the_log(tmp_path: Path) -> None:
    with honest(tmp_path) as (it, b):
        liar = Liar(tmp_path, "a", "b", it.addresses["b"])
        hello.exchange(liar.channel, liar.hello, [0, 1])
        hello.send(liar.channel, {"refused": ["run", "\n\x1b[2Jroot: all is well" + "x" * 9000]})
        until(lambda: b.status()["a"].refused)
        said = str(b.status()["a"].refused)
        assert said.startswith("a refused: [2Jroot") and said.isprintable() and len(said) < 1100
        liar.close()


# ----------------------------------------------------------------------------- messages


@pytest.mark.parametrize(
    ("field", "value", "reason"),
    [
        ("magic", b"GGAR", "magic"),
        ("version", 2, "version"),
        ("kind", 2, "kind"),
        ("kind", 0xFFFF, "kind"),
        ("dtype", 2, "dtype"),
        ("run", bytes(16), "run"),
        ("step", -1, "step"),
        ("step", 1 << 62, "step"),
        ("offset", 1, "offset"),
        ("offset", 1 << 63, "offset"),
        ("length", 4001, "length"),
        ("length", 3999, "length"),
        ("length", 0, "length"),
        ("length", (1 << 64) - 1, "length"),
    ],
)
def test_a_header_that_is_not_expected_closes_the_connection(
    tmp_path: Path, field: str, value: Any, reason: str
) -> None:
    with honest(tmp_path) as (it, b):
        liar = Liar(tmp_path, "a", "b", it.addresses["b"]).greet()
        liar.send(header(**{field: value}))
        assert liar.is_closed()
        until(lambda: b.status()["a"].closed == {reason: 1})
        assert not it.boxes["b"].slots and not it.boxes["b"].got
        liar.close()


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"step": 8}, "step"),
        ({"kind": MODEL, "dtype": 1}, "kind"),
        ({"digest": b"x" * 32}, "digest"),
        ({"offset": 0}, "offset"),
        ({"length": 1}, "length"),
        ({"magic": b"\0\0\0\0"}, "magic"),
    ],
)
def test_the_pieces_of_a_message_belong_together(
    tmp_path: Path, changes: dict[str, Any], reason: str
) -> None:
    kinds = {MODEL: Kind(4000), GRADIENT: Kind(3 << 20, "bfloat16")}
    with honest(tmp_path, kinds=kinds) as (it, b):
        it.boxes["b"].sizes = {MODEL: 4000, GRADIENT: 3 << 20}
        fields: dict[str, Any] = {"kind": GRADIENT, "dtype": 2, "step": 7, "length": wire.PIECE}
        liar = Liar(tmp_path, "a", "b", it.addresses["b"]).greet()
        liar.send(header(**fields), bytes(wire.PIECE))
        until(lambda: it.boxes["b"].slots)
        liar.send(header(**fields | {"offset": wire.PIECE} | changes))
        assert liar.is_closed()
        until(lambda: b.status()["a"].closed == {reason: 1})
        assert it.boxes["b"].gone == {("a", GRADIENT, 7): 1} and not it.boxes["b"].slots
        liar.close()


@pytest.mark.parametrize("kind", [wire.PING, wire.PONG, wire.NOTICE])
@pytest.mark.parametrize("field", ["dtype", "offset", "length", "digest"])
def test_what_links_say_among_themselves_has_no_payload(kind: int, field: str) -> None:
    changes = {"dtype": 0, "length": 0, field: b"x" * 32 if field == "digest" else 1}
    with pytest.raises(Violation) as caught:
        FORMAT.decode(header(kind=kind, **changes), None)
    assert caught.value.reason == field


def test_an_answer_to_no_ping_closes_the_connection(tmp_path: Path) -> None:
    with honest(tmp_path) as (it, b):
        liar = Liar(tmp_path, "a", "b", it.addresses["b"]).greet()
        liar.send(header(kind=wire.PONG, dtype=0, length=0, step=1000))
        assert liar.is_closed()
        until(lambda: b.status()["a"].closed == {"pong": 1})
        liar.close()


def test_a_far_future_step_stops_that_peer_only(tmp_path: Path) -> None:
    with honest(tmp_path) as (it, b):
        box = it.boxes["b"]
        box.rule = lambda peer, kind, step: LATER if step > 1 else True
        liar = Liar(tmp_path, "a", "b", it.addresses["b"]).greet()
        liar.send(header(step=wire.STEPS - 1), bytes(4000))
        until(lambda: b.status()["a"].paused)
        c = it.start("c", peers={"b": it.addresses["b"]})
        c.post("b", MODEL, 1, memoryview(bytes(4000)))
        box.wait("c", MODEL, 1)
        assert ("a", MODEL, wire.STEPS - 1) not in box.slots
        liar.close()


def peak() -> int:
    """Return the most memory that this process had, in bytes."""
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def test_a_flood_of_what_was_there_before_is_counted_and_costs_no_memory(tmp_path: Path) -> None:
    with honest(tmp_path) as (it, b):
        liar = Liar(tmp_path, "a", "b", it.addresses["b"]).greet()
        message = header() + bytes(4000)
        liar.send(message)
        it.boxes["b"].wait("a", MODEL, 0)
        before = peak()
        for _ in range(200):
            liar.send(message * 50)
        until(lambda: b.status()["a"].skipped == 10_000)
        assert len(it.boxes["b"].got) == 1 and not it.boxes["b"].slots
        assert peak() - before < 16 << 20  # 40 MB came
        liar.close()


def test_a_flood_of_pings_is_answered_as_far_as_it_is_read(tmp_path: Path) -> None:
    with honest(tmp_path) as (it, b):
        liar = Liar(tmp_path, "a", "b", it.addresses["b"]).greet()
        before = peak()
        pings = b"".join(header(kind=wire.PING, dtype=0, length=0, step=n) for n in range(1000))
        for _ in range(100):
            liar.send(pings)
        liar.send(header(), bytes(4000))
        it.boxes["b"].wait("a", MODEL, 0)
        (link,) = b.company.links()
        assert len(link.controls) <= 4
        assert peak() - before < 16 << 20
        liar.close()


def test_a_message_a_byte_at_a_time_and_then_silence(tmp_path: Path) -> None:
    with honest(tmp_path, limits=Limits(patience=1.0)) as (it, b):
        liar = Liar(tmp_path, "a", "b", it.addresses["b"]).greet()
        for byte in header()[:40]:
            liar.send(bytes([byte]))
        liar.send(header()[40:], bytes(100))
        until(lambda: it.boxes["b"].slots)
        until(lambda: b.status()["a"].closed == {"silent": 1})
        assert it.boxes["b"].gone == {("a", MODEL, 0): 1}
        liar.close()


# ----------------------------------------------------------------------------- any bytes at all

STRUCT = struct.Struct(">4sHHI16sqQQ32s")


@settings(max_examples=100, deadline=None)
@given(
    st.one_of(
        st.binary(min_size=wire.HEADER.size, max_size=wire.HEADER.size),
        st.builds(
            STRUCT.pack,
            st.sampled_from([wire.MAGIC, b"FGAS"]),
            st.sampled_from([1, 0]),
            st.one_of(st.sampled_from([MODEL, GRADIENT, wire.PING]), st.integers(0, 65535)),
            st.integers(0, 3),
            st.sampled_from([RUN, bytes(16)]),
            st.one_of(st.integers(0, 3), st.integers(-(1 << 63), (1 << 63) - 1)),
            st.one_of(st.sampled_from([0, wire.PIECE]), st.integers(0, (1 << 64) - 1)),
            st.one_of(st.sampled_from([0, 4000, wire.PIECE]), st.integers(0, (1 << 64) - 1)),
            st.sampled_from([bytes(32), b"x" * 32]),
        ),
    ),
    st.sampled_from([None, wire.Header(GRADIENT, 1, wire.PIECE, 0, b"")]),
)
def test_any_header_is_expected_or_a_violation(raw: bytes, under_way: wire.Header | None) -> None:
    try:
        got = FORMAT.decode(raw, under_way)
    except Violation as violation:
        assert violation.reason and len(str(violation)) < 300
        return
    if got.kind >= wire.CONTROL:
        assert got.length == 0
        return
    size = FORMAT.kinds[got.kind].size
    assert got.offset == (0 if under_way is None else under_way.offset)
    assert got.length == min(wire.PIECE, size - got.offset) and 0 <= got.step < wire.STEPS
    assert FORMAT.encode(*got) == raw


PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)
WORDS = st.sampled_from(["name", "to", "run", "instance", "about", "heard"])


@settings(max_examples=100, deadline=None)
@given(
    st.one_of(
        st.binary(max_size=200),
        PLAIN.map(lambda value: json.dumps(value).encode()),
        st.dictionaries(WORDS, PLAIN).map(
            lambda changes: json.dumps(
                hello.Hello("a", "b", "0", "1", {"d": 1}, {0: (3, "")}).as_json() | changes
            ).encode()
        ),
    )
)
def test_any_hello_is_one_or_a_violation(text: bytes) -> None:
    own = hello.Hello("b", "a", "0", "1", {"d": 1})
    try:
        theirs = hello.Hello.from_json(hello.parsed(text), [0, 1])
    except Violation as violation:
        assert violation.reason == "hello" and len(str(violation)) < 300
        return
    refusal = hello.objection(own, theirs, [])
    assert refusal is None or len(str(refusal)) < 2500
    assert all(0 <= step < wire.STEPS for step, _ in theirs.heard.values())


@settings(max_examples=100, deadline=None)
@given(st.binary(max_size=6000), st.booleans())
def test_any_preamble_is_one_or_a_violation(text: bytes, begun: bool) -> None:
    text = (hello.PREAMBLE if begun else b"") + text
    try:
        found = hello.claimed(text)
    except Violation as violation:
        assert violation.reason == "preamble"
        return
    assert found is not None or len(text) < len(hello.PREAMBLE) + 2 + hello.CERTIFICATE


@settings(max_examples=20, deadline=None)
@given(st.lists(st.binary(min_size=1, max_size=300), min_size=1, max_size=5))
def test_any_bytes_of_a_peer_cost_its_connection_and_no_more(
    tmp_path_factory: pytest.TempPathFactory, parts: list[bytes]
) -> None:
    with honest(tmp_path_factory.mktemp("any")) as (it, b):
        liar = Liar(it.folder, "a", "b", it.addresses["b"]).greet()
        liar.send(*parts, bytes(wire.HEADER.size))
        assert liar.is_closed()
        liar.close()
        until(lambda: sum(b.status()["a"].closed.values()) == 1)
        assert "inbox" not in b.status()["a"].closed
        until(lambda: sorted(left()) == ["fastgar clock", "fastgar door"])
