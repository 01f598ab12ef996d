"""A hook for rrmove that appends every event to a file, as JSON lines."""

from __future__ import annotations

import dataclasses
import json
import os
import time
from pathlib import Path

import rrmove

VARIABLE = "RRMOVE_EVENT_LOG"


@rrmove.hookimpl
def rrmove_event(event: rrmove.Event) -> None:
    """Append one event to the file that $RRMOVE_EVENT_LOG names; without it, do nothing.

    Raises OSError where the file cannot be written; rrmove says so once, and the move goes on.
    """
    path = os.environ.get(VARIABLE)
    if path:
        line = {"time": round(time.time(), 3), "event": type(event).__name__, **plain(event)}
        data = json.dumps(line, default=str).encode("ascii") + b"\n"
        fd = os.open(Path(path), os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            os.write(fd, data)  # in one piece, so that lines of several moves do not mix
        finally:
            os.close(fd)


def plain(event: rrmove.Event) -> dict[str, object]:
    """Give an event's own fields; of values that are large themselves, what is worth a line."""
    fields: dict[str, object] = {}
    for field in dataclasses.fields(event):
        value = getattr(event, field.name)
        if isinstance(value, rrmove.Outcome):
            fields |= {"ok": value.ok, "destination": value.destination, "digest": value.digest, "error": value.error}
        elif isinstance(value, rrmove.Plan):
            fields["steps"] = [step.transport for step in value.steps]
        elif isinstance(value, rrmove.Attempt):
            fields |= {"transport": value.transport, "seconds": value.seconds, "error": value.error}
        elif isinstance(value, str | int | float | bool | None):
            fields[field.name] = value
    return fields
