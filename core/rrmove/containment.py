"""Containment: whatever a transport does, one of our errors comes of it, and a count of what it says it did."""

from __future__ import annotations

import asyncio
import contextlib
import sys
import time
import traceback
from typing import TYPE_CHECKING, TypeVar

from rrmove.errors import Fatal, IntegrityError, RRMoveError, Transient, TransportError, Unusable, UsageError
from rrmove.events import ConnectionLost, Progressed
from rrmove.knowledge import Life
from rrmove.watchdog import AT_WORK, Watchdog

if TYPE_CHECKING:
    from collections.abc import Coroutine
    from typing import Any

    from rrmove.events import Emit, Event
    from rrmove.model import FailureKind, Node
    from rrmove.session import Lane, Session

_T = TypeVar("_T")

STOPPING = 10.0  # s that a transport has to end in once it was cancelled


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


class Loan:
    """A session, lent to one attempt; once it is taken back, what was left behind can open and send nothing."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self._lent: list[Lane] = []
        self._over = False

    @property
    def node(self) -> Node:
        """The node this session logs in to."""
        return self._session.node

    @property
    def floor(self) -> bool:
        """Whether the node has turned out to have no python3."""
        return self._session.floor

    async def control(self) -> Lane:
        """Give the lane that the core uses."""
        return self._lend(await self._valid().control())

    async def open_lane(self, *, text: bool = False) -> Lane:
        """Begin one more connection and give it at once."""
        return self._lend(await self._valid().open_lane(text=text))

    async def address(self) -> tuple[str, int] | None:
        """Give host and port of the node's SSH server as we reach it."""
        return await self._valid().address()

    def ssh_command(self) -> tuple[str, ...] | None:
        """Give the argv that runs `ssh` for this node, without the destination."""
        return self._valid().ssh_command()

    def ssh_destination(self) -> str:
        """Give the `[user@]host` word that goes with `ssh_command()`."""
        return self._session.ssh_destination()

    def end(self) -> None:
        """Lend no more."""
        self._over = True

    async def take_back(self) -> None:
        """Close every lane that was lent, and lend no more; the core connects again."""
        self._over = True
        await asyncio.gather(*(lane.close() for lane in self._lent))

    def _valid(self) -> Session:
        if self._over:
            raise Unusable("the attempt is over", node=self._session.node.name)
        return self._session

    def _lend(self, lane: Lane) -> Lane:
        if lane not in self._lent:
            self._lent = [*(each for each in self._lent if each.alive), lane]
        return lane


async def contained(
    work: Coroutine[Any, Any, None], tally: Tally, lease: Loan, name: str, patience: float
) -> RRMoveError | None:
    """Await a transport and give its error; what it should not have raised makes it Unusable.

    One that neither ends nor reports a byte for `patience` seconds is cancelled, and counts as
    Transient where it has sent anything, else as Unusable. One that blocks the event loop for so
    long is interrupted, where that is possible (see `rrmove.watchdog`). Where it does not even
    stop then, what it holds of the session is taken from it.
    """
    node = lease.node.name
    task = asyncio.ensure_future(_guarded(work, name))
    try:
        with Watchdog(patience, name):
            while not task.done():
                left = patience - (time.monotonic() - tally.heard)
                await asyncio.wait({task}, timeout=max(min(1.0, patience), left))
                if not task.done() and time.monotonic() - tally.heard > patience:
                    await _stop(task, lease)
                    said = f"{name} moved nothing for {patience:g} s and was stopped"
                    return Transient(said, node=node) if tally.bytes_sent else Unusable(said, node=node)
    finally:
        if not task.done():
            await _stop(task, lease)
    if task.cancelled():
        return Unusable(f"{name} cancelled itself", node=node)
    error = task.exception()
    if isinstance(error, _Exited):
        error = error.__cause__
    if error is None or isinstance(error, TransportError | IntegrityError):
        return error
    if isinstance(error, KeyboardInterrupt):
        raise error
    last = traceback.extract_tb(error.__traceback__)[-1:]
    where = f" at {last[0].filename}:{last[0].lineno}" if last else ""
    said = f"{name} failed unexpectedly: {type(error).__name__}: {error}{where}"
    if isinstance(error, SystemExit):
        said = f"{name} wanted to end the program (SystemExit {error.code!r}){where}"
    wrapped = Unusable(said, node=node)
    wrapped.__cause__ = error
    return wrapped


def run_to_end(main: Coroutine[Any, Any, _T]) -> _T:
    """Run a coroutine in an event loop of its own, as `asyncio.run()` does.

    A task of some plugin that wants to end the program does not: see `turn_on`.
    """
    with asyncio.Runner() as runner:
        task = runner.get_loop().create_task(main)

        async def whole() -> _T:
            return await task

        try:
            return runner.run(whole())
        except SystemExit as end:
            return turn_on(runner.get_loop(), task, end)


def turn_on(loop: asyncio.AbstractEventLoop, task: asyncio.Task[_T], end: SystemExit) -> _T:
    """Let the loop turn on until `task` is done, after a SystemExit has stopped it.

    asyncio lets that of any task through. Whoever awaits the task that raised it hears of it all
    the same, and the program is not its business. Raises it where `task` itself did.
    """
    while not task.done():
        try:
            return loop.run_until_complete(task)
        except SystemExit as another:
            end = another
    raise end


class _Exited(Exception):  # noqa: N818  it carries one
    """A SystemExit on its way through asyncio, which would let it end the program."""


async def _guarded(work: Coroutine[Any, Any, None], name: str) -> None:
    AT_WORK.set(name)
    try:
        await work
    except SystemExit as end:
        raise _Exited from end


async def _stop(task: asyncio.Task[None], lease: Loan) -> None:
    """Cancel a transport, and take from it what it has where it does not end."""
    task.cancel()
    await asyncio.wait({task}, timeout=STOPPING)
    if not task.done():
        with contextlib.suppress(TransportError):
            await lease.take_back()


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
