"""`rrmove auto` to many places: the moves watched, a table of what came of them, who failed and why; or JSON."""

from __future__ import annotations

import asyncio
import contextlib
import sys
import time
from collections import defaultdict
from contextlib import aclosing
from typing import TYPE_CHECKING, TextIO

from rrmove.cli import failure, interrupt
from rrmove.cli.auto import tick, wishes
from rrmove.cli.board import NAME, Board, board
from rrmove.cli.jsonlines import JSONLines, outcome_object, unfinished_object
from rrmove.cli.result import transports
from rrmove.cli.stdout import kept
from rrmove.cli.table import columns, room_for, show
from rrmove.cli.tallies import Tallies
from rrmove.cli.text import joined, middle_out, plural, say
from rrmove.errors import NoRouteError, RRMoveError
from rrmove.model import Source, shown_url
from rrmove.units import format_rate, format_seconds, format_size

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from rrmove.cli.arguments import AutoCommand
    from rrmove.cli.errand import Errand
    from rrmove.events import Event
    from rrmove.model import Node, Outcome

FAILED = 1
WIDE = 80  # columns below which long names are shortened in the table; errors have them in full
NAMED = 8  # nodes that share an error and are named before it; the table has them all


def run(command: AutoCommand, errand: Errand | RRMoveError) -> int:
    """Move the file everywhere: 0 where every place has it, 1 where one has not. Raises UsageError."""
    shown = shown_url(command.source) if "://" in command.source else command.source
    if not command.output.json:
        if isinstance(errand, RRMoveError):
            raise errand
        return _Batch(command, errand, shown).shown()
    with kept() as out:
        if isinstance(errand, RRMoveError):
            JSONLines(out=out).finish({**_summary(shown, None, 0.0, []), "error": str(errand)})
            raise errand
        return _Batch(command, errand, shown).in_json(out)


class _Batch:
    """One command, and what has come of it so far."""

    def __init__(self, command: AutoCommand, errand: Errand, shown: str) -> None:
        self.command, self.errand, self.source = command, errand, shown
        self.outcomes: dict[tuple[str, str], Outcome] = {}
        self.errors: dict[tuple[str, str], BaseException] = {}
        self.begun = time.monotonic()

    def shown(self) -> int:
        """Do it for people."""
        errand, output = self.errand, self.command.output
        seen = board(errand.source.name, self._tallies(), output)
        interrupted = False
        try:
            with kept(), contextlib.closing(seen):
                self._move(seen, seen, lambda outcome: seen.ended(outcome, self._why(outcome)))
        except KeyboardInterrupt:
            interrupted = True
        finally:
            seen.close()
        if not output.quiet:
            show(self._table())
            sys.stdout.flush()
        self._say_errors()
        return self._said_interrupted(seen.tallies) if interrupted else self._code()

    def in_json(self, out: TextIO) -> int:
        """Do it for programs: a line for each place as it ends, and a last one with all of them."""
        quiet = self.command.output.quiet
        seen = Board(self._tallies())
        lines = defaultdict[str, JSONLines](lambda: JSONLines(quiet=quiet, out=out))
        last = JSONLines(out=out)

        def see(event: Event) -> None:
            seen(event)
            lines[event.node](event)

        def ended(outcome: Outcome) -> None:
            seen.ended(outcome)
            last.finish(outcome_object(outcome))

        interrupted = False
        try:
            self._move(seen, see, ended)
        except KeyboardInterrupt:
            interrupted = True
        except BaseException as error:
            words = str(failure.innermost(error)) or type(error).__name__
            last.finish({**_summary(self.source, None, self._seconds(), []), "error": words})
            raise
        ends = []
        size = next((outcome.request.source.size for outcome in self.outcomes.values()), None)
        for node in self.errand.nodes:
            if (outcome := self.outcomes.get(_key(node))) is not None:
                ends.append(outcome_object(outcome))
            else:
                ends.append(unfinished_object(self.source, node.name, size, self._seconds(), "interrupted"))
                last.finish(ends[-1])
        last.finish(_summary(self.source, size, self._seconds(), ends))
        self._say_errors()
        return self._said_interrupted(seen.tallies) if interrupted else self._code()

    def _move(self, seen: Board, see: Callable[[Event], None], ended: Callable[[Outcome], None]) -> None:
        interrupt.run(self._distribute(seen, see, ended), tidy=seen.close)

    async def _distribute(self, seen: Board, see: Callable[[Event], None], end: Callable[[Outcome], None]) -> None:
        from rrmove.fanout import AT_ONCE, ended

        ticking = asyncio.create_task(tick(seen))
        moves = ended(
            self.errand.source,
            self.errand.nodes,
            concurrency=self.command.at_once or AT_ONCE,
            **wishes(self.command, self.errand, see),
        )
        try:
            async with aclosing(moves):
                async for outcome, error in moves:
                    key = outcome.request.node.name, outcome.request.destination
                    self.outcomes[key] = outcome
                    if error is not None:
                        self.errors[key] = error
                    end(outcome)
        finally:
            ticking.cancel()

    def _tallies(self) -> Tallies:
        from rrmove.fanout import AT_ONCE

        source, size = self.errand.source, 0
        with contextlib.suppress(OSError):
            size = source.size if isinstance(source, Source) else source.stat().st_size
        return Tallies([node.name for node in self.errand.nodes], size, self.command.at_once or AT_ONCE)

    def _seconds(self) -> float:
        return time.monotonic() - self.begun

    def _code(self) -> int:
        ends = [self.outcomes.get(_key(node)) for node in self.errand.nodes]
        return 0 if all(end is not None and end.ok for end in ends) else FAILED

    def _table(self) -> list[str]:
        names = [node.name for node in self.errand.nodes]
        rows = []
        for node in self.errand.nodes:
            label = node.name if names.count(node.name) == 1 else f"{node.name}:{node.destination or ''}"
            label = label if room_for() >= WIDE else middle_out(label, NAME)
            rows.append((label, *self._cells(_key(node))))
        head = ("NODE", "RESULT", "TOOK", "RATE", "SENT", "REUSED", "BY")
        return columns(rows, head, right=(2, 3, 4, 5), spare=(4, 5, 3, 2))

    def _cells(self, key: tuple[str, str]) -> tuple[str, ...]:
        outcome = self.outcomes.get(key)
        if outcome is None:
            return "interrupted", "", "", "", "", ""
        took, sent = format_seconds(outcome.seconds), format_size(outcome.bytes_sent)
        reused = format_size(outcome.bytes_reused) if outcome.bytes_reused else ""
        if not outcome.ok:
            return "failed", took, "", sent if outcome.bytes_sent else "", reused, self._why(outcome)
        if not outcome.attempts:
            return "already there", took, "", "", reused, ""
        fresh = outcome.request.source.size - outcome.bytes_reused
        rate = format_rate(fresh / outcome.seconds) if outcome.seconds > 0 and fresh > 0 else ""
        doubt = "; content not verified" if outcome.unverified else ""
        return "verified", took, rate, sent, reused, transports(outcome) + doubt

    def _why(self, outcome: Outcome) -> str:
        """Give the error in a clause; its remedy is told at the end."""
        name = outcome.request.node.name
        error = self.errors.get((name, outcome.request.destination))
        what = error.what if isinstance(error, RRMoveError) else outcome.error or ""
        return what.removeprefix(f"{name}: ")

    def _say_errors(self) -> None:
        """Name those that failed, each with its error; where several have the same, it is said once."""
        alike: dict[tuple[object, ...], list[str]] = defaultdict(list)
        first: dict[tuple[object, ...], RRMoveError] = {}
        for (name, _), error in self.errors.items():
            if not isinstance(error, RRMoveError):
                say(f"{failure.internal(error, sys.argv[1:])}; on the way to {joined([name])}")
                continue
            refusals = error.refusals if isinstance(error, NoRouteError) else ()
            key: tuple[object, ...] = (error.what, error.tried, error.remedy, refusals)
            alike[key].append(name)
            first.setdefault(key, error)
        for same, error in first.items():
            names = list(dict.fromkeys(alike[same]))
            more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
            error.node = ", ".join(names[:NAMED]) + more
            say(failure.message(error))
        lost = sum(not outcome.ok for outcome in self.outcomes.values())
        if lost and self.outcomes:
            there = sum(outcome.ok for outcome in self.outcomes.values())
            say(f"rrmove: {there} of {plural(len(self.errand.nodes), 'place')} have the file, {lost} failed")

    def _said_interrupted(self, tallies: Tallies) -> int:
        there = f"{tallies.arrived} of {plural(tallies.places, 'place')} have the file"
        rest = "; what has arrived elsewhere stays there in part files" if tallies.begun else ""
        say(f"rrmove: interrupted; {there}{rest}\n{failure.INDENT}Run the same command again to go on from there")
        return interrupt.INTERRUPTED


def _key(node: Node) -> tuple[str, str]:
    return node.name, node.destination or ""


def _summary(source: str, size: int | None, seconds: float, ends: Iterable[dict[str, object]]) -> dict[str, object]:
    """Give the last line of all: each place with what matters most of its outcome."""
    kept_keys = ("node", "ok", "destination", "transport", "bytes_sent", "bytes_reused", "seconds")
    nodes = [{**{key: end[key] for key in kept_keys}, "error": end.get("error")} for end in ends]
    return {
        "event": "distributed",
        "ok": bool(nodes) and all(node["ok"] for node in nodes),
        "source": source,
        "size": size,
        "seconds": seconds,
        "nodes": nodes,
    }
