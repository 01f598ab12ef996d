"""How shared limits are divided: never exceeded, nobody starves, nothing lies idle while somebody wants more."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rrmove.limits.division import Claim, divide, granted

P, N, M = ("provider",), ("node", "provider"), ("node", "provider", "all")
ALL = math.inf


@pytest.mark.parametrize(
    ("limits", "claims", "expected"),
    [
        ({"provider": 10}, [], []),
        ({"provider": 10}, [Claim(P)], [10]),
        ({"provider": 10}, [Claim(P), Claim(P)], [5, 5]),
        ({"provider": 10}, [Claim(P, 3), Claim(P, 1)], [7.5, 2.5]),
        ({"provider": 10}, [Claim(P, 1, 2), Claim(P)], [2, 8]),  # who can use but 2 leaves the rest
        ({"provider": 10}, [Claim(P, 1, 2), Claim(P), Claim(P)], [2, 4, 4]),
        ({"provider": 10}, [Claim(P, 100, 2), Claim(P)], [2, 8]),
        ({"provider": 10, "node": 2}, [Claim(N), Claim(P)], [2, 8]),
        ({"provider": 10, "node": 2}, [Claim(N, 3), Claim(N, 1), Claim(P)], [1.5, 0.5, 8]),
        ({"provider": 10, "node": 4, "all": 3}, [Claim(M), Claim(P)], [3, 7]),
        # What nobody asks for is left to those that could come to use it.
        ({"provider": 10}, [Claim(P, 1, 1), Claim(P, 1, 2)], [4.5, 5.5]),
        ({"provider": 10, "node": 2}, [Claim(N, 1, 1), Claim(P, 1, 0)], [2, 8]),
        ({"provider": 10}, [Claim(P, 1, 0), Claim(P)], [0, 10]),
    ],
)
def test_division(limits: dict[str, float], claims: list[Claim], expected: list[float]) -> None:
    assert divide(limits, claims) == pytest.approx(expected)


scopes = st.sets(st.sampled_from(["node", "provider", "all", "moves"]), min_size=1).map(
    lambda some: tuple(sorted(some))
)
some_claims = st.lists(
    st.builds(
        Claim,
        scopes,
        st.integers(1, 100).map(float),
        st.one_of(st.just(ALL), st.floats(0.0, 1e9)),
        st.floats(0.0, 1e6),
    ),
    max_size=12,
)
some_limits = st.fixed_dictionaries(dict.fromkeys(["node", "provider", "all", "moves"], st.floats(1.0, 1e9)))


def used(claims: list[Claim], rates: list[float], scope: str) -> float:
    return sum(rate for claim, rate in zip(claims, rates, strict=True) if scope in claim.scopes)


@given(some_limits, some_claims)
def test_no_limit_is_exceeded_and_none_lies_idle(limits: dict[str, float], claims: list[Claim]) -> None:
    rates = divide(limits, claims)
    full = {scope for scope, limit in limits.items() if used(claims, rates, scope) >= limit * (1 - 1e-6)}
    for scope, limit in limits.items():
        assert used(claims, rates, scope) <= limit * (1 + 1e-9)
    for claim, rate in zip(claims, rates, strict=True):
        assert full & set(claim.scopes)  # each could be given more only at the cost of another
        assert rate > 0 or not claim.demand


@given(some_limits, some_claims)
def test_whoever_gets_less_than_it_wants_is_behind_nobody_at_a_full_limit(
    limits: dict[str, float], claims: list[Claim]
) -> None:
    rates = divide(limits, claims)
    for claim, rate in zip(claims, rates, strict=True):
        if rate >= claim.demand * (1 - 1e-6):
            continue
        # There is a full limit where it is level with all that have more than they asked for, by weight.
        full = [scope for scope in claim.scopes if used(claims, rates, scope) >= limits[scope] * (1 - 1e-6)]
        assert any(
            all(
                theirs / other.weight <= rate / claim.weight * (1 + 1e-6)
                for other, theirs in zip(claims, rates, strict=True)
                if scope in other.scopes
            )
            for scope in full
        )


@given(some_limits, some_claims, some_claims)
def test_what_others_were_granted_is_theirs_until_they_let_go(
    limits: dict[str, float], mine: list[Claim], others: list[Claim]
) -> None:
    wanted = divide(limits, [*mine, *others])[: len(mine)]
    given_ = granted(limits, mine, others, wanted)
    for scope, limit in limits.items():
        theirs = used(others, [other.granted for other in others], scope)
        assert used(mine, given_, scope) <= max(0.0, limit - theirs) * (1 + 1e-9)
    for got, rate in zip(given_, wanted, strict=True):
        assert got <= rate


def test_hundreds_of_moves_are_divided_within_a_tick() -> None:
    claims = [Claim((f"node {number}", "provider", "all"), 1 + number % 7, 1e4 * number) for number in range(600)]
    limits = {f"node {number}": 1e5 for number in range(600)} | {"provider": 1e7, "all": 2e7}
    rates = divide(limits, claims)
    assert used(claims, rates, "provider") == pytest.approx(1e7)
