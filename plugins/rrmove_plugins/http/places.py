"""Places: at which of a node's addresses its data port may be, in which order, and whether the node was seen there."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import socket
import ssl
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from rrmove import PLACES, PORTS, Unusable
from rrmove_plugins.http.knocking import HASTY
from rrmove_plugins.http.trust import plain_allowed

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rrmove import Job
    from rrmove_plugins.http.line import Door

GREETING = 2.0  # s for a connect and TLS's greeting, three round trips; chosen: far more than a relay takes


class Shut(Unusable):
    """The data port leads nowhere, whatever a probe saw."""


@dataclass(frozen=True, slots=True)
class Place:
    """One address, resolved: family and socket address of the data port there.

    `seen` says that SSH is there, so that the node's host key was checked: at any other address somebody else may be.
    """

    host: str
    family: int
    where: tuple[Any, ...]
    seen: bool
    known: str | None = None

    def plain(self, tls: str) -> bool:
        """Tell whether plain HTTP will do: where it is the node for certain, and nobody overhears."""
        return self.seen and plain_allowed(str(self.where[0]), tls)


async def places_of(job: Job) -> list[Place]:
    """Find where the node's data port may be reached: the address that SSH uses first, then the nearest.

    Left out are those where a probe saw it shut or did not look, since another machine is there; without a probe all
    are given. Raises Shut where none is left.
    """
    node = job.request.node
    port, name = node.ports.data, node.name
    address = await job.session.address()
    ours = address[0] if address is not None else None
    seen = (job.facts.get(PLACES) or {}).get(port, {})
    state = (job.facts.get(PORTS) or {}).get(port)
    known = dict(seen) or ({ours: state} if ours and state else {})
    further = [each.host for each in node.nearest] if state is None else seen
    hosts = dict.fromkeys([*([ours] if ours else []), *further])
    if not hosts:
        raise Shut("there is no direct way to the node, only one through a proxy or jump host", node=name)
    shut: dict[str, str] = {host: state for host, state in known.items() if state in {"filtered", "unreachable"}}
    found: dict[tuple[Any, ...], Place] = {}
    for host, place in zip(hosts, await asyncio.gather(*(_resolved(host, port) for host in hosts)), strict=True):
        if isinstance(place, str):
            shut.setdefault(host, place)
        elif host not in shut:
            found.setdefault(place[1], Place(host, *place, seen=host == ours, known=known.get(host)))
    if not found:
        what = ", ".join(f"{state} at {host}" for host, state in shut.items()) if len(hosts) > 1 or not ours else ""
        raise Shut(f"port {port} is {what or shut[ours or '']}", node=name)
    return list(found.values())


async def _resolved(host: str, port: int) -> tuple[int, tuple[Any, ...]] | str:
    """Resolve an address; a word about it where that cannot be done."""
    try:
        found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        return f"unresolvable ({getattr(error, 'strerror', None) or error})"
    family, _, _, _, place = found[0]
    return family, place


def named(places: Sequence[Place]) -> str:
    """Name places in an error, where that is not plain: there are several, or it is not where SSH goes."""
    if len(places) == 1 and places[0].seen:
        return ""
    return f" at {' and '.join(place.host for place in places)}"


async def greeted(doors: Sequence[Door]) -> Door:
    """Give the first door behind which the right server is; the only one is given unseen. Raises Shut.

    All are tried at once, and nothing is said to anybody. Who has another certificate is not the node.
    """
    if len(doors) == 1:
        return doors[0]
    looking = [asyncio.create_task(_greets(door)) for door in doors]
    try:
        waiting = set(looking)
        right: list[Door] = []
        while waiting and not right:
            await asyncio.wait(waiting, timeout=GREETING, return_when=asyncio.FIRST_COMPLETED)
            await asyncio.wait(waiting, timeout=HASTY)  # for one that comes before it, and is a little later
            waiting = {task for task in looking if not task.done()}
            right = [door for door, task in zip(doors, looking, strict=True) if task.done() and task.result()]
        if right:
            return right[0]
    finally:
        for task in looking:
            task.cancel()
        await asyncio.gather(*looking, return_exceptions=True)
    what = f"the node's server answers at none of {' and '.join(door.name for door in doors)}"
    raise Shut(what, node=doors[0].node, tried=", ".join(door.name for door in doors))


async def _greets(door: Door) -> bool:
    """Connect, and see whether it is the pinned certificate."""
    with socket.socket(door.family, socket.SOCK_STREAM) as raw:
        raw.setblocking(False)
        with contextlib.suppress(OSError):  # of which TimeoutError and SSLError are some
            async with asyncio.timeout(GREETING):
                await asyncio.get_running_loop().sock_connect(raw, door.place)
                return door.fingerprint is None or await _shown(raw) == door.fingerprint
    return False


async def _shown(raw: socket.socket) -> str:
    """Greet by TLS, and give the fingerprint of the certificate that is shown."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE  # the fingerprint says more than a name
    _, writer = await asyncio.open_connection(sock=raw.dup(), ssl=context, server_hostname="")
    try:
        shown = writer.get_extra_info("ssl_object").getpeercert(binary_form=True)
        return hashlib.sha256(shown or b"").hexdigest()
    finally:
        writer.transport.abort()


__all__ = ["Place", "Shut", "greeted", "named", "places_of"]
