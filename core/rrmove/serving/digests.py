"""SHA-256 of whole files, as `sha256sum` prints them: computed when asked for, remembered until the file changes."""

from __future__ import annotations

import asyncio
import hashlib
import os
import time
from collections import OrderedDict
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from concurrent.futures import Executor

PATIENCE = 3.0  # s: the field's connections live 4 s and longer; what takes more goes on without the one who asked
SETTLED = 2 * 10**9  # ns after which a further change shows in a file's times, on every file system (FAT: 2 s)
BLOCK = 1 << 20
MOST = 100_000  # digests that are remembered: some 20 MB

Key = tuple[int, int, int, int, int]


def key_of(seen: os.stat_result) -> Key:
    """Tell a file's content from its earlier ones, as far as the file system can."""
    return seen.st_dev, seen.st_ino, seen.st_size, seen.st_mtime_ns, seen.st_ctime_ns


def unchanged(before: os.stat_result, now: os.stat_result) -> bool:
    """Tell whether an open file has kept its bytes. Losing a name, to a newer file, changes its ctime only."""
    if now.st_nlink < before.st_nlink:
        return key_of(now)[:4] == key_of(before)[:4]
    return key_of(now) == key_of(before)


def settled(seen: os.stat_result) -> bool:
    """Tell whether a further change could no longer hide within the resolution of a file's times."""
    return time.time_ns() - max(seen.st_ctime_ns, seen.st_mtime_ns) > SETTLED


class Digests:
    """What is known of files' digests; for one event loop."""

    def __init__(self, pool: Executor) -> None:
        self._pool = pool
        self._known: OrderedDict[Key, str] = OrderedDict()
        self._running: dict[Key, asyncio.Future[str | None]] = {}

    def known(self, seen: os.stat_result) -> str | None:
        """Give a digest in hex if it is known; nothing is read."""
        return self._known.get(key_of(seen))

    async def of(self, fd: int, seen: os.stat_result, *, patience: float = PATIENCE) -> str | None:
        """Compute the digest of an open file; `fd` stays the caller's.

        None where that takes longer than `patience` seconds, and it goes on by itself, or where the
        file was changed meanwhile. A repeat finds what was computed; two at once read the file once.
        """
        key = key_of(seen)
        if (found := self._known.get(key)) is not None:
            self._known.move_to_end(key)
            return found
        running = self._running.get(key)
        if running is None:
            running = asyncio.get_running_loop().run_in_executor(self._pool, _compute, os.dup(fd), key)
            self._running[key] = running
            running.add_done_callback(lambda done: self._finished(key, done))
        await asyncio.wait([running], timeout=patience)
        return running.result() if running.done() and running.exception() is None else None

    def _finished(self, key: Key, done: asyncio.Future[str | None]) -> None:
        self._running.pop(key, None)
        if done.cancelled() or done.exception() is not None or (digest := done.result()) is None:
            return  # whoever waited was told; whoever asks again has it read again
        if time.time_ns() - max(key[3:]) > SETTLED:
            self._known[key] = digest
            while len(self._known) > MOST:
                self._known.popitem(last=False)


def _compute(fd: int, key: Key) -> str | None:
    """Hash a file, None where it is another one by the end; closes `fd`."""
    try:
        sha, buffer, at = hashlib.sha256(), memoryview(bytearray(BLOCK)), 0
        while got := os.preadv(fd, [buffer], at):
            sha.update(buffer[:got])
            at += got
        return sha.hexdigest() if key_of(os.fstat(fd)) == key else None
    finally:
        os.close(fd)
