"""Siblings: who of those that get one file has it, who is fed by us, and who pulls from whom."""

from __future__ import annotations

import asyncio
import contextlib
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from rrmove.errors import RRMoveError, TransportError, Unusable
from rrmove.events import Finished, Progressed
from rrmove.lease import LeaseLost
from rrmove.model import Offer
from rrmove.probe import PORTS, RTT, TOOLS
from rrmove.siblings import choice
from rrmove.siblings.choice import Member
from rrmove.siblings.door import Door, open_door, reached
from rrmove.transport import Giver

if TYPE_CHECKING:
    from collections.abc import Coroutine, Iterable
    from contextlib import AsyncExitStack
    from typing import Any

    from rrmove.events import Event
    from rrmove.model import Node
    from rrmove.probe import Facts
    from rrmove.session import Session

HUB = "hub"  # the tag of nodes that are fed first
RENEW = 0.7  # s between two words to a giver: several within its lease, whatever a busy line does to one of them
REOPENED = 5  # times that a giver which has ended is started anew
SERVERS = 4  # nodes that had the file already and give it: each has room for four, and they for four more
ENDING = 1.0  # s that a giver is given to hear that it should end
LOOK = 0.05  # s between two looks while a node seeks


class Siblings:
    """The nodes of one batch; each move takes the `Seat` of its node. `close()` ends all givers."""

    def __init__(self, nodes: Iterable[Node]) -> None:
        self.members: dict[str, Member] = {}
        self.seats: dict[str, Seat] = {}
        self._kept: list[AsyncExitStack] = []
        self.first_seen: float | None = None
        for order, node in enumerate(nodes):
            key = _key(node)
            self.members[key] = Member(key=key, name=node.name, order=order, hub=HUB in node.tags)
            self.seats[key] = Seat(self, self.members[key])

    def seat(self, node: Node) -> Seat:
        """Give the seat of a node; the same one for the same place."""
        return self.seats[_key(node)]

    @property
    def audience(self) -> int:
        """How many get the file from here, those left out that have it, or will not get it."""
        return sum(member.stage not in {"whole", "gone"} for member in self.members.values())

    def see(self, event: Event) -> None:
        """Take one event of any of the moves into account."""
        for member in self.members.values():
            if member.name != event.node or member.stage in {"coming", "checking", "whole", "gone"}:
                continue
            match event:
                case Progressed():
                    if event.durable > member.durable:
                        member.durable, member.moved = event.durable, time.monotonic()
                case Finished():
                    member.stage = "gone"
                case _:
                    pass

    def left(self, node: Node) -> None:
        """Take into account that a move has ended, however early."""
        member = self.members[_key(node)]
        if member.stage != "whole":
            member.stage = "gone"

    def keep(self, stack: AsyncExitStack) -> None:
        """Keep what a move leaves open, until the batch ends: a giver lives on it."""
        self._kept.append(stack)

    async def close(self) -> None:
        """End all givers, and the logins that were kept for them; a repeat does nothing."""
        await asyncio.gather(*(seat.leaves() for seat in self.seats.values()))
        kept, self._kept = self._kept, []
        await asyncio.gather(*(stack.aclose() for stack in kept), return_exceptions=True)


@dataclass(slots=True)
class Seat:
    """One node among its siblings; serves transports as `rrmove.transport.Siblings`."""

    among: Siblings
    me: Member
    session: Session | None = None
    node: Node | None = None
    facts: Facts | None = None
    file: str = ""
    door: Door | None = None
    hosts: dict[str, str] = field(default_factory=dict)  # by which each giver was reached
    lost: float | None = None  # since when there is no giver
    feeds: str = ""  # the route by which it is fed
    tasks: set[asyncio.Task[None]] = field(default_factory=set)
    asked: asyncio.Event = field(default_factory=asyncio.Event)  # to look after our own giver now

    # From the straight line

    def sits(self, session: Session, node: Node, facts: Facts, file: str, size: int) -> None:
        """Take the seat, once it is known where the file goes."""
        me, now = self.me, time.monotonic()
        self.session, self.node, self.facts, self.file = session, node, facts, file
        me.promise, me.size = choice.promise_of(me.hub, node.ports, facts.get(PORTS)), size
        if me.stage in {"coming", "checking"}:
            me.stage, me.since = "seeking", now
        if self.among.first_seen is None:
            self.among.first_seen = now

    def checks(self) -> None:
        """Note that a file of this size is there, and is being looked at: it may be the one."""
        self.me.stage = "checking"

    def able(self) -> str | None:
        """Say why this node can neither give nor pull; None where it can, as far as is known."""
        tools = self.facts.get(TOOLS) if self.facts is not None else None
        if (tools is not None and "python3" not in tools) or (self.session is not None and self.session.floor):
            return "it has no python3"
        return None

    async def seek(self) -> Offer:
        """Look for a giver, for a second at the most; or find that this node is fed, and why."""
        me, members = self.me, self.among.members
        if why := self.able():
            return Offer(why=why)
        began = time.monotonic()
        while (now := time.monotonic()) - began < choice.patience(members, me, now):
            if choice.is_first(members, me, now, first_seen=self.among.first_seen or now):
                self.fed()
                self.opens()
                return Offer(
                    why="it is fed first, the others pull from it", first=True, listens=self._takes_data_port()
                )
            if await self._look(now, choice.ROOM) is not None:
                break
            await asyncio.sleep(LOOK)
        giver = self._take(choice.CROWD)  # where nobody has room, a crowd is better than our line
        return Offer(why=self._in_vain()) if giver is None else self._offer(members[giver])

    def fed(self) -> None:
        """Note that this node is fed by us from now on."""
        if self.me.stage != "fed":
            self.me.stage, self.me.since, self.me.upstream = "fed", time.monotonic(), None

    def starts(self, route: str, seconds: float) -> None:
        """Note what feeds the node from now on, and how long that should take."""
        now = time.monotonic()
        self.feeds = route
        if route != "sibling":
            self.fed()
        else:
            self.me.stage, self.me.since = "pulling", now
        self.me.due = now + seconds

    def whole(self, file: str, *, size: int) -> None:
        """Note that this node has the file under its name; it gives it on where others need it."""
        me = self.me
        me.stage, me.durable, me.size, me.upstream = "whole", size, size, None
        self.file = file
        servers = sum(each.stage == "whole" and each.door != "shut" for each in self.among.members.values())
        if me.door == "shut" and self.among.audience and servers < SERVERS and not self.able():
            self.opens()

    def opens(self) -> None:
        """Open this node's door, in the background; a repeat does nothing."""
        if self.me.door == "shut" and self.session is not None:
            self.me.door = "opening"
            self._begin(self._keep_open(self.session))

    async def leaves(self) -> None:
        """End the giver, and all else that uses the login; a repeat does nothing."""
        tasks = list(self.tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self.session = None

    def _begin(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self.tasks.add(task)
        task.add_done_callback(self.tasks.discard)

    @property
    def gives(self) -> bool:
        """Whether others may still want something of it, so that its login has to stay."""
        return self.me.stage == "whole" and self.me.door in {"opening", "open"} and self.among.audience > 0

    # From the transport

    def giver(self) -> Giver | None:
        """Say from whom to pull now; None while nobody has anything. Raises Unusable where this node is to be fed."""
        me, members, now = self.me, self.among.members, time.monotonic()
        chosen = choice.giver_for(members, me, now)
        if chosen is None:
            self.lost = self.lost or now
            # Until its door is open, and tried, the next one has a moment; then everyone looks after himself.
            if now - self.lost > choice.HEIR or choice.is_heir(members, me, now):
                self.fed()
                self.opens()
                raise Unusable(f"nobody passes it on any more: {self._in_vain()}", node=me.name)
            self._begin(self._look_again(now))
            return None
        self.lost = None
        if chosen != me.upstream:
            me.upstream, me.since = chosen, now
        door, owner = self.among.seats[chosen].door, members[chosen]
        if door is None or chosen not in self.hosts:
            return None
        return Giver(node=owner.name, host=self.hosts[chosen], endpoint=door.endpoint, whole=owner.stage == "whole")

    def failed(self, giver: Giver) -> None:
        """Note that a giver has let this node down; it is not given again before it was started anew."""
        for key, seat in self.among.seats.items():
            if seat.door is not None and seat.door.endpoint == giver.endpoint:
                self.me.barred.setdefault((key, self.among.members[key].serial), time.monotonic())
                seat.asked.set()  # it may have been killed: then it is started anew

    # Looking

    async def _look(self, now: float, room: int = choice.CROWD) -> str | None:
        """Try the doors that are open, have another one opened where none will do, and give the giver."""
        me, members = self.me, self.among.members
        if fresh := choice.untried(members, me, now):
            await asyncio.gather(*(self._try(key) for key in fresh))
        found = self._take(room)
        if found is None and (key := choice.next_door(members, me, now)) is not None:
            self.among.seats[key].opens()
        return found

    def _take(self, room: int) -> str | None:
        """Choose a giver of those that were reached, and sit down there."""
        me = self.me
        found = choice.giver_for(self.among.members, me, time.monotonic(), room)
        if found is not None and me.stage == "seeking":
            me.upstream, me.stage, me.since = found, "pulling", time.monotonic()
        return found

    async def _look_again(self, now: float) -> None:
        with contextlib.suppress(RRMoveError):
            await self._look(now)

    async def _try(self, key: str) -> None:
        """Try one door from this node; what cannot be tried was not reached."""
        other = self.among.seats[key]
        door = other.door
        self.me.reached[key] = False
        if door is None or self.session is None:
            return
        with contextlib.suppress(TransportError):
            host = await reached(self.session, door, choice.trying(self.rtt, other.rtt))
            if host is not None:
                self.hosts[key] = host
                self.me.reached[key] = True

    @property
    def rtt(self) -> float | None:
        """Seconds of a round trip from here, None if unknown."""
        return self.facts.get(RTT) if self.facts is not None else None

    def _ports(self) -> list[int]:
        assert self.node is not None
        seen = self.facts.get(PORTS) if self.facts else None
        return choice.ports_for(self.node.ports, seen, data=self.feeds != "direct")

    def _takes_data_port(self) -> bool:
        """Tell whether the giver will listen where http would send to: not where somebody listens already."""
        assert self.node is not None
        data, seen = self.node.ports.data, self.facts.get(PORTS) if self.facts else None
        return self._ports()[0] == data and (seen or {}).get(data) != "open"

    def _offer(self, giver: Member) -> Offer:
        left = 0.0 if giver.stage == "whole" or giver.due is None else max(0.0, giver.due - time.monotonic())
        return Offer(giver=giver.name, remaining=left)

    def _in_vain(self) -> str:
        members = self.among.members
        tried = [members[key].name for key in self.me.reached if not self.me.reached[key]]
        if tried:
            return f"it does not reach {', '.join(tried)}"
        full = [each.name for each in members.values() if self.me.reached.get(each.key)]
        return f"{', '.join(full)} had no room, or stood still" if full else "nobody else has it yet"

    # Giving

    async def _keep_open(self, session: Session) -> None:
        """Open the door and keep it open; anew where the giver has ended, as somebody may have killed it."""
        me = self.me
        try:
            for _ in range(1 + REOPENED):
                self.door = await open_door(session, self.file, me.size, self._ports())
                me.door, me.serial = "open", me.serial + 1
                try:
                    while True:
                        await self.door.renew(whole=me.stage == "whole")
                        self.asked.clear()
                        with contextlib.suppress(TimeoutError):
                            async with asyncio.timeout(RENEW):
                                await self.asked.wait()
                except LeaseLost:
                    me.door = "opening"
        except RRMoveError:
            pass  # the node is gone, or cannot: its own move says so, and the others find another giver
        finally:
            me.door = "broken"
            if self.door is not None:  # where the node is gone, the lease ends it
                ending = asyncio.create_task(self.door.lease.end())
                await asyncio.wait({ending}, timeout=ENDING)
                ending.cancel()
                await asyncio.gather(ending, return_exceptions=True)


def _key(node: Node) -> str:
    return f"{node.name}\0{node.destination or ''}"


__all__ = ["Seat", "Siblings"]
