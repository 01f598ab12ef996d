"""The link: the way to a node as it is believed to be, from priors, history and what a move has seen. Pure."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from rrmove.priors import prior_of
from rrmove.probe import RTT

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rrmove.knowledge import Knowledge, Life
    from rrmove.model import Node
    from rrmove.probe import Facts

SSH_WINDOW = 2 * 1024 * 1024  # measured: one SSH stream is bound by 2 MiB / RTT, in every client
LOGIN_SECONDS = 0.26  # measured: cold `ssh host true` on loopback, round trips not counted

# What is assumed where nothing is known
UNKNOWN_RTT = 0.04  # seconds; the middle of the links that were measured
UNKNOWN_RATE = 125e6  # bytes a second: 1 Gbit/s, the fastest of the links that were measured
# A line of which nothing is known may well be one of those 10 Gbit/s that data centres rent out: a
# transport that could use them is worth more. Chosen: as likely the one as the other.
UNKNOWN_RATES = (UNKNOWN_RATE, 10 * UNKNOWN_RATE)
PRIOR_WEIGHT = 2.0  # a prior counts as much as two attempts: the third outvotes it
_PATTERN = 3  # losses from which on one can tell an age limit from a byte limit


@dataclass(frozen=True, slots=True)
class Link:
    """The way to a node, as it is believed to be.

    `rtt` is in seconds; `rate` what the line carries in bytes a second, None if unknown;
    `life_seconds` and `life_bytes` the typical life of a connection, None if it is not cut for
    that reason; `limit_rate` what the user allows, in bytes a second; `login` the seconds an SSH
    login costs beyond its round trips. `share` is what others leave of our own line, in bytes a second;
    where nothing is known of either, `sharers` divide what a line is believed to carry.
    """

    rtt: float = UNKNOWN_RTT
    rate: float | None = None
    life_seconds: float | None = None
    life_bytes: float | None = None
    limit_rate: float | None = None
    login: float = LOGIN_SECONDS
    share: float | None = None
    sharers: int = 1


def link_of(node: Node, facts: Facts, knowledge: Knowledge, seen: Sequence[Life] = ()) -> Link:
    """Put together what is believed of the way to a node.

    The provider's prior is outvoted by this node's history as its samples grow, and both by
    `seen`, the connections that this very move has lost. The RTT is the probed one, else the
    last known, else `UNKNOWN_RTT`. `limit_rate` is the lowest of the node's.
    """
    prior = prior_of(node)
    rtt = _positive(facts.get(RTT)) or _positive(knowledge.rtt) or UNKNOWN_RTT
    survived = [(max(0.0, real), knowledge.rates.get(name)) for name, _, real in knowledge.history]
    seconds = _life(
        prior.life_seconds,
        knowledge.life_seconds,
        sum(real for real, _ in survived),
        knowledge.samples,
    )
    carried = _life(
        prior.life_bytes,
        knowledge.life_bytes,
        sum(real * (rate or 0.0) for real, rate in survived),
        knowledge.samples,
    )
    if seen:
        by_age, by_bytes = _seen_lives(seen)
        weight = len(seen) / (len(seen) + 1)
        seconds = _mixed(seconds, by_age, weight)
        carried = _mixed(carried, by_bytes, weight)
    return Link(
        rtt=rtt,
        rate=_rate(prior.rate, knowledge, rtt),
        life_seconds=seconds,
        life_bytes=carried,
        limit_rate=node.ceiling,
    )


def settled_rate(knowledge: Knowledge, transport: str, connect: float) -> float | None:
    """Give the rate that was seen once connected: short moves are mostly connecting."""
    rate = _positive(knowledge.rates.get(transport))
    spent = [real for name, _, real in knowledge.history if name == transport and real > 0]
    if rate is None or not spent:
        return rate
    typical = sum(spent) / len(spent)
    # No more than a tenfold correction: what is left of a short move is mostly noise.
    return rate * typical / max(typical - connect, typical / 10)


def _rate(prior: float | None, knowledge: Knowledge, rtt: float) -> float | None:
    """Tell what the line carries, from what any transport has reached on it."""
    connect = (1 + 12) * rtt + LOGIN_SECONDS  # measured: a login over ssh is about 12 round trips
    rates = (settled_rate(knowledge, name, connect) for name in knowledge.rates)
    best = max((rate for rate in rates if rate is not None), default=None)
    if best is None or knowledge.samples <= 0:
        return prior
    if best > SSH_WINDOW / rtt / 2:
        # As fast as one window allows: it was not the line that held it back.
        return max(best, prior or UNKNOWN_RATE)
    return best if prior is None else blend(prior, best, trust(knowledge))


def trust(knowledge: Knowledge) -> float:
    """Give the weight of what was seen, 0 to 1: the more samples, the more."""
    return knowledge.samples / (knowledge.samples + PRIOR_WEIGHT)


def blend(believed: float, observed: float, weight: float) -> float:
    """Mix two positive figures by their ratio."""
    return float(believed ** (1 - weight) * observed**weight)


def _life(prior: float | None, known: float | None, survived: float, samples: int) -> float | None:
    """Mix a prior life with what was seen, by how often connections are cut.

    Where no loss was ever seen, all that was `survived` without one lengthens the prior.
    """
    known = _positive(known)
    if known is None:
        return None if prior is None else prior + survived / PRIOR_WEIGHT
    samples = max(1, samples)
    return _mixed(prior, known, samples / (samples + PRIOR_WEIGHT))


def _mixed(believed: float | None, observed: float | None, weight: float) -> float | None:
    """Mix two lives by how often they end; None never ends."""
    often = (1 - weight) * (1 / believed if believed else 0.0)
    often += weight * (1 / observed if observed else 0.0)
    return 1 / often if often > 0 else None


def _seen_lives(seen: Sequence[Life]) -> tuple[float | None, float | None]:
    """Tell the life in seconds and in bytes; only one of them where the losses show which."""
    ages = [max(life.seconds, 0.01) for life in seen]
    loads = [max(float(life.carried), 1.0) for life in seen]
    age, load = _middle(ages), _middle(loads)
    if len(seen) >= _PATTERN:
        by_age = _scatter(ages, age)
        by_load = _scatter(loads, load)
        if by_age < by_load / 2:
            return age, None
        if by_load < by_age / 2:
            return None, load
    return age, load


def _middle(values: Sequence[float]) -> float:
    return sorted(values)[(len(values) - 1) // 2]


def _scatter(values: Sequence[float], middle: float) -> float:
    return sum(abs(value - middle) for value in values) / len(values) / middle


def _positive(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) and value > 0 else None
