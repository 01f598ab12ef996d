"""What the tests of real moves share: sources, a running rrmove, and looks at a node's disk from outside."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Self

import pytest

from tests.lab.processes import LabError, wait_until
from tests.lab.profiles import Profile

if TYPE_CHECKING:
    import signal
    from collections.abc import Callable, Iterable, Mapping, Sequence
    from types import TracebackType

    from tests.lab.cluster import Lab

MB = 1_000_000
GRAIN = 2 << 20  # what is verified or sent again is sent again in pieces of this size
LOGIN = 150_000  # bytes: the agent is streamed there in some 15 kB; a few logins and the retries of a bad day
SOON = 5.0  # s within which whatever belonged to a move that ended is gone, on both sides

RRMOVE = Path(sys.executable).with_name("rrmove")
NO_TOOLS = ("rsync", "aria2c", "python3")

NODES = (
    Profile("plain"),
    Profile("other"),
    Profile("bare", without=NO_TOOLS, rate="160mbit", rtt_ms=10, reset_bytes=3 * MB),
    Profile("barest", without=(*NO_TOOLS, "sha256sum"), rate="160mbit", rtt_ms=10, reset_seconds=(1.5, 3)),
    Profile("small", data_mb=30),
    Profile("hasty", rate="160mbit", rtt_ms=30, reset_seconds=(1.5, 4), max_startups="2:80:4"),
    Profile("dark", down=True),
)
"""The nodes of the one lab that all tests of faults share."""


@dataclass(frozen=True, slots=True)
class Done:
    """What an rrmove that has ended left: its exit code and its words."""

    code: int
    out: str
    err: str
    seconds: float

    @property
    def last(self) -> dict[str, Any]:
        """The last line of its output, as JSON."""
        found = json.loads(self.out.splitlines()[-1])
        assert isinstance(found, dict)
        return found


@dataclass(frozen=True, slots=True)
class File:
    """A source, and what it hashes to."""

    path: Path
    digest: str

    @property
    def size(self) -> int:
        """Its size in bytes."""
        return self.path.stat().st_size


def make(path: Path, size: int) -> File:
    """Write a file of random bytes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    data = os.urandom(size)
    path.write_bytes(data)
    return File(path, hashlib.sha256(data).hexdigest())


def rrmove(lab: Lab, *words: str | Path, timeout: float = 60, cwd: Path | None = None) -> Done:
    """Run rrmove as the client host; whatever happens, it shows nobody a traceback."""
    began = time.monotonic()
    done = lab.run([RRMOVE, *words], timeout=timeout, check=False, cwd=cwd)
    assert "Traceback" not in done.stdout + done.stderr, done.stderr
    assert "internal error" not in done.stderr, done.stderr
    return Done(done.returncode, done.stdout, done.stderr, time.monotonic() - began)


def auto(lab: Lab, source: File | Path, target: str, *options: str, timeout: float = 60) -> Done:
    """Move a file, with `--json`."""
    path = source.path if isinstance(source, File) else source
    return rrmove(lab, "auto", "--json", *options, "--", path, target, timeout=timeout)


def arrive(lab: Lab, source: File, node: str, path: str, *options: str, timeout: float = 60) -> Done:
    """Move a file, and see for ourselves that it is there, whole, and nothing else of ours."""
    done = auto(lab, source, f"{node}:{path}", *options, timeout=timeout)
    assert done.code == 0, done.err
    assert done.last["ok"] is True
    assert lab.sha256(node, path) == source.digest
    assert not parts(lab, node)
    return done


def all_at_once(tasks: Iterable[Callable[[], Done]]) -> list[Done]:
    """Do several things at the same time; raise what one of them raises."""
    with ThreadPoolExecutor(max_workers=6) as pool:
        return [future.result() for future in [pool.submit(task) for task in tasks]]


class Running:
    """A move under way, to be disturbed. A context manager: leaving it ends rrmove where it still runs."""

    def __init__(
        self,
        lab: Lab,
        source: File | Path,
        target: str | Sequence[str],
        *options: str | Path,
        env: Mapping[str, str] | None = None,
    ) -> None:
        """Start it, with `--json`."""
        targets = [target] if isinstance(target, str) else target
        path = source.path if isinstance(source, File) else source
        self._began = time.monotonic()
        self._out, self._err = _scratch(lab), _scratch(lab)
        argv: list[str | Path] = [RRMOVE, "auto", "--json", *options, "--", path, *targets]
        self.process = lab.popen(argv, stdin=subprocess.DEVNULL, stdout=self._out, stderr=self._err, env=env or {})

    def __enter__(self) -> Self:
        """Give the running move."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End it where it still runs."""
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        self._out.close()
        self._err.close()

    def until(self, share: float, seconds: float = 30) -> int:
        """Wait until it says that so much of the file has arrived; return how many bytes it spoke of.

        rsync speaks once a second: give it a rate at which that is often enough.
        """
        wait_until(lambda: self._arrived()[0] >= share * self._arrived()[1] or self._ended(), seconds, "half a move")
        durable, size = self._arrived()
        assert share * size <= durable < size, f"the move was not caught on its way: {self._read(self._err)}"
        return durable

    def tell(self, number: signal.Signals) -> None:
        """Send rrmove, and nothing that it started, a signal."""
        self.process.send_signal(number)

    def done(self, timeout: float = 60) -> Done:
        """Wait for its end."""
        self.process.wait(timeout)
        seconds = time.monotonic() - self._began
        done = Done(self.process.returncode, self._read(self._out), self._read(self._err), seconds)
        assert "Traceback" not in done.out + done.err, done.err
        assert "internal error" not in done.err, done.err
        return done

    def _arrived(self) -> tuple[int, float]:
        told = [json.loads(line) for line in self._read(self._out).splitlines(keepends=True) if line.endswith("\n")]
        seen = [line for line in told if line["event"] == "progressed"]
        return (int(seen[-1]["durable"]), float(seen[-1]["size"])) if seen else (0, float("inf"))

    def _ended(self) -> bool:
        return self.process.poll() is not None

    @staticmethod
    def _read(file: IO[bytes]) -> str:
        return os.pread(file.fileno(), 1 << 24, 0).decode(errors="replace")


def _scratch(lab: Lab) -> IO[bytes]:
    path = lab.directory / f"scratch-{time.monotonic_ns()}"
    file = path.open("w+b")
    path.unlink()
    return file


def parts(lab: Lab, node: str, *folders: str) -> list[Path]:
    """List what moves have left on a node: part files, journals, quarantined parts."""
    looked = [lab.path(node, folder) for folder in folders or ("/data", "/root", "/tmp")]
    return sorted(found for folder in looked for found in folder.rglob("*.rrmove-*"))


def part_file(lab: Lab, node: str) -> Path:
    """Find the one part file on a node."""
    (found,) = [path for path in parts(lab, node) if path.name.endswith(".rrmove-part")]
    return found


def missing(source: File, part: Path, grain: int = GRAIN) -> int:
    """Compare a part file with its source and return how many bytes are in pieces that are not there whole."""
    count = 0
    with source.path.open("rb") as wanted, part.open("rb") as there:
        while piece := wanted.read(grain):
            count += len(piece) if there.read(grain) != piece else 0
    return count


def nothing_runs(lab: Lab, *nodes: str) -> None:
    """See that nothing of a move that has ended is left: not as the client, not on the nodes."""
    hosts = ("client", *nodes)
    try:
        wait_until(lambda: not any(lab.processes(host) for host in hosts), SOON, "all processes to end")
    except LabError:
        pytest.fail(f"left running: { {host: lab.processes(host) for host in hosts} }")


def put(lab: Lab, node: str, path: str, text: str) -> Path:
    """Write a small file on a node, from outside."""
    file = lab.path(node, path)
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text)
    return file


def complains(done: Done, code: int, node: str, *words: str) -> None:
    """See that a failure has its exit code, says where, what was wrong and what to do, in both its outputs."""
    assert done.code == code, f"exit {done.code}: {done.err}"
    for word in (node, *words):
        assert word.lower() in done.err.lower(), done.err
    assert done.last["ok"] is False
    assert node in done.last["error"] or done.last["node"] == node


def wire(lab: Lab, node: str, action: Callable[[], Done]) -> tuple[Done, int]:
    """Do something and return with it how many bytes went on the wire towards a node meanwhile."""
    before = lab.bytes_to(node)
    done = action()
    return done, lab.bytes_to(node) - before


def fresh(lab: Lab, nodes: Sequence[str] = ()) -> Lab:
    """Empty nodes, and what the client remembers of them."""
    lab.wipe(*nodes)
    lab.forget()
    return lab
