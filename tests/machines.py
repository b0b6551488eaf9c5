"""Machines of one's own: namespaces with a network and a clock each, joined by a switch.

They need rights that root has where a container lets it; nothing outside them changes, and they are
gone with the processes that hold them.
"""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

__all__ = ["Machine", "machines"]

HOLD = "ip link set lo up && echo up && exec cat"  # until its input is closed


class Machine:
    """A process that holds a network, and a clock that is ahead of ours by some seconds."""

    def __init__(self, stack: ExitStack, ahead: int) -> None:
        self.process = subprocess.Popen(
            ["unshare", "--net", "--time", f"--monotonic={ahead}", "sh", "-c", HOLD],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )  # fmt: skip
        stack.callback(self.close)
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if line != "up\n":
            raise PermissionError(line.strip() or "unshare says nothing")
        self.pid = self.process.pid

    def do(self, words: str) -> None:
        """Run a command in its network."""
        command = ["nsenter", "--target", str(self.pid), "--net", *words.split()]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            raise PermissionError(f"{words}: {done.stderr.strip()}")

    def close(self) -> None:
        assert self.process.stdin is not None and self.process.stdout is not None
        self.process.stdin.close()
        self.process.stdout.close()
        self.process.wait()


@contextmanager
def machines(*ahead: int) -> Iterator[list[Machine]]:
    """Yield machines at 10.0.0.1, 10.0.0.2, ..., whose clocks are ahead of ours by these seconds.

    Raises
    ------
    OSError
        With a sentence, if that cannot be had here.
    """
    with ExitStack() as stack:
        switch, *found = [Machine(stack, seconds) for seconds in (0, *ahead)]
        switch.do("ip link add switch up type bridge")
        for number, machine in enumerate(found, 1):
            port = f"port{number}"
            switch.do(f"ip link add {port} type veth peer name eth0 netns {machine.pid}")
            switch.do(f"ip link set {port} up master switch")
            machine.do(f"ip address add 10.0.0.{number}/24 dev eth0")
            machine.do("ip link set eth0 up")
        yield found
