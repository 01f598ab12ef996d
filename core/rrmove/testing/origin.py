"""The origin: a web server inside the process, where the URLs of the suite lead; with the node's faults on its way."""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import socket
import threading
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from random import Random
from typing import TYPE_CHECKING, Self
from urllib.parse import quote, unquote_to_bytes

from rrmove.testing.faults import Faults, Pace, Relay, draw

if TYPE_CHECKING:
    from pathlib import Path

FAULTLESS = Faults()


class Origin(ThreadingHTTPServer):
    """Serve the files of a directory over HTTP on 127.0.0.1, as they are at each request: ranges, and an ETag.

    A context manager. Set `faults` at any time: connections that begin afterwards have the new ones, as
    far as they are the link's. `resets` counts what they have cut.
    """

    daemon_threads = True

    def __init__(self, folder: Path) -> None:
        super().__init__(("127.0.0.1", 0), _Answers)
        self.folder, self.resets = folder, 0
        self._faults, self._paces, self._dice = FAULTLESS, (Pace(None), Pace(None)), Random(7)  # noqa: S311  repeatable
        self._stopped, self._stop = os.pipe()  # the first becomes readable once the second is closed
        self._relays: list[threading.Thread] = []

    def __enter__(self) -> Self:
        """Begin to serve."""
        self._serving = threading.Thread(target=self.serve_forever, args=(0.02,), daemon=True)
        self._serving.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Serve no more, and cut what is open."""
        self.shutdown()
        os.close(self._stop)
        self.server_close()
        for thread in (self._serving, *self._relays):
            thread.join()
        os.close(self._stopped)

    @property
    def faults(self) -> Faults:
        """The faults that the next connection will have."""
        return self._faults

    @faults.setter
    def faults(self, faults: Faults) -> None:
        self._faults, self._paces = faults, (Pace(faults.rate), Pace(faults.rate))

    def url(self, path: Path) -> str:
        """Give the URL of a file of the directory."""
        return f"http://127.0.0.1:{self.server_address[1]}/{quote(os.fsencode(path.name))}"

    def get_request(self) -> tuple[socket.socket, object]:
        """Accept a connection, and put what goes wrong with it in between."""
        client, peer = self.socket.accept()
        ours, theirs = socket.socketpair()
        ages = draw(self.faults.reset_after_seconds, self._dice), draw(self.faults.silent_after_seconds, self._dice)
        relay = Relay(
            client, theirs, faults=self.faults, ages=ages, paces=self._paces,
            carried=lambda _: None, cut=self._cut, downwards=True,
        )  # fmt: skip
        thread = threading.Thread(target=partial(relay.run, self._stopped), name="relay", daemon=True)
        thread.start()
        self._relays.append(thread)
        return ours, peer

    def handle_error(self, *_: object) -> None:
        """Say nothing of connections that were cut."""

    def _cut(self) -> None:
        self.resets += 1


class _Answers(BaseHTTPRequestHandler):
    """One connection to the origin."""

    server: Origin
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: object) -> None:
        """Say nothing."""

    def do_GET(self) -> None:
        """Answer with the file or a range of it; what is sent is of one version."""
        name = os.fsdecode(unquote_to_bytes(self.path.partition("?")[0].lstrip("/")))
        try:
            data = (self.server.folder / name).read_bytes()
        except OSError:
            self.send_error(404)
            return
        etag = f'"{hashlib.sha256(data).hexdigest()[:16]}"'
        start, stop, size = 0, len(data), len(data)
        asked = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range") or "")
        if asked and self.headers.get("If-Range") in {None, etag}:
            start, stop = int(asked[1]), min(size, int(asked[2] or size) + 1)
            self.send_response(206 if start < size else 416)
            self.send_header("Content-Range", f"bytes {start}-{stop - 1}/{size}" if start < size else f"bytes */{size}")
        else:
            self.send_response(200)
        self.send_header("ETag", etag)
        self.send_header("Accept-Ranges", "bytes")
        self.send_header("Content-Length", str(max(0, stop - start)))
        self.end_headers()
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            self.wfile.write(memoryview(data)[start:stop])
            return
        self.close_connection = True
