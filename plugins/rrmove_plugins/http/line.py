"""Line: one HTTP connection of the sender, blocking, in a thread of its own: PUT after PUT, answers behind."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import socket
import ssl
import struct
import termios
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from rrmove import Unusable

if TYPE_CHECKING:
    from collections.abc import Mapping

    from rrmove import Range

PATIENCE = 4.0  # s in which neither side moves a byte: then a connection is dead, or the server hangs
LOOK = 1.0  # s between two looks whether what was sent is still on its way
PIECE = 256 << 10  # bytes encrypted at once; larger brought nothing
HEAD = 16 << 10  # bytes that the head of an answer may have


class Stranger(Unusable):
    """Who answers is not who was meant to: another certificate, or no TLS where it belongs."""


class Stalled(OSError):  # noqa: N818  as `Transient` and its like: a kind of end
    """Nothing has moved for too long."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Door:
    """Where to PUT: a resolved address, the path, the fields that every request has, and whose certificate it must be.

    `place` is what getaddrinfo() gives: a family and a socket address. `fingerprint` is the SHA-256 of the DER
    certificate in hex, None for plain HTTP. `once` says that a DELETE ends the server.
    """

    node: str
    family: int
    place: tuple[object, ...]
    path: str
    headers: Mapping[str, str] = field(repr=False)
    fingerprint: str | None
    once: bool

    @property
    def name(self) -> str:
        """The address, for messages and the Host field."""
        host, port, *_ = self.place
        return f"[{host}]:{port}" if ":" in str(host) else f"{host}:{port}"


class Line:
    """An open connection. Raises OSError or ValueError where it is of no more use; `cut()` wakes whoever waits."""

    def __init__(self, door: Door, timeout: float) -> None:
        self._door, self._begun = door, time.monotonic()
        self._ahead = b""
        self._buffer = memoryview(bytearray(PIECE)) if door.fingerprint is not None else memoryview(b"")
        self.carried = 0
        raw = socket.socket(door.family, socket.SOCK_STREAM)
        try:
            raw.settimeout(timeout)
            raw.connect(door.place)
            raw.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self._socket = raw if door.fingerprint is None else self._secured(raw)
        except BaseException:
            raw.close()
            raise
        lines = [f"Host: {door.name}", *(f"{name}: {value}" for name, value in door.headers.items())]
        self._fields = "\r\n".join(lines)

    def _secured(self, raw: socket.socket) -> ssl.SSLSocket:
        """Greet by TLS, and see that it is the pinned certificate before anything is said."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE  # the fingerprint says more than a name
        raw.settimeout(PATIENCE)
        secured = context.wrap_socket(raw)
        shown = hashlib.sha256(secured.getpeercert(binary_form=True) or b"").hexdigest()
        if shown != self._door.fingerprint:
            secured.close()
            raise Stranger(
                f"{self._door.name} shows another certificate than the node's: somebody is in between",
                node=self._door.node,
            )
        return secured

    @property
    def age(self) -> float:
        """Seconds since it was begun."""
        return time.monotonic() - self._begun

    def put(self, fd: int, span: Range, size: int, digest: str | None) -> None:
        """Send a span of a file as a PUT; the answer comes later. `digest` is a Content-Digest field's value."""
        head = (
            f"PUT {self._door.path} HTTP/1.1\r\n{self._fields}\r\nContent-Length: {span.length}\r\n"
            f"Content-Range: bytes {span.start}-{span.stop - 1}/{size}\r\n"
        )
        if digest is not None:
            head += f"Content-Digest: {digest}\r\n"
        self._say(head)
        if isinstance(self._socket, ssl.SSLSocket):
            self._encrypted(fd, span)
        else:
            self._spliced(fd, span)
        self.carried += span.length

    def delete(self) -> int:
        """Say that all is done; gives the status of the answer."""
        self._say(f"DELETE {self._door.path} HTTP/1.1\r\n{self._fields}\r\n")
        return self.answer()[0]

    def answer(self) -> tuple[int, str]:
        """Read the next answer: its status, and the first words of its body."""
        quiet, queued = 0.0, -1
        while b"\r\n\r\n" not in self._ahead:
            try:
                self._more()
            except (BlockingIOError, TimeoutError):
                left = self._queued()
                quiet, queued = (quiet + LOOK if left == queued else 0.0), left
                if quiet >= PATIENCE:
                    raise Stalled(f"nothing was heard for {PATIENCE:g} s") from None
        head, _, self._ahead = self._ahead.partition(b"\r\n\r\n")
        first, *lines = head.decode("latin-1").split("\r\n")
        version, status, *_ = first.split(" ")
        if not version.startswith("HTTP/1."):
            raise ValueError("it does not speak HTTP")
        fields = {line.partition(":")[0].lower(): line.partition(":")[2].strip() for line in lines}
        length = 0 if status in {"204", "304"} else int(fields.get("content-length", "-1"))
        if not 0 <= length <= HEAD:
            raise ValueError(f"its answer to a PUT has a body of {length} bytes")
        while len(self._ahead) < length:
            self._more()
        body, self._ahead = self._ahead[:length], self._ahead[length:]
        return int(status), body.decode("utf-8", "replace")[:200]

    def cut(self) -> None:
        """End the connection from any thread; a repeat does nothing."""
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """Release it, in the thread that uses it."""
        self._socket.close()

    def _say(self, head: str) -> None:
        self._wait(PATIENCE)
        self._socket.sendall(f"{head}\r\n".encode("latin-1"))

    def _spliced(self, fd: int, span: Range) -> None:
        at, queued = span.start, -1
        while at < span.stop:
            try:
                sent = os.sendfile(self._socket.fileno(), fd, at, span.stop - at)
            except BlockingIOError as error:
                left = self._queued()
                if left == queued:
                    raise Stalled(f"nothing was taken for {PATIENCE:g} s") from error
                queued = left  # a slow line: it moves, and there is no room yet
                continue
            if not sent:
                raise ValueError("the source has become shorter")
            at += sent

    def _encrypted(self, fd: int, span: Range) -> None:
        at = span.start
        while at < span.stop:
            got = os.preadv(fd, [self._buffer[: min(PIECE, span.stop - at)]], at)
            if not got:
                raise ValueError("the source has become shorter")
            self._socket.sendall(self._buffer[:got])
            at += got

    def _more(self) -> None:
        self._wait(LOOK)
        got = self._socket.recv(HEAD)
        if not got:
            raise ConnectionResetError("the connection was closed")
        self._ahead += got
        if len(self._ahead) > 2 * HEAD:
            raise ValueError("its answer does not end")

    def _wait(self, seconds: float) -> None:
        """Let the next calls wait so long: the kernel keeps the time for plain sockets, which sendfile needs."""
        if isinstance(self._socket, ssl.SSLSocket):
            self._socket.settimeout(seconds)
            return
        self._socket.settimeout(None)
        for option in (socket.SO_RCVTIMEO, socket.SO_SNDTIMEO):
            self._socket.setsockopt(socket.SOL_SOCKET, option, struct.pack("ll", int(seconds), 0))

    def _queued(self) -> int:
        """Bytes that were sent and that the other side's kernel has not acknowledged."""
        return int(struct.unpack("i", fcntl.ioctl(self._socket.fileno(), termios.TIOCOUTQ, b"\0" * 4))[0])


__all__ = ["Door", "Line", "Stalled", "Stranger"]
