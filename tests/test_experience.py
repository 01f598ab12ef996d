"""What is remembered of former moves, and what is drawn from it."""

from __future__ import annotations

import os
import sqlite3
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rrmove.experience import FACTS_AGE, HALF_LIFE, Experience, Past, default_path, learned
from rrmove.knowledge import Knowledge, Life
from rrmove.model import Attempt
from rrmove.probe import Facts

MB = 1_000_000
NOW = 1_800_000_000.0
DAY = 86400.0


def attempt(
    transport: str = "chunked",
    *,
    started: float = NOW - 60,
    seconds: float = 10.0,
    gained: int = 100 * MB,
    sent: int | None = None,
    error: str | None = None,
) -> Attempt:
    return Attempt(
        transport=transport,
        started=started,
        seconds=seconds,
        bytes_sent=gained if sent is None else sent,
        gained=gained,
        error=error,
        failure="transient" if error else None,
    )


def past(given: Attempt, *, predicted: float | None = None, rtt: float | None = None, limited: bool = False) -> Past:
    return Past(node="n", attempt=given, size=1, predicted=predicted, rtt=rtt, limited=limited)


@pytest.fixture
def experience(tmp_path: Path) -> Experience:
    return Experience(tmp_path / "state/experience.sqlite3")


def test_nothing_is_known_and_nothing_is_made_at_first(experience: Experience) -> None:
    assert experience.knowledge("n", NOW) == Knowledge()
    assert experience.history() == ()
    assert experience.known_facts("n", NOW) is None
    assert not experience.path.parent.exists()
    assert experience.problem is None


def test_what_is_recorded_is_known_by_the_next_process(experience: Experience) -> None:
    losses = [Life(5.0, 10 * MB), Life(7.0, 14 * MB)]
    experience.record("n", attempt(), size=100 * MB, predicted=8.0, rtt=0.04, lives=losses)
    experience.record("other", attempt("rsync"), size=1)
    again = Experience(experience.path)
    known = again.knowledge("n", NOW)
    assert known.rates == {"chunked": pytest.approx(10 * MB)}
    assert known.success == {"chunked": 1.0}
    assert (known.life_seconds, known.life_bytes) == (5.0, 10 * MB)
    assert (known.rtt, known.samples) == (0.04, 1)
    assert known.history == (("chunked", 8.0, 10.0),)
    assert again.problem is None


def test_the_history_is_newest_first(experience: Experience) -> None:
    failed = attempt("rsync", started=NOW - 10, error="reset")
    for node, each in (("a", attempt(started=NOW - 30)), ("b", failed), ("a", attempt(started=NOW - 20))):
        experience.record(node, each, size=7, predicted=1.5, rtt=0.1, limited=node == "b")
    whole = experience.history()
    assert [row.attempt.started for row in whole] == [NOW - 10, NOW - 20, NOW - 30]
    assert whole[0] == Past(node="b", attempt=failed, size=7, predicted=1.5, rtt=0.1, limited=True)
    assert [row.node for row in experience.history("a")] == ["a", "a"]
    assert len(experience.history(limit=1)) == 1


def test_an_old_observation_counts_half_after_a_half_life() -> None:
    old = past(attempt(started=NOW - HALF_LIFE, seconds=10, gained=100 * MB))  # 10 MB/s
    new = past(attempt(started=NOW, seconds=5, gained=100 * MB))  # 20 MB/s
    assert learned([old, new], [], NOW).rates["chunked"] == pytest.approx(150 * MB / 10)
    failed = past(attempt(started=NOW - HALF_LIFE, error="reset"))
    assert learned([failed, new], [], NOW).success["chunked"] == pytest.approx(2 / 3)


def test_small_or_limited_attempts_say_nothing_of_the_rate() -> None:
    pasts = [past(attempt(gained=1 * MB)), past(attempt("rsync"), limited=True)]
    known = learned(pasts, [], NOW)
    assert known.rates == {}
    assert set(known.success) == {"chunked", "rsync"}


def test_a_life_is_what_three_in_four_outlive() -> None:
    pasts = [past(attempt(seconds=40, sent=80 * MB))]
    lives = [(NOW, Life(seconds, int(seconds * 2 * MB))) for seconds in (8, 4, 7, 5, 6, 4.5, 7.5, 5.5)]
    known = learned(pasts, lives, NOW)
    assert known.life_seconds == 4.5
    assert known.life_bytes == 9 * MB


def test_a_rare_loss_is_an_accident_and_no_rule() -> None:
    pasts = [past(attempt(seconds=600, sent=6000 * MB)) for _ in range(6)]
    known = learned(pasts, [(NOW, Life(3.0, 30 * MB))], NOW)
    assert known.life_seconds == pytest.approx(3600, rel=0.01)
    assert known.life_bytes == pytest.approx(36_000 * MB, rel=0.01)


def test_an_old_loss_weighs_less_than_a_new_one() -> None:
    pasts = [past(attempt(seconds=60, sent=60 * MB))]
    lives = [(NOW - 8 * HALF_LIFE, Life(4.0, 4 * MB)), (NOW, Life(20.0, 20 * MB))]
    assert learned(pasts, lives, NOW).life_seconds == 20.0


def test_predictions_are_compared_only_where_the_attempt_succeeded() -> None:
    rows = [
        past(attempt(started=NOW - 3), predicted=1.0),
        past(attempt(started=NOW - 1), predicted=3.0, rtt=0.3),
        past(attempt(started=NOW - 2, error="reset"), predicted=2.0, rtt=0.2),
    ]
    known = learned(rows, [], NOW)
    assert known.history == (("chunked", 3.0, 10.0), ("chunked", 1.0, 10.0))
    assert known.rtt == 0.3


ages = st.floats(-DAY, 1000 * DAY)
attempts = st.builds(
    attempt,
    st.sampled_from(["chunked", "rsync"]),
    started=ages.map(lambda age: NOW - age),
    seconds=st.floats(0, 1e6),
    gained=st.integers(0, 10**13),
    error=st.none() | st.just("reset"),
)
losses = st.tuples(ages.map(lambda age: NOW - age), st.builds(Life, st.floats(0, 1e6), st.integers(0, 10**13)))


@given(st.lists(attempts.map(past), max_size=20), st.lists(losses, max_size=20))
def test_what_is_drawn_from_anything_is_sane(pasts: list[Past], lives: list[tuple[float, Life]]) -> None:
    known = learned(pasts, lives, NOW)
    assert all(rate > 0 for rate in known.rates.values())
    assert all(0 <= share <= 1 + 1e-9 for share in known.success.values())
    assert (known.life_seconds is None) == (not lives) == (known.life_bytes is None)
    if lives and known.life_seconds is not None:
        assert known.life_seconds >= min(life.seconds for _, life in lives)


def test_facts_come_back_until_they_are_old_or_forgotten(experience: Experience) -> None:
    facts = Facts({"python3": "/usr/bin/python3\n", "odd": "\0é"}, NOW)
    experience.remember_facts("u@h:22", Facts({"old": "1"}, NOW - 9))
    experience.remember_facts("u@h:22", facts)
    assert experience.known_facts("u@h:22", NOW + 5) == facts
    assert experience.known_facts("u@h:22", NOW + FACTS_AGE + 1) is None
    assert experience.known_facts("u@h:22", NOW + 5, max_age=1) is None
    assert experience.known_facts("u@h:22", NOW - 5) is None
    assert experience.known_facts("other", NOW) is None
    experience.forget_facts("u@h:22")
    experience.forget_facts("u@h:22")
    assert experience.known_facts("u@h:22", NOW + 5) is None


def test_only_so_much_is_kept(experience: Experience, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rrmove.experience._KEPT", 3)
    experience.record("other", attempt(), size=1)
    for second in range(5):
        experience.record("n", attempt(started=NOW + second), size=1, lives=[Life(second, 1)] * 2)
    assert [row.attempt.started - NOW for row in experience.history("n")] == [4, 3, 2]
    assert len(experience.history("other")) == 1
    with sqlite3.connect(experience.path) as db:
        assert db.execute("SELECT count(*) FROM lives").fetchone() == (3,)


@pytest.mark.parametrize("content", [b"this is no database, but long enough to be taken for one\n" * 20, b"\0" * 4096])
def test_a_broken_file_is_set_aside(experience: Experience, content: bytes) -> None:
    experience.path.parent.mkdir()
    experience.path.write_bytes(content)
    assert experience.knowledge("n", NOW) == Knowledge()
    assert "broken" in (experience.problem or "")
    experience.record("n", attempt(), size=1)
    assert experience.knowledge("n", NOW).samples == 1
    assert experience.path.with_name("experience.sqlite3.broken").read_bytes() == content


def test_a_file_that_rots_while_it_is_used_is_set_aside(experience: Experience) -> None:
    for _ in range(50):
        experience.record("n", attempt(error="x" * 500), size=1)
    with sqlite3.connect(experience.path) as db:
        db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    with experience.path.open("r+b") as file:
        file.seek(4096)
        file.write(os.urandom(experience.path.stat().st_size - 4096))
    experience.record("n", attempt(), size=1)
    assert experience.problem
    assert experience.knowledge("n", NOW).samples == 1


def test_what_cannot_be_used_is_ignored_with_a_reason(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for path in (tmp_path / "file/x.sqlite3", tmp_path, Path("/dev/null/x"), Path("/proc/x/y.sqlite3")):
        experience = Experience(path)
        experience.record("n", attempt(), size=1)
        experience.remember_facts("n", Facts({"a": "b"}, NOW))
        assert experience.knowledge("n", NOW) == Knowledge()
        assert experience.problem
        assert str(path) in experience.problem


def test_the_file_of_a_newer_rrmove_is_left_alone(experience: Experience) -> None:
    experience.path.parent.mkdir()
    with sqlite3.connect(experience.path) as db:
        db.execute("PRAGMA user_version = 99")
    experience.record("n", attempt(), size=1)
    assert experience.knowledge("n", NOW) == Knowledge()
    assert "99" in (experience.problem or "")
    with sqlite3.connect(experience.path) as db:
        assert db.execute("PRAGMA user_version").fetchone() == (99,)


def test_a_file_that_someone_else_holds_stops_nothing(experience: Experience, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rrmove.experience._PATIENCE", 0.05)
    experience.record("n", attempt(), size=1)
    holder = sqlite3.connect(experience.path, isolation_level=None)
    holder.execute("BEGIN IMMEDIATE")
    experience.record("n", attempt(), size=1)
    assert "locked" in (experience.problem or "")
    assert experience.knowledge("n", NOW).samples == 1  # who reads does not wait for who writes
    holder.close()


WRITER = """
import sys, time
from pathlib import Path
from rrmove.experience import Experience
from rrmove.knowledge import Life
from rrmove.model import Attempt
experience = Experience(Path(sys.argv[1]))
while time.time() < float(sys.argv[2]): pass
for number in range(50):
    attempt = Attempt(transport=sys.argv[3], started=number, seconds=1.0, bytes_sent=1, gained=1)
    experience.record("n", attempt, size=1, lives=[Life(1.0, 1)])
sys.exit(experience.problem)
"""


@pytest.mark.parametrize("beginning", [None, b"broken " * 100])
def test_processes_that_write_at_once(experience: Experience, beginning: bytes | None) -> None:
    import time

    if beginning:
        experience.path.parent.mkdir()
        experience.path.write_bytes(beginning)
    start = str(time.time() + 0.7)
    writers = [
        subprocess.Popen(
            [sys.executable, "-c", WRITER, str(experience.path), start, name], stderr=subprocess.PIPE, text=True
        )
        for name in ("a", "b", "c")
    ]
    said = [writer.communicate(timeout=60)[1] for writer in writers]
    if beginning:
        assert all("is not used" not in text for text in said), said
    else:
        assert said == ["", "", ""]
    assert len(experience.history(limit=1000)) == 150


def test_threads_share_one(experience: Experience) -> None:
    def write() -> None:
        for _ in range(20):
            experience.record("n", attempt(), size=1)

    threads = [threading.Thread(target=write) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert experience.problem is None
    assert experience.knowledge("n", NOW).samples == 80


def test_where_it_is_kept() -> None:
    assert default_path({"XDG_STATE_HOME": "/s", "HOME": "/h"}) == Path("/s/rrmove/experience.sqlite3")
    assert default_path({"HOME": "/h"}) == Path("/h/.local/state/rrmove/experience.sqlite3")
