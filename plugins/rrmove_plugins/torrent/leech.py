"""The node's side: a client there on a lease, asked how far it is and told of its peers, over the login."""

from __future__ import annotations

import asyncio
import base64
import ipaddress
import json
import secrets
import socket
import time
from typing import TYPE_CHECKING, Any

from rrmove import CLIENT, Fatal, Lease, LeaseLost, Transient, Unusable, total
from rrmove.aria2c.codes import explained
from rrmove.aria2c.control import bits_there, control_file
from rrmove.lease import text_of
from rrmove_plugins.torrent.seeder import pack_for
from rrmove_plugins.torrent.settings import TorrentSettings
from rrmove_plugins.torrent.swarm import KNOCK

if TYPE_CHECKING:
    from rrmove import Job, Node
    from rrmove_plugins.torrent.swarm import Member, Swarm

LEASE = 3.5  # s without a word from us after which the client is ended: nothing of ours is left after 5
LOOK = 0.3  # s between two looks at how far it is
MEETING = 8.0  # s in which it and somebody of the swarm have to have met: we begin to come to it after two
STALL = 20.0  # s without a byte, once they have
IDLE = 11.0  # s in which a node that has everything gave nobody anything: aria2c begins to give after ten
LINGER = 60.0  # s at most, and as long as it took itself, that a node which has everything goes on giving to others
GID = "72726d6f76653032"

OPTIONS = {
    "allow-overwrite": "false",
    "auto-file-renaming": "false",
    "auto-save-interval": "1",
    "bt-detach-seed-only": "false",
    "bt-enable-lpd": "false",
    "bt-external-ip": "",
    "bt-hash-check-seed": "false",
    "bt-max-peers": "0",
    "bt-request-peer-speed-limit": "100M",
    "bt-save-metadata": "false",
    "bt-seed-unverified": "false",
    "check-integrity": "false",
    "continue": "true",
    "disk-cache": "0",
    "enable-dht": "false",
    "enable-dht6": "false",
    "enable-peer-exchange": "false",
    "file-allocation": "none",
    "follow-torrent": "mem",
    "no-netrc": "true",
    "quiet": "true",
    "remote-time": "false",
    "seed-ratio": "0.0",
    "user-agent": "rrmove",
}


async def leech(job: Job, swarm: Swarm, member: Member, client: str) -> None:
    """Have the missing pieces fetched by aria2c or libtorrent on the node. Raises what its error means."""
    node, lease = job.request.node.name, None
    given = _given(job, swarm, member)
    if client == "libtorrent":
        duty = text_of("rrmove_plugins.torrent", "swimmer.py") + "\nmain(Swimmer)\n"
    else:
        texts = text_of("rrmove.aria2c", "warden.py"), text_of("rrmove_plugins.torrent", "tracker.py")
        duty = "\n".join((*texts, "main(lambda given, folder: Tracker(Warden(given, folder)))\n"))
    lease = await Lease.begin(job.session, duty, given, seconds=LEASE)
    try:
        await _watch(job, swarm, member, lease, client)
    except LeaseLost as error:
        raise Unusable(f"{client} was ended on the node", node=node) from error
    finally:
        await asyncio.shield(lease.end())


def _given(job: Job, swarm: Swarm, member: Member) -> dict[str, object]:
    """Put together what the node's side is given; it travels on stdin."""
    made, node, settings = swarm.made, job.request.node, job.request.settings.get(TorrentSettings)
    size = job.manifest.size
    bits = bits_there(size, made.piece, job.missing)
    count = -(-size // made.piece)
    options = {
        **OPTIONS,
        "bt-force-encryption": "true" if settings.encryption else "false",
        "max-overall-download-limit": str(int(node.limit_rate or 0)),
        "peer-id-prefix": member.tag,
    }
    if settings.dht:
        options |= {"enable-dht": "true", "dht-listen-port": str(node.ports.torrent)}
    if settings.lsd:
        options["bt-enable-lpd"] = "true"
    control = control_file(size, made.piece, job.missing, made.info_hash)
    return {
        "part": job.landing.part,
        "doors": [],
        "secret": secrets.token_hex(16),
        "path": f"/{secrets.token_hex(16)}",
        "gid": GID,
        "options": options,
        "torrent": _text(made.torrent),
        "info_hash": _text(made.info_hash),
        "control": _text(control),
        "piece": made.piece,
        "port": node.ports.torrent,
        "pieces": _text(bytes(bits[index // 8] >> (7 - index % 8) & 1 for index in range(count))),
        "peers": swarm.peers_of(member),
        "pack": pack_for(node.ports.torrent, settings, member.tag),
    }


def _text(data: bytes) -> str:
    return base64.b64encode(data).decode("ascii")


async def _watch(job: Job, swarm: Swarm, member: Member, lease: Lease, client: str) -> None:
    """Tell the node of its peers and report what it has, until it has everything and nobody needs it any more."""
    source, node, began = job.request.source, job.request.node, time.monotonic()
    told: int | None = None
    pause, whole, got, given, gave = 0.05, 0.0, 0, 0, 0.0
    member.heard = began
    while True:
        swarm.check()
        if not source.unchanged():
            raise Fatal(f"{source.shown} was changed while it was sent", node=node.name)
        said = json.loads(await lease.ask(json.dumps({"peers": swarm.peers_of(member)}).encode("ascii")))
        _trouble(said, client, node.name)
        now, there = time.monotonic(), min(job.manifest.size, said["there"])
        if said["got"] > got:
            got, member.heard = said["got"], now
        if told is not None and there > told:
            job.progress(there - told)
        told = max(there, told or 0)
        if said["port"] and not member.port:
            member.port, member.due = said["port"], now + KNOCK
        member.met = member.met or bool(said["peers"])
        if said["uploaded"] > given:
            given, gave = said["uploaded"], now
        if said["whole"]:
            if not member.whole:
                swarm.at_least(member, total(job.missing))
                member.whole, whole, gave = True, now, now
            patience = min(LINGER, whole - began)
            if not swarm.awaited(member) or now - whole > patience or now - gave > IDLE:
                return
        else:
            _overdue(member, now, began, client, node)
        await asyncio.sleep(pause)
        pause = min(LOOK, 2 * pause)


def _overdue(member: Member, now: float, began: float, client: str, node: Node) -> None:
    """Raise where it has met nobody, or nothing has come for too long."""
    tried = f"{client} there, at port {member.port}"
    if not member.met and now - began > MEETING:
        raise Unusable(
            "neither does the node reach us, nor do we reach its torrent port",
            node=node.name,
            tried=tried,
            remedy=f"Open port {node.ports.torrent} of the node, or let it reach us",
        )
    if now - member.heard > STALL:
        raise Transient(f"nothing has come from anybody for {STALL:g} s", node=node.name, tried=tried)


def _trouble(said: dict[str, Any], client: str, node: str) -> None:
    """Raise what has gone wrong on the node."""
    if "ended" in said:
        raise Unusable(f"{client} on the node failed: {said['ended']}", node=node)
    if "code" not in said:
        return
    if client == "aria2c":
        raise explained(said["code"], said["message"], node=node)
    if said["full"]:
        raise Fatal("the disk is full", node=node, remedy="Make room, or choose another destination")
    raise Unusable(f"{client} on the node failed: {said['message']}", node=node)


async def hosts_of(job: Job) -> tuple[str, ...]:
    """List the addresses of a node that others may reach it by: as we do, as it knows itself, as the inventory does."""
    client, address = job.facts.get(CLIENT), await job.session.address()
    named = [address[0]] if address is not None else []
    if client is not None and client.server_host is not None:
        named.append(client.server_host)
    named += [each.host for each in job.request.node.addresses]
    found: dict[str, None] = {}
    loop = asyncio.get_running_loop()
    for name in dict.fromkeys(named):
        try:
            found[str(ipaddress.ip_address(name))] = None
        except ValueError:
            try:
                seen = await loop.getaddrinfo(name, None, type=socket.SOCK_STREAM)
            except OSError:
                continue  # somebody else's name for it; the others are left
            found |= {str(entry[4][0]): None for entry in seen}
    return tuple(host for host in found if "%" not in host)


__all__ = ["hosts_of", "leech"]
