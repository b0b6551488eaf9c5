"""Calls that all ranks of a group make together, and how they notice that they do not.

As a call begins, or with each vector of a long one, every rank sends every other a header: which of
its calls this is, what is called, and hashes of what must be the same. All headers have one length,
whatever meets what, and travel on a device that the backend can use, so that a rank whose tensors
cannot be sent still says so.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from .group import TEXT, Peers, short

__all__ = ["Call", "agree", "hashes"]

FIELDS = 6  # at most that a call compares
Ready = TypeVar("Ready")


class Call:
    """A call of this rank, which the others make too.

    Parameters
    ----------
    peers : Peers
    kind : str
        What is called.
    fields : sequence of str
        What must be the same on every rank, in words.
    found : sequence of float
        Hashes of these here.
    number : float
        What else the others are to know.
    failure : exception, optional
        Why this rank cannot take part.

    Raises
    ------
    RuntimeError
        If this rank has left an earlier call, in which others may still wait for it.
    """

    def __init__(
        self, peers: Peers, kind: str, fields: Sequence[str] = (), found: Sequence[float] = (),
        number: float = 0.0, failure: BaseException | None = None,
    ) -> None:  # fmt: skip
        peers.require_whole()
        self.peers, self.fields, self.failure = peers, ["what is called", *fields], failure
        self.header = np.zeros(4 + FIELDS)
        values = [failure is not None, *hashes(kind), *found]
        self.header[1 : 1 + len(values)] = values
        self.header[-1] = number
        self._finish: Callable[[], NDArray[np.float64]] | None = None
        self._numbers: NDArray[np.float64] | None = None

    def post(self) -> None:
        """Begin to tell the others: only now this counts as a call."""
        self.peers.calls += 1
        self.peers.know(None)
        self.header[0] = self.peers.calls
        self._finish = self.peers.begin_exchange(self.header)

    def check(self) -> NDArray[np.float64]:
        """Return the number of every rank, once all have begun this call.

        Raises
        ------
        ValueError
            On every rank, if one cannot take part or differs; its own error on one that cannot.
        RuntimeError
            On every rank, if one has missed a call of the others.
        """
        if self._numbers is None:
            assert self._finish is not None
            everyone = self._finish()
            compared = everyone[:, :-1]
            if compared[:, 1].any() or (compared != compared[0]).any():
                complaint = self._complaint(compared)
                self.peers.know(complaint)
                raise complaint
            self._numbers = everyone[:, -1]
        return self._numbers

    def _complaint(self, everyone: NDArray[np.float64]) -> BaseException:
        """Return the error that all ranks raise."""
        calls, absent = everyone[:, 0], np.flatnonzero(everyone[:, 1])
        if (calls != calls[0]).any():
            return self._not_one_call(calls)
        if not len(absent):
            return self._not_alike(everyone[:, 2:])
        words = self._texts("" if self.failure is None else short(self.failure))
        return self.failure or ValueError(
            f"{self.peers.name(absent)} could not take part, and nothing was aggregated: "
            + "; ".join(dict.fromkeys(words[int(i)] for i in absent[:4]))
        )

    def _not_one_call(self, calls: NDArray[np.float64]) -> RuntimeError:
        numbers, counts = np.unique(calls, return_counts=True)
        usual = numbers[counts.argmax()]
        others = np.flatnonzero(calls != usual)
        listed = ", ".join(
            f"rank {self.peers.ranks[int(i)]} is in its call {calls[i]:.0f}" for i in others[:10]
        )
        return RuntimeError(
            f"{listed}, and the others are in call {usual:.0f}: an earlier call was not made, or "
            "failed, on some ranks only. Make a new process group for all of them"
        )

    def _not_alike(self, everyone: NDArray[np.float64]) -> ValueError:
        k = int(np.flatnonzero((everyone != everyone[0]).any(axis=0))[0])
        others = np.flatnonzero(everyone[:, k] != everyone[0, k])
        what = self.fields[k] if k < len(self.fields) else "what is called"
        return ValueError(
            f"{what} must be the same on every rank: {self.peers.name([0])} does not agree with "
            f"{self.peers.name(others)}"
        )

    def _texts(self, own: str) -> list[str]:
        """Return a text from every rank."""
        raw = bytearray(own.encode()[:TEXT].ljust(TEXT))
        everyone = self.peers.exchange(np.frombuffer(raw, np.float64))
        return [row.tobytes().decode(errors="replace").strip() for row in everyone]


def agree(
    peers: Peers,
    kind: str,
    fields: Sequence[str],
    prepare: Callable[[], tuple[Ready, float, list[float]]],
) -> tuple[Ready, NDArray[np.float64]]:
    """Begin a call together: return what `prepare` made ready, and a number from every rank.

    `prepare` returns also the number of this rank, and hashes of the fields. A rank on which it
    fails tells the others why. Raises what `Call` does.
    """
    peers.require_whole()
    try:
        ready, number, found = prepare()
    except BaseException as error:
        call = Call(peers, kind, fields, failure=error)
        call.post()
        call.check()
        raise
    call = Call(peers, kind, fields, found, number)
    call.post()
    return ready, call.check()


def hashes(*values: Any) -> list[float]:
    """Return a number for each value, by which ranks can tell whether theirs are the same."""
    return [float(zlib.crc32(repr(value).encode())) for value in values]
