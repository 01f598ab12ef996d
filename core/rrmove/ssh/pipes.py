"""PipeChannel: a command on the node behind the pipes of a local SSH client, whichever client that is."""

from __future__ import annotations

import abc
import fcntl
import os
import threading
from typing import TYPE_CHECKING

from rrmove.errors import Fatal

if TYPE_CHECKING:
    from rrmove.errors import RRMoveError

clients: set[int] = set()  # the process ids of SSH clients that channels of this process have
PIPE_SIZE = 1 << 20  # the largest that Linux gives without privilege; with 64 KiB rates fell by half


def running() -> frozenset[int]:
    """Give the process ids of all SSH clients that channels of this process have."""
    return frozenset(clients)


class PipeChannel(abc.ABC):
    """The part that does not depend on the client; see `rrmove.ssh.channel.Channel`.

    `into` and `out_of` are descriptors of the command's input and output; they belong to the channel from now on.
    """

    rtt: float | None = None  # s of TCP's handshake, as soon as the client has told it

    def __init__(self, into: int, out_of: int) -> None:
        self._in = into
        self._killing = threading.Lock()
        self._killed = False
        for fd in (into, out_of):
            try:
                fcntl.fcntl(fd, fcntl.F_SETPIPE_SZ, PIPE_SIZE)
            except (OSError, AttributeError):  # the user's pipe quota is used up: slower, not wrong
                continue
        self._reader = os.fdopen(out_of, "rb", buffering=64 * 1024)

    def read(self, size: int) -> bytes:
        """Read exactly `size` bytes, fewer at the end of the stream."""
        return self._reader.read(size)

    def write(self, data: bytes | bytearray | memoryview) -> None:
        """Write all of `data`; blocks while the pipe is full."""
        view = memoryview(data)
        while view:
            view = view[os.write(self._in, view) :]

    def write_file(self, fd: int, offset: int, length: int) -> None:
        """Let the kernel move a span of a file into the pipe."""
        done = 0
        while done < length:
            moved = os.splice(fd, self._in, length - done, offset_src=offset + done)
            if not moved:
                raise Fatal("the source file has become shorter while it was sent")
            done += moved

    def kill(self) -> None:
        """End the client and all that belongs to it; a repeat does nothing."""
        with self._killing:
            if self._killed:
                return
            self._killed = True
        self._end()

    def close(self) -> None:
        """Release the descriptors once no thread uses them any more."""
        self.kill()
        self._reader.close()
        os.close(self._in)

    @abc.abstractmethod
    def cause(self) -> RRMoveError:
        """Say why the stream ended."""

    @abc.abstractmethod
    def _end(self) -> None:
        """End the client, so that whoever reads or writes finds the end of the stream; called once."""


__all__ = ["PipeChannel", "clients", "running"]
