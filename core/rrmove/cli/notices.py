"""Events in words: the lines that the user should read, or with --verbose, all of them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from rrmove.cli.text import amount, plural, printable
from rrmove.events import (
    AttemptFailed,
    AttemptStarted,
    Committed,
    ConnectionLost,
    Event,
    LeftBehind,
    Planned,
    Probed,
    Reached,
    Unshared,
    Verified,
    Waiting,
)
from rrmove.units import format_seconds, format_size

if TYPE_CHECKING:
    from rrmove.model import Attempt, Plan

SPOKEN = 3  # losses told one by one; a link that breaks all the time is told in sums after that
PAUSE = 15.0  # seconds between two such sums
STRANGE = "another host key"  # in what is said of an address whose machine is not the node
PATIENCE = 2.0  # seconds of waiting that are not worth a line


@dataclass(slots=True)
class Notices:
    """Turns events into lines; remembers what was said, so as not to say it a hundred times."""

    verbose: bool = False
    _failed: Attempt | None = None
    _address: str | None = None
    _strangers: set[str] = field(default_factory=set)
    _losses: int = 0
    _unsaid: list[ConnectionLost] = field(default_factory=list)
    _said_at: float = 0.0

    def lines(self, event: Event, now: float) -> list[str]:
        """Give what is to be said about an event, without control characters."""
        said = self._reached(event) if isinstance(event, Reached) else self._of(event, now)
        return [printable(line) for line in said]

    def _of(self, event: Event, now: float) -> list[str]:
        match event:
            case ConnectionLost():
                return self._lost(event, now)
            case AttemptFailed():
                self._failed = event.attempt
                return [_failed(event.attempt, event.node)]
            case LeftBehind() | Unshared():
                return [_odd(event)]
            case AttemptStarted():
                return self._started(event)
            case Waiting() if self.verbose or event.seconds >= PATIENCE:
                return [_with_reason(f"waiting {format_seconds(event.seconds)}", event.reason)]
            case _:
                return self._told_at_length(event) if self.verbose else []

    def _told_at_length(self, event: Event) -> list[str]:
        match event:
            case Probed():
                return [_probed(event)]
            case Planned():
                return _planned(event.plan)
            case Verified():
                return [f"verified on {event.node}: {event.digest}"]
            case Committed():
                return [f"committed: {event.destination}"]
            case _:
                return []

    def _reached(self, event: Reached) -> list[str]:
        """Tell of a machine that is not the node, and of an address that another takes over from; at length, of all."""
        strange = {where for where, what in event.tried.items() if STRANGE in what} - self._strangers
        self._strangers |= strange
        lines = [f"the machine at {where} {event.tried[where]}" for where in sorted(strange)]
        former, self._address = self._address, event.address or self._address
        if event.address is not None and event.address != former and (former is not None or self.verbose):
            others = "; ".join(f"{at}: {what}" for at, what in event.tried.items() if at != event.address)
            lines.append(_with_reason(f"{event.node} is reached at {event.address}", others))
        return lines

    def _lost(self, event: ConnectionLost, now: float) -> list[str]:
        self._losses += 1
        if self.verbose:
            return [_with_reason(_lost(event), event.reason)]
        if self._losses <= SPOKEN:
            self._said_at = now
            return [_lost(event)]
        self._unsaid.append(event)
        if now - self._said_at < PAUSE:
            return []
        self._said_at = now
        return self.rest()

    def rest(self) -> list[str]:
        """Sum up the losses that were not told yet, and forget them."""
        lost, self._unsaid = self._unsaid, []
        if not lost:
            return []
        if len(lost) == 1:
            return [_lost(lost[0])]
        ages = sorted(loss.age for loss in lost)
        span = f"after {format_seconds(ages[0])} to {format_seconds(ages[-1])}"
        return [f"{plural(len(lost), 'more connection')} lost, {span}, going on"]

    def _started(self, event: AttemptStarted) -> list[str]:
        failed, self._failed = self._failed, None
        to_go = format_size(event.missing) if event.size else "all"
        if failed is not None:
            if failed.transport == event.transport:
                return [f"trying {event.transport} again, {to_go} to go"]
            return [f"falling back to {event.transport}, {to_go} to go"]
        if event.missing < event.size:
            there = amount(event.size - event.missing, event.size)
            return [f"{there} are on {event.node} already, going on"]
        return [f"{event.transport} begins, {to_go} to go"] if self.verbose else []


def _odd(event: LeftBehind | Unshared) -> str:
    if isinstance(event, LeftBehind):
        return f"{event.transport} had left behind, and it was ended: {', '.join(event.processes)}"
    return _with_reason("limits hold for this process alone, and not together with others", event.reason)


def _lost(event: ConnectionLost) -> str:
    age, carried = format_seconds(event.age), format_size(event.carried)
    return f"connection lost after {age} and {carried}, going on"


def _failed(attempt: Attempt, node: str) -> str:
    why = (attempt.error or "").removeprefix(f"{node}: ")  # every line here is about this node
    return _with_reason(f"{attempt.transport} failed after {format_seconds(attempt.seconds)}", why)


def _with_reason(what: str, why: str) -> str:
    """Add a reason, in one line: programs give theirs in several."""
    return f"{what}: {' '.join(why.split(chr(10)))}" if why.strip() else what


def _probed(event: Probed) -> str:
    facts = ", ".join(f"{name} {value}" for name, value in event.facts.items())
    how = "known from before" if event.cached else f"probed in {format_seconds(event.seconds)}"
    return f"{event.node} {how}: {facts}"


def _planned(plan: Plan) -> list[str]:
    ranking = ", then ".join(f"{step.transport} ({format_seconds(step.estimate.seconds)})" for step in plan.steps)
    refused = [f"not {refusal.transport}: {refusal.reason}" for refusal in plan.refusals]
    return [f"plan: {ranking or 'nothing can serve'}", *refused]
