"""Looking from outside: which processes, ports and files there are, for what a transport leaves behind."""

from __future__ import annotations

import contextlib
import os
import time
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

LISTENING = "0A"  # the state of a TCP socket in /proc/net/tcp


def marked(mark: str) -> dict[int, str]:
    """Find the running processes that have NAME=VALUE in their environment, this one left out; with their commands."""
    found = {}
    for environ in Path("/proc").glob("[0-9]*/environ"):
        pid = int(environ.parent.name)
        with contextlib.suppress(OSError):  # it has ended, or is somebody else's
            if pid != os.getpid() and mark.encode() in environ.read_bytes().split(b"\0"):
                words = environ.with_name("cmdline").read_bytes().replace(b"\0", b" ")
                found[pid] = words.decode("utf-8", "replace").strip()
    return found


def ports() -> frozenset[int]:
    """Give the TCP ports on which this process listens."""
    ours = set()
    for fd in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(OSError):
            ours.add(str(fd.readlink()))
    found = set()
    for table in ("tcp", "tcp6"):
        with contextlib.suppress(OSError):
            for line in Path(f"/proc/self/net/{table}").read_text(encoding="ascii").splitlines()[1:]:
                words = line.split()
                if words[3] == LISTENING and f"socket:[{words[9]}]" in ours:
                    found.add(int(words[1].rpartition(":")[2], 16))
    return frozenset(found)


def files(folders: Iterable[Path]) -> frozenset[Path]:
    """Give all that lies in some folders, at any depth."""
    return frozenset(path for folder in folders for path in folder.rglob("*"))


def until(condition: Callable[[], bool], seconds: float) -> bool:
    """Wait for what comes soon on an idle machine and later on a busy one; tells whether it came."""
    patience = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > patience:
            return False
        time.sleep(0.02)
    return True
