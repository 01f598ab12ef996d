"""The swarm of one file: our seeder, shared by all moves of that file in this process, and who takes part.

Pieces are chunks, so that what is missing is just what is fetched, and each that is whole counts as such for whatever
comes next. Smaller ones would let the nodes share sooner, but of many that are half there no chunk would be left.
"""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import secrets
import threading
import time
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, TypeVar

from rrmove.errors import Fatal, RRMoveError, Transient
from rrmove_plugins.torrent.metainfo import Metainfo, hashed, metainfo
from rrmove_plugins.torrent.seeder import Seeder
from rrmove_plugins.torrent.settings import TorrentSettings

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable
    from pathlib import Path

    from rrmove import Job, Limiter

T = TypeVar("T")

TAG = 14  # bytes that a member's peer ids begin with
TICK = 0.2  # s between two looks at the seeder
KNOCK, AGAIN = 2.0, 3.0  # s in which a node should have come to us, before we try to come to it; and between two tries
ALIVE = 5.0  # s without a byte after which nobody waits for a member any more


@dataclass(slots=True, eq=False)
class Member:
    """A node that takes part.

    `tag` is how its peer ids begin, `hosts` the addresses under which others may reach it, `us` the
    one under which it sees us; `port` is 0 until its client has told it, and `due` is then when we call it. `connected`
    is with us, `met` with anybody.
    """

    limiter: Limiter
    sent: Callable[[int], None]
    hosts: tuple[str, ...]
    us: str | None
    tag: str = field(default_factory=lambda: f"-{secrets.token_hex((TAG - 2) // 2)}-")
    port: int = 0
    connected: bool = False
    met: bool = False
    whole: bool = False
    heard: float = field(default_factory=time.monotonic)
    due: float = 0.0
    called: bool = False
    early: int = 0  # bytes that were told as sent before libtorrent counted them


class Swarm:
    """One file's seeder and members; made by `joined()`."""

    def __init__(self, path: Path, size: int, piece: int, settings: TorrentSettings) -> None:
        self._path, self._size, self._piece, self._settings = path, size, piece, settings
        self.members: list[Member] = []
        self.made: Metainfo
        self.seeder: Seeder
        self.trouble: RRMoveError | None = None
        self._stop = threading.Event()
        self._seen: dict[tuple[str, int], int] = {}
        self._connections: dict[tuple[str, int], Member] = {}
        self._reckoned = 0
        self._running = asyncio.create_task(self._run())
        self._ready = asyncio.Event()

    async def ready(self) -> None:
        """Wait until our seeder is there. Raises what keeps it from that."""
        waiting = asyncio.ensure_future(self._ready.wait())
        try:
            await asyncio.wait({waiting, self._running}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            waiting.cancel()
        self.check()

    def check(self) -> None:
        """Raise what has gone wrong with our side: to each member an error of its own."""
        if self.trouble is not None:
            raise type(self.trouble)(self.trouble.what, remedy=self.trouble.remedy) from self.trouble

    def peers_of(self, member: Member) -> list[tuple[str, int]]:
        """List whom a member may connect to: us and all others, under every address that may lead there."""
        # Once we call it, it does not call us any more: libtorrent turns a caller away whom it is calling itself.
        found = [(member.us, self.seeder.port)] if member.us and (member.connected or not member.called) else []
        near = any(_loopback(host) for host in member.hosts)
        for other in self.members:
            if other is not member and other.port:
                found += [(host, other.port) for host in other.hosts if near or not _loopback(host)]
        return found

    def awaited(self, member: Member) -> bool:
        """Tell whether others who are getting on still lack something that a member may give them."""
        now = time.monotonic()
        return any(
            not other.whole and now - other.heard < ALIVE for other in self.members if other is not member
        )  # fmt: skip

    def settle(self) -> None:
        """Note what our seeder has sent to whom since the last look."""
        owners = {member.tag.encode("ascii"): member for member in self.members}
        peers, uploaded = self.seeder.peers(), self.seeder.uploaded()
        here: dict[tuple[str, int], Member] = {}
        for peer in peers:
            member = owners.get(peer.peer_id[:TAG])
            if member is not None:
                member.connected = True
                here[peer.key] = member
                self._reckon(member, peer.uploaded - self._seen.get(peer.key, 0))
                self._seen[peer.key] = peer.uploaded
        # What went over a connection that has ended meanwhile is known in the sum only.
        gone = [member for key, member in self._connections.items() if key not in here and member in self.members]
        rest = uploaded - self._reckoned - sum(peer.uploaded for peer in peers if peer.key not in here)
        for member in gone:
            self._reckon(member, rest // len(gone))
        self._connections = here

    def at_least(self, member: Member, count: int) -> None:
        """Note that a member got so many bytes: as many have left here once, whoever it got them from.

        libtorrent counts what is under way once a second, and a member may have come and gone by then.
        """
        self.settle()
        lacking = count - self._reckoned
        if lacking > 0:
            self._reckoned += lacking
            member.early += lacking
            member.sent(lacking)

    def _reckon(self, member: Member, count: int) -> None:
        early = min(member.early, max(0, count))
        member.early -= early
        if count > early:
            self._reckoned += count - early
            member.sent(count - early)

    async def close(self) -> None:
        """End our seeder, and wait until it has let go of its port."""
        self._stop.set()
        self._running.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self._running

    async def _run(self) -> None:
        """Make the torrent, seed it, and look after it."""
        try:
            digests = await _in_thread(lambda: hashed(self._path, self._size, self._piece, self._stop))
            settings = self._settings
            self.made = metainfo(self._size, self._piece, digests, private=not (settings.dht or settings.lsd))
            self.seeder = await _in_thread(lambda: Seeder(self._path, self.made, settings), lambda made: made.close())
        except RRMoveError as error:
            self.trouble = error
            return
        try:
            self._ready.set()
            while True:
                self._look_after()
                await asyncio.sleep(TICK)
        finally:
            await asyncio.shield(asyncio.to_thread(self.seeder.close))

    def _look_after(self) -> None:
        rates = [member.limiter.rate for member in self.members]
        self.seeder.limit(None if None in rates else sum(rate or 0.0 for rate in rates))
        self.seeder.crowd(sum(not member.whole for member in self.members))
        self.settle()
        now = time.monotonic()
        for member in self.members:
            if member.port and not member.connected and not member.whole and now > member.due:
                member.called, member.due = True, now + AGAIN
                for host in member.hosts:
                    self.seeder.connect(host, member.port)
        said = self.seeder.trouble()
        if said is not None:
            self.trouble = Transient(f"our seeder failed: {said}")


async def _in_thread(work: Callable[[], T], undo: Callable[[T], None] | None = None) -> T:
    """Run something in a thread and wait for its end, also when cancelled: it would be left behind."""
    running = asyncio.ensure_future(asyncio.to_thread(work))
    try:
        return await asyncio.shield(running)
    except asyncio.CancelledError:
        with contextlib.suppress(RRMoveError):
            made = await running
            if undo is not None:
                await asyncio.to_thread(undo, made)
        raise


_swarms: dict[tuple[object, ...], Swarm] = {}


@asynccontextmanager
async def joined(job: Job, hosts: tuple[str, ...], us: str | None) -> AsyncIterator[tuple[Swarm, Member]]:
    """Take part in the swarm of a job's file; the first to come begins it, the last to leave ends it.

    Raises Fatal where the source cannot be read, Unusable where libtorrent cannot seed.
    """
    settings = job.request.settings.get(TorrentSettings)
    source, manifest = job.request.source, job.manifest
    key = (asyncio.get_running_loop(), manifest.root, source.path, replace(settings, client="auto"))
    swarm = _swarms.get(key)
    if swarm is None or swarm.trouble is not None:
        swarm = _swarms[key] = Swarm(source.path, manifest.size, manifest.grain, settings)
    member = Member(job.limiter, job.sent, hosts, us)
    swarm.members.append(member)
    try:
        await swarm.ready()
        if not source.unchanged():
            raise Fatal(f"{source.shown} was changed while it was sent", node=job.request.node.name)
        yield swarm, member
    finally:
        swarm.members.remove(member)
        if not swarm.members:
            if _swarms.get(key) is swarm:
                del _swarms[key]
            await asyncio.shield(swarm.close())


def _loopback(host: str) -> bool:
    return ipaddress.ip_address(host.partition("%")[0]).is_loopback


__all__ = ["Member", "Swarm", "joined"]
