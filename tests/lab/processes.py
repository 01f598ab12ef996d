"""Programs the lab starts: each is recorded with its start time, so that nothing else is ever ended."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

_NAMESPACES = Path("/run/netns")


class LabError(Exception):
    """The lab could not be built or used; the message says which command failed and what it said."""


def tell(
    argv: Sequence[str], *, stdin: str | None = None, check: bool = True, timeout: float = 60
) -> subprocess.CompletedProcess[str]:
    """Run a tool to its end. LabError, with what it said, if it fails and `check` is set."""
    done = subprocess.run(argv, input=stdin, capture_output=True, text=True, check=False, timeout=timeout)
    if check and done.returncode:
        message = f"{' '.join(argv)}: exit {done.returncode}: {(done.stderr or done.stdout).strip()}"
        raise LabError(message)
    return done


def launch(argv: Sequence[str], *, record: Path, log: Path, env: Mapping[str, str] | None = None) -> int:
    """Start a program in a session of its own, which outlives us. Return its pid; `end(record)` ends it."""
    flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND
    pid = os.posix_spawnp(
        argv[0],
        list(argv),
        dict(os.environ if env is None else env),
        file_actions=[
            (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0),
            (os.POSIX_SPAWN_OPEN, 1, str(log), flags, 0o644),
            (os.POSIX_SPAWN_DUP2, 1, 2),
        ],
        setsid=True,
    )
    record_process(pid, record)
    return pid


def record_process(pid: int, record: Path) -> None:
    """Note which process `record` stands for."""
    fresh = record.with_suffix(".new")  # never half a record: who reads one takes the process for dead
    fresh.write_text(f"{pid} {_started(pid)}\n")
    fresh.replace(record)


def recorded(record: Path) -> int | None:
    """Return the pid of a recorded process that still runs, and is still the same one."""
    try:
        pid, started = record.read_text().split()
    except (OSError, ValueError):
        return None
    return int(pid) if started != "None" and str(_started(int(pid))) == started else None


def end(record: Path) -> None:
    """Kill a recorded process and its group, and wait until they are gone. Does nothing if they are gone already."""
    pid = recorded(record)
    if pid is not None:
        with contextlib.suppress(ProcessLookupError):
            if os.getpgid(pid) == pid:
                os.killpg(pid, signal.SIGKILL)
            else:
                os.kill(pid, signal.SIGKILL)
        wait_until(lambda: recorded(record) is None, 5, f"process {pid} to end")
    with contextlib.suppress(OSError, ValueError):
        os.waitpid(int(record.read_text().split()[0]), os.WNOHANG)  # ours, perhaps: leave no zombie
    record.unlink(missing_ok=True)


def inhabitants(namespace: str) -> set[int]:
    """Return the pids of what lives in a network namespace. Empty if there is no such namespace."""
    try:
        home = (_NAMESPACES / namespace).stat()
    except FileNotFoundError:
        return set()
    pids = set()
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        with contextlib.suppress(OSError):
            lives = (entry / "ns/net").stat()
            if (lives.st_dev, lives.st_ino) == (home.st_dev, home.st_ino):
                pids.add(int(entry.name))
    return pids


def command_lines(pids: set[int]) -> list[str]:
    """Return the command lines of those processes that still run."""
    lines = []
    for pid in sorted(pids):
        with contextlib.suppress(OSError):
            lines.append(
                Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
            )
    return [line for line in lines if line]


def evict(namespace: str, *, spare: set[int] | None = None) -> None:
    """Kill what lives in a network namespace that the lab made, but for the pids to spare; wait until it is gone."""
    spared = spare or set()

    def gone() -> bool:
        left = inhabitants(namespace) - spared
        for pid in left:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        return not left

    wait_until(gone, 5, f"the processes in {namespace} to end")


def wait_until(happens: Callable[[], bool], seconds: float, what: str) -> None:
    """Look every few milliseconds whether something has happened. LabError if it has not within `seconds`."""
    deadline = time.monotonic() + seconds
    while not happens():
        if time.monotonic() > deadline:
            message = f"waited {seconds:g} s for {what}"
            raise LabError(message)
        time.sleep(0.005)


def _started(pid: int) -> int | None:
    """Return when a process started, in clock ticks since boot; None if it is gone or a zombie."""
    try:
        after_name = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return None if after_name[0] in "ZX" else int(after_name[19])
