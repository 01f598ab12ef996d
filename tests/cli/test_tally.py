"""Rates, times left and stalls come from durable bytes alone; where there is no evidence, there is no number."""

from __future__ import annotations

import pytest

from rrmove.cli.progress import outlook, sentence, share
from rrmove.cli.tally import Tally
from rrmove.cli.text import amount
from rrmove.events import AttemptStarted, ConnectionLost, Probed, Progressed, Verified, Waiting

SIZE = 100_000_000
MB = 1_000_000


def moving(rate: float, seconds: float, *, missing: int = SIZE) -> Tally:
    tally = Tally()
    tally.see(AttemptStarted("n", "chunked", missing, SIZE), 0.0)
    for step in range(1, int(seconds * 10) + 1):
        tally.see(Progressed("n", int(SIZE - missing + rate * step / 10), SIZE), step / 10)
    return tally


def test_before_there_is_evidence_there_is_no_number() -> None:
    tally = moving(10 * MB, 1.0)
    assert tally.rate(1.0) is None
    assert tally.remaining(1.0) is None


def test_a_steady_rate_is_told_with_the_time_left() -> None:
    tally = moving(10 * MB, 4.0)
    assert tally.rate(4.0) == pytest.approx(10 * MB, rel=0.05)
    assert tally.remaining(4.0) == pytest.approx(6.0, rel=0.1)
    assert sentence(tally, 4.0) == "40.0 of 100 MB, 40 %, 10.0 MB/s, 6 s left"


def test_what_was_there_before_is_no_rate() -> None:
    tally = moving(1 * MB, 4.0, missing=20 * MB)
    assert tally.durable == 84 * MB
    assert tally.rate(4.0) == pytest.approx(1 * MB, rel=0.05)


def test_a_rate_forgets_what_was_long_ago() -> None:
    tally = moving(5 * MB, 4.0)
    for step in range(1, 201):
        tally.see(Progressed("n", 20 * MB + step * MB // 10, SIZE), 4.0 + step / 10)
    assert tally.rate(24.0) == pytest.approx(1 * MB, rel=0.05)


def test_a_stall_is_told_instead_of_a_time_left() -> None:
    tally = moving(10 * MB, 4.0)
    assert tally.stalled(6.0) == 0
    assert tally.remaining(7.0) is None
    assert outlook(tally, 7.5) == "stalled 4 s"
    assert tally.rate(60.0) is None


def test_whom_a_node_waits_for_is_told_until_it_moves() -> None:
    tally = moving(10 * MB, 4.0)
    tally.see(Waiting("n", 1.0, "for hub", "hub"), 5.0)
    assert outlook(tally, 5.5) == outlook(tally, 9.0) == "waits for hub"
    tally.see(Progressed("n", 50 * MB, SIZE), 9.0)
    assert "waits" not in outlook(tally, 9.0)


def test_another_transport_begins_without_a_rate() -> None:
    tally = moving(10 * MB, 4.0)
    tally.see(AttemptStarted("n", "rsync", SIZE - 40 * MB, SIZE), 4.0)
    assert tally.rate(4.5) is None
    assert (tally.durable, tally.transport) == (40 * MB, "rsync")


def test_waiting_and_verifying_are_called_so() -> None:
    tally = moving(10 * MB, 4.0)
    tally.see(Waiting("n", 8.0, "sshd refuses"), 4.0)
    assert outlook(tally, 5.0) == "waiting 7 s"
    tally.see(Progressed("n", SIZE, SIZE), 12.0)
    assert outlook(tally, 30.0) == "verifying"
    tally.see(Verified("n", "d"), 31.0)
    assert outlook(tally, 31.0) == "done"


def test_the_states_before_anything_is_sent() -> None:
    tally = Tally()
    assert sentence(tally, 0.0) == "connecting"
    tally.see(Probed("n", {}, 0.1), 1.0)
    assert sentence(tally, 1.0) == "planning"
    tally.see(Progressed("n", 5 * MB, SIZE), 1.1)
    assert not tally.begun
    assert tally.rate(9.0) is None


def test_losses_are_counted() -> None:
    tally = moving(MB, 1.0)
    for _ in range(3):
        tally.see(ConnectionLost("n", "chunked", "reset", 5.0, 1), 2.0)
    assert tally.losses == 3


@pytest.mark.parametrize(
    ("durable", "size", "text", "part"),
    [
        (412_000_000, 955_000_000, "412 of 955 MB", "43 %"),
        (999_000, 955_000_000, "999 kB of 955 MB", "0 %"),
        (954_999_999, 955_000_000, "955 of 955 MB", "99 %"),
        (0, 0, "0 of 0 B", ""),
    ],
)
def test_amounts(durable: int, size: int, text: str, part: str) -> None:
    assert amount(durable, size) == text
    assert share(Tally(durable=durable, size=size)) == part
