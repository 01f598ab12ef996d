"""The ranking: who serves, who is refused and why, and what may never come first."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import pytest

from rrmove.errors import NoRouteError, UsageError
from rrmove.knowledge import Knowledge, Life
from rrmove.model import Node, Options, Plan, Refusal, Request, Route, Source
from rrmove.plan import make_plan, require_route
from rrmove.probe import Facts, Probe
from rrmove.transport import Capabilities, Job, Transport

MIB = 1024 * 1024
PORT: Probe[str] = Probe("port", None, lambda text: text or None)


@dataclass
class Stub:
    """A transport that never sends; `answer` is what `refuse` gives or raises."""

    name: str
    capabilities: Any
    answer: object = None
    api_version: int = 1
    needs: tuple[Probe[Any], ...] = ()
    asked: list[Request] = field(default_factory=list)

    def refuse(self, request: Request, facts: Facts) -> str | None:
        self.asked.append(request)
        if isinstance(self.answer, BaseException):
            raise self.answer
        if self.name == "http" and facts.get(PORT) == "filtered":
            return "port 8780 is filtered"
        return cast("str | None", self.answer)

    async def send(self, job: Job) -> None:
        raise NotImplementedError


KINDS = {
    "chunked": Capabilities(resume="exact", route="ssh", streams=8, ranges=True),
    "rsync": Capabilities(resume="rescan", route="ssh", setup=16),
    "scp": Capabilities(resume="none", route="ssh", setup=22),
    "http": Capabilities(resume="exact", route="direct", streams=4, ranges=True, setup=15),
}


def transports(**answers: object) -> dict[str, Transport]:
    stubs = {name: Stub(name, kind, answers.get(name)) for name, kind in KINDS.items()}
    return cast("dict[str, Transport]", stubs)


def request(node: str = "hetzner-1", size: int = 64 * MIB, **options: Any) -> Request:
    source = Source(
        path=Path("/f"),
        name="f",
        size=size,
        mode=0o644,
        mtime_ns=0,
        ctime_ns=0,
        device=0,
        inode=0,
    )
    return Request(source=source, node=Node(name=node), options=Options(**options))


def plan_for(asked: Request, facts: Facts | None = None, **answers: object) -> Plan:
    return make_plan(asked, facts or Facts(), Knowledge(), transports(**answers))


def names(plan: Plan) -> list[str]:
    return [step.transport for step in plan.steps]


# (node, size, order): rankings of the field, where the HTTP port is filtered
FIELD = [
    ("nebius-h100-3", 10 * MIB, ["chunked", "rsync", "scp"]),
    ("vast-1", 10 * MIB, ["chunked", "rsync", "scp"]),
    ("runpod-h100", 256 * MIB, ["chunked", "rsync", "scp"]),
    ("vultr-a100", 10 * MIB, ["chunked", "rsync", "scp"]),
    ("hetzner-cpu1", 10 * MIB, ["chunked", "rsync", "scp"]),
    ("hetzner-cpu1", MIB, ["chunked", "rsync", "scp"]),
    ("a-stranger", 256 * MIB, ["chunked", "rsync", "scp"]),
]


@pytest.mark.parametrize(("node", "size", "order"), FIELD)
def test_the_field_is_ranked_as_its_notes_say(node: str, size: int, order: list[str]) -> None:
    plan = plan_for(request(node, size), Facts({"port": "filtered"}))
    assert names(plan) == order
    assert plan.refusals == (Refusal("http", "port 8780 is filtered"),)


def test_an_unknown_port_is_no_refusal() -> None:
    plan = plan_for(request())
    assert "http" in names(plan)
    assert plan.refusals == ()


def state_of(port: str | None = None, reach: str | None = None) -> Facts:
    """What probes saw of the data port from here, and of the way back."""
    answers = {"ports": None if port is None else f"8780 {port}\n6881 filtered", "reach": reach}
    return Facts({name: answer for name, answer in answers.items() if answer is not None})


# (route, fallback, the data port as seen from here, the way back, what is done: None ranks it as seen open)
ROUTES = [
    ("direct", None, "open", None, None),
    ("direct", None, "refused", None, None),
    ("direct", None, "filtered", "open", "port 8780 of the node is filtered"),
    ("direct", None, "unreachable", None, "port 8780 of the node is unreachable"),
    ("direct", None, None, "open", "doubted"),
    ("reverse", None, "open", "open", None),
    ("reverse", None, "open", "filtered", "the node cannot reach us"),
    ("reverse", None, "open", None, "doubted"),
    ("direct", "reverse", "filtered", "open", None),
    ("direct", "reverse", None, "open", None),
    ("direct", "reverse", "open", "filtered", None),
    ("direct", "reverse", "filtered", None, "doubted"),
    ("direct", "reverse", "filtered", "refused", "port 8780 of the node is filtered, and the node cannot reach us"),
    ("ssh", None, "filtered", "filtered", None),
    ("swarm", None, "filtered", "filtered", "port 6881 of the node is filtered, and the node cannot reach us"),
    ("swarm", None, "filtered", "open", None),
    ("swarm", None, "filtered", None, "doubted"),
    ("swarm", None, None, "filtered", "doubted"),
    ("swarm", None, None, None, "doubted"),
]


@pytest.mark.parametrize(("route", "fallback", "port", "reach", "expected"), ROUTES)
def test_a_route_counts_where_it_was_seen_open_from_the_right_side(
    route: Route, fallback: Route | None, port: str | None, reach: str | None, expected: str | None
) -> None:
    kind = Capabilities(resume="exact", route=route, fallback=fallback, ranges=True)
    plan = make_plan(request(), state_of(port, reach), Knowledge(), {"x": cast("Transport", Stub("x", kind, None))})
    if plan.refusals:
        assert plan.refusals == (Refusal("x", expected or ""),)
    else:
        doubts = [what for what, _ in plan.steps[0].estimate.terms if "not seen open" in what]
        assert bool(doubts) == (expected == "doubted")


def test_a_refusal_names_the_addresses_that_were_tried() -> None:
    facts = Facts({"ports": "8780 filtered", "places": "8780 filtered 203.0.113.9\n8780 filtered 100.64.0.7"})
    kind = Capabilities(resume="exact", route="direct", ranges=True)
    plan = make_plan(request(), facts, Knowledge(), {"x": cast("Transport", Stub("x", kind, None))})
    assert plan.refusals == (Refusal("x", "port 8780 of the node is filtered at 203.0.113.9 and 100.64.0.7"),)


def test_a_port_that_nobody_saw_open_does_not_come_first_although_it_is_not_refused() -> None:
    big = request(size=1024 * MIB)
    kinds = transports()
    assert names(make_plan(big, state_of("refused"), Knowledge(), kinds))[0] == "http"
    assert names(make_plan(big, Facts(), Knowledge(), kinds))[-1] == "http"


def test_unknown_facts_refuse_nobody() -> None:
    assert set(names(plan_for(request(node="whatever")))) == set(KINDS)


def test_a_connection_that_alters_bytes_costs_whoever_sends_over_lanes_a_third() -> None:
    limited = request(size=100 * MIB, limit_rate=1e6)
    seconds = {}
    for clean in ("yes", "no"):
        kinds = KINDS | {"lanes": Capabilities(resume="exact", route="ssh", lanes_only=True)}
        stubs = cast("dict[str, Transport]", {name: Stub(name, kind) for name, kind in kinds.items()})
        plan = make_plan(limited, Facts({"clean": clean}), Knowledge(), stubs)
        seconds[clean] = {step.transport: step.estimate.seconds for step in plan.steps}
    assert seconds["no"]["lanes"] == pytest.approx(seconds["yes"]["lanes"] * 4 / 3, rel=0.02)
    assert seconds["no"]["rsync"] == seconds["yes"]["rsync"]


def test_what_never_finishes_is_never_first() -> None:
    plan = plan_for(request("nebius-1", 10**10))
    finite = [math.isfinite(step.estimate.seconds) for step in plan.steps]
    assert finite[0]
    assert finite == sorted(finite, reverse=True)
    assert "last resort" in plan.steps[-1].reason
    assert "starts over" in plan.steps[-1].reason


def test_livelock_is_seen_although_the_rest_is_small() -> None:
    asked = request("vast-1", 6_400_000_000)
    plan = make_plan(asked, Facts(), Knowledge(), transports(), missing=400_000_000)
    seconds = {step.transport: step.estimate.seconds for step in plan.steps}
    assert math.isinf(seconds["rsync"])
    assert math.isfinite(seconds["chunked"])


def test_where_nothing_finishes_the_floor_leads() -> None:
    asked = request(size=10**9)
    dying = [Life(0.01, 10)] * 50
    plan = make_plan(asked, Facts(), Knowledge(), transports(http="closed"), seen=dying)
    assert all(math.isinf(step.estimate.seconds) for step in plan.steps)
    assert names(plan) == ["chunked", "rsync", "scp"]


def test_ties_go_by_name() -> None:
    same = {name: Stub(name, KINDS["scp"]) for name in ("b", "a", "c")}
    plan = make_plan(request(), Facts(), Knowledge(), cast("dict[str, Transport]", same))
    assert names(plan) == ["a", "b", "c"]


def test_every_step_says_why_and_what_it_costs() -> None:
    for step in plan_for(request("nebius-1")).steps:
        assert step.reason
        assert step.estimate.terms
    floor = next(s for s in plan_for(request("nebius-1")).steps if s.transport == "chunked")
    assert "connections at once" in floor.reason
    assert "each lost connection costs" in floor.reason


def test_the_floor_is_there_whenever_it_can_serve() -> None:
    assert "chunked" in names(plan_for(request()))
    assert "chunked" not in names(plan_for(request(), chunked="no shell"))
    assert "chunked" not in names(plan_for(request(without=("chunked",))))


def test_only_and_without_leave_out_with_a_reason() -> None:
    plan = plan_for(request(only=("rsync", "scp"), without=("scp",)))
    assert names(plan) == ["rsync"]
    assert {refusal.transport for refusal in plan.refusals} == {"chunked", "http", "scp"}
    assert all("left out" in refusal.reason for refusal in plan.refusals)


def test_who_is_left_out_is_not_asked() -> None:
    stubs = transports()
    make_plan(request(only=("scp",)), Facts(), Knowledge(), stubs)
    assert cast("Stub", stubs["rsync"]).asked == []


@pytest.mark.parametrize("option", ["only", "without"])
def test_a_name_that_does_not_exist_is_a_usage_error_with_the_nearest(option: str) -> None:
    asked = request(only=("chunkd",)) if option == "only" else request(without=("chunkd",))
    with pytest.raises(UsageError, match="chunkd") as caught:
        plan_for(asked)
    assert "chunked" in str(caught.value)
    assert f"--{option}" in str(caught.value)


def test_a_name_like_no_other_gets_the_whole_list() -> None:
    with pytest.raises(UsageError, match="chunked, http, rsync, scp"):
        plan_for(request(only=("zzzz",)))


def test_a_plugin_that_could_not_be_loaded_is_a_refusal_and_a_known_name() -> None:
    problems = {"torrent": "ImportError: libtorrent"}
    plan = make_plan(request(without=("torrent",)), Facts(), Knowledge(), transports(), problems=problems)
    assert Refusal("torrent", "ImportError: libtorrent") in plan.refusals


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        ("the port is closed", "the port is closed"),
        (ValueError("oops"), "ValueError: oops"),
        (RuntimeError(), "RuntimeError"),
        (SystemExit(3), "SystemExit: 3"),
        (True, "True"),
        (["x"], "x"),
    ],
)
def test_whatever_refuse_does_ends_in_a_refusal(answer: object, words: str) -> None:
    plan = plan_for(request(), scp=answer)
    assert "scp" not in names(plan)
    assert [words in refusal.reason for refusal in plan.refusals] == [True]


@pytest.mark.parametrize("answer", [None, "", False])
def test_an_empty_answer_is_no_refusal(answer: object) -> None:
    assert "scp" in names(plan_for(request(), scp=answer))


@pytest.mark.parametrize(
    "broken",
    [
        None,
        Capabilities(resume=cast("Any", "sometimes"), route="ssh"),
        Capabilities(resume="exact", route="ssh", overhead=cast("Any", "4/3")),
        Capabilities(resume="exact", route="ssh", streams=cast("Any", "many")),
    ],
)
def test_broken_capabilities_are_a_refusal(broken: object) -> None:
    stubs = transports()
    stubs["odd"] = cast("Transport", Stub("odd", broken))
    plan = make_plan(request(), Facts(), Knowledge(), stubs)
    assert set(names(plan)) == set(KINDS)
    assert [refusal.transport for refusal in plan.refusals] == ["odd"]


def test_the_lower_of_both_limits_holds() -> None:
    asked = request(size=10**8, limit_rate=1e7)
    slow = Request(source=asked.source, node=Node(name="hetzner-1", limit_rate=1e6), options=asked.options)
    assert plan_for(asked).steps[0].estimate.seconds == pytest.approx(10, rel=0.2)
    assert plan_for(slow).steps[0].estimate.seconds == pytest.approx(100, rel=0.2)


def test_an_empty_plan_carries_its_refusals() -> None:
    plan = plan_for(request(), None, **dict.fromkeys(KINDS, "no"))
    assert plan.steps == ()
    with pytest.raises(NoRouteError) as caught:
        require_route(plan, request().node)
    assert len(caught.value.refusals) == len(KINDS)
    assert caught.value.node == "hetzner-1"


def test_a_plan_with_steps_is_given_back() -> None:
    plan = plan_for(request())
    assert require_route(plan, request().node) is plan
