"""The key of a node: a private key and a self-signed certificate, in one file of mode 0600.

Nodes know each other by the SHA-256 of the certificate. The certificate itself need not be handed
round, and its dates matter to nobody: it is valid from the day before for `YEARS` years.
"""

from __future__ import annotations

import hashlib
import os
import re
import ssl
from datetime import UTC, datetime, timedelta

from fastgar.errors import of_extra, shown

__all__ = ["certificate", "check_key", "expiry", "fingerprint", "make_key"]

YEARS = 50
LARGEST = 64 << 10  # bytes of a key file
PATTERN = re.compile(rb"-----BEGIN CERTIFICATE-----[^-]+-----END CERTIFICATE-----")


def make_key(path: str | os.PathLike[str], name: str) -> str:
    """Write a new key for a node, and return its fingerprint.

    Parameters
    ----------
    path : path
        Where the file will be; it must not exist. Only its owner can read it.
    name : str
        The name of the node, 1 to 64 characters. It is for people: the fingerprint decides.

    Returns
    -------
    str
        The SHA-256 of the certificate, 64 hexadecimal digits.

    Raises
    ------
    ModuleNotFoundError
        Without the package `cryptography`: only making keys needs it, using them does not.
    FileExistsError, ValueError
        If there is such a file, or the name is none.
    """
    if not (isinstance(name, str) and 1 <= len(name) <= 64 and name.isprintable()):
        raise ValueError(f"name must be 1 to 64 printable characters, got {shown(name)}")
    with of_extra("cluster"):
        from cryptography import x509
        from cryptography.hazmat.primitives import hashes, serialization
        from cryptography.hazmat.primitives.asymmetric import ec
        from cryptography.x509.oid import NameOID
    private = ec.generate_private_key(ec.SECP256R1())
    public = private.public_key()
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    now = datetime.now(UTC)
    ours = x509.SubjectKeyIdentifier.from_public_key(public)
    usage = x509.KeyUsage(
        digital_signature=True, key_cert_sign=True, content_commitment=False,
        key_encipherment=False, data_encipherment=False, key_agreement=False, crl_sign=False,
        encipher_only=False, decipher_only=False,
    )  # fmt: skip
    signed = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(public)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=365 * YEARS))
        # What strict verification asks of a certificate that vouches for itself.
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(usage, critical=True)
        .add_extension(ours, critical=False)
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(ours), critical=False
        )
        .sign(private, hashes.SHA256())
    )
    text = private.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    ) + signed.public_bytes(serialization.Encoding.PEM)
    try:
        opened = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        raise FileExistsError(
            f"{path} exists: a node that changes its key is a stranger to its peers; "
            "delete the file first if that is meant"
        ) from None
    with os.fdopen(opened, "wb") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    return fingerprint(path)


def certificate(path: str | os.PathLike[str]) -> bytes:
    """Return the certificate (DER) in a key file.

    Raises
    ------
    ValueError
        In one sentence, if there is none.
    """
    try:
        with open(path, "rb") as file:
            found = PATTERN.search(file.read(LARGEST))
    except OSError as error:
        raise ValueError(f"the key {path} cannot be read: {error.strerror}") from None
    if found is None:
        raise ValueError(f"{path} holds no certificate: `fastgar keys` writes keys")
    try:
        return ssl.PEM_cert_to_DER_cert(found[0].decode("ascii"))
    except ValueError:
        raise ValueError(f"the certificate in {path} is damaged") from None


def fingerprint(path: str | os.PathLike[str]) -> str:
    """Return the SHA-256 of the certificate in a key file: 64 hexadecimal digits."""
    return hashlib.sha256(certificate(path)).hexdigest()


def expiry(path: str | os.PathLike[str]) -> str:
    """Return until when the certificate is valid, as in 'Nov 30 12:00:00 2076 GMT'."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.load_verify_locations(cadata=certificate(path))
    return str(context.get_ca_certs()[0]["notAfter"])


def check_key(path: str | os.PathLike[str]) -> str:
    """Return the fingerprint of a key file after looking whether it can be used.

    Raises
    ------
    ValueError
        In one sentence, if it is missing, readable to others, or holds no key.
    """
    found = fingerprint(path)
    mode = os.stat(path).st_mode & 0o777
    if mode & 0o077:
        raise ValueError(f"others may read the key {path} (mode {mode:o}): chmod 600 {path}")
    try:
        # Without a password OpenSSL would ask for one at the terminal.
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(path, password="")
    except (ssl.SSLError, OSError, ValueError):
        raise ValueError(
            f"{path} does not hold a private key with its certificate: "
            "fastgar.network.make_key writes both"
        ) from None
    return found
