"""A web server for tests, with the habits and the faults of real ones; also a program, for a host of the lab."""

from __future__ import annotations

import argparse
import base64
import contextlib
import hashlib
import os
import re
import socket
import ssl
import struct
import sys
import threading
import time
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import TYPE_CHECKING, Self, cast

if TYPE_CHECKING:
    from types import TracebackType

PIECE = 64 << 10
OLD = "Mon, 02 Jun 2025 10:00:00 GMT"


@dataclass
class Page:
    """What is served at one path, and how badly."""

    data: bytes = b""
    status: int = 200
    etag: str | None = '"one"'
    modified: str | None = OLD
    ranges: bool = True
    length: str = "known"  # or "chunked", "close"
    moved: str | None = None  # a redirect
    login: str | None = None  # user:password that it wants
    digest: bool = False
    rate: float | None = None  # bytes a second, each answer
    cut: int | None = None  # bytes after which an answer is cut
    cuts: int = 1_000_000  # how many are
    stall: int | None = None  # bytes after which an answer stands still
    next: Page | None = None  # what it is from some request on
    after: int = 0
    seen: int = 0


@dataclass
class Seen:
    """One request as it came."""

    path: str
    range: str | None
    login: str | None
    sent: int = 0


@dataclass
class Web:
    """A server on this machine; a context manager."""

    pages: dict[str, Page] = field(default_factory=dict)
    host: str = "127.0.0.1"
    port: int = 0
    certificate: tuple[Path, Path] | None = None
    seen: list[Seen] = field(default_factory=list)
    cut: int = 0

    def __enter__(self) -> Self:
        """Begin to listen."""
        web = self

        class Answers(_Answers):
            """Bound to this server."""

        Answers.web = web
        self._server = ThreadingHTTPServer((self.host, self.port), Answers)
        self._server.daemon_threads = True
        self._server.handle_error = lambda *_: None  # type: ignore[method-assign]
        if self.certificate is not None:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(*self.certificate)
            self._server.socket = context.wrap_socket(
                self._server.socket, server_side=True, do_handshake_on_connect=False
            )
        self.port = self._server.server_address[1]
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Listen no more."""
        self._server.shutdown()
        self._server.server_close()

    def url(self, path: str, login: str = "") -> str:
        """Give the URL of a path."""
        scheme = "http" if self.certificate is None else "https"
        return f"{scheme}://{login + '@' if login else ''}{self.host}:{self.port}{path}"

    @property
    def sent(self) -> int:
        """Bytes of pages that have left."""
        return sum(each.sent for each in self.seen)


class _Answers(BaseHTTPRequestHandler):
    web: Web
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: object) -> None:
        pass

    def do_GET(self) -> None:
        web = self.web
        path = self.path.partition("?")[0]
        page = web.pages.get(path)
        seen = Seen(self.path, self.headers.get("Range"), self.headers.get("Authorization"))
        web.seen.append(seen)
        if page is None:
            self.send_error(404)
            return
        page.seen += 1
        if page.next is not None and page.seen > page.after:
            page = page.next
        if page.moved is not None:
            self.send_response(page.status if page.status >= 300 else 302)
            self.send_header("Location", page.moved)
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        if page.login is not None:
            wanted = "Basic " + base64.b64encode(page.login.encode()).decode()
            if seen.login != wanted:
                self.send_error(401)
                return
        if page.status >= 400:
            self.send_error(page.status)
            return
        self._page(page, seen)

    def _page(self, page: Page, seen: Seen) -> None:
        size = len(page.data)
        found = re.fullmatch(r"bytes=(\d+)-(\d*)", seen.range or "")
        start, stop, status = 0, size, 200
        fits = self.headers.get("If-Range") in {None, page.etag, page.modified}
        if found and page.ranges and page.length == "known" and fits:
            start, stop, status = int(found[1]), min(size, int(found[2] or size) + 1), 206
            if start >= size:
                self.send_response(416)
                self.send_header("Content-Range", f"bytes */{size}")
                self.send_header("Content-Length", "0")
                self.end_headers()
                return
        self.send_response(status)
        if page.etag is not None:
            self.send_header("ETag", page.etag)
        if page.modified is not None:
            self.send_header("Last-Modified", page.modified)
        if page.digest:
            digest = base64.b64encode(hashlib.sha256(page.data).digest()).decode()
            self.send_header("Repr-Digest", f"sha-256=:{digest}:")
        if status == 206:
            self.send_header("Content-Range", f"bytes {start}-{stop - 1}/{size}")
        if page.length == "known":
            self.send_header("Content-Length", str(stop - start))
        elif page.length == "chunked":
            self.send_header("Transfer-Encoding", "chunked")
        else:
            self.close_connection = True
            self.send_header("Connection", "close")
        self.end_headers()
        self._body(page, seen, memoryview(page.data)[start:stop])

    def _body(self, page: Page, seen: Seen, view: memoryview) -> None:
        begun, sent = time.monotonic(), 0
        while view:
            piece, view = view[:PIECE], view[PIECE:]
            if page.stall is not None and sent + len(piece) > page.stall:
                time.sleep(120)
            if page.cut is not None and sent + len(piece) > page.cut and self.web.cut < page.cuts:
                self.web.cut += 1
                self.wfile.flush()
                if page.length == "known":
                    self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                self.close_connection = True
                with contextlib.suppress(OSError):
                    self.connection.shutdown(socket.SHUT_WR)
                self.connection.close()
                return
            if page.length == "chunked":
                self.wfile.write(b"%x\r\n" % len(piece) + bytes(piece) + b"\r\n")
            else:
                self.wfile.write(piece)
            sent += len(piece)
            seen.sent += len(piece)
            if page.rate is not None:
                time.sleep(max(0.0, begun + sent / page.rate - time.monotonic()))
        if page.length == "chunked":
            self.wfile.write(b"0\r\n\r\n")


def main() -> None:
    """Serve a file's content at /NAME until stdin ends: `python -m tests.web --port 8000 FILE`."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--port", type=int, default=8000)
    parser.add_argument("--rate", type=float)
    parser.add_argument("--log", type=Path)
    parser.add_argument("files", nargs="+", type=Path)
    words = parser.parse_args()
    pages = {f"/{path.name}": Page(path.read_bytes(), rate=words.rate) for path in cast("list[Path]", words.files)}
    with Web(pages, host="0.0.0.0", port=words.port) as web:
        sys.stdout.write("ready\n")
        sys.stdout.flush()
        while os.read(0, 1):
            pass
        if words.log is not None:
            words.log.write_text(str(web.sent))


if __name__ == "__main__":
    main()
