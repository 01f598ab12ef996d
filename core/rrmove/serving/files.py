"""Reading from a root: a file or a range of it, by sendfile where the connection is plain; listings."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import stat
import sys
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from email.utils import formatdate
from http import HTTPStatus
from typing import TYPE_CHECKING, Any

from aiohttp import web

from rrmove.manifest import Range
from rrmove.serving import ranges
from rrmove.serving.answers import AGAIN, Rejection, as_json, of_system
from rrmove.serving.digests import PATIENCE, Digests, settled, unchanged
from rrmove.serving.paths import ours, quoted, text
from rrmove.serving.roots import Root, look, open_regular

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

PIECE = 1 << 20  # bytes read or sent at a time; larger pieces were not faster (TLS, and sendfile alike)
LAST = 64 << 10  # bytes kept back until it is sure that the file is still the one that was asked for
SLOWEST = 4096  # bytes/s; chosen: a tenth of the slowest link that the field notes have

Put = Callable[[int, int], Awaitable[int]]  # sends bytes of the file at an offset, and says how many

_KINDS = {stat.S_IFREG: "file", stat.S_IFDIR: "directory", stat.S_IFLNK: "symlink"}


def etag(seen: os.stat_result) -> str:
    """Name a file's content; weak while a further change might not show in its times."""
    mark = f'"{seen.st_ino:x}-{seen.st_size:x}-{seen.st_mtime_ns:x}-{seen.st_ctime_ns:x}"'
    return mark if settled(seen) else f"W/{mark}"


@contextlib.contextmanager
def explained(doing: str) -> Iterator[None]:
    """Turn what the operating system says into an answer."""
    try:
        yield
    except OSError as error:
        raise of_system(error, doing) from error


def _opened(root: Root, names: Sequence[bytes]) -> tuple[int, os.stat_result]:
    if any(map(ours, names)):
        raise Rejection(404, "part files are not sent", remedy="Ask for the upload instead: GET /v1/uploads/ID")
    with explained(f"cannot read {text(names[-1])!r}"):
        try:
            with root.directory(names[:-1]) as directory:
                fd = open_regular(directory, names[-1])
        except IsADirectoryError:
            remedy = "With a slash at its end it is listed"
            raise Rejection(404, f"{text(names[-1])!r} is a directory", remedy=remedy) from None
        return fd, os.fstat(fd)


@dataclass(frozen=True, slots=True)
class Reader:
    """What reading takes: known digests, who counts the bytes, and how many seconds a client may idle."""

    digests: Digests
    count: Callable[[int], None]
    patience: float

    async def send(self, request: web.BaseRequest, root: Root, names: Sequence[bytes]) -> web.StreamResponse:
        """Answer GET and HEAD for a file. Raises Rejection, and ConnectionError where the client is gone.

        A client that takes less than 4 kB/s is cut off, and so is an answer whose file was changed meanwhile.
        """
        fd, seen = await asyncio.to_thread(_opened, root, names)
        try:
            tag = etag(seen)
            headers = {
                "ETag": tag,
                "Accept-Ranges": "bytes",
                "Last-Modified": formatdate(seen.st_mtime, usegmt=True),
                "Cache-Control": "no-cache",
                "Content-Type": "application/octet-stream",
                "X-Content-Type-Options": "nosniff",
                "Server": "rrmove",
            }
            if _not_modified(request, tag, seen):
                return web.Response(status=HTTPStatus.NOT_MODIFIED, headers=headers)
            digest = self.digests.known(seen)
            if digest is None and ranges.wants_sha256(request.headers):
                digest = await self.digests.of(fd, seen)
            if digest is not None:
                headers["Repr-Digest"] = ranges.digest_field(digest)
            part = None
            if request.method == "GET" and _range_counts(request, tag):
                part = ranges.wanted_range(request.headers.get("Range"), seen.st_size)
            whole = part or Range(0, seen.st_size)
            response = web.StreamResponse(status=HTTPStatus.PARTIAL_CONTENT if part else HTTPStatus.OK, headers=headers)
            if part:
                response.headers["Content-Range"] = f"bytes {part.start}-{part.stop - 1}/{seen.st_size}"
            response.content_length = whole.length
            await response.prepare(request)
            if request.method == "GET":
                await self._send_bytes(request, _way_out(request, response, fd), (fd, seen), whole)
            await response.write_eof()
            return response
        finally:
            os.close(fd)

    async def _send_bytes(
        self, request: web.BaseRequest, put: Put, file: tuple[int, os.stat_result], span: Range
    ) -> None:
        at, rest = span.start, max(span.start, span.stop - LAST)
        while at < span.stop:
            if at == rest and not unchanged(file[1], os.fstat(file[0])):
                raise _cut(request, "the file was changed while it was sent")
            stop = min(at + PIECE, rest if at < rest else span.stop)
            sent = await self._progressing(request, asyncio.ensure_future(put(at, stop - at)))
            self.count(sent)
            if sent < stop - at:
                raise _cut(request, "the file became shorter while it was sent")
            at = stop

    async def _progressing(self, request: web.BaseRequest, sending: asyncio.Future[int]) -> int:
        """Wait for bytes to be sent, as long as the client acknowledges some."""
        before = None
        try:
            while not (await asyncio.wait([sending], timeout=self.patience))[0]:
                now = _acknowledged(request)
                if before is not None and now - before < SLOWEST * self.patience:
                    break
                before = now
        finally:
            # It has to be over before its connection is, or asyncio takes the descriptor's next owner for it.
            if not sending.done():
                sending.cancel()
                await asyncio.wait([sending])
        if sending.cancelled():
            raise _cut(request, "the client takes too little")
        return sending.result()

    async def listing(self, root: Root, names: Sequence[bytes], *, compute: bool) -> web.Response:
        """Answer with what is in a directory, sorted; 202 where digests are still being computed. Raises Rejection."""
        entries = await asyncio.to_thread(_entries, root, names)
        loop = asyncio.get_running_loop()
        end, whole, found = loop.time() + PATIENCE, True, []
        for name, seen in entries:
            kind = _KINDS.get(stat.S_IFMT(seen.st_mode), "other")
            digest = self.digests.known(seen) if kind == "file" else None
            if compute and kind == "file" and digest is None:
                digest = await self._digest_of(root, (*names, name), end - loop.time())
                whole = whole and (digest is not None or loop.time() < end)
            found.append(
                {
                    "name": text(name),
                    "name_quoted": quoted(name),
                    "kind": kind,
                    "size": seen.st_size if kind == "file" else None,
                    "mtime_ns": seen.st_mtime_ns,
                    "sha256": digest,
                }
            )
        return as_json({"entries": found}, status=200 if whole else 202, headers=None if whole else AGAIN)

    async def _digest_of(self, root: Root, names: Sequence[bytes], patience: float) -> str | None:
        if patience <= 0:
            return None
        try:
            fd, seen = await asyncio.to_thread(_opened, root, names)
        except Rejection:
            return None  # removed since, or not ours to read: it is listed without
        try:
            return await self.digests.of(fd, seen, patience=patience)
        finally:
            os.close(fd)


def _not_modified(request: web.BaseRequest, tag: str, seen: os.stat_result) -> bool:
    """Look at the conditions in the order of RFC 9110, 13.2.2. Raises Rejection (412)."""
    headers, changed = request.headers, int(seen.st_mtime)
    if (header := headers.get("If-Match")) is not None:
        failed = not ranges.matches(header, tag, weakly=False)
    else:
        failed = (date := request.if_unmodified_since) is not None and changed > date.timestamp()
    if failed:
        raise Rejection(412, "the file is not the one that the condition names", remedy="Ask for it again")
    if (header := headers.get("If-None-Match")) is not None:
        return ranges.matches(header, tag, weakly=True)
    return (date := request.if_modified_since) is not None and changed <= date.timestamp()


def _range_counts(request: web.BaseRequest, tag: str) -> bool:
    """Obey If-Range. A date never matches: anyone may set a file's, and what was resumed would be a mixture."""
    header = request.headers.get("If-Range")
    return header is None or ranges.matches(header, tag, weakly=False)


def _acknowledged(request: web.BaseRequest) -> int:
    """Ask the kernel how many bytes the client's has taken. Raises ConnectionError where it is gone."""
    connection: Any = request.transport and request.transport.get_extra_info("socket")
    try:
        told = connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 128)
    except (OSError, AttributeError) as error:
        raise ConnectionResetError("the client is gone") from error
    return int.from_bytes(told[120:128], sys.byteorder)  # tcpi_bytes_acked, since Linux 4.1


def _way_out(request: web.BaseRequest, response: web.StreamResponse, fd: int) -> Put:
    """By sendfile where the connection is plain; through us where it has to be encrypted."""
    if request.transport is None or request.transport.get_extra_info("sslcontext") is not None:
        return _by_writing(response, fd)
    return _by_sendfile(request, fd)


def _by_sendfile(request: web.BaseRequest, fd: int) -> Put:
    file = open(fd, "rb", buffering=0, closefd=False)  # noqa: SIM115 - the descriptor is not ours to close
    loop = asyncio.get_running_loop()

    async def put(at: int, length: int) -> int:
        if request.transport is None:
            raise ConnectionResetError("the client is gone")
        return await loop.sendfile(request.transport, file, at, length)

    return put


def _by_writing(response: web.StreamResponse, fd: int) -> Put:
    async def put(at: int, length: int) -> int:
        data = await asyncio.to_thread(os.pread, fd, length, at)
        await response.write(data)
        return len(data)

    return put


def _cut(request: web.BaseRequest, why: str) -> ConnectionError:
    """End a connection so that nobody takes what was sent for the whole."""
    if request.transport is not None:
        request.transport.abort()
    return ConnectionAbortedError(why)


def _entries(root: Root, names: Sequence[bytes]) -> list[tuple[bytes, os.stat_result]]:
    found = []
    with explained("cannot list the directory"), root.directory(names) as directory:
        reading = os.open(".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=directory)
        try:
            for name in sorted(map(os.fsencode, os.listdir(reading))):  # noqa: PTH208 - a descriptor
                if not ours(name):
                    with contextlib.suppress(FileNotFoundError):  # removed since
                        found.append((name, look(directory, name)))
        finally:
            os.close(reading)
    return found
