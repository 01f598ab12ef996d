"""The direct way: we reach the node's data port, where a data server or a receiver of our own takes PUTs."""

from __future__ import annotations

import asyncio
import json
import os
import socket
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from rrmove import PORTS, Fatal, Job, Unusable, serve_there
from rrmove_plugins.http.knocking import haste, knock, patience
from rrmove_plugins.http.line import Door
from rrmove_plugins.http.readback import ReadBack
from rrmove_plugins.http.sender import Sender, goodbye
from rrmove_plugins.http.trust import plain_allowed, tls_of

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from rrmove import Range

PREFIX = "/v1/parts/"  # where the data server takes parts; the receiver's path looks the same
CALLED_OFF = 3.0  # s that a receiver may take to start before it is left to go by itself, which it does soon
ASK_WITHIN = 3.0  # s that the node may take to print two small files

# Prints the state of the data server on that port, if one has left it, and its token on the next line.
ASK = """
for state in "${XDG_STATE_HOME:-$HOME/.local/state}/rrmove/serve-$1.json" "/var/lib/rrmove/serve-$1.json"; do
  [ -r "$state" ] || continue
  tr -d '\\n' <"$state"; echo
  token=$(sed -n 's/.*"token_file": *"\\([^"]*\\)".*/\\1/p' "$state")
  [ -r "$token" ] && cat "$token"
  exit 0
done
exit 3
"""


class Shut(Unusable):
    """The data port leads nowhere, whatever a probe saw."""


async def send_direct(job: Job, late: Callable[[], None]) -> None:
    """Send what is missing to the node's data port. Raises Shut where there is no way in.

    What was known of the port may be out of date: nothing is started there before it has answered. `late` is called
    where it does not answer at once.
    """
    place = await _resolved(job)
    server = await _way_in(job, place, late)
    if server is not None:
        await job.landing.admit()
    try:
        fd = os.open(job.request.source.path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        raise Fatal(f"cannot read {str(job.request.source.path)!r}: {error.strerror}") from error
    try:
        missing = tuple(job.missing)
        if server is not None:
            await _sent(Sender(job, fd, server, missing))
            return
        while missing:
            back = ReadBack(job.landing)
            await _sent(Sender(job, fd, await _started(job, place, missing), missing, back))
            # A receiver takes no byte twice: for what arrived altered there has to be another one
            missing = await job.landing.survey() if back.wrong else ()
    finally:
        os.close(fd)


async def _way_in(job: Job, place: tuple[int, tuple[Any, ...]], late: Callable[[], None]) -> Door | None:
    """Find the data server; None where the port is free for a receiver. Raises Shut."""
    node = job.request.node
    known = (job.facts.get(PORTS) or {}).get(node.ports.data)
    if known in {"filtered", "unreachable"}:
        raise Shut(f"port {node.ports.data} is {known}", node=node.name)
    knocking = asyncio.create_task(knock(place, patience(job)))
    asking = None if known == "refused" else asyncio.create_task(_data_server(job, place))
    try:
        await asyncio.wait({knocking}, timeout=haste(job))
        if not knocking.done():
            late()
        state = await knocking
        if state is None:
            raise Shut(f"port {node.ports.data} does not answer", node=node.name)
        if state == "refused":
            return None
        server = await (asking or _data_server(job, place))
        if server is None:
            what = f"port {node.ports.data} is somebody else's server: no state of `rrmove serve`"
            raise Shut(what, node=node.name)
        return server
    finally:
        tasks = [knocking] if asking is None else [knocking, asking]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _sent(sender: Sender) -> None:
    """Have all sent. Raises Shut where nobody was ever reached."""
    try:
        await sender.run()
    except Unusable as error:
        raise error if sender.reached else Shut(error.what, node=error.node, tried=error.tried) from error


async def _resolved(job: Job) -> tuple[int, tuple[Any, ...]]:
    """Find the node's data port: family and socket address."""
    name, port = job.request.node.name, job.request.node.ports.data
    address = await job.session.address()
    if address is None:
        raise Shut("there is no direct way to the node, only one through a proxy or jump host", node=name)
    try:
        found = await asyncio.get_running_loop().getaddrinfo(address[0], port, type=socket.SOCK_STREAM)
    except OSError as error:
        raise Shut(f"{address[0]!r} cannot be resolved: {error.strerror}", node=name) from error
    family, _, _, _, place = found[0]
    return family, place


async def _started(job: Job, place: tuple[int, tuple[Any, ...]], missing: Sequence[Range]) -> Door:
    """Start a receiver; one that is cancelled while it starts is sent home."""
    starting = asyncio.create_task(_receiver(job, place, missing))
    try:
        return await asyncio.shield(starting)
    except asyncio.CancelledError:
        await asyncio.shield(_called_off(starting))
        raise


async def _called_off(starting: asyncio.Task[Door]) -> None:
    done, _ = await asyncio.wait({starting}, timeout=CALLED_OFF)
    starting.cancel()
    if done and starting.exception() is None:
        await asyncio.to_thread(goodbye, starting.result())


async def _receiver(job: Job, place: tuple[int, tuple[Any, ...]], missing: Sequence[Range]) -> Door:
    """Start a receiver for what is missing in our part file, over the login that exists."""
    node = job.request.node
    tls = not plain_allowed(str(place[1][0]), tls_of(job))
    endpoint = await serve_there(
        job.session,
        job.landing.part,
        writable=missing,
        identity=await job.landing.claim(),
        port=node.ports.data,
        tls=tls,
        prefix=f"{PREFIX}once/",
    )
    return Door(
        node=node.name,
        family=place[0],
        place=place[1],
        path=endpoint.path,
        headers=endpoint.headers,
        fingerprint=endpoint.fingerprint,
        once=True,
    )


async def _data_server(job: Job, place: tuple[int, tuple[Any, ...]]) -> Door | None:
    """Find the data server that runs there, by the state that it keeps; None where there is none for us."""
    node = job.request.node
    lane = await job.session.control()
    reply = await lane.call("run", argv=["sh", "-c", ASK, "sh", str(node.ports.data)], timeout=ASK_WITHIN)
    if reply.fields.get("status") != 0:
        return None
    return door_of(reply.body, job.landing.part, node.name, place, tls_of(job))


def door_of(said: bytes, part: str, node: str, place: tuple[int, tuple[Any, ...]], tls: str = "auto") -> Door | None:
    """Read a data server's state and token; None where it serves no root that the part file is in.

    Raises Shut where it is for us, but without TLS where that is not allowed.
    """
    first, _, rest = said.partition(b"\n")
    token = rest.strip().decode("ascii", "replace")
    try:
        state: Mapping[str, Any] = json.loads(first)
        secret = None if state["scheme"] == "http" else str(state["fingerprint"]).replace(":", "").lower()
        roots = {str(root["path"]): str(root["name"]) for root in state["roots"] if "w" in root["access"]}
    except (ValueError, KeyError, TypeError):
        return None
    below = [path for path in roots if part.startswith(path.rstrip("/") + "/")]
    if not below or not token:
        return None
    root = max(below, key=len)
    if secret is None and not plain_allowed(str(place[1][0]), tls):
        raise Shut(
            "the data server there speaks plain HTTP, in which its token could be overheard",
            node=node,
            remedy="Serve with TLS, or allow it with `-o http.tls=off`",
        )
    inside = os.fsencode(part[len(root.rstrip("/")) + 1 :])
    return Door(
        node=node,
        family=place[0],
        place=place[1],
        path=f"{PREFIX}{quote(roots[root], safe='')}/{quote(inside)}",
        headers={"Authorization": f"Bearer {token}"},
        fingerprint=secret,
        once=False,
    )


__all__ = ["Shut", "door_of", "send_direct"]
