"""From what stands in a request to the names of files: pure, decoded once, nothing that leads upwards."""

from __future__ import annotations

import re
from urllib.parse import quote_from_bytes, unquote_to_bytes

from rrmove.serving.answers import Rejection
from rrmove.ssh.agent import BAD, JOURNAL, PART

_ORIGIN = re.compile(r"https?://[^/?#]*", re.IGNORECASE)  # the absolute form, which proxies send
_BROKEN = re.compile(r"%(?![0-9A-Fa-f]{2})")
_PART = re.compile(rb"\..{1,240}" + re.escape(PART.encode()), re.DOTALL)


def segments_of(target: str) -> tuple[bytes, ...]:
    """Split a request's target, without its query, at slashes and decode each segment, once.

    The last one is empty where the target ends in a slash. Raises Rejection (400) for what is no
    plain path: empty, `.` and `..` segments, encoded slashes, NUL, broken escapes.
    """
    if found := _ORIGIN.match(target):
        target = target[found.end() :] or "/"
    path = target.partition("#")[0].partition("?")[0]
    if not path.startswith("/") or not path.isascii() or _BROKEN.search(path):
        raise Rejection(400, "the path is malformed", remedy="Percent-encode what is no ASCII, and % as %25")
    *inner, last = (unquote_to_bytes(segment) for segment in path[1:].split("/"))
    return (*map(checked, inner), checked(last) if last else last)


def segments_in(path: str) -> tuple[bytes, ...]:
    """Split a path that is not encoded, as in JSON. Raises Rejection (400) as `segments_of`."""
    try:
        encoded = path.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:
        raise Rejection(
            400, "the path is no text", remedy="Write bytes that are no UTF-8 as \\udc80 to \\udcff"
        ) from None
    return tuple(checked(segment) for segment in encoded.split(b"/"))


def checked(name: bytes) -> bytes:
    """Let a name through that names an entry of a directory. Raises Rejection (400) otherwise."""
    if name in {b"", b".", b".."} or b"/" in name or b"\0" in name:
        raise Rejection(
            400,
            f"{text(name)!r} is no name",
            remedy="Write the path without empty, . and .. segments, and without encoded slashes",
        )
    return name


def ours(name: bytes) -> bool:
    """Tell whether a name is one of the landing's own: a part, its journal, a draft, what was put aside."""
    draft = JOURNAL.encode() in name and name.endswith(b"~")
    return name.startswith(b".") and (draft or name.endswith((PART.encode(), JOURNAL.encode(), BAD.encode())))


def is_part(name: bytes) -> bool:
    """Tell whether a name is a part file's."""
    return _PART.fullmatch(name) is not None


def text(name: bytes) -> str:
    """Give a name as Python carries it; bytes that are no UTF-8 come back by `segments_in`."""
    return name.decode("utf-8", "surrogateescape")


def quoted(*names: bytes) -> str:
    """Join names to what stands in a URL."""
    return "/".join(quote_from_bytes(name, safe="") for name in names)
