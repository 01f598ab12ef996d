"""Serving one file of a node from there, or receiving it: the one-shot server, started over the login that exists."""

from __future__ import annotations

import asyncio
import base64
import functools
import json
import re
import zlib
from pathlib import Path
from typing import TYPE_CHECKING

from rrmove.errors import Unusable
from rrmove.oneshot.certificate import make_certificate
from rrmove.oneshot.endpoint import Endpoint, random_path, random_token

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rrmove.manifest import Range
    from rrmove.session import Session

# s without anybody who has the token, after which the server ends. A client whose connections were all cut behind its
# back finds out after the 4 s that the http transport gives them, and is back within one more.
IDLE = 7.0
EVERYTHING = 1 << 62  # bytes: no file is larger
PATIENCE = 10.0  # s that a node may take to start a Python

# Text and settings come over stdin, so that no secret is seen in a list of processes.
BOOT = (
    "import io,sys,zlib,base64,json;f=io.BufferedReader(io.FileIO(0,closefd=False));"
    "n={'__name__':'oneshot'};exec(zlib.decompress(base64.b64decode(f.readline())),n);n['main'](json.loads(f.read()))"
)


@functools.cache
def server_text() -> bytes:
    """Give the server as one line."""
    return base64.b64encode(zlib.compress(Path(__file__).with_name("server.py").read_bytes(), 9)) + b"\n"


async def serve_there(  # noqa: PLR0913  all by name
    session: Session,
    file: str,
    *,
    writable: bool | Sequence[Range] = False,
    identity: str | None = None,
    host: str = "",
    port: int = 0,
    tls: bool = True,
    idle: float = IDLE,
    prefix: str = "/",
) -> Endpoint:
    """Start a one-shot server on a node, for one file there; gives where it listens.

    It serves GET of the file, or, `writable`, PUT into it (an existing regular file, no symbolic link), or into those
    ranges of it. Each byte can be written until the PUT that brought it was answered, and not again: what is read back
    after that stays as it is. `identity` is what `Landing.claim()` gave for a part file: no two receivers that were
    told one are at the same part file.

    It needs python3 there and leaves nothing behind: it ends with a DELETE, or after `idle` seconds without a
    connection of somebody who has the token, whatever becomes of the login. Raises Unusable where it cannot be
    started (no python3, the port is taken, no such file, or another one), Transient where the connection dies.
    """
    made = await asyncio.to_thread(make_certificate) if tls else None
    path, token = random_path(prefix), random_token()
    spans = ((0, EVERYTHING),) if writable is True else tuple((span.start, span.stop) for span in writable or ())
    settings = {
        "file": file,
        "writable": None if writable is False else spans,
        "identity": identity,
        "host": host,
        "port": port,
        "path": path,
        "token": token,
        "idle": idle,
        "certificate": made.certificate if made else None,
        "key": made.key if made else None,
    }
    lane = await session.control()
    reply = await lane.call(
        "run",
        server_text() + json.dumps(settings).encode("ascii"),
        argv=["python3", "-I", "-S", "-c", BOOT],
        timeout=PATIENCE,
    )
    said = re.fullmatch(rb"listening (\d+)\n", reply.body)
    if reply.fields.get("status") != 0 or said is None:
        lines = str(reply.fields.get("errors", "")).strip().splitlines() or ["it said nothing"]
        raise Unusable(
            f"no server could be started on the node: {lines[-1][:200]}",
            node=session.node.name,
            tried=f"python3 listening on port {port}" if port else "python3",
        )
    return Endpoint(
        port=int(said[1]),
        path=path,
        token=token,
        fingerprint=made.fingerprint if made else None,
        public_key=made.public_key if made else None,
    )
