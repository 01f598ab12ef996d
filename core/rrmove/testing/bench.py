"""The bench: one transport, one embedded node, and attempts whose results are looked at on the disk."""

from __future__ import annotations

import asyncio
import hashlib
import os
import random
import time
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Self

from rrmove import manifest as manifests
from rrmove.containment import Loan, Tally, contained
from rrmove.landing import PartFile, locate
from rrmove.limits.bucket import TokenBucket
from rrmove.model import Node, Options, Remote, Request, Source, SSHSettings
from rrmove.moving import move
from rrmove.plugin_settings import given, settled
from rrmove.probe import Facts
from rrmove.remote import RemotePart, blank
from rrmove.setting import log_in, look_at
from rrmove.testing.faults import Faults
from rrmove.testing.origin import Origin
from rrmove.transport import Job
from rrmove.web import look

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
    from pathlib import Path
    from typing import Literal

    from rrmove.errors import RRMoveError
    from rrmove.manifest import Range
    from rrmove.model import Outcome
    from rrmove.session import Session
    from rrmove.testing.node import EmbeddedNode
    from rrmove.transport import Transport

FAULTLESS = Faults()
LOOK = 0.01  # s between two looks at how far an attempt is
LOOKS = 8  # times that a claim of progress is compared with the disk; each reads the part file


@dataclass(slots=True)
class Result:
    """What came of one attempt: what the transport raised, and what is on the node's disk.

    `raised` is what left `send()`, None where it returned; `error` what the core makes of it.
    `before` and `missing` are bytes, as the core surveyed them before and after; `whole` says
    whether the part file is the source, byte by byte, as read on the disk. `progress` are the
    counts that were reported, `overclaimed` the first claim of which the disk knew nothing, as
    (claimed, there). `received` are the bytes that reached the node over its link.
    """

    part: Path
    before: int = 0
    missing: int = 0
    raised: BaseException | None = None
    error: RRMoveError | None = None
    whole: bool = False
    cancelled: bool = False
    seconds: float = 0.0
    stopping: float = 0.0
    sent: int = 0
    received: int = 0
    progress: list[int] = field(default_factory=list)
    overclaimed: tuple[int, int] | None = None

    @property
    def returned(self) -> bool:
        """Tell whether `send()` came back as if all were there."""
        return self.raised is None and self.error is None and not self.cancelled


class Trial:
    """One login, with a part file ready to be filled; what `Bench.attempt()` is made of."""

    def __init__(self, bench: Bench, session: Session, source: Path, request: Request, facts: Facts) -> None:
        self.bench, self.session, self.source, self.request, self.facts = bench, session, source, request, facts
        self.landing: PartFile

    async def open(self) -> tuple[Range, ...]:
        """Make the part file ready and say what it lacks."""
        request = self.request
        if isinstance(request.source, Remote):
            place = await locate(self.session, request, blank(request.source.size))
            self.landing = RemotePart(self.session, request, place)
        else:
            made = manifests.build(self.source, request.source.size)
            self.landing = PartFile(self.session, request, made, await locate(self.session, request, made))
        await self.landing.open()
        self.landing.foreign = True
        return await self.landing.survey()

    async def hold(self, *chunks: int) -> tuple[Range, ...]:
        """Have the opened part file hold these chunks, as if an earlier attempt had brought them; say what it lacks."""
        part, data, made = self.bench.node.home / self.landing.part, self.source.read_bytes(), self.landing.manifest
        filled = bytearray(len(data))
        digests = {}
        for index in chunks:
            chunk = made.chunk(index)
            filled[chunk.start : chunk.stop] = piece = data[chunk.start : chunk.stop]
            digests[index] = hashlib.sha256(piece).hexdigest()
        part.write_bytes(filled)
        # Who compares sizes and times, as rsync does, would think that they are the same file.
        os.utime(part, ns=(self.source.stat().st_mtime_ns,) * 2)
        if isinstance(self.landing, RemotePart):
            await self.landing.received(digests)
        return await self.landing.survey(everything=True)

    async def send(  # noqa: C901  small functions that look at one result
        self,
        missing: tuple[Range, ...],
        *,
        rate: float | None = None,
        at: int = 0,
        during: Callable[[Trial], Awaitable[None]] | None = None,
        cancel: bool = False,
    ) -> Result:
        """Let the transport work; once `at` bytes are on their way, `during` is called, or it is cancelled."""
        bench, node = self.bench, self.bench.node
        result = Result(node.home / self.landing.part, before=manifests.total(missing))
        size = self.request.source.size
        tally = Tally(lambda _: None, node.name, size, result.before)
        loan, received = Loan(self.session), node.bytes_in
        held = _held(result.part)

        def progress(count: int) -> None:
            result.progress.append(count)
            tally.progress(count)
            if result.overclaimed is None and len(result.progress) <= LOOKS:
                claimed = size - result.before + sum(result.progress)
                there = bench.matching(result.part, self.source)
                if claimed > there:
                    result.overclaimed = (claimed, there)

        job = Job(
            request=self.request, manifest=self.landing.manifest, missing=missing, facts=self.facts, session=loan,
            landing=self.landing, limiter=TokenBucket(rate), progress=progress, sent=tally.sent, emit=tally.emit,
        )  # fmt: skip

        async def work() -> None:
            try:
                await bench.transport.send(job)
            except BaseException as error:
                result.raised = error
                raise

        started = time.monotonic()
        name = bench.transport.name
        sending = asyncio.ensure_future(contained(work(), tally, loan, name, bench.patience))

        def far() -> bool:
            return max(node.bytes_in - received, _held(result.part) - held) >= at

        while (during is not None or cancel) and not sending.done():
            await asyncio.sleep(LOOK)
            if far():
                if during is not None:
                    await during(self)
                if cancel:
                    await _cancelled(sending, result)
                break
        if result.cancelled:
            await asyncio.gather(sending, return_exceptions=True)
        else:
            result.error = await sending
        loan.end()
        result.seconds = time.monotonic() - started
        result.sent, result.received = tally.bytes_sent, node.bytes_in - received
        return result


class Bench:
    """One transport on an embedded node. Every call logs in anew, and leaves the node without faults.

    `settings` are what `move()` takes, `patience` the seconds in which a transport has to report a
    byte or to end. Needs a directory of its own for sources: where `kind` is "url", a web server gives
    them, and the transport has to move them from there. Leaving the context ends it.
    """

    def __init__(  # noqa: PLR0913  what is put on it, and how it is watched
        self,
        transport: Transport,
        node: EmbeddedNode,
        folder: Path,
        *,
        settings: Mapping[str, object] | None = None,
        patience: float = 10.0,
        kind: Literal["file", "url"] = "file",
    ) -> None:
        self.transport, self.node, self.folder, self.patience = transport, node, folder, patience
        self.origin = Origin(folder) if kind == "url" else None
        self.settings = dict(settings or {})
        self._dice = random.Random(7)  # noqa: S311  the same files at each run

    def __enter__(self) -> Self:
        """Begin to serve what URLs name."""
        if self.origin is not None:
            self.origin.__enter__()
        return self

    def __exit__(self, *_: object) -> None:
        """Serve no more."""
        if self.origin is not None:
            self.origin.__exit__()

    @property
    def resets(self) -> int:
        """Connections that faults have cut, to the node and to the web server."""
        return self.node.resets + (self.origin.resets if self.origin is not None else 0)

    @property
    def target(self) -> Node:
        """The node as the core knows it."""
        ssh = SSHSettings(host=self.node.name, config=self.node.ssh_config)
        return Node(name=self.node.name, ssh=ssh)

    def source(self, size: int, name: str | bytes = "file.bin") -> Path:
        """Make a file of random bytes."""
        path = self.folder / os.fsdecode(name)
        path.write_bytes(self._dice.randbytes(size))
        return path

    def request(self, source: Path, destination: str = "") -> Request:
        """Ask for one file, with the settings of this bench."""
        said = [given(name, value) for name, value in self.settings.items()]
        told = settled({self.transport.name: self.transport}, said)
        return Request(
            source=Source.of(self._shown(source)),
            node=self.target,
            destination=destination,
            options=Options(only=(self.transport.name,)),
            settings=told,
        )

    @asynccontextmanager
    async def trial(self, source: Path, destination: str = "") -> AsyncIterator[Trial]:
        """Log in and find out what the transport needs to know, for an attempt that is taken apart."""
        request = self.request(source, destination)
        needs = {probe.name: probe for probe in self.transport.needs}
        async with log_in(self.target) as session:
            facts = Facts()
            if needs:
                facts = await look_at(session, needs.values(), grace=None, emit=lambda _: None)
            if isinstance(request.source, Remote):
                request = replace(request, source=await look(session, request.source))
            yield Trial(self, session, source, request, facts)

    async def attempt(self, source: Path, *, faults: Faults = FAULTLESS, **sending: Any) -> Result:
        """Let the transport send once, over a link with these faults; `sending` as `Trial.send()` has it."""
        # The core reserves the room beforehand: it is while sending that a disk turns out to be full.
        self._link(replace(faults, file_bytes=None))
        async with self.trial(source) as trial:
            missing = await trial.open()
            if faults.file_bytes is not None:
                self.node.limit_files(faults.file_bytes)
            result = await trial.send(missing, **sending)
            if faults.file_bytes is not None:
                self.node.limit_files(None)
            self._link(FAULTLESS)
            # What the faults have cut may still be writing: the survey ends it, as in a real move.
            await trial.landing.open()
            result.missing = manifests.total(await trial.landing.survey(everything=True))
        result.whole = self.is_whole(result.part, source)
        return result

    async def move(self, source: Path, destination: str = "", **wishes: Any) -> Outcome:
        """Move a file by this transport alone, as `rrmove.move()` does, which says what is raised."""
        wishes = {"only": (self.transport.name,), "patience": self.patience, **wishes}
        target = Node(name=self.target.name, ssh=self.target.ssh, destination=destination)
        return await move(self._shown(source), target, plugins=(self.transport,), settings=self.settings, **wishes)

    def _shown(self, source: Path) -> Path | str:
        """Give what a user would name: the file, or its URL."""
        return source if self.origin is None else self.origin.url(source)

    def _link(self, faults: Faults) -> None:
        self.node.faults = faults
        if self.origin is not None:
            self.origin.faults = faults

    @classmethod
    def is_whole(cls, part: Path, source: Path) -> bool:
        """Tell whether two files are the same."""
        return part.exists() and cls.matching(part, source) == source.stat().st_size == part.stat().st_size

    @staticmethod
    def matching(part: Path, source: Path) -> int:
        """Count the bytes of the source that the part file has in their places, in blocks of 4 KiB."""
        block, same = 4096, 0
        try:
            theirs, ours = part.read_bytes(), source.read_bytes()
        except OSError:
            return 0
        for at in range(0, len(ours), block):
            piece = ours[at : at + block]
            same += len(piece) if theirs[at : at + block] == piece else 0
        return same


async def _cancelled(sending: asyncio.Future[RRMoveError | None], result: Result) -> None:
    """Cancel an attempt, unless it is over, and time how long it takes to end."""
    asked = time.monotonic()
    result.cancelled = not sending.done()
    sending.cancel()
    await asyncio.wait({sending})
    result.stopping = time.monotonic() - asked


def _held(path: Path) -> int:
    try:
        return path.stat().st_blocks * 512
    except OSError:
        return 0
