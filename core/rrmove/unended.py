"""Unended attempts: a stranger in whose midst the whole program ended is known at the next start, and comes last."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import quote, unquote

from rrmove.experience import default_path

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from rrmove.model import Plan

HELD_AGAINST = 86400.0  # s that it counts: a killed rrmove looks the same, and then it was not the stranger's doing


@contextlib.contextmanager
def begun(name: str) -> Iterator[None]:
    """Leave a mark while a transport is at work, which only the program's own end leaves behind.

    The mark is a file whose lock ends with this process, whatever ends that. An attempt that comes to
    an end, good or bad, takes away the transport's earlier marks, too. Where no file can be made, there is none.
    """
    mark: tuple[Path, int] | None = None
    with contextlib.suppress(OSError):
        mark = _made(name)
    try:
        yield
    finally:
        if mark is not None:
            for path in (mark[0], *(path for path in _marks() if _name_of(path) == name and _left(path) is not None)):
                path.unlink(missing_ok=True)
            os.close(mark[1])


def unended() -> dict[str, float]:
    """Give the transports in whose midst a program ended within the last day, and when they had begun.

    What was before the machine's last start does not count: then it may have lost its power.
    """
    found: dict[str, float] = {}
    for path in _marks():
        since = _left(path)
        if since is not None:
            name = _name_of(path)
            found[name] = max(since, found.get(name, 0.0))
    return found


def strangers_last(plan: Plan, suspects: Mapping[str, float]) -> Plan:
    """Put the suspects behind all others, and say why."""
    steps = tuple(
        replace(step, reason=f"{step.reason}; last, as rrmove itself ended while it was at work ({_clock(began)})")
        if (began := suspects.get(step.transport)) is not None
        else step
        for step in plan.steps
    )
    return replace(plan, steps=tuple(sorted(steps, key=lambda step: step.transport in suspects)))


def _folder() -> Path:
    return default_path().with_name("at-work")


def _marks() -> list[Path]:
    try:
        return sorted(_folder().iterdir())
    except OSError:
        return []


def _made(name: str) -> tuple[Path, int]:
    _folder().mkdir(parents=True, exist_ok=True)
    path = _folder() / f"{quote(name, safe='')}.{os.urandom(6).hex()}"
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    os.write(fd, json.dumps({"began": time.time(), "boot": _boot()}).encode("ascii"))
    return path, fd


def _left(path: Path) -> float | None:
    """Tell when the attempt of a mark began that nobody holds any more; what does not count is removed."""
    try:
        with path.open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            told = json.loads(file.read())
        began = float(told["began"])
        if told["boot"] == _boot() and time.time() - HELD_AGAINST < began:
            return began
        path.unlink(missing_ok=True)
    except (ValueError, KeyError, TypeError):  # nobody has written to it yet, or nothing that we know
        return None
    except OSError:  # its program is at work, or it has just ended
        return None
    return None


def _name_of(path: Path) -> str:
    return unquote(path.name.rpartition(".")[0])


def _boot() -> str:
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    except OSError:
        return ""


def _clock(began: float) -> str:
    return time.strftime("%H:%M", time.localtime(began))


__all__ = ["begun", "strangers_last", "unended"]
