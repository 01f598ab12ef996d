"""Pace: how much one lane should have in flight, from what it delivers. Pure; time is passed in."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

LEAST_FRAME, MOST_FRAME = 32 << 10, 1 << 20  # bytes; between 1 and 4 MiB a frame's size made no difference
FRAME_SECONDS = 0.025  # a frame's time on the wire: acknowledgements this often cost nothing and lose little
LEAST_WINDOW, MOST_WINDOW = 128 << 10, 8 << 20  # bytes; the SSH channel's own window is 2 MiB a stream
GAIN = 2.0  # of the bandwidth-delay product: while the window is the limit, it doubles every round trip
MEMORY = 2.0  # s over which the best rate counts
BUSY = 0.004  # s that both ends need beyond the round trip, so that a short link is not starved


@dataclass(frozen=True, slots=True)
class Departure:
    """What was so when a frame left: the time, and what had been delivered by then."""

    when: float
    delivered: int
    length: int


@dataclass(slots=True)
class Pace:
    """A lane's window and frame size, after the rate at which its frames are acknowledged.

    The rate is sampled per acknowledgement as in BBR (bytes delivered between a frame's departure
    and its acknowledgement, over that time), and the best of the last two seconds counts.
    `ceiling` bounds the window where connections are known to carry only so much.
    """

    rtt: float
    ceiling: int = MOST_WINDOW
    delivered: int = 0
    last: float = 0.0
    samples: deque[tuple[float, float]] = field(default_factory=deque)
    least: float = float("inf")

    def depart(self, now: float, length: int) -> Departure:
        """Note that a frame leaves."""
        return Departure(now, self.delivered, length)

    def arrive(self, now: float, frame: Departure) -> None:
        """Note that a frame was acknowledged."""
        self.delivered += frame.length
        self.last = now
        took = max(1e-4, now - frame.when)
        self.least = min(self.least, took)
        self.samples.append((now, (self.delivered - frame.delivered) / took))
        while self.samples[0][0] < now - MEMORY:
            self.samples.popleft()

    @property
    def rate(self) -> float:
        """Bytes a second, the best of the last two seconds; 0 before the first acknowledgement."""
        return max((rate for _, rate in self.samples), default=0.0)

    @property
    def frame(self) -> int:
        """How large the next frame should be, a power of two in bytes."""
        wanted = min(self.rate * FRAME_SECONDS, self.ceiling / 4)
        size = LEAST_FRAME
        while size * 2 <= min(wanted, MOST_FRAME):
            size *= 2
        return size

    @property
    def window(self) -> int:
        """How many bytes may be unacknowledged."""
        delay = min(self.least, self.rtt + 0.25) if self.samples else self.rtt
        wanted = GAIN * self.rate * (max(delay, self.rtt) + BUSY) + 2 * self.frame
        return int(min(self.ceiling, MOST_WINDOW, max(LEAST_WINDOW, wanted)))
