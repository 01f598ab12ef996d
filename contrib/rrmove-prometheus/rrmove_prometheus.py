"""A hook for rrmove that counts moves, bytes, attempts and lost connections in a file for Prometheus."""

from __future__ import annotations

import fcntl
import os
import re
import tempfile
import time
from pathlib import Path

import rrmove

VARIABLE = "RRMOVE_PROMETHEUS_FILE"
HELP = {
    "rrmove_moves_total": ("counter", "Moves by node and result: moved, there, failed."),
    "rrmove_sent_bytes_total": ("counter", "Bytes put on the wire in finished moves."),
    "rrmove_delivered_bytes_total": ("counter", "Bytes of files that were committed."),
    "rrmove_move_seconds_total": ("counter", "Seconds that finished moves took."),
    "rrmove_attempts_total": ("counter", "Attempts by transport and what became of them."),
    "rrmove_connections_lost_total": ("counter", "Connections that died under a transport."),
    "rrmove_last_success_timestamp_seconds": ("gauge", "When a move last ended well."),
}
LINE = re.compile(r"(\w+)(\{.*\}) (\S+)")

Sample = tuple[str, str]  # the metric's name, its labels as they are written


@rrmove.hookimpl
def rrmove_event(event: rrmove.Event) -> None:
    """Count one event in the file that $RRMOVE_PROMETHEUS_FILE names; without it, do nothing.

    Raises OSError where the file cannot be written; rrmove says so once, and the move goes on.
    """
    path = os.environ.get(VARIABLE)
    counts = counted(event, time.time())
    if path and counts:
        add(Path(path), counts)


def counted(event: rrmove.Event, now: float) -> dict[Sample, float]:
    """Say by how much an event raises which counter; of a gauge, what it is now."""
    match event:
        case rrmove.ConnectionLost():
            return {("rrmove_connections_lost_total", labels(node=event.node, transport=event.transport)): 1}
        case rrmove.Finished(node, outcome):
            return finished(node, outcome, now)
        case _:
            return {}


def finished(node: str, outcome: rrmove.Outcome, now: float) -> dict[Sample, float]:
    """Count a move that has come to its end."""
    result = "failed" if not outcome.ok else "moved" if outcome.attempts else "there"
    here = labels(node=node)
    counts: dict[Sample, float] = {
        ("rrmove_moves_total", labels(node=node, result=result)): 1,
        ("rrmove_sent_bytes_total", here): outcome.bytes_sent,
        ("rrmove_move_seconds_total", here): round(outcome.seconds, 3),
    }
    for attempt in outcome.attempts:
        sample = "rrmove_attempts_total", labels(node=node, transport=attempt.transport, failure=attempt.failure or "")
        counts[sample] = counts.get(sample, 0) + 1
    if outcome.ok:
        size = outcome.request.source.size if outcome.attempts else 0
        counts["rrmove_delivered_bytes_total", here] = size
        counts["rrmove_last_success_timestamp_seconds", here] = round(now, 3)
    return counts


def labels(**values: str) -> str:
    """Write labels as Prometheus reads them."""
    escapes = str.maketrans({"\\": r"\\", '"': r"\"", "\n": r"\n"})
    return "{" + ",".join(f'{name}="{value.translate(escapes)}"' for name, value in values.items()) + "}"


def add(path: Path, counts: dict[Sample, float]) -> None:
    """Add counts to those in the file, which is replaced as a whole: whoever scrapes it sees the old or the new one.

    Several moves may count at once; a lock beside the file keeps them apart.
    """
    lock = os.open(f"{path}.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        known = read(path.read_text("utf-8")) if path.exists() else {}
        for (name, at), value in counts.items():
            gauge = HELP[name][0] == "gauge"
            known[name, at] = value if gauge else known.get((name, at), 0.0) + value
        fd, draft = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")  # no *.prom: not to be scraped
        with os.fdopen(fd, "w", encoding="utf-8") as file:
            file.write(written(known))
        Path(draft).chmod(0o644)  # the exporter runs as somebody else
        Path(draft).replace(path)
    finally:
        os.close(lock)


def read(text: str) -> dict[Sample, float]:
    """Read what `written` wrote; other lines are passed over."""
    found = (LINE.fullmatch(line) for line in text.splitlines())
    return {(match[1], match[2]): float(match[3]) for match in found if match and match[1] in HELP}


def written(samples: dict[Sample, float]) -> str:
    """Write samples in Prometheus' text format, each metric with its help and type."""
    lines: list[str] = []
    for name, (kind, words) in HELP.items():
        mine = sorted((at, value) for (metric, at), value in samples.items() if metric == name)
        if mine:
            lines += [f"# HELP {name} {words}", f"# TYPE {name} {kind}"]
            lines += [f"{name}{at} {value:.15g}" for at, value in mine]
    return "".join(f"{line}\n" for line in lines)
