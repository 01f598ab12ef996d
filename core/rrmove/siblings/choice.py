"""Choices among siblings: who is fed first, who pulls from whom, who is fed next where one fails. Pure.

The rules:

1. Hubs are fed first; without any, the first whose ports were seen to let somebody in; else whoever is there.
2. Everyone else pulls: from a giver that it was seen to reach, that is whole or moves, and that has room.
3. Nobody waits for a node that does not move: where no giver is left, one of those who wait is fed (hubs first).
4. Nobody pulls from a node that pulls, however indirectly, from it.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from rrmove.model import Ports
    from rrmove.probe import PortState

# Chosen: a giver's line is shared by all of its pullers; they pull as the file comes in, so a chain costs no more than
# a chunk's time for each of its links, and 4 * 4 * 4 nodes are within three.
ROOM = 4  # pullers of a giver, where there is another one
CROWD = 16  # where there is none: as many as moves are at work; a data centre's line is many times an uplink
# Connections are cut every four to eight seconds in the field, and are back within two: who has not moved for longer
# than this is not between two connections.
STALL = 5.0  # s
SEEKING = 1.0  # s that a node looks for a giver before it is fed like any other
TRYING = 0.5  # s that a node tries to connect; a SYN that was lost is sent again after 1 s, round trips are 0.3 at most
SURE = 0.1  # s of it that a busy node may take; the rest is for the way, which is seldom longer than the one by us
OPENING = 3.0  # s for a door that is being opened: a busy node takes as long to start a Python
BETTER = 0.3  # s that everyone waits for a node with a port that was seen open, where there may be one
HEAL = 1.5  # s for a giver that was killed to be started anew, while its node goes on
HEIR = 2.5  # s for the next one to be fed to open its door, and for the others to try it
# s that the uplink needs for all of it, below which nobody looks for givers: where there are none, it takes a second
WORTH = 1.2

Stage = Literal["coming", "checking", "seeking", "pulling", "fed", "whole", "gone"]


@dataclass(slots=True)
class Member:
    """One node of those that get the file, and what is known of it; times are the loop's.

    `promise` says how likely others reach it, 0 is best. `door` is that of its giver, `serial` tells one from
    the next. `reached` has for each giver that this node has tried whether it got there, `barred` the doors that let it
    down. `upstream` is whom it pulls from; `due` when it will have all of it, as far as that is known.
    """

    key: str
    name: str
    order: int = 0
    hub: bool = False
    stage: Stage = "coming"
    promise: int = 2
    size: int = 0
    durable: int = 0
    since: float = 0.0  # the stage
    moved: float = 0.0
    door: Literal["shut", "opening", "open", "broken"] = "shut"
    serial: int = 0
    reached: dict[str, bool] = field(default_factory=dict)
    barred: dict[tuple[str, int], float] = field(default_factory=dict)  # since when
    upstream: str | None = None
    due: float | None = None

    def moves(self, now: float) -> bool:
        """Tell whether something can be had from it, or will be."""
        if self.stage == "whole":
            return True
        return self.stage in {"pulling", "fed"} and now - max(self.moved, self.since) < STALL

    @property
    def rank(self) -> tuple[bool, int, int]:
        """How early it should be fed; the least is first."""
        return not self.hub, self.promise, self.order


def promise_of(hub: bool, ports: Ports, seen: Mapping[int, PortState] | None) -> int:  # noqa: FBT001
    """Say how likely siblings reach a node: 0 for a hub, 1 where a port was seen to let us in, 2 unknown, 3 shut."""
    if hub:
        return 0
    states = [(seen or {}).get(port) for port in (ports.data, ports.torrent)]
    if any(state in {"open", "refused"} for state in states):
        return 1
    return 3 if all(state in {"filtered", "unreachable"} for state in states) else 2


def ports_for(ports: Ports, seen: Mapping[int, PortState] | None, *, data: bool) -> list[int]:
    """Order the ports that a giver tries to listen on: those seen to be let in first, and any other last.

    `data` is false where the node's data port is wanted by what feeds it: then the other one comes first, if it was
    seen to be let in as well. Else a giver that is reached is worth more than the quicker way to the one that is fed.
    """
    wanted = [port for port in (ports.data, ports.torrent) if port]
    if not data and (seen or {}).get(ports.torrent) in {"open", "refused"}:
        wanted.reverse()
    shut = {port for port in wanted if (seen or {}).get(port) in {"filtered", "unreachable"}}
    return [*(port for port in wanted if port not in shut), *sorted(shut), 0]


def trying(one: float | None, other: float | None) -> float:
    """Say how many seconds a node tries to reach another one, of whom the round trips from here are given."""
    if one is None or other is None:
        return TRYING
    return min(TRYING, SURE + 1.5 * (one + other))


def worth(missing: int, audience: int, uplink: float) -> bool:
    """Tell whether looking for givers pays: the uplink needs that long for all."""
    return audience > 1 and missing * audience / uplink > WORTH


def pullers(members: Iterable[Member], giver: str) -> int:
    """Count those who pull from a node."""
    return sum(member.upstream == giver and member.stage == "pulling" for member in members)


def depends(members: Mapping[str, Member], one: str, other: str) -> bool:
    """Tell whether a node pulls, however indirectly, from another."""
    seen: set[str] = set()
    at: str | None = one
    while at is not None and at not in seen:
        if at == other:
            return True
        seen.add(at)
        member = members.get(at)
        at = member.upstream if member is not None and member.stage == "pulling" else None
    return False


def giver_for(members: Mapping[str, Member], me: Member, now: float, room: int = CROWD) -> str | None:
    """Choose whom a node pulls from, of those that it was seen to reach; the one that it has, where that will do."""
    able = [
        each
        for each in members.values()
        if each.door == "open"
        and each.moves(now)
        and me.reached.get(each.key)
        and (each.key, each.serial) not in me.barred
        and not depends(members, each.key, me.key)
        and (me.upstream == each.key or pullers(members.values(), each.key) < room)
    ]
    stages: Sequence[Stage] = ("whole", "fed", "pulling")
    able.sort(
        key=lambda each: (
            me.upstream != each.key,
            pullers(members.values(), each.key) >= ROOM,
            stages.index(each.stage),
            pullers(members.values(), each.key),
            *each.rank,
        )
    )
    return able[0].key if able else None


def untried(members: Mapping[str, Member], me: Member, now: float) -> list[str]:
    """Give the open doors that a node has not tried yet and that would be worth it."""
    return [
        each.key
        for each in members.values()
        if each.key != me.key and each.door == "open" and each.key not in me.reached and each.moves(now)
    ]


def next_door(members: Mapping[str, Member], me: Member, now: float) -> str | None:
    """Choose whose door should be opened for a node that no open one will do for; None where one is being opened."""
    others = [each for each in members.values() if each.key != me.key]
    if any(each.door == "opening" for each in others):
        return None
    able = [
        each
        for each in others
        if each.door == "shut"
        and each.stage in {"fed", "pulling"}
        and each.moves(now)
        and not depends(members, each.key, me.key)
    ]
    return min(able, key=lambda each: each.rank).key if able else None


def patience(members: Mapping[str, Member], me: Member, now: float) -> float:
    """Say how long a node looks for a giver: longer where a door that it may go through is just being opened."""
    opening = any(each.door == "opening" and each.moves(now) for each in members.values() if each.key != me.key)
    if opening and not me.reached:
        return OPENING
    return SEEKING - (TRYING if me.reached else 0.0)  # one more try has to end within it


def is_first(members: Mapping[str, Member], me: Member, now: float, *, first_seen: float) -> bool:
    """Tell whether a node that seeks should be fed now: nobody has anything, and it is the best of those there are.

    `first_seen` is when the first of them was ready. Hubs that are still on their way are waited for, so are those that
    look whether the file that they have is this one, and, for a moment, a node with a port that was seen open.
    """
    if any(each.key != me.key and each.moves(now) for each in members.values()):
        return False
    coming = [each for each in members.values() if each.stage == "coming"]
    if not me.hub and any(each.hub for each in coming):
        return False
    if any(each.stage == "checking" for each in members.values()):
        return False
    if me.promise > 1 and coming and now - first_seen < BETTER:
        return False
    seeking = [each for each in members.values() if each.stage == "seeking"]
    return min(seeking, key=lambda each: each.rank).key == me.key


def is_heir(members: Mapping[str, Member], me: Member, now: float) -> bool:
    """Tell whether a node that pulled, and has no giver any more, is the one to be fed now; the others wait for it.

    Not while another one is fed and moves that it has not tried in vain.
    """
    for each in members.values():
        if each.key != me.key and each.stage in {"fed", "whole"} and each.moves(now) and each.door != "broken":
            since = me.barred.get((each.key, each.serial), now)
            if each.key not in me.reached or (me.reached[each.key] and now - since < HEAL):
                return False
    orphans = [
        each
        for each in members.values()
        if each.stage == "pulling" and (each.key == me.key or giver_for(members, each, now) is None)
    ]
    return min(orphans, key=lambda each: each.rank).key == me.key
