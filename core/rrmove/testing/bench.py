"""The bench: one transport, one embedded node, and attempts whose results are looked at on the disk."""

from __future__ import annotations

import asyncio
import os
import random
import time
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from rrmove import manifest as manifests
from rrmove.containment import Loan, Tally, contained
from rrmove.landing import PartFile, locate
from rrmove.model import Node, Options, Request, Source, SSHSettings
from rrmove.moving import move
from rrmove.plugin_settings import given, settled
from rrmove.probe import Facts
from rrmove.rate import TokenBucket
from rrmove.setting import log_in, look_at
from rrmove.testing.faults import Faults
from rrmove.transport import Job

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
    from pathlib import Path

    from rrmove.errors import RRMoveError
    from rrmove.manifest import Manifest, Range
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

    def __init__(self, bench: Bench, session: Session, request: Request, made: Manifest, facts: Facts) -> None:
        self.bench, self.session, self.request, self.manifest, self.facts = bench, session, request, made, facts
        self.landing: PartFile

    async def open(self) -> tuple[Range, ...]:
        """Make the part file ready and say what it lacks."""
        place = await locate(self.session, self.request, self.manifest)
        self.landing = PartFile(self.session, self.request, self.manifest, place)
        await self.landing.open()
        self.landing.foreign = True
        return await self.landing.survey()

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
        tally = Tally(lambda _: None, node.name, self.manifest.size, result.before)
        loan, received = Loan(self.session), node.bytes_in
        held = _held(result.part)

        def progress(count: int) -> None:
            result.progress.append(count)
            tally.progress(count)
            if result.overclaimed is None and len(result.progress) <= LOOKS:
                claimed = self.manifest.size - result.before + sum(result.progress)
                there = bench.matching(result.part, self.request.source.path)
                if claimed > there:
                    result.overclaimed = (claimed, there)

        job = Job(
            request=self.request, manifest=self.manifest, missing=missing, facts=self.facts, session=loan,
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
    byte or to end. Needs a directory of its own for sources.
    """

    def __init__(
        self,
        transport: Transport,
        node: EmbeddedNode,
        folder: Path,
        *,
        settings: Mapping[str, object] | None = None,
        patience: float = 10.0,
    ) -> None:
        self.transport, self.node, self.folder, self.patience = transport, node, folder, patience
        self.settings = dict(settings or {})
        self._dice = random.Random(7)  # noqa: S311  the same files at each run

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
            source=Source.of(source),
            node=self.target,
            destination=destination,
            options=Options(only=(self.transport.name,)),
            settings=told,
        )

    @asynccontextmanager
    async def trial(self, source: Path, destination: str = "") -> AsyncIterator[Trial]:
        """Log in and find out what the transport needs to know, for an attempt that is taken apart."""
        request = self.request(source, destination)
        made = manifests.build(source, request.source.size)
        needs = {probe.name: probe for probe in self.transport.needs}
        async with log_in(self.target) as session:
            facts = Facts()
            if needs:
                facts = await look_at(session, needs.values(), grace=None, emit=lambda _: None)
            yield Trial(self, session, request, made, facts)

    async def attempt(self, source: Path, *, faults: Faults = FAULTLESS, **sending: Any) -> Result:
        """Let the transport send once, over a link with these faults; `sending` as `Trial.send()` has it."""
        # The core reserves the room beforehand: it is while sending that a disk turns out to be full.
        self.node.faults = replace(faults, file_bytes=None)
        async with self.trial(source) as trial:
            missing = await trial.open()
            if faults.file_bytes is not None:
                self.node.limit_files(faults.file_bytes)
            result = await trial.send(missing, **sending)
            if faults.file_bytes is not None:
                self.node.limit_files(None)
            self.node.faults = FAULTLESS
            # What the faults have cut may still be writing: the survey ends it, as in a real move.
            await trial.landing.open()
            result.missing = manifests.total(await trial.landing.survey(everything=True))
        result.whole = self.is_whole(result.part, source)
        return result

    async def move(self, source: Path, destination: str = "", **wishes: Any) -> Outcome:
        """Move a file by this transport alone, as `rrmove.move()` does, which says what is raised."""
        wishes = {"only": (self.transport.name,), "patience": self.patience, **wishes}
        target = Node(name=self.target.name, ssh=self.target.ssh, destination=destination)
        return await move(source, target, plugins=(self.transport,), settings=self.settings, **wishes)

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
