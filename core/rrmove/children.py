"""Child processes of ours: which there are, and the ending of those that a transport left behind."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from pathlib import Path

ENDING = 2.0  # s that a process has to end by itself before it is killed
LOOK = 0.02  # s between two looks


def children() -> frozenset[int]:
    """Give the process ids of this process's children; those that have ended are left out."""
    ours = str(os.getpid())
    found = set()
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):  # it has ended
            state, parent = stat.read_text(encoding="latin-1").rpartition(")")[2].split()[:2]
            if parent == ours and state != "Z":
                found.add(int(stat.parent.name))
    return frozenset(found)


def command_of(pid: int) -> str:
    """Give the command line of a process, for people; empty once it has ended."""
    try:
        line = Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return ""
    return line.replace(b"\0", b" ").decode("utf-8", "replace").strip()


async def end(pids: frozenset[int]) -> tuple[str, ...]:
    """End children, with the groups that they lead, and give their command lines."""
    words = tuple(command_of(pid) or str(pid) for pid in sorted(pids))
    for number in (signal.SIGTERM, signal.SIGKILL):
        for pid in pids & children():
            with contextlib.suppress(ProcessLookupError, PermissionError):
                if os.getpgid(pid) == pid:
                    os.killpg(pid, number)
                else:
                    os.kill(pid, number)
        for _ in range(round(ENDING / LOOK)):
            if not pids & children():
                return words
            await asyncio.sleep(LOOK)
    return words
