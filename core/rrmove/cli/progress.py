"""Events -> what is seen on stderr while a move goes on: a bar, plain lines, or nothing."""

from __future__ import annotations

import os
import sys
import time
from typing import TYPE_CHECKING, Protocol

from rrmove.cli.notices import Notices
from rrmove.cli.tally import Tally
from rrmove.cli.text import amount, printable, say
from rrmove.units import format_rate, format_seconds

if TYPE_CHECKING:
    from collections.abc import Callable

    from rrmove.cli.arguments import Output
    from rrmove.events import Event

LINE_EVERY = 5.0  # seconds between two plain lines, at least
LINE_SHARE = 0.1  # of the file that is worth a line
LINE_ANYWAY = 60.0  # seconds after which a line says that the move is alive


class Watcher(Protocol):
    """Sees all events of one move, and is asked a few times a second to say what time it is."""

    tally: Tally

    def __call__(self, event: Event) -> None:
        """Take one event; raises nothing."""
        ...

    def tick(self) -> None:
        """Show how time passes; raises nothing."""
        ...

    def close(self) -> None:
        """Leave the terminal as it was; a repeat does nothing."""
        ...


class Silent:
    """Says nothing, and keeps count."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        """Begin with nothing."""
        self.tally = Tally()
        self._clock = clock

    def __call__(self, event: Event) -> None:
        """Count it."""
        self.tally.see(event, self._clock())

    def tick(self) -> None:
        """Say nothing."""

    def close(self) -> None:
        """Leave nothing behind."""


class Plain:
    """Plain lines for a log: no control characters, and never more than one in a few seconds."""

    def __init__(
        self,
        title: str,
        *,
        verbose: bool = False,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Begin a log; `title` says what is moved where."""
        self.tally = Tally()
        self._title = printable(title)
        self._notices = Notices(verbose=verbose)
        self._clock = clock
        self._said_at = clock()
        self._said = 0

    def __call__(self, event: Event) -> None:
        """Write what is to be said about an event."""
        now = self._clock()
        before = self.tally.begun
        self.tally.see(event, now)
        for line in self._notices.lines(event, now):
            say(f"{self._title}: {line}")
        if self.tally.begun and not before:
            self._said = self.tally.durable
        self.tick()

    def tick(self) -> None:
        """Write how far it is, when there is something new to say or a minute has passed."""
        now, tally = self._clock(), self.tally
        quiet = now - self._said_at
        if quiet < LINE_EVERY or tally.stage == "done":
            return
        news = tally.size and abs(tally.durable - self._said) >= LINE_SHARE * tally.size
        if news or quiet >= LINE_ANYWAY:
            self._said_at, self._said = now, tally.durable
            say(f"{self._title}: {sentence(tally, now)}")

    def close(self) -> None:
        """Say what was kept back."""
        for line in self._notices.rest():
            say(f"{self._title}: {line}")


def sentence(tally: Tally, now: float) -> str:
    """Put the state of a move into words: `412 of 955 MB, 18.4 MB/s, 30 s left`."""
    words = [amount(tally.durable, tally.size), share(tally)] if tally.begun else []
    words += [pace(tally, now), outlook(tally, now)]
    return ", ".join(word for word in words if word)


def pace(tally: Tally, now: float) -> str:
    """Give the rate, where there is one to speak of."""
    rate = tally.rate(now) if tally.stage == "moving" else None
    return "" if rate is None else format_rate(rate)


def outlook(tally: Tally, now: float) -> str:
    """Say what is to be expected: the time left, or why nobody can tell."""
    if tally.stage == "waiting" and tally.giver is not None:
        return f"waits for {printable(tally.giver)}"
    if waited := tally.waited(now):
        return f"waiting {whole(waited)}"
    if stalled := tally.stalled(now):
        return f"stalled {whole(stalled)}"
    if (left := tally.remaining(now)) is not None:
        return f"{whole(max(1.0, left))} left"
    return "" if tally.stage in {"moving", "waiting"} else tally.stage


def whole(seconds: float) -> str:
    """Give seconds without their fractions, which would only flicker."""
    return f"{seconds:.0f} s" if seconds < 59.5 else format_seconds(round(seconds))


def share(tally: Tally) -> str:
    """Give the durable share of the file; it is 100 % only when nothing is missing."""
    return f"{tally.durable * 100 // tally.size} %" if tally.size else ""


def watcher(name: str, node: str, output: Output) -> Watcher:
    """Choose how the move of the file `name` to `node` is shown."""
    if output.quiet or output.json:
        return Silent()
    if sys.stderr.isatty() and os.environ.get("TERM") != "dumb":
        from rrmove.cli.bar import Bar

        return Bar(name, node, verbose=output.verbose)
    return Plain(f"{name} -> {node}", verbose=output.verbose)
