"""The straight line of a URL: a server is asked in place of a file being hashed; the rest is the same."""

from __future__ import annotations

import asyncio
import contextlib
from dataclasses import replace
from typing import TYPE_CHECKING, cast

from rrmove.errors import RRMoveError
from rrmove.landing import locate
from rrmove.manifest import ALGORITHM
from rrmove.remote import RemotePart, blank
from rrmove.straight import Run
from rrmove.web import look

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rrmove.manifest import Range
    from rrmove.model import Outcome, Remote

DISCARDING = 5.0  # s for removing what nobody can continue


class Fetch(Run):
    """One move of what is behind a URL."""

    async def look(self, *, only_look: bool = False) -> None:
        """Ask the server what it has and the node what it offers, at the same time, in one login."""
        looking = asyncio.create_task(self.setting.facts(fresh=only_look))
        self.aside.append(looking)
        seen = await look(self.session, cast("Remote", self.request.source))
        self.setting.request = replace(self.request, source=seen)
        self.manifest = blank(seen.size)
        place = await locate(self.session, self.request, self.manifest)
        self.landing = RemotePart(self.session, self.request, place)
        self.facts = await looking
        self.knowledge = self.setting.knowledge()

    async def _judge(self) -> None:
        """Have nobody judge the file: its bytes are not here."""

    def finished(self, error: RRMoveError | None = None) -> Outcome:
        """Sum up the move; the size is what arrived where the server had not told it."""
        if self.digest is not None:
            source = replace(self.request.source, size=self.landing.manifest.size)
            self.setting.request = replace(self.request, source=source)
        return super().finished(error)

    async def tidy(self) -> None:
        """Let go of what runs beside; a part file that nobody could continue goes, too."""
        await super().tidy()
        source = cast("Remote", self.request.source)
        if self.digest is None and self.begun and not source.resumable:
            with contextlib.suppress(RRMoveError, TimeoutError):
                async with asyncio.timeout(DISCARDING):
                    await cast("RemotePart", self.landing).discard()

    @property
    def begun(self) -> bool:
        """Whether anything was attempted."""
        return bool(self.plan.steps)

    def foreseen(self) -> str:
        """Give the digest that the file is said to have; empty where nobody has said."""
        expected = cast("RemotePart", self.landing).expected
        return f"sha256:{expected}" if expected else ""

    def _verified(self) -> tuple[str, ...]:
        source = cast("Remote", self.request.source)
        asked = "sha256" if self.request.options.sha256 else "server-sha256" if source.digest else None
        words = ("received" if self.attempts else None, "length" if source.sized else None, asked)
        return tuple(word for word in words if word)

    def _unverified(self) -> str | None:
        source = cast("Remote", self.request.source)
        if cast("RemotePart", self.landing).expected:
            return None
        trust = "the server" if source.url.lower().startswith("https:") else "an unencrypted connection"
        return f"nobody gave a digest of the content: that it is the right one rests on {trust}"

    async def _land(self) -> Sequence[Range]:
        """Compare the whole file's digest before it is committed, where one is known."""
        await cast("RemotePart", self.landing).prove()
        return await super()._land()

    def _digest(self) -> str:
        expected = cast("RemotePart", self.landing).expected
        return f"sha256:{expected}" if expected else f"{ALGORITHM}:{self.landing.manifest.root}"
