"""Limits that moves share, within a process and across processes: ratios, and what each can count on."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sqlite3
import subprocess
import sys
import time
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

import pytest

import rrmove
from rrmove.limits import shares as limits_module
from rrmove.limits.bucket import TokenBucket
from rrmove.limits.claims import AGE
from rrmove.limits.shares import shared
from rrmove.model import Limit, Node, SSHSettings
from rrmove.testing import EmbeddedNode
from tests.web import Page, Web

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

P = Limit("provider p", 10e6)

# Takes what it gets of the limits that it is told, and says in each line what it has got since the last one.
TAKER = """
import asyncio, json, sys, time
from rrmove.limits.shares import shared
from rrmove.model import Limit
from rrmove.limits.bucket import TokenBucket

async def main():
    given = json.loads(sys.argv[1])
    limits = [Limit(*each) for each in given["limits"]]
    bucket = TokenBucket(min(each.rate for each in limits))
    async with shared(bucket, limits, given["weight"], lambda why: print("alone:", why, file=sys.stderr, flush=True)):
        until, most = time.monotonic() + given["seconds"], 0.0
        taken, then = 0, time.monotonic()
        while time.monotonic() < until:
            await bucket.take(4096)
            taken += 4096
            if given["slow"]:
                await asyncio.sleep(4096 / given["slow"])
            if time.monotonic() - then > 0.25:
                print(taken / (time.monotonic() - then), time.monotonic(), flush=True)
                taken, then = 0, time.monotonic()

asyncio.run(main())
"""


@pytest.fixture(autouse=True)
def own_state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    return tmp_path / "state/rrmove/limits.sqlite3"


def taker(*limits: Limit, weight: float = 10, slow: float = 0, seconds: float = 20) -> subprocess.Popen[str]:
    given = {"limits": [(each.scope, each.rate) for each in limits], "weight": weight, "slow": slow, "seconds": seconds}
    argv = [sys.executable, "-c", TAKER, json.dumps(given)]
    return subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def last(process: subprocess.Popen[str]) -> float:
    """Read one more line of a taker."""
    assert process.stdout is not None
    line = process.stdout.readline()
    assert line, process.stderr and process.stderr.read()
    return float(line.split()[0])


def until(holds: Callable[[], bool], seconds: float = 20.0) -> None:
    """Wait until something holds; fails where it does not, on however slow a machine."""
    end = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < end, "it never came to that"


def near(got: float, expected: float) -> bool:
    return abs(got / expected - 1) < 0.25  # the machine has other work; the benchmark has the figures


def test_processes_share_by_weight_and_what_one_leaves_the_other_takes() -> None:
    with ExitStack() as stack:
        heavy, light = (stack.enter_context(taker(P, weight=weight)) for weight in (30, 10))
        stack.callback(heavy.kill)
        stack.callback(light.kill)
        until(lambda: near(last(heavy), 7.5e6) and near(last(light), 2.5e6))
        slow = stack.enter_context(taker(P, Limit("node n", 2e6)))
        stack.callback(slow.kill)
        until(lambda: near(last(slow), 2e6) and near(last(light), 2e6) and near(last(heavy), 6e6))
        heavy.send_signal(signal.SIGKILL)
        slow.send_signal(signal.SIGKILL)
        killed = time.monotonic()
        until(lambda: near(last(light), 10e6))
        assert time.monotonic() - killed < 2 * AGE  # it did not take the age of their leases


def test_who_is_slow_by_itself_leaves_the_rest_to_others() -> None:
    with taker(P, slow=1e6) as slow, taker(P) as quick:
        until(lambda: last(slow) < 1.5e6 and last(quick) > 8e6)
        slow.kill()
        quick.kill()


def test_twenty_processes_that_begin_at_once_stay_within_the_limit(own_state: Path) -> None:
    processes = [taker(Limit("provider p", 2e6), seconds=1.5) for _ in range(20)]
    got: list[tuple[float, float]] = []
    for process in processes:
        said, troubles = process.communicate(timeout=60)
        assert troubles == ""
        got += [(float(rate), float(at)) for rate, at in (line.split() for line in said.splitlines())]
    begun, ended = min(at for _, at in got), max(at for _, at in got)
    # Each line stands for a quarter of a second at least; what was taken while the first one began comes on top.
    assert sum(rate * 0.25 for rate, _ in got) <= 2e6 * (ended - begun + 1.0) * 1.05
    with sqlite3.connect(own_state) as db:
        assert db.execute("PRAGMA integrity_check").fetchone() == ("ok",)


async def test_moves_of_one_process_share_whatever_loops_they_run_in() -> None:
    got: dict[str, float] = {}
    began = time.monotonic()

    async def one(name: str, *limits: Limit) -> None:
        bucket = TokenBucket(min(each.rate for each in limits))
        async with shared(bucket, limits, 10, lambda _: None):
            while len(got) < 3:  # until all have been there together
                await asyncio.sleep(0.1)
                bucket.waited += 0.1  # it could use more
                if len(limits_module._here._movers) == 3 and time.monotonic() > began + 1.5:
                    got[name] = bucket.rate or 0.0

    other = asyncio.to_thread(lambda: asyncio.run(one("other", P)))
    await asyncio.gather(one("one", P), one("two", P, Limit("node n", 1e6)), other)
    assert got == pytest.approx({"one": 4.5e6, "other": 4.5e6, "two": 1e6})


async def test_nothing_passes_before_a_share_is_granted_and_the_share_is_given_back() -> None:
    first, second = TokenBucket(P.rate), TokenBucket(P.rate)
    async with shared(first, [P], 10, lambda _: None):
        assert first.rate == P.rate
        async with shared(second, [P], 10, lambda _: None):
            assert first.rate == second.rate == P.rate / 2
            assert second.ceiling == P.rate
        for _ in range(100):
            await asyncio.sleep(0.05)
            if first.rate == P.rate:
                break
        assert first.rate == P.rate


async def test_a_file_that_cannot_be_used_is_told_once_and_each_keeps_the_limit_alone(
    own_state: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own_state.parent.parent.mkdir()
    own_state.parent.write_text("a file where a directory should be")
    told: list[str] = []
    one, two = TokenBucket(P.rate), TokenBucket(P.rate)
    monkeypatch.setattr(limits_module, "_here", limits_module.Limits())
    async with shared(one, [P], 30, told.append), shared(two, [P], 10, told.append):
        await asyncio.to_thread(until, lambda: (one.rate, two.rate) == (7.5e6, 2.5e6) and bool(told))
        await asyncio.sleep(0.6)
        assert (one.rate, two.rate) == (7.5e6, 2.5e6)
    assert len(told) == 1
    assert str(own_state) in told[0]


async def test_a_file_that_others_hold_is_waited_for_and_then_done_without(
    own_state: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits_module, "AGE", 0.6)
    told: list[str] = []
    bucket = TokenBucket(P.rate)
    limits_module._here._said = ""
    async with shared(bucket, [P], 10, told.append):
        assert bucket.rate == P.rate
    with sqlite3.connect(own_state, isolation_level=None) as db:
        db.execute("BEGIN IMMEDIATE")
        async with shared(bucket, [P], 10, told.append):
            assert not bucket.rate  # perhaps it is only somebody's turn
            end = time.monotonic() + 4 * AGE
            while bucket.rate != P.rate and time.monotonic() < end:
                await asyncio.sleep(0.1)
            assert bucket.rate == P.rate
        db.execute("ROLLBACK")
    assert ["locked" in each for each in told] == [True]


def test_without_a_limit_nothing_is_opened_nor_loaded(own_state: Path) -> None:
    text = (
        "import asyncio, sys; from rrmove.common import Common; from rrmove.model import *\n"
        "async def main():\n"
        "    common = Common(Source.of(sys.executable), Options())\n"
        "    async with common.at_work(Node(name='n'), 'ssh', print): pass\n"
        "asyncio.run(main())\n"
        "late = {'sqlite3', 'rrmove.limits.shares', 'rrmove.limits.claims', 'rrmove.limits.division'}\n"
        "print(sorted(late & sys.modules.keys()))"
    )
    said = subprocess.run([sys.executable, "-c", text], check=True, capture_output=True, text=True).stdout
    assert said.strip() == "[]"
    assert not own_state.exists()


def test_a_child_that_was_forked_has_no_moves_of_its_parent() -> None:
    text = (
        "import asyncio, os; from rrmove.limits import shares as limits\n"
        "from rrmove.model import Limit; from rrmove.limits.bucket import TokenBucket\n"
        "async def main():\n"
        "    async with limits.shared(TokenBucket(1.0), [Limit('p', 1.0)], 1, print):\n"
        "        pid = os.fork()\n"
        "        if not pid: os._exit(len(limits._here._movers))\n"
        "        print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), len(limits._here._movers))\n"
        "asyncio.run(main())"
    )
    said = subprocess.run([sys.executable, "-c", text], check=True, capture_output=True, text=True).stdout
    assert said.split() == ["0", "1"]


# Moves


def placed(node: EmbeddedNode, *limits: Limit, **more: Any) -> Node:
    return Node(name=node.name, ssh=SSHSettings(config=node.ssh_config), limits=limits, **more)


@pytest.mark.parametrize(
    "transport", ["rsync", "fetch", *(pytest.param(name, marks=pytest.mark.campaign) for name in ("scp", "aria2"))]
)
async def test_a_program_that_began_alone_gives_way_and_takes_back(tmp_path: Path, transport: str) -> None:
    data, limit, there, last = os.urandom(14_000_000), Limit("provider p", 8e6), [0], [0.0]
    source = tmp_path / "model.pth"
    source.write_bytes(data)

    def watch(event: rrmove.Event) -> None:
        if isinstance(event, rrmove.Progressed):
            there[0], last[0] = event.durable, time.monotonic()

    async def rate(seconds: float) -> float:
        before, then = there[0], time.monotonic()
        await asyncio.sleep(seconds)
        return (there[0] - before) / (time.monotonic() - then)

    with EmbeddedNode(name="box") as node, Web() as web:
        web.pages["/model.pth"] = Page(data=data)
        what = web.url("/model.pth") if transport in {"fetch", "aria2"} else source
        move = asyncio.create_task(rrmove.move(what, placed(node, limit), only=(transport,), on_event=watch))
        while there[0] < 1_000_000:
            await asyncio.sleep(0.02)
            assert not move.done()
        other = TokenBucket(limit.rate)
        async with shared(other, [limit], 30, lambda _: None):
            hungry = asyncio.create_task(_hunger(other))
            await asyncio.sleep(0.8)
            slow = await rate(1.2)
            hungry.cancel()
        assert not move.done()  # it was measured at work
        left, then = len(data) - there[0], time.monotonic()
        outcome = await move
        back = left / (last[0] - then)
        assert outcome.ok
        assert (node.home / "model.pth").read_bytes() == data
    assert slow < 6e6  # a quarter of the 8 MB/s that it was told at its start, and some unrest
    # What the node fetches comes in chunks, too few of them to tell.
    assert back > slow > 0 or what != source


async def _hunger(bucket: TokenBucket) -> None:
    """Look like a move that could use whatever it gets."""
    while True:
        await asyncio.sleep(0.02)
        bucket.waited += 0.02


async def test_a_move_says_that_its_limits_hold_for_this_process_alone(own_state: Path, tmp_path: Path) -> None:
    own_state.mkdir(parents=True)  # no file can be made there
    limits_module._here._said = ""
    source, told = tmp_path / "model.pth", list[rrmove.Event]()
    source.write_bytes(b"x" * 100_000)
    with EmbeddedNode(name="box") as node:
        outcome = await rrmove.move(source, placed(node, limit_rate=50e6), on_event=told.append)
        assert (node.home / "model.pth").read_bytes() == source.read_bytes()
    assert outcome.ok
    (event,) = [event for event in told if isinstance(event, rrmove.Unshared)]
    assert "limits.sqlite3" in event.reason


async def test_a_priority_is_from_1_to_100() -> None:
    with pytest.raises(rrmove.UsageError, match="none of 1 to 100"):
        await rrmove.move("/etc/hostname", "nobody", priority=0)
