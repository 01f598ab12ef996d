"""Child processes of ours: which there are, and the ending of those that a transport left behind."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

ENDING = 2.0  # s that a process has to end by itself before it is killed
GOING = 0.3  # s that those have which only wait for their parent's end to end themselves
LOOK = 0.02  # s between two looks
ROUNDS = 3  # of looking for what those had started that were ended

_SET_SUBREAPER, _GET_SUBREAPER = 36, 37  # PR_*_CHILD_SUBREAPER of prctl(2)


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


@contextlib.contextmanager
def adopting(*, yes: bool) -> Iterator[None]:
    """Have processes that lose their parent meanwhile become our children, as far down as they may be.

    So one that was started by a double fork, as daemons are, is seen and ended as any other. Only for
    programs that start nothing else meanwhile, and on Linux; elsewhere, and without `yes`, it does nothing.
    """
    if not yes or not sys.platform.startswith("linux"):
        yield
        return
    import ctypes

    prctl = ctypes.CDLL(None).prctl
    before = ctypes.c_int(0)
    prctl(_GET_SUBREAPER, ctypes.byref(before), 0, 0, 0)
    prctl(_SET_SUBREAPER, 1, 0, 0, 0)
    try:
        yield
    finally:
        prctl(_SET_SUBREAPER, before.value, 0, 0, 0)


def command_of(pid: int) -> str:
    """Give the command line of a process, for people; empty once it has ended."""
    try:
        line = Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return ""
    return line.replace(b"\0", b" ").decode("utf-8", "replace").strip()


async def end_all(left: Callable[[], frozenset[int]]) -> tuple[str, ...]:
    """End the children that `left` finds, and then those that it finds only now; gives their command lines."""
    words: tuple[str, ...] = ()
    for _ in range(round(GOING / LOOK)):
        if not left():
            return words
        await asyncio.sleep(LOOK)
    for _ in range(ROUNDS):
        pids = left()
        if not pids:
            break
        words += await end(pids)
    return words


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
                _reap(pids)
                return words
            await asyncio.sleep(LOOK)
    return words


def _reap(pids: frozenset[int]) -> None:
    """Let go of those that nobody else has waited for: who was adopted has nobody else."""
    for pid in pids:
        with contextlib.suppress(ChildProcessError):
            os.waitpid(pid, os.WNOHANG)
