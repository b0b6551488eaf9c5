"""Signatures with the key of a node, which others check after the links that carried them are gone.

They need the package `cryptography`: ECDSA on P-256 with SHA-256, as its two numbers in 64 bytes.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fastgar.errors import of_extra, shown

from .keys import certificate

__all__ = ["Signer", "public_key"]

CONTEXT = b"fastgar signs\0"  # so that nothing else that is signed with this key is taken for it


def public_key(path: str | os.PathLike[str]) -> str:
    """Return the public key in a key file: a point of P-256 in 66 hexadecimal digits.

    Raises
    ------
    ModuleNotFoundError
        Without the package `cryptography`.
    ValueError
        If the file holds none, or another sort of key.
    """
    with of_extra("cluster"):
        from cryptography import x509
    return _as_text(x509.load_der_x509_certificate(certificate(path)).public_key(), path)


class Signer:
    """What signs as one node of a run, and checks the signatures of the others.

    Parameters
    ----------
    path : path
        The node's key file.
    name : str
    keys : mapping of str to str
        The public key of each node whose signatures are to be checked.
    run : bytes
        What tells the run from others: no signature means anything in another.

    Raises
    ------
    ModuleNotFoundError
        Without the package `cryptography`.
    ValueError
        In one sentence, if a key cannot be used, or that of this node is another.
    """

    def __init__(
        self, path: str | os.PathLike[str], name: str, keys: Mapping[str, str], run: bytes
    ) -> None:
        with of_extra("cluster"):
            from cryptography.exceptions import InvalidSignature
            from cryptography.hazmat.primitives import hashes, serialization
            from cryptography.hazmat.primitives.asymmetric import ec, utils
        self._private: Any = serialization.load_pem_private_key(Path(path).read_bytes(), None)
        own = _as_text(self._private.public_key(), path)
        if keys.get(name, own) != own:
            raise ValueError(f"{path} holds another key than the public_key of {name}")
        self._public = {}
        for node, text in keys.items():
            try:
                point = bytes.fromhex(text)
                found = ec.EllipticCurvePublicKey.from_encoded_point(ec.SECP256R1(), point)
            except ValueError:
                raise ValueError(f"public_key of {node} is none: {shown(text)}") from None
            self._public[node] = found
        self._algorithm, self._utils = ec.ECDSA(hashes.SHA256()), utils
        self._invalid, self._prefix = InvalidSignature, CONTEXT + run

    def sign(self, what: bytes) -> bytes:
        """Return this node's signature, of 64 bytes."""
        found = self._private.sign(self._prefix + what, self._algorithm)
        r, s = self._utils.decode_dss_signature(found)
        return bytes(r.to_bytes(32, "big") + s.to_bytes(32, "big"))

    def signed(self, name: str, what: bytes, signature: bytes) -> bool:
        """Return whether a signature is the node's of that name."""
        public = self._public.get(name)
        if public is None or len(signature) != 64:
            return False
        r, s = (int.from_bytes(half, "big") for half in (signature[:32], signature[32:]))
        try:
            public.verify(
                self._utils.encode_dss_signature(r, s), self._prefix + what, self._algorithm
            )
        except self._invalid:
            return False
        return True


def _as_text(public: Any, path: object) -> str:
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    if not isinstance(public, ec.EllipticCurvePublicKey) or public.curve.name != "secp256r1":
        raise ValueError(f"{path} holds no key on the curve P-256: fastgar keys makes one")
    point: bytes = public.public_bytes(
        serialization.Encoding.X962, serialization.PublicFormat.CompressedPoint
    )
    return point.hex()
