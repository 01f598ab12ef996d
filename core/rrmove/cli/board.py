"""Many moves as they are seen on stderr: a line a node and one for all, or plain lines, or nothing."""

from __future__ import annotations

import contextlib
import os
import sys
import time
from typing import TYPE_CHECKING

from rrmove.cli.notices import Notices
from rrmove.cli.progress import LINE_ANYWAY, LINE_EVERY, LINE_SHARE, outlook, pace, whole
from rrmove.cli.text import amount, middle_out, printable, say
from rrmove.events import Finished
from rrmove.units import format_rate, format_seconds

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from rich.progress import Progress, TaskID

    from rrmove.cli.arguments import Output
    from rrmove.cli.tallies import Tallies
    from rrmove.events import Event
    from rrmove.model import Outcome

FRAME = 0.15  # seconds between two redraws; a dozen lines take 5 ms to lay out
NAME = 20  # columns of a node's name at the most
BAR = 14  # columns of the bars
SPARE = 3  # lines of the terminal that stay free of nodes: the one for all, and the cursor's


class Board:
    """Says nothing, and keeps count; the others say what they see besides."""

    def __init__(self, tallies: Tallies, clock: Callable[[], float] = time.monotonic) -> None:
        """Begin with nothing."""
        self.tallies = tallies
        self._clock = clock

    def __call__(self, event: Event) -> None:
        """Take one event; raises nothing."""
        self.tallies.see(event, self._clock())

    def ended(self, outcome: Outcome, why: str = "") -> None:  # noqa: ARG002  for those that say it
        """Take the end of one move; `why` says in a clause what it failed for."""
        self.tallies.ended(outcome)

    def tick(self) -> None:
        """Show how time passes."""

    def close(self) -> None:
        """Leave the terminal as it was; a repeat does nothing."""


class PlainBoard(Board):
    """Plain lines for a log: what happens to a node, how each ended, and the sum every few seconds."""

    def __init__(
        self, name: str, tallies: Tallies, *, verbose: bool = False, clock: Callable[[], float] = time.monotonic
    ) -> None:
        """Begin a log for a file of this name."""
        super().__init__(tallies, clock)
        self._title = f"{printable(name)} -> {tallies.places} places"
        self._notices = {name: Notices(verbose=verbose) for name in tallies.names}
        self._said_at, self._said = clock(), 0

    def __call__(self, event: Event) -> None:
        """Write what is to be said about an event, with its node."""
        super().__call__(event)
        if event.node in self._notices and not isinstance(event, Finished):
            for line in self._notices[event.node].lines(event, self._clock()):
                self._say(f"{printable(event.node)}: {line}")
        self.tick()

    def ended(self, outcome: Outcome, why: str = "") -> None:
        """Say how one move ended."""
        super().ended(outcome)
        self._say(f"{printable(outcome.request.node.name)}: {end_of(outcome, why)}")

    def tick(self) -> None:
        """Write how far all are, when there is something new to say or a minute has passed."""
        now, tallies = self._clock(), self.tallies
        quiet = now - self._said_at
        if quiet < LINE_EVERY or not tallies.begun:
            return
        if abs(tallies.durable - self._said) >= LINE_SHARE * max(1, tallies.size) or quiet >= LINE_ANYWAY:
            self._said_at, self._said = now, tallies.durable
            self._say(f"{self._title}: {sum_of(tallies, now)}")

    def close(self) -> None:
        """Say what was kept back."""
        for name, notices in self._notices.items():
            for line in notices.rest():
                self._say(f"{printable(name)}: {line}")

    def _say(self, line: str) -> None:
        say(line)


class LiveBoard(PlainBoard):
    """Lines that are redrawn, one for each node as far as the terminal is high enough, and one for all."""

    def __init__(
        self, name: str, tallies: Tallies, *, verbose: bool = False, clock: Callable[[], float] = time.monotonic
    ) -> None:
        """Begin; nothing is shown before the first tick."""
        super().__init__(name, tallies, verbose=verbose, clock=clock)
        self._name = printable(name)
        self._verbose = verbose
        self._drawn = 0.0
        self._closed = False
        self._rich: tuple[Progress, dict[str, TaskID], TaskID] | None = None

    def ended(self, outcome: Outcome, why: str = "") -> None:
        """Say that a node failed, or with `verbose` how it ended; the line of one that has the file says so itself."""
        if self._verbose or not outcome.ok:
            super().ended(outcome, why)
        else:
            self.tallies.ended(outcome)
        self._drawn = 0.0
        self.tick()

    def tick(self) -> None:
        """Redraw, but not more often than eyes can follow."""
        now = self._clock()
        if self._closed or now - self._drawn < FRAME:
            return
        self._drawn = now
        with self._giving_up_quietly():
            self._draw(now)

    def close(self) -> None:
        """Remove the lines that are redrawn; those above them stay."""
        if self._closed:
            return
        super().close()
        self._closed = True
        with self._giving_up_quietly():
            if self._rich is not None:
                self._rich[0].stop()

    def _say(self, line: str) -> None:
        if self._closed:
            return
        from rich.text import Text

        with self._giving_up_quietly():
            self._loaded()[0].console.print(Text(line), highlight=False, soft_wrap=True)

    @contextlib.contextmanager
    def _giving_up_quietly(self) -> Iterator[None]:
        """Say no more when the terminal is gone: the moves are worth more than their lines."""
        try:
            yield
        except (OSError, ValueError):
            self._closed = True

    def _draw(self, now: float) -> None:
        progress, lines, last = self._loaded()
        tallies = self.tallies
        shown = set(self._shown(progress.console.height - SPARE))
        for name, line in lines.items():
            tally, over = tallies.of(name), tallies.over(name)
            here = tally.size if over and not tallies.failed(name) else tally.durable
            progress.update(
                line,
                visible=name in shown,
                total=tally.size or (1 if over else None),
                completed=here or (1 if over and not tallies.failed(name) else 0),
                amount=amount(here, tally.size) if tally.size else "",
                rate="" if over else pace(tally, now),
                outlook=self._word(name, now),
            )
        progress.update(
            last,
            total=tallies.size or None,
            completed=tallies.durable,
            description=f"{tallies.arrived} of {tallies.places} there"
            + (f", {tallies.lost} not" if tallies.lost else ""),
            amount=amount(tallies.durable, tallies.size) if tallies.begun else "",
            rate=pace_of(tallies, now),
            outlook=left_of(tallies, now),
        )
        progress.start()  # a repeat does nothing; before it is known who has a line, all would be drawn
        progress.refresh()

    def _word(self, name: str, now: float) -> str:
        if self.tallies.over(name):
            return "failed" if self.tallies.failed(name) else "done"
        return "queued" if self.tallies.queued(name) else outlook(self.tallies.of(name), now)

    def _shown(self, room: int) -> list[str]:
        """Choose the nodes that have a line: those at work first, then those that ended, then those that wait."""
        tallies = self.tallies
        ranked = sorted(tallies.names, key=lambda name: 1 if tallies.over(name) else 2 if tallies.queued(name) else 0)
        return ranked[: max(1, room)]

    def _loaded(self) -> tuple[Progress, dict[str, TaskID], TaskID]:
        """Start rich, once."""
        if self._rich is not None:
            return self._rich
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TextColumn
        from rich.table import Column

        console = Console(stderr=True, color_system=None if os.environ.get("NO_COLOR") else "auto", highlight=False)

        def column(field: str, least: int = 0) -> TextColumn:
            cell = Column(no_wrap=True, min_width=least or None)
            where = field if field == "description" else f"fields[{field}]"
            return TextColumn(f"{{task.{where}}}", markup=False, table_column=cell)

        progress = Progress(
            column("description"),
            BarColumn(bar_width=BAR),
            column("amount", 15),
            column("rate", 10),
            column("outlook", 11),
            console=console,
            auto_refresh=False,
            transient=True,
        )

        def line(title: str) -> TaskID:
            return progress.add_task(title, total=None, amount="", rate="", outlook="")

        lines = {name: line(middle_out(printable(name), NAME)) for name in self.tallies.names}
        self._rich = progress, lines, line("")
        return self._rich


def sum_of(tallies: Tallies, now: float) -> str:
    """Put the state of all moves into words: `3 of 8 there, 1 failed, 112 of 240 MB, 18.4 MB/s, 9 s left`."""
    failed = f"{tallies.lost} failed" if tallies.lost else ""
    words = (f"{tallies.arrived} there", failed, amount(tallies.durable, tallies.size))
    return ", ".join(word for word in (*words, pace_of(tallies, now), left_of(tallies, now)) if word)


def pace_of(tallies: Tallies, now: float) -> str:
    """Give the rate of all together, where there is one to speak of."""
    rate = tallies.rate(now)
    return "" if rate is None else format_rate(rate)


def left_of(tallies: Tallies, now: float) -> str:
    """Give the time left, where anybody can tell."""
    left = tallies.remaining(now)
    return "" if left is None else f"{whole(max(1.0, left))} left"


def end_of(outcome: Outcome, why: str) -> str:
    """Say in a clause how a move ended."""
    if not outcome.ok:
        return printable(f"failed: {why}")
    return "already there" if not outcome.attempts else f"verified in {format_seconds(outcome.seconds)}"


def board(name: str, tallies: Tallies, output: Output) -> Board:
    """Choose how the moves of the file `name` are shown."""
    if output.quiet or output.json:
        return Board(tallies)
    if sys.stderr.isatty() and os.environ.get("TERM") != "dumb":
        return LiveBoard(name, tallies, verbose=output.verbose)
    return PlainBoard(name, tallies, verbose=output.verbose)
