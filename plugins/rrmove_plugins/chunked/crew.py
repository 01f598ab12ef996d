"""The crew: the lanes of one attempt, from the first login to the last acknowledgement."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import os
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, cast

from rrmove import RTT, ConnectionLost, FilePart, Job, Lane, NoLogin, Range, Transient, TransportError, foremost, total
from rrmove_plugins.chunked.board import Board
from rrmove_plugins.chunked.lives import Lives
from rrmove_plugins.chunked.pace import LANE_WINDOW, LEAST_FRAME, Pace

if TYPE_CHECKING:
    from collections.abc import Coroutine

MOST_LANES = 16  # eight and sixteen gave the same rate over 150 ms
SHORT = 0.003  # s; with a shorter round trip one lane fills the link, and a second costs more than it brings
PER_LANE = 0.012  # s of round trip that one more lane pays for from the start: 2 MiB / 12 ms is 175 MB/s
WORTHWHILE = 1.05  # of the rate before, for lanes that were added to stay
LEAST_LOAD = 4 << 20  # bytes that a lane should have to carry for its login to pay
LOGINS_AT_ONCE = 8  # sshd's MaxStartups begins to refuse at ten that are not through yet
SHARES = (0.55, 0.4, 0.25, 0.15)  # of the window, by what lanes have carried; together more than there is
SILENCE = 1.2  # s without an acknowledgement, and ten round trips: a lane that others outlive is dead
ALL_SILENT = 5.0  # s, when no lane moves anything: then it may be the link, which can come back
FRUITLESS = 5  # connections in a row that die without a byte gained: the policy has to decide then
STEP = 0.05  # s between two looks of the foreman


class _Silent(Transient):
    """A lane was given up although its connection still stands."""


class Pulse:
    """Wakes whoever waits for anything to change."""

    def __init__(self) -> None:
        self._waiters: list[asyncio.Future[None]] = []

    def fire(self) -> None:
        """Wake all that wait now."""
        waiters, self._waiters = self._waiters, []
        for waiter in waiters:
            if not waiter.done():
                waiter.set_result(None)

    async def wait(self) -> None:
        """Wait for the next `fire()`."""
        waiter = asyncio.get_running_loop().create_future()
        self._waiters.append(waiter)
        await waiter


@dataclass(slots=True, eq=False)
class Member:
    """One lane at work."""

    lane: Lane
    number: int
    up: float | None = None
    last: float = 0.0
    given: int = 0
    acked: int = 0
    checks: int = 0
    over: bool = False
    tasks: set[asyncio.Task[None]] = field(default_factory=set)


class Crew:
    """Open lanes as they pay, keep them busy, replace those that die, until the board is done."""

    def __init__(self, job: Job, fd: int) -> None:
        self.job, self.fd = job, fd
        self.board: Board[Member] = Board.of(job.manifest, job.missing)
        self.members: list[Member] = []
        self.lives = Lives()
        self.pulse = Pulse()
        self.rtt = job.facts.get(RTT) or 0.02
        self.login = 0.3 + 12 * self.rtt  # s; corrected by every login that succeeds
        self.lanes = self._first_lanes()
        self.logins_at_once = LOGINS_AT_ONCE
        self.not_before = 0.0
        self.refusals = 0
        self.fruitless = 0
        self.gained = 0
        self.count = 0
        self.error: TransportError | None = None
        self.trial: tuple[float, int] | None = None
        self.settled = False
        self.measured = (time.monotonic(), 0)
        self.rate = 0.0
        self.pace = Pace(self.rtt)

    def _first_lanes(self) -> int:
        if self.rtt < SHORT:
            return 1
        by_size = max(1, total(self.job.missing) // LEAST_LOAD)
        return int(max(1, min(8, by_size, max(2, round(self.rtt / PER_LANE)))))

    async def run(self) -> None:
        """Work until every chunk is checked. Raises what makes going on senseless."""
        try:
            async with asyncio.TaskGroup() as group:
                self.group = group
                self._join(await self.job.session.control())
                while not self.board.done:
                    self._look_after()
                    if self.error is not None:
                        raise self.error
                    with contextlib.suppress(TimeoutError):
                        async with asyncio.timeout(STEP):
                            await self.pulse.wait()
                    await self._recruit()
                for member in self.members:
                    member.over = True
                self.pulse.fire()
                for member in self.members:
                    for task in member.tasks:
                        task.cancel()
        except BaseExceptionGroup as errors:
            raise foremost(errors) from errors
        finally:
            await self._go_home()

    async def _go_home(self) -> None:
        """Leave no lane that might still read the source; one idle lane stays for the core."""
        busy = [m for m in self.members if m.lane.alive and self.board.in_flight(m)]
        idle = [m for m in self.members if m.lane.alive and m not in busy and m.up is not None]
        await asyncio.shield(asyncio.gather(*(m.lane.close() for m in self.members if m not in idle[:1])))

    # The foreman

    def _look_after(self) -> None:
        now = time.monotonic()
        self._measure(now)
        moving = any(now - m.last < SILENCE for m in self.members)
        for member in list(self.members):
            if not member.lane.alive:
                continue
            if self.board.in_flight(member):
                patience = max(SILENCE, 10 * self.rtt) if moving else ALL_SILENT
                if now - member.last > patience:
                    self._spawn(member, self._abandon(member, now - member.last))
            elif self._due(member) and not member.checks and len(self.members) > 1:
                self._retire(member)

    def _measure(self, now: float) -> None:
        """Once in a while, see what the lanes bring, and whether one more would bring more."""
        then, gained = self.measured
        span = max(0.5, 6 * self.rtt) if self.trial is None else max(1.0, 8 * self.rtt)
        if now - then < span:
            return
        rate, self.measured = (self.gained - gained) / (now - then), (now, self.gained)
        self.rate = rate if not self.rate else max(rate, 0.5 * (rate + self.rate))
        up = len([m for m in self.members if m.up is not None and m.lane.alive])
        if self.rtt < SHORT or self.settled or up < self.lanes:
            return
        worth = self.board.left > rate * 4 * self.login
        if self.trial is None:
            if self.lanes < MOST_LANES and worth:
                self.trial = (rate, self.lanes)
                self.lanes = min(MOST_LANES, self.lanes + max(1, self.lanes // 3))
            return
        before, lanes = self.trial
        self.trial = None
        if rate < before * WORTHWHILE:
            self.lanes, self.settled = lanes, True

    def _due(self, member: Member) -> bool:
        """Tell whether a lane has had what connections live for here."""
        load, age = self.lives.load_limit, self.lives.age_limit
        if load is not None and member.given >= load:
            return True
        drain = self.rtt + 2 * len(self.members) * self.board.in_flight(member) / max(self.pace.rate, 1.0)
        return age is not None and member.lane.age + drain >= age

    def _active(self, member: Member) -> bool:
        """Tell whether a lane should be working: the oldest that are not due; the others are spares.

        Where connections die of age, a spare that waits would only grow old: all work then.
        """
        if self.lives.count and self.lives.load_limit is None:
            return True
        ready = [m for m in self.members if m.up is not None and m.lane.alive and not m.over and not self._due(m)]
        return member in ready[: self.lanes]

    async def _recruit(self) -> None:
        """Begin as many connections as are wanted, but never a storm of them."""
        now = time.monotonic()
        alive = [m for m in self.members if m.lane.alive and not self._due(m)]
        coming = [m for m in alive if m.up is None]
        wanted = min(MOST_LANES + 6, self.lanes + self._spares())
        if self.board.idle and any(m.up is not None for m in alive):
            return
        # What is left may be sent before a new connection is up.
        if self.rate and len(alive) > len(coming) and self.board.left < self.rate * self.login * 0.7:
            return
        while len(alive) < wanted and len(coming) < self.logins_at_once and now >= self.not_before:
            member = self._join(await self.job.session.open_lane())
            alive.append(member)
            coming.append(member)

    def _spares(self) -> int:
        if self.lives.count:
            return self.lives.spares(self.lanes, self.rate, self.login)
        return 1 if self.lanes > 1 and self.board.left > 4 * LEAST_LOAD else 0

    def _join(self, lane: Lane) -> Member:
        self.count += 1
        member = Member(lane, self.count)
        member.last = time.monotonic()
        self.members.append(member)
        self._spawn(member, self._work(member))
        return member

    def _ceiling(self, member: Member) -> int:
        """What one lane may have in flight: little where connections carry little, and never all there is.

        The lane that has carried the most gets the most. Lanes with equal shares would all be cut at
        the same time where a firewall counts bytes; so they are cut one after the other.
        """
        working = self._working()
        lanes = max(1, len(working))
        pool = self.pace.window(lanes)
        share = 1.0
        if lanes > 1:
            rank = sum(other.given > member.given for other in working)
            share = 1.5 / lanes if pool > lanes * LANE_WINDOW // 3 else SHARES[min(rank, len(SHARES) - 1)]
        limit = self.lives.load_limit or self.lives.suspected_load(max(m.acked for m in self.members))
        wide = min(LANE_WINDOW, max(2 * self.pace.frame(lanes), share * pool))
        return int(wide if limit is None else min(wide, max(LEAST_FRAME, limit / 8)))

    def _working(self) -> list[Member]:
        """The lanes that carry the load just now; not those that are late and may be dead."""
        late = self._late()
        return [m for m in self.members if m.up is not None and m.lane.alive and m.last > late and self._active(m)]

    def _late(self) -> float:
        """The time since when a lane that owes an acknowledgement should have been heard."""
        return time.monotonic() - 0.2 - 3 * self.rtt

    def _spawn(self, member: Member, work: Coroutine[object, object, None]) -> None:
        task = self.group.create_task(work)
        member.tasks.add(task)
        task.add_done_callback(member.tasks.discard)

    # One lane

    async def _work(self, member: Member) -> None:
        lane, board = member.lane, self.board
        try:
            await lane.ready()
            self._came_up(member)
            while not board.done and not member.over and lane.alive:
                self._check(member)  # chunks whose check went down with a lane, too
                if not self._active(member):
                    await self.pulse.wait()
                    continue
                doubts = board.doubts(2 << 20)
                if doubts:
                    await self._resolve(member, doubts)
                    continue
                span = self._next(member)
                if span is None:
                    await self.pulse.wait()
                    continue
                await self._send(member, span)
        except TransportError as error:
            self._lost(member, error)

    def _next(self, member: Member) -> Range | None:
        """Give a lane its next span, None where it has enough in flight, or nothing is to do."""
        board, working = self.board, self._working()
        lanes = max(1, len(working))
        flying = board.in_flight(member)
        if flying and flying >= min(self._ceiling(member), member.lane.frame_limit * 4):
            return None
        if flying and sum(board.in_flight(m) for m in working) >= self.pace.window(lanes):
            return None
        frame = min(self.pace.frame(lanes), member.lane.frame_limit, max(LEAST_FRAME, self._ceiling(member) // 2))
        rate = self.job.limiter.rate
        if rate is not None:
            frame = int(min(frame, max(4096, rate / 20)))
        load = self.lives.load_limit
        if load is not None:
            frame = int(min(frame, max(4096, load - member.given)))
        span = board.take(member, frame)
        if span is None and not flying:
            slowest = max(self.members, key=self._drain)
            if self._drain(slowest) > 0.1 + 2 * self.rtt:
                span = board.hedge(member, slowest)
        return span

    def _drain(self, member: Member) -> float:
        """Expect a lane's flight to be acknowledged within so many seconds, at the rate it has had so far."""
        flying = self.board.in_flight(member)
        if not flying or member.up is None:
            return 0.0
        now = time.monotonic()
        return max(now - member.last, flying * (now - member.up) / max(member.acked, 1))

    async def _send(self, member: Member, span: Range) -> None:
        await self.job.limiter.take(span.length)
        if not member.lane.alive:
            self.board.returned(member, span)
            return
        if not self.board.in_flight(member) - span.length:
            member.last = time.monotonic()
        member.given += span.length
        self._spawn(member, self._put(member, span))
        await asyncio.sleep(0)
        index = self.board.early(member, span)
        if index is not None:
            member.checks += 1
            self._spawn(member, self._verify(member, index))

    async def _put(self, member: Member, span: Range) -> None:
        left = time.monotonic()
        self.job.sent(span.length)
        try:
            await member.lane.call(
                "put", FilePart(self.fd, span.start, span.length), part=self.job.landing.part, at=span.start
            )
        except TransportError as error:
            self._lost(member, error)
            return
        member.last = time.monotonic()
        self.pace.arrive(member.last, left, span.length)
        member.acked += span.length
        self._gain(self.board.landed(member, span))
        self._check(member)
        self.pulse.fire()

    def _gain(self, news: int) -> None:
        if news:
            self.gained += news
            self.fruitless = 0
            self.job.progress(news)

    def _check(self, member: Member) -> None:
        for index in self.board.ready():
            member.checks += 1
            self._spawn(member, self._verify(member, index))

    async def _verify(self, member: Member, index: int) -> None:
        try:
            wrong = await self.job.landing.check([index], member.lane)
        except TransportError as error:
            self.board.unchecked(index)
            self._lost(member, error)
            self.pulse.fire()
            return
        finally:
            member.checks -= 1
        self.board.verdict(index, good=not wrong)
        self.pulse.fire()

    async def _resolve(self, member: Member, spans: list[Range]) -> None:
        """Learn what a dead lane's agent still wrote, before anything is sent again."""
        try:
            reply = await member.lane.call(
                "hash", path=self.job.landing.part, spans=[[span.start, span.length] for span in spans]
            )
        except TransportError:
            self.board.doubt(spans)
            raise
        digests = cast("list[str | None]", reply.fields["digests"])
        member.last = time.monotonic()
        for span, digest in zip(spans, digests, strict=True):
            if digest == hashlib.sha256(os.pread(self.fd, span.length, span.start)).hexdigest():
                self._gain(self.board.found(span))
            else:
                self.board.again(span)
        self._check(member)
        self.pulse.fire()

    def _came_up(self, member: Member) -> None:
        self.pace.widen(max(1, len(self._working())))
        member.up = member.last = time.monotonic()
        self.refusals = 0
        if member.number > 1:
            self.login = 0.5 * (self.login + member.lane.age)
        self.pulse.fire()

    # Ends

    async def _abandon(self, member: Member, quiet: float) -> None:
        error = _Silent(f"nothing was acknowledged for {quiet:.1f} s", node=self.job.request.node.name)
        self._lost(member, error)
        await member.lane.close()

    def _retire(self, member: Member) -> None:
        """Let a lane go that has carried what connections carry here, before it is cut."""
        self.members.remove(member)
        member.over = True
        self.board.lost(member)
        self.group.create_task(member.lane.close())
        self.pulse.fire()

    def _lost(self, member: Member, error: TransportError) -> None:
        """Keep account of a lane that is gone, once."""
        if member not in self.members:
            return
        if not isinstance(error, Transient):
            self.error = self.error or error
            self.pulse.fire()
            return
        if member.lane.alive and not isinstance(error, _Silent):
            self.error = self.error or error  # the connection is well: the part file is not
            self.pulse.fire()
            return
        self.members.remove(member)
        member.over = True
        self.board.lost(member)
        now = time.monotonic()
        if member.up is None:
            self._refused(now, error)
        else:
            if member.acked:
                self.lives.lost(member.lane.age, member.acked)
            self.fruitless += 1
            self.job.emit(
                ConnectionLost(
                    self.job.request.node.name, "chunked", error.what, round(member.lane.age, 2), member.lane.carried
                )
            )
        alive = [m for m in self.members if m.lane.alive and m.up is not None]
        if self.fruitless >= FRUITLESS and not alive:
            self.error = self.error or error
        self.pulse.fire()

    def _refused(self, now: float, error: TransportError) -> None:
        """A login that failed slows us down; without any lane left, it ends the attempt in the end."""
        self.refusals += 1
        self.logins_at_once = max(1, self.logins_at_once // 2)
        self.not_before = now + min(8.0, 0.25 * 2**self.refusals)
        alive = [m for m in self.members if m.lane.alive]
        if not alive and (self.refusals >= FRUITLESS or (isinstance(error, NoLogin) and error.hopeless)):
            self.error = self.error or error


__all__ = ["Crew"]
