"""Endpoint: where a one-shot server listens, and what it wants to hear."""

from __future__ import annotations

import secrets
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True, kw_only=True)
class Endpoint:
    """One path of one server, the token that opens it, and the certificate that it is known by.

    `fingerprint` is the SHA-256 of the DER certificate in hex, `public_key` that of its public key in base64 (curl's
    `--pinnedpubkey sha256//...`); both None for plain HTTP. The token never belongs on a command line: others can see
    those. It is left out of `repr()`.
    """

    port: int
    path: str
    token: str = field(repr=False)
    fingerprint: str | None = None
    public_key: str | None = None

    @property
    def tls(self) -> bool:
        """Whether it speaks TLS."""
        return self.fingerprint is not None

    @property
    def headers(self) -> dict[str, str]:
        """What every request has to say."""
        return {"Authorization": f"Bearer {self.token}"}

    def url(self, host: str) -> str:
        """Give its URL under a host's name or number."""
        scheme = "https" if self.tls else "http"
        return f"{scheme}://{f'[{host}]' if ':' in host else host}:{self.port}{self.path}"


def random_path(prefix: str = "/") -> str:
    """Make a path that nobody can guess."""
    return f"{prefix}{secrets.token_urlsafe(18)}"


def random_token() -> str:
    """Make a token that is used once."""
    return secrets.token_urlsafe(32)
