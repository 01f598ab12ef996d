"""RemotePart: the part file of what is behind a URL; nobody knows in advance what it consists of.

In place of a source's manifest there is a ledger beside the part file: for each chunk the SHA-256 of
what came over the wire. It goes with one part file (its identity is the first line), is written by
whoever fetches, and read by us. So the survey, what is missing and the verification are what they
are for a local file: what the node reads back from its disk is compared with the ledger.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from typing import TYPE_CHECKING, cast

from rrmove.errors import IntegrityError, Transient, TransportError
from rrmove.landing import PartFile
from rrmove.lease import Lease, LeaseLost, text_of
from rrmove.manifest import DIGEST, Manifest, Range, grain_for
from rrmove.retry import ask, persistently

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from rrmove.landing import Place
    from rrmove.model import Remote, Request
    from rrmove.session import Lane, Reply, Session

UNKNOWN = bytes(DIGEST)  # the digest of no content: what is not there yet
LEDGER = ".received~"  # behind the journal's name, so that whoever sweeps takes it for a draft of one
HASHING = 30.0  # s that a hashing of ours may go on without a word from us
LOOK = 0.25  # s between two looks at it


class RemotePart(PartFile):
    """The part file of a `Remote`; see `rrmove.landing.PartFile`, and what is said here."""

    def __init__(self, session: Session, request: Request, place: Place) -> None:
        source = cast("Remote", request.source)
        super().__init__(session, request, blank(source.size), place)
        self._source = source
        self._ended = source.sized
        self._begun: str | None = None  # the part file that the ledger was begun for

    @property
    def ledger(self) -> str:
        """The ledger's absolute path on the node."""
        return self.place.journal + LEDGER

    @property
    def missing(self) -> tuple[Range, ...]:
        """What has not been verified; where the size is not known yet, that is one byte at the least."""
        return super().missing if self._ended else (Range(0, 1),)

    @property
    def expected(self) -> str | None:
        """The SHA-256 that the whole file has to have, in hex, as far as anybody has said."""
        asked = self._request.options.sha256
        return asked.lower() if asked else self._source.digest

    async def arrived(self) -> bool:
        """Tell whether the target has this very content: by its digest, or by a ledger that is complete."""
        if self.expected is None and self._ended and UNKNOWN not in _digests(self._manifest):
            return await super().arrived()
        if self.expected is None or self.place.kind != "file" or self.place.size is None:
            return False
        if self._source.sized and self.place.size != self._source.size:
            return False
        digest, _ = await self._whole(self.place.target)
        if digest == self.expected:
            self._manifest, self._ended = Manifest(self.place.size, self._manifest.grain, b""), True
        return digest == self.expected

    async def overtaken(self) -> bool:
        """Tell that nobody else has put this content there: without a manifest nobody could."""
        return False

    async def open(self) -> None:
        """Make the part file ready, and its ledger; what cannot be continued is begun anew."""
        if self.foreign and (self._begun or self.place.part_size is not None):
            await ask(self._session, "evict", part=self.part)  # or it might write to the new ledger, too
        if self._begun and not self._source.sized:
            await self._read_ledger()  # where it did not end, the part file begins with nothing again
        await super().open()
        if self._begun != self._ino:
            await self._shell(_BEGIN, self.ledger, self._ino or "")
            self._begun = self._ino

    async def survey(self, *, everything: bool = False) -> tuple[Range, ...]:
        """Compare what the disk has with the ledger, and give what is missing."""
        if self.foreign:
            await ask(self._session, "evict", part=self.part)
        if self._ino is None:
            await self._wrong_chunks(self.part, [])  # gives its identity
        await self._read_ledger()
        if everything:
            self._verified = bytearray(self._manifest.count)
        told = enumerate(_digests(self._manifest))
        known = [index for index, digest in told if not self._verified[index] and digest != UNKNOWN]
        untouched = not any(self._verified)
        await self._wrong_chunks(self.part, known)
        if untouched:  # all that is verified was read after the last stranger had gone
            self.foreign = False
        return self.missing

    async def prove(self) -> tuple[Range, ...]:
        """Compare the whole file's digest where one is known; gives what is missing, as `survey()` does.

        To be asked when everything is verified against the ledger. Raises IntegrityError where the
        content is not what somebody said it would be.
        """
        missing = await self.verify()
        if missing or self.expected is None:
            return missing
        digest, ino = await self._whole(self.part)
        if self._ino is None or not self._ino.startswith(ino):
            self._is_now(None)
            return self.missing
        if digest != self.expected:
            whose = "the one that was asked for" if self._request.options.sha256 else "the one that the server gives"
            raise IntegrityError(
                f"{self._source.shown} has the SHA-256 {digest}, which is not {whose}, {self.expected}",
                node=self._request.node.name,
                remedy="Nothing was committed. If the digest is right, the file there is another one; "
                f"`rrmove clean {self._request.node.name}` removes what has arrived",
            )
        return ()

    async def commit(self) -> str:
        """Sync the part file, rename it to the target, and remove the ledger."""
        where = await super().commit()
        with contextlib.suppress(TransportError):  # the file is there; what is left here is swept some day
            await self._shell('rm -f -- "$1"', self.ledger)
        return where

    async def discard(self) -> None:
        """Remove a part file that nobody could continue, and what belongs to it."""
        await ask(self._session, "evict", part=self.part)
        await self._shell('rm -f -- "$@"', self.part, self.place.journal, self.ledger)

    async def received(self, digests: Mapping[int, str], *, new: bool = False, size: int | None = None) -> None:
        """Note the SHA-256 of chunks as they came over the wire; `new` forgets those before.

        For transports that write through lanes. `size` tells where a file ended cleanly whose
        size nobody had told. A repeat does no harm.
        """
        lines = ["new"] * new + [f"{index} {digest}" for index, digest in digests.items()]
        lines += [] if size is None else [f"end {size}"]
        await self._shell('cat >>"$1"', self.ledger, body="".join(f"\n{line}\n" for line in lines))

    async def adopt(self, ranges: Iterable[Range]) -> None:
        """Take what the disk has in `ranges` for what came over the wire.

        For transports whose program writes to the part file itself and vouches for it.
        """
        chunks = [
            index
            for item in ranges
            for index in self._manifest.chunks_of([item])
            if item.start <= self._manifest.chunk(index).start and self._manifest.chunk(index).stop <= item.stop
        ]
        for at in range(0, len(chunks), 32):
            batch = chunks[at : at + 32]
            spans = [[self._manifest.chunk(index).start, self._manifest.chunk(index).length] for index in batch]
            fields = await ask(self._session, "hash", path=self.part, spans=spans)
            found = zip(batch, cast("list[str | None]", fields["digests"]), strict=True)
            await self.received({index: digest for index, digest in found if digest is not None})

    async def check(self, chunks: Sequence[int], lane: Lane | None = None, *, sealed: bool = False) -> tuple[int, ...]:
        """Compare chunks with the ledger as it was surveyed."""
        del sealed  # what the ledger proves is read again before the commit in any case
        return tuple(await self._wrong_chunks(self.part, chunks, lane))

    async def _read_ledger(self) -> None:
        text = b""

        async def once() -> bytes:
            lane = await self._session.control()
            return (await lane.call("get", path=self.ledger, at=len(text), length=1 << 20)).body

        while piece := await persistently(once):
            text += piece
        read = read_ledger(text, self._ino)
        size, digests = read if read is not None else (None, {})
        if not self._source.sized:
            self._ended = size is not None
        whole = self._source.size if self._source.sized else size or 0
        before, self._manifest = self._manifest, filled(blank(whole), digests)
        if before.count != self._manifest.count:
            self._verified = bytearray(self._manifest.count)
        for index, (then, now) in enumerate(zip(_digests(before), _digests(self._manifest), strict=False)):
            if then != now:  # what was verified was so against the ledger of then
                self._verified[index] = 0

    async def _whole(self, path: str) -> tuple[str, str]:
        """Hash a whole file on the node; gives its SHA-256 and the beginning of its identity."""
        given = {"digest": path}
        duty = text_of("rrmove.ssh", "fetcher.py") + "\nmain(Fetch)\n"
        if self._session.floor:
            size = self.place.size if path == self.place.target else self._manifest.size
            fields = await ask(self._session, "hash", path=path, spans=[[0, size]])
            return str((cast("list[str | None]", fields["digests"]))[0]), str(fields["ino"] or "-")
        while True:
            hashing = await Lease.begin(self._session, duty, given, seconds=HASHING)
            try:
                while True:
                    seen = json.loads(await hashing.ask())
                    if seen["over"]:
                        break
                    await asyncio.sleep(LOOK)
            except LeaseLost:
                continue
            finally:
                await hashing.end()
            if "trouble" in seen:
                raise Transient(f"{path!r} could not be read: {seen['trouble'][1]}", node=self._request.node.name)
            return str(seen["sha256"]), str(seen["ino"])

    async def _shell(self, script: str, *words: str, body: str = "") -> None:
        async def once() -> Reply:
            lane = await self._session.control()
            argv = ["sh", "-c", script, "sh", *words]
            return await lane.call("run", body.encode("ascii"), argv=argv, timeout=20.0)

        fields = (await persistently(once)).fields
        if fields["status"]:
            said = str(fields["errors"]).strip()
            raise Transient(f"the ledger cannot be written: {said}", node=self._request.node.name, tried=self.ledger)


# The ledger goes with one part file: where its first line names another one, it is begun anew.
_BEGIN = """\
read -r mark <"$1" 2>/dev/null && [ "$mark" = "part $2" ] && exit
umask 077; rm -f "$1"; echo "part $2" >"$1"
"""


def blank(size: int) -> Manifest:
    """Give the manifest of a file of which nothing is known but its size."""
    grain = grain_for(size)
    return Manifest(size, grain, UNKNOWN * -(-size // grain))


def _digests(manifest: Manifest) -> list[bytes]:
    return [manifest.digests[at : at + DIGEST] for at in range(0, len(manifest.digests), DIGEST)]


def filled(manifest: Manifest, digests: Mapping[int, str]) -> Manifest:
    """Give a manifest with the digests of some chunks filled in."""
    known = bytearray(manifest.digests)
    for index, digest in digests.items():
        if index < manifest.count:
            known[index * DIGEST : (index + 1) * DIGEST] = bytes.fromhex(digest)
    return Manifest(manifest.size, manifest.grain, bytes(known))


def read_ledger(text: bytes, ino: str | None) -> tuple[int | None, dict[int, str]] | None:
    """Read a ledger: where the file ended, and the chunks' digests in hex; None where it is another part's.

    Lines that make no sense, as one that was being written when the node went down, do not count;
    where chunks are told twice, the last word does.
    """
    head, _, rest = text.partition(b"\n")
    if head.decode("ascii", "replace") != f"part {ino}":
        return None
    end: int | None = None
    digests: dict[int, str] = {}
    for line in rest.splitlines():
        words = line.decode("ascii", "replace").split()
        match words:
            case ["new"]:
                end = None
                digests.clear()
            case ["end", number] if number.isdigit():
                end = int(number)
            case [number, digest] if number.isdigit() and len(digest) == 2 * DIGEST and _HEX.issuperset(digest):
                digests[int(number)] = digest
            case _:
                continue
    return end, digests


_HEX = frozenset("0123456789abcdef")
