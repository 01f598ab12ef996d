"""The structured log: one JSON object a line, on stderr; a reader that is slow or gone stops nobody."""

from __future__ import annotations

import contextlib
import json
import logging
import queue
import sys
import threading
import time

MOST = 10_000  # lines that wait for a slow reader; what is more is counted, and said later


class Log:
    """Lines that a thread of its own writes, so that requests do not wait for the terminal or the journal."""

    def __init__(self) -> None:
        self._lines: queue.Queue[str | None] = queue.Queue(MOST)
        self._lost = 0
        self._thread = threading.Thread(target=self._run, name="log", daemon=True)
        self._thread.start()

    def say(self, event: str, **fields: object) -> None:
        """Log one event. Fields that are None are left out. Never blocks, never raises."""
        now = time.time()
        stamp = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(now)) + f".{int(now % 1 * 1000):03d}Z"
        lost = {"lines_lost": self._lost} if self._lost else {}
        kept = {key: value for key, value in fields.items() if value is not None}
        try:
            self._lines.put_nowait(json.dumps({"time": stamp, "event": event, **kept, **lost}, default=repr))
            self._lost = 0
        except queue.Full:
            self._lost += 1

    def of_libraries(self) -> logging.Handler:
        """Give what libraries log to, so that their words are lines of this log."""
        return _Words(self)

    def close(self) -> None:
        """Write what waits, for a second at most."""
        with contextlib.suppress(queue.Full):
            self._lines.put(None, timeout=1.0)
        self._thread.join(1.0)

    def _run(self) -> None:
        while (line := self._lines.get()) is not None:
            try:
                sys.stderr.write(line + "\n")
                sys.stderr.flush()
            except (OSError, ValueError):
                return  # nobody reads any more: the lines that come fill the queue, and are dropped


class _Words(logging.Handler):
    """Says what a library has logged."""

    def __init__(self, log: Log) -> None:
        super().__init__()
        self._log = log

    def emit(self, record: logging.LogRecord) -> None:
        """Say one record."""
        trace = logging.Formatter().formatException(record.exc_info) if record.exc_info else None
        self._log.say("unexpected", logger=record.name, error=record.getMessage(), trace=trace)
