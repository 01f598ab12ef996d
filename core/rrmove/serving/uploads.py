"""Uploads: a part file in the landing's own format, surveyed, verified and committed against the client's digests."""

from __future__ import annotations

import asyncio
import contextlib
import os
import stat
import time
from collections import OrderedDict
from types import SimpleNamespace
from typing import TYPE_CHECKING, cast

from rrmove.landing import BATCH, part_key
from rrmove.manifest import BLOCK, DIGEST, Manifest, Range, grain_for, merged
from rrmove.serving.answers import Rejection
from rrmove.serving.digests import PATIENCE
from rrmove.serving.files import explained
from rrmove.serving.paths import ours, quoted, segments_in, text
from rrmove.serving.roots import Root, look
from rrmove.ssh import agent

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from concurrent.futures import Executor

    from rrmove.serving.parts import Parts

MOST = 256  # uploads that are remembered; what is forgotten is found again on the disk by POST /v1/uploads
FINEST, COARSEST = 64 << 10, 1 << 40  # bytes of a chunk
LARGEST = 1 << 60  # bytes of a file: more than any file system takes
MODE = 0o644


class Upload:
    """One file on its way. What blocks is called in a thread, one call at a time."""

    def __init__(
        self, parts: Parts, root: Root, names: Sequence[bytes], manifest: Manifest, settings: Mapping[str, int]
    ) -> None:
        self.root, self.names, self.manifest = root, tuple(names), manifest
        self._parts, self.settings = parts, settings
        self.target = text(os.path.join(os.fsencode(root.path), *names))  # noqa: PTH118 - bytes
        self.id = part_key(manifest.root, self.target, text(names[-1]))
        stem = b"." + names[-1][:200] + b"." + self.id.encode()  # as the agent's `locate` has it
        self.part = (*names[:-1], stem + agent.PART.encode())
        self._journal = stem + agent.JOURNAL.encode()
        self.good = bytearray(manifest.count)  # chunks that were read back and are right
        self._ino: str | None = None
        self.committed = False
        self.work: asyncio.Future[object] | None = None
        self.doing, self.told = "open", True

    @property
    def missing(self) -> tuple[Range, ...]:
        """What has not been read back, as far as is known without reading."""
        if self.committed:
            return ()
        return merged(self.manifest.chunk(i) for i in range(self.manifest.count) if not self.good[i])

    def touched(self, span: Range) -> None:
        """Somebody writes there: what was known of it is forgotten."""
        for index in self.manifest.chunks_of([span]):
            self.good[index] = 0

    # What blocks

    @contextlib.contextmanager
    def _place(self, doing: str, *, make: bool = False) -> Iterator[tuple[int, str]]:
        """Lend the directory, and its path for the agent's functions: a link that only we have, to what is held."""
        with explained(f"cannot {doing} {text(self.names[-1])!r}"):
            try:
                with self.root.directory(self.names[:-1], make=make) as directory:
                    yield directory, f"/proc/self/fd/{directory}/"
            except agent.Refused as refused:
                raise _of_agent(refused) from refused

    def begin(self) -> bool:
        """Make the part file ready, and say whether it was made now; or find the file there already."""
        name, manifest = self.names[-1], self.manifest
        self.committed = False
        with self._place("begin", make=True) as (directory, base):
            try:
                seen = look(directory, name)
            except FileNotFoundError:
                seen = None
            if seen is not None:
                _replaceable(seen, text(name))
                if seen.st_size == manifest.size and self._is_there(base):
                    self.committed = True
                    return False
            part = base + text(self.part[-1])
            held = 0
            with contextlib.suppress(FileNotFoundError):
                there = look(directory, self.part[-1])
                if there.st_nlink > 1:
                    raise Rejection(409, "the part file has another name as well", remedy="Remove it on the node")
                held = there.st_blocks * 512
            holes = sum(manifest.chunk(i).length for i in range(manifest.count) if manifest.is_hole(i))
            need = max(0, manifest.size - holes - held)
            note = {
                "name": text(name),
                "destination": self.target,
                "size": manifest.size,
                "grain": manifest.grain,
                "root": manifest.root,
                "begun": int(time.time()),
                "from": f"serve:{os.getpid()}",
            }
            opened = agent.open_part(None, part, base + text(self._journal), note, manifest.size, need)
            fresh = bool(opened["fresh"])
            ino = self._admit(base, cast("str", opened["ino"]))
            if fresh or ino != self._ino:
                self.good, self._ino = bytearray(manifest.count), ino
        if not fresh or holes:
            self.survey()
        return fresh

    def _admit(self, base: str, ino: str | None) -> str:
        """Let PUTs write into the part; gives its identity from then on."""
        part = base + text(self.part[-1])
        us = SimpleNamespace(disk=agent.Disk())
        try:
            return cast("str", agent.admit(us, part, base + text(self._journal), ino)["ino"])
        finally:
            us.disk.forget(part)

    def _is_there(self, base: str) -> bool:
        path = base + text(self.names[-1])
        return not any(bad for _, bad in self._compared(path, range(self.manifest.count)))

    def survey(self) -> None:
        """Read back what is not known to be right. Raises Rejection (404) where the part file is gone."""
        if self.committed:
            return
        with self._place("survey") as (_, base):
            part = base + text(self.part[-1])
            for chunk, bad in self._compared(part, [i for i, good in enumerate(self.good) if not good]):
                self.good[chunk] = not bad

    def _compared(self, path: str, chunks: Sequence[int]) -> Iterator[tuple[int, bool]]:
        """Read chunks of a file and say of each whether it is wrong; the part's identity is minded."""
        manifest, step = self.manifest, max(1, BATCH // self.manifest.grain)
        us = SimpleNamespace(disk=agent.Disk(), hashing=memoryview(bytearray(BLOCK)))
        try:
            for at in range(0, len(chunks), step):
                batch = [(i, manifest.chunk(i)) for i in chunks[at : at + step]]
                found = agent.digests(us, path, [(span.start, span.length) for _, span in batch])
                if path.endswith(agent.PART) and found["ino"] != self._ino:
                    self.good, self._ino = bytearray(manifest.count), found["ino"]
                    if found["ino"] is None:
                        raise _gone()
                for (i, _), digest in zip(batch, found["digests"], strict=True):
                    yield i, digest != manifest.digest(i)
        finally:
            us.disk.forget(path)

    def commit(self) -> None:
        """Verify every byte while nobody can write, sync, rename. Raises Rejection (409) where something is missing."""
        if self.committed:
            return
        with self._place("commit") as (directory, base):
            part = base + text(self.part[-1])
            try:
                held = self._parts.of(look(directory, self.part[-1]))
            except FileNotFoundError:
                raise _gone() from None
            us = SimpleNamespace(disk=agent.Disk(), hashing=memoryview(bytearray(BLOCK)))
            with held.closing() as for_good, contextlib.ExitStack() as last:
                last.callback(us.disk.forget, part)
                agent.shut_out(us, part)  # other servers, too
                ino = self._ino
                for chunk, bad in self._compared(part, range(self.manifest.count)):
                    self.good[chunk] = not bad
                if self.missing or self._ino != ino:
                    if self._ino is not None:
                        self._ino = self._admit(base, self._ino)
                    raise self._incomplete()
                with contextlib.suppress(FileNotFoundError):
                    _replaceable(look(directory, self.names[-1]), text(self.names[-1]))
                agent.commit(
                    us,
                    part,
                    base + text(self._journal),
                    base + text(self.names[-1]),
                    self.manifest.size,
                    ino,
                    self.settings.get("mode", MODE),
                    self.settings.get("mtime_ns", time.time_ns()),
                    [],
                )
                for_good()
        self.committed = True

    def drop(self) -> None:
        """Remove the part file and its journal; a repeat does no harm. What was committed stays."""
        with self._place("drop") as (directory, base):
            try:
                held = self._parts.of(look(directory, self.part[-1]))
            except FileNotFoundError:
                return
            with held.closing() as for_good:
                agent.remove((base + text(self.part[-1])).encode("utf-8", "surrogateescape"))
                agent.remove((base + text(self._journal)).encode("utf-8", "surrogateescape"))
                for_good()

    def _incomplete(self) -> Rejection:
        spans = [[span.start, span.stop] for span in self.missing]
        return Rejection(
            409,
            "not everything has arrived as it should: nothing was committed",
            remedy="Send what is missing, then commit again",
            more={"missing": spans},
        )

    def fields(self) -> dict[str, object]:
        """Describe it for the client."""
        running = self.work is not None and not self.work.done()
        state = self.doing if running else "committed" if self.committed else "open"
        return {
            "id": self.id,
            "state": state,
            "root": self.root.name,
            "path": "/".join(map(text, self.names)),
            "part": "/".join(map(text, self.part)),
            "put": f"/v1/parts/{self.root.name}/{quoted(*self.part)}",
            "size": self.manifest.size,
            "grain": self.manifest.grain,
            "digest": f"sha256-tree:{self.manifest.root}",
            "missing": [[span.start, span.stop] for span in self.missing],
        }


def _gone() -> Rejection:
    return Rejection(404, "the part file is gone", remedy="Begin again: POST /v1/uploads")


def _replaceable(seen: os.stat_result, name: str) -> None:
    if not stat.S_ISREG(seen.st_mode):
        kind = {stat.S_IFDIR: "a directory", stat.S_IFLNK: "a symbolic link"}.get(stat.S_IFMT(seen.st_mode), "no file")
        raise Rejection(409, f"the target {name!r} is {kind}", remedy="Name another path, or remove it there")


def _of_agent(refused: agent.Refused) -> Rejection:
    fields = refused.fields
    if fields["errno"] == "ENOSPC":
        more = {"need": fields["need"], "free": fields["free"]}
        what = f"the disk has {fields['free']} bytes free, and {fields['need']} are needed"
        return Rejection(507, what, remedy="Make room on the node, or name another root", more=more)
    return Rejection(409, str(fields["text"]), remedy="Begin again: POST /v1/uploads")


class Uploads:
    """The uploads that are known; a server that was restarted finds them again on the disk."""

    def __init__(self, parts: Parts, pool: Executor) -> None:
        self.parts, self._pool = parts, pool
        self._known: OrderedDict[str, Upload] = OrderedDict()

    def __len__(self) -> int:
        return len(self._known)

    def get(self, number: str) -> Upload:
        """Find an upload. Raises Rejection (404)."""
        upload = self._known.get(number)
        if upload is None:
            raise Rejection(404, f"no upload {number!r} is known here", remedy="Begin it, or go on: POST /v1/uploads")
        self._known.move_to_end(number)
        return upload

    def put_into(self, root: Root, names: Sequence[bytes], span: Range) -> None:
        """Mind that bytes of a part file are being written."""
        number = names[-1][: -len(agent.PART)].rpartition(b".")[2]
        upload = self._known.get(text(number))
        if upload is not None and (upload.root.name, upload.part) == (root.name, tuple(names)):
            upload.touched(span)
            if upload.work is not None and upload.work.done():
                upload.told = True  # an answer that nobody fetched is out of date

    def opened(self, upload: Upload) -> Upload:
        """Remember an upload, or find the one that has been remembered."""
        known = self._known.setdefault(upload.id, upload)
        known.settings = upload.settings  # the last word counts
        self._known.move_to_end(upload.id)
        for number in list(self._known)[: max(0, len(self._known) - MOST)]:
            work = self._known[number].work
            if work is None or work.done():
                del self._known[number]
        return known

    def forget(self, upload: Upload) -> None:
        """Let go of an upload."""
        self._known.pop(upload.id, None)

    async def do(self, upload: Upload, doing: str, duty: Callable[[], object]) -> tuple[bool, object]:
        """Do something that may take long, and say whether it is done, with its result.

        Not done after 3 s, it goes on; a repeat joins it, or is told how it ended. Raises what it raised.
        """
        loop = asyncio.get_running_loop()
        end = loop.time() + PATIENCE
        while upload.work is not None and not upload.work.done() and upload.doing != doing:
            if loop.time() >= end:
                return False, None
            await asyncio.wait([upload.work], timeout=end - loop.time())
        if upload.work is None or (upload.work.done() and (upload.told or upload.doing != doing)):
            upload.work, upload.doing = loop.run_in_executor(self._pool, duty), doing
        work, upload.told = upload.work, False
        await asyncio.wait([work], timeout=max(0.0, end - loop.time()))
        if not work.done():
            return False, None
        upload.told = True
        return True, work.result()


def described(fields: object, roots: Mapping[str, Root]) -> tuple[Root, tuple[bytes, ...], Manifest, dict[str, int]]:
    """Read what POST /v1/uploads was given. Raises Rejection: 400, 403, 404."""
    if not isinstance(fields, dict):
        raise Rejection(400, "the body is no JSON object", remedy="See docs/http-api.md")
    if strange := sorted(set(map(str, fields)) - {"root", "path", "size", "digests", "grain", "mode", "mtime_ns"}):
        raise Rejection(400, f"{strange[0]!r} is not known", remedy="See docs/http-api.md")
    name, path, manifest = _words(fields, "root"), _words(fields, "path"), _manifest(fields)
    rest = {}
    if "mode" in fields:
        rest["mode"] = _number(fields, "mode", 0, 0o777)
    if "mtime_ns" in fields:
        rest["mtime_ns"] = _number(fields, "mtime_ns", 0, (1 << 63) - 1)
    if name not in roots:
        raise Rejection(404, f"there is no root {name!r}", remedy="See GET /v1/roots")
    if not roots[name].writable:
        raise Rejection(
            403, f"the root {name!r} is not served for writing", remedy=f"rrmove serve --root {name}=PATH:rw"
        )
    names = segments_in(path)
    if any(map(ours, names)):
        raise Rejection(400, "the path has the name of a part file in it", remedy="Name another one")
    if len(names[-1]) > 255:
        raise Rejection(400, "the name is too long", remedy="A name may have 255 bytes")
    return roots[name], names, manifest, rest


def _manifest(fields: Mapping[str, object]) -> Manifest:
    digests = _words(fields, "digests")
    size = _number(fields, "size", 0, LARGEST)
    grain = _number(fields, "grain", FINEST, COARSEST) if "grain" in fields else grain_for(size)
    count = -(-size // grain)
    try:
        joined = bytes.fromhex(digests)
    except ValueError:
        joined = b""
    if len(digests) != len(joined) * 2 or len(joined) != count * DIGEST:
        raise Rejection(
            400,
            f"`digests` has to be {count} SHA-256 in hex, joined, for {size} bytes in chunks of {grain}",
            remedy=f"split -b {grain} --filter=sha256sum FILE | cut -c-64 | tr -d '\\n'",
        )
    return Manifest(size, grain, joined)


def _words(fields: Mapping[str, object], key: str) -> str:
    value = fields.get(key)
    if not isinstance(value, str):
        raise Rejection(400, f"`{key}` is missing, or no text", remedy="See docs/http-api.md")
    return value


def _number(fields: Mapping[str, object], key: str, least: int, most: int) -> int:
    value = fields.get(key)
    if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= most:
        raise Rejection(400, f"`{key}` is no whole number from {least} to {most}", remedy="See docs/http-api.md")
    return value
