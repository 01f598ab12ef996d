"""Keeping moves level: links that are shared, links that are not, and moves that come and go, in made-up time."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from rrmove.limits.level import TICK, Level

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence


@dataclass
class Move:
    """What a link lets one move send: `wish` is its weight on a shared link, or its own link's rate."""

    wish: float
    sent: int = 0
    throttle: float | None = None
    total: float = 0.0

    def send(self, rate: float) -> None:
        rate = rate if self.throttle is None else min(rate, self.throttle)
        self.total += rate * TICK
        self.sent = int(self.total)


def shared(capacity: float) -> Callable[[Sequence[Move]], None]:
    """Give each its weight's share; what slowed ones leave, the others take up."""

    def send(moves: Sequence[Move]) -> None:
        left, open_ones = capacity, list(moves)
        while open_ones:
            weights = sum(move.wish for move in open_ones)
            held = [m for m in open_ones if m.throttle is not None and m.throttle < left * m.wish / weights]
            for move in held or open_ones:
                move.send(left * move.wish / weights)
            left -= sum(move.throttle or 0.0 for move in held)
            open_ones = [move for move in open_ones if move not in held] if held else []

    return send


def alone(moves: Sequence[Move]) -> None:
    for move in moves:
        move.send(move.wish)


def run(moves: list[Move], send: Callable[[Sequence[Move]], None], seconds: float, level: Level | None = None) -> Level:
    level = level or Level()
    now = level._then or 0.0
    for _ in range(int(seconds / TICK)):
        send(moves)
        now += TICK
        level.look(moves, now)
    return level


def test_moves_that_share_a_link_come_level_and_lose_nothing() -> None:
    moves = [Move(weight) for weight in (1.0, 1.1, 1.3, 2.0)]
    run(moves, shared(20e6), 30)
    assert max(move.total for move in moves) / min(move.total for move in moves) < 1.1
    assert sum(move.total for move in moves) > 0.99 * 20e6 * 30


def test_left_alone_they_would_not() -> None:
    moves = [Move(weight) for weight in (1.0, 2.0)]
    for _ in range(60):
        shared(20e6)(moves)
    assert moves[1].total / moves[0].total > 1.9


def test_a_slow_node_costs_the_others_next_to_nothing() -> None:
    moves = [Move(20e6), Move(20e6), Move(1e6)]
    run(moves, alone, 60)
    for move in moves:
        assert move.total > 0.94 * move.wish * 60
    assert all(move.throttle is None for move in moves) or moves[2].throttle is None


def test_a_dead_one_and_one_that_is_over_count_for_nothing() -> None:
    moves = [Move(20e6), Move(0.0)]
    level = run(moves, alone, 20)
    assert moves[0].total == 20e6 * 20
    moves[0].wish = 0.0
    run(moves, alone, 5, level)
    assert all(move.throttle is None for move in moves)


def test_one_that_joins_is_not_served_for_what_it_has_missed() -> None:
    moves = [Move(1.0), Move(1.0), Move(0.0)]
    level = run(moves, shared(20e6), 20)
    before = moves[0].total
    moves[2].wish = 1.0
    run(moves, shared(20e6), 20, level)
    assert moves[0].total - before > 0.8 * 20e6 / 3 * 20
    assert moves[2].total > 0.8 * 20e6 / 3 * 20


def test_those_that_were_slowed_are_let_go_when_they_are_the_last() -> None:
    moves = [Move(2.0), Move(1.0)]
    level = run(moves, shared(20e6), 6)
    assert moves[0].throttle is not None or moves[1].throttle is not None or moves[0].total < 1.5 * moves[1].total
    moves[1].wish = 0.0
    run(moves[:1], alone, 2, level)
    assert moves[0].throttle is None
