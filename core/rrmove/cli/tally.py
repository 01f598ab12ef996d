"""What a move has come to so far, added up from its events: pure, the time is passed in."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from typing import Literal

from rrmove.events import (
    AttemptFailed,
    AttemptStarted,
    Committed,
    ConnectionLost,
    Event,
    Finished,
    Planned,
    Probed,
    Progressed,
    Verified,
    Waiting,
)

Stage = Literal["connecting", "planning", "moving", "waiting", "verifying", "done"]

WINDOW = 10.0  # seconds a rate is taken over: at least one life of a link that resets after 4-8 s
GRAIN = 0.1  # seconds between two samples of it
STEADY = 2.0  # seconds of evidence below which no rate is told
STALLED = 3.0  # seconds without a durable byte that are worth a word


@dataclass(slots=True)
class Tally:
    """The state of one move; `see()` every event of it.

    `durable` bytes of `size` (0 where nobody knows it yet) are on the node, `begun` says that an attempt was started,
    `committed` that the file took its name, `losses` counts the connections that died; `giver` is the sibling that is
    waited for.
    """

    stage: Stage = "connecting"
    node: str = ""
    transport: str = ""
    size: int = 0
    durable: int = 0
    losses: int = 0
    begun: bool = False
    committed: bool = False
    giver: str | None = None
    _gained: int = 0
    _last_gain: float = 0.0
    _until: float = 0.0
    _samples: deque[tuple[float, int]] = field(default_factory=deque)

    def see(self, event: Event, now: float) -> None:
        """Take one event into account."""
        self.node = event.node
        match event:
            case Probed() | Planned() | AttemptFailed():
                self.stage = "planning"
            case AttemptStarted():
                self._start(event, now)
            case Progressed():
                self._advance(event, now)
            case ConnectionLost():
                self.losses += 1
            case Waiting():
                self.stage, self._until, self.giver = "waiting", now + event.seconds, event.giver
            case Verified():
                self.stage, self.durable = "done", self.size
            case Committed() | Finished():
                self.stage = "done"
                self.committed |= isinstance(event, Committed)

    def _start(self, event: AttemptStarted, now: float) -> None:
        if event.transport != self.transport:
            self._samples.clear()  # the rate of one transport says nothing about the next
        self.stage = "moving"
        self.transport, self.size, self.begun = event.transport, event.size, True
        self.durable = max(0, event.size - event.missing)
        self._last_gain = now
        self._samples.append((now, self._gained))

    def _advance(self, event: Progressed, now: float) -> None:
        self.size = event.size
        if not self.begun:  # what former moves left there; this one did not gain it
            self.durable = event.durable
            return
        more = event.durable - self.durable
        if more > 0:
            self.durable = event.durable
            self._gained += more
            self._last_gain = now
            if not self._samples or now - self._samples[-1][0] >= GRAIN:
                self._samples.append((now, self._gained))
        self.stage = "verifying" if 0 < self.size <= self.durable else "moving"
        while len(self._samples) > 1 and self._samples[1][0] <= now - WINDOW:
            self._samples.popleft()

    def rate(self, now: float) -> float | None:
        """Give durable bytes a second over the last seconds; None where there is no evidence."""
        since = now - WINDOW
        past = [sample for sample in self._samples if sample[0] <= since][-1:]
        start, gained = (past or [*self._samples][:1] or [(now, self._gained)])[0]
        if now - start < STEADY or self._gained == gained:
            return None
        return (self._gained - gained) / (now - start)

    def remaining(self, now: float) -> float | None:
        """Give the seconds to the last durable byte at this rate; None where nobody can know."""
        rate = self.rate(now)
        if rate is None or not self.size or self.stage != "moving" or self.stalled(now):
            return None
        return (self.size - self.durable) / rate

    def stalled(self, now: float) -> float:
        """Give the seconds since a byte became durable; 0 while that is nothing to speak of."""
        quiet = now - self._last_gain
        return quiet if self.stage == "moving" and quiet >= STALLED else 0.0

    def waited(self, now: float) -> float:
        """Give the seconds for which the move still waits; 0 where it does not."""
        return max(0.0, self._until - now) if self.stage == "waiting" else 0.0
