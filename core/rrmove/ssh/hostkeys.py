"""Host keys for the embedded session: what known_hosts says of the key that a node has shown."""

from __future__ import annotations

import base64
import binascii
import enum
import hashlib
import hmac
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path

SSH_PORT = 22
# The names under which a server signs with an RSA key; known_hosts has it as ssh-rsa.
RSA_NAMES = frozenset({"ssh-rsa", "rsa-sha2-256", "rsa-sha2-512"})


class Verdict(enum.Enum):
    """What known_hosts says of a key."""

    KNOWN = "known"
    UNKNOWN = "unknown"
    CHANGED = "changed"
    REVOKED = "revoked"


@dataclass(frozen=True, slots=True)
class HostKey:
    """One line that is about a host: its marker ("" or "@revoked"), key type and key blob."""

    marker: str
    kind: str
    blob: bytes


def entries(files: Iterable[Path], name: str) -> Iterator[HostKey]:
    """Give what the files say of one name; lines and files that cannot be read say nothing.

    Hashed names, `[host]:port`, wildcards and negation count as in sshd(8). Lines marked
    @cert-authority are passed over: certificates are not checked here, so they vouch for nothing.
    """
    for path in files:
        try:
            lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
        except OSError:
            continue
        for line in lines:
            words = line.split()
            marker = words.pop(0) if words and words[0].startswith("@") else ""
            if len(words) < 3 or words[0].startswith("#") or marker not in {"", "@revoked"}:
                continue
            if _names(words[0], name):
                try:
                    yield HostKey(marker, words[1], base64.b64decode(words[2], validate=True))
                except binascii.Error:
                    continue


def _names(patterns: str, name: str) -> bool:
    if patterns.startswith("|1|"):
        try:
            _, _, salt, digest = patterns.split("|")
            seen = hmac.new(base64.b64decode(salt), name.encode(), hashlib.sha1).digest()
            return hmac.compare_digest(seen, base64.b64decode(digest))
        except ValueError:
            return False
    found = False
    for pattern in patterns.lower().split(","):
        negated = pattern.startswith("!")
        # Brackets are part of `[host]:port` here, not a set of characters.
        if fnmatchcase(name, pattern.removeprefix("!").replace("[", "[[]")):
            if negated:
                return False
            found = True
    return found


def names_of(host: str, port: int, alias: str | None = None) -> tuple[str, ...]:
    """Give the names to look for: the one with the port first, as ssh does it."""
    if alias is not None:
        return (alias.lower(),)
    host = host.lower()
    return (host,) if port == SSH_PORT else (f"[{host}]:{port}", host)


def verdict(files: Iterable[Path], names: tuple[str, ...], blob: bytes, kind: str) -> Verdict:
    """Judge a host key by known_hosts.

    Under the first name a key of the same type that differs has changed; under the further ones
    only a key that is the same counts. A host that is known by keys of other types only is unknown.
    """
    files = tuple(files)
    found = [list(entries(files, name)) for name in names]
    if any(key.marker and key.blob == blob for keys in found for key in keys):
        return Verdict.REVOKED
    if any(not key.marker and key.blob == blob for keys in found for key in keys):
        return Verdict.KNOWN
    same_kind = (key for key in found[0] if not key.marker and key.kind == kind)
    return Verdict.CHANGED if next(same_kind, None) else Verdict.UNKNOWN


def known_kinds(files: Iterable[Path], names: tuple[str, ...]) -> frozenset[str]:
    """Give the key types that the host is known by, so that it is asked for one of those."""
    files = tuple(files)
    kinds = {key.kind for name in names for key in entries(files, name) if not key.marker}
    return frozenset(kinds | RSA_NAMES if kinds & RSA_NAMES else kinds)


def remember(files: tuple[Path, ...], name: str, kind: str, blob: bytes) -> None:
    """Add a key to the first file; what cannot be written is asked for again the next time."""
    if not files:
        return
    try:
        files[0].parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with files[0].open("a", encoding="utf-8") as file:
            file.write(f"{name} {kind} {base64.b64encode(blob).decode()}\n")
    except OSError:
        return
