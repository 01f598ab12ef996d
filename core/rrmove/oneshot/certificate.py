"""Certificates made for one purpose and pinned: a key that nobody has kept is better than one to look after."""

from __future__ import annotations

import datetime as dt
import hashlib
import ssl
from dataclasses import dataclass

DAY = dt.timedelta(days=1)  # clocks differ; who pins a certificate does not look at its dates


@dataclass(frozen=True, slots=True)
class Certificate:
    """A self-signed certificate and its key, as PEM, and its SHA-256 fingerprint (of the DER) in hex."""

    certificate: str
    key: str
    fingerprint: str
    public_key: str  # SHA-256 of the DER public key in base64, as curl's --pinnedpubkey takes it


def make_certificate() -> Certificate:
    """Make a key (P-256) and a certificate for it, in memory; takes a few milliseconds, and imports `cryptography`."""
    import base64

    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.x509.oid import NameOID

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "rrmove")])
    now = dt.datetime.now(dt.UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - DAY)
        .not_valid_after(now + 2 * DAY)
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("rrmove")]), critical=False)
        .sign(key, hashes.SHA256())
    )
    encoding, plain = serialization.Encoding.PEM, serialization.NoEncryption()
    spki = key.public_key().public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
    pem = made.public_bytes(encoding).decode()
    return Certificate(
        pem,
        key.private_bytes(encoding, serialization.PrivateFormat.PKCS8, plain).decode(),
        hashlib.sha256(ssl.PEM_cert_to_DER_cert(pem)).hexdigest(),
        base64.b64encode(hashlib.sha256(spki).digest()).decode(),
    )
