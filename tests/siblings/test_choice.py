"""Who is fed first, who pulls from whom, who is fed next: tables, and what holds whatever happens."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rrmove.model import Ports
from rrmove.siblings import choice
from rrmove.siblings.choice import Member

if TYPE_CHECKING:
    from collections.abc import Mapping

    from rrmove.probe import PortState

NOW = 100.0


def member(key: str, stage: choice.Stage = "seeking", **more: Any) -> Member:
    values: dict[str, Any] = {"name": key, "stage": stage, "since": NOW, "moved": NOW, **more}
    return Member(key=key, **values)


def among(*each: Member) -> dict[str, Member]:
    for order, one in enumerate(each):
        one.order = order
    return {one.key: one for one in each}


def fed_first(members: Mapping[str, Member], waited: float = 0.0) -> list[str]:
    since = NOW - waited
    return [
        each.key
        for each in members.values()
        if each.stage == "seeking" and choice.is_first(members, each, NOW, first_seen=since)
    ]


@pytest.mark.parametrize(
    ("members", "waited", "first"),
    [
        ([member("a", promise=1), member("b", "coming")], 0.0, ["a"]),  # a port was seen open: at once
        ([member("a", promise=3), member("b", "coming")], 0.0, []),  # perhaps there is a better one
        ([member("a", promise=3), member("b", "coming")], 0.4, ["a"]),
        ([member("a", promise=3), member("b", promise=1)], 0.0, ["b"]),
        ([member("a", promise=1), member("b", "coming", hub=True)], 0.4, []),  # a hub is on its way
        ([member("a", promise=1), member("b", hub=True, promise=0)], 0.0, ["b"]),
        ([member("a", promise=1), member("b", "gone", hub=True)], 0.0, ["a"]),
        ([member("a", promise=1), member("b", "fed")], 0.0, []),
        ([member("a", promise=1), member("b", "whole")], 0.0, []),
        ([member("a", promise=1), member("b", "checking")], 0.0, []),  # it may have it already
        ([member("a", promise=1), member("b", "fed", since=NOW - 9, moved=NOW - 6)], 0.0, ["a"]),  # it stands still
    ],
)
def test_who_is_fed_first(members: list[Member], waited: float, first: list[str]) -> None:
    assert fed_first(among(*members), waited) == first


def giver(*members: Member, room: int = choice.CROWD, **me: Any) -> str | None:
    own = member("me", **{"reached": {each.key: True for each in members}, **me})
    return choice.giver_for(among(own, *members), own, NOW, room)


def opened(key: str, stage: choice.Stage, **more: Any) -> Member:
    return member(key, stage, **{"door": "open", "serial": 1, **more})


def test_who_is_whole_comes_before_who_is_fed_and_that_before_who_pulls() -> None:
    assert giver(opened("a", "pulling"), opened("b", "fed"), opened("c", "whole")) == "c"
    assert giver(opened("a", "pulling"), opened("b", "fed")) == "b"
    assert giver(opened("a", "pulling")) == "a"


def test_who_cannot_be_a_giver() -> None:
    assert giver(opened("a", "whole"), reached={"a": False}) is None
    assert giver(opened("a", "whole"), reached={}) is None
    assert giver(opened("a", "whole"), barred={("a", 1): NOW}) is None
    assert giver(opened("a", "whole", serial=2), barred={("a", 1): NOW}) == "a"  # it was started anew
    assert giver(opened("a", "gone")) is None
    assert giver(opened("a", "fed", since=NOW - 9, moved=NOW - 6)) is None
    assert giver(member("a", "whole", door="opening")) is None
    assert giver(opened("a", "pulling", upstream="me"), stage="pulling", upstream="a") is None  # round in a circle


def test_a_full_giver_is_left_to_others_where_there_is_another_one() -> None:
    crowd = [member(f"p{number}", "pulling", upstream="a") for number in range(choice.ROOM)]
    assert giver(opened("a", "whole"), *crowd, room=choice.ROOM) is None
    assert giver(opened("a", "whole"), *crowd) == "a"  # better than our line
    assert giver(opened("a", "whole"), opened("b", "pulling", upstream="a"), *crowd) == "b"


def test_who_is_fed_where_a_giver_has_failed() -> None:
    dead = opened("dead", "fed", since=NOW - 9, moved=NOW - 6)
    one, two = member("one", "pulling", upstream="dead"), member("two", "pulling", upstream="dead", hub=True)
    members = among(dead, one, two)
    assert [each.key for each in (one, two) if choice.is_heir(members, each, NOW)] == ["two"]
    two.stage, two.upstream, two.door, two.serial = "fed", None, "open", 1
    assert not choice.is_heir(members, one, NOW)  # it has not tried that one yet
    one.reached["two"] = False
    assert choice.is_heir(members, one, NOW)
    one.reached["two"], one.barred[("two", 1)] = True, NOW - 0.5
    assert not choice.is_heir(members, one, NOW)  # it may have been killed, and is started anew
    one.barred[("two", 1)] = NOW - choice.HEAL
    assert choice.is_heir(members, one, NOW)


STATES: list[tuple[dict[int, PortState] | None, int, list[int]]] = [
    (None, 2, [8780, 6881, 0]),
    ({8780: "open"}, 1, [8780, 6881, 0]),
    ({8780: "filtered", 6881: "refused"}, 1, [6881, 8780, 0]),
    ({8780: "filtered", 6881: "filtered"}, 3, [6881, 8780, 0]),
    ({8780: "filtered"}, 2, [6881, 8780, 0]),
]


@pytest.mark.parametrize(("seen", "promise", "ports"), STATES)
def test_ports_that_were_seen_open_come_first(
    seen: dict[int, PortState] | None, promise: int, ports: list[int]
) -> None:
    assert choice.promise_of(False, Ports(), seen) == promise
    assert choice.promise_of(True, Ports(), seen) == 0
    assert choice.ports_for(Ports(), seen, data=True) == ports


def test_the_data_port_is_left_to_what_feeds_the_node_where_there_is_another_one() -> None:
    assert choice.ports_for(Ports(), {8780: "open", 6881: "refused"}, data=False) == [6881, 8780, 0]
    assert choice.ports_for(Ports(), {8780: "open", 6881: "filtered"}, data=False) == [8780, 6881, 0]


@pytest.mark.parametrize(
    ("missing", "audience", "uplink", "worth"),
    [(64 << 20, 1, 1e6, False), (64 << 20, 8, 20e6, True), (5_000_000, 8, 125e6, False), (64 << 20, 2, 20e6, True)],
)
def test_looking_for_givers_has_to_pay(missing: int, audience: int, uplink: float, *, worth: bool) -> None:
    assert choice.worth(missing, audience, uplink) is worth


STAGES: list[choice.Stage] = ["seeking", "pulling", "fed", "whole", "gone"]


@given(st.lists(st.tuples(st.sampled_from(STAGES), st.booleans(), st.integers(0, 7), st.booleans()), max_size=8))
def test_nobody_ever_pulls_in_a_circle_and_somebody_is_always_fed(
    drawn: list[tuple[choice.Stage, bool, int, bool]],
) -> None:
    members = among(*(opened(str(place), stage, hub=hub) for place, (stage, hub, _, _) in enumerate(drawn)))
    for place, (stage, _, reaches, moves) in enumerate(drawn):
        each = members[str(place)]
        each.reached = {other: bool((reaches >> (int(other) % 3)) & 1) for other in members if other != each.key}
        if not moves:
            each.since = each.moved = NOW - 60
        each.upstream = None if stage != "pulling" else each.upstream
    for each in members.values():
        if each.stage == "pulling":
            each.upstream = choice.giver_for(members, each, NOW)
    for each in members.values():
        if each.upstream is not None:
            assert not choice.depends(members, each.upstream, each.key)
    orphans = [each for each in members.values() if each.stage == "pulling" and each.upstream is None]
    others = [each for each in members.values() if each.stage in {"fed", "whole"} and each.moves(NOW)]
    if orphans and not others:
        assert sum(choice.is_heir(members, each, NOW) for each in orphans) == 1
