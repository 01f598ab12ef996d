"""Keep every file of a directory on many nodes: `python distribution_daemon.py DIRECTORY TARGET...`, such as `@gpu`.

How a daemon embeds rrmove. It looks at the directory every few seconds, and moves each file that has not changed for a
while to each node that does not have it. Names that begin with a dot or end as those of unfinished files do are left
alone, and so are subdirectories. A node that fails is tried again later, and nobody waits for it; a file that is
replaced on its way is begun anew. What has reached which node is written down, so that a restart, after `kill -9` too,
sends nothing twice, and rrmove itself goes on in the middle of a file. Without that state all nodes are asked again,
and still nothing is sent that is there. SIGTERM ends it; what is under way stays in part files. SIGHUP has it look at
once, and try again where it failed. Nodes that are new in the inventory are found at the next look.

It says what happens on stdout, as JSON objects, one a line, each with `at` (seconds since the epoch) and `event`:

    started       directory, targets, nodes
    distributing  file, size, nodes: it begins to move a file to them
    delivered     file, node, destination, digest, bytes_sent, bytes_reused, seconds: it is there, verified
    failed        file, node, error, retry: seconds until it is tried again
    lost          file, node, reason: a connection died; the move goes on
    replaced      file: it has changed or gone; what was under way of it ends
    trouble       error: the directory or the inventory cannot be read; it goes on with what it knew
    health        uptime, files, nodes, moving, failing, and since the start delivered, bytes_sent: every minute
    stopped       the last one
"""

from __future__ import annotations

import argparse
import asyncio
import json
import signal
import sqlite3
import sys
import time
from contextlib import aclosing, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

import rrmove

if TYPE_CHECKING:
    from collections.abc import Mapping

UNFINISHED = (".tmp", ".temp", ".part", ".partial", ".download", ".crdownload", ".swp", "~")
LONGEST = 3600.0  # seconds between two tries


def report(event: str, **more: object) -> None:
    """Write one line."""
    print(json.dumps({"at": round(time.time(), 3), "event": event, **more}), flush=True)


class Reached:
    """Which version of a file has reached which place: on the disk, and of one daemon at a time."""

    def __init__(self, path: Path) -> None:
        """Open or make it. Raises sqlite3.Error where another daemon has it."""
        self._database = sqlite3.connect(path, isolation_level=None, timeout=1)
        self._database.execute("PRAGMA locking_mode = EXCLUSIVE")
        self._database.execute("BEGIN EXCLUSIVE")
        self._database.execute("CREATE TABLE IF NOT EXISTS reached (file, place, version, PRIMARY KEY (file, place))")
        self._database.execute("COMMIT")

    def note(self, source: rrmove.Source, place: str) -> None:
        """Write down that this version is there; it survives a power cut from now on."""
        row = (source.name, place, self._version(source))
        self._database.execute("INSERT OR REPLACE INTO reached VALUES (?, ?, ?)", row)

    def has(self, source: rrmove.Source, place: str) -> bool:
        """Tell whether this version is there."""
        rows = self._database.execute("SELECT version FROM reached WHERE file = ? AND place = ?", (source.name, place))
        return (self._version(source),) in rows

    @staticmethod
    def _version(source: rrmove.Source) -> str:
        # Whoever replaces a file can set its mtime, but not its ctime. Where only that changed, rrmove sends nothing.
        return f"{source.size} {source.mtime_ns} {source.ctime_ns} {source.inode}"


@dataclass
class Daemon:
    """The directory, the nodes, and what is under way."""

    wanted: argparse.Namespace
    reached: Reached
    slots: rrmove.Slots  # all distributions share them
    nodes: Mapping[str, rrmove.Node] = field(default_factory=dict)  # by place
    seen: dict[str, tuple[rrmove.Source, float]] = field(default_factory=dict)  # files, and since when as they are
    tasks: dict[asyncio.Task[None], rrmove.Source] = field(default_factory=dict)
    moving: set[tuple[str, str]] = field(default_factory=set)  # (file, place), as in all that follows
    failing: dict[tuple[str, str], tuple[float, float]] = field(default_factory=dict)  # when to retry, after how long
    stopping: bool = False
    wake: asyncio.Event = field(default_factory=asyncio.Event)
    delivered: int = 0
    bytes_sent: int = 0

    async def run(self) -> None:
        """Look and move until told to stop; what is under way then stays on the nodes, to be continued."""
        began = said = time.monotonic()
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self.stop)
        loop.add_signal_handler(signal.SIGHUP, self.hurry)
        self.nodes = await asyncio.to_thread(self.look_up)  # what is wrong now has to be mended before we run
        report("started", directory=str(self.wanted.directory), targets=self.wanted.targets, nodes=len(self.nodes))
        async with asyncio.TaskGroup() as group:
            while not self.stopping:
                try:
                    await self.look(group)
                except OSError as error:  # such as a directory that is not mounted
                    report("trouble", error=str(error))
                if time.monotonic() - said >= self.wanted.health:
                    said = time.monotonic()
                    self.health(said - began)
                with suppress(TimeoutError):
                    await asyncio.wait_for(self.wake.wait(), self.wanted.every)
                self.wake.clear()
            for task in self.tasks:
                task.cancel()
        report("stopped")

    def stop(self) -> None:
        """End soon."""
        self.stopping = True
        self.wake.set()

    def hurry(self) -> None:
        """Look now, and try again now where it failed."""
        self.failing.clear()
        self.wake.set()

    def look_up(self) -> dict[str, rrmove.Node]:
        """Give the nodes by place; blocks. Raises UsageError where a target means nothing."""
        inventory = rrmove.load_inventory(ssh_config=self.wanted.ssh_config)
        meant = (each for target in self.wanted.targets for each in inventory.resolve(target))
        return {f"{node.name}:{path}": replace(node, destination=path or None) for node, path in meant}

    def scan(self) -> dict[str, rrmove.Source]:
        """Give the files as they are now; blocks. Raises OSError where the directory cannot be read."""
        found = {}
        for path in sorted(self.wanted.directory.iterdir()):
            if not path.name.startswith(".") and not path.name.lower().endswith(UNFINISHED) and path.is_file():
                with suppress(rrmove.UsageError):  # it has just gone, or is not for us to read
                    found[path.name] = rrmove.Source.of(path)
        return found

    async def look(self, group: asyncio.TaskGroup) -> None:
        """Begin what is due, and end what is out of date."""
        files, now = await asyncio.to_thread(self.scan), time.monotonic()
        for task, source in self.tasks.items():
            if files.get(source.name) != source and not task.cancelling():
                task.cancel()
                report("replaced", file=source.name)
        since = {name: at for name, (source, at) in self.seen.items() if files.get(name) == source}
        self.seen = {name: (source, since.get(name, now)) for name, source in files.items()}
        try:
            self.nodes = await asyncio.to_thread(self.look_up)
        except rrmove.UsageError as error:  # somebody is writing the inventory, or has made a mistake
            report("trouble", error=str(error))
        self.failing = {key: when for key, when in self.failing.items() if key[0] in since and key[1] in self.nodes}
        for source, at in self.seen.values():
            due = [place for place in self.nodes if self.due(source, place, now)]
            if due and now - at >= self.wanted.settle:
                names = [self.nodes[place].name for place in due]
                report("distributing", file=source.name, size=source.size, nodes=names)
                self.moving |= {(source.name, place) for place in due}
                task = group.create_task(self.distribute(source, due))
                self.tasks[task] = source
                task.add_done_callback(self.tasks.pop)

    def due(self, source: rrmove.Source, place: str, now: float) -> bool:
        """Tell whether a file has to be moved to a place now."""
        key = source.name, place
        return (
            key not in self.moving
            and self.failing.get(key, (now, 0.0))[0] <= now
            and not self.reached.has(source, place)
        )

    async def distribute(self, source: rrmove.Source, due: list[str]) -> None:
        """Move a file to some places, and take note of each as it ends."""

        def see(event: rrmove.Event) -> None:
            if isinstance(event, rrmove.ConnectionLost):
                report("lost", file=source.name, node=event.node, reason=event.reason)

        left = {place: self.nodes[place] for place in due}
        nodes = list(left.values())
        try:
            async with aclosing(rrmove.distribute(source, nodes, concurrency=self.slots, on_event=see)) as outcomes:
                async for outcome in outcomes:
                    place = f"{outcome.request.node.name}:{outcome.request.destination}"
                    del left[place]
                    self.moving.discard((source.name, place))  # others may go on for long: it may be tried again
                    self.ended(source, place, outcome)
        except rrmove.RRMoveError as error:  # of the whole call: it has reached none of them
            for place, node in left.items():
                self.put_off((source.name, place), node.name, str(error))
        finally:
            self.moving -= {(source.name, place) for place in left}

    def ended(self, source: rrmove.Source, place: str, outcome: rrmove.Outcome) -> None:
        """Take note of what became of one move."""
        key, node = (source.name, place), outcome.request.node.name
        self.bytes_sent += outcome.bytes_sent
        if not outcome.ok:
            self.put_off(key, node, outcome.error)
            return
        self.reached.note(source, place)
        self.failing.pop(key, None)
        self.delivered += 1
        fields = ("destination", "digest", "bytes_sent", "bytes_reused", "seconds")
        report("delivered", file=source.name, node=node, **{name: getattr(outcome, name) for name in fields})

    def put_off(self, key: tuple[str, str], node: str, error: str | None) -> None:
        """Say when to try again: each time after twice as long."""
        wait = min(LONGEST, 2 * self.failing[key][1]) if key in self.failing else self.wanted.retry
        self.failing[key] = (time.monotonic() + wait, wait)
        report("failed", file=key[0], node=node, error=error, retry=wait)

    def health(self, uptime: float) -> None:
        """Say how it goes."""
        counts = {"files": len(self.seen), "nodes": len(self.nodes), "moving": len(self.moving)}
        more = {"failing": len(self.failing), "delivered": self.delivered, "bytes_sent": self.bytes_sent}
        report("health", uptime=round(uptime), **counts, **more)


def main() -> int:
    """Run until SIGTERM; 0 then, 2 where the call is wrong."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("directory", type=Path)
    parser.add_argument("targets", nargs="+", metavar="target", help="@tag, NODE, NODE:PATH")
    parser.add_argument("--state", type=Path, help="default: .distribution.sqlite3 in the directory")
    parser.add_argument("--settle", type=float, default=10.0, help="seconds for which a file has to stay as it is")
    parser.add_argument("--every", type=float, default=5.0, help="seconds between two looks")
    parser.add_argument("--retry", type=float, default=30.0, help="seconds until a second try; doubled each time")
    parser.add_argument("--health", type=float, default=60.0, help="seconds between two lines about its health")
    parser.add_argument("--at-once", type=int, default=16, help="moves at a time")
    parser.add_argument("--ssh-config", type=Path, help="instead of ~/.ssh/config, as `ssh -F`")
    wanted = parser.parse_args()
    if not wanted.directory.is_dir():
        parser.error(f"there is no directory {str(wanted.directory)!r}")
    state = wanted.state or wanted.directory / ".distribution.sqlite3"
    try:
        asyncio.run(Daemon(wanted, Reached(state), rrmove.Slots(wanted.at_once)).run())
    except (rrmove.UsageError, sqlite3.Error) as error:
        print(f"cannot begin: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
