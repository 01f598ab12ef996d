"""Door: a giver on a node, opened and kept open by us: where it listens, and what opens it."""

from __future__ import annotations

import asyncio
import ipaddress
import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from rrmove.errors import Unusable
from rrmove.lease import Lease, text_of
from rrmove.oneshot.certificate import make_certificate
from rrmove.oneshot.endpoint import Endpoint, random_path, random_token
from rrmove.retry import ask
from rrmove.siblings.choice import TRYING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rrmove.session import Session

# s without a word from us after which a giver ends: nothing of ours is left 5 s after our own end, whatever ended us,
# and a connection that is cut has some three seconds to come back in.
LEASE = 4.0


@dataclass(slots=True)
class Door:
    """An open giver: the addresses it may be reached at, and its endpoint with the token."""

    hosts: tuple[str, ...]
    endpoint: Endpoint
    lease: Lease

    async def renew(self, *, whole: bool) -> None:
        """Let it live on, and tell it whether its file is whole. Raises LeaseLost where it has ended."""
        await self.lease.ask(json.dumps({"whole": whole}).encode("ascii"))


async def open_door(session: Session, file: str | None, size: int, ports: Sequence[int]) -> Door:
    """Start a giver for one file on a node, on the first port that is free; without a file it only listens.

    It reads, and never writes: evictions from a part file spare it. It ends with its lease, see `LEASE`. Raises
    Unusable where it cannot start, Transient where the connection dies.
    """
    made = await asyncio.to_thread(make_certificate)
    path, token = random_path(), random_token()
    duty = "hold = main\n" + text_of("rrmove.oneshot", "server.py") + "\n" + text_of("rrmove.siblings", "give.py")
    given: dict[str, object] = {
        "file": file,
        "size": size,
        "ports": list(ports),
        "path": path,
        "token": token,
        "certificate": made.certificate,
        "key": made.key,
    }
    lease = await Lease.begin(session, duty + "\nhold(Give)\n", given, seconds=LEASE, reads=True)
    said: dict[str, Any] = json.loads(await lease.ask())
    if said["trouble"] is not None or said["port"] is None:
        await lease.end()
        raise Unusable(f"it cannot pass the file on: {said['trouble']}", node=session.node.name)
    endpoint = Endpoint(
        port=said["port"], path=path, token=token, fingerprint=made.fingerprint, public_key=made.public_key
    )
    seen = await session.address()
    hosts = [address.host for address in session.node.addresses] + ([seen[0]] if seen else []) + said["hosts"]
    return Door(tuple(dict.fromkeys(host for host in hosts if host)), endpoint, lease)


async def reached(session: Session, door: Door, seconds: float = TRYING) -> str | None:
    """Have a node try a door at all its addresses, for so long; gives the first that leads there, None where none does.

    Loopback is another machine on each node: it counts only where we reach the node itself by it.
    """
    seen = await session.address()
    here = seen is not None and _loopback(seen[0])
    hosts = [host for host in door.hosts if here or not _loopback(host)]

    async def state(host: str) -> object:
        return (await ask(session, "reach", host=host, port=door.endpoint.port, timeout=seconds)).get("state")

    states = await asyncio.gather(*(state(host) for host in hosts))
    return next((host for host, said in zip(hosts, states, strict=True) if said == "open"), None)


def _loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
