"""The armour: a channel whose bytes are all text on the way, for links that are not 8-bit clean.

Both ends send lines of `~` and base64; what else comes, a login's greeting for example, is no line
of ours. The far end is put there by the first line that is sent, which is text already; what runs
inside of the armour notices nothing of it.
"""

from __future__ import annotations

import binascii
import functools
import os
from importlib import resources
from typing import TYPE_CHECKING

from rrmove.errors import Fatal, Transient
from rrmove.ssh.boot import one_line

if TYPE_CHECKING:
    from rrmove.errors import RRMoveError
    from rrmove.ssh.channel import Channel, Open

OVERHEAD = 4002 / 3000  # bytes on the wire for each one
LINE = 3000  # bytes of a line before they are encoded: 4000 characters pass through what keeps lines to 4096
BATCH = 16 * LINE  # bytes encoded at a time
LONGEST = 64 * 1024  # bytes without a line feed; that is nothing we sent


@functools.cache
def agent_armour() -> bytes:
    """Give the line that puts the far end before the agent."""
    return one_line("armour_agent.py")


@functools.cache
def floor_armour() -> bytes:
    """Give the line that puts the far end before the shell floor."""
    return shell_line(resources.files("rrmove.ssh").joinpath("armour.sh").read_text("ascii"))


def shell_line(script: str) -> bytes:
    """Give a shell script as one line for `printf %b`, without comments and indentation."""
    lines = [line.strip() for line in script.splitlines()]
    kept = "\n".join(line for line in lines if line and not line.startswith("#"))
    # What follows the last `#` is a comment, such as a carriage return that was added on the way.
    return f"{kept}\n#".replace("\\", "\\0134").replace("\n", "\\n").encode("ascii") + b"\n"


def armoured(open_channel: Open) -> Open:
    """Give what opens the same channel, armoured."""
    return lambda command: Armour(open_channel(command))


class Armour:
    """A channel over another one; see `rrmove.ssh.channel.Channel` for the contract.

    The first line that is written goes as it is: it is the far end.
    """

    def __init__(self, inner: Channel) -> None:
        self._inner = inner
        self._there = False  # whether the far end has been sent
        self._decoded = memoryview(b"")

    @property
    def rtt(self) -> float | None:
        """Seconds of the TCP handshake, where the channel below knows."""
        return getattr(self._inner, "rtt", None)

    def read(self, size: int) -> bytes:
        """Read exactly `size` bytes, fewer at the end of the stream. Raises Transient where they are mangled."""
        taken = bytearray()
        while len(taken) < size:
            if not self._decoded:
                line = self._line()
                if not line:
                    break
                self._decoded = memoryview(_stripped(line))
            step = size - len(taken)
            taken += self._decoded[:step]
            self._decoded = self._decoded[step:]
        return bytes(taken)

    def write(self, data: bytes | bytearray | memoryview) -> None:
        """Write all of `data`."""
        rest = memoryview(data)
        if not self._there:
            first = bytes(rest).index(b"\n") + 1
            self._inner.write(rest[:first])
            self._there, rest = True, rest[first:]
        for at in range(0, len(rest), BATCH):
            batch = rest[at : at + BATCH]
            pieces = (batch[start : start + LINE] for start in range(0, len(batch), LINE))
            self._inner.write(b"".join(b"~" + binascii.b2a_base64(piece) for piece in pieces))

    def write_file(self, fd: int, offset: int, length: int) -> None:
        """Write a span of an open file. Raises Fatal when the file is shorter than that."""
        end = offset + length
        while offset < end:
            piece = os.pread(fd, min(BATCH, end - offset), offset)
            if not piece:
                raise Fatal("the source file has become shorter while it was sent")
            self.write(piece)
            offset += len(piece)

    def kill(self) -> None:
        """End the connection; a repeat does nothing."""
        self._inner.kill()

    def close(self) -> None:
        """Release what the channel below holds."""
        close = getattr(self._inner, "close", None)
        if close is not None:
            close()

    def cause(self) -> RRMoveError:
        """Say why the stream ended."""
        return self._inner.cause()

    def _line(self) -> bytes:
        line = bytearray()
        while not line.endswith(b"\n") and len(line) < LONGEST:
            byte = self._inner.read(1)
            if not byte:
                break
            line += byte
        return bytes(line)


def _stripped(line: bytes) -> bytes:
    if not line.startswith(b"~"):
        return line
    try:
        return binascii.a2b_base64(line[1:].strip(), strict_mode=True)
    except ValueError:
        raise Transient("the node's answers are mangled, although they are text") from None
