"""One file to many places: a move for each, side by side, which share what need be done only once."""

from __future__ import annotations

import asyncio
import time
from collections import defaultdict
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Unpack

from rrmove.children import children, end
from rrmove.common import Common
from rrmove.discovery import discover
from rrmove.errors import Fatal, RRMoveError, UsageError, foremost
from rrmove.events import LeftBehind
from rrmove.inventory import places
from rrmove.limits.level import TICK, Level
from rrmove.model import Node, Outcome, Plan, Remote, Request, Source
from rrmove.moving import Wishes, move, options_of
from rrmove.plugin_settings import settled
from rrmove.siblings.batch import Siblings
from rrmove.ssh.pipes import running

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterable, Sequence
    from pathlib import Path

    from rrmove.events import Event
    from rrmove.model import Options

# Chosen: each move has one to eight connections and as many processes where OpenSSH makes them. From 8 (a rack's
# worth at full speed) to about 50 (what two cores can encrypt for at 16 Mbit/s each) is sensible.
AT_ONCE = 16
# Chosen: logins take one to three seconds on the field's links, and lives end after four to eight; who was silent for
# longer is not using the line.
SILENT = 10.0  # s without a sign of life after which a move no longer counts as one of those at work


async def distribute(
    source: str | Path | Source,
    targets: str | Node | Iterable[str | Node],
    *,
    concurrency: int | Slots = AT_ONCE,
    **wishes: Unpack[Wishes],
) -> AsyncGenerator[Outcome]:
    """Move a file to many places, and give the outcome of each as it ends; takes what `move()` takes.

    A target is what `move()` takes, or `@tag` for all nodes that have it; a place that is named
    twice is one. No move raises for itself: `outcome.ok` says whether the file is there, and
    `outcome.error` why not. Raises UsageError before anything is sent where a target means
    nothing, the source cannot be read, or a setting is wrong. The source is hashed and judged
    once; `limit_rate` and `deadline` are for all together. At most `concurrency` moves are at work
    at the same time, not counting those from which nothing was heard for ten seconds; a program
    that distributes several files at once gives all of them the same `Slots(16)`. Places on the
    same node take turns. A repeat sends what is missing, where it is. Leaving the loop early
    cancels what still runs; its part files stay for the repeat.
    """
    nodes = places((targets,) if isinstance(targets, str | Node) else targets, wishes.get("inventory"))
    async with aclosing(ended(source, nodes, concurrency=concurrency, **wishes)) as ends:
        async for outcome, _ in ends:
            yield outcome


async def ended(
    source: str | Path | Source, nodes: Sequence[Node], *, concurrency: int | Slots = AT_ONCE, **wishes: Unpack[Wishes]
) -> AsyncGenerator[Ended]:
    """Do what `distribute()` does for places that were looked up, and give each outcome with its error."""
    options = options_of(wishes)
    slots = concurrency if isinstance(concurrency, Slots) else Slots(concurrency)
    if not nodes:
        raise UsageError("there is no target", remedy="Name at least one node")
    seen = source if isinstance(source, Source) else Source.of(source)
    await asyncio.to_thread(_check_settings, nodes, options)
    common = Common(seen, options, sharers=min(slots.count, len({node.name for node in nodes})))
    if len(nodes) > 1 and not isinstance(seen, Remote):
        common.siblings = Siblings(nodes)
    batch = Batch(seen, options, common, slots, wishes)
    over: asyncio.Queue[asyncio.Task[Ended]] = asyncio.Queue()
    before = children() if options.alone else frozenset()
    tasks = {asyncio.create_task(batch.move(node)): node for node in nodes}
    for task in tasks:
        task.add_done_callback(over.put_nowait)
    levelling = asyncio.create_task(_keep_level(common))
    try:
        for _ in nodes:
            task = await over.get()
            yield batch.failed(tasks[task], asyncio.CancelledError()) if task.cancelled() else task.result()
    finally:
        for each in (levelling, *tasks):
            each.cancel()
        await asyncio.gather(levelling, *tasks, return_exceptions=True)
        if common.siblings is not None:
            await common.siblings.close()
        await common.close()
        # While several are at work nobody can tell whose a process is; whatever is left now is nobody's.
        if options.alone and (left := children() - before - running()):
            batch.tell(
                LeftBehind(", ".join(dict.fromkeys(node.name for node in nodes)), "a transport", await end(left))
            )


async def _keep_level(common: Common) -> None:
    level, loop = Level(), asyncio.get_running_loop()
    while True:
        await asyncio.sleep(TICK)
        level.look(common.limiters.values(), loop.time())


def _check_settings(nodes: Sequence[Node], options: Options) -> None:
    """Look at what transports are told before anyone logs in. Raises UsageError."""
    registry = discover(extra=options.plugins)
    for node in nodes:
        settled(registry.transports, (*node.settings, *options.settings), problems=registry.refusals)


Ended = tuple[Outcome, BaseException | None]


@dataclass(slots=True)
class Batch:
    """The moves of one file, and what they share."""

    source: Source
    options: Options
    common: Common
    slots: Slots
    wishes: Wishes
    turns: dict[str, asyncio.Lock] = field(default_factory=lambda: defaultdict(asyncio.Lock))

    async def move(self, node: Node) -> Ended:
        """Take one node to its end, and give what came of it. Raises nothing of its own."""
        # Two moves to one place that was written in two ways would take the part file from each other.
        async with self.turns[node.name], self.slots.one() as alive:
            started, deadline = time.monotonic(), self.options.deadline
            if deadline is not None and started - self.common.began >= deadline:
                late = Fatal(f"the deadline of {deadline:g} s had passed before its turn came", node=node.name)
                late.remedy = "Run the same command again to go on"
                return self.failed(node, late)

            siblings = self.common.siblings

            def see(event: Event) -> None:
                alive()
                if siblings is not None:
                    siblings.see(event)
                self.tell(event)

            wishes = Wishes(**{**self.wishes, "on_event": see, "common": self.common, "begun": None, "alone": False})
            try:
                return await move(self.source, node, **wishes), None
            except (Exception, SystemExit) as error:  # noqa: BLE001  whatever it is, it is this node's outcome
                return self.failed(node, error, time.monotonic() - started)
            finally:
                if siblings is not None:
                    siblings.left(node)

    def tell(self, event: Event) -> None:
        """Tell whoever watches."""
        on_event = self.wishes.get("on_event")
        if on_event is not None:
            on_event(event)

    def failed(self, node: Node, error: BaseException, seconds: float = 0.0) -> Ended:
        """Give what came of a move that has raised: its own outcome, or one where it did not come as far."""
        if isinstance(error, BaseExceptionGroup):
            error = foremost(error)
        if isinstance(error, RRMoveError):
            if error.outcome is not None:
                return error.outcome, error
            if error.node is None and not isinstance(error, UsageError):
                error.node = node.name
            words = str(error)
        else:
            words = f"{node.name}: internal error: {type(error).__name__}: {error}".rstrip(": ")
        request = Request(
            source=self.common.source, node=node, destination=node.destination or "", options=self.options
        )
        return Outcome(request=request, plan=Plan(()), seconds=seconds, error=words), error


class Slots:
    """So many moves may be at work at a time; who is silent for `patience` seconds makes room for the next.

    What several calls of `distribute()` are given counts for all of them together, in one event loop.
    Raises UsageError for less than one.
    """

    def __init__(self, count: int, patience: float = SILENT) -> None:
        if count < 1:
            raise UsageError("not even one move may be at work at a time", remedy="Allow at least one")
        self.count = count
        self._free, self._patience = asyncio.Semaphore(count), patience

    @asynccontextmanager
    async def one(self) -> AsyncIterator[Callable[[], None]]:
        """Wait for a slot; gives what is to be called at each sign of life."""
        await self._free.acquire()
        held = _Held(self._free, self._patience)
        try:
            yield held.alive
        finally:
            held.leave()


class _Held:
    """A slot that somebody has, until they leave or fall silent."""

    def __init__(self, free: asyncio.Semaphore, patience: float) -> None:
        self._free, self._patience = free, patience
        self._loop = asyncio.get_running_loop()
        self._heard = self._loop.time()
        self._timer: asyncio.TimerHandle | None = self._loop.call_later(patience, self._look)

    def alive(self) -> None:
        self._heard = self._loop.time()

    def leave(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
            self._free.release()

    def _look(self) -> None:
        left = self._heard + self._patience - self._loop.time()
        if left > 0:
            self._timer = self._loop.call_later(left, self._look)
        else:
            self.leave()


__all__ = ["Slots", "distribute", "ended"]
