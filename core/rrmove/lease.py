"""Lease: a program on the node that outlives connections, and never us: see `rrmove.ssh.leased`."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import zlib
from importlib import resources
from typing import TYPE_CHECKING, Self, cast

from rrmove.errors import Transient, TransportError, Unusable
from rrmove.retry import persistently

if TYPE_CHECKING:
    from collections.abc import Mapping

    from rrmove.session import Reply, Session

# The text comes on stdin as one line, what it is given behind it: arguments can be seen by everybody.
BOOT = "import sys,zlib,base64;exec(zlib.decompress(base64.b64decode(sys.stdin.buffer.readline())))"
ASK = (
    "import socket,sys\n"
    "s=socket.socket(socket.AF_UNIX);s.settimeout(5)\n"
    "try:\n s.connect(sys.argv[1])\nexcept OSError:\n sys.exit(3)\n"
    "s.sendall(sys.stdin.buffer.read());s.shutdown(1)\n"
    "while True:\n b=s.recv(65536)\n if not b: break\n sys.stdout.buffer.write(b)\n"
)
GONE = 3  # ASK's status where nobody answers
STARTING = 20.0  # s for a busy node to start python3
STOPPING = 5.0  # s that the end of one may take that was cancelled while it began; the core waits 10 for a transport


def text_of(package: str, name: str) -> str:
    """Read the text of a module that runs on the node."""
    return resources.files(package).joinpath(name).read_text("utf-8")


async def run_text(
    session: Session,
    text: str,
    given: Mapping[str, object],
    *,
    timeout: float,  # noqa: ASYNC109
    reads: bool = False,
) -> bytes:
    """Run a Python program on the node with `given` as JSON on its stdin, and give what it prints.

    Asked once more where the connection is lost, so a repeat must do no harm. One that only `reads` is
    spared by evictions from a part file. Raises Unusable where it fails or the node has no python3.
    """
    packed = base64.b64encode(zlib.compress(text.encode("utf-8"), 9)) + b"\n"
    body = packed + json.dumps(given).encode("ascii")
    mark = ["env", "RRMOVE_AGENT=1"] if reads else []
    reply = await _run(session, [*mark, "python3", "-I", "-c", BOOT, "rrmove"], body, timeout)
    if reply.fields["status"]:
        said = str(reply.fields["errors"]).strip().splitlines()[-1:]
        raise Unusable(f"python3 on the node failed: {''.join(said)}", node=session.node.name)
    return reply.body


async def _run(session: Session, argv: list[str], body: bytes, timeout: float) -> Reply:  # noqa: ASYNC109
    async def once() -> Reply:
        lane = await session.control()
        return await lane.call("run", body, argv=argv, timeout=timeout)

    return await persistently(once)


class Lease:
    """A program on the node; each question renews its lease, and without one it ends."""

    def __init__(self, session: Session, folder: str) -> None:
        self._session, self._asked = session, f"{folder}/asked"

    @classmethod
    async def begin(
        cls, session: Session, duty: str, given: Mapping[str, object], *, seconds: float, reads: bool = False
    ) -> Self:
        """Start a program; `duty` is its text behind that of `leased.py`, and ends in a call of `main()`.

        `given` reaches it on stdin, so it may hold secrets. One that only `reads` may have a part file open
        while the core looks after that. Raises Unusable where it cannot start. A start whose answer is lost
        is repeated; the first one ends when its lease does. Cancelled, it ends what it has started.
        """
        text = text_of("rrmove.ssh", "leased.py") + "\n" + duty
        given = {**given, "lease": seconds}
        starting = asyncio.ensure_future(run_text(session, text, given, timeout=STARTING, reads=reads))
        try:
            said = await asyncio.shield(starting)
        except asyncio.CancelledError:
            # It is on its way and nobody will ask for it: it is ended here, or else by its lease.
            with contextlib.suppress(TransportError, TimeoutError):
                async with asyncio.timeout(STOPPING):
                    await cls(session, _folder(await starting)).end()
            raise
        return cls(session, _folder(said))

    async def ask(self, question: bytes = b"") -> bytes:
        """Put a question and renew the lease. Raises Transient where the program has ended.

        It is put again where the connection is lost: a repeat must do no harm.
        """
        reply = await _run(self._session, ["python3", "-I", "-S", "-c", ASK, self._asked], question, 10.0)
        if reply.fields["status"] == GONE:
            raise LeaseLost("the program on the node has ended", node=self._session.node.name)
        return reply.body

    async def end(self) -> None:
        """End the program; where it cannot be reached, its lease does it."""
        with contextlib.suppress(TransportError):
            await self.ask(b"end")


def _folder(said: bytes) -> str:
    return cast("str", json.loads(said)["folder"])


class LeaseLost(Transient):
    """A leased program is no more: its lease ran out, or somebody ended it."""


__all__ = ["Lease", "LeaseLost", "run_text", "text_of"]
