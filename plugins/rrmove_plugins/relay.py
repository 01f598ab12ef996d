"""relay: we fetch a URL and pass it on to the node over lanes; for nodes that cannot reach it."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import time
from collections import deque
from typing import TYPE_CHECKING, Any, ClassVar, cast

from rrmove import (
    API_VERSION,
    Capabilities,
    ConnectionLost,
    Job,
    Lane,
    Range,
    Remote,
    RemotePart,
    Transient,
    foremost,
    total,
)
from rrmove.ssh import fetcher
from rrmove.web import secret_parts, trouble_of, version_parts

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

    from rrmove import Facts, Probe, Request

    Duty = Callable[[Lane, Range], Awaitable[None]]

LANES = 3  # each a connection to the server and one to the node
MOST = 64 << 20  # bytes asked of the server at once
NOTE = 1.0  # s between two notes of what is written: what is not noted when we are ended is fetched again
AHEAD = 4  # frames on their way to the node before an acknowledgement is waited for
LEAST_FRAME = 64 << 10  # bytes; with a rate limit frames are small, so that it holds at any moment
FRUITLESS = 3  # failures in a row that bring nothing: the policy has to decide then
PAUSE = 0.3  # s before a piece is tried again, doubled each time


class Relay:
    """Fetch ranges here and put them over a few lanes; nothing of the file is kept on our disk."""

    name: ClassVar[str] = "relay"
    api_version: ClassVar[int] = API_VERSION
    needs: ClassVar[tuple[Probe[Any], ...]] = ()
    capabilities: ClassVar[Capabilities] = Capabilities(
        resume="exact",
        route="ssh",
        streams=LANES,
        ranges=True,
        lanes_only=True,
        overhead=2.0,
        setup=24.0,
        sources=("url",),
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
        self.noted: dict[int, int] = {}  # by where a piece began: up to where its chunks are noted
        self.gained = 0

    async def run(self) -> None:
        """Work until no piece is left. Raises what makes going on senseless."""
        if not self.source.resumable:
            await self._work(self._whole, deque([Range(0, self.source.size)]))
            return
        grain = self.job.manifest.grain
        step = min(MOST, max(grain, total(self.job.missing) // (4 * LANES))) // grain * grain
        for item in self.job.missing:
            self.pieces += [Range(at, min(item.stop, at + step)) for at in range(item.start, item.stop, step)]
        try:
            async with asyncio.TaskGroup() as group:
                for _ in range(min(LANES, len(self.pieces))):
                    group.create_task(self._work(self._piece, self.pieces))
        except BaseExceptionGroup as errors:
            raise foremost(errors) from errors

    async def _work(self, duty: Duty, pieces: deque[Range]) -> None:
        """Do pieces over one lane, and over a new one when that has died. Raises what does not pass."""
        lane = await self.job.session.open_lane()
        try:
            while pieces:
                piece, fruitless = pieces.popleft(), 0
                gained = self.gained
                while (error := await self._failed(duty, piece, lane)) is not None:
                    fruitless = 0 if self.gained > gained else fruitless + 1
                    gained = self.gained
                    if fruitless >= FRUITLESS:
                        raise error
                    await asyncio.sleep(PAUSE * 2**fruitless)
                    piece = Range(self.noted.get(piece.start, piece.start), piece.stop)
                    if not lane.alive:
                        await lane.close()
                        lane = await self.job.session.open_lane()
        finally:
            await asyncio.shield(lane.close())

    async def _failed(self, duty: Duty, piece: Range, lane: Lane) -> Transient | None:
        """Do a piece; gives why it failed where that may pass. Raises all else."""
        try:
            await duty(lane, piece)
        except fetcher.Trouble as trouble:
            error = trouble_of(trouble.kind, trouble.text, self.source, node=self.node, where="from here")
            if not isinstance(error, Transient):
                raise error from trouble
            return error
        except Transient as error:
            if not lane.alive:
                self.job.emit(ConnectionLost(self.node, "relay", error.what, round(lane.age, 2), lane.carried))
            return error
        return None

    async def _piece(self, lane: Lane, piece: Range) -> None:
        await self._pass_on(lane, piece.start, piece.stop)

    async def _whole(self, lane: Lane, _: Range) -> None:
        """Pass on all of it from the start, as nothing can be continued here."""
        await self.landing.received({}, new=True)
        end = await self._pass_on(lane, None, None)
        await self.landing.received({}, size=None if self.source.sized else end)

    async def _pass_on(self, lane: Lane, start: int | None, stop: int | None) -> int:
        """Put what the server gives, frame by frame, and note chunks that are written; gives where it ended."""
        grain, at, noted = self.job.manifest.grain, start or 0, time.monotonic()
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
                late = not at % grain and time.monotonic() - noted > NOTE
                while len(flying) >= AHEAD or (late and flying):
                    await flying.popleft()
                if late:
                    await self._note(digests, start, at)
                    digests, noted = {}, time.monotonic()
            while flying:
                await flying.popleft()
        except fetcher.Trouble:
            await asyncio.gather(*flying)  # what came is there, whatever became of the server
            await self._note(digests, start, at - at % grain)
            raise
        finally:
            for task in flying:
                task.cancel()
            await asyncio.gather(*flying, return_exceptions=True)
        if at % grain:
            digests[at // grain] = sha.hexdigest()
        await self._note(digests, start, at)
        return at

    async def _note(self, digests: dict[int, str], start: int | None, at: int) -> None:
        if digests:
            await self.landing.received(digests)
        self.gained += len(digests)
        if start is not None:
            self.noted[start] = at

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
