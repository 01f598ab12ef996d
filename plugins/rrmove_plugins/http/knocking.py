"""Knocking: whether a way leads anywhere now, whatever was known of it: in at the node's port, back to one of ours."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from typing import TYPE_CHECKING, Any, Literal

from rrmove import CLIENT, RTT, TransportError, Unusable

if TYPE_CHECKING:
    from rrmove import Job

# Who is silent for three round trips is behind a filter; the floor covers a busy machine, the ceiling keeps an
# attempt in vain below a second where both ways are looked at, one a little after the other.
LEAST, MOST, ROUNDS = 0.3, 0.7, 3
HASTY, HASTY_MOST, HASTY_ROUNDS = 0.03, 0.25, 1.5  # s: after that an answer is late, and the other way is looked at


def patience(job: Job) -> float:
    """Give the seconds after which silence is a filter."""
    return min(MOST, max(LEAST, ROUNDS * (job.facts.get(RTT) or 0.0)))


def haste(job: Job) -> float:
    """Give the seconds within which an answer should be there."""
    return min(HASTY_MOST, HASTY + HASTY_ROUNDS * (job.facts.get(RTT) or 0.0))


async def knock(place: tuple[int, tuple[Any, ...]], seconds: float) -> Literal["open", "refused"] | None:
    """Connect for a moment; None where nobody answers, or says that there is no way."""
    family, address = place
    with socket.socket(family, socket.SOCK_STREAM) as raw:
        raw.setblocking(False)
        try:
            async with asyncio.timeout(seconds):
                await asyncio.get_running_loop().sock_connect(raw, address)
        except (ConnectionRefusedError, ConnectionResetError):
            return "refused"
        except OSError:  # of which TimeoutError is one
            return None
    return "open"


class WayBack:
    """Whether the node reaches us: looked at once, from when it is first of interest. `end()` stops the look."""

    def __init__(self, job: Job) -> None:
        self._job = job
        self._look: asyncio.Task[bool] | None = None

    def begin(self) -> None:
        """Begin to look; a repeat does nothing."""
        self._look = self._look or asyncio.create_task(self._reached())

    async def leads(self) -> None:
        """Wait for what is seen. Raises Unusable where the node does not reach us."""
        self.begin()
        assert self._look is not None
        if not await self._look:
            raise Unusable("the node does not reach us", node=self._job.request.node.name)

    async def end(self) -> None:
        """Look no further; a repeat does nothing."""
        if self._look is not None:
            self._look.cancel()
            await asyncio.gather(self._look, return_exceptions=True)

    async def _reached(self) -> bool:
        """Have the node connect to us. What counts is what comes in here, not what the node says."""
        client = self._job.facts.get(CLIENT)
        if client is None:
            return True  # nobody knows where to: whoever tries says so
        family = socket.AF_INET6 if ":" in client.host else socket.AF_INET
        seconds = patience(self._job)
        try:
            listener = socket.create_server(("", 0), family=family)
        except OSError:
            return True  # our own trouble says nothing of the way
        with listener:
            listener.setblocking(False)
            calling = asyncio.create_task(self._call(client.host, listener.getsockname()[1], seconds))
            coming = asyncio.create_task(asyncio.get_running_loop().sock_accept(listener))
            try:
                await asyncio.wait({coming, calling}, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
                if not coming.done() and calling.done() and calling.result():
                    await asyncio.wait({coming}, timeout=HASTY)  # its word may be quicker than its connection
                if coming.done() and coming.exception() is None:
                    coming.result()[0].close()
                    return True
                return False
            finally:
                for task in (coming, calling):
                    task.cancel()
                await asyncio.gather(coming, calling, return_exceptions=True)

    async def _call(self, host: str, port: int, seconds: float) -> bool:
        with contextlib.suppress(TransportError):
            lane = await self._job.session.control()
            reply = await lane.call("reach", host=host, port=port, timeout=seconds)
            return reply.fields.get("state") == "open"
        return False


__all__ = ["WayBack", "haste", "knock", "patience"]
