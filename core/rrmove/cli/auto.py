"""`rrmove auto`: one move, watched, and its outcome as a line or as JSON."""

from __future__ import annotations

import asyncio
import contextlib
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

from rrmove.cli import failure, interrupt
from rrmove.cli.asked import asked
from rrmove.cli.jsonlines import JSONLines, outcome_object, unfinished_object
from rrmove.cli.progress import Watcher, watcher
from rrmove.cli.result import result_line
from rrmove.cli.stdout import kept
from rrmove.cli.text import amount, printable, say
from rrmove.errors import RRMoveError
from rrmove.model import shown_url

if TYPE_CHECKING:
    from collections.abc import Callable

    from rrmove.cli.arguments import AutoCommand
    from rrmove.cli.board import Board
    from rrmove.cli.errand import Errand
    from rrmove.cli.tally import Tally
    from rrmove.events import Event
    from rrmove.model import Outcome
    from rrmove.moving import Wishes

TICK = 0.25  # seconds between two looks at the clock


def run(command: AutoCommand, errand: Errand | RRMoveError) -> int:
    """Move the file and return the exit code. Raises what `move()` raises, or what the lookup did."""
    if len(command.targets if isinstance(errand, RRMoveError) else errand.nodes) > 1:
        from rrmove.cli import many

        return many.run(command, errand)
    if command.output.json:
        with kept() as out:
            return _in_json(command, errand, out)
    if isinstance(errand, RRMoveError):
        raise errand
    seen = watcher(errand.source.name, errand.node.name, command.output)
    try:
        with kept(lambda: seen.tally.transport), contextlib.closing(seen):  # a bar holds on to stdout
            outcome = _moved(command, errand, seen)
    except KeyboardInterrupt:
        seen.close()
        say(_interrupted(seen.tally))
        return interrupt.INTERRUPTED
    finally:
        seen.close()
    if not command.output.quiet:
        tally, verbose = seen.tally, command.output.verbose
        line = result_line(outcome, losses=tally.losses, committed=tally.committed, verbose=verbose)
        sys.stdout.write(line + "\n")
    return 0


def _in_json(command: AutoCommand, errand: Errand | RRMoveError, out: TextIO) -> int:
    """Do the same for a program: whatever happens, the last line on stdout is an outcome."""
    seen = JSONLines(quiet=command.output.quiet, out=out)
    begun = time.monotonic()
    node = command.targets[0]

    shown = shown_url(command.source) if "://" in command.source else command.source

    def unfinished(error: str) -> dict[str, object]:
        size = None
        with contextlib.suppress(OSError, ValueError):
            size = Path(command.source).stat().st_size
        seconds = time.monotonic() - begun
        return unfinished_object(shown, node, size, seconds, error)

    try:
        if isinstance(errand, RRMoveError):
            raise errand  # noqa: TRY301  to end as every other failure does
        node = errand.node.name
        outcome = _moved(command, errand, seen)
    except KeyboardInterrupt:
        seen.finish(unfinished("interrupted"))
        say(_interrupted(seen.tally))
        return interrupt.INTERRUPTED
    except BaseException as error:
        cause = failure.innermost(error)
        if isinstance(cause, RRMoveError) and cause.outcome is not None:
            seen.finish(outcome_object(cause.outcome, str(cause)))
        else:
            seen.finish(unfinished(str(cause) or type(cause).__name__))
        raise
    seen.finish(outcome_object(outcome))
    return 0


def _moved(command: AutoCommand, errand: Errand, seen: Watcher) -> Outcome:
    outcome = interrupt.run(_move(command, errand, seen), tidy=seen.close)
    if not outcome.ok:
        error = RRMoveError(outcome.error or "the move failed", node=outcome.request.node.name)
        error.outcome = outcome
        raise error
    return outcome


async def _move(command: AutoCommand, errand: Errand, seen: Watcher) -> Outcome:
    ticking = asyncio.create_task(tick(seen))
    try:
        from rrmove.moving import move

        return await move(
            errand.source,
            errand.node,
            **wishes(command, errand, seen),
        )
    finally:
        ticking.cancel()


def wishes(command: AutoCommand, errand: Errand, on_event: Callable[[Event], None]) -> Wishes:
    """Give what was typed as `move()` takes it."""
    more: Wishes = {"alone": True, "on_event": on_event, "begun": errand.begun}
    return {**asked(command, errand.inventory), **more}


async def tick(seen: Watcher | Board) -> None:
    """Tell a display what time it is, until cancelled."""
    while True:
        await asyncio.sleep(TICK)
        seen.tick()


def _interrupted(tally: Tally) -> str:
    if not tally.begun:
        return "rrmove: interrupted before anything was sent"
    there = f"about {amount(tally.durable, tally.size)} are on {printable(tally.node)}"
    return (
        f"rrmove: interrupted; {there}, in a part file that stays there\n"
        f"{failure.INDENT}Run the same command again to go on from there"
    )
