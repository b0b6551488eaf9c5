"""What two nodes say to each other before the first message: who they are, and whether they fit.

Who dials sends a *preamble* in the clear: eight bytes, and its certificate. After TLS both send a
*hello*, one JSON object of at most `LONGEST_HELLO` bytes with a name, a run, what is compared, and
what was last heard from the other; then both send a *verdict*. So both know why, where one refuses.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

from fastgar.errors import shown

from .tls import Channel
from .wire import STEPS, Violation

__all__ = [
    "PREAMBLE", "About", "Heard", "Hello", "Refused", "agree", "claimed", "differences", "exchange",
    "objection", "preamble",
]  # fmt: skip

PREAMBLE = b"fastgar1"
CERTIFICATE = 4096  # bytes of one, at most
LONGEST_HELLO = 16 << 10
About = Mapping[str, str | int | float | bool | None]
Heard = Mapping[int, tuple[int, str]]  # of each kind: the last step, and its SHA-256 or ""
HEX = re.compile("[0-9a-f]*")
SENTENCE = 1000  # characters of a refusal
REASONS = ("name", "run", "about", "twin", "double", "closing")


class Refused(Violation):
    """One of two nodes does not want the other.

    Attributes
    ----------
    by_peer : bool
        Whether it is the other that does not want this one.
    """

    by_peer = False


def preamble(certificate: bytes) -> bytes:
    """Return what a dialling node sends first."""
    return PREAMBLE + len(certificate).to_bytes(2, "big") + certificate


def claimed(arrived: bytes | bytearray) -> tuple[bytes, int] | None:
    """Return the certificate in a preamble and where it ends, or None while more must come.

    Raises
    ------
    Violation
        At the first byte that cannot be right.
    """
    start = len(PREAMBLE)
    if arrived[:start] != PREAMBLE[: len(arrived)]:
        raise Violation("preamble", "it does not speak the language of fastgar's nodes")
    if len(arrived) < start + 2:
        return None
    length = int.from_bytes(arrived[start : start + 2], "big")
    if not 0 < length <= CERTIFICATE:
        raise Violation("preamble", f"it announced a certificate of {length} bytes")
    end = start + 2 + length
    return None if len(arrived) < end else (bytes(arrived[start + 2 : end]), end)


def send(channel: Channel, value: Mapping[str, Any]) -> None:
    """Send one JSON object, with its length before it."""
    text = json.dumps(value).encode()
    if len(text) > LONGEST_HELLO:
        raise ValueError(f"a hello has at most {LONGEST_HELLO} bytes, got {len(text)}")
    channel.write(len(text).to_bytes(4, "big") + text)


def receive(channel: Channel) -> dict[str, Any]:
    """Return the JSON object that comes next."""
    prefix = bytearray(4)
    channel.read_into(memoryview(prefix))
    length = int.from_bytes(prefix, "big")
    if length > LONGEST_HELLO:
        raise Violation(
            "hello", f"it announced a hello of {length} bytes: {LONGEST_HELLO} are allowed"
        )
    text = bytearray(length)
    channel.read_into(memoryview(text))
    return parsed(text)


def parsed(text: bytes | bytearray) -> dict[str, Any]:
    """Return the JSON object in a text of bounded length."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        raise Violation("hello", "its hello is not JSON") from None
    if not isinstance(value, dict):
        raise Violation("hello", "its hello is not a JSON object")
    return value


@dataclass(frozen=True)
class Hello:
    """What a node says of itself to one other.

    Parameters
    ----------
    name, to : str
        Who speaks, to whom.
    run : str
        The run, in hexadecimal digits.
    instance : str
        Drawn anew by every process, so that a restart and a second process can be told apart.
    about : mapping of str to str, number, bool or None
        What must be alike.
    heard : mapping of int to (int, str)
        The last step of each kind that it has heard from the other, and the SHA-256 of it.
    """

    name: str
    to: str
    run: str
    instance: str
    about: About = field(default_factory=dict)
    heard: Heard = field(default_factory=dict)

    def as_json(self) -> dict[str, Any]:
        """Return it as plain values."""
        heard = {str(kind): [step, digest] for kind, (step, digest) in self.heard.items()}
        return {**vars(self), "about": dict(self.about), "heard": heard}

    @classmethod
    def from_json(cls, value: Mapping[str, Any], kinds: Collection[int]) -> Hello:
        """Return what was said, or raise a Violation if it is anything else than a hello."""
        words = [value.get(key) for key in ("name", "to", "run", "instance")]
        about, heard = value.get("about"), value.get("heard")
        if not all(isinstance(word, str) and len(word) <= 200 for word in words):
            raise Violation("hello", "its hello lacks a name, a run or an instance")
        plain = (str, int, float, bool, type(None))
        if not isinstance(about, dict) or not all(isinstance(v, plain) for v in about.values()):
            raise Violation("hello", "its hello does not say plainly what it is about")
        if not isinstance(heard, dict) or len(heard) > len(kinds):
            raise Violation("hello", "its hello does not say what it has heard")
        known = dict(_heard(each, kinds) for each in heard.items())
        name, to, run, instance = map(str, words)
        return cls(name, to, run, instance, about, known)


def _heard(item: tuple[str, Any], kinds: Collection[int]) -> tuple[int, tuple[int, str]]:
    match item:
        case str(kind), [int(step), str(digest)] if (
            kind.isascii() and kind.isdigit() and len(kind) < 6 and int(kind) in kinds
            and not isinstance(step, bool) and 0 <= step < STEPS
            and len(digest) in (0, 64) and HEX.fullmatch(digest)
        ):  # fmt: skip
            return int(kind), (step, digest)
    raise Violation("hello", f"it says that it has heard {shown(item)}")


def differences(own: Hello, other: Hello) -> dict[str, str]:
    """Return a clause for each thing that two nodes say differently: the same at both ends."""
    missing = object()
    first, second = sorted((own, other), key=lambda hello: hello.name)

    def said(value: object) -> str:
        return "nothing" if value is missing else shown(value)

    found = {}
    for key in sorted(own.about.keys() | other.about.keys()):
        here, there = first.about.get(key, missing), second.about.get(key, missing)
        if type(here) is not type(there) or here != there:
            label = key if key in own.about else shown(key)
            found[key] = (
                f"{label} is {said(here)} at {first.name} and {said(there)} at {second.name}"
            )
    return found


def objection(own: Hello, other: Hello, tolerated: Collection[str]) -> Refused | None:
    """Return why two nodes do not fit: the same sentence at both ends."""
    if (other.name, other.to) != (own.to, own.name):
        return Refused(
            "name",
            f"the node with the key of {own.to} calls itself {shown(other.name)} and took "
            f"{own.name} for {shown(other.to)}",
        )
    both = " and ".join(sorted((own.name, own.to)))
    if other.run != own.run:
        return Refused("run", f"{both} are not in the same run")
    found = {k: v for k, v in differences(own, other).items() if k not in tolerated}
    if not found:
        return None
    some = "; ".join(list(found.values())[:3]) + ("; ..." if len(found) > 3 else "")
    return Refused("about", f"{both} do not fit: {some}")


def check(own: Hello) -> None:
    """Raise ValueError if other nodes would not take this for a hello."""
    try:
        text = json.dumps(own.as_json())
        Hello.from_json(parsed(text.encode()), own.heard)
    except (TypeError, Violation):
        said = shown(dict(own.about))
        raise ValueError(f"about must hold words and numbers, got {said}") from None
    if len(text) > LONGEST_HELLO // 2:
        raise ValueError(
            f"about must have at most {LONGEST_HELLO // 2} characters, got {len(text)}"
        )


def exchange(channel: Channel, own: Hello, kinds: Collection[int]) -> Hello:
    """Send a hello and return the other's."""
    send(channel, own.as_json())
    return Hello.from_json(receive(channel), kinds)


def agree(channel: Channel, name: str, objection: Refused | None) -> None:
    """Send a verdict and hear the other's; raise Refused unless both are good."""
    own = None if objection is None else [objection.reason, str(objection)[:SENTENCE]]
    send(channel, {"refused": own})
    if objection is not None:
        raise objection
    match receive(channel).get("refused", ""):
        case None:
            return
        case [str(reason), str(sentence)] if reason in REASONS:
            text = "".join(c for c in sentence[:SENTENCE] if c.isprintable())
            refusal = Refused(reason, f"{name} refused: {text}")
            refusal.by_peer = True
            raise refusal
    raise Violation("hello", "its verdict says nothing")
