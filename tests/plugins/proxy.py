"""A TCP proxy that does harm: flips bits, stands still, cuts off; and counts how often it did."""

from __future__ import annotations

import contextlib
import socket
import threading
from dataclasses import dataclass, field
from typing import Self

PIECE = 64 << 10


@dataclass
class Proxy:
    """Relay connections to a port of 127.0.0.1; what goes there is harmed, what comes back is not.

    Bytes are counted over all connections. A bit is flipped after every `flip_every` bytes, `flips` times at most,
    in pieces of more than `least`; after `stall_after` bytes nothing goes through any more; a connection is closed
    after `cut_after` of its own.
    """

    port: int = 0
    flip_every: int | None = None
    flips: int = 1 << 30
    least: int = PIECE // 2
    stall_after: int | None = None
    cut_after: int | None = None
    passed: int = 0
    flipped: int = 0
    cut: int = 0
    stalled: int = 0
    connections: int = 0
    open: set[socket.socket] = field(default_factory=set)
    over: threading.Event = field(default_factory=threading.Event)

    def __enter__(self) -> Self:
        self.listener = socket.create_server(("127.0.0.1", 0))
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.over.set()
        self.listener.close()
        for each in [*self.open]:
            with contextlib.suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)

    @property
    def place(self) -> tuple[str, int]:
        """Where it listens."""
        host, port = self.listener.getsockname()
        return host, port

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                near = self.listener.accept()[0]
                try:
                    far = socket.create_connection(("127.0.0.1", self.port), 5)
                except OSError:
                    near.close()
                    continue
                self.connections += 1
                self.open |= {near, far}
                for ends in ((near, far, True), (far, near, False)):
                    threading.Thread(target=self._relay, args=ends, daemon=True).start()

    def _relay(self, source: socket.socket, sink: socket.socket, harm: bool) -> None:  # noqa: FBT001
        own = 0
        with contextlib.suppress(OSError):
            while data := bytearray(source.recv(PIECE)):
                if harm:
                    if self.stall_after is not None and self.passed > self.stall_after:
                        self.stalled += 1
                        self.over.wait()
                        return
                    self._flip(data)
                    own += len(data)
                    if self.cut_after is not None and own > self.cut_after:
                        self.cut += 1
                        break
                sink.sendall(data)
        for end in (source, sink):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
            end.close()  # what was not read makes a reset of it, so that nobody waits for room

    def _flip(self, data: bytearray) -> None:
        before, self.passed = self.passed, self.passed + len(data)
        every = self.flip_every
        # In the middle of a large piece, which is a body's and not a head's
        if every and len(data) > self.least and before // every != self.passed // every and self.flipped < self.flips:
            data[len(data) // 2] ^= 0x10
            self.flipped += 1
