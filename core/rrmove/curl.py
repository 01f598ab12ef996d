"""curl on the node, where there is no python3: one range of a URL, into a part file or to be looked at."""

from __future__ import annotations

import base64
import http.client
import io
import re
from types import SimpleNamespace
from typing import TYPE_CHECKING, cast

from rrmove.errors import Unusable
from rrmove.retry import persistently
from rrmove.ssh import fetcher

if TYPE_CHECKING:
    from collections.abc import Mapping

    from rrmove.session import Session

BLOCK = 64 << 10  # bytes of dd's blocks: ranges begin at a multiple
SLOW, PATIENCE = 1000, 15  # bytes a second, and for how many seconds, below which curl gives up
LONGEST = 120  # s that one curl may take: nothing else ends it when we are gone

# Head and exit status go to stderr, the body to dd: curl's own words must not get into either.
_FETCH = (
    '{ { curl -q -K - -D /dev/fd/3 3>&1 >&5 2>&3; echo "curl $?"; } | cat >&2; } 5>&1 | '
    'dd of="$1" bs=65536 seek="$2" conv=notrunc 2>/dev/null'
)
_LOOK = '{ { curl -q -K - -D /dev/fd/3 3>&1 >/dev/null 2>&3; echo "curl $?"; } | cat >&2; }'

# curl's exit status (curl(1), EXIT CODES) in the fetcher's kinds, with our words.
_MEANING = {
    1: ("redirect", "it redirects to where it must not, as from https to http"),
    6: ("dns", "its host's name cannot be resolved"),
    7: ("unreachable", "the connection failed"),
    18: ("cut", "the server ended the answer too early"),
    23: ("disk", "28: it could not be written"),
    28: ("stalled", "the server does not answer, or stands still"),
    35: ("cut", "TLS failed"),
    47: ("redirect", "it redirects too often"),
    51: ("certificate", "the server's certificate is refused"),
    52: ("cut", "the server answered nothing"),
    56: ("cut", "the connection was lost"),
    60: ("certificate", "the server's certificate is refused"),
    63: ("norange", "the server gives more than was asked for"),
}


async def curl(
    session: Session, given: Mapping[str, object], start: int, stop: int, into: str | None = None
) -> dict[str, object]:
    """Fetch the bytes from `start` to `stop` with the node's curl, and give what the answer says of the file.

    They go to their place in the part file `into`, or nowhere. Raises fetcher.Trouble where that
    fails, Unusable where the node has no curl. A repeat does no harm.
    """
    config = _config(given, start, stop, look=into is None)
    argv = ["sh", "-c", _LOOK, "sh"] if into is None else ["sh", "-c", _FETCH, "sh", into, str(start // BLOCK)]

    async def once() -> str:
        lane = await session.control()
        reply = await lane.call("run", config.encode("utf-8"), argv=argv, timeout=float(LONGEST + 10))
        return str(reply.fields["errors"])

    said = await persistently(once)
    ended = re.search(r"^curl (\d+)\s*$", said, re.MULTILINE)
    status = int(ended[1]) if ended else 127
    if status in {2, 126, 127}:
        raise Unusable("the node has no curl that works", node=session.node.name, tried="curl")
    heads = re.findall(
        r"^HTTP/\S+ (\d+)[^\n]*\n(.*?)(?:\r?\n\r?\n)", said.replace("\r\n", "\n"), re.MULTILINE | re.DOTALL
    )
    code, head = (int(heads[-1][0]), heads[-1][1]) if heads else (0, "")
    if code >= 300:
        error = SimpleNamespace(code=code, reason=http.client.responses.get(code, ""))
        raise fetcher.status_trouble(error)
    if status and not (into is None and status == 63 and code == 200):
        kind, words = _MEANING.get(status, ("odd", f"curl ended with status {status}"))
        raise fetcher.Trouble(kind, words)
    answer = SimpleNamespace(
        status=code,
        headers=http.client.parse_headers(io.BytesIO(f"{head}\n\n".encode("latin-1", "replace"))),
        linked=None,
    )
    return {**cast("dict[str, object]", fetcher.said(answer)), "ranges": code == 206}


def _config(given: Mapping[str, object], start: int, stop: int, *, look: bool) -> str:
    """Write curl's configuration, which goes over stdin: its arguments could be seen."""
    url = str(given["url"])
    scheme = url.partition(":")[0].lower()
    lines = {
        "url": url,
        "range": f"{start}-{stop - 1}",
        "user-agent": "rrmove",
        "max-redirs": str(fetcher.HOPS),
        "proto-redir": "=https" if scheme == "https" else "=http,https",
        "connect-timeout": f"{fetcher.CONNECTING:g}",
        "speed-limit": str(SLOW),
        "speed-time": str(PATIENCE),
        "max-time": str(PATIENCE if look else LONGEST),
        "max-filesize": str(stop - start),
    }
    if given.get("if_range"):
        lines["header"] = f"If-Range: {given['if_range']}"
    if given.get("auth"):
        lines["user"] = base64.b64decode(str(given["auth"]).partition(" ")[2]).decode("utf-8", "replace")
    if given.get("rate"):
        lines["limit-rate"] = str(int(cast("float", given["rate"])))
    flags = ["location", "silent", "show-error", "fail"]
    return "\n".join([*flags, *(f'{name} = "{_quoted(value)}"' for name, value in lines.items()), ""])


def _quoted(value: str) -> str:
    return value.replace("\\", "\\\\").replace('"', '\\"')


__all__ = ["BLOCK", "curl"]
