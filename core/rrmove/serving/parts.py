"""Writing into part files: positional, as the bytes come, and never into what has been committed.

Writers of one part share a `Part`. Each write happens under its lock, and only while the part is open, the
writer has not been superseded, the name still leads to the file that is held, and its journal admits servers.
That lock is the file's (`flock`) besides our own: the agent holds it to shut servers out, before it reads a
part back, and to commit. So nobody who was left behind by a dead connection can touch what was verified.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import fcntl
import hashlib
import os
import threading
import weakref
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from rrmove.serving.answers import Rejection
from rrmove.serving.files import SLOWEST, explained
from rrmove.serving.paths import is_part, text
from rrmove.serving.roots import Root, look, open_regular
from rrmove.ssh import agent

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from aiohttp import StreamReader

    from rrmove.manifest import Range

BATCH = 4 << 20  # bytes of one body that may wait for the disk
VECTORS = 1024  # IOV_MAX, on Linux

_OPEN_AGAIN = "Open the upload again (POST /v1/uploads), and send what is missing"


@dataclass(eq=False)
class Part:
    """One part file, by device and inode, for as long as somebody here uses it."""

    lock: threading.Lock = field(default_factory=threading.Lock)
    closed: bool = False
    writers: list[Writer] = field(default_factory=list)

    @contextlib.contextmanager
    def closing(self) -> Iterator[Callable[[], None]]:
        """Keep all writers out, for good those that are there now; open again unless the given call is made."""
        with self.lock:
            self.closed = True
            for writer in self.writers:
                writer.superseded = True
        gone = False

        def for_good() -> None:
            nonlocal gone
            gone = True

        try:
            yield for_good
        finally:
            with self.lock:
                self.closed = gone


class Parts:
    """The part files that are in use, found by what they are and not by what they are called."""

    def __init__(self) -> None:
        self._known: weakref.WeakValueDictionary[tuple[int, int], Part] = weakref.WeakValueDictionary()
        self._lock = threading.Lock()

    def of(self, seen: os.stat_result) -> Part:
        """Give the one Part of a file. While one is held open, its inode number cannot come again."""
        key = (seen.st_dev, seen.st_ino)
        with self._lock:
            part = self._known.get(key)
            if part is None:
                part = self._known[key] = Part()
            return part


class Writer:
    """One PUT at work on a part file; closes what it opened."""

    def __init__(self, parts: Parts, root: Root, names: Sequence[bytes], span: Range, size: int) -> None:
        """Open the part. Raises Rejection: 404 where it is not there, 409 where it is another one."""
        self.span, self.superseded = span, False
        self._name = names[-1]
        self._journal = self._name[: -len(agent.PART)] + agent.JOURNAL.encode()
        self._stack = contextlib.ExitStack()
        if not is_part(self._name):
            raise Rejection(404, f"{text(self._name)!r} is no part file", remedy="PUT into the `part` of an upload")
        with self._stack, explained(f"cannot write to {text(self._name)!r}"):
            self._directory = self._stack.enter_context(root.directory(names[:-1]))
            try:
                self.fd = open_regular(self._directory, self._name, os.O_RDWR)  # flock on NFS wants both
            except FileNotFoundError:
                raise Rejection(404, "the part file is not there", remedy=_OPEN_AGAIN) from None
            self._stack.callback(os.close, self.fd)
            seen = os.fstat(self.fd)
            if seen.st_nlink > 1:
                raise Rejection(409, "the part file has another name as well", remedy="Remove it on the node")
            if seen.st_size != size:
                raise Rejection(409, f"the part file has {seen.st_size} bytes, and not {size}", remedy=_OPEN_AGAIN)
            self.part = parts.of(seen)
            self._identity = (seen.st_dev, seen.st_ino)
            with self.part.lock:
                self._check()
                for other in self.part.writers:
                    if other.span.start < span.stop and span.start < other.span.stop:
                        other.superseded = True
                self.part.writers.append(self)
            self._stack.callback(self._leave)
            self._stack = self._stack.pop_all()

    def close(self) -> None:
        """Let go of the part file."""
        self._stack.close()

    def _leave(self) -> None:
        with self.part.lock:
            self.part.writers.remove(self)

    def _check(self) -> None:
        if self.part.closed or self.superseded:
            raise Rejection(409, "another request has taken over this part file", remedy=_OPEN_AGAIN)
        try:
            seen = look(self._directory, self._name)
        except FileNotFoundError:
            raise Rejection(409, "the part file is gone", remedy=_OPEN_AGAIN) from None
        if (seen.st_dev, seen.st_ino) != self._identity:
            raise Rejection(409, "the part file was replaced", remedy=_OPEN_AGAIN)
        if not self._admitted():
            raise Rejection(409, "the part file is not open to a data server (any more)", remedy=_OPEN_AGAIN)

    def _admitted(self) -> bool:
        """Tell whether the part's journal lets servers write, see the agent's `admit`."""
        try:
            fd = open_regular(self._directory, self._journal)
        except FileNotFoundError:
            return False
        with os.fdopen(fd, "rb") as journal:
            return agent.ADMITTED in journal.read()

    @contextlib.contextmanager
    def _shared(self) -> Iterator[None]:
        """Hold the part's lock beside other writers; who commits waits for us, or we for it."""
        fcntl.flock(self.fd, fcntl.LOCK_SH)
        try:
            yield
        finally:
            fcntl.flock(self.fd, fcntl.LOCK_UN)

    def write(self, blocks: Sequence[bytes], at: int, sha: hashlib._Hash | None) -> None:
        """Write blocks, one after the other. Blocks the thread. Raises Rejection."""
        if sha is not None:
            for block in blocks:
                sha.update(block)
        views = [memoryview(block) for block in blocks]
        with self.part.lock, explained(f"cannot write to {text(self._name)!r}"), self._shared():
            self._check()
            while views:
                wrote = os.pwritev(self.fd, views[:VECTORS], at)
                if not wrote:
                    raise OSError(errno.EIO, "nothing was written")
                at += wrote
                while views and wrote >= len(views[0]):
                    wrote -= len(views.pop(0))
                if wrote:
                    views[0] = views[0][wrote:]


class Inflow:
    """A body on its way to the disk: while a thread writes what has come, more comes in, and is the next batch."""

    def __init__(self, writer: Writer, *, hashed: bool) -> None:
        self.received = 0
        self.sha = hashlib.sha256() if hashed else None
        self._writer, self._at = writer, writer.span.start
        self._waiting: list[bytes] = []
        self._held = 0
        self._pump: asyncio.Task[None] | None = None

    async def take(self, block: bytes) -> None:
        """Take what has come; waits for a disk that cannot keep up, and raises what it says."""
        self.received += len(block)
        self._waiting.append(block)
        self._held += len(block)
        if self._pump is not None and (self._pump.done() or self._held >= BATCH):
            await self._pump
            self._pump = None
        if self._pump is None:
            self._pump = asyncio.create_task(self._write())

    async def settle(self) -> None:
        """Wait until all that was taken is written. Raises what the disk says."""
        if self._pump is not None:
            await self._pump

    async def _write(self) -> None:
        while self._waiting:
            batch, length = self._waiting, self._held
            self._waiting, self._held = [], 0
            await asyncio.to_thread(self._writer.write, batch, self._at, self.sha)
            self._at += length


async def receive(
    body: StreamReader, writer: Writer, digest: bytes | None, patience: float, count: Callable[[int], None]
) -> None:
    """Write a body as it comes, and `count` its bytes; what had come before it broke off is written, too.

    Raises Rejection: 408 after `patience` seconds of silence, or where less than 4 kB/s come; 400 where it
    is shorter or longer than its range; 422 where it is not what its digest says. Raises ConnectionError
    where the client is gone.
    """
    loop, total = asyncio.get_running_loop(), writer.span.length
    begun, inflow = loop.time(), Inflow(writer, hashed=digest is not None)
    try:
        while True:
            allowed = min(patience, patience + inflow.received / SLOWEST - (loop.time() - begun))
            try:
                async with asyncio.timeout(max(0.0, allowed)):
                    block = await body.readany()
            except TimeoutError:
                words = f"the body came too slowly, {inflow.received} of {total} bytes"
                raise Rejection(408, words, remedy=_OPEN_AGAIN) from None
            if not block:
                break
            if inflow.received + len(block) > total:
                raise Rejection(400, "the body is longer than its range", remedy="Mend the Content-Range")
            count(len(block))
            await inflow.take(block)
    finally:
        await inflow.settle()
    if inflow.received < total:
        raise Rejection(400, f"the body ended after {inflow.received} of {total} bytes", remedy="Send the rest")
    if inflow.sha is not None and inflow.sha.digest() != digest:
        raise Rejection(422, "what arrived is not what its Content-Digest says", remedy="Send these bytes again")
