"""The direct way: we reach the node's data port, where a data server or a receiver of our own takes PUTs."""

from __future__ import annotations

import asyncio
import json
import os
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from rrmove import Job, Unusable, serve_there
from rrmove_plugins.http.knocking import haste, knock, patience
from rrmove_plugins.http.line import Door
from rrmove_plugins.http.places import Place, Shut, greeted, named, places_of
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


async def send_direct(job: Job, late: Callable[[], None]) -> None:
    """Send what is missing to the node's data port. Raises Shut where there is no way in.

    What was known of the port may be out of date: nothing is started there before it has answered. `late` is called
    where it does not answer at once. Of several addresses, one that is open comes before one where nothing listens.
    """
    server, free = await _way_in(job, await places_of(job), late)
    if server is not None:
        await job.landing.admit()
    with job.request.source.opened() as fd:
        missing = tuple(job.missing)
        if server is not None:
            await _sent(Sender(job, fd, server, missing))
            return
        while missing:
            back = ReadBack(job.landing)
            await _sent(Sender(job, fd, await _started(job, free, missing), missing, back))
            # A receiver takes no byte twice: for what arrived altered there has to be another one
            missing = await job.landing.survey() if back.wrong else ()


async def _way_in(job: Job, places: Sequence[Place], late: Callable[[], None]) -> tuple[Door | None, Sequence[Place]]:
    """Find the data server; None where there is none, and then where the port is free for a receiver. Raises Shut.

    Who is silent while others answer is not waited for.
    """
    node = job.request.node
    port = node.ports.data
    knocking = [asyncio.create_task(knock((place.family, place.where), patience(job))) for place in places]
    refused = all(place.known == "refused" for place in places)
    asking = None if refused else asyncio.create_task(_said(job))
    try:
        _, waiting = await asyncio.wait(knocking, timeout=haste(job))
        if waiting and not any(task.done() and task.result() for task in knocking):
            late()
        while waiting and not any(task.done() and task.result() for task in knocking):
            _, waiting = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
        states = [task.result() if task.done() else None for task in knocking]
        listening = [place for place, state in zip(places, states, strict=True) if state == "open"]
        free = [place for place, state in zip(places, states, strict=True) if state == "refused"]
        if not listening and not free:
            raise Shut(f"port {port} does not answer{named(places)}", node=node.name)
        if listening and (doors := _doors(job, listening, await (asking or _said(job)))):
            return await greeted(doors), ()
        if not free:
            what = f"port {port}{named(listening)} is somebody else's server: no state of `rrmove serve`"
            raise Shut(what, node=node.name)
        return None, free
    finally:
        tasks = [*knocking, *([] if asking is None else [asking])]
        for each in tasks:
            each.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _sent(sender: Sender) -> None:
    """Have all sent. Raises Shut where nobody was ever reached."""
    try:
        await sender.run()
    except Unusable as error:
        raise error if sender.reached else Shut(error.what, node=error.node, tried=error.tried) from error


async def _started(job: Job, places: Sequence[Place], missing: Sequence[Range]) -> Door:
    """Start a receiver; one that is cancelled while it starts is sent home."""
    starting = asyncio.create_task(_receiver(job, places, missing))
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


async def _receiver(job: Job, places: Sequence[Place], missing: Sequence[Range]) -> Door:
    """Start a receiver for what is missing in our part file, over the login that exists; find where it is reached.

    Without TLS, where the first place allows that, it is only called at places that do.
    """
    node, said = job.request.node, tls_of(job)
    tls = not places[0].plain(said)
    endpoint = await serve_there(
        job.session,
        job.landing.part,
        writable=missing,
        identity=await job.landing.claim(),
        port=node.ports.data,
        tls=tls,
        prefix=f"{PREFIX}once/",
    )
    doors = [
        Door(
            node=node.name,
            family=place.family,
            place=place.where,
            path=endpoint.path,
            headers=endpoint.headers,
            fingerprint=endpoint.fingerprint,
            once=True,
        )
        for place in places
        if tls or place.plain(said)
    ]
    return await greeted(doors)


async def _said(job: Job) -> bytes:
    """Ask the node for the state of the data server that runs there; empty where there is none."""
    lane = await job.session.control()
    argv = ["sh", "-c", ASK, "sh", str(job.request.node.ports.data)]
    reply = await lane.call("run", argv=argv, timeout=ASK_WITHIN)
    return reply.body if reply.fields.get("status") == 0 else b""


def _doors(job: Job, places: Sequence[Place], said: bytes) -> list[Door]:
    """Give the ways to the data server that are allowed. Raises Shut where it is for us, and none is."""
    doors: list[Door] = []
    shut: Shut | None = None
    for place in places:
        where = (place.family, place.where)
        try:
            door = door_of(said, job.landing.part, job.request.node.name, where, tls_of(job), seen=place.seen)
        except Shut as error:
            shut = shut or error
        else:
            doors += [door] if door is not None else []
    if shut is not None and not doors:
        raise shut
    return doors


def door_of(  # noqa: PLR0913  what a door depends on
    said: bytes, part: str, node: str, place: tuple[int, tuple[Any, ...]], tls: str = "auto", *, seen: bool = True
) -> Door | None:
    """Read a data server's state and token; None where it serves no root that the part file is in.

    Raises Shut where it is for us, but without TLS where that is not allowed. `seen` says that SSH is at this address:
    its token is told in the clear to nobody of whom it is not known that they are the node.
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
    if secret is None and not seen:
        raise Shut(
            f"the data server speaks plain HTTP, and nobody knows that {place[1][0]} is the node: SSH is elsewhere",
            node=node,
            remedy=f"Serve with TLS, or make {place[1][0]} the node's `host`, which SSH goes to",
        )
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
