"""TokenBucket: the rate limit of a move, smooth and shared by everything that sends for it."""

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
    """

    def __init__(self, rate: float | None, clock: Callable[[], float] = time.monotonic) -> None:
        if rate is not None and not 0 < rate < math.inf:
            raise ValueError("a rate limit must be more than 0 bytes a second")
        self._rate, self._clock = rate, clock
        self._tokens, self._then = 0.0, clock()
        self._turn = asyncio.Lock()

    @property
    def rate(self) -> float | None:
        """Bytes a second; None without a limit."""
        return self._rate

    async def take(self, count: int) -> None:
        """Wait until `count` bytes may leave."""
        if self._rate is None:
            return
        async with self._turn:
            self._refill(self._rate)
            while self._tokens < 0:
                await asyncio.sleep(-self._tokens / self._rate)
                self._refill(self._rate)
            self._tokens -= count

    def _refill(self, rate: float) -> None:
        now = self._clock()
        self._tokens = min(rate * BURST, self._tokens + (now - self._then) * rate)
        self._then = now
