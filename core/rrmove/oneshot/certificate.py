"""Certificates made for one purpose and pinned: a key that nobody has kept is better than one to look after."""

from __future__ import annotations

import base64
import datetime as dt
import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from cryptography import x509

DAY = dt.timedelta(days=1)  # clocks differ; who pins a certificate does not look at its dates


@dataclass(frozen=True, slots=True)
class Certificate:
    """A self-signed certificate and its key, as PEM, and its SHA-256 fingerprint (of the DER) in hex."""

    certificate: str
    key: str
    fingerprint: str
    public_key: str  # SHA-256 of the DER public key in base64, as curl's --pinnedpubkey takes it


def make_certificate(name: str = "rrmove", hosts: Sequence[str] = ("rrmove",), days: int = 2) -> Certificate:
    """Make a key (P-256) and a certificate for it, in memory; takes a few milliseconds, and imports `cryptography`.

    Who pins it looks at none of `name`, `hosts` and `days`; they are for people, and for clients that want them.
    """
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.x509.oid import NameOID

    key = ec.generate_private_key(ec.SECP256R1())
    title = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    now = dt.datetime.now(dt.UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(title)
        .issuer_name(title)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - DAY)
        .not_valid_after(now + days * DAY)
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(host) for host in hosts]), critical=False)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    encoding, plain = serialization.Encoding.PEM, serialization.NoEncryption()
    return Certificate(
        made.public_bytes(encoding).decode(),
        key.private_bytes(encoding, serialization.PrivateFormat.PKCS8, plain).decode(),
        *pins(made),
    )


def pins(certificate: x509.Certificate) -> tuple[str, str]:
    """Give what a certificate is pinned by: its `fingerprint` and its `public_key`, as `Certificate` has them."""
    from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

    spki = certificate.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    der = certificate.public_bytes(Encoding.DER)
    return hashlib.sha256(der).hexdigest(), base64.b64encode(hashlib.sha256(spki).digest()).decode()
