"""Keys, headers, and what else a link is made of, without a socket."""

from __future__ import annotations

import hashlib
import logging
import mmap
import os
import re
import ssl
import stat
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest

import fastgar.network
from fastgar.network import Address, Kind, Violation, check_key, expiry, fingerprint, make_key, wire
from fastgar.network.link import REKEY, Link
from fastgar.network.outbox import Outbox
from fastgar.network.peer import Limits, Peer
from fastgar.network.say import Say
from fastgar.network.tls import Ended, server_context

RUN = wire.run_id(b"a run")
PACKAGE = Path(fastgar.network.__file__).parent


@pytest.fixture
def key(tmp_path: Path) -> Path:
    pytest.importorskip("cryptography")
    make_key(tmp_path / "node.pem", "node")
    return tmp_path / "node.pem"


# ----------------------------------------------------------------------------- keys


def test_a_key_is_its_owners_alone_and_known_by_its_certificate(key: Path) -> None:
    assert stat.S_IMODE(key.stat().st_mode) == 0o600
    der = ssl.PEM_cert_to_DER_cert(re.search("-----BEGIN CERT.*", key.read_text(), re.DOTALL)[0])  # type: ignore[index]
    assert check_key(key) == fingerprint(key) == hashlib.sha256(der).hexdigest()


def test_two_keys_of_one_name_differ(key: Path) -> None:
    assert make_key(key.with_name("other.pem"), "node") != fingerprint(key)


def test_a_certificate_is_valid_from_the_day_before_for_decades(key: Path) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.load_verify_locations(cadata=fastgar.network.keys.certificate(key))
    (found,) = context.get_ca_certs()
    now = time.time()
    begin = ssl.cert_time_to_seconds(str(found["notBefore"]))
    end = ssl.cert_time_to_seconds(str(found["notAfter"]))
    assert 0.9 * 86400 < now - begin < 1.1 * 86400 and end - now > 30 * 365 * 86400
    assert expiry(key) == found["notAfter"]


def test_strict_verification_accepts_it_for_both_ends(key: Path) -> None:
    server = server_context(key)
    server.load_verify_locations(cadata=fastgar.network.keys.certificate(key))
    assert server.verify_flags & ssl.VERIFY_X509_STRICT
    client = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    client.check_hostname = False
    client.verify_flags |= ssl.VERIFY_X509_STRICT
    client.load_verify_locations(cadata=fastgar.network.keys.certificate(key))
    client.load_cert_chain(key)
    a, b = ssl.MemoryBIO(), ssl.MemoryBIO()
    ends = server.wrap_bio(a, b, server_side=True), client.wrap_bio(b, a)
    for _ in range(3):
        for end in ends:
            try:
                end.do_handshake()
            except ssl.SSLWantReadError:
                continue
    assert ends[0].version() == ends[1].version() == "TLSv1.3"
    assert server.num_tickets == 0


def test_a_key_is_never_overwritten(key: Path) -> None:
    before = key.read_bytes()
    with pytest.raises(FileExistsError, match="a stranger to its peers"):
        make_key(key, "node")
    assert key.read_bytes() == before


@pytest.mark.parametrize("name", ["", "x" * 65, "a\nb", 7])
def test_a_name_that_is_none(tmp_path: Path, name: Any) -> None:
    with pytest.raises(ValueError, match="name must be 1 to 64 printable characters"):
        make_key(tmp_path / "node.pem", name)


def test_what_is_wrong_with_a_key_is_one_sentence(key: Path, tmp_path: Path) -> None:
    def refused(path: Path, sentence: str) -> None:
        with pytest.raises(ValueError, match=sentence) as caught:
            check_key(path)
        assert "\n" not in str(caught.value)

    refused(tmp_path / "missing.pem", "cannot be read: No such file")
    refused(tmp_path, "cannot be read: Is a directory")
    text = key.read_text()
    certificate = text[text.index("-----BEGIN CERT") :]
    other = tmp_path / "other.pem"
    other.touch(mode=0o600)
    for content, sentence in (
        ("hello", "holds no certificate"),
        (text[: text.index("-----BEGIN CERT")], "holds no certificate"),
        (certificate, "does not hold a private key with its certificate"),
        (certificate.replace("M", "!"), "is damaged|no certificate|private key"),
    ):
        other.write_text(content)
        refused(other, sentence)
    make_key(tmp_path / "third.pem", "third")
    other.write_text(text[: text.index("-----BEGIN CERT")] + (tmp_path / "third.pem").read_text())
    assert check_key(tmp_path / "third.pem")
    key.chmod(0o644)
    refused(key, r"others may read the key .* \(mode 644\): chmod 600")


def test_a_node_runs_without_cryptography_and_imports_little(key: Path) -> None:
    code = (
        "import sys; sys.modules['cryptography'] = None\n"
        "from fastgar.network import *\n"
        f"check_key({str(key)!r})\n"
        "heavy = 'torch', 'numba', 'asyncio', 'pickle5', 'cryptography.x509'\n"
        "print([name for name in heavy if name in sys.modules])\n"
        "try: make_key('/nowhere', 'a')\n"
        "except ModuleNotFoundError as error: print(error)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.stderr == ""
    assert done.stdout.splitlines()[0] == "[]"
    assert 'pip install "fastgar[cluster]"' in done.stdout


def test_only_the_clock_that_never_jumps_is_read_and_nothing_is_unpickled() -> None:
    for path in (*PACKAGE.glob("*.py"), *(PACKAGE.parent / "protocols").glob("*.py")):
        text = path.read_text()
        assert not re.search(r"\btime\.(time|time_ns|localtime|ctime)\b|import .*pickle", text), (
            path
        )
        assert "datetime" not in text or path.name == "keys.py"


# ----------------------------------------------------------------------------- headers


@pytest.mark.parametrize("size", [0, 1, wire.PIECE - 1, wire.PIECE, wire.PIECE + 1, 5 << 30])
def test_the_pieces_of_a_message_are_bounded_and_make_up_the_whole(size: int) -> None:
    form = wire.Format(RUN, {0: Kind(size)})
    under_way, at = None, 0
    for offset, length in wire.pieces(size):
        assert offset == at and length <= wire.PIECE
        raw = form.encode(0, 7, offset, length, b"d" * 32)
        got = form.decode(raw, under_way)
        assert got == (0, 7, offset, length, b"d" * 32)
        at += length
        under_way = got._replace(offset=at)
    assert at == size


@pytest.mark.parametrize(
    ("kinds", "sentence"),
    [
        ({-1: Kind(4)}, "numbered from 0 to 65279"),
        ({wire.PING: Kind(4)}, "numbered from 0 to 65279"),
        ({0: Kind(4, "float31")}, "did you mean 'float32'"),
        ({0: Kind(-4)}, "a payload has 0 to"),
        ({0: Kind(1 << 63)}, "a payload has 0 to"),
    ],
)
def test_kinds_that_cannot_be(kinds: dict[int, Kind], sentence: str) -> None:
    with pytest.raises(ValueError, match=re.escape(sentence)):
        wire.Format(RUN, kinds)


def test_runs_are_told_apart() -> None:
    assert wire.run_id(b"a run") == RUN != wire.run_id(b"another") and len(RUN) == 16


# ----------------------------------------------------------------------------- a link on a channel


class Tape:
    """A channel that reads what was recorded: headers as they are, payloads of any length."""

    def __init__(self, headers: list[bytes]) -> None:
        self.headers = iter(headers)
        self.received = self.sent = 0
        self.waiting = True
        self.largest = 0
        self.sock = threading.local()  # has no shutdown
        self.ends = threading.Event()
        self.sock.shutdown = lambda how: self.ends.set()

    def read_into(self, view: memoryview) -> None:
        if len(view) == wire.HEADER.size:
            view[:] = next(self.headers, None) or self._end()
        self.largest = max(self.largest, len(view))
        self.received += len(view)

    def _end(self) -> bytes:
        raise Ended(in_order=True)

    def skip(self, count: int) -> None:
        self.received += count


class Slots:
    def __init__(self, size: int) -> None:
        self.memory = mmap.mmap(-1, size)
        self.log: list[tuple[Any, ...]] = []

    def slot(self, *what: Any) -> memoryview:
        self.log.append(("slot", *what))
        return memoryview(self.memory)

    def arrived(self, *what: Any) -> None:
        self.log.append(("arrived", *what))

    def lost(self, *what: Any) -> None:
        self.log.append(("lost", *what))


def link_on(tape: Tape, inbox: Any, kinds: dict[int, Kind]) -> Link:
    peer = Peer("b", Address("h", 1, ""), first=True)
    return Link(peer, tape, True, wire.Format(RUN, kinds), inbox)  # type: ignore[arg-type]


def test_a_message_of_3_gib_is_read_to_its_end_in_bounded_pieces() -> None:
    size = 3 << 30
    form = wire.Format(RUN, {0: Kind(size)})
    headers = [form.encode(0, 1, at, length, b"") for at, length in wire.pieces(size)]
    for cut in (None, -1):
        tape, inbox = Tape(headers[:cut]), Slots(size)  # memory that nobody touches is none
        link = link_on(tape, inbox, {0: Kind(size)})
        with pytest.raises(Ended):
            link.read()
        last = ("arrived", "b", 0, 1, b"") if cut is None else ("lost", "b", 0, 1)
        assert inbox.log == [("slot", "b", 0, 1), last]
        assert tape.largest == wire.PIECE


def test_a_node_is_silent_by_ticks_and_not_by_the_clock() -> None:
    tape = Tape([])
    link = link_on(tape, None, {})
    link.tick(3, 10)
    for _ in range(2):
        link.tick(3, 10)
    assert link.pings == 0
    link.tick(3, 10)
    assert link.pings == 1  # and at 6, 9
    tape.received += 1
    link.tick(3, 10)
    for _ in range(9):
        link.tick(3, 10)
    assert link.why is None
    tape.waiting = False  # it is this node that does not read
    link.tick(3, 10)
    tape.waiting = True
    for _ in range(9):
        link.tick(3, 10)
    assert link.why is None
    link.tick(3, 10)
    assert link.why is not None and link.why[0] == "silent" and tape.ends.is_set()


def test_keys_are_renewed_before_too_many_bytes() -> None:
    tape = Tape([])
    link = link_on(tape, None, {})
    tape.sent = REKEY
    link.tick(3, 10)
    assert link.why is None
    tape.sent += 1
    link.tick(3, 10)
    assert link.why is not None and link.why[0] == "rekey"


# ----------------------------------------------------------------------------- the rest


def test_an_outbox_keeps_two_steps_of_a_kind_and_sends_in_order_of_posting() -> None:
    box = Outbox()
    for kind, step in ((0, 5), (1, 1), (0, 4), (0, 6), (0, 3)):
        box.post(kind, step, memoryview(b""), b"")
    order = []
    while message := box.next():
        order.append((message.kind, message.step))
    assert order == [(0, 5), (1, 1), (0, 6)]
    box.again()
    assert [box.next().step for _ in range(3)] == [5, 1, 6]  # type: ignore[union-attr]
    box.post(0, 6, memoryview(b"x"), b"")
    again = box.next()
    assert again is not None and bytes(again.payload) == b"x" and box.next() is None


def test_of_each_cause_a_line_a_minute(caplog: pytest.LogCaptureFixture) -> None:
    say = Say(every=0.2)
    for _ in range(100):
        say("one", "it happened")
    say("two", "this too")
    assert caplog.messages == ["it happened", "this too"]
    time.sleep(0.25)
    say("one", "it happened")
    assert caplog.messages[2:] == ["it happened (99 more like it)"]
    assert all(record.levelno == logging.WARNING for record in caplog.records)


def test_who_connects_too_often_may_again_after_a_while(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [1000.0]
    monkeypatch.setattr(fastgar.network.peer.time, "monotonic", lambda: now[0])
    peer, limits = Peer("b", Address("h", 1, ""), first=True), Limits(burst=3)
    assert [peer.may_connect(limits, take=True) for _ in range(5)] == [True] * 3 + [False] * 2
    now[0] += 1
    assert [peer.may_connect(limits, take=True) for _ in range(2)] == [True, False]
    now[0] += 1000
    assert [peer.may_connect(limits, take=True) for _ in range(4)] == [True] * 3 + [False]
    assert not peer.may_connect(limits, take=False)


def test_a_violation_has_a_reason_to_count_by() -> None:
    with pytest.raises(
        Violation, match=r"it sent run 0+ where [0-9a-f]{32} was expected"
    ) as caught:
        wire.Format(RUN, {0: Kind(4)}).decode(
            wire.Format(bytes(16), {0: Kind(4)}).encode(0, 0, 0, 4, os.urandom(32)), None
        )
    assert caught.value.reason == "run"
