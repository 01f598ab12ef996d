"""The landing: the part file on the node; its survey, what is missing, verification and commit.

The core alone decides here whether a file has arrived. What it goes by is what the node reads back
from the part file, chunk by chunk, against the manifest; never what a transport says it has sent.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import time
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, cast

from rrmove.errors import Fatal, IntegrityError, UsageError
from rrmove.manifest import BLOCK, Manifest, Range, digest_of, merged
from rrmove.retry import ask, persistently
from rrmove.ssh.failures import StaleError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from rrmove.model import Request
    from rrmove.session import Lane, Reply, Session

BATCH = 64 << 20  # bytes hashed for one answer: about 50 ms to 1 s of work, so the link never looks dead
HOPELESS = 4  # times that one chunk may arrive wrong before the part file is put aside
OLD = 7 * 86400.0  # s after which a part file that nobody touches is swept


@dataclass(frozen=True, slots=True)
class Place:
    """Where a file would land, and what is there now; sizes in bytes, None where nothing is."""

    target: str
    part: str
    journal: str
    directory: str
    nearest: str
    free: int
    writable: bool
    size: int | None
    kind: str | None
    part_size: int | None
    held: int
    opened: Mapping[str, object] | None = None


def part_id(manifest: Manifest, request: Request) -> str:
    """Name a part after its content and where it goes, so that different contents never share one."""
    return part_key(request.source.version or manifest.root, request.destination, request.source.name)


def part_key(content: str, destination: str, name: str) -> str:
    """Give a part's id, from the manifest's root (or a remote file's version) and where the file goes, as written."""
    words = f"{content}\x00{destination}\x00{name}"
    return hashlib.sha256(words.encode("utf-8", "surrogateescape")).hexdigest()[:12]


async def locate(session: Session, request: Request, manifest: Manifest, *, opening: bool = False) -> Place:
    """Ask the node where the file would land; changes nothing there.

    With `opening` the part file may be made ready in the same round trip, unless a target of that
    size is there; `opened` then has what `open` answers. A repeat gives the same place.
    """
    also: dict[str, object] = {}
    if opening:
        also = {"size": manifest.size, "need": _need(manifest), "note": _note(request, manifest)}
    fields = await ask(
        session,
        "locate",
        destination=request.destination,
        name=request.source.name,
        key=part_id(manifest, request),
        **also,
    )
    place = Place(**{key: fields.get(key) for key in Place.__dataclass_fields__})  # type: ignore[arg-type]
    node = request.node.name
    if place.kind == "directory":
        raise UsageError(
            f"{place.target!r} is a directory", node=node, remedy="Name another destination, or remove it there"
        )
    if place.kind == "other":
        raise UsageError(f"{place.target!r} is no regular file", node=node, remedy="Name another destination")
    return place


def _need(manifest: Manifest) -> int:
    """Count the bytes that take room on a disk: holes take none."""
    holes = (manifest.chunk(i).length for i in range(manifest.count) if manifest.is_hole(i))
    return manifest.size - sum(holes)


def _note(request: Request, manifest: Manifest) -> dict[str, object]:
    """Write down what a part file is, for people who find one and for `rrmove clean`."""
    return {
        "name": request.source.name,
        "destination": request.destination,
        "size": manifest.size,
        "grain": manifest.grain,
        "root": manifest.root,
        "begun": int(time.time()),
        "from": f"{os.uname().nodename}:{os.getpid()}",
    }


class PartFile:
    """One part file and what is known of it; serves transports as `rrmove.transport.Landing`."""

    def __init__(self, session: Session, request: Request, manifest: Manifest, place: Place) -> None:
        self._session, self._request, self._manifest = session, request, manifest
        self.place = place
        self._verified = bytearray(manifest.count)
        self._sealed: set[int] = set()  # verified since nobody can write there any more
        self._trusted = False  # whether a seal is believed of the transport at work
        self._wrong: dict[int, int] = {}
        self._ino: str | None = None
        self._opened = self.fresh = False
        self.foreign = place.part_size is not None  # who wrote what is there may still be writing
        if place.opened is not None:
            self._is_open(place.opened)

    @property
    def part(self) -> str:
        """The part file's absolute path on the node."""
        return self.place.part

    @property
    def manifest(self) -> Manifest:
        """What the part file is to consist of."""
        return self._manifest

    @property
    def missing(self) -> tuple[Range, ...]:
        """What has not been verified, as far as is known without asking."""
        manifest = self._manifest
        return merged(manifest.chunk(i) for i in range(manifest.count) if not self._verified[i])

    async def arrived(self) -> bool:
        """Tell whether the target has this very content already."""
        if self.place.size != self._manifest.size:
            return False
        everything = range(self._manifest.count)
        return not await self._wrong_chunks(self.place.target, everything)

    async def overtaken(self) -> bool:
        """Tell whether somebody else has put this very content there, and our part file is gone with it."""
        self.place = await locate(self._session, self._request, self._manifest)
        return self.place.part_size is None and await self.arrived()

    async def open(self) -> None:
        """Make the part file ready: directories, free space, full size. A repeat loses nothing.

        Raises Fatal where the disk is too full or the directory may not be written to.
        """
        manifest, opened = self._manifest, self.place.opened
        if self._opened and opened is None:  # what it holds by now needs no room any more
            self.place = await locate(self._session, self._request, manifest)
        if opened is None:
            opened = await ask(
                self._session,
                "open",
                part=self.place.part,
                journal=self.place.journal,
                note=_note(self._request, manifest),
                size=manifest.size,
                need=max(0, _need(manifest) - self.place.held),
            )
        self.place = replace(self.place, opened=None)
        self._is_open(opened)

    def _is_open(self, opened: Mapping[str, object]) -> None:
        self._opened = True
        if opened.get("fresh"):
            self._is_now(None)
        self._is_now(cast("str | None", opened["ino"]))
        # A part file that was made just now is one hole; only if the source has holes is that news.
        self.fresh = bool(opened.get("fresh")) and _need(self._manifest) == self._manifest.size

    async def survey(self, *, everything: bool = False) -> tuple[Range, ...]:
        """Read back what has not been verified yet, or `everything`, and give what is missing."""
        if self.foreign:
            # A transport that was cut off may have left its writer behind; it goes before we look.
            fields = await ask(self._session, "evict", part=self.part)
            if fields.get("ended"):
                self._sealed.clear()  # whoever that was, no seal has held it off
        if everything:
            self._verified = bytearray(index in self._sealed for index in range(self._manifest.count))
        await self._survey_rest()
        return self.missing

    async def verify(self) -> tuple[Range, ...]:
        """Have every byte read back that somebody may have touched; what is missing then is the truth."""
        missing = await self.survey(everything=self.foreign)
        self.foreign = False
        return missing

    def lent(self, *, own: bool, lanes_only: bool) -> None:
        """Note who is at work next: one of our own transports, or a stranger, which may be wrong about itself."""
        self._trusted = own
        if not (own and lanes_only):
            self.foreign = True
            self._sealed.clear()  # it may write wherever it likes

    async def check(self, chunks: Sequence[int], lane: Lane | None = None, *, sealed: bool = False) -> tuple[int, ...]:
        """Read back and verify chunks over the given lane; gives those that are wrong.

        `sealed`: nobody can write there any more, so what is right need not be read again before the commit.
        """
        wrong = await self._wrong_chunks(self.part, chunks, lane)
        if sealed and self._trusted:
            self._sealed.update(index for index in chunks if self._verified[index])
        for index in wrong:
            await self._blame(index)
        return tuple(wrong)

    async def held(self) -> int:
        """Ask how many bytes of the part file take room on the node's disk."""
        fields = await ask(self._session, "hash", path=self.part, spans=[])
        return cast("int", fields["held"]) if fields.get("size") is not None else 0

    async def admit(self) -> None:
        """Let the node's data server write into the part file, until it is surveyed as a foreign writer's."""
        await self._admit()

    async def claim(self) -> str:
        """End who else may be writing, and give the part file an identity that only we have verified it by."""
        self.foreign = True
        await ask(self._session, "evict", part=self.part)
        return await self._admit(servers=0)

    async def _admit(self, **more: int) -> str:
        self.foreign = True
        place = self.place
        fields = await ask(self._session, "admit", part=place.part, journal=place.journal, ino=self._ino, **more)
        self._ino = cast("str", fields["ino"])  # it is the same file, and what was verified stays so until then
        return self._ino

    async def trim(self, size: int) -> None:
        """Cut the part file to `size` bytes; what was verified beyond is forgotten."""
        await ask(self._session, "trim", part=self.part, size=size)
        for index in range(size // self._manifest.grain, self._manifest.count):
            self._verified[index] = 0
            self._sealed.discard(index)

    async def commit(self) -> str:
        """Sync the part file and rename it to the target; gives the target's path.

        Only what has been verified is committed: raises Transient where the part file is not the
        one that was. A repeat after the rename finds the target in place and succeeds.
        """
        if self.missing or self.foreign:
            raise IntegrityError("not everything has been verified", node=self._request.node.name)
        source, place = self._request.source, self.place
        if not source.unchanged():
            raise self._changed()

        async def once() -> None:
            lane = await self._session.control()
            await lane.call(
                "commit",
                part=place.part,
                journal=place.journal,
                target=place.target,
                size=self._manifest.size,
                ino=self._ino,
                mode=source.mode,
                mtime_ns=source.mtime_ns,
                check=[],
            )

        try:
            await persistently(once)
        except StaleError:
            # The answer to an earlier commit may have been lost with its connection.
            self.place = await locate(self._session, self._request, self._manifest)
            if self.place.part_size is not None or not await self.arrived():
                self._is_now(None)
                self.foreign = True  # somebody else was at it: nobody may be, while it is read again
                raise
        return place.target

    async def sweep(self) -> None:
        """Remove parts in the target's directory that nobody has touched for a week."""
        await ask(self._session, "sweep", directories=[self.place.directory], older_than=OLD, depth=0)

    async def quarantine(self) -> str:
        """Put the part file aside under another name, so that nobody continues it."""
        fields = await ask(self._session, "quarantine", part=self.part, journal=self.place.journal)
        return str(fields["path"])

    # What is on the disk

    def _is_now(self, ino: str | None) -> None:
        """Forget everything when the part file is another one than before: wiped, or replaced."""
        if ino != self._ino:
            self._ino = ino
            self._sealed.clear()
            self._verified = bytearray(self._manifest.count)

    async def _survey_rest(self) -> None:
        if self.fresh:
            self.fresh = False
            return
        for _ in range(3):  # a part that is replaced while we read it is read again
            rest = [i for i in range(self._manifest.count) if not self._verified[i]]
            if not rest and self._ino is not None:
                return
            ino = self._ino
            await self._wrong_chunks(self.part, rest)
            if self._ino == ino or ino is None:
                return

    async def _wrong_chunks(self, path: str, chunks: Sequence[int], lane: Lane | None = None) -> list[int]:
        """Compare chunks of a file on the node with the manifest; a part's good ones are remembered."""
        manifest, wrong = self._manifest, list[int]()
        step = max(1, BATCH // manifest.grain)
        batches = [chunks[at : at + step] for at in range(0, len(chunks), step)] or [chunks[:0]]
        for batch in batches:
            spans = [[manifest.chunk(i).start, manifest.chunk(i).length] for i in batch]
            if lane is None:
                fields = await ask(self._session, "hash", path=path, spans=spans)
            else:
                reply: Reply = await lane.call("hash", path=path, spans=spans)
                fields = dict(reply.fields)
            if path == self.part:
                self._is_now(cast("str | None", fields["ino"]))
            for index, digest in zip(batch, cast("list[str | None]", fields["digests"]), strict=True):
                good = digest == manifest.digest(index)
                if not good:
                    wrong.append(index)
                if path == self.part:
                    self._verified[index] = good
        return wrong

    async def _blame(self, index: int) -> None:
        """Find out whose fault a wrong chunk is: the source's, which has changed, or the link's."""
        request, item = self._request, self._manifest.chunk(index)
        if not request.source.unchanged() or await asyncio.to_thread(
            self._source_digest, item
        ) != self._manifest.digest(index):
            raise self._changed()
        self._wrong[index] = self._wrong.get(index, 0) + 1
        if self._wrong[index] >= HOPELESS:
            raise IntegrityError(
                f"bytes {item.start} to {item.stop} arrive wrong again and again ({self._wrong[index]} times)",
                node=request.node.name,
                remedy="Look for what alters data on the way: a proxy, faulty memory or disk",
            )

    def _source_digest(self, item: Range) -> str:
        try:
            with self._request.source.path.open("rb") as file:
                return digest_of(file.fileno(), item, memoryview(bytearray(BLOCK))).hex()
        except OSError as error:
            raise self._changed() from error

    def _changed(self) -> Fatal:
        return Fatal(
            f"{str(self._request.source.path)!r} was changed while it was sent; nothing was committed",
            node=self._request.node.name,
            remedy="Run the same command again when nobody writes to the file",
        )
