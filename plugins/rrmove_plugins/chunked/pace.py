"""Pace: how much the lanes of a move should have in flight together. Pure; time is passed in."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

LEAST_FRAME, MOST_FRAME = 32 << 10, 1 << 20  # bytes; between 1 and 4 MiB a frame's size made no difference
FRAME_SECONDS = 0.0125  # a frame's time on the wire: acknowledgements this often cost nothing and lose little
LEAST_WINDOW = 128 << 10  # bytes; nine times TCP's first window, for every lane
FIRST_WINDOW = 512 << 10  # bytes, for the first lane: TCP's own slow start is slow enough
LANE_WINDOW = 3 << 20  # bytes; a little more than the SSH channel's own 2 MiB, so that it never runs dry
STEADY = 1.3  # of the bandwidth-delay product, once the pipe is full: enough to keep it so, and queues short
LOOK, ROUNDS = 0.25, 3  # s, and round trips, that a rate is taken over: acknowledgements come in bunches
QUEUED, JITTER = 1.5, 0.015  # times the shortest round trip, and s beyond: then frames wait in queues
MEMORY = 2.0  # s over which the best rate counts
BUSY = 0.004  # s that both ends need beyond the round trip, so that a short link is not starved


@dataclass(slots=True)
class Pace:
    """The window that all lanes share, and the size of frames, after the rate of acknowledgements.

    One window for all, because they share the link: what a dead lane leaves the others take up at
    once, and together they never fill the queues of the routers. It grows by what is acknowledged,
    so that it doubles every round trip, until no frame comes through without having waited: the
    pipe is full. From then on it is the best rate of the last two seconds times the shortest round
    trip, and a little more. What TCP does below stays its own affair.
    """

    rtt: float
    delivered: int = 0
    samples: deque[tuple[float, float]] = field(default_factory=deque)
    least: float = float("inf")
    full: bool = False
    grown: int = FIRST_WINDOW - LEAST_WINDOW
    _since: tuple[float, int] | None = None
    _waited: float = float("inf")
    _turn: float = 0.0
    _room: tuple[int, int] = (0, 0)

    def arrive(self, now: float, left: float, length: int) -> None:
        """Note that a frame of `length` bytes, which left at `left`, was acknowledged."""
        took = max(1e-4, now - left)
        self.least, self._waited = min(self.least, took), min(self._waited, took)
        if self._since is None:
            self._since = (left, 0)
        self.delivered += length
        if not self.full:
            self.grown += length
            self._trip(now)
        then, delivered = self._since
        if now - then < max(LOOK, ROUNDS * self.rtt):
            return
        rate, self._since = (self.delivered - delivered) / (now - then), (now, self.delivered)
        self._room = (self._room[0], self._room[1] - 1)
        while self.samples and self.samples[-1][1] <= rate:  # those can never be the best again
            self.samples.pop()
        self.samples.append((now, rate))
        while self.samples[0][0] < now - MEMORY:
            self.samples.popleft()

    def _trip(self, now: float) -> None:
        """Once a round trip, see whether every frame of it had to wait."""
        if now - self._turn >= max(self.rtt, self.least):
            self.full = self._waited > QUEUED * max(self.least, self.rtt) + JITTER
            self._turn, self._waited = now, float("inf")

    def widen(self, lanes: int) -> None:
        """Give one more lane, which joins so many, room to show what it adds, for two looks."""
        self._room = (0, 0)
        self._room = (self.window(lanes) * (lanes + 1) // max(1, lanes), 2)

    @property
    def rate(self) -> float:
        """Bytes a second, the best of the last two seconds; 0 before the first acknowledgement."""
        return self.samples[0][1] if self.samples else 0.0

    def frame(self, lanes: int = 1) -> int:
        """How large the next frame of one of so many lanes should be, a power of two in bytes."""
        wanted, size = min(self.rate * FRAME_SECONDS / max(1, lanes), MOST_FRAME), LEAST_FRAME
        while size * 2 <= wanted:
            size *= 2
        return size

    def window(self, lanes: int = 1) -> int:
        """How many bytes may be unacknowledged, on so many lanes together."""
        wanted = float(lanes * LEAST_WINDOW + self.grown)
        if self.full and self.samples:
            wanted = STEADY * self.rate * (max(self.rtt, self.least) + BUSY) + lanes * self.frame(lanes)
            if self._room[1] > 0:
                wanted = max(wanted, self._room[0])
        return int(min(lanes * LANE_WINDOW, max(lanes * LEAST_WINDOW, wanted)))
