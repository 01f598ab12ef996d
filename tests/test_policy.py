"""After this attempt, what next: tables of cases, and a state test for what must never happen."""

from __future__ import annotations

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rrmove.model import Action, Attempt, Estimate, FailureKind, GiveUp, Plan, Step, Succeed, Try
from rrmove.policy import LONGEST_PAUSE, UNHEARD_BUDGET, WIPES, blames_integrity, next_action

NEVER = math.inf


def plan_of(*names: str) -> Plan:
    """Make a plan; a name that ends in `!` is not expected to finish."""
    return Plan(
        tuple(
            Step(name.rstrip("!"), Estimate(NEVER if name.endswith("!") else 1.0 + at), "reason")
            for at, name in enumerate(names)
        )
    )


def attempt(
    transport: str,
    failure: FailureKind | None = "transient",
    gained: int = 0,
    sent: int | None = None,
    error: str | None = "reset",
) -> Attempt:
    return Attempt(
        transport=transport,
        started=0.0,
        seconds=1.0,
        bytes_sent=max(gained, 1000) if sent is None else sent,
        gained=gained,
        error=error,
        failure=failure,
    )


def lie(transport: str, gained: int = 0) -> Attempt:
    return attempt(transport, None, gained, error=None)


def silence(transport: str) -> Attempt:
    return attempt(transport, sent=0, error="connection refused")


def decide(
    plan: Plan,
    attempts: list[Attempt],
    *,
    missing: int = 100,
    elapsed: float = 0.0,
    deadline: float | None = None,
    jitter: float = 1.0,
) -> Action:
    return next_action(plan, attempts, missing=missing, elapsed=elapsed, deadline=deadline, jitter=jitter)


def transport_of(action: Action) -> str:
    return action.step.transport if isinstance(action, Try) else type(action).__name__


lost = attempt("a")
gain = attempt("a", gained=6_000_000)
corrupt = attempt("a", "integrity", gained=50)

ABC = plan_of("a", "b", "c")
CASES = [
    pytest.param(ABC, [], "a", id="the best first"),
    pytest.param(ABC, [lost], "a", id="transient: again"),
    pytest.param(ABC, [lost] * 2, "a", id="transient twice: again"),
    pytest.param(ABC, [lost] * 3, "b", id="budget spent: next"),
    pytest.param(ABC, [lost, lost, gain, lost, lost], "a", id="progress resets the budget"),
    pytest.param(ABC, [gain] * 500, "a", id="slow is not broken"),
    pytest.param(ABC, [attempt("a", "unusable")], "b", id="unusable: next"),
    pytest.param(ABC, [attempt("a", "unusable"), attempt("b", "unusable")], "c", id="and next"),
    pytest.param(ABC, [attempt(n, "unusable") for n in "abc"], "GiveUp", id="none usable"),
    pytest.param(ABC, [attempt("a", "fatal")], "GiveUp", id="fatal"),
    pytest.param(ABC, [attempt("a", "fatal"), lost], "GiveUp", id="fatal is never forgotten"),
    pytest.param(ABC, [lie("a")], "a", id="a lie: once more"),
    pytest.param(ABC, [lie("a", gained=50)], "a", id="a lie with progress: once more"),
    pytest.param(ABC, [lie("a"), lie("a", gained=50)], "b", id="a second lie: next"),
    pytest.param(ABC, [corrupt] * 2, "a", id="bad chunks are sent again twice"),
    pytest.param(ABC, [corrupt] * 3, "b", id="then by another transport"),
    pytest.param(ABC, [corrupt] * 3 + [attempt("b", "integrity")] * 3, "GiveUp", id="not by a third"),
    pytest.param(plan_of("a"), [corrupt] * 3, "GiveUp", id="nor by none"),
    pytest.param(
        ABC,
        [gain] + [lost] * 3 + [attempt("b")] * 3 + [attempt("c")] * 3,
        "a",
        id="gained in this round: from the top",
    ),
    pytest.param(
        ABC,
        [lost] * 3 + [attempt("b")] * 3 + [attempt("c")] * 3,
        "GiveUp",
        id="a round without progress",
    ),
    pytest.param(
        ABC,
        [gain] + ([lost] * 3 + [attempt("b")] * 3 + [attempt("c")] * 3) * 2,
        "GiveUp",
        id="the second round without progress",
    ),
    pytest.param(
        ABC,
        [gain, attempt("a", "unusable")] + [attempt("b")] * 3 + [attempt("c")] * 3,
        "b",
        id="a new round forgets no unusable",
    ),
    pytest.param(plan_of("x!", "a"), [], "a", id="infinite is not first"),
    pytest.param(plan_of("a", "x!", "b"), [lost] * 3, "b", id="infinite is skipped"),
    pytest.param(plan_of("a", "x!"), [lost] * 3, "x", id="infinite when nothing else is left"),
    pytest.param(plan_of("a", "x!"), [gain] + [lost] * 3, "a", id="a new round before infinite"),
    pytest.param(plan_of("x!", "y!"), [], "x", id="nothing but infinite"),
    pytest.param(
        plan_of("a", "x!"),
        [lost] * 3 + [attempt("x", gained=9)],
        "x",
        id="an infinite one that moves goes on",
    ),
    pytest.param(plan_of("b", "c"), [lost] * 3, "b", id="a plan made anew without a"),
    pytest.param(ABC, [gain, attempt("a", gained=-6_000_000)] + [gain] * 3, "a", id="a wiped part is filled anew"),
    pytest.param(plan_of("a"), [gain, attempt("a", gained=-6_000_000)] * 9, "GiveUp", id="not for ever"),
    pytest.param(plan_of(), [], "GiveUp", id="no steps"),
]


@pytest.mark.parametrize(("plan", "attempts", "expected"), CASES)
def test_next(plan: Plan, attempts: list[Attempt], expected: str) -> None:
    assert transport_of(decide(plan, attempts)) == expected


class TestSuccess:
    def test_all_there(self) -> None:
        assert decide(ABC, [lie("a", 100)], missing=0) == Succeed()

    def test_all_there_before_the_first_attempt(self) -> None:
        assert decide(ABC, [], missing=0) == Succeed()

    def test_all_there_although_the_connection_broke_at_the_end(self) -> None:
        assert decide(ABC, [gain], missing=0, elapsed=9, deadline=5) == Succeed()

    def test_not_after_wrong_bytes(self) -> None:
        assert transport_of(decide(ABC, [corrupt], missing=0)) == "a"

    def test_not_after_a_fatal_failure(self) -> None:
        assert isinstance(decide(ABC, [attempt("a", "fatal")], missing=0), GiveUp)


class TestADeadNode:
    @pytest.mark.parametrize("names", [["a"], ["a", "b"], ["a", "b", "c", "d", "e", "f"]])
    def test_is_given_up_soon(self, names: list[str]) -> None:
        attempts: list[Attempt] = []
        waited = 0.0
        while isinstance(action := decide(plan_of(*names), attempts), Try):
            waited += action.after
            attempts.append(silence(action.step.transport))
        assert len(attempts) <= UNHEARD_BUDGET
        assert waited < 10
        assert isinstance(action, GiveUp)
        assert "connection refused" in action.reason

    def test_gives_a_second_transport_its_turn(self) -> None:
        assert transport_of(decide(ABC, [silence("a")] * 2)) == "b"

    def test_one_byte_out_ends_the_suspicion(self) -> None:
        tried = [silence("a"), silence("a"), attempt("b"), silence("b"), silence("b")]
        assert transport_of(decide(ABC, tried)) == "a"

    def test_a_node_that_was_there_is_waited_for_a_minute(self) -> None:
        attempts = [gain]
        waited = 0.0
        while isinstance(action := decide(ABC, attempts, jitter=0.5), Try):
            waited += action.after
            attempts.append(silence(action.step.transport))
        assert 45 < waited < 120
        assert len(attempts) < 12


class TestPauses:
    def test_grow_while_nothing_is_gained(self) -> None:
        pauses = []
        for count in (1, 2):
            action = decide(ABC, [lost] * count)
            assert isinstance(action, Try)
            pauses.append(action.after)
        assert pauses == [1.0, 2.0]

    @pytest.mark.parametrize("jitter", [0.0, 0.3, 1.0])
    def test_are_spread(self, jitter: float) -> None:
        action = decide(ABC, [lost], jitter=jitter)
        assert isinstance(action, Try)
        assert action.after == pytest.approx(0.5 + jitter / 2)

    @pytest.mark.parametrize("last", [gain, attempt("a", "unusable"), corrupt])
    def test_are_none_where_waiting_gains_nothing(self, last: Attempt) -> None:
        action = decide(ABC, [last])
        assert isinstance(action, Try)
        assert action.after == 0


class TestDeadline:
    def test_passed(self) -> None:
        action = decide(ABC, [gain], elapsed=61, deadline=60)
        assert isinstance(action, GiveUp)
        assert "deadline of 60 s" in action.reason

    def test_would_pass_while_waiting(self) -> None:
        assert isinstance(decide(ABC, [lost, lost], elapsed=59, deadline=60), GiveUp)

    def test_not_yet(self) -> None:
        assert isinstance(decide(ABC, [gain], elapsed=59, deadline=60), Try)


def test_giving_up_names_what_was_tried_and_the_last_errors() -> None:
    tried = [lost, lost, attempt("a", error="timed out"), attempt("b", "unusable", error="no rsync")]
    action = decide(plan_of("a", "b"), tried)
    assert isinstance(action, GiveUp)
    assert "a x3: timed out" in action.reason
    assert "b x1: no rsync" in action.reason


def test_wrong_bytes_are_told_apart() -> None:
    assert blames_integrity([lost, corrupt])
    assert not blames_integrity([corrupt, lost])
    assert not blames_integrity([])
    action = decide(ABC, [corrupt] * 3 + [attempt("b", "integrity")] * 3)
    assert isinstance(action, GiveUp)
    assert "not what was sent" in action.reason


def test_every_try_says_why() -> None:
    for case in CASES:
        action = decide(case.values[0], case.values[1])  # type: ignore[arg-type]
        if isinstance(action, Try):
            assert action.why


RESULTS = st.tuples(
    st.sampled_from(["lie", "error", "transient", "unusable", "integrity", "fatal"]),
    st.integers(-500, 500),  # bytes gained; less than none where a part was wiped
    st.booleans(),  # whether anything was sent
)
PLANS = st.lists(st.sampled_from(["a", "b", "c", "d!", "e!"]), unique=True, max_size=5)


@settings(max_examples=300, deadline=None)
@given(names=PLANS, results=st.lists(RESULTS, max_size=40), jitter=st.floats(0, 1))
def test_whatever_happens_it_ends_well(names: list[str], results: list[tuple[str, int, bool]], jitter: float) -> None:
    """Run the policy over any results, then over a node on which nothing helps any more."""
    plan = plan_of(*names)
    known = {step.transport for step in plan.steps}
    size = missing = 1000
    attempts: list[Attempt] = []
    useless, fewest, wipes = 0, size, 0
    script = iter(results)
    while isinstance(action := decide(plan, attempts, missing=missing, jitter=jitter), Try):
        name = action.step.transport
        assert name in known
        assert 0 <= action.after <= LONGEST_PAUSE
        assert not any(past.failure == "fatal" for past in attempts)
        assert not any(p.failure == "unusable" and p.transport == name for p in attempts)
        kind, wanted, sent = next(script, ("transient", 0, True))
        gained = max(min(wanted, missing), missing - size)
        missing -= gained
        failure: FailureKind | None = None if kind in {"lie", "error"} else kind  # type: ignore[assignment]
        attempts.append(
            attempt(
                name,
                failure,
                gained,
                sent=1 if sent else 0,
                error=None if kind == "lie" else "broken",
            )
        )
        useless = 0 if missing < fewest else useless + 1
        if gained < 0 and wipes < WIPES:
            fewest, wipes = missing, wipes + 1
        fewest = min(fewest, missing)
        assert useless <= 8 * len(known)
    if isinstance(action, Succeed):
        assert missing == 0
        assert not blames_integrity(attempts)
    else:
        assert isinstance(action, GiveUp)
        assert action.reason
