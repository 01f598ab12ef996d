"""The rate limit: exact in the long run, fair, and nothing at all where there is none."""

from __future__ import annotations

import asyncio
import math
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rrmove.limits.bucket import BURST, TokenBucket

if TYPE_CHECKING:
    from rrmove.transport import Limiter

_: type[Limiter] = TokenBucket  # it is what transports are given, or mypy objects


class Clock:
    """Time that passes only when somebody sleeps, and then as late as `late` says."""

    def __init__(self, late: float = 0.0) -> None:
        self.now, self.late, self.sleeps = 0.0, late, 0

    def __call__(self) -> float:
        return self.now

    async def sleep(self, seconds: float) -> None:
        self.sleeps += 1
        self.now += max(seconds, 1e-9) + self.late
        await _yield()


_real_sleep = asyncio.sleep


async def _yield() -> None:
    await _real_sleep(0)


def taken(rate: float, counts: list[int], late: float = 0.0) -> list[float]:
    """Take counts one after the other from a fresh bucket and give the times at which each passed."""
    clock, times = Clock(late), list[float]()

    async def work() -> None:
        bucket = TokenBucket(rate, clock)
        for count in counts:
            await bucket.take(count)
            times.append(clock.now)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("rrmove.limits.bucket.asyncio.sleep", clock.sleep)
        asyncio.run(work())
    return times


@given(st.integers(1, 1 << 30), st.lists(st.integers(0, 1 << 22), min_size=1, max_size=30))
def test_what_left_before_never_exceeds_the_rate(rate: int, counts: list[int]) -> None:
    times, before = taken(rate, counts), 0
    for now, count in zip(times, counts, strict=True):
        # A taker may overdraw by its own count, but all before it have been waited off, and no more.
        assert now == pytest.approx(before / rate, rel=1e-6, abs=1e-6)
        before += count


@given(st.floats(0.0, 0.05), st.integers(1, 2000))
def test_sleeping_too_long_costs_no_rate(late: float, count: int) -> None:
    rate = 100_000.0
    times = taken(rate, [count] * 400, late)
    # What oversleeping lost is caught up as long as it stays within the burst.
    assert times[-1] == pytest.approx(399 * count / rate, rel=0.01, abs=BURST + late)


def test_a_pause_saves_up_no_more_than_the_burst(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, times = Clock(), list[float]()

    async def work() -> None:
        bucket = TokenBucket(1000, clock)
        clock.now = 3600.0
        for _ in range(10):
            await bucket.take(50)
            times.append(clock.now - 3600.0)

    monkeypatch.setattr("rrmove.limits.bucket.asyncio.sleep", clock.sleep)
    asyncio.run(work())
    assert times == pytest.approx([0, 0, 0, 0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.35], abs=1e-6)


def test_takers_are_served_in_the_order_of_their_coming(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, served = Clock(), list[tuple[int, float]]()

    async def work() -> None:
        bucket = TokenBucket(100, clock)

        async def one(number: int, count: int) -> None:
            await bucket.take(count)
            served.append((number, clock.now))

        async with asyncio.TaskGroup() as group:
            for number, count in enumerate([500, 1, 1, 300, 1]):
                group.create_task(one(number, count))

    monkeypatch.setattr("rrmove.limits.bucket.asyncio.sleep", clock.sleep)
    asyncio.run(work())
    assert [number for number, _ in served] == [0, 1, 2, 3, 4]
    # Small takers do not slip past a large one, and pay for what it overdrew.
    assert [now for _, now in served] == pytest.approx([0, 5, 5.01, 5.02, 8.02], abs=1e-6)


def test_a_taker_that_gives_up_holds_up_nobody() -> None:
    async def work() -> None:
        bucket = TokenBucket(1e-3)
        await bucket.take(1000)
        waiting = [asyncio.create_task(bucket.take(1)) for _ in range(3)]
        await asyncio.sleep(0)
        for task in waiting[:2]:
            task.cancel()
        await asyncio.gather(*waiting[:2], return_exceptions=True)
        assert not waiting[2].done()
        assert bucket._turn.locked()  # the third one's turn it is
        waiting[2].cancel()
        await asyncio.gather(waiting[2], return_exceptions=True)
        assert not bucket._turn.locked()

    asyncio.run(work())


async def test_without_a_limit_everything_passes_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock()
    monkeypatch.setattr("rrmove.limits.bucket.asyncio.sleep", clock.sleep)
    bucket = TokenBucket(None, clock)
    for _ in range(1000):
        await bucket.take(1 << 40)
    assert (bucket.rate, clock.sleeps) == (None, 0)


@pytest.mark.parametrize("rate", [0, 0.0, -1, -math.inf, math.inf, math.nan])
def test_a_rate_that_is_none_is_refused(rate: float) -> None:
    with pytest.raises(ValueError, match="rate limit"):
        TokenBucket(rate)
