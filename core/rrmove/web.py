"""Looking at URLs: what a server says of a file, asked by the node itself, and by us where that fails."""

from __future__ import annotations

import asyncio
import base64
import email.utils
import json
import secrets
import time
import urllib.parse
from dataclasses import replace
from typing import TYPE_CHECKING, cast

from rrmove.curl import curl
from rrmove.errors import Fatal, Transient, TransportError, Unusable
from rrmove.lease import run_text, text_of
from rrmove.ssh import fetcher

if TYPE_CHECKING:
    from collections.abc import Mapping

    from rrmove.model import Remote
    from rrmove.session import Session

LOOKING = 25.0  # s that the node may take to look: a filtered port, and the redirects
PATIENCE = fetcher.PATIENCE
ROUNDS = 3  # looks at a server that is busy or out of reach
PAUSE = 0.5  # s before the second look, doubled for the third

# What the reader of each kind of trouble does next; the kinds are the fetcher's.
_REMEDIES: Mapping[str, str] = {
    "gone": "Check the URL",
    "denied": "The server wants credentials: https://USER:PASSWORD@HOST/..., or a URL that is signed",
    "status": "Check the URL with the server's owner",
    "redirect": "Give the URL that it leads to, if you trust it",
    "certificate": "The server's owner has to renew it; or set the clock, or install ca-certificates there",
    "dns": "Check the host's name, and the resolver",
    "unreachable": "Check that the server is up, and firewalls on the way",
    "stalled": "The server is overloaded or unreachable: run the same command again later",
    "busy": "The server is overloaded: run the same command again later",
    "cut": "Run the same command again to continue, where the server can",
    "changed": "Run the same command again when nobody writes to it",
    "endless": "Give --sha256: then a cut can be noticed",
    "disk": "Make room on the node, or choose another destination",
}
_PASSING = frozenset({"cut", "busy", "unreachable", "stalled"})


def secret_parts(remote: Remote) -> dict[str, object]:
    """Give what only the fetcher may see: the URL without user and password, and these as a header."""
    parts = urllib.parse.urlsplit(remote.url)
    userinfo, _, host = parts.netloc.rpartition("@")
    user, _, password = userinfo.partition(":")
    words = f"{urllib.parse.unquote(user)}:{urllib.parse.unquote(password)}"
    auth = "Basic " + base64.b64encode(words.encode()).decode() if userinfo else ""
    # What is no ASCII must be escaped on the wire, where people type it as they read it.
    host = host.encode("idna").decode("ascii") if not host.isascii() else host
    path = urllib.parse.quote(parts.path or "/", safe="/%:@!$&'()*+,;=~-._")
    query = urllib.parse.quote(parts.query, safe="/%:@!$&'()*+,;=~-._?[]")
    return {"url": urllib.parse.urlunsplit((parts.scheme, host, path, query, "")), "auth": auth}


def version_parts(remote: Remote) -> dict[str, object]:
    """Give what an answer has to say of itself to be about the version that was looked at."""
    return {
        "size": remote.size if remote.sized else None,
        "etag": remote.etag,
        "modified": remote.modified,
        "patience": PATIENCE,
        "if_range": remote.etag or (remote.modified if remote.named else ""),
    }


def trouble_of(kind: str, text: str, remote: Remote, *, node: str, where: str) -> TransportError:
    """Give the error that a fetcher's trouble stands for; `where` says who fetched: the node, or we."""
    what = f"{remote.shown} cannot be fetched {where}: {text}"
    if kind == "disk" and text.startswith(("28:", "122:")):
        return Fatal(f"the disk is full: {text}", node=node, tried=remote.shown, remedy=_REMEDIES["disk"])
    error = Transient if kind in _PASSING else Unusable if kind in {"norange", "odd", "disk"} else Fatal
    return error(what, node=node, remedy=_REMEDIES.get(kind))


async def look(session: Session, remote: Remote) -> Remote:
    """Ask what the URL is, and give it with the answer. Raises TransportError where nobody can reach it.

    The node asks, and where it cannot reach it, we do: then `beyond` says why.
    """
    for number in range(ROUNDS):
        beyond, there = await _there(session, remote)
        if there is not None:
            return _seen(remote, there, "")
        kind, text = "", ""
        try:
            here = await asyncio.to_thread(fetcher.look, secret_parts(remote))
            return _seen(remote, cast("dict[str, object]", here), beyond[1])
        except fetcher.Trouble as trouble:
            kind, text = trouble.kind, trouble.text
        if kind not in _PASSING and beyond[0] not in _PASSING:
            break
        if number + 1 < ROUNDS:
            await asyncio.sleep(PAUSE * 2**number)
    error = trouble_of(beyond[0] or kind, text, remote, node=session.node.name, where="")
    says = text if text == beyond[1] else f"by the node, {beyond[1]}; from here, {text}"
    error.what, error.tried = f"{remote.shown} cannot be fetched: {says}", "the node itself, then this machine"
    raise error


async def _there(session: Session, remote: Remote) -> tuple[tuple[str, str], dict[str, object] | None]:
    """Let the node look; gives why it cannot, or what it saw."""
    if session.floor:
        return await _with_curl(session, remote)
    text = text_of("rrmove.ssh", "fetcher.py") + "\ntell()\n"
    try:
        said = json.loads(await run_text(session, text, secret_parts(remote), timeout=LOOKING))
    except Unusable as error:
        if session.floor:  # which has turned out just now
            return await _with_curl(session, remote)
        return ("", f"its python3 is of no use ({error.what})"), None
    except ValueError:
        return ("", "its python3 answers nonsense"), None
    if "trouble" in said:
        kind, words = said["trouble"]
        return (kind, words), None
    return ("", ""), said


async def _with_curl(session: Session, remote: Remote) -> tuple[tuple[str, str], dict[str, object] | None]:
    try:
        return ("", ""), await curl(session, secret_parts(remote), 0, 1)
    except Unusable:
        return ("", "it has neither python3 nor curl"), None
    except fetcher.Trouble as trouble:
        return (trouble.kind, trouble.text), None


def _seen(remote: Remote, said: dict[str, object], beyond: str) -> Remote:
    size, modified = said["size"], str(said["modified"])
    parsed = email.utils.parsedate_to_datetime(modified) if _is_date(modified) else None
    named = bool(said["named"])
    return replace(
        remote,
        size=size if isinstance(size, int) else 0,
        sized=size is not None,
        mtime_ns=int(parsed.timestamp()) * 10**9 if parsed else time.time_ns(),
        etag=str(said["etag"]),
        modified=modified,
        named=named,
        ranges=bool(said["ranges"]),
        digest=cast("str | None", said["digest"]),
        beyond=beyond,
        nonce="" if named and said["ranges"] and size is not None else secrets.token_hex(8),
    )


def _is_date(text: str) -> bool:
    try:
        return bool(text) and email.utils.parsedate_to_datetime(text) is not None
    except (TypeError, ValueError):
        return False


__all__ = ["look", "secret_parts", "trouble_of", "version_parts"]
