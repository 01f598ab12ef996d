"""base64: lanes whose bytes are all text on the way, for connections that are not 8-bit clean."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, ClassVar

from rrmove import (
    API_VERSION,
    CLEAN,
    RTT,
    TOOLS,
    Capabilities,
    ConnectionLost,
    FilePart,
    Job,
    Transient,
    foremost,
    total,
)

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from rrmove import Facts, Lane, Probe, Request

PIECE = 128 << 10  # bytes of one acknowledged write, the agent's own steps being 1 MiB at most
DEPTH = 16  # writes under way on one lane: 2 MiB, as much as an SSH connection has in flight at most
MOST_LANES = 16  # as many as chunked has: of their equal estimates this one's stands first, by name
PER_LANE = 0.012  # s of round trip that one more lane pays for: 2 MiB / 12 ms is 175 MB/s
LEAST_LOAD = 4 << 20  # bytes that a lane should have to carry for its login to pay
WIRE = 4 / 3  # bytes on the wire for each of the file
DECODERS = frozenset({"python3", "base64", "openssl"})


class Base64:
    """Write missing ranges over lanes of text; a repeat continues at the byte that was acknowledged.

    The lanes encode and decode; the node needs python3, base64 or openssl for that.
    """

    name: ClassVar[str] = "base64"
    api_version: ClassVar[int] = API_VERSION
    needs: ClassVar[tuple[Probe[Any], ...]] = (CLEAN, RTT, TOOLS)
    capabilities: ClassVar[Capabilities] = Capabilities(
        resume="exact", route="ssh", streams=MOST_LANES, ranges=True, lanes_only=True, overhead=WIRE
    )

    def refuse(self, request: Request, facts: Facts) -> str | None:
        """Refuse where nothing is known to alter bytes, unless it was asked for by name."""
        tools = facts.get(TOOLS)
        if _lacking(tools):
            return "the node has neither python3 nor base64 nor openssl to decode with"
        if self.name in request.options.only or facts.get(CLEAN) is False:
            return None
        return "not needed: the connection is not known to alter bytes (`--only base64` insists)"

    async def send(self, job: Job) -> None:
        """Put the missing ranges into the part file; a repeat continues."""
        if not job.missing:
            return
        try:
            with job.request.source.opened() as fd:
                pieces = _pieces(job, fd)
                async with asyncio.TaskGroup() as group:
                    for _ in range(_lanes(job)):
                        group.create_task(_carry(job, pieces))
        except BaseExceptionGroup as several:
            cause = foremost(several)
            raise cause from cause.__cause__


def _lacking(tools: Mapping[str, str] | None) -> bool:
    return tools is not None and not DECODERS & tools.keys()


def _pieces(job: Job, fd: int) -> Iterator[FilePart]:
    for span in job.missing:
        for at in range(span.start, span.stop, PIECE):
            yield FilePart(fd, at, min(PIECE, span.stop - at))


def _lanes(job: Job) -> int:
    """Choose how many lanes to open: by the round trip, as one carries 2 MiB in each, and by what there is to send."""
    rtt = job.facts.get(RTT) or 0.0
    return max(1, min(MOST_LANES, round(rtt / PER_LANE), total(job.missing) // LEAST_LOAD))


async def _carry(job: Job, pieces: Iterator[FilePart]) -> None:
    """Open a lane and write pieces over it until there are none; its end ends them all."""
    lane = await job.session.open_lane(text=True)
    try:
        async with asyncio.TaskGroup() as group:
            for _ in range(DEPTH):
                group.create_task(_write(job, lane, pieces))
    except BaseExceptionGroup as several:
        error = foremost(several)
        if isinstance(error, Transient):
            job.emit(ConnectionLost(job.request.node.name, Base64.name, error.what, lane.age, lane.carried))
        raise error from error.__cause__
    finally:
        await lane.close()


async def _write(job: Job, lane: Lane, pieces: Iterator[FilePart]) -> None:
    for piece in pieces:
        await job.limiter.take(piece.length)
        job.sent(round(piece.length * WIRE))
        await lane.call("put", piece, part=job.landing.part, at=piece.offset)
        job.progress(piece.length)
