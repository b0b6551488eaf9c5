"""The network of a cluster whose nodes do not trust each other.

    links = Links("server0", peers, "server0.pem", identity=file, about={"d": d},
                  kinds={0: Kind(4 * d)}, inbox=inbox, listen=("", 29400))
    links.start()
    links.post("worker3", 0, step, memoryview(theta))
    links.close()

It knows bytes, peers and steps: `fastgar.network.links` says how. Only `make_key` and `Signer`
need more than Python's standard library: the package `cryptography`.
"""

from .hello import About, Heard
from .keys import check_key, expiry, fingerprint, make_key
from .link import LATER, Inbox, Later
from .links import Links
from .peer import Address, Limits, Status
from .signing import Signer, public_key
from .wire import Kind, Violation

__all__ = [
    "LATER", "About", "Address", "Heard", "Inbox", "Kind", "Later", "Limits", "Links", "Signer",
    "Status", "Violation", "check_key", "expiry", "fingerprint", "make_key", "public_key",
]  # fmt: skip
