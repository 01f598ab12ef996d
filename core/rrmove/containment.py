"""Containment: whatever a transport does, one of our errors comes of it, and a count of what it says it did."""

from __future__ import annotations

import asyncio
import sys
import time
import traceback
from typing import TYPE_CHECKING

from rrmove.errors import Fatal, IntegrityError, RRMoveError, Transient, TransportError, Unusable, UsageError
from rrmove.events import ConnectionLost, Progressed
from rrmove.knowledge import Life

if TYPE_CHECKING:
    from rrmove.events import Emit, Event
    from rrmove.model import FailureKind

STALLED = 300.0  # s in which a transport neither ends nor reports a byte: then it hangs


class Tally:
    """What a transport says of itself while it works; good for progress, never for the verdict."""

    def __init__(self, emit: Emit, node: str, size: int, missing: int) -> None:
        self._emit, self._node, self._size = emit, node, size
        self._missing, self._done = missing if size else sys.maxsize, 0
        self.bytes_sent = 0
        self.heard = time.monotonic()
        self.lives: list[Life] = []

    def progress(self, count: int) -> None:
        """Count bytes that the transport says are durable."""
        self.heard = time.monotonic()
        self._done = min(self._missing, self._done + max(0, count))
        there = self._size - self._missing if self._size else 0  # a size of 0 is one that nobody knows yet
        self._emit(Progressed(self._node, there + self._done, self._size))

    def sent(self, count: int) -> None:
        """Count bytes that the transport has put on the wire."""
        self.heard = time.monotonic()
        self.bytes_sent += max(0, count)

    def emit(self, event: Event) -> None:
        """Pass an event on, and keep what it tells of a connection's life."""
        if isinstance(event, ConnectionLost):
            self.lives.append(Life(event.age, event.carried))
        self._emit(event)


async def contained(work: object, tally: Tally, node: str, name: str) -> RRMoveError | None:
    """Await a transport and give its error; what it should not have raised makes it Unusable.

    A transport that says nothing for `STALLED` seconds is cancelled and counts as Transient.
    """
    task = asyncio.ensure_future(work)  # type: ignore[call-overload]
    try:
        while not task.done():
            await asyncio.wait({task}, timeout=max(1.0, STALLED - (time.monotonic() - tally.heard)))
            if not task.done() and time.monotonic() - tally.heard > STALLED:
                task.cancel()
                await asyncio.wait({task}, timeout=10.0)
                return Transient(f"{name} moved nothing for {STALLED:.0f} s", node=node)
        error = task.exception() if not task.cancelled() else None
    finally:
        if not task.done():
            task.cancel()
            await asyncio.wait({task}, timeout=10.0)
    if task.cancelled():
        return Unusable(f"{name} cancelled itself", node=node)
    if error is None or isinstance(error, TransportError | IntegrityError):
        return error
    if isinstance(error, KeyboardInterrupt):
        raise error
    last = traceback.extract_tb(error.__traceback__)[-1:]
    where = f" at {last[0].filename}:{last[0].lineno}" if last else ""
    wrapped = Unusable(f"{name} failed unexpectedly: {type(error).__name__}: {error}{where}", node=node)
    wrapped.__cause__ = error
    return wrapped


def kind_of(error: RRMoveError | None) -> FailureKind | None:
    """Say in the policy's word what kind of failure an error is."""
    match error:
        case None:
            return None
        case IntegrityError():
            return "integrity"
        case Fatal() | UsageError():
            return "fatal"
        case Unusable():
            return "unusable"
        case _:
            return "transient"
