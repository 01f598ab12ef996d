"""Division: what each move gets of limits that several share. Pure."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence


@dataclass(frozen=True, slots=True)
class Claim:
    """What one move wants of the limits that hold for it.

    `scopes` name those limits; `demand` is in bytes a second, infinite where it takes whatever it
    gets; `weight` is its priority; `granted` what it may use now, in bytes a second.
    """

    scopes: tuple[str, ...]
    weight: float = 1.0
    demand: float = math.inf
    granted: float = 0.0


def divide(limits: Mapping[str, float], claims: Sequence[Claim]) -> list[float]:
    """Give each claim its rate, in bytes a second: weighted max-min fairness under all limits at once.

    All rates grow together, in proportion to the weights; a claim stops at its demand, or as soon
    as one of its limits is used up. What is left then, since nobody asked for it, is divided in the
    same way among those that could use more later. So no limit is ever exceeded, no demand gets
    nothing, and nothing is left while somebody wants more.
    """
    rates = _filled(limits, claims, [claim.demand for claim in claims])
    used = _sums(claims, rates)
    left = {scope: max(0.0, limit - used.get(scope, 0.0)) for scope, limit in limits.items()}
    more = _filled(left, claims, [math.inf] * len(claims))
    return [rate + spare for rate, spare in zip(rates, more, strict=True)]


def granted(
    limits: Mapping[str, float], mine: Sequence[Claim], others: Iterable[Claim], wanted: Sequence[float]
) -> list[float]:
    """Give what each of `mine` may use at once of what it should have in the end, its `wanted` rate.

    What others were granted is theirs until they have let go of it: so the limits hold at every
    moment, whoever looks first.
    """
    taken = list(others)
    theirs = _sums(taken, [claim.granted for claim in taken])
    free = {scope: max(0.0, limit - theirs.get(scope, 0.0)) for scope, limit in limits.items()}
    return _filled(free, mine, wanted)


def _filled(limits: Mapping[str, float], claims: Sequence[Claim], demands: Sequence[float]) -> list[float]:
    """Raise all rates in proportion to the weights, each up to its demand or to the first limit that is used up."""
    rates = [0.0] * len(claims)
    rising = dict.fromkeys(range(len(claims)))
    weight = dict.fromkeys(limits, 0.0)
    members: dict[str, list[int]] = {scope: [] for scope in limits}
    for number, claim in enumerate(claims):
        for scope in claim.scopes:
            weight[scope] += claim.weight
            members[scope].append(number)
    fixed = dict.fromkeys(limits, 0.0)  # what those have that rise no more
    count = {scope: len(numbers) for scope, numbers in members.items()}
    soonest = sorted(rising, key=lambda number: demands[number] / claims[number].weight, reverse=True)
    while rising:
        full, level = None, math.inf  # bytes a second for each unit of weight, at which the next limit is used up
        for scope, limit in limits.items():
            if count[scope] and (reached := max(0.0, limit - fixed[scope]) / weight[scope]) < level:
                full, level = scope, reached
        while soonest and soonest[-1] not in rising:
            soonest.pop()
        first = soonest[-1]
        if full is None or demands[first] / claims[first].weight <= level:
            stopping = [(first, demands[first])]
        else:
            stopping = [(number, claims[number].weight * level) for number in members[full] if number in rising]
        for number, rate in stopping:
            rates[number] = rate
            del rising[number]
            for scope in claims[number].scopes:
                fixed[scope] += rate
                weight[scope] -= claims[number].weight
                count[scope] -= 1
    return rates


def _sums(claims: Sequence[Claim], rates: Sequence[float]) -> dict[str, float]:
    sums: dict[str, float] = {}
    for claim, rate in zip(claims, rates, strict=True):
        for scope in claim.scopes:
            sums[scope] = sums.get(scope, 0.0) + rate
    return sums


__all__ = ["Claim", "divide", "granted"]
