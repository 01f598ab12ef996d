"""What is seen during a move: plain lines in a log, a bar on a terminal, one line at the end."""

from __future__ import annotations

import os
import pty
import subprocess
import sys
import textwrap
import threading
from typing import TYPE_CHECKING

import pytest

from rrmove.cli.notices import Notices
from rrmove.cli.progress import Plain
from rrmove.events import (
    AttemptFailed,
    AttemptStarted,
    Committed,
    ConnectionLost,
    Event,
    Planned,
    Progressed,
    Waiting,
)
from rrmove.model import Attempt, Estimate, Plan, Refusal, Step
from tests.cli.scripted import DIGEST, already_there, environment

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.cli.scripted import Said, Script

SIZE = 100_000_000


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def failed(error: str) -> AttemptFailed:
    attempt = Attempt(transport="rsync", started=1.0, seconds=12.0, bytes_sent=1, gained=1, error=error)
    return AttemptFailed("n", attempt)


def test_plain_lines_are_rare_and_plain(capsys: pytest.CaptureFixture[str]) -> None:
    clock = Clock()
    log = Plain("model\x1b[2J.pth -> n", clock=clock)
    log(AttemptStarted("n", "chunked", SIZE, SIZE))
    for step in range(1, 1001):
        clock.now = step / 20
        log(Progressed("n", SIZE * step // 1000, SIZE))
    log.close()
    said = capsys.readouterr().err
    lines = said.splitlines()
    assert len(lines) == 10  # in 50 s
    assert lines[-1].endswith("100 of 100 MB, 100 %, verifying")
    assert lines[3] == "model\\x1b[2J.pth -> n: 40.0 of 100 MB, 40 %, 2.00 MB/s, 30 s left"
    assert said.replace("\n", "").isprintable()


def test_a_log_shows_that_a_slow_move_is_alive(capsys: pytest.CaptureFixture[str]) -> None:
    clock = Clock()
    log = Plain("f -> n", clock=clock)
    log(AttemptStarted("n", "chunked", SIZE, SIZE))
    for second in range(1, 181):
        clock.now = float(second)
        log.tick()
    assert capsys.readouterr().err.splitlines() == [
        f"f -> n: 0 B of 100 MB, 0 %, stalled {stalled}" for stalled in ("1 min 00 s", "2 min 00 s", "3 min 00 s")
    ]


NOTICES: list[tuple[list[Event], list[str]]] = [
    ([AttemptStarted("n", "chunked", SIZE, SIZE)], []),
    (
        [AttemptStarted("n", "chunked", SIZE - 40_000_000, SIZE)],
        ["40.0 of 100 MB are on n already, going on"],
    ),
    (
        [ConnectionLost("n", "chunked", "reset by peer", 5.2, 6_100_000)],
        ["connection lost after 5.2 s and 6.10 MB, going on"],
    ),
    (
        [failed("n: port 8780\nis filtered"), AttemptStarted("n", "chunked", SIZE, SIZE)],
        ["rsync failed after 12 s: port 8780 is filtered", "falling back to chunked, 100 MB to go"],
    ),
    (
        [failed("reset"), Waiting("n", 1.0, "backoff"), AttemptStarted("n", "rsync", SIZE, SIZE)],
        ["rsync failed after 12 s: reset", "trying rsync again, 100 MB to go"],
    ),
    ([Waiting("n", 8.0, "sshd refuses connections")], ["waiting 8.0 s: sshd refuses connections"]),
    ([Committed("n", "/data/x")], []),
]


@pytest.mark.parametrize(("events", "lines"), NOTICES)
def test_what_the_user_should_know(events: list[Event], lines: list[str]) -> None:
    notices = Notices()
    assert [line for event in events for line in notices.lines(event, 0.0)] == lines


def test_a_link_that_always_breaks_is_told_in_sums() -> None:
    notices = Notices()
    said = [
        line
        for second in range(100)
        for line in notices.lines(ConnectionLost("n", "chunked", "reset", 4.0 + second % 4, 1), float(second))
    ]
    assert len(said) <= 10
    assert said[3] == "15 more connections lost, after 4.0 s to 7.0 s, going on"
    assert len(notices.rest()) == 1
    assert notices.rest() == []


def test_verbose_says_all() -> None:
    notices = Notices(verbose=True)
    plan = Plan(
        (Step("chunked", Estimate(52.0), "why"), Step("scp", Estimate(float("inf")), "why")), (Refusal("x", "no"),)
    )
    assert notices.lines(Planned("n", plan), 0.0) == ["plan: chunked (52 s), then scp (never)", "not x: no"]
    assert notices.lines(Committed("n", "/data/x\n"), 0.0) == ["committed: /data/x\\n"]


def test_the_result_is_one_line_on_stdout(rrmove: Callable[..., Said], script: Script) -> None:
    said = rrmove("auto", "model.pth", "gpu-3")
    assert said.out == (
        "model.pth -> gpu-3:/data/model.pth  1.00 MB verified in 2.0 s (500 kB/s), chunked, 1 connection lost\n"
    )
    assert "connection lost after 5.2 s and 6.10 MB, going on" in said.err
    (call,) = script.calls
    assert str(call["source"]) == "model.pth"


def test_verbose_adds_the_digest(rrmove: Callable[..., Said], script: Script) -> None:
    said = rrmove("auto", "model.pth", "gpu-3", "-v")
    assert script.calls
    assert said.out.endswith(f", {DIGEST}\n")
    assert "gpu-3 probed in 0.4 s" in said.err


def test_quiet_says_nothing_where_nothing_went_wrong(rrmove: Callable[..., Said], script: Script) -> None:
    said = rrmove("auto", "model.pth", "gpu-3", "-q")
    assert script.calls
    assert (said.code, said.out, said.err) == (0, "", "")


def test_an_identical_file_is_not_sent(rrmove: Callable[..., Said], script: Script) -> None:
    script.events = lambda _source, _node: []
    script.ends = already_there
    assert rrmove("auto", "model.pth", "gpu-3").out == (
        "model.pth -> gpu-3:/data/model.pth  already there, verified, nothing sent\n"
    )


def test_a_name_cannot_speak_to_the_terminal(rrmove: Callable[..., Said], script: Script, home: Path) -> None:
    name = b"a\nb\x1b[31m\xff.pth"
    (home / os.fsdecode(name)).write_bytes(b"x" * 100)
    said = rrmove("auto", os.fsdecode(name), "gpu-3", "-v")
    assert script.calls
    assert said.code == 0
    assert said.out.startswith("a\\nb\\x1b[31m\\xff.pth -> gpu-3:/data/a\\nb")
    assert said.err.replace("\n", "").isprintable()


BAR = """
import asyncio, sys
from types import ModuleType
from tests.cli.scripted import events_of, outcome_of
from rrmove.model import Source

async def move(source, node, *, on_event, **_):
    assert "rich" not in sys.modules, "rich before the first event"
    seen = Source.of(source)
    await asyncio.sleep(0.7)
    for event in events_of(seen, node):
        on_event(event)
        await asyncio.sleep(0.12)
    assert "rich" in sys.modules
    return outcome_of(seen, node)

sys.modules["rrmove.moving"] = ModuleType("rrmove.moving")
sys.modules["rrmove.moving"].move = move
from rrmove.cli import main
sys.exit(main(["auto", "model.pth", "gpu-3"]))
"""


def on_a_terminal(script: str, environ: dict[str, str]) -> tuple[int, str, str]:
    """Run a script with a terminal for stderr; gives its exit code, its stdout and what the terminal got."""
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(script)],
        stdout=subprocess.PIPE,
        stderr=theirs,
        env=environment(COLUMNS="100", **environ),
        text=True,
    )
    os.close(theirs)
    seen: list[bytes] = []

    def read() -> None:
        while True:
            try:
                data = os.read(ours, 65536)
            except OSError:  # EIO is how a terminal says that nobody has it open any more
                return
            if not data:
                return
            seen.append(data)

    reader = threading.Thread(target=read)
    reader.start()
    out, _ = process.communicate(timeout=30)
    reader.join(10)
    os.close(ours)
    return process.returncode, out, b"".join(seen).decode()


def test_a_terminal_gets_a_bar_and_rich_only_then() -> None:
    code, out, terminal = on_a_terminal(BAR, {"TERM": "xterm-256color", "NO_COLOR": ""})
    assert code == 0, terminal
    assert "connecting to gpu-3" in terminal
    assert "model.pth -> gpu-3" in terminal
    assert "500 kB of 1.00 MB" in terminal
    assert "connection lost after 5.2 s and 6.10 MB, going on" in terminal
    assert "\x1b[38;5;" in terminal
    assert out.startswith("model.pth -> gpu-3:/data/model.pth")
    assert "\x1b" not in out


def test_no_color_is_obeyed() -> None:
    code, _, terminal = on_a_terminal(BAR, {"TERM": "xterm-256color", "NO_COLOR": "1"})
    assert code == 0, terminal
    assert "500 kB of 1.00 MB" in terminal
    assert "\x1b[38" not in terminal
    assert "\x1b[36" not in terminal
