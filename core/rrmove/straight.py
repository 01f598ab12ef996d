"""The straight line: a request, the facts, a plan, attempts, verification, the renamed file."""

from __future__ import annotations

import asyncio
import contextlib
import math
import random
import time
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from rrmove import manifest as manifests
from rrmove.children import adopting, children, end_all
from rrmove.containment import Loan, Tally, contained, kind_of
from rrmove.errors import Fatal, IntegrityError, RRMoveError, Transient, TransportError, Unusable, UsageError
from rrmove.events import (
    AttemptFailed,
    AttemptStarted,
    Committed,
    Finished,
    LeftBehind,
    Planned,
    Progressed,
    Unshared,
    Verified,
    Waiting,
)
from rrmove.landing import PartFile, locate
from rrmove.link import UNKNOWN_RATE
from rrmove.model import Attempt, GiveUp, Outcome, Plan, Succeed, Try
from rrmove.plan import make_plan, require_route
from rrmove.policy import next_action
from rrmove.probe import Facts
from rrmove.siblings.choice import worth
from rrmove.ssh.failures import StaleError
from rrmove.ssh.pipes import running
from rrmove.transport import Job
from rrmove.unended import begun

if TYPE_CHECKING:
    from collections.abc import Coroutine, Sequence

    from rrmove.knowledge import Knowledge, Life
    from rrmove.manifest import Manifest, Range
    from rrmove.model import Request
    from rrmove.session import Session
    from rrmove.setting import Setting

CONTESTED = 3  # times that somebody else may be at the part file between its verification and the commit
SMALL = 4 << 20  # bytes up to which a file does not wait for the node's facts: some 3 round trips of sending


@dataclass(slots=True)
class Run:
    """One move under way: what has been found out so far, and the steps of the straight line."""

    setting: Setting
    started: float
    manifest: Manifest = field(init=False)
    facts: Facts = field(default_factory=Facts)
    aside: list[asyncio.Task[Any]] = field(default_factory=list)
    judging: asyncio.Task[None] = field(init=False)
    landing: PartFile = field(init=False)
    knowledge: Knowledge = field(init=False)
    plan: Plan = field(default_factory=lambda: Plan(()))
    attempts: list[Attempt] = field(default_factory=list)
    lives: list[Life] = field(default_factory=list)
    contested: int = 0
    sent: int = 0
    reused: int = 0
    digest: str | None = None
    destination: str | None = None
    last_error: RRMoveError | None = None

    @property
    def request(self) -> Request:
        """What was asked for."""
        return self.setting.request

    @property
    def session(self) -> Session:
        """The login on the node."""
        return self.setting.session

    # The straight line

    async def straight(self) -> None:
        """Take the request to its end; returns when the file stands under its name, verified."""
        await self.look()
        self.judging = asyncio.create_task(self._judge())
        self.aside.append(self.judging)
        if self.setting.seat is not None and self.landing.place.size == self.manifest.size:
            self.setting.seat.checks()
        if await self.landing.arrived():
            await self.judging
            self._has_it(self.landing.place.target)
            self.reused = self.landing.manifest.size
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
        self.reused = max(0, self.landing.manifest.size - manifests.total(missing))
        self.setting.emit(Progressed(self.request.node.name, self.reused, self.landing.manifest.size))
        await self._seek(manifests.total(missing))
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
                    missing = await self._unless_rejected(self._attempt(step.transport, missing))
                    if self.digest is not None:
                        await self.judging
                        return
                case Succeed():
                    missing = await self._land()
                    if self.digest is not None:
                        return
                case GiveUp(reason):
                    await self._give_up(reason)

    async def _judge(self) -> None:
        """Have whoever wants to judge the file do so. Raises RejectedError."""
        await self.setting.common.judged()

    async def _unless_rejected(self, attempt: Coroutine[Any, Any, Sequence[Range]]) -> Sequence[Range]:
        """Await an attempt, and end it where the file is turned down meanwhile: it need not be sent."""
        sending = asyncio.create_task(attempt)
        try:
            await asyncio.wait({sending, self.judging}, return_when=asyncio.FIRST_COMPLETED)
            if not sending.done():
                await self.judging
            return await sending
        finally:
            sending.cancel()
            await asyncio.gather(sending, return_exceptions=True)

    async def _seek(self, missing: int) -> None:
        """Look for a sibling that passes the file on, where that may pay, and rank again with what was found."""
        seat, request = self.setting.seat, self.request
        if seat is None or not missing:
            return
        seat.sits(self.session, request.node, self.facts, self.landing.part, self.manifest.size)
        allowed = request.shared_limit or math.inf
        if not worth(missing, request.audience, min(self.setting.uplink() or UNKNOWN_RATE, allowed)):
            return
        seat.feeds = self.setting.registry.transports[self.plan.steps[0].transport].capabilities.route
        offer = await seat.seek()
        # Who is fed so that the others can pull shares our line with nobody.
        audience = 1 if offer.first else request.audience
        self.setting.request = replace(request, offer=offer, audience=audience)
        self.rank()

    def _has_it(self, file: str) -> None:
        """Let siblings know that this node can pass the file on."""
        seat = self.setting.seat
        if seat is not None:
            seat.sits(self.session, self.request.node, self.facts, file, self.manifest.size)
            seat.whole(file, size=self.manifest.size)

    async def look(self, *, only_look: bool = False) -> None:
        """Hash the source and look at the node, at the same time, in one login.

        A small file does not wait for the facts: what is unknown refuses nothing, and it is there
        before they would have changed anything.
        """
        looking = asyncio.create_task(self.setting.facts(fresh=only_look))
        self.aside.append(looking)
        if not only_look:
            self.aside.append(asyncio.create_task(self.setting.begin_lanes()))
            await self.setting.prepare()
        self.manifest = await self.setting.common.hashed()
        options = self.request.options
        freely = not (only_look or options.only or options.without)
        place = await locate(self.session, self.request, self.manifest, opening=freely)
        self.landing = PartFile(self.session, self.request, self.manifest, place)
        if not freely or self.manifest.size > SMALL or looking.done():
            self.facts = await looking
        self.knowledge = self.setting.knowledge()

    def rank(self) -> None:
        """Rank the transports by what is known now."""
        siblings = self.setting.common.siblings
        if siblings is not None and self.request.offer is None:
            self.setting.request = replace(self.request, audience=max(1, siblings.audience))
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
                uplink=self.setting.uplink() if self.request.audience > 1 else None,
            ),
        )
        self.setting.emit(Planned(self.request.node.name, self.plan))

    async def _attempt(self, name: str, missing: Sequence[Range]) -> Sequence[Range]:
        """Let one transport work, whatever it does; then see for ourselves what is missing."""
        transport, node = self.setting.registry.transports[name], self.request.node.name
        before, started, clock = manifests.total(missing), time.time(), time.monotonic()
        size = self.landing.manifest.size
        tally = Tally(self.setting.emit, node, size, before)
        own = name in self.setting.registry.own
        self.landing.lent(own=own, lanes_only=transport.capabilities.lanes_only)
        loan = Loan(self.session)

        def sent(count: int) -> None:
            tally.sent(count)
            self.setting.limiter.reckon(count)

        def progress(count: int) -> None:
            tally.progress(count)
            self.setting.limiter.landed += count

        if self.setting.seat is not None:
            expected = next((step.estimate.seconds for step in self.plan.steps if step.transport == name), math.inf)
            self.setting.seat.starts(transport.capabilities.route, expected)
        self.setting.emit(AttemptStarted(node, name, before, size))
        job = Job(
            request=self.request,
            manifest=self.landing.manifest,
            missing=tuple(missing),
            facts=self.facts,
            session=loan,
            landing=self.landing,
            limiter=self.setting.limiter,
            progress=progress,
            sent=sent,
            emit=tally.emit,
            siblings=self.setting.seat,
        )
        route = transport.capabilities.route
        async with self.setting.common.at_work(
            self.request.node, route, lambda why: self.setting.emit(Unshared(node, why))
        ):
            error = await self._watched(name, transport.send(job), tally, loan)
        lives = tally.lives
        self.lives += lives
        try:
            if error is not None and await self.landing.overtaken():
                self.destination, self.digest = self.landing.place.target, self._digest()
                error, missing = None, ()
            elif error is not None or self.landing.missing or self.landing.foreign:
                await self.landing.open()
                # What a foreign writer says is complete is read as a whole, once its writer is gone, but for what was
                # verified since it was sealed: then it need not be read again before the commit.
                missing = await (self.landing.verify() if error is None else self.landing.survey())
            else:
                missing = ()
        except RRMoveError as trouble:
            error = error if isinstance(error, Fatal | IntegrityError) else trouble
        lacking = manifests.total(missing)
        if error is None and lacking:
            said = f"{name} returned as if all were there, but {lacking} bytes are missing on the node"
            error = Transient(said, node=node) if lacking < before else Unusable(said, node=node)
        attempt = Attempt(
            transport=name,
            started=started,
            seconds=time.monotonic() - clock,
            bytes_sent=tally.bytes_sent,
            gained=max(0, before - lacking),
            error=str(error) if error else None,
            failure=kind_of(error),
        )
        self.attempts.append(attempt)
        self.sent += attempt.bytes_sent
        self.setting.remember(attempt, before, self.plan, self.facts, lives)
        if error is not None:
            self.last_error = error
            self.setting.emit(AttemptFailed(node, attempt))
            if not isinstance(error, Transient):
                self.setting.forget_facts()
                self.facts = self.facts.without(*self.setting.registry.needs.get(name, ()))
        return missing

    async def _watched(
        self, name: str, work: Coroutine[Any, Any, None], tally: Tally, loan: Loan
    ) -> RRMoveError | None:
        """Await a transport's work, whatever comes of it, and end what it leaves behind."""
        options, own = self.request.options, name in self.setting.registry.own
        others = children() if options.alone else frozenset()
        with contextlib.nullcontext() if own else begun(name), adopting(yes=options.alone and not own):
            error = await contained(work, tally, loan, name, options.patience)
            loan.end()
            if options.alone and (left := await end_all(lambda: children() - others - running())):
                self.setting.emit(LeftBehind(self.request.node.name, name, left))
        return error

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
        await self.judging
        try:
            self.destination = await self.landing.commit()
        except Transient as error:
            self.last_error = error
            await self.landing.open()
            missing = await self.landing.survey()
            self.contested += isinstance(error, StaleError)
            if not missing and not 0 < self.contested <= CONTESTED:
                raise
            return missing
        self.digest = self._digest()
        self._has_it(self.destination)
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

    def _digest(self) -> str:
        expected = self.request.options.sha256
        return f"sha256:{expected.lower()}" if expected else f"{manifests.ALGORITHM}:{self.manifest.root}"

    def _verified(self) -> tuple[str, ...]:
        return ("source", "sha256") if self.request.options.sha256 else ("source",)

    def _unverified(self) -> str | None:
        return None

    def foreseen(self) -> str:
        """Give the digest that the file will have as far as it is known now, ALGORITHM:HEX."""
        return f"{manifests.ALGORITHM}:{self.manifest.root}"

    def finished(self, error: RRMoveError | None = None) -> Outcome:
        """Sum up the move, and tell whoever watches."""
        outcome = Outcome(
            request=self.request,
            plan=self.plan,
            attempts=tuple(self.attempts),
            destination=self.destination,
            digest=self.digest if error is None else None,
            verified=self._verified() if error is None and self.digest else (),
            unverified=self._unverified() if error is None and self.digest else None,
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
