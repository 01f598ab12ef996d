"""Limits: the moves of this process at the limits that they share, with each other and with other processes."""

from __future__ import annotations

import asyncio
import contextlib
import math
import os
import threading
import time
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import TYPE_CHECKING

from rrmove.limits.claims import AGE, Claimant, Claims
from rrmove.limits.division import Claim, divide, granted

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Sequence

    from rrmove.limits.bucket import TokenBucket
    from rrmove.model import Limit

TICK = 0.25  # s between two looks; what somebody cannot use, others have three or four of them later
SETTLING = 0.5  # s, the time constant of what is taken for a move's use: below, frames and looks at the disk show
GRACE = 1.0  # s that a move may take to begin before it counts how much it moves
STRAINED = 0.5  # of the time somebody waits for bytes to pass: it is the limit that holds this move
ROOM = (
    1.15  # what a move that does not wait may take more than it did, and is seen to wait as soon as that is too little
)
LEAST = 0.0025  # of its limit is left to a move that moves nothing, until somebody waits again
# Programs that limit themselves do not wait here. They are judged by what comes onto the node's disk, and that in lumps
# of a chunk (2 MiB), so over so many bytes or seconds; whoever comes near to what it may use could use more.
SPAN, SHORTEST, LONGEST = 8 << 20, 1.0, 4.0
NEAR, ROOM_UNASKED, LEAST_UNASKED = 0.75, 1.5, 0.1
FIRST = 1.0  # s that an attempt waits for a share: the others give it up within a tick


class Mover:
    """A move at work under limits: what it uses, what it could use, and whom to tell."""

    def __init__(
        self, bucket: TokenBucket, limits: Sequence[Limit], weight: float, tell: Callable[[str], None]
    ) -> None:
        self.bucket, self.limits, self.weight = bucket, tuple(limits), weight
        self.lowest = min(limit.rate for limit in limits)
        self.demand = math.inf
        self._tell, self._loop = tell, asyncio.get_running_loop()
        self._first = asyncio.Event()
        self._began = self._then = time.monotonic()
        self._seen = self._start = (bucket.taken, bucket.landed, bucket.waited)
        self._use = self._strain = 0.0
        self._span, self._allowed, self._landed = (
            0.0,
            0.0,
            bucket.landed,
        )  # s, bytes, bytes: programs are judged by them
        bucket.granted = 0.0

    @property
    def claim(self) -> Claim:
        """What it wants."""
        return Claim(tuple(limit.scope for limit in self.limits), self.weight, self.demand, self.bucket.granted or 0.0)

    def look(self, now: float) -> None:
        """Judge from what has passed since the last look what it could use."""
        span = now - self._then
        if span < TICK / 2:
            return
        seen = (self.bucket.taken, self.bucket.landed, self.bucket.waited)
        taken, _, waited = (max(0.0, is_ - was) / span for is_, was in zip(seen, self._seen, strict=True))
        self._then, self._seen = now, seen
        part = -math.expm1(-span / SETTLING)
        self._use += part * (taken - self._use)
        self._strain += part * (waited - self._strain)
        asked, landed = (is_ - was for is_, was in zip(seen[:2], self._start[:2], strict=True))
        if not self._judged_by_disk(span, unasked=not asked or landed > 2 * asked):
            strained = now - self._began < GRACE or max(waited, self._strain) >= STRAINED
            self.demand = math.inf if strained else max(LEAST * self.lowest, self._use * ROOM)

    def _judged_by_disk(self, span: float, *, unasked: bool) -> bool:
        """Judge a program that limits itself, where it is one; what was said of it last holds meanwhile."""
        self._span += span
        self._allowed += span * (self.bucket.granted or 0.0)
        if self._span >= LONGEST or (self._allowed >= SPAN and self._span >= SHORTEST):
            landed = self.bucket.landed - self._landed
            if unasked:
                near = landed >= NEAR * self._allowed
                least = LEAST_UNASKED * self.lowest
                self.demand = math.inf if near else max(least, landed / self._span * ROOM_UNASKED)
            self._span, self._allowed, self._landed = 0.0, 0.0, self.bucket.landed
        return unasked

    def grant(self, rate: float) -> None:
        """Let it use so much from now on."""
        self.bucket.granted = rate
        if rate > 0:
            self._call(self._first.set)

    def say(self, what: str) -> None:
        """Tell whoever watches the move."""
        self._call(lambda: self._tell(what))

    async def begin(self) -> None:
        """Wait for the first share, for a while: some programs are told at their start what they may use."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(FIRST):
                await self._first.wait()

    def _call(self, what: Callable[[], object]) -> None:
        with contextlib.suppress(RuntimeError):  # its loop is closed: nobody listens
            self._loop.call_soon_threadsafe(what)


class Limits:
    """All movers of this process, whatever loops they run in, and the thread that looks after their shares.

    The thread lives as long as somebody is at work. Where the file that processes share cannot be
    used, the limits hold for this process alone, and one of its moves is told so, once.
    """

    def __init__(self) -> None:
        self._lock, self._wake = threading.Lock(), threading.Event()
        self._movers: list[Mover] = []
        self._thread: threading.Thread | None = None
        self._said = ""

    def join(self, mover: Mover) -> None:
        """Give a mover its share from now on."""
        with self._lock:
            self._movers.append(mover)
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="limits", daemon=True)
                self._thread.start()
        self._wake.set()

    def leave(self, mover: Mover) -> None:
        """Give a mover's share back."""
        with self._lock:
            self._movers.remove(mover)
        self._wake.set()

    def _run(self) -> None:
        claims, shared = Claims(), time.monotonic()
        while True:
            self._wake.clear()
            with self._lock:
                movers = list(self._movers)
                if not movers:
                    self._thread = None
                    break
            now = time.monotonic()
            for mover in movers:
                mover.look(now)
            trouble = _turn(claims, movers)
            if trouble is None:
                shared = now
            elif not _passing(trouble) or now - shared > AGE:
                # Longer than that, and the others have taken us for gone.
                self._alone(movers, f"{claims.path}: {trouble}")
            self._wake.wait(TICK)
        with contextlib.suppress(*_unusable()):
            claims.leave()
        claims.close()

    def _alone(self, movers: Sequence[Mover], why: str) -> None:
        for mover, claim in zip(movers, _decided(movers, ()).claims, strict=True):
            mover.grant(claim.granted)
        if not self._said:
            self._said = why
            movers[0].say(why)


def _turn(claims: Claims, movers: Sequence[Mover]) -> Exception | None:
    """Agree with the other processes on what each mover gets; gives what stood in the way."""

    def at_once(mine: Claimant) -> None:
        for mover, claim in zip(movers, mine.claims, strict=True):
            mover.bucket.granted = min(mover.bucket.granted or 0.0, claim.granted)

    trouble: Exception | None = None
    for _ in range(2):  # again where the file was none, and was made anew
        decided = Claimant({}, ())

        def decide(others: Sequence[Claimant]) -> Claimant:
            nonlocal decided
            decided = _decided(movers, others)
            return decided

        try:
            claims.turn(decide, at_once)
        except _unusable() as error:
            trouble = error
            if _passing(error):
                return error
        else:
            for mover, claim in zip(movers, decided.claims, strict=True):
                mover.grant(claim.granted)
            return None
    return trouble


def _decided(movers: Sequence[Mover], others: Sequence[Claimant]) -> Claimant:
    """Divide the limits among all who want something of them, and give what this process says of its own."""
    own = _lowest([{limit.scope: limit.rate for limit in mover.limits} for mover in movers])
    limits = _lowest([own, *(dict(other.limits) for other in others)])
    mine, theirs = [mover.claim for mover in movers], [claim for other in others for claim in other.claims]
    wanted = divide(limits, [*mine, *theirs])[: len(mine)]
    given = granted(limits, mine, theirs, wanted)
    return Claimant(own, tuple(replace(claim, granted=rate) for claim, rate in zip(mine, given, strict=True)))


def _lowest(said: Sequence[dict[str, float]]) -> dict[str, float]:
    """Merge what several say of limits: where they differ, the lowest holds."""
    found: dict[str, float] = {}
    for limits in said:
        for scope, rate in limits.items():
            found[scope] = min(rate, found.get(scope, rate))
    return found


def _unusable() -> tuple[type[Exception], ...]:
    import sqlite3

    return (sqlite3.Error, OSError, ValueError, KeyError, TypeError)  # the last two: another program wrote there


def _passing(error: Exception) -> bool:
    import sqlite3

    code = getattr(error, "sqlite_errorcode", sqlite3.SQLITE_OK) & 0xFF
    return code in {sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED}


_here = Limits()


def _forked() -> None:
    global _here  # noqa: PLW0603  the thread has stayed with the parent, and so have its moves
    _here = Limits()


os.register_at_fork(after_in_child=_forked)


@asynccontextmanager
async def shared(
    bucket: TokenBucket, limits: Sequence[Limit], weight: float, tell: Callable[[str], None]
) -> AsyncIterator[None]:
    """Let a move have its share of limits while it works; without any, nothing is opened nor waited for.

    `bucket.granted` is the share, from now on and ever anew. `tell` is called in the event loop,
    with the reason, where limits hold for this process alone.
    """
    if not limits:
        yield
        return
    here, mover = _here, Mover(bucket, limits, weight, tell)
    here.join(mover)
    try:
        await mover.begin()
        yield
    finally:
        here.leave(mover)


__all__ = ["shared"]
