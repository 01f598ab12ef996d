"""Moving: the calls that the command line, scripts and daemons make; each walks the straight line once."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypedDict, Unpack

from rrmove import manifest as manifests
from rrmove.containment import run_to_end
from rrmove.errors import Fatal, RRMoveError, UsageError
from rrmove.fetching import Fetch
from rrmove.model import PATIENCE, PRIORITIES, PRIORITY, Options, Remote
from rrmove.plugin_settings import given
from rrmove.setting import Setting
from rrmove.straight import Run

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
    from contextlib import AbstractAsyncContextManager
    from pathlib import Path

    from rrmove.common import Common
    from rrmove.events import Event
    from rrmove.inventory import Inventory
    from rrmove.knowledge import Knowledge
    from rrmove.model import Node, Outcome, Plan, Request, Source
    from rrmove.probe import Facts
    from rrmove.ssh.ahead import Begun


class Wishes(TypedDict, total=False):
    """What may be said of a move by name, all of it optional.

    `only` and `without` name transports; `limit_rate` is in bytes a second, `deadline` in seconds;
    `priority` (1 to 100, default 10) weighs it against other moves under the same limits; `sha256` is
    what the whole file must hash to; `mirrors` are URLs of the same file; `settings`
    are what transports are told (`{"http.tls": "off"}`, before all else that says so); `plugins`
    are transports that are not
    installed (classes, objects, or paths of Python files); a transport that reports nothing for
    `patience` seconds is stopped (default: 300); `alone` says that nothing else in this program
    starts processes, so that those which a transport leaves behind are ended; `inventory` is what
    `load_inventory()` gives (default: the user's own); `ssh` is "auto", "openssh" or "paramiko";
    `on_event` is called with each event, in the event loop. `begun` is a login that is under way
    (`rrmove.ssh.ahead`), `common` what this move shares with others of the same source
    (`rrmove.common`): both are for those who make several things one.
    """

    only: Sequence[str]
    without: Sequence[str]
    limit_rate: float | None
    deadline: float | None
    priority: int
    sha256: str | None
    mirrors: Sequence[str]
    settings: Mapping[str, object]
    plugins: Sequence[object]
    patience: float
    alone: bool
    inventory: Inventory | None
    ssh: str
    on_event: Callable[[Event], None] | None
    begun: Begun | None
    common: Common | None


@dataclass(frozen=True, slots=True)
class Preview:
    """What a move would do: nothing has been moved."""

    request: Request
    facts: Facts
    plan: Plan
    knowledge: Knowledge
    missing: int
    digest: str


async def move(source: str | Path | Source, target: str | Node, **wishes: Unpack[Wishes]) -> Outcome:
    """Move a local file, or what a URL names, onto a node; `Wishes` has what may be said by name.

    `target` is NODE, NODE:PATH or user@host:PATH. Raises RRMoveError with `.outcome` set where
    the file did not arrive: see `rrmove.errors` for the kinds. A repeat continues where the last
    one stopped, and sends nothing where the file is there. Cancelled, it leaves a part file that
    the next call continues.
    """
    started, deadline, common = time.monotonic(), wishes.get("deadline"), wishes.get("common")
    async with opened(source, target, wishes) as setting:
        run = line_of(setting, started)
        try:
            passed = time.monotonic() - common.began if common else 0.0
            async with asyncio.timeout(None if deadline is None else deadline - passed):
                await run.straight()
            return run.finished()
        except TimeoutError as error:
            late = Fatal(f"the deadline of {deadline:g} s has passed", node=run.request.node.name)
            late.remedy = "What has arrived is kept: run the same command again to continue"
            raise run.failed(late) from error
        except RRMoveError as error:
            raise run.failed(error) from error.__cause__
        except OSError as error:
            broken = RRMoveError(f"{error.strerror or error}", node=run.request.node.name)
            raise run.failed(broken) from error
        finally:
            await run.tidy()


def move_sync(source: str | Path | Source, target: str | Node, **wishes: Unpack[Wishes]) -> Outcome:
    """Do what `move()` does, and block meanwhile; for programs without an event loop."""
    return run_to_end(move(source, target, **wishes))


async def watch(source: str | Path | Source, target: str | Node, **wishes: Unpack[Wishes]) -> AsyncGenerator[Event]:
    """Move a file and give the events as they come; the last is Finished. Takes what `move()` takes.

    Raises what `move()` raises, after the last event. Leaving the loop early cancels the move.
    """
    events: asyncio.Queue[Event | None] = asyncio.Queue()
    wishes["on_event"] = events.put_nowait
    task = asyncio.ensure_future(move(source, target, **wishes))
    task.add_done_callback(lambda _: events.put_nowait(None))
    try:
        while (event := await events.get()) is not None:
            yield event
        await task
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def preview(source: str | Path | Source, target: str | Node, **wishes: Unpack[Wishes]) -> Preview:
    """Find out what a move would do, and do nothing. Raises NoRouteError where nothing could serve."""
    async with opened(source, target, wishes) as setting:
        run = line_of(setting, time.monotonic())
        missing = await looked(run)
        return foreseen(run, missing)


async def looked(run: Run) -> int:
    """Look at the node and at what it has of the file, and change nothing; gives the bytes that are missing."""
    try:
        await run.look(only_look=True)
    finally:
        await run.tidy()
    arrived = await run.landing.arrived()
    if not arrived and run.landing.place.part_size is not None:
        await run.landing.survey()
    return 0 if arrived else manifests.total(run.landing.missing)


def foreseen(run: Run, missing: int) -> Preview:
    """Rank the transports for a node that was looked at, and sum up."""
    run.rank()
    return Preview(run.request, run.facts, run.plan, run.knowledge, missing, run.foreseen())


def line_of(setting: Setting, started: float) -> Run:
    """Choose the straight line: a URL's begins with a look at its server."""
    return (Fetch if isinstance(setting.request.source, Remote) else Run)(setting, started)


def options_of(wishes: Wishes) -> Options:
    """Give wishes as a request has them. Raises TypeError for one that nobody knows, as Python itself would."""
    unknown = wishes.keys() - Wishes.__annotations__.keys()
    if unknown:
        raise TypeError(f"move() got an unexpected keyword argument {min(unknown)!r}")
    priority = wishes.get("priority", PRIORITY)
    if priority not in PRIORITIES:
        raise UsageError(f"the priority {priority!r} is none of 1 to 100", remedy=f"The usual one is {PRIORITY}")
    return Options(
        only=tuple(wishes.get("only", ())),
        without=tuple(wishes.get("without", ())),
        limit_rate=wishes.get("limit_rate"),
        deadline=wishes.get("deadline"),
        priority=priority,
        sha256=wishes.get("sha256"),
        mirrors=tuple(wishes.get("mirrors", ())),
        settings=tuple(given(key, value) for key, value in wishes.get("settings", {}).items()),
        plugins=tuple(wishes.get("plugins", ())),
        patience=wishes.get("patience", PATIENCE),
        alone=wishes.get("alone", False),
    )


def opened(source: str | Path | Source, target: str | Node, wishes: Wishes) -> AbstractAsyncContextManager[Setting]:
    """Open what a move needs."""
    return Setting.of(
        source,
        target,
        options_of(wishes),
        inventory=wishes.get("inventory"),
        ssh=wishes.get("ssh", "auto"),
        on_event=wishes.get("on_event"),
        begun=wishes.get("begun"),
        common=wishes.get("common"),
    )


__all__ = ["Preview", "Wishes", "move", "move_sync", "preview", "watch"]
