"""--json: every line is an object, the last one is the outcome, whatever happens."""

from __future__ import annotations

import json
import math
import os
from typing import TYPE_CHECKING, Any

import pytest

from rrmove.cli.jsonlines import JSONLines, dumps, event_object
from rrmove.errors import Fatal, NoRouteError
from rrmove.events import AttemptFailed, ConnectionLost, Event, Planned, Progressed, Waiting
from rrmove.model import Attempt, Estimate, Node, Plan, Source, Step
from tests.cli.scripted import DIGEST, outcome_of

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.cli.scripted import Said, Script

KEYS = [
    "event",
    "ok",
    "transport",
    "source",
    "node",
    "destination",
    "size",
    "digest",
    "verified",
    "unverified",
    "bytes_sent",
    "bytes_reused",
    "seconds",
    "attempts",
    "refusals",
]


def lines(text: str) -> list[dict[str, Any]]:
    return [json.loads(line, parse_constant=pytest.fail) for line in text.splitlines()]


def test_the_last_line_is_the_outcome(rrmove: Callable[..., Said], script: Script) -> None:
    said = rrmove("auto", "model.pth", "gpu-3", "--json")
    *events, last = lines(said.out)
    assert script.calls
    assert (said.code, said.err) == (0, "")
    assert [event["event"] for event in events] == [
        "probed",
        "attempt_started",
        "progressed",
        "connection_lost",
        "progressed",
        "verified",
        "committed",
    ]
    assert list(last) == KEYS
    assert last == {
        "event": "finished",
        "ok": True,
        "transport": "chunked",
        "source": "model.pth",
        "node": "gpu-3",
        "destination": "/data/model.pth",
        "size": 1_000_000,
        "digest": DIGEST,
        "verified": [],
        "unverified": None,
        "bytes_sent": 1_000_000,
        "bytes_reused": 0,
        "seconds": 2.0,
        "attempts": [{"transport": "chunked", "seconds": 2.0, "bytes_sent": 1_000_000, "error": None}],
        "refusals": [{"transport": "http", "reason": "port 8780 is filtered"}],
    }


def test_quiet_leaves_the_outcome(rrmove: Callable[..., Said], script: Script) -> None:
    (last,) = lines(rrmove("auto", "model.pth", "gpu-3", "--json", "-q").out)
    assert script.calls
    assert last["ok"] is True


def test_a_failed_move_has_an_outcome_and_an_error(rrmove: Callable[..., Said], script: Script) -> None:
    error = Fatal("the disk is full", node="gpu-3", remedy="Free 2 GB there")

    def failed(source: Source, node: Node) -> list[Event]:
        error.outcome = outcome_of(source, node)
        return []

    script.events = failed
    script.raises = error
    said = rrmove("auto", "model.pth", "gpu-3", "--json")
    last = lines(said.out)[-1]
    assert said.code == 1
    assert list(last) == [*KEYS, "error"]
    assert (last["ok"], last["error"]) == (False, "gpu-3: the disk is full. Free 2 GB there")
    assert len(last["attempts"]) == 1
    assert said.err == "rrmove: gpu-3: the disk is full\n    Free 2 GB there\n"


@pytest.mark.parametrize(
    ("argv", "raised", "code"),
    [
        (["nothing.pth", "gpu-3"], None, 2),
        (["model.pth", "@none"], None, 2),
        (["model.pth", "gpu-3"], NoRouteError("no transport can serve"), 3),
        (["model.pth", "gpu-3"], ValueError("a bug"), 1),
        (["model.pth", "gpu-3"], ExceptionGroup("two", [Fatal("no login"), Fatal("no login")]), 1),
    ],
)
def test_what_came_to_no_outcome_still_ends_in_one(
    argv: list[str], raised: Exception | None, code: int, rrmove: Callable[..., Said], script: Script
) -> None:
    script.raises = raised
    said = rrmove("auto", *argv, "--json")
    last = lines(said.out)[-1]
    assert said.code == code
    assert list(last) == [*KEYS, "error"]
    assert last["ok"] is False
    assert last["error"]
    assert "Traceback" not in said.err + said.out


def test_names_that_are_no_utf8_survive(rrmove: Callable[..., Said], script: Script, home: Path) -> None:
    name = os.fsdecode(b"caf\xe9\n.pth")
    (home / name).write_bytes(b"x")
    said = rrmove("auto", name, "gpu-3", "--json")
    assert script.calls
    assert said.code == 0
    assert said.out.isascii()
    assert os.fsencode(lines(said.out)[-1]["source"]) == b"caf\xe9\n.pth"


def test_events_carry_all_their_fields() -> None:
    attempt = Attempt(transport="a", started=1.0, seconds=2.0, bytes_sent=3, gained=4, error="e", failure="fatal")
    assert event_object(AttemptFailed("n", attempt))["attempt"] == {
        "transport": "a",
        "started": 1.0,
        "seconds": 2.0,
        "bytes_sent": 3,
        "gained": 4,
        "error": "e",
        "failure": "fatal",
    }
    assert event_object(ConnectionLost("n", "a", "r", 1.5, 2)) == {
        "event": "connection_lost",
        "node": "n",
        "transport": "a",
        "reason": "r",
        "age": 1.5,
        "carried": 2,
    }
    assert event_object(Waiting("n", 1.0, "r"))["event"] == "waiting"


def test_what_json_does_not_know_is_null() -> None:
    plan = Plan((Step("scp", Estimate(math.inf, (("send", math.nan),)), "r"),))
    line = lines(dumps(event_object(Planned("n", plan))))[0]
    assert line["plan"]["steps"][0]["estimate"] == {"seconds": None, "terms": [["send", None]], "note": ""}


def test_progress_is_told_a_few_times_a_second(capsys: pytest.CaptureFixture[str]) -> None:
    now = 0.0
    seen = JSONLines(clock=lambda: now)
    for step in range(1, 1001):
        now = step / 1000
        seen(Progressed("n", step, 1000))
    told = lines(capsys.readouterr().out)
    assert len(told) <= 7
    assert told[-1]["durable"] == 1000
