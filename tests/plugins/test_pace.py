"""Pace over a simulated link: the window finds the bandwidth-delay product, and keeps off the extremes."""

from __future__ import annotations

import heapq
import itertools
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rrmove_plugins.chunked.pace import (
    FIRST_WINDOW,
    LANE_WINDOW,
    LEAST_FRAME,
    LEAST_WINDOW,
    LOOK,
    MEMORY,
    MOST_FRAME,
    ROUNDS,
    Pace,
)

if TYPE_CHECKING:
    from collections.abc import Callable

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
    frames: list[int]
    windows: list[tuple[float, int]]
    delivered: list[tuple[float, int, float]]

    def goodput(self, since: float, until: float) -> float:
        return sum(length for when, length, _ in self.delivered if since < when <= until) / (until - since)

    def longest_wait(self, since: float) -> float:
        """Seconds that the slowest frame took from then on."""
        return max(took for when, _, took in self.delivered if when > since)


def run(pace: Pace, rate: float | Callable[[float], float], rtt: float, seconds: float, lanes: int = 1) -> Run:
    """Send without end, as the lanes of a move do: whenever the window has room, another frame leaves."""
    link = Link(rate if callable(rate) else lambda _: rate, rtt)
    flying: list[tuple[float, int, float, int]] = []
    now, in_flight, numbers = 0.0, 0, itertools.count()
    result = Run(pace, [], [], [])
    while now < seconds:
        window = pace.window(lanes)
        result.windows.append((now, window))
        while in_flight < window:
            length = pace.frame(lanes)
            result.frames.append(length)
            heapq.heappush(flying, (link.acknowledged(now, length), next(numbers), now, length))
            in_flight += length
        now, _, left, length = heapq.heappop(flying)
        in_flight -= length
        pace.arrive(now, left, length)
        result.delivered.append((now, length, now - left))
    return result


LINKS = [
    (megabits * 1e6 / 8, milliseconds / 1000, lanes)
    for megabits in (20, 100, 400)
    for milliseconds in (20, 80, 150)
    for lanes in (1, 4, 8)
]


def reachable(rate: float, rtt: float, lanes: int) -> float:
    """What the lanes' own windows allow."""
    return min(rate, lanes * LANE_WINDOW / rtt)


@pytest.mark.parametrize(("rate", "rtt", "lanes"), LINKS)
def test_the_window_settles_at_a_small_multiple_of_the_product(rate: float, rtt: float, lanes: int) -> None:
    found = run(Pace(rtt), rate, rtt, 3.0 + 10 * rtt, lanes)
    window, product = found.pace.window(lanes), rate * rtt
    assert min(product, lanes * LANE_WINDOW) <= window
    assert window <= max(lanes * LEAST_WINDOW, 3 * product + 0.02 * rate + lanes * 64 * KIB)
    end = found.delivered[-1][0]
    assert found.goodput(end / 2, end) > 0.9 * reachable(rate, rtt, lanes)


@pytest.mark.parametrize(("rate", "rtt", "lanes"), LINKS)
def test_the_window_gets_there_within_some_round_trips(rate: float, rtt: float, lanes: int) -> None:
    # It starts at LEAST_WINDOW a lane and about doubles each round trip.
    found = run(Pace(rtt), rate, rtt, max(8 * rtt, 0.5), lanes)
    assert max(window for _, window in found.windows) >= min(lanes * LANE_WINDOW, rate * rtt)


@pytest.mark.parametrize(("rate", "rtt", "lanes"), LINKS)
def test_queues_stay_short_once_the_link_is_known(rate: float, rtt: float, lanes: int) -> None:
    found = run(Pace(rtt), rate, rtt, 5.0, lanes)
    # What waits is lost with a connection that dies, and delays everybody else's packets.
    floor = lanes * LEAST_WINDOW / rate  # a slow link has no smaller window than this
    assert found.longest_wait(3.0) < max(2 * rtt + 0.1, floor + rtt + 0.1)


@pytest.mark.parametrize("rtt", [0.0, 0.0002, 0.001])
def test_a_short_link_is_not_starved(rtt: float) -> None:
    found = run(Pace(rtt), 500e6, rtt, 1.0)
    assert found.goodput(0.2, 1.0) > 0.9 * 500e6
    assert found.pace.window() >= 1 * MIB


@pytest.mark.parametrize(("rate", "rtt", "lanes"), LINKS)
def test_frames_are_sensible(rate: float, rtt: float, lanes: int) -> None:
    for length in run(Pace(rtt), rate, rtt, 2.0, lanes).frames:
        assert LEAST_FRAME <= length <= MOST_FRAME
        assert length & (length - 1) == 0
        assert length == LEAST_FRAME or length / rate < 0.05


def test_a_link_that_becomes_slow_is_followed_down() -> None:
    pace = Pace(0.05)
    found = run(pace, lambda now: 50e6 if now < 2 else 2e6, 0.05, 12.0)
    assert pace.rate == pytest.approx(2e6, rel=0.3)
    assert pace.frame() <= 64 * KIB
    assert found.goodput(8, 12) == pytest.approx(2e6, rel=0.2)
    assert found.longest_wait(9) < 0.5


def test_a_link_that_becomes_fast_is_followed_up() -> None:
    found = run(Pace(0.05), lambda now: 2e6 if now < 2 else 50e6, 0.05, 8.0)
    assert found.goodput(7, 8) > 0.8 * 50e6


def test_one_more_lane_gets_room_to_show_what_it_adds() -> None:
    pace = Pace(0.08)
    run(pace, 10e6, 0.08, 3.0, lanes=4)
    before = pace.window(4)
    pace.widen(4)
    assert before < pace.window(5) <= 1.3 * before + LEAST_WINDOW
    run(pace, 10e6, 0.08, 3.0, lanes=5)  # it added nothing: the room is taken back
    assert pace.window(5) < 1.15 * before + LEAST_WINDOW


def test_before_anything_is_known() -> None:
    pace = Pace(0.2)
    assert (pace.rate, pace.frame(), pace.window()) == (0.0, LEAST_FRAME, FIRST_WINDOW)
    assert pace.window(8) == 7 * LEAST_WINDOW + FIRST_WINDOW


@settings(max_examples=60, deadline=None)
@given(
    st.floats(0.0, 2.0),
    st.lists(st.tuples(st.floats(0.0, 5.0), st.integers(1, 8 * MIB), st.booleans()), max_size=60),
    st.integers(1, 22),
)
def test_whatever_happens_the_figures_stay_sensible(
    rtt: float, steps: list[tuple[float, int, bool]], lanes: int
) -> None:
    pace, now, flying, delivered = Pace(rtt), 0.0, list[tuple[float, int]](), 0
    for pause, length, arrives in steps:
        now += pause
        if arrives and flying:
            left, size = flying.pop(0)
            pace.arrive(now, left, size)
            delivered += size
            # What is too old goes with the next look, and there is one every ROUNDS round trips.
            assert all(when >= now - MEMORY - max(LOOK, ROUNDS * rtt) for when, _ in pace.samples)
            assert pace.rate == max((rate for _, rate in pace.samples), default=0.0)
        else:
            flying.append((now, length))
            if length % 3 == 0:
                pace.widen(lanes)
        assert pace.delivered == delivered
        assert LEAST_FRAME <= pace.frame(lanes) <= MOST_FRAME
        assert lanes * LEAST_WINDOW <= pace.window(lanes) <= lanes * LANE_WINDOW


def test_figures_are_kept_for_the_best_only() -> None:
    pace = Pace(0.001)
    run(pace, 1e9, 0.001, 1.5)
    assert len(pace.samples) < 100  # of some 1500 acknowledgements
