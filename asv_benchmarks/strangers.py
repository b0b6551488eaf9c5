"""What connections cost a node: CPU seconds a second, at so many of them a second.

    python -m asv_benchmarks.strangers [--rate 100] [--seconds 5]

A node has one honest link on which nothing is said. Beside it somebody connects again and again:
with a key of the cluster, with one that is in no cluster, or with the certificate of a node, which
is no secret, and not its key. And a peer that the node has dialled sends session tickets or key
updates without end. What is refused before TLS should cost next to nothing.
"""

import argparse
import contextlib
import json
import os
import tempfile
import time
from pathlib import Path

from .faults import from_tests

HOW = ("nothing", "its key", "no key of these", "a certificate alone", "tickets", "key updates")
TICK = os.sysconf("SC_CLK_TCK")


def cpu(pid):
    """Return the CPU seconds of a process."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / TICK


def connections(it, folder, how, rate, seconds):
    """Connect at a rate; return how many were let in, and tried."""
    from fastgar.network.hello import preamble
    from fastgar.network.keys import certificate
    from fastgar.network.tls import Channel, Ended, client_context

    (connect,) = from_tests("liar", "connect")
    own = "stranger" if how == "no key of these" else "c"
    key = "other" if how == "a certificate alone" else own
    context = client_context(folder / f"{key}.pem")
    begun, tried, let_in = time.monotonic(), 0, 0
    while (now := time.monotonic()) < begun + seconds:
        if tried >= rate * (now - begun):
            time.sleep(0.001)
            continue
        tried += 1
        sock = connect(it.addresses["b"])
        with contextlib.suppress(OSError, Ended):
            sock.sendall(preamble(certificate(folder / f"{own}.pem")))
            channel = Channel(sock, context, server_side=False)
            channel.handshake()
            channel.skip(1)  # of its hello
            let_in += 1
        sock.close()
    return let_in, tried


def flood(it, folder, listener, how, seconds):
    """Send tickets or key updates on one link for so long; return that, and how many."""
    (Answerer,) = from_tests("liar", "Answerer")
    c = Answerer(folder, "c", "b", listener).greet()
    until, count = time.monotonic() + seconds, 0
    while time.monotonic() < until:
        for _ in range(100):
            if how == "tickets":
                c.library.SSL_new_session_ticket(c.raw)
            else:
                c.library.SSL_key_update(c.raw, 0)
                c.channel.tls.do_handshake()
        c.channel.tls.do_handshake()
        c.channel.flush()
        count += 100
    return 1, count


def measured(how, rate, seconds):
    """Return what a node's process takes while this is done to it."""
    from fastgar.network import make_key

    net, connected = from_tests("linked", "net", "connected")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for other in ("stranger", "other"):
            make_key(folder / f"{other}.pem", other)
        (node,) = from_tests("test_links_processes", "node")
        floods = how in HOW[-2:]
        with net(folder, "a", "b", "c") as it:
            listener = it.sockets.pop("c")
            with node(it, "b", "ac", dials=floods) as b:
                a = it.start("a", peers={"b": it.addresses["b"]})
                connected(a)
                before, began = cpu(b.pid), time.monotonic()
                if how == "nothing":
                    time.sleep(seconds)
                    done = 0, 0
                elif floods:
                    done = flood(it, folder, listener, how, seconds)
                else:
                    done = connections(it, folder, how, rate, seconds)
                took = time.monotonic() - began
                share = (cpu(b.pid) - before) / took
                assert a.status()["b"].reconnects == 0
        listener.close()
    found = {"how": how, "a second": round(done[1] / took), "let in": done[0]}
    return found | {"cpu": round(share, 3)}


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rate", type=float, default=100.0, help="connections a second")
    parser.add_argument("--seconds", type=float, default=5.0, help="of each measurement")
    options = parser.parse_args()
    for how in HOW:
        print(json.dumps(measured(how, options.rate, options.seconds)), flush=True)


if __name__ == "__main__":
    main()
