"""The progress bar on a terminal. rich is loaded with the first event, when the node has answered."""

from __future__ import annotations

import contextlib
import os
import sys
import time
from typing import TYPE_CHECKING

from rrmove.cli.notices import Notices
from rrmove.cli.progress import outlook, pace
from rrmove.cli.tally import Tally
from rrmove.cli.text import amount, middle_out, printable
from rrmove.events import Finished

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from rich.progress import BarColumn, Progress, TaskID

    from rrmove.events import Event

FRAME = 0.1  # seconds between two redraws
PATIENCE = 0.3  # seconds of connecting that need no word
WIDE = 76  # columns of a terminal below which name and transport leave their room to the numbers
BAR = 16  # columns of the bar itself; twice that where there is room
NAME = 12  # columns of a file's name at the least
LEAST = {"transport": 0, "amount": 0, "rate": 10, "outlook": 11}  # so that the bar does not jump about
ECHO = "^C "  # room that the terminal needs to show this without a line break, which would leave half a bar
ERASE = "\r\x1b[K"


class Bar:
    """One line that is redrawn, and above it the lines that stay."""

    def __init__(
        self,
        name: str,
        node: str,
        *,
        verbose: bool = False,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Begin for a file of this name and this node; nothing is shown yet."""
        self.tally = Tally()
        self._name, self._node = printable(name), printable(node)
        self._notices = Notices(verbose=verbose)
        self._clock = clock
        self._begun = clock()
        self._drawn = 0.0
        self._greeted = False
        self._rich: tuple[Progress, TaskID] | None = None
        self._closed = False

    def __call__(self, event: Event) -> None:
        """Take an event into the bar, and say above it what should stay to be read."""
        now = self._clock()
        self.tally.see(event, now)
        if self._closed or isinstance(event, Finished):
            return
        with self._giving_up_quietly():
            for line in self._notices.lines(event, now):
                self._above(line)
            self._draw(now)

    @contextlib.contextmanager
    def _giving_up_quietly(self) -> Iterator[None]:
        """Say no more when the terminal is gone: the move is worth more than its bar."""
        try:
            yield
        except (OSError, ValueError):
            self._closed = True

    def tick(self) -> None:
        """Let the time go on in the bar; before the first event, say that we connect."""
        now = self._clock()
        if self._closed:
            return
        with self._giving_up_quietly():
            if self.tally.stage != "connecting":
                self._draw(now)
            elif now - self._begun >= PATIENCE:
                self._greeted = True
                waited = f" {int(now - self._begun)} s" if now - self._begun >= 1 else ""
                _write(f"{ERASE}connecting to {self._node}{waited}")

    def close(self) -> None:
        """Remove the bar, and say what was kept back; the lines above it stay."""
        if self._closed:
            return
        with self._giving_up_quietly():
            for line in self._notices.rest():
                self._above(line)
            self._closed = True
            if self._rich is not None:
                self._rich[0].stop()
            elif self._greeted:
                _write(ERASE)

    def _above(self, line: str) -> None:
        from rich.text import Text

        progress, _ = self._loaded()
        progress.console.print(Text(line), highlight=False, soft_wrap=True)

    def _draw(self, now: float) -> None:
        if now - self._drawn < FRAME:
            return
        self._drawn = now
        progress, task = self._loaded()
        tally = self.tally
        texts = {
            "transport": tally.transport,
            "amount": amount(tally.durable, tally.size) if tally.begun else "",
            "rate": pace(tally, now),
            "outlook": outlook(tally, now),
        }
        title = ""
        room = progress.console.width - len(ECHO) - sum(max(len(text), LEAST[key]) + 1 for key, text in texts.items())
        if progress.console.width < WIDE:
            texts["transport"] = ""
        else:
            name = middle_out(self._name, max(room - len(self._node) - BAR - 5, NAME))
            title = f"{name} -> {self._node}"
        self._gauge(progress).bar_width = min(max(room - len(title) - 1, BAR), 2 * BAR)
        progress.update(
            task,
            description=title,
            total=tally.size or None,
            completed=tally.durable,
            transport=texts["transport"],
            amount=texts["amount"],
            rate=texts["rate"],
            outlook=texts["outlook"],
        )
        progress.refresh()

    def _loaded(self) -> tuple[Progress, TaskID]:
        """Start rich, once; 43 ms that a move of a second can spare while the node works."""
        if self._rich is not None:
            return self._rich
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TextColumn
        from rich.table import Column

        if self._greeted:
            _write(ERASE)
        console = Console(stderr=True, color_system=None if os.environ.get("NO_COLOR") else "auto", highlight=False)

        def column(field: str, style: str = "none") -> TextColumn:
            cell = Column(no_wrap=True, min_width=LEAST.get(field) or None)
            where = field if field == "description" else f"fields[{field}]"
            return TextColumn(f"{{task.{where}}}", style=style, markup=False, table_column=cell)

        progress = Progress(
            column("description"),
            column("transport", "cyan"),
            BarColumn(),
            column("amount"),
            column("rate"),
            column("outlook"),
            console=console,
            auto_refresh=False,
            transient=True,
        )
        task = progress.add_task("", total=None, transport="", amount="", rate="", outlook="")
        progress.start()
        self._rich = progress, task
        return self._rich

    @staticmethod
    def _gauge(progress: Progress) -> BarColumn:
        from rich.progress import BarColumn

        return next(column for column in progress.columns if isinstance(column, BarColumn))


def _write(text: str) -> None:
    sys.stderr.write(text)
    sys.stderr.flush()
