"""Links between nodes that keep to the rules, over real sockets and whatever happens to these."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import pytest

pytest.importorskip("cryptography")

from linked import GRADIENT, MODEL, connected, net, until  # noqa: E402


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
