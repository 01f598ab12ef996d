"""sibling: the node pulls the file from another one that gets it at the same time, as far as that has it."""

from __future__ import annotations

import asyncio
import json
import time
from typing import TYPE_CHECKING, Any, ClassVar

from rrmove import (
    API_VERSION,
    RTT,
    TOOLS,
    Capabilities,
    Fatal,
    Lease,
    LeaseLost,
    Transient,
    Unusable,
    Waiting,
)
from rrmove.lease import text_of

if TYPE_CHECKING:
    from rrmove import Facts, Giver, Job, Probe, Request, Siblings

LEASE = 4.0  # s without a word from us after which the puller ends, as what it pulls from does
WAIT = 0.5  # s that an answer may wait for news: so often it is said how far it is, and heard who is the next giver
STREAMS = 2  # connections of a puller: givers have four of them, and the same two cores
MORE, PER_STREAM = 6, 0.02  # and on long ways, where each is bound by its window, one for so many s of round trip
# s without a piece from a giver, after which it is given up: five where it does not move itself, see the core; this
# is for one that does, and a chunk takes that long at 100 kB/s.
SILENCE = 20.0
LOGIN, START, TLS = 12, 1, 2  # round trips, as of the http transport


class Sibling:
    """Have the node pull its missing chunks from a sibling, and follow the core where that is to be another one.

    Over TLS with a pinned certificate and a token for this one file; each chunk is compared as it arrives.
    """

    name: ClassVar[str] = "sibling"
    api_version: ClassVar[int] = API_VERSION
    needs: ClassVar[tuple[Probe[Any], ...]] = (TOOLS, RTT)
    capabilities: ClassVar[Capabilities] = Capabilities(
        resume="exact", route="sibling", streams=STREAMS, ranges=True, setup=LOGIN + START + TLS
    )

    def refuse(self, request: Request, facts: Facts) -> str | None:
        """Refuse where nobody passes the file on to this node, with the reason."""
        tools = facts.get(TOOLS)
        if tools is not None and "python3" not in tools:
            return "the node has no python3"
        if request.offer is None:
            return "no other node is known that gets this file now and passes it on"
        return None if request.offer.giver is not None else request.offer.why

    async def send(self, job: Job) -> None:
        """Have what is missing pulled; a repeat continues."""
        if not job.missing:
            return
        if job.siblings is None:
            raise Unusable("no other node gets this file now", node=job.request.node.name)
        manifest = job.manifest
        chunks = list(manifest.chunks_of(job.missing))
        given = {
            "file": job.landing.part,
            "size": manifest.size,
            "rate": job.request.node.limit_rate,
            "streams": max(1, min(len(chunks), MORE, max(STREAMS, round((job.facts.get(RTT) or 0.0) / PER_STREAM)))),
            "pieces": [
                (manifest.chunk(index).start, manifest.chunk(index).stop, manifest.digest(index)) for index in chunks
            ],
        }
        duty = text_of("rrmove_plugins.sibling", "pull.py") + "\nmain(Pull)\n"
        lease = await Lease.begin(job.session, duty, given, seconds=LEASE)
        try:
            await _Follow(job, job.siblings, lease).to_the_end()
        except LeaseLost as error:
            raise Transient("what pulled on the node has ended", node=job.request.node.name) from error
        finally:
            await asyncio.shield(lease.end())


class _Follow:
    """One puller at work: what it is told, and what it says."""

    def __init__(self, job: Job, siblings: Siblings, lease: Lease) -> None:
        self._job, self._siblings, self._lease = job, siblings, lease
        self._named: list[Giver] = []  # the place is the id
        self._got, self._last, self._waited = 0, time.monotonic(), 0.0

    async def to_the_end(self) -> None:
        """Return when all pieces are there. Raises what was in the way, Unusable where nobody gives any more."""
        node = self._job.request.node.name
        while True:
            giver = self._siblings.giver()
            question = json.dumps({"giver": self._told(giver), "wait": WAIT}).encode("ascii")
            said = json.loads(await self._lease.ask(question))
            self._hear(said, giver)
            if said["trouble"] is not None:
                kind, _, rest = str(said["trouble"]).partition(": ")
                if kind == "disk":
                    raise Fatal(
                        f"the disk is full ({rest})", node=node, remedy="Make room, or choose another destination"
                    )
                raise Unusable(f"the node cannot pull: {said['trouble']}", node=node)
            if not said["left"]:
                return

    def _told(self, giver: Giver | None) -> dict[str, object] | None:
        if giver is None:
            return None
        known = next((place for place, each in enumerate(self._named) if _same(each, giver)), None)
        if known is None:
            known = len(self._named)
            self._named.append(giver)
            self._last = time.monotonic()
        end = giver.endpoint
        return {
            "id": known,
            "host": giver.host,
            "port": end.port,
            "path": end.path,
            "token": end.token,
            "fingerprint": end.fingerprint,
        }

    def _hear(self, said: dict[str, Any], giver: Giver | None) -> None:
        now, more = time.monotonic(), said["got"] - self._got
        if more > 0:
            self._got, self._last = said["got"], now
            self._job.progress(more)
        elif now - max(self._last, self._waited) >= 1.0 and said["left"]:
            self._waited = now
            reason = f"for {giver.node}" if giver is not None else "for another node to have it"
            self._job.emit(Waiting(self._job.request.node.name, 1.0, reason, giver.node if giver is not None else None))
        for number in said["failed"]:
            self._siblings.failed(self._named[int(number)])
        if giver is not None and now - self._last > SILENCE:
            self._siblings.failed(giver)


def _same(one: Giver, other: Giver) -> bool:
    return one.endpoint == other.endpoint and one.host == other.host


__all__ = ["Sibling"]
