"""The words that options take: durations, rates, sizes, digests, lists of names."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from rrmove.errors import UsageError

if TYPE_CHECKING:
    from rrmove.serving.roots import RootSpec

_UNITS = {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86400, "w": 604800}
_DURATION = re.compile(r"(\d+(?:\.\d+)?)\s*([smhdw]?)", re.ASCII)
_NUMBER = re.compile(r"\d{1,9}", re.ASCII)
_SHA256 = re.compile(r"[0-9a-f]{64}")


def duration(text: str) -> float:
    """Read seconds, or a number with s, m, h, d or w. Raises UsageError."""
    found = _DURATION.fullmatch(text.strip().lower())
    if found is None or (seconds := float(found[1]) * _UNITS[found[2]]) <= 0:
        raise UsageError(f"{text!r} is no length of time", remedy="Write it as 90, 30m, 12h or 7d")
    return seconds


def rate(text: str) -> float:
    """Read bytes a second, such as 50M. Raises UsageError."""
    from rrmove.units import parse_rate

    return parse_rate(text)


def size(text: str) -> int:
    """Read a number of bytes above zero, such as 64M. Raises UsageError."""
    from rrmove.units import parse_size

    if (count := parse_size(text)) < 1:
        raise UsageError(f"{text!r} is nothing to move", remedy="Name a size above zero, as 64M")
    return count


def count(text: str) -> int:
    """Read a number above zero. Raises UsageError."""
    if not _NUMBER.fullmatch(text) or not int(text):
        raise UsageError(f"{text!r} is no number", remedy="Write a whole number above zero")
    return int(text)


def priority(text: str) -> int:
    """Read a weight among moves. Raises UsageError."""
    from rrmove.model import PRIORITIES, PRIORITY

    if not _NUMBER.fullmatch(text) or int(text) not in PRIORITIES:
        raise UsageError(f"{text!r} is no priority", remedy=f"Write a whole number from 1 to 100; {PRIORITY} is usual")
    return int(text)


def port(text: str) -> int:
    """Read a TCP port; 0 stands for any that is free. Raises UsageError."""
    if not _NUMBER.fullmatch(text) or int(text) > 65535:
        raise UsageError(f"{text!r} is no port", remedy="Write a number from 0 to 65535")
    return int(text)


def root(text: str) -> RootSpec:
    """Read a root to serve, NAME=DIR or NAME=DIR:rw. Raises UsageError."""
    from rrmove.serving.roots import RootSpec

    return RootSpec.parse(text)


def names(text: str) -> tuple[str, ...]:
    """Read a comma-separated list of names. Raises UsageError."""
    found = tuple(name.strip() for name in text.split(","))
    if not all(found):
        raise UsageError(f"{text!r} is no list of names", remedy="Write it as a,b")
    return found


def setting(text: str) -> tuple[str, str]:
    """Read NAME.KEY=VALUE. Raises UsageError."""
    name, equals, value = text.partition("=")
    transport, dot, key = name.strip().partition(".")
    if not (equals and dot and transport and key):
        raise UsageError(f"{text!r} sets nothing", remedy="Write it as TRANSPORT.KEY=VALUE, as in http.tls=off")
    return f"{transport}.{key}", value.strip()


def hex_digest(text: str) -> str:
    """Read a SHA-256 in hex, in either case, with or without `sha256:` before it.

    Raises UsageError.
    """
    digest = text.strip().lower().removeprefix("sha256:")
    if not _SHA256.fullmatch(digest):
        raise UsageError(
            f"{text!r} is no SHA-256",
            remedy="It has 64 hex digits, as `sha256sum FILE` prints them",
        )
    return digest


def mirror(text: str) -> str:
    """Read the URL of a mirror. Raises UsageError."""
    from rrmove.model import Remote

    return Remote.at(text).url
