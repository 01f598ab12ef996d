"""Reading back: chunks that have arrived are verified on the node while others are on their way."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from rrmove import Transient

if TYPE_CHECKING:
    from rrmove import Landing

TOGETHER = 16  # chunks read for one question: some 20 ms of work
SPOILT = 16  # chunks that may arrive wrong until it is better to begin anew than to go on


class ReadBack:
    """What a receiver has sealed is read back once, as it comes; `wrong` are the chunks that arrived altered."""

    def __init__(self, landing: Landing) -> None:
        self._landing = landing
        self._there: list[int] = []
        self._news = asyncio.Event()
        self._last = False
        self.wrong: list[int] = []

    def arrived(self, chunk: int) -> None:
        """Note a chunk whose last span was acknowledged."""
        self._there.append(chunk)
        self._news.set()

    def end(self) -> None:
        """Say that no more will come."""
        self._last = True
        self._news.set()

    async def run(self) -> None:
        """Read back what comes, until all has, or too much is wrong. Raises what `Landing.check()` does.

        Where the node cannot be asked for a while, the core reads back at the end what was not.
        """
        while len(self.wrong) < SPOILT:
            if not self._there:
                if self._last:
                    return
                self._news.clear()
                await self._news.wait()
                continue
            # The newest first: it is still in the processor's cache
            batch, self._there = self._there[-TOGETHER:], self._there[:-TOGETHER]
            try:
                self.wrong += await self._landing.check(batch, sealed=True)
            except Transient:
                await self._ended()
                return

    async def _ended(self) -> None:
        while not self._last:
            self._news.clear()
            await self._news.wait()


__all__ = ["ReadBack"]
