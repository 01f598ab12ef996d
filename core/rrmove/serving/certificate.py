"""The server's own certificate: made at its first start, known by its fingerprint and not by an authority."""

from __future__ import annotations

import socket
import ssl
from dataclasses import dataclass
from typing import TYPE_CHECKING

from rrmove.errors import UsageError
from rrmove.oneshot.certificate import make_certificate, pins
from rrmove.serving.private import ensure_private

if TYPE_CHECKING:
    from pathlib import Path

DAYS = 3650  # nobody renews what is pinned; one who wants a new one removes the file


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
    fingerprint, public_key = pins(found)
    return Identity(context, fingerprint, f"sha256//{public_key}")


def make() -> bytes:
    """Make a key and a certificate for this machine, in PEM."""
    host = socket.gethostname()
    made = make_certificate("rrmove serve", ("localhost", *([host] if host and host.isascii() else ())), DAYS)
    return (made.key + made.certificate).encode("ascii")
