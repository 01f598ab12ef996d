"""Pace over a simulated link: the window finds the bandwidth-delay product, and keeps off the extremes."""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Callable
from dataclasses import dataclass

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rrmove_plugins.chunked.pace import (
    LEAST_FRAME,
    LEAST_WINDOW,
    MOST_FRAME,
    MOST_WINDOW,
    Departure,
    Pace,
)

KIB, MIB = 1 << 10, 1 << 20


@dataclass
class Link:
    """A bottleneck of `rate` bytes a second with a queue before it, and `rtt` seconds there and back."""

    rate: Callable[[float], float]
    rtt: float
    free: float = 0.0

    def acknowledged(self, now: float, length: int) -> float:
        """When a frame that leaves now is acknowledged: after those before it, its own length, and the way."""
        self.free = max(self.free, now) + length / self.rate(now)
        return self.free + self.rtt


@dataclass
class Run:
    pace: Pace
    link: Link
    frames: list[int]
    delivered: list[tuple[float, int]]

    def goodput(self, since: float, until: float) -> float:
        return sum(length for when, length in self.delivered if since < when <= until) / (until - since)


def run(pace: Pace, rate: float | Callable[[float], float], rtt: float, seconds: float) -> Run:
    """Send without end, as a lane does: whenever the window has room, another frame leaves."""
    link = Link(rate if callable(rate) else lambda _: rate, rtt)
    flying: list[tuple[float, int, Departure]] = []
    now, in_flight, numbers = 0.0, 0, itertools.count()
    result = Run(pace, link, [], [])
    while now < seconds:
        while in_flight < pace.window:
            length = pace.frame
            result.frames.append(length)
            heapq.heappush(flying, (link.acknowledged(now, length), next(numbers), pace.depart(now, length)))
            in_flight += length
        now, _, departure = heapq.heappop(flying)
        in_flight -= departure.length
        pace.arrive(now, departure)
        result.delivered.append((now, departure.length))
    return result


LINKS = [(rate * 1e6 / 8, rtt / 1000) for rate in (20, 100, 400) for rtt in (20, 80, 150)]


@pytest.mark.parametrize(("rate", "rtt"), LINKS)
def test_the_window_settles_at_a_small_multiple_of_the_product(rate: float, rtt: float) -> None:
    product = rate * rtt
    found = run(Pace(rtt), rate, rtt, max(12 * rtt, 1.5))
    floor, ceiling = max(LEAST_WINDOW, 1.0 * product), max(LEAST_WINDOW, 3 * product + 2 * MIB)
    assert min(floor, MOST_WINDOW) <= found.pace.window <= min(ceiling, MOST_WINDOW)
    end = found.delivered[-1][0]
    reachable = min(rate, MOST_WINDOW / rtt)
    assert found.goodput(end / 2, end) > 0.9 * reachable


@pytest.mark.parametrize(("rate", "rtt"), LINKS)
def test_the_window_gets_there_within_some_round_trips(rate: float, rtt: float) -> None:
    # It starts at LEAST_WINDOW and about doubles each round trip: ten are enough for 128 MiB.
    found = run(Pace(rtt), rate, rtt, 10 * rtt)
    assert found.pace.window >= min(MOST_WINDOW, max(LEAST_WINDOW, 0.9 * rate * rtt))


@pytest.mark.parametrize("rtt", [0.0, 0.0002, 0.001])
def test_a_short_link_is_not_starved(rtt: float) -> None:
    found = run(Pace(rtt), 500e6, rtt, 0.5)
    assert found.goodput(0.1, 0.5) > 0.9 * 500e6
    assert found.pace.window >= 1 * MIB


@pytest.mark.parametrize(("rate", "rtt"), LINKS)
def test_a_frame_lasts_about_as_long_as_it_should(rate: float, rtt: float) -> None:
    for length in run(Pace(rtt), rate, rtt, 2.0).frames:
        assert LEAST_FRAME <= length <= MOST_FRAME
        assert length & (length - 1) == 0
        assert length == LEAST_FRAME or length / rate < 0.1


def test_a_link_that_becomes_slow_is_followed_down() -> None:
    pace = Pace(0.05)
    found = run(pace, lambda now: 50e6 if now < 2 else 2e6, 0.05, 12.0)
    assert pace.rate == pytest.approx(2e6, rel=0.3)
    assert pace.frame <= 64 * KIB
    assert found.goodput(8, 12) == pytest.approx(2e6, rel=0.2)


def test_a_link_that_becomes_fast_is_followed_up() -> None:
    found = run(Pace(0.05), lambda now: 2e6 if now < 2 else 50e6, 0.05, 4.0)
    assert found.goodput(3, 4) > 0.9 * 50e6


def test_a_ceiling_is_kept_and_frames_leave_room_for_more_than_one() -> None:
    pace = Pace(0.1, ceiling=1 * MIB)
    run(pace, 100e6, 0.1, 3.0)
    assert pace.window == 1 * MIB
    assert pace.frame <= 256 * KIB
    pace.ceiling = 100 * KIB  # what connections carry turned out to be little
    assert pace.window == 100 * KIB
    assert pace.frame == LEAST_FRAME


def test_before_anything_is_known() -> None:
    pace = Pace(0.2)
    assert (pace.rate, pace.frame, pace.window) == (0.0, LEAST_FRAME, LEAST_WINDOW)


@settings(max_examples=60, deadline=None)
@given(
    st.floats(0.0, 2.0),
    st.lists(st.tuples(st.floats(0.0, 5.0), st.integers(1, MOST_WINDOW), st.booleans()), max_size=60),
    st.integers(32 * KIB, MOST_WINDOW),
)
def test_whatever_happens_the_figures_stay_sensible(
    rtt: float, steps: list[tuple[float, int, bool]], ceiling: int
) -> None:
    pace, now, flying = Pace(rtt, ceiling=ceiling), 0.0, list[Departure]()
    samples: list[tuple[float, float]] = []
    for pause, length, arrives in steps:
        now += pause
        if arrives and flying:
            departure = flying.pop(0)
            took = max(1e-4, now - departure.when)
            pace.arrive(now, departure)
            samples.append((now, (pace.delivered - departure.delivered) / took))
            # The best of the last two seconds, however it is kept.
            assert pace.rate == max(rate for when, rate in samples if when >= now - 2.0)
        else:
            flying.append(pace.depart(now, length))
        assert LEAST_FRAME <= pace.frame <= MOST_FRAME
        assert 0 < pace.window <= min(ceiling, MOST_WINDOW)
        assert pace.window >= min(ceiling, LEAST_WINDOW)


def test_figures_are_kept_for_the_best_only() -> None:
    pace = Pace(0.001)
    run(pace, 1e9, 0.001, 1.5)
    assert len(pace.samples) < 100  # of some 1500 acknowledgements
