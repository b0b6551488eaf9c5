"""What a message looks like on a link: a fixed header, every field of which must be expected.

A message is one vector of a known size: `Kind` says how many bytes, and of which type. It travels
in pieces of at most `PIECE` bytes, each behind a header of its own, so that a ping gets through
while megabytes are under way. Nothing is taken from a header that the receiver did not know before,
except which of the possible messages it is; so no memory is allocated because of what a peer
announces.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import NamedTuple

from fastgar.errors import shown, unknown

__all__ = [
    "CONTROL", "DTYPES", "HEADER", "NOTICE", "PIECE", "PING", "PONG", "STEPS", "Format", "Header",
    "Kind", "Violation", "pieces", "run_id",
]  # fmt: skip

MAGIC, VERSION = b"FGAR", 1
HEADER = struct.Struct(
    ">4sHHI16sqQQ32s"
)  # magic, version, kind, dtype, run, step, offset, length, ...
PIECE = 1 << 20  # bytes of a message behind one header
STEPS = 1 << 53  # a step is less than that
DTYPES = {"bytes": 0, "float32": 1, "bfloat16": 2, "float16": 3, "float64": 4}

# What links say among themselves: headers without a payload, in which `step` counts pings.
CONTROL = 0xFF00
PING, PONG, NOTICE = 0xFF00, 0xFF01, 0xFF02
NOTHING = bytes(32)


class Violation(ValueError):
    """What a peer sent is not what it may send: its connection is closed.

    Attributes
    ----------
    reason : str
        One word of a fixed set, to count by.
    """

    def __init__(self, reason: str, sentence: str) -> None:
        self.reason = reason
        super().__init__(sentence)


class Kind(NamedTuple):
    """How many bytes the payload of a message is, and of which type its numbers are."""

    size: int
    dtype: str = "float32"


class Header(NamedTuple):
    """What one piece says of itself."""

    kind: int
    step: int
    offset: int
    length: int
    digest: bytes


def run_id(identity: bytes) -> bytes:
    """Return the 16 bytes that all messages of a run carry."""
    return hashlib.sha256(b"fastgar run\0" + identity).digest()[:16]


def pieces(size: int) -> Iterator[tuple[int, int]]:
    """Return where each piece of a message begins, and how long it is.

    >>> list(pieces(PIECE + 1))
    [(0, 1048576), (1048576, 1)]
    >>> list(pieces(0))
    [(0, 0)]
    """
    offset = 0
    while True:
        length = min(PIECE, size - offset)
        yield offset, length
        offset += length
        if offset >= size:
            return


@dataclass(frozen=True)
class Format:
    """Writes headers of one run, and reads those of its peers.

    Parameters
    ----------
    run : bytes
        The 16 bytes of `run_id`.
    kinds : mapping of int to Kind
        The messages that there are, numbered from 0 to 65279.
    """

    run: bytes
    kinds: Mapping[int, Kind]

    def __post_init__(self) -> None:
        for code, kind in self.kinds.items():
            if not 0 <= code < CONTROL:
                raise ValueError(f"kinds are numbered from 0 to {CONTROL - 1}, got {shown(code)}")
            if kind.dtype not in DTYPES:
                raise unknown("dtype of a message", kind.dtype, DTYPES)
            if not 0 <= kind.size < 1 << 63:
                raise ValueError(f"a payload has 0 to 2**63 - 1 bytes, got {shown(kind.size)}")

    def encode(self, kind: int, step: int, offset: int, length: int, digest: bytes) -> bytes:
        """Return the header of a piece."""
        dtype = 0 if kind >= CONTROL else DTYPES[self.kinds[kind].dtype]
        return HEADER.pack(
            MAGIC, VERSION, kind, dtype, self.run, step, offset, length, digest or NOTHING
        )

    def decode(self, raw: bytes | bytearray | memoryview, under_way: Header | None) -> Header:
        """Return what a header says, if all of it may be said now.

        Parameters
        ----------
        raw : bytes
            As many as `HEADER.size`.
        under_way : Header or None
            The message of which more must come, with the offset at which it goes on.

        Raises
        ------
        Violation
            If any field is not as expected.
        """
        magic, version, kind, dtype, run, step, offset, length, digest = HEADER.unpack(raw)
        expect("magic", magic, MAGIC)
        expect("version", version, VERSION)
        expect("run", run, self.run)
        if not 0 <= step < STEPS:
            raise Violation("step", f"it sent step {step}, and steps are 0 to {STEPS - 1}")
        if kind in (PING, PONG, NOTICE):
            for name, got, want in (
                ("dtype", dtype, 0), ("offset", offset, 0), ("length", length, 0),
                ("digest", digest, NOTHING),
            ):  # fmt: skip
                expect(name, got, want)
            return Header(kind, step, 0, 0, b"")
        if kind not in self.kinds:
            raise Violation("kind", f"it sent a message of kind {kind}, which there is not")
        size, name = self.kinds[kind]
        expect("dtype", dtype, DTYPES[name])
        if under_way is not None:
            expect("kind", kind, under_way.kind)
            expect("step", step, under_way.step)
            expect("digest", digest, under_way.digest or NOTHING)
        begin = 0 if under_way is None else under_way.offset
        expect("offset", offset, begin)
        expect("length", length, min(PIECE, size - begin))
        return Header(kind, step, offset, length, b"" if digest == NOTHING else digest)


def expect(name: str, got: object, want: object) -> None:
    """Raise a Violation if a field is not as expected."""
    if got != want:
        got, want = (x.hex() if isinstance(x, bytes) else x for x in (got, want))
        raise Violation(name, f"it sent {name} {got} where {want} was expected")
