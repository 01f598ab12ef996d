"""What several moves of one file have in common, done once: its preparing, hashing and judging, and the rate limit."""

from __future__ import annotations

import asyncio
import copy
import os
import time
from contextlib import asynccontextmanager
from functools import cached_property
from typing import TYPE_CHECKING, Any, TypeVar, cast

from rrmove import manifest as manifests
from rrmove.errors import IntegrityError, RRMoveError, UsageError
from rrmove.hooks import Hooks, load_hooks
from rrmove.limits.bucket import TokenBucket
from rrmove.model import Limit, Source

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Coroutine

    from rrmove.manifest import Manifest
    from rrmove.model import Node, Options, Route
    from rrmove.siblings.batch import Siblings

T = TypeVar("T")


class Common:
    """One source on its way to one place or to several; a move that is alone has one for itself.

    Whoever asks first has the work done, and all get what came of it: the value, or each an error
    of its own. Who is cancelled takes nothing from the others; `close()` ends what still runs.
    `sharers` are the moves that go on at the same time, and share `options.limit_rate`.
    """

    def __init__(self, source: Source, options: Options, sharers: int = 1) -> None:
        self.source = source
        self.began = time.monotonic()
        self.limit = TokenBucket(options.limit_rate, sharers=sharers)
        self._name = f"moves {os.urandom(8).hex()}"
        self.limiters: dict[str, TokenBucket] = {}
        self._options = options
        self.siblings: Siblings | None = None  # where the same file goes to several nodes
        self._sha256 = options.sha256
        self._tasks: dict[str, asyncio.Task[Any]] = {}

    @cached_property
    def hooks(self) -> Hooks:
        """Those who watch, adjust and judge; loaded when first wanted."""
        return load_hooks()

    def limiter(self, node: Node) -> TokenBucket:
        """Give what a move to a node sends through: the lowest of the node's limits, within that of all."""
        return self.limiters.setdefault(node.name, TokenBucket(node.ceiling, within=self.limit))

    @asynccontextmanager
    async def at_work(self, node: Node, route: Route, tell: Callable[[str], None]) -> AsyncIterator[None]:
        """Let an attempt have its share of the limits that the node has in common with others; `tell` as `shared()`.

        What a node pulls from a sibling does not leave from here, and takes nothing from anybody's share.
        """
        limits, own = node.all_limits, self._options.limit_rate
        if not limits or route == "sibling":
            yield
            return
        from rrmove.limits.shares import shared

        if own is not None:  # what these moves cannot use, others need not leave to them
            limits = (*limits, Limit(self._name, own))
        async with shared(self.limiter(node), limits, self._options.priority, tell):
            yield

    async def prepared(self) -> Source:
        """Let hooks make the source ready before it is read. Raises RejectedError."""
        return await self._once("prepare", self._prepare)

    async def hashed(self) -> Manifest:
        """Read the source. Raises UsageError where it cannot be read or has changed, IntegrityError for a wrong one."""
        return await self._once("hash", self._hash)

    async def judged(self) -> None:
        """Have whoever wants to judge the file do so. Raises RejectedError."""
        await self._once("judge", lambda: self.hooks.validate(self.source))

    async def close(self) -> None:
        """End what still runs; nobody waits for it any more."""
        for task in self._tasks.values():
            task.cancel()
        await asyncio.gather(*self._tasks.values(), return_exceptions=True)

    async def _once(self, name: str, work: Callable[[], Coroutine[Any, Any, T]]) -> T:
        if name not in self._tasks:
            self._tasks[name] = asyncio.create_task(work())
        try:
            return cast("T", await asyncio.shield(self._tasks[name]))
        except RRMoveError as error:
            raise copy.copy(error) from error.__cause__  # each move writes its node and its outcome into it

    async def _prepare(self) -> Source:
        if self.hooks.preparing:
            await self.hooks.prepare(self.source)
            self.source = Source.of(self.source.path)
        return self.source

    async def _hash(self) -> Manifest:
        made, _ = await asyncio.gather(asyncio.to_thread(self._build), asyncio.to_thread(self._check_expected))
        return made

    def _build(self) -> Manifest:
        source = self.source
        made = manifests.build(source.path, source.size)
        if not source.unchanged():
            raise UsageError(
                f"{str(source.path)!r} was changed while it was read", remedy="Run again when nobody writes to it"
            )
        return made

    def _check_expected(self) -> None:
        if self._sha256 is not None:
            actual = manifests.file_sha256(self.source.path)
            if actual != self._sha256.lower():
                raise IntegrityError(
                    f"{str(self.source.path)!r} has SHA-256 {actual}, not {self._sha256}",
                    remedy="The source is not the file you meant; nothing was sent",
                )


__all__ = ["Common"]
