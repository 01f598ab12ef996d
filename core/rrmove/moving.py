"""The straight line: a request, the facts, a plan, attempts, verification, the renamed file."""

from __future__ import annotations

import asyncio
import random
import time
import traceback
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from rrmove import manifest as manifests
from rrmove.errors import (
    Fatal,
    IntegrityError,
    RRMoveError,
    Transient,
    TransportError,
    Unusable,
    UsageError,
)
from rrmove.events import (
    AttemptFailed,
    AttemptStarted,
    Committed,
    ConnectionLost,
    Event,
    Finished,
    Planned,
    Progressed,
    Verified,
    Waiting,
)
from rrmove.knowledge import Life
from rrmove.landing import PartFile, locate
from rrmove.model import Attempt, FailureKind, GiveUp, Node, Options, Outcome, Plan, Request, Source, Succeed, Try
from rrmove.plan import make_plan, require_route
from rrmove.policy import next_action
from rrmove.probe import Facts
from rrmove.setting import Setting
from rrmove.transport import Job

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable, Sequence
    from pathlib import Path

    from rrmove.inventory import Inventory
    from rrmove.knowledge import Knowledge
    from rrmove.manifest import Manifest, Range
    from rrmove.session import Session
    from rrmove.ssh.channel import Channel

SMALL = 4 << 20  # bytes up to which a file does not wait for the node's facts: some 3 round trips of sending
STALLED = 300.0  # s in which a transport neither ends nor reports a byte: then it hangs


@dataclass(frozen=True, slots=True)
class Preview:
    """What a move would do: nothing has been moved."""

    request: Request
    facts: Facts
    plan: Plan
    knowledge: Knowledge
    missing: int
    digest: str


async def move(  # noqa: PLR0913  the options of a move, by name
    source: str | Path | Source,
    target: str | Node,
    *,
    only: Sequence[str] = (),
    without: Sequence[str] = (),
    limit_rate: float | None = None,
    deadline: float | None = None,
    sha256: str | None = None,
    inventory: Inventory | None = None,
    ssh: str = "auto",
    on_event: Callable[[Event], None] | None = None,
    begun: Channel | None = None,
) -> Outcome:
    """Move a local file onto a node, whole and verified.

    `target` is NODE, NODE:PATH or user@host:PATH. `only` and `without` name transports;
    `limit_rate` is in bytes a second, `deadline` in seconds; `sha256` is what the whole file must
    hash to; `ssh` is "auto", "openssh" or "paramiko". Raises RRMoveError with `.outcome` set where
    the file did not arrive: see `rrmove.errors` for the kinds. A repeat continues where the last
    one stopped, and sends nothing where the file is there. Cancelled, it leaves a part file that
    the next call continues. `begun` is a login that was started ahead (`rrmove.ssh.openssh.start`).
    """
    options = Options(only=tuple(only), without=tuple(without), limit_rate=limit_rate, deadline=deadline, sha256=sha256)
    started = time.monotonic()
    async with Setting.of(
        source, target, options, inventory=inventory, ssh=ssh, on_event=on_event, begun=begun
    ) as setting:
        run = _Run(setting, started)
        try:
            async with asyncio.timeout(deadline):
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


def move_sync(  # noqa: PLR0913  as above
    source: str | Path | Source,
    target: str | Node,
    *,
    only: Sequence[str] = (),
    without: Sequence[str] = (),
    limit_rate: float | None = None,
    deadline: float | None = None,
    sha256: str | None = None,
    inventory: Inventory | None = None,
    ssh: str = "auto",
    on_event: Callable[[Event], None] | None = None,
) -> Outcome:
    """Do what `move()` does, and block meanwhile; for programs without an event loop."""
    return asyncio.run(
        move(
            source,
            target,
            only=only,
            without=without,
            limit_rate=limit_rate,
            deadline=deadline,
            sha256=sha256,
            inventory=inventory,
            ssh=ssh,
            on_event=on_event,
        )
    )


async def watch(source: str | Path | Source, target: str | Node, **options: object) -> AsyncGenerator[Event]:
    """Move a file and give the events as they come; the last is Finished. Takes what `move()` takes.

    Raises what `move()` raises, after the last event. Leaving the loop early cancels the move.
    """
    events: asyncio.Queue[Event | None] = asyncio.Queue()
    task = asyncio.ensure_future(move(source, target, on_event=events.put_nowait, **options))  # type: ignore[arg-type]
    task.add_done_callback(lambda _: events.put_nowait(None))
    try:
        while (event := await events.get()) is not None:
            yield event
        await task
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def preview(  # noqa: PLR0913  as above
    source: str | Path | Source,
    target: str | Node,
    *,
    only: Sequence[str] = (),
    without: Sequence[str] = (),
    limit_rate: float | None = None,
    deadline: float | None = None,
    sha256: str | None = None,
    inventory: Inventory | None = None,
    ssh: str = "auto",
    on_event: Callable[[Event], None] | None = None,
) -> Preview:
    """Find out what a move would do, and do nothing. Raises NoRouteError where nothing could serve."""
    options = Options(only=tuple(only), without=tuple(without), limit_rate=limit_rate, deadline=deadline, sha256=sha256)
    async with Setting.of(source, target, options, inventory=inventory, ssh=ssh, on_event=on_event) as setting:
        run = _Run(setting, time.monotonic())
        try:
            await run.look(only_look=True)
        finally:
            await run.tidy()
        if not await run.landing.arrived() and run.landing.place.part_size is not None:
            await run.landing.survey()
        run.rank()
        missing = 0 if await run.landing.arrived() else manifests.total(run.landing.missing)
        return Preview(
            run.request, run.facts, run.plan, run.knowledge, missing, f"{manifests.ALGORITHM}:{run.manifest.root}"
        )


@dataclass(slots=True)
class _Run:
    """One move under way: what has been found out so far, and the steps of the straight line."""

    setting: Setting
    started: float
    manifest: Manifest = field(init=False)
    facts: Facts = field(default_factory=Facts)
    aside: list[asyncio.Task[Any]] = field(default_factory=list)
    landing: PartFile = field(init=False)
    knowledge: Knowledge = field(init=False)
    plan: Plan = field(default_factory=lambda: Plan(()))
    attempts: list[Attempt] = field(default_factory=list)
    lives: list[Life] = field(default_factory=list)
    sent: int = 0
    reused: int = 0
    digest: str | None = None
    destination: str | None = None
    last_error: RRMoveError | None = None

    @property
    def request(self) -> Request:
        return self.setting.request

    @property
    def session(self) -> Session:
        return self.setting.session

    # The straight line

    async def straight(self) -> None:
        """Take the request to its end; returns when the file stands under its name, verified."""
        await self.look()
        if await self.landing.arrived():
            self.reused = self.manifest.size
            self.destination, self.digest = self.landing.place.target, self._digest()
            return
        self.rank()
        if not self.plan.steps and self.setting.remembered:
            # What was known may be out of date: a refusal has to rest on what is so now.
            self.facts = await self.setting.facts(fresh=True)
            self.rank()
        require_route(self.plan, self.request.node)
        await self.landing.open()
        self.aside.append(asyncio.create_task(self.landing.sweep()))
        missing: Sequence[Range] = await self.landing.survey()
        self.reused = self.manifest.size - manifests.total(missing)
        self.setting.emit(Progressed(self.request.node.name, self.reused, self.manifest.size))
        while True:
            match next_action(
                self.plan,
                self.attempts,
                missing=manifests.total(missing),
                elapsed=time.monotonic() - self.started,
                deadline=self.request.options.deadline,
                jitter=random.random(),  # noqa: S311  spreads retries, guards nothing
            ):
                case Try(step, after, why):
                    await self._wait(after, why)
                    missing = await self._attempt(step.transport, missing)
                    if self.digest is not None:
                        return
                case Succeed():
                    missing = await self._land()
                    if not missing:
                        return
                case GiveUp(reason):
                    await self._give_up(reason)

    async def look(self, *, only_look: bool = False) -> None:
        """Hash the source and look at the node, at the same time, in one login.

        A small file does not wait for the facts: what is unknown refuses nothing, and it is there
        before they would have changed anything.
        """
        looking = asyncio.create_task(self.setting.facts(fresh=only_look))
        self.aside.append(looking)
        if not only_look:
            self.aside.append(asyncio.create_task(self.setting.begin_lanes()))
        checking = asyncio.to_thread(self._check_expected)
        self.manifest, _ = await asyncio.gather(asyncio.to_thread(self.setting.manifest), checking)
        options = self.request.options
        freely = not (only_look or options.only or options.without)
        place = await locate(self.session, self.request, self.manifest, opening=freely)
        self.landing = PartFile(self.session, self.request, self.manifest, place)
        if not freely or self.manifest.size > SMALL or looking.done():
            self.facts = await looking
        self.knowledge = self.setting.knowledge()

    def rank(self) -> None:
        """Rank the transports by what is known now."""
        self.plan = self.setting.adjusted(
            self.facts,
            make_plan(
                self.request,
                self.facts,
                self.knowledge,
                self.setting.registry.transports,
                missing=manifests.total(self.landing.missing),
                problems={refusal.transport: refusal.reason for refusal in self.setting.registry.refusals},
                seen=self.lives,
            ),
        )
        self.setting.emit(Planned(self.request.node.name, self.plan))

    async def _attempt(self, name: str, missing: Sequence[Range]) -> Sequence[Range]:
        """Let one transport work, whatever it does; then see for ourselves what is missing."""
        transport, node = self.setting.registry.transports[name], self.request.node.name
        before, started, clock = manifests.total(missing), time.time(), time.monotonic()
        tally = _Tally(self, before)
        self.landing.foreign = self.landing.foreign or not transport.capabilities.lanes_only
        self.setting.emit(AttemptStarted(node, name, before, self.manifest.size))
        job = Job(
            request=self.request,
            manifest=self.manifest,
            missing=tuple(missing),
            facts=self.facts,
            session=self.session,
            landing=self.landing,
            limiter=self.setting.limiter,
            progress=tally.progress,
            sent=tally.sent,
            emit=tally.emit,
        )
        error = await _contained(transport.send(job), tally, node, name)
        lives = tally.lives
        self.lives += lives
        try:
            if error is not None and await self.landing.overtaken():
                self.destination, self.digest = self.landing.place.target, self._digest()
                error, missing = None, ()
            elif error is not None or self.landing.missing or self.landing.foreign:
                await self.landing.open()
                missing = await self.landing.survey()
            else:
                missing = ()
        except RRMoveError as trouble:
            error = error if isinstance(error, Fatal | IntegrityError) else trouble
        left = manifests.total(missing)
        if error is None and left:
            error = Transient(f"{name} returned, but {left} bytes are missing on the node", node=node)
        attempt = Attempt(
            transport=name,
            started=started,
            seconds=time.monotonic() - clock,
            bytes_sent=tally.bytes_sent,
            gained=max(0, before - left),
            error=str(error) if error else None,
            failure=_kind(error),
        )
        self.attempts.append(attempt)
        self.sent += attempt.bytes_sent
        self.setting.remember(attempt, before, self.plan, self.facts, lives)
        if error is not None:
            self.last_error = error
            self.setting.emit(AttemptFailed(node, attempt))
            if not isinstance(error, Transient):
                self.setting.forget_facts()
                self.facts = self.facts.without(*transport.needs)
        return missing

    async def _land(self) -> Sequence[Range]:
        """Verify all of it and commit; gives what turned out to be missing instead."""
        node = self.request.node.name
        missing = await self.landing.verify()
        if missing:
            left = manifests.total(missing)
            last = self.attempts[-1] if self.attempts else None
            self.last_error = IntegrityError(f"{left} bytes on the node are not what was sent", node=node)
            if last is not None:
                self.attempts[-1] = replace(last, error=str(self.last_error), failure="integrity")
            return missing
        self.setting.emit(Verified(node, self._digest()))
        try:
            self.destination = await self.landing.commit()
        except Transient as error:
            self.last_error = error
            await self.landing.open()
            missing = await self.landing.survey()
            if not missing:
                raise
            return missing
        self.digest = self._digest()
        self.setting.emit(Committed(node, self.destination))
        return ()

    async def _wait(self, seconds: float, why: str) -> None:
        if seconds > 0:
            self.setting.emit(Waiting(self.request.node.name, round(seconds, 2), why))
            await asyncio.sleep(seconds)

    async def _give_up(self, reason: str) -> None:
        """Raise what ended the move; bytes that are wrong again and again are put aside first."""
        node, last = self.request.node.name, self.last_error
        if any(attempt.failure == "integrity" for attempt in self.attempts):
            aside = await self.landing.quarantine()
            raise IntegrityError(
                reason, node=node, remedy=f"The part file was put aside as {aside!r} on the node; nothing was committed"
            ) from last
        if isinstance(last, Fatal):
            raise last
        raise TransportError(
            reason,
            node=node,
            remedy="What has arrived is kept: run the same command again to continue, or `rrmove probe` to look",
        ) from last

    # Words and ends

    async def tidy(self) -> None:
        """Let go of what runs beside the move and nobody waited for."""
        for task in self.aside:
            task.cancel()
        await asyncio.gather(*self.aside, return_exceptions=True)

    def _check_expected(self) -> None:
        expected = self.request.options.sha256
        if expected is not None:
            actual = manifests.file_sha256(self.request.source.path)
            if actual != expected.lower():
                raise IntegrityError(
                    f"{str(self.request.source.path)!r} has SHA-256 {actual}, not {expected}",
                    remedy="The source is not the file you meant; nothing was sent",
                )

    def _digest(self) -> str:
        expected = self.request.options.sha256
        return f"sha256:{expected.lower()}" if expected else f"{manifests.ALGORITHM}:{self.manifest.root}"

    def finished(self, error: RRMoveError | None = None) -> Outcome:
        outcome = Outcome(
            request=self.request,
            plan=self.plan,
            attempts=tuple(self.attempts),
            destination=self.destination,
            digest=self.digest if error is None else None,
            bytes_sent=self.sent,
            bytes_reused=self.reused,
            seconds=time.monotonic() - self.started,
            error=str(error) if error else None,
        )
        self.setting.emit(Finished(self.request.node.name, outcome))
        return outcome

    def failed(self, error: RRMoveError) -> RRMoveError:
        """Complete an error that is about to be raised."""
        if error.node is None and not isinstance(error, UsageError):
            error.node = self.request.node.name
        error.outcome = self.finished(error)
        return error


class _Tally:
    """What a transport says of itself while it works; good for progress, never for the verdict."""

    def __init__(self, run: _Run, missing: int) -> None:
        self._run, self._missing, self._done = run, missing, 0
        self.bytes_sent = 0
        self.heard = time.monotonic()
        self.lives: list[Life] = []

    def progress(self, count: int) -> None:
        self.heard = time.monotonic()
        self._done = min(self._missing, self._done + max(0, count))
        size = self._run.manifest.size
        self._run.setting.emit(Progressed(self._run.request.node.name, size - self._missing + self._done, size))

    def sent(self, count: int) -> None:
        self.heard = time.monotonic()
        self.bytes_sent += max(0, count)

    def emit(self, event: Event) -> None:
        if isinstance(event, ConnectionLost):
            self.lives.append(Life(event.age, event.carried))
        self._run.setting.emit(event)


async def _contained(work: object, tally: _Tally, node: str, name: str) -> RRMoveError | None:
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


def _kind(error: RRMoveError | None) -> FailureKind | None:
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


__all__ = ["Preview", "move", "move_sync", "preview", "watch"]
