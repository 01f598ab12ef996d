"""The server's own certificate: made at its first start, known by its fingerprint and not by an authority."""

from __future__ import annotations

import base64
import datetime as dt
import hashlib
import socket
import ssl
from dataclasses import dataclass
from typing import TYPE_CHECKING

from rrmove.errors import UsageError
from rrmove.serving.private import ensure_private

if TYPE_CHECKING:
    from pathlib import Path

YEARS = 10  # nobody renews what is pinned; one who wants a new one removes the file


@dataclass(frozen=True, slots=True)
class Identity:
    """What the server proves itself with: the fingerprint is SHA-256 of the certificate (DER), in hex.

    `pin` is what `curl --pinnedpubkey` takes.
    """

    context: ssl.SSLContext
    fingerprint: str
    pin: str


def identity(path: Path) -> Identity:
    """Read key and certificate (PEM, in one file), or make them. Raises UsageError."""
    from cryptography import x509
    from cryptography.hazmat.primitives import serialization

    data = ensure_private(path, "certificate file", make)
    try:
        found = x509.load_pem_x509_certificate(data[data.index(b"-----BEGIN CERTIFICATE-----") :])
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        context.set_alpn_protocols(["http/1.1"])
        context.load_cert_chain(path)
    except (ValueError, OSError) as error:  # ssl.SSLError is an OSError
        raise UsageError(
            f"the certificate file {str(path)!r} cannot be used: {error}",
            remedy=f"It has a key and its certificate in PEM. To have one made: `rm {path}`",
        ) from error
    der = found.public_bytes(serialization.Encoding.DER)
    key = found.public_key().public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
    pin = base64.b64encode(hashlib.sha256(key).digest()).decode()
    return Identity(context, hashlib.sha256(der).hexdigest(), f"sha256//{pin}")


def make() -> bytes:
    """Make a key and a certificate for this machine, in PEM."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "rrmove serve")])
    now = dt.datetime.now(dt.UTC)
    names = [x509.DNSName("localhost")]
    if (host := socket.gethostname()).isascii() and host:
        names.append(x509.DNSName(host))
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - dt.timedelta(days=1))  # the clocks of nodes differ
        .not_valid_after(now + dt.timedelta(days=365 * YEARS))
        .add_extension(x509.SubjectAlternativeName(names), critical=False)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    ) + certificate.public_bytes(serialization.Encoding.PEM)
