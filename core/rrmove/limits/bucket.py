"""TokenBucket: a rate limit, smooth and shared by everything that sends under it; one may be within another."""

from __future__ import annotations

import asyncio
import math
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

BURST = 0.1  # s worth of tokens that may be saved up: below the quarter second that users notice


class TokenBucket:
    """Let `rate` bytes a second pass; None lets everything pass.

    Takers are served in the order in which they came. A taker may overdraw the bucket by its own
    count and the next one waits that off, so the long-run rate is exact whatever the counts are.
    What passes here has to pass `within`, too. `sharers` says how many buckets are within this one
    and at work at the same time: programs that limit themselves can count on an equal share only.
    `granted` is what others leave of `rate` for now, where it is shared with others (`limits.py`); it
    may be set by any thread, at any time.
    """

    def __init__(
        self,
        rate: float | None,
        clock: Callable[[], float] = time.monotonic,
        *,
        within: TokenBucket | None = None,
        sharers: int = 1,
    ) -> None:
        if rate is not None and not 0 < rate < math.inf:
            raise ValueError("a rate limit must be more than 0 bytes a second")
        self._rate, self._clock = rate, clock
        self._within, self._sharers = within, sharers
        self.sent = 0  # bytes that have left, as far as it was told
        self.throttle: float | None = None  # a lower rate, for a while: nothing that anybody should count on
        self.granted: float | None = None
        self.taken = 0  # bytes that were asked for
        self.landed = 0  # bytes that are on the node, as far as it was told
        self.waited = 0.0  # s in which somebody waited here for bytes to pass
        self._unpaid = 0  # bytes that were sent and not asked for
        self._tokens, self._then = 0.0, clock()
        self._turn = asyncio.Lock()

    @property
    def rate(self) -> float | None:
        """Bytes a second that one may use now; None without a limit. It may change where others share it."""
        return _least(self.ceiling, self.granted)

    @property
    def ceiling(self) -> float | None:
        """Bytes a second that `rate` never exceeds, whatever others leave; None without a limit."""
        return _least(self._rate, self._within.share if self._within is not None else None)

    @property
    def share(self) -> float | None:
        """Bytes a second that each of the sharers may count on; None without a limit."""
        return None if self._rate is None else self._rate / self._sharers

    async def take(self, count: int) -> None:
        """Wait until `count` bytes may leave."""
        async with self._turn:
            while (rate := self._pace()) is not None:
                self._refill(rate)
                if self._tokens >= 0 and rate > 0:
                    self._tokens -= count
                    break
                owed = -self._tokens / rate if rate > 0 else BURST
                fixed = self.throttle is None and self.granted is None
                before = self._clock()
                await asyncio.sleep(owed if fixed else min(owed, BURST))
                if self.throttle is None or rate < self.throttle:
                    self.waited += self._clock() - before
            self.taken += count
        if self._within is not None:
            self._unpaid -= count
            await self._within.take(count)

    def reckon(self, count: int) -> None:
        """Note bytes that have left; what a program sent without asking here, the other sharers wait off."""
        self.sent += count
        self._unpaid += count
        if self._within is not None and self._unpaid > 0:
            self._within.draw(self._unpaid)
            self._unpaid = 0

    def draw(self, count: int) -> None:
        """Take `count` bytes that have left already, and let the next takers wait."""
        if self._rate is not None:
            self._refill(self._rate)
            self._tokens -= count

    def _pace(self) -> float | None:
        return _least(self._rate, self.granted, self.throttle)

    def _refill(self, rate: float) -> None:
        now = self._clock()
        self._tokens = min(rate * BURST, self._tokens + (now - self._then) * rate)
        self._then = now


def _least(*rates: float | None) -> float | None:
    return min((rate for rate in rates if rate is not None), default=None)
