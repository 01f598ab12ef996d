"""Foresight: what moves of one file to many nodes would do; who reaches whom, who is fed first, who pulls from whom."""

from __future__ import annotations

import asyncio
import time
from contextlib import AsyncExitStack, suppress
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from rrmove.common import Common
from rrmove.errors import RRMoveError, TransportError
from rrmove.model import Offer, Remote, Source
from rrmove.moving import Preview, Wishes, foreseen, line_of, looked, opened, options_of
from rrmove.probe import PORTS
from rrmove.siblings import choice
from rrmove.siblings.batch import HUB
from rrmove.siblings.choice import Member
from rrmove.siblings.door import Door, open_door, reached

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path
    from typing import Unpack

    from rrmove.model import Node
    from rrmove.straight import Run

AT_ONCE = 16  # logins at a time, as for moves


@dataclass(frozen=True, slots=True)
class Foresight:
    """What is to be expected for one node of several: its preview, or the error; and whom it was seen to reach."""

    node: Node
    preview: Preview | None = None
    error: BaseException | None = None
    reaches: tuple[str, ...] = ()


@dataclass(slots=True)
class _Looked:
    """A node while it is looked at."""

    node: Node
    member: Member
    run: Run | None = None
    missing: int = 0
    error: BaseException | None = None
    door: Door | None = None
    expected: dict[str, float] = field(default_factory=dict)


async def foresee(
    source: str | Path | Source, nodes: Sequence[Node], **wishes: Unpack[Wishes]
) -> tuple[Foresight, ...]:
    """Find out what moves to many nodes would do, and do nothing: a preview for each, or its error.

    Where nodes may pass a local file on, each listens for some seconds and the others try to reach it. Raises
    UsageError where the source cannot be read.
    """
    seen = source if isinstance(source, Source) else Source.of(source)
    common = Common(seen, options_of(wishes), sharers=len(nodes))
    every = [
        _Looked(node, Member(key=str(place), name=node.name, order=place, hub=HUB in node.tags))
        for place, node in enumerate(nodes)
    ]
    gate = asyncio.Semaphore(AT_ONCE)
    async with AsyncExitStack() as stack:
        stack.push_async_callback(common.close)
        await asyncio.gather(
            *(_look(each, seen, Wishes(**{**wishes, "common": common}), stack, gate) for each in every)
        )
        able = [each for each in every if each.run is not None]
        if not isinstance(seen, Remote):
            try:
                await asyncio.gather(*(_listen(each) for each in able))
                await asyncio.gather(*(_try(each, other) for each in able for other in able if each is not other))
            finally:
                await asyncio.gather(*(each.door.lease.end() for each in able if each.door is not None))
        previews = _previews(able, passing=not isinstance(seen, Remote))
    names = {each.member.key: each.node.name for each in every}
    return tuple(
        Foresight(
            each.node,
            previews.get(each.member.key),
            each.error,
            tuple(names[key] for key, there in each.member.reached.items() if there),
        )
        for each in every
    )


async def _look(each: _Looked, source: Source, wishes: Wishes, stack: AsyncExitStack, gate: asyncio.Semaphore) -> None:
    try:
        async with gate:
            setting = await stack.enter_async_context(opened(source, each.node, wishes))
            run = line_of(setting, time.monotonic())
            each.missing = await looked(run)
            each.run = run
    except (RRMoveError, OSError, ExceptionGroup) as error:
        each.error = error
        return
    member, node = each.member, run.request.node
    member.promise = choice.promise_of(member.hub, node.ports, run.facts.get(PORTS))
    member.stage = "seeking" if each.missing else "whole"


async def _listen(each: _Looked) -> None:
    """Open a door behind which there is nothing, so that others can try to reach it."""
    assert each.run is not None
    node, facts = each.run.request.node, each.run.facts
    with suppress(TransportError):
        each.door = await open_door(
            each.run.session, None, 0, choice.ports_for(node.ports, facts.get(PORTS), data=True)
        )
        each.member.door = "open"


async def _try(each: _Looked, other: _Looked) -> None:
    assert each.run is not None
    if other.door is not None:
        with suppress(TransportError):
            each.member.reached[other.member.key] = await reached(each.run.session, other.door) is not None


def _previews(able: Sequence[_Looked], *, passing: bool) -> dict[str, Preview]:
    """Go through the nodes as a batch would, whoever is to be fed first before all others, and rank for each."""
    members = {each.member.key: each.member for each in able}
    audience = max(1, sum(each.missing > 0 for each in able))
    found: dict[str, Preview] = {}
    due: dict[str, float] = {}
    for each in sorted(able, key=lambda each: (each.missing > 0, *each.member.rank)):
        assert each.run is not None
        member, offer, now = each.member, None, time.monotonic()
        if passing and each.missing and audience > 1:
            giver = choice.giver_for(members, member, now)
            if giver is not None:
                offer = Offer(giver=members[giver].name, remaining=due.get(giver, 0.0))
            elif not any(other.moves(now) for other in members.values()):
                offer = Offer(why="it is fed first, the others pull from it", first=True)
            else:
                tried = [members[key].name for key, there in member.reached.items() if not there]
                offer = Offer(why=f"it does not reach {', '.join(tried)}" if tried else "nobody could be tried")
            member.upstream = giver
            member.stage, member.since = "pulling" if giver else "fed", now
        shared = 1 if offer is not None and offer.first else audience
        each.run.setting.request = replace(each.run.request, audience=shared, offer=offer)
        preview = foreseen(each.run, each.missing)
        found[member.key] = preview
        due[member.key] = preview.plan.steps[0].estimate.seconds if preview.plan.steps and each.missing else 0.0
        if preview.plan.steps and preview.plan.steps[0].transport != "sibling" and each.missing:
            member.upstream, member.stage = None, "fed"
    return found


__all__ = ["Foresight", "foresee"]
