"""A data server in a process of its own, and a client that says exactly what it is told to say."""

from __future__ import annotations

import hashlib
import http.client
import json
import os
import signal
import socket as sockets
import ssl
import subprocess
import sys
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Self

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

GRAIN = 2 << 20
START = 30.0  # s: the machine may be busy


@dataclass
class Answer:
    """What came back."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def what(self) -> str:
        return str(self.json["error"]["what"])


@dataclass
class Served:
    """`rrmove serve` over `where`/data (rw), with its state in `where`/state; ended at the end."""

    where: Path
    options: tuple[str, ...] = ()
    plain: bool = True
    roots: tuple[str, ...] = ()
    port: int = 0
    environ: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.data = self.where / "data"
        self.data.mkdir(exist_ok=True)
        self.log_path = self.where / "log"
        self.state = self.where / "state" / "rrmove"

    def argv(self) -> list[str]:
        roots = self.roots or (f"data={self.data}:rw",)
        words = [word for root in roots for word in ("--root", root)]
        words += ["--plain"] if self.plain else ["--listen", "127.0.0.1"]
        return [sys.executable, "-m", "rrmove", "serve", *words, "--port", str(self.port), "--json", *self.options]

    def __enter__(self) -> Self:
        environ = {**os.environ, "XDG_STATE_HOME": str(self.where / "state"), **self.environ}
        with self.log_path.open("ab") as log:
            self.process = subprocess.Popen(self.argv(), stdout=subprocess.PIPE, stderr=log, env=environ)
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        assert line, self.log_path.read_text()
        self.told = json.loads(line)
        self.port = self.told["port"]
        self.token = (self.state / "serve.token").read_text().strip()
        return self

    def __exit__(self, *_: object) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        assert self.process.stdout is not None
        self.process.stdout.close()
        text = self.log_path.read_text()
        assert "Traceback" not in text, text
        assert '"event": "failed"' not in text, text
        assert '"event": "unexpected"' not in text, text

    def kill(self) -> None:
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()

    def stop(self, timeout: float = 20.0) -> int:
        self.process.terminate()
        return self.process.wait(timeout)

    @property
    def url(self) -> str:
        return f"{self.told['scheme']}://127.0.0.1:{self.port}"

    @property
    def authorization(self) -> dict[str, str]:
        return {"Authorization": f"Bearer {self.token}"}

    def context(self) -> ssl.SSLContext:
        context = ssl.create_default_context()
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        return context

    def connection(self, timeout: float = 30.0) -> http.client.HTTPConnection:
        if self.plain:
            return http.client.HTTPConnection("127.0.0.1", self.port, timeout=timeout)
        return http.client.HTTPSConnection("127.0.0.1", self.port, timeout=timeout, context=self.context())

    def ask(self, method: str, path: str, *, body: Any = None, headers: Mapping[str, str] | None = None) -> Answer:
        """Send one request with the token, on a connection of its own."""
        if isinstance(body, dict):
            body = json.dumps(body).encode()
        connection = self.connection()
        try:
            connection.putrequest(method, path, skip_accept_encoding=True)
            for name, value in {**self.authorization, **(headers or {})}.items():
                connection.putheader(name, value)
            if body is not None:
                connection.putheader("Content-Length", str(len(body)))
            connection.endheaders(body)
            response = connection.getresponse()
            return Answer(response.status, response.headers, response.read())  # type: ignore[arg-type]
        finally:
            connection.close()

    def raw(self, data: bytes, timeout: float = 30.0) -> bytes:
        """Send bytes and give all that comes until the server closes, or is silent."""
        with self.socket(timeout) as sock:
            try:
                sock.sendall(data)
                sock.settimeout(2.0)
                found = b""
                while block := sock.recv(65536):
                    found += block
                    if b"\r\n\r\n" in found and _complete(found):
                        break
            except (ConnectionError, TimeoutError):
                pass
            return found

    def socket(self, timeout: float = 30.0) -> sockets.socket:
        sock = sockets.create_connection(("127.0.0.1", self.port), timeout=timeout)
        return sock if self.plain else self.context().wrap_socket(sock)

    def begin(self, data: bytes, path: str, **more: object) -> Answer:
        """Begin an upload of `data`, or go on with it."""
        fields = {"root": "data", "path": path, "size": len(data), "digests": digests(data), **more}
        return self.ask("POST", "/v1/uploads", body=fields)

    def put(self, upload: Mapping[str, Any], data: bytes, start: int, stop: int, **headers: str) -> Answer:
        return self.ask(
            "PUT",
            upload["put"],
            body=data[start:stop],
            headers={"Content-Range": f"bytes {start}-{stop - 1}/{len(data)}", **headers},
        )

    def send_missing(self, upload: Mapping[str, Any], data: bytes) -> int:
        """Put all that is missing, and say how many bytes that were."""
        for start, stop in upload["missing"]:
            for at in range(start, stop, 4 << 20):
                answer = self.put(upload, data, at, min(stop, at + (4 << 20)))
                assert answer.status == 200, answer.body
        return sum(stop - start for start, stop in upload["missing"])

    def commit(self, upload: Mapping[str, Any]) -> Answer:
        while (answer := self.ask("POST", f"/v1/uploads/{upload['id']}/commit")).status == 202:
            pass
        return answer

    def upload(self, data: bytes, path: str) -> Answer:
        """Upload all of it, from wherever it stands."""
        begun = self.begin(data, path)
        assert begun.status in {200, 201}, begun.body
        self.send_missing(begun.json, data)
        return self.commit(begun.json)

    def half_put(self, upload: Mapping[str, Any], data: bytes, start: int, stop: int, sent: int) -> sockets.socket:
        """Begin a PUT, send so many bytes of it, and leave the connection open."""
        sock = self.socket()
        head = (
            f"PUT {upload['put']} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {self.token}\r\n"
            f"Content-Range: bytes {start}-{stop - 1}/{len(data)}\r\nContent-Length: {stop - start}\r\n\r\n"
        )
        sock.sendall(head.encode() + data[start : start + sent])
        return sock

    def log(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.log_path.read_text().splitlines()]


def _complete(found: bytes) -> bool:
    head, _, body = found.partition(b"\r\n\r\n")
    for line in head.split(b"\r\n"):
        if line.lower().startswith(b"content-length:"):
            return len(body) >= int(line.partition(b":")[2])
    return False


def digests(data: bytes, grain: int = GRAIN) -> str:
    """Give what `digests` of an upload takes."""
    return "".join(hashlib.sha256(data[at : at + grain]).hexdigest() for at in range(0, len(data), grain))
