"""Level: moves behind one uplink are kept as fast as each other, and those that share none are left alone. Pure."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, Protocol

if TYPE_CHECKING:
    from collections.abc import Iterable

# All chosen on a link of 160 Mbit/s with eight nodes, where moves that are left alone differ by 1.6.
TICK = 0.5  # s between two looks
SLACK = 0.25  # s worth of the mean rate that one may be ahead
EASED = 0.75  # of the mean rate is left to those that are ahead
TRIAL = 1.5  # s after which the others should have taken up what these gave up
TAKEN_UP = 0.5  # of it, at the least: what is given up on an uplink of one's own is nobody's
CONVINCED = 10.0  # s for which the answer holds
PATIENCE = 4.0  # s until the next trial after one that was in vain; doubled each time


class Eased(Protocol):
    """What a move sends through: it counts, and can be slowed down to `throttle` bytes a second."""

    sent: int
    throttle: float | None


@dataclass(slots=True)
class _One:
    seen: int
    served: float = 0.0
    rate: float = 0.0
    idle: int = 0


@dataclass(slots=True)
class Level:
    """Look at all moves from time to time, and slow down those that are ahead, as long as that helps the others.

    Nobody knows which links moves share. So it is tried out: those that are ahead are slowed down
    a little, and where the others do not get faster by it, they are let go again.
    """

    _all: dict[int, _One] = field(default_factory=dict)
    _then: float | None = None
    _mode: Literal["free", "trial", "shared"] = "free"
    _until: float = 0.0
    _patience: float = PATIENCE
    _before: dict[int, float] = field(default_factory=dict)
    _served: dict[int, float] = field(default_factory=dict)
    _began: float = 0.0
    _slowed: set[int] = field(default_factory=set)

    def look(self, moves: Iterable[Eased], now: float) -> None:
        """Take note of what was sent since the last look, and slow down or let go."""
        known = {id(move): move for move in moves}
        busy = self._count(known, now)
        if len(busy) < 2:
            self._let_go(known, now + TICK)
            return
        mean = sum(one.rate for one in busy.values()) / len(busy)
        level = sum(one.served for one in busy.values()) / len(busy)
        ahead = {key for key, one in busy.items() if one.served - level > SLACK * mean and one.rate > EASED * mean}
        match self._mode:
            case "free":
                if ahead and now >= self._until:
                    self._mode, self._until, self._began, self._slowed = "trial", now + TRIAL, now, ahead
                    self._before = {key: one.rate for key, one in busy.items()}
                    self._served = {key: one.served for key, one in busy.items()}
            case "trial":
                if now >= self._until:
                    self._judge(busy, known, now)
            case "shared":
                self._slowed = {key for key, one in busy.items() if one.served - level > SLACK * mean}
                if now >= self._until:
                    self._mode, self._until = "free", now  # the next trial asks again, with all as they are
        if self._mode != "free":
            for key, move in known.items():
                # While it is tried out nobody gives up more than a quarter: it may be in vain.
                own = self._before.get(key, 0.0) if self._mode == "trial" else 0.0
                move.throttle = EASED * max(mean, own) if key in self._slowed else None

    def _count(self, known: dict[int, Eased], now: float) -> dict[int, _One]:
        """Give those that are sending; one that joins them is level with those that are there."""
        span = now - self._then if self._then is not None else 0.0
        self._then = now
        there = [one.served for key, one in self._all.items() if key in known and not one.idle]
        start = sum(there) / len(there) if there else 0.0
        busy = {}
        for key, move in known.items():
            one = self._all.setdefault(key, _One(move.sent, idle=1))
            more, one.seen = move.sent - one.seen, move.sent
            if one.idle and more:
                one.served = start
            one.idle = 0 if more else one.idle + 1
            one.served += more
            if span:
                one.rate = 0.5 * (one.rate + more / span)
            if one.idle < 3:
                busy[key] = one
        return busy

    def _judge(self, busy: dict[int, _One], known: dict[int, Eased], now: float) -> None:
        """Compare what the slowed ones gave up with what the others took up."""
        span = now - self._began
        change = {
            key: (busy[key].served - served) / span - self._before[key]
            for key, served in self._served.items()
            if key in busy
        }
        given = -sum(more for key, more in change.items() if key in self._slowed)
        taken = sum(more for key, more in change.items() if key not in self._slowed)
        if given > 0 and taken >= TAKEN_UP * given:
            self._mode, self._until, self._patience = "shared", now + CONVINCED, PATIENCE
        else:
            self._let_go(known, now + self._patience)
            self._patience *= 2

    def _let_go(self, known: dict[int, Eased], until: float) -> None:
        self._mode, self._until, self._slowed = "free", max(until, self._until), set()
        for move in known.values():
            move.throttle = None
