"""A peer that asks for a TLS key update before every message; Python's ssl cannot, OpenSSL can.

    python key_updates.py FOLDER PORT SIZE MESSAGES READS

It is the node a, speaks to b, and has one thread. Where SIZE is 0 it sends pings. Without READS it
never reads what b answers.
"""

from __future__ import annotations

import contextlib
import json
import select
import socket
import ssl
import sys
from pathlib import Path

from liar import RUN, header, openssl
from linked import ABOUT

from fastgar.network import wire
from fastgar.network.hello import Hello, preamble
from fastgar.network.keys import certificate

NOT_HERE = 77  # this Python is not laid out as expected


def main(folder: str, port: str, size: str, messages: str, reads: str) -> None:
    key = Path(folder) / "a.pem"
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    context.load_cert_chain(key)
    plain = socket.create_connection(("127.0.0.1", int(port)))
    plain.sendall(preamble(certificate(key)))
    sock = context.wrap_socket(plain)
    try:
        library, raw = openssl(sock)
    except LookupError:
        sys.exit(NOT_HERE)
    for value in (Hello("a", "b", RUN.hex(), "1" * 32, ABOUT).as_json(), {"refused": None}):
        text = json.dumps(value).encode()
        sock.sendall(len(text).to_bytes(4, "big") + text)
    sock.setblocking(False)
    count, updates, got = int(messages), 0, 0
    for step in range(count):
        text = header(step=step, length=int(size)) + bytes(int(size))
        ping = header(kind=wire.PING, dtype=0, step=step, length=0)
        out = memoryview(text if int(size) else ping)
        updates += library.SSL_key_update(raw, 1)
        while out:
            did = False
            with contextlib.suppress(ssl.SSLWantReadError, ssl.SSLWantWriteError):
                out = out[sock.send(out[:16384]) :]
                did = True
            if int(reads):
                with contextlib.suppress(ssl.SSLWantReadError, ssl.SSLWantWriteError):
                    data = sock.recv(65536)
                    if not data:
                        raise EOFError
                    got += len(data)
                    did = True
            if not did:
                select.select([sock] if int(reads) else [], [sock], [], 0.05)
    sock.settimeout(20)
    while int(reads) and got <= int(size):  # the other end may have been slow
        got += len(sock.recv(65536))
    print(updates, got)
    sock.shutdown(socket.SHUT_WR)  # what is unread when it closes would take its own words along
    with contextlib.suppress(OSError):
        while sock.recv(65536):
            pass


if __name__ == "__main__":
    main(*sys.argv[1:])
