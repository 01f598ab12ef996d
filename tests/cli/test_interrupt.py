"""Ctrl-C and SIGTERM cancel the move and say how to go on; the second one ends at once."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from typing import TYPE_CHECKING

import pytest

from tests.cli.scripted import environment

if TYPE_CHECKING:
    from collections.abc import Sequence

MOVE = """
import asyncio, sys
from types import ModuleType
from rrmove.events import AttemptStarted, Progressed

STUBBORN = {stubborn}

async def move(source, node, *, on_event, **_):
    print("started", file=sys.stderr, flush=True)
    if {begun}:
        on_event(AttemptStarted(node.name, "chunked", 1_000_000, 1_000_000))
        on_event(Progressed(node.name, 400_000, 1_000_000))
    print("ready", file=sys.stderr, flush=True)
    try:
        await asyncio.sleep(60)
    finally:
        print("cleaned up", file=sys.stderr, flush=True)
        if STUBBORN:
            await asyncio.sleep(60)

sys.modules["rrmove.moving"] = ModuleType("rrmove.moving")
sys.modules["rrmove.moving"].move = move
from rrmove.cli import main
sys.exit(main(sys.argv[1:]))
"""


def interrupted(
    signals: Sequence[int], *options: str, begun: bool = True, stubborn: bool = False
) -> tuple[int, str, str]:
    """Run a move that would take a minute, and send it signals; gives exit code, stdout and stderr."""
    process = subprocess.Popen(
        [sys.executable, "-c", MOVE.format(begun=begun, stubborn=stubborn), "auto", "model.pth", "gpu-3", *options],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=environment(),
        text=True,
    )
    assert process.stderr
    seen = ""
    for number, word in zip(signals, ("ready", "cleaned up"), strict=False):
        while word not in seen:
            line = process.stderr.readline()
            assert line, seen
            seen += line
        process.send_signal(number)
    try:
        out, err = process.communicate(timeout=20)
    finally:
        process.kill()
    return process.returncode, out, seen + err


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_the_first_signal_cancels_and_says_how_to_go_on(number: int) -> None:
    code, out, err = interrupted([number])
    assert (code, out) == (130, "")
    assert err.splitlines()[2:] == [
        "cleaned up",
        "rrmove: interrupted; about 400 kB of 1.00 MB are on gpu-3, in a part file that stays there",
        "    Run the same command again to go on from there",
    ]


def test_before_anything_was_sent_nothing_is_promised() -> None:
    code, _, err = interrupted([signal.SIGINT], begun=False)
    assert code == 130
    assert err.endswith("rrmove: interrupted before anything was sent\n")


def test_the_second_signal_ends_at_once() -> None:
    begun = time.monotonic()
    code, _, err = interrupted([signal.SIGINT, signal.SIGINT], stubborn=True)
    assert code == 130
    assert "ended at once" in err
    assert time.monotonic() - begun < 15


def test_an_interrupted_move_has_its_last_json_line() -> None:
    code, out, _ = interrupted([signal.SIGINT], "--json")
    last = json.loads(out.splitlines()[-1])
    assert code == 130
    assert (last["event"], last["ok"], last["error"], last["node"]) == ("finished", False, "interrupted", "gpu-3")


def test_a_signal_that_was_ignored_stays_ignored() -> None:
    script = """
import asyncio, os, signal
signal.signal(signal.SIGINT, signal.SIG_IGN)
from rrmove.cli.interrupt import run

async def main():
    os.kill(os.getpid(), signal.SIGINT)
    await asyncio.sleep(0.1)
    return "done"

print(run(main()))
"""
    said = subprocess.run(
        [sys.executable, "-c", script],
        env=environment(),
        capture_output=True,
        text=True,
        timeout=30,
        check=True,
    )
    assert said.stdout == "done\n"
