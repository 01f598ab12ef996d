"""What is known of a node from former moves: pure nouns, between experience and estimate."""

from __future__ import annotations

from dataclasses import dataclass, field
from types import MappingProxyType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping


@dataclass(frozen=True, slots=True)
class Life:
    """One connection that was lost: how many seconds it lived, how many bytes it carried."""

    seconds: float
    carried: int


def _nothing() -> Mapping[str, float]:
    return MappingProxyType({})


@dataclass(frozen=True, slots=True, kw_only=True)
class Knowledge:
    """What former moves to a node taught; empty where there were none.

    rates         bytes a second of the file, per transport; recent moves weigh more
    life_seconds  how long a connection to this node can be counted on to live; None where no
                  loss was ever seen
    life_bytes    how many bytes it can be counted on to carry; None likewise
    success       per transport the share (0 to 1) of attempts that did all they had to do
    rtt           seconds for a round trip, as last measured; None where it never was
    samples       how many attempts this is drawn from
    history       (transport, predicted seconds, actual seconds), newest first
    """

    rates: Mapping[str, float] = field(default_factory=_nothing)
    life_seconds: float | None = None
    life_bytes: float | None = None
    success: Mapping[str, float] = field(default_factory=_nothing)
    rtt: float | None = None
    samples: int = 0
    history: tuple[tuple[str, float, float], ...] = ()
