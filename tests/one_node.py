"""A node in a process of its own: it answers every model with a gradient of the same bytes.

    python one_node.py FOLDER NAME PEERS OPTIONS        (both as JSON)

It ends with the status of its peers, as JSON, when its standard input does.
"""

from __future__ import annotations

import ctypes
import dataclasses
import json
import os
import resource
import sys
import threading
import time
from pathlib import Path
from typing import Any

from linked import ABOUT, GRADIENT, IDENTITY, MODEL, Box

from fastgar.network import Address, Kind, Limits, Links


class Answering(Box):
    """Sends back what it gets, and keeps nothing."""

    links: Links

    def arrived(self, peer: str, kind: int, step: int, digest: bytes) -> None:
        with self.lock:
            payload = self.slots.pop((peer, kind, step))
        if kind == MODEL:
            self.links.post(peer, GRADIENT, step, memoryview(bytes(payload)))


def main(folder: str, name: str, peers: str, options: str) -> None:
    chosen: dict[str, Any] = json.loads(options)
    for seconds in chosen.get("exits", ()):  # one process after the other
        if os.fork() == 0:
            chosen["exit"] = seconds
            break
        if os.wait()[1] != 0:
            sys.exit("one of them failed")
    else:
        if "exits" in chosen:
            return
    if "descriptors" in chosen:
        resource.setrlimit(resource.RLIMIT_NOFILE, (chosen["descriptors"],) * 2)
    size = chosen.get("size", 4000)
    inbox = Answering({MODEL: size, GRADIENT: size})
    inbox.links = links = Links(
        name,
        {name: Address(*address) for name, address in json.loads(peers).items()},
        Path(folder) / f"{name}.pem",
        identity=IDENTITY, about=ABOUT, kinds={MODEL: Kind(size), GRADIENT: Kind(size)},
        inbox=inbox, listen=("127.0.0.1", chosen.get("port", 0)),
        limits=Limits(**chosen.get("limits", {})),
    )  # fmt: skip
    links.start()
    print(links.port, flush=True)
    if "talk" in chosen:  # models of its own, as fast as they go

        def talk() -> None:
            step = 0
            while True:
                for peer in links.peers:
                    links.post(peer, MODEL, step, memoryview(bytes(size)))
                step += 1
                time.sleep(0.0005)

        threading.Thread(target=talk, daemon=True).start()
    if "exit" in chosen:
        time.sleep(chosen["exit"])
        sys.exit(0)  # without a word to the links
    if "fork" in chosen:
        sys.stdin.readline()
        child = os.fork()
        if child == 0:
            time.sleep(60)
            os._exit(0)
        print(child, flush=True)
    if "hold" in chosen:
        sys.stdin.readline()
        ctypes.PyDLL(None).usleep(int(1e6 * chosen["hold"]))  # and keep the interpreter's lock
    sys.stdin.read()
    print(json.dumps({k: dataclasses.asdict(v) for k, v in links.status().items()}))
    links.close()


if __name__ == "__main__":
    main(*sys.argv[1:])
