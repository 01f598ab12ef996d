"""Events -> JSON lines on stdout, for programs; the last line is the outcome."""

from __future__ import annotations

import dataclasses
import json
import math
import re
import sys
import time
from collections.abc import Mapping
from collections.abc import Set as AbstractSet
from typing import TYPE_CHECKING, TextIO

from rrmove.cli.tally import Tally
from rrmove.events import Event, Finished, Progressed

if TYPE_CHECKING:
    from collections.abc import Callable

    from rrmove.model import Outcome

PROGRESS_EVERY = 0.2  # seconds between two `progressed` lines, unless it is the last byte


class JSONLines:
    """Writes each event as one line; the outcome is written by `finish()`.

    When the reader is gone the move goes on: a file half moved helps nobody.
    """

    def __init__(
        self, *, quiet: bool = False, clock: Callable[[], float] = time.monotonic, out: TextIO | None = None
    ) -> None:
        """Begin; `quiet` writes nothing but the outcome, `out` stands for stdout."""
        self._out = out
        self.tally = Tally()
        self._quiet = quiet
        self._clock = clock
        self._progressed = -math.inf
        self._gone = False

    def __call__(self, event: Event) -> None:
        """Write one event."""
        now = self._clock()
        self.tally.see(event, now)
        if self._quiet or isinstance(event, Finished):
            return
        if isinstance(event, Progressed) and event.durable < event.size:
            if now - self._progressed < PROGRESS_EVERY:
                return
            self._progressed = now
        self._write(event_object(event))

    def tick(self) -> None:
        """Write nothing: time is no event."""

    def close(self) -> None:
        """Leave nothing behind."""

    def finish(self, outcome: Mapping[str, object]) -> None:
        """Write the last line."""
        self._write(outcome)

    def _write(self, line: Mapping[str, object]) -> None:
        if self._gone:
            return
        try:
            out = self._out or sys.stdout
            out.write(dumps(line) + "\n")
            out.flush()
        except BrokenPipeError:
            from rrmove.cli.failure import let_the_reader_go

            self._gone = True
            let_the_reader_go(self._out or sys.stdout)


def dumps(value: object) -> str:
    """Write a value as JSON in ASCII: names in any encoding survive ."""
    return json.dumps(plain(value), allow_nan=False)


def plain(value: object) -> object:
    """Turn frozen values into what JSON knows; what is infinite or no number becomes null."""
    simple: object
    match value:
        case float():
            simple = round(value, 6) if math.isfinite(value) else None
        case None | str() | int():
            simple = value
        case Mapping():
            simple = {str(key): plain(part) for key, part in value.items()}
        case tuple() | list():
            simple = [plain(part) for part in value]
        case _ if dataclasses.is_dataclass(value):
            simple = {part.name: plain(getattr(value, part.name)) for part in dataclasses.fields(value)}
        case _:
            simple = sorted(map(str, value)) if isinstance(value, AbstractSet) else str(value)
    return simple


def event_name(event: Event) -> str:
    """Give an event's name: `connection_lost` for ConnectionLost."""
    return re.sub(r"(?<!^)(?=[A-Z])", "_", type(event).__name__).lower()


def event_object(event: Event) -> dict[str, object]:
    """Give an event with its name and all that it carries."""
    if isinstance(event, Finished):
        return outcome_object(event.outcome)
    fields = plain(event)
    return {"event": event_name(event), **(fields if isinstance(fields, dict) else {})}


def outcome_object(outcome: Outcome, error: str | None = None) -> dict[str, object]:
    """Give the last line of a move: its outcome, and the error where it is none to be glad of."""
    error = error or outcome.error
    ok = outcome.ok and error is None
    last = outcome.attempts[-1] if outcome.attempts else None
    line: dict[str, object] = {
        "event": "finished",
        "ok": ok,
        "transport": last.transport if ok and last else None,
        "source": outcome.request.source.shown,
        "node": outcome.request.node.name,
        "destination": outcome.destination,
        "size": outcome.request.source.size,
        "digest": outcome.digest,
        "verified": outcome.verified,
        "unverified": outcome.unverified,
        "bytes_sent": outcome.bytes_sent,
        "bytes_reused": outcome.bytes_reused,
        "seconds": outcome.seconds,
        "attempts": [
            {
                "transport": attempt.transport,
                "seconds": attempt.seconds,
                "bytes_sent": attempt.bytes_sent,
                "error": attempt.error,
            }
            for attempt in outcome.attempts
        ],
        "refusals": [{"transport": refusal.transport, "reason": refusal.reason} for refusal in outcome.plan.refusals],
    }
    return line if ok else {**line, "error": error or "failed"}


def unfinished_object(source: str, node: str, size: int | None, seconds: float, error: str) -> dict[str, object]:
    """Give the last line of a move that came to no outcome, with the same keys."""
    return {
        "event": "finished",
        "ok": False,
        "transport": None,
        "source": source,
        "node": node,
        "destination": None,
        "size": size,
        "digest": None,
        "verified": [],
        "unverified": None,
        "bytes_sent": 0,
        "bytes_reused": 0,
        "seconds": seconds,
        "attempts": [],
        "refusals": [],
        "error": error,
    }
