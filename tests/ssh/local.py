"""A node on this machine: agents as local processes, over the very channel that ssh uses."""

from __future__ import annotations

import os
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Self

from rrmove.model import Node, Options, Request, Source
from rrmove.ssh.lane import AgentLane
from rrmove.ssh.openssh import OpenSSHChannel

if TYPE_CHECKING:
    import signal
    from collections.abc import Callable
    from types import TracebackType

    from rrmove.errors import RRMoveError
    from rrmove.session import Session


@dataclass
class LocalSession:
    """A login on a node that is this machine, its home a directory; a context manager like a session.

    `cuts` are the numbers of connections to be killed once they have sent the operation `cut_at`.
    """

    home: Path
    node: Node = field(default_factory=lambda: Node(name="local"))
    prelude: str = ""
    path: str = "/usr/local/bin:/usr/bin:/bin"
    lanes: list[AgentLane] = field(default_factory=list)
    channels: list[OpenSSHChannel] = field(default_factory=list)
    lost: list[RRMoveError] = field(default_factory=list)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for lane in self.lanes:
            await lane.close()

    async def control(self) -> AgentLane:
        return next((lane for lane in self.lanes if lane.alive), None) or await self.open_lane()

    async def open_lane(self, *, text: bool = False) -> AgentLane:
        lane = AgentLane(self._open, self.node, lost=self.lost.append, text=text)
        self.lanes.append(lane)
        return lane

    def ssh_command(self) -> tuple[str, ...] | None:
        return None

    async def address(self) -> tuple[str, int] | None:
        return None

    @property
    def floor(self) -> bool:
        return False

    def ssh_destination(self) -> str:
        return "local"

    @property
    def pid(self) -> int:
        """The process group of the latest connection."""
        return self.channels[-1]._process.pid

    def _open(self, command: str) -> OpenSSHChannel:
        environment = (f"HOME={self.home}", f"PATH={self.path}", "LC_ALL=C")
        argv = ("env", "-i", *environment, "sh", "-c", f"cd && {self.prelude}{command}")
        channel = OpenSSHChannel(argv, node=self.node, host="local")
        self.channels.append(channel)
        return channel


_: type[Session] = LocalSession  # it is what it says, or mypy objects


def request_for(path: Path, destination: str = "", *, node: Node | None = None) -> Request:
    return Request(source=Source.of(path), node=node or Node(name="local"), destination=destination, options=Options())


def until(condition: Callable[[], bool], seconds: float = 10.0) -> bool:
    """Wait for what comes soon on an idle machine and later on a busy one."""
    patience = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > patience:
            return False
        time.sleep(0.01)
    return True


def alive(pid: int) -> bool:
    """Tell whether a process runs; a zombie has ended."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state != "Z"


def processes_with(word: str) -> list[int]:
    """Find the running processes whose command line contains a word."""
    found = []
    for line in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = line.read_bytes()
        except OSError:
            continue  # it has ended
        pid = int(line.parent.name)
        if word.encode() in words and pid != os.getpid() and alive(pid):
            found.append(pid)
    return found


def lane_threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name.startswith("lane-")]


def signal_group(pid: int, number: signal.Signals) -> None:
    os.killpg(pid, number)
