"""Where processes agree on limits: who is gone leaves nothing behind, and a bad file stops nobody."""

from __future__ import annotations

import os
import signal
import sqlite3
import subprocess
import sys
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from rrmove.limits.claims import AGE, Claimant, Claims
from rrmove.limits.division import Claim

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

ONE = Claimant({"p": 10.0}, (Claim(("p",), 1.0, 5.0, 5.0), Claim(("p",), 2.0)))


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "state" / "limits.sqlite3"


@pytest.fixture
def pair(path: Path, clock: Clock) -> Iterator[tuple[Claims, Claims]]:
    both = Claims(path, clock), Claims(path, clock)
    yield both
    for each in both:
        each.close()


def seen(claims: Claims, mine: Claimant = ONE) -> list[Claimant]:
    """Take a turn, and give what the others say."""
    found: list[Claimant] = []

    def decide(others: list[Claimant]) -> Claimant:
        found.extend(others)
        return mine

    claims.turn(decide, lambda _: None)
    return found


def test_each_sees_what_the_others_say_and_not_itself(pair: tuple[Claims, Claims]) -> None:
    one, two = pair
    assert seen(one) == []
    assert seen(one) == []
    assert seen(two, replace(ONE, claims=())) == [ONE]
    assert seen(one) == [replace(ONE, claims=())]


def test_whoever_leaves_or_falls_silent_is_gone(pair: tuple[Claims, Claims], clock: Clock) -> None:
    one, two = pair
    seen(one)
    one.leave()
    assert seen(two) == []
    seen(one)
    clock.now += AGE * 0.9
    assert len(seen(two)) == 1
    clock.now += AGE * 0.2
    assert seen(two) == []
    assert len(seen(one)) == 1  # who comes back is there again


def test_a_process_that_was_killed_is_gone_at_once_although_nobody_has_reaped_it(path: Path, clock: Clock) -> None:
    text = (
        "import sys, time; from pathlib import Path; from rrmove.limits.claims import Claimant, Claims\n"
        "Claims(Path(sys.argv[1]), lambda: 1000.0).turn(lambda _: Claimant({'p': 7.0}, ()), lambda _: None)\n"
        "print(flush=True); time.sleep(60)"
    )
    with subprocess.Popen([sys.executable, "-c", text, path], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        claims = Claims(path, clock)
        assert seen(claims) == [Claimant({"p": 7.0}, ())]
        process.send_signal(signal.SIGKILL)
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
        assert seen(claims) == []
        claims.close()


def test_the_leases_of_another_boot_and_of_another_namespace_are_told_apart(
    pair: tuple[Claims, Claims], clock: Clock
) -> None:
    one, two = pair
    one._me.boot = "another"
    seen(one)
    assert seen(two) == []
    with sqlite3.connect(two.path) as db:  # not ours to remove, unless it is old
        assert db.execute("SELECT count(*) FROM claimants").fetchone() == (2,)
    one._me.boot, one._me.space, one._me.pid = two._me.boot, "pid:[1]", 1 << 22
    seen(one)
    assert len(seen(two)) == 1  # that number means nothing here
    clock.now += AGE
    assert seen(two) == []


@pytest.mark.parametrize("junk", [b"no database at all, but as long as one" * 40, b"SQLite"])
def test_what_is_no_database_is_replaced(path: Path, clock: Clock, junk: bytes) -> None:
    path.parent.mkdir()
    path.write_bytes(junk)
    claims, other = Claims(path, clock), Claims(path, clock)
    with pytest.raises(sqlite3.DatabaseError):
        seen(claims)
    seen(claims)
    assert len(seen(other)) == 1
    path.unlink()  # somebody clears up while we have it open
    seen(claims)
    assert len(seen(other)) == 1
    claims.close()
    other.close()


def test_a_newer_schema_is_left_alone(path: Path, clock: Clock) -> None:
    path.parent.mkdir()
    with sqlite3.connect(path) as db:
        db.execute("PRAGMA user_version = 7")
    with pytest.raises(ValueError, match="schema is 7"):
        seen(Claims(path, clock))
    with sqlite3.connect(path) as db:
        assert db.execute("PRAGMA user_version").fetchone() == (7,)


def test_a_file_that_somebody_holds_is_busy_and_no_more(pair: tuple[Claims, Claims]) -> None:
    one, two = pair
    seen(one)
    with sqlite3.connect(one.path, isolation_level=None) as db:
        db.execute("BEGIN IMMEDIATE")
        with pytest.raises(sqlite3.OperationalError, match="locked"):
            seen(one)
        db.execute("ROLLBACK")
    assert seen(two) == [ONE]


def test_what_one_gives_up_is_given_up_before_others_see_it(pair: tuple[Claims, Claims]) -> None:
    one, two = pair
    seen(one)
    told: list[int] = []

    def at_once(_: Claimant) -> None:
        with sqlite3.connect(one.path) as db:
            told.append(len(db.execute("SELECT body FROM claimants").fetchall()))

    two.turn(lambda _: ONE, at_once)
    assert told == [1]
