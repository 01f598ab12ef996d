"""From a request to its answer: the token first, then the path, then who serves it."""

from __future__ import annotations

import asyncio
import json
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING

from aiohttp import web

from rrmove.serving import files, ranges, uploads
from rrmove.serving.answers import AGAIN, Rejection, as_json, refusal
from rrmove.serving.parts import Parts, Writer, receive
from rrmove.serving.paths import segments_of

if TYPE_CHECKING:
    from collections.abc import Sequence
    from concurrent.futures import Executor

    from rrmove.serving.digests import Digests
    from rrmove.serving.log import Log
    from rrmove.serving.metrics import Metrics
    from rrmove.serving.private import Token
    from rrmove.serving.roots import Root

MOST_FIELDS = 8 << 20  # bytes of JSON: 65536 digests in hex take 4 MiB
METHODS = ("GET", "HEAD", "PUT", "POST", "DELETE")


@dataclass(kw_only=True)
class Application:
    """What the server does; one for all connections. `most_body` is in bytes, `patience` in seconds."""

    roots: Sequence[Root]
    token: Token
    digests: Digests
    pool: Executor
    log: Log
    metrics: Metrics
    version: str
    most_body: int
    patience: float

    def __post_init__(self) -> None:
        self._roots = {root.name: root for root in self.roots}
        self._node = os.uname().nodename
        self._parts = Parts()
        self._uploads = uploads.Uploads(self._parts, self.pool)
        self._reader = files.Reader(self.digests, self.metrics.sent.inc, self.patience)

    def garbled(self, status: int, what: str) -> web.Response:
        """Answer what was no HTTP request."""
        self.log.say("garbled", status=status, error=what)
        if status >= 500:
            return refusal(Rejection(status, "the server failed", remedy="Look at its log"), node=self._node, tried="")
        words = "the request is no HTTP/1.1, or its headers are too large"
        return refusal(Rejection(400, words, remedy="See docs/http-api.md"), node=self._node, tried="")

    async def __call__(self, request: web.BaseRequest) -> web.StreamResponse:
        """Answer one request, log and count it. Raises ConnectionError where nobody waits for the answer."""
        loop = asyncio.get_running_loop()
        began, path = loop.time(), request.raw_path.partition("?")[0]
        method = request.method if request.method in METHODS else "OTHER"
        error: str | None = None
        status = 0
        try:
            try:
                response = await self._answer(request)
            except Rejection as rejection:
                error = rejection.what
                response = refusal(rejection, node=self._node, tried=f"{method} {path}")
                if not request.content.is_eof():
                    response.force_close()
            except (web.RequestPayloadError, asyncio.IncompleteReadError) as broken:
                raise ConnectionResetError(str(broken) or "the body broke off") from broken
            except (ConnectionError, asyncio.CancelledError):
                raise
            except Exception as failure:  # noqa: BLE001 - the last frame before the client: it gets a 500, the log the rest
                error = f"{type(failure).__name__}: {failure}"
                self.log.say("failed", method=method, path=path, error=error, trace=_trace(failure))
                response = self.garbled(500, error)
                response.force_close()
            status = response.status
            response.headers["Server"] = "rrmove"
        except (ConnectionError, asyncio.CancelledError) as gone:
            error = str(gone) or type(gone).__name__
            self.metrics.cut.inc()
            raise
        finally:
            seconds = loop.time() - began
            self.metrics.requests.labels(method, str(status)).inc()
            self.metrics.seconds.labels(method).observe(seconds)
            peer = request.transport.get_extra_info("peername") if request.transport else None
            self.log.say(
                "request",
                peer=f"{peer[0]}:{peer[1]}" if peer else None,
                method=method,
                path=path,
                status=status,
                seconds=round(seconds, 4),
                range=request.headers.get("Range") or request.headers.get("Content-Range"),
                error=error,
            )
        return response

    async def _answer(self, request: web.BaseRequest) -> web.StreamResponse:
        given = request.headers.getall("Authorization", [])
        if not self.token.opens(given[0] if len(given) == 1 else None):
            self.metrics.denied.inc()
            raise Rejection(
                401,
                "the token is missing or wrong",
                remedy="Send `Authorization: Bearer TOKEN`; the server's state file names the token file",
                headers={"WWW-Authenticate": 'Bearer realm="rrmove"', "Connection": "close"},
            )
        names = segments_of(request.raw_path)
        match names:
            case (b"healthz",):
                return await self._health(_allowed(request, "GET"))
            case (b"metrics",):
                _allowed(request, "GET")
                self.metrics.uploads.set(len(self._uploads))
                return web.Response(body=self.metrics.text(), headers={"Content-Type": "text/plain; version=0.0.4"})
            case (b"v1", *rest):
                return await self._resource(request, rest)
        raise _nothing()

    async def _resource(self, request: web.BaseRequest, names: list[bytes]) -> web.StreamResponse:
        match names:
            case (b"roots",):
                _allowed(request, "GET")
                found = self._roots.values()
                return as_json([{"name": root.name, "path": root.path, "access": root.access} for root in found])
            case (b"files", name, *rest) if rest:
                return await self._file(_allowed(request, "GET", "HEAD"), self._root(name), rest)
            case (b"uploads",):
                return await self._open(_allowed(request, "POST"))
            case (b"uploads", number, *rest):
                return await self._upload(request, number.decode("ascii", "replace"), rest)
            case (b"parts", name, *rest) if rest and rest[-1]:
                return await self._put(_allowed(request, "PUT"), self._root(name), rest)
        raise _nothing()

    async def _file(self, request: web.BaseRequest, root: Root, names: list[bytes]) -> web.StreamResponse:
        if not root.readable:
            raise Rejection(403, f"the root {root.name!r} is not served for reading", remedy="See GET /v1/roots")
        if names[-1]:
            return await self._reader.send(request, root, names)
        compute = _allowed(request, "GET").query.getall("digest", [])
        if compute not in ([], ["1"]):
            raise Rejection(400, "this digest is not known", remedy="Ask for ?digest=1, or for none")
        return await self._reader.listing(root, names[:-1], compute=bool(compute))

    def _root(self, name: bytes) -> Root:
        root = self._roots.get(name.decode("ascii", "replace"))
        if root is None:
            raise Rejection(404, "there is no such root", remedy="See GET /v1/roots")
        return root

    async def _health(self, _: web.BaseRequest) -> web.Response:
        found = await asyncio.to_thread(lambda: [_healthy(root) for root in self._roots.values()])
        well = all(root["ok"] for root in found)
        fields = {"ok": well, "version": self.version, "roots": found}
        return as_json(fields, status=200 if well else 503)

    async def _open(self, request: web.BaseRequest) -> web.Response:
        fields = await self._fields(request)
        root, names, manifest, rest = await asyncio.to_thread(uploads.described, fields, self._roots)
        upload = self._uploads.opened(uploads.Upload(self._parts, root, names, manifest, rest))
        try:
            done, fresh = await self._uploads.do(upload, "opening", upload.begin)
        except Rejection:
            self._uploads.forget(upload)
            raise
        if not done:
            return as_json(upload.fields(), status=202, headers=AGAIN)
        return as_json(upload.fields(), status=201 if fresh else 200)

    async def _upload(self, request: web.BaseRequest, number: str, rest: list[bytes]) -> web.Response:
        match rest:
            case []:
                method = _allowed(request, "GET", "DELETE").method
                upload = self._uploads.get(number)
                if method == "GET":
                    return as_json(upload.fields())
                done, _ = await self._uploads.do(upload, "removing", upload.drop)
                if not done:
                    raise Rejection(409, f"it is {upload.doing} just now", remedy="Try again", headers=AGAIN)
                self._uploads.forget(upload)
                return web.Response(status=204)
            case (b"survey",):
                _allowed(request, "POST")
                upload = self._uploads.get(number)
                done, _ = await self._uploads.do(upload, "surveying", upload.survey)
            case (b"commit",):
                _allowed(request, "POST")
                upload = self._uploads.get(number)
                before = upload.committed
                done, _ = await self._uploads.do(upload, "verifying", upload.commit)
                self.metrics.committed.inc(int(upload.committed and not before))
            case _:
                raise _nothing()
        return as_json(upload.fields(), status=200 if done else 202, headers=None if done else AGAIN)

    async def _put(self, request: web.BaseRequest, root: Root, names: Sequence[bytes]) -> web.Response:
        if not root.writable:
            raise Rejection(403, f"the root {root.name!r} is not served for writing", remedy="See GET /v1/roots")
        span, size = ranges.put_range(request.headers.get("Content-Range"))
        digest = ranges.sha256_in(request.headers.get("Content-Digest"))
        if span.length > self.most_body:
            raise _too_large(self.most_body)
        length = request.content_length
        if length is not None and length != span.length:
            raise Rejection(
                400, f"the body has {length} bytes and its range {span.length}", remedy="Mend the Content-Range"
            )
        await self._expects_body(request)
        writer = await asyncio.to_thread(Writer, self._parts, root, names, span, size)
        try:
            self._uploads.put_into(root, names, span)
            await receive(request.content, writer, digest, self.patience, self.metrics.received.inc)
        finally:
            self._uploads.put_into(root, names, span)
            writer.close()
        return as_json({"start": span.start, "stop": span.stop})

    async def _fields(self, request: web.BaseRequest) -> object:
        if (request.content_length or 0) > MOST_FIELDS:
            raise _too_large(MOST_FIELDS)
        await self._expects_body(request)
        data = bytearray()
        try:
            async with asyncio.timeout(self.patience + MOST_FIELDS / files.SLOWEST / 100):
                while block := await request.content.readany():
                    data += block
                    if len(data) > MOST_FIELDS:
                        raise _too_large(MOST_FIELDS)
        except TimeoutError:
            raise Rejection(408, "the body came too slowly", remedy="Send it again") from None
        try:
            return await asyncio.to_thread(json.loads, bytes(data))
        except (ValueError, RecursionError):
            raise Rejection(400, "the body is no JSON", remedy="See docs/http-api.md") from None

    async def _expects_body(self, request: web.BaseRequest) -> None:
        """Let a client send its body that waits to be told so."""
        if request.headers.get("Content-Encoding", "identity").lower() != "identity":
            raise Rejection(415, "an encoded body is not taken", remedy="Send it without Content-Encoding")
        if (expects := request.headers.get("Expect")) is not None:
            if expects.lower() != "100-continue":
                raise Rejection(417, "this expectation cannot be met", remedy="Leave `Expect` out")
            await request.writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
            request.writer.output_size = 0


def _allowed(request: web.BaseRequest, *methods: str) -> web.BaseRequest:
    if request.method not in methods:
        raise _not_done(methods)
    return request


def _nothing() -> Rejection:
    return Rejection(404, "there is nothing here", remedy="See docs/http-api.md, or `rrmove serve --openapi`")


def _not_done(methods: Sequence[str]) -> Rejection:
    allowed = ", ".join(methods)
    return Rejection(405, "this method is not for this path", remedy=f"Use {allowed}", headers={"Allow": allowed})


def _too_large(most: int) -> Rejection:
    return Rejection(413, f"the body is larger than {most} bytes", remedy="Send it in several pieces")


def _healthy(root: Root) -> dict[str, object]:
    try:
        space, links = os.statvfs(f"/proc/self/fd/{root.fd}/."), os.fstat(root.fd).st_nlink
    except OSError:
        space, links = None, 0
    if space is None or not links:  # gone, or removed
        return {"name": root.name, "ok": False, "free": None}
    return {"name": root.name, "ok": True, "free": space.f_bavail * space.f_frsize}


def _trace(failure: BaseException) -> str:
    import traceback

    return "".join(traceback.format_exception(failure))
