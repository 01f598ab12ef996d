"""relay: we fetch a URL and pass it on to the node over lanes; for nodes that cannot reach it."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
from collections import deque
from typing import TYPE_CHECKING, Any, ClassVar, cast

from rrmove import API_VERSION, Capabilities, ConnectionLost, Job, Lane, Range, Remote, RemotePart, Transient, foremost
from rrmove.ssh import fetcher
from rrmove.web import secret_parts, trouble_of, version_parts

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from rrmove import Facts, Probe, Request

LANES = 3  # each a connection to the server and one to the node
PIECE = 8 << 20  # bytes asked of the server at once: what a lane that dies puts in doubt
AHEAD = 4  # frames on their way to the node before an acknowledgement is waited for
LEAST_FRAME = 64 << 10  # bytes; with a rate limit frames are small, so that it holds at any moment
FRUITLESS = 5  # pieces in a row that bring nothing: the policy has to decide then
PAUSE = 0.3  # s before a piece is tried again, doubled each time


class Relay:
    """Fetch ranges here and put them over a few lanes; nothing of the file is kept on our disk."""

    name: ClassVar[str] = "relay"
    api_version: ClassVar[int] = API_VERSION
    needs: ClassVar[tuple[Probe[Any], ...]] = ()
    capabilities: ClassVar[Capabilities] = Capabilities(
        resume="exact", route="ssh", streams=LANES, ranges=True, lanes_only=True, overhead=2.0, sources=("url",)
    )

    def refuse(self, request: Request, facts: Facts) -> str | None:
        """Never refuse: whether we reach the URL shows when we try."""
        del request, facts
        return None

    async def send(self, job: Job) -> None:
        """Fetch the missing ranges and pass them on; a repeat continues where the server can."""
        await _Relaying(job).run()


class _Relaying:
    """One attempt: pieces that are left, the lanes that carry them, the digests of what came."""

    def __init__(self, job: Job) -> None:
        self.job = job
        self.source = cast("Remote", job.request.source)
        self.landing = cast("RemotePart", job.landing)
        self.node = job.request.node.name
        self.given = {**secret_parts(self.source), **version_parts(self.source), "sha256": self.landing.expected}
        self.pieces: deque[Range] = deque()
        self.fruitless = 0

    async def run(self) -> None:
        """Work until no piece is left. Raises what makes going on senseless."""
        if not self.source.resumable:
            await self._persist(Range(0, self.source.size), self._whole)
            return
        step = max(1, PIECE // self.job.manifest.grain) * self.job.manifest.grain
        for item in self.job.missing:
            self.pieces += [Range(at, min(item.stop, at + step)) for at in range(item.start, item.stop, step)]
        try:
            async with asyncio.TaskGroup() as group:
                for _ in range(min(LANES, len(self.pieces))):
                    group.create_task(self._work())
        except BaseExceptionGroup as errors:
            raise foremost(errors) from errors

    async def _work(self) -> None:
        while self.pieces:
            await self._persist(self.pieces.popleft(), self._piece)

    async def _persist(self, piece: Range, duty: Any) -> None:
        """Do a piece, and again over a new lane where it fails for reasons that pass."""
        while True:
            lane = await self.job.session.open_lane()
            try:
                await duty(lane, piece)
            except fetcher.Trouble as trouble:
                error = trouble_of(trouble.kind, trouble.text, self.source, node=self.node, where="from here")
                if not isinstance(error, Transient):
                    raise error from trouble
                self._count(error)
            except Transient as error:
                if not lane.alive:
                    self.job.emit(ConnectionLost(self.node, "relay", error.what, round(lane.age, 2), lane.carried))
                self._count(error)
            else:
                self.fruitless = 0
                return
            finally:
                await asyncio.shield(lane.close())
            await asyncio.sleep(PAUSE * 2**self.fruitless)

    def _count(self, error: Transient) -> None:
        self.fruitless += 1
        if self.fruitless >= FRUITLESS:
            raise error

    async def _piece(self, lane: Lane, piece: Range) -> None:
        await self.landing.received(await self._pass_on(lane, piece.start, piece.stop))

    async def _whole(self, lane: Lane, piece: Range) -> None:
        """Pass on all of it from the start, as nothing can be continued here."""
        del piece
        await self.landing.received({}, new=True)
        digests = await self._pass_on(lane, None, None)
        await self.landing.received(digests, size=self.length)

    async def _pass_on(self, lane: Lane, start: int | None, stop: int | None) -> dict[int, str]:
        """Put what the server gives, frame by frame; gives the SHA-256 of each chunk when all are written."""
        grain, at = self.job.manifest.grain, start or 0
        digests: dict[int, str] = {}
        sha, flying = hashlib.sha256(), deque[asyncio.Task[object]]()
        try:
            async for block in self._frames(start, stop, min(lane.frame_limit, grain)):
                sha.update(block)
                await self.job.limiter.take(len(block))
                self.job.sent(len(block))
                flying.append(asyncio.create_task(self._put(lane, block, at)))
                at += len(block)
                if not at % grain:
                    digests[at // grain - 1] = sha.hexdigest()
                    sha = hashlib.sha256()
                if len(flying) >= AHEAD:
                    await flying.popleft()
            while flying:
                await flying.popleft()
        finally:
            for task in flying:
                task.cancel()
            await asyncio.gather(*flying, return_exceptions=True)
        if at % grain:
            digests[at // grain] = sha.hexdigest()
        self.length = at
        return digests

    async def _put(self, lane: Lane, block: bytes, at: int) -> None:
        await lane.call("put", block, part=self.landing.part, at=at)
        self.job.progress(len(block))

    async def _frames(self, start: int | None, stop: int | None, size: int) -> AsyncIterator[bytes]:
        """Read from the server, in a thread, in frames that end where chunks do."""
        answer = await asyncio.to_thread(fetcher.opened, self.given, start, stop)
        with contextlib.closing(answer):
            left = stop - start if start is not None and stop is not None else None
            if start is None and self.source.sized:
                left = self.source.size
            blocks = fetcher.blocks(answer, left)
            rate = self.job.limiter.rate
            while rate is not None and size > max(LEAST_FRAME, rate / 10):
                size //= 2
            rest = bytearray()
            while await asyncio.to_thread(_gather, blocks, rest, size):
                frame, rest = bytes(rest[:size]), rest[size:]
                yield frame
            if start is None and answer.chunked and await asyncio.to_thread(answer.read, 1):
                raise fetcher.Trouble("changed", "the file is longer than the server said")


def _gather(blocks: Any, into: bytearray, size: int) -> bool:
    """Take blocks until there are `size` bytes, or no more; false where there is nothing left."""
    while len(into) < size and (block := next(blocks, None)) is not None:
        into += block
    return bool(into)
