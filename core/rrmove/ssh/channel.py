"""The Channel protocol: a command running on the node, its input and output as blocking pipes.

Blocking pipes in threads moved a quarter more than asyncio's streams when it was measured, so
lanes read and write here from threads of their own.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from rrmove.errors import RRMoveError


class Channel(Protocol):
    """One connection that runs one command. All calls block; `kill` may come from any thread."""

    def read(self, size: int) -> bytes:
        """Read exactly `size` bytes, fewer at the end of the stream."""
        ...

    def write(self, data: bytes | bytearray | memoryview) -> None:
        """Write all of `data`. Raises OSError when the connection is gone."""
        ...

    def write_file(self, fd: int, offset: int, length: int) -> None:
        """Write a span of an open file. Raises Fatal when the file is shorter than that."""
        ...

    def kill(self) -> None:
        """End the connection and everything that belongs to it; a repeat does nothing."""
        ...

    def close(self) -> None:
        """Release what it holds, once no thread uses it any more."""
        ...

    def cause(self) -> RRMoveError:
        """Say why the stream ended; waits a moment for the connection to say so itself."""
        ...


Open = Callable[[str], Channel]  # the command to run on the node -> its channel
