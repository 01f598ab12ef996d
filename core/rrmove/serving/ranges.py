"""Conditions and ranges of HTTP (RFC 9110), and digests in its headers (RFC 9530): pure."""

from __future__ import annotations

import base64
import binascii
import re
from typing import TYPE_CHECKING

from rrmove.manifest import Range
from rrmove.serving.answers import Rejection

if TYPE_CHECKING:
    from collections.abc import Mapping

_RANGE = re.compile(r"\s*bytes\s*=\s*(\d{0,18})\s*-\s*(\d{0,18})\s*", re.ASCII | re.IGNORECASE)
_CONTENT_RANGE = re.compile(r"bytes (\d{1,18})-(\d{1,18})/(\d{1,18})", re.ASCII)
_SHA256 = re.compile(r"(?:^|,)\s*sha-256\s*=\s*:([A-Za-z0-9+/=]*):", re.ASCII)
_WANTED = re.compile(r"(?:^|,)\s*sha-256\s*=\s*([0-9]|10)\s*(?:,|$)", re.ASCII)


def wanted_range(header: str | None, size: int) -> Range | None:
    """Read a Range header, None where the whole file is to be sent. Raises Rejection (416).

    Several ranges, and what cannot be read, count as none: that is always a right answer.
    """
    found = _RANGE.fullmatch(header) if header else None
    if found is None or not (found[1] or found[2]):
        return None
    if not found[1]:
        start, stop = max(0, size - int(found[2])), size
    else:
        start, last = int(found[1]), int(found[2]) if found[2] else size - 1
        if found[2] and last < start:
            return None  # invalid, by the RFC, and so to be ignored
        stop = min(size, last + 1)
    if start >= stop:
        raise Rejection(
            416,
            f"the range is outside the file's {size} bytes",
            remedy="Ask for the file's size first (HEAD)",
            headers={"Content-Range": f"bytes */{size}"},
        )
    return Range(start, stop)


def put_range(header: str | None) -> tuple[Range, int]:
    """Read the Content-Range of a PUT: the bytes, and the whole size. Raises Rejection (400)."""
    found = _CONTENT_RANGE.fullmatch(header.strip()) if header else None
    if found is None or not int(found[1]) <= int(found[2]) < int(found[3]):
        raise Rejection(
            400,
            "the Content-Range is missing or malformed",
            remedy="Write it as `Content-Range: bytes FIRST-LAST/SIZE`",
        )
    return Range(int(found[1]), int(found[2]) + 1), int(found[3])


def sha256_in(header: str | None) -> bytes | None:
    """Read the SHA-256 of a Content-Digest header, None where it has none. Raises Rejection (400)."""
    found = _SHA256.search(header) if header else None
    if found is None:
        return None
    try:
        digest = base64.b64decode(found[1], validate=True)
    except binascii.Error:
        digest = b""
    if len(digest) != 32:
        raise Rejection(400, "the Content-Digest is malformed", remedy="Write it as `sha-256=:BASE64:`")
    return digest


def wants_sha256(headers: Mapping[str, str]) -> bool:
    """Tell whether a Want-Repr-Digest header asks for SHA-256."""
    found = _WANTED.search(headers.get("Want-Repr-Digest", ""))
    return found is not None and found[1] != "0"


def digest_field(hexadecimal: str) -> str:
    """Write a digest as Repr-Digest has it."""
    return f"sha-256=:{base64.b64encode(bytes.fromhex(hexadecimal)).decode()}:"


def matches(header: str, tag: str, *, weakly: bool) -> bool:
    """Compare an ETag with the list of an If-Match or If-None-Match header."""
    if header.strip() == "*":
        return True
    tags = [found[0] for found in re.finditer(r'(?:W/)?"[^"]*"', header)]
    if weakly:
        return tag.removeprefix("W/") in {found.removeprefix("W/") for found in tags}
    return not tag.startswith("W/") and tag in tags
