"""Moves that are disturbed: killed, interrupted, robbed of their part file, raced, and continued."""

from __future__ import annotations

import os
import signal
from functools import partial
from typing import TYPE_CHECKING

import pytest

from tests.lab.moving import (
    LOGIN,
    MB,
    NODES,
    Done,
    File,
    Running,
    all_at_once,
    arrive,
    auto,
    fresh,
    make,
    missing,
    nothing_runs,
    part_file,
    parts,
    put,
    wire,
)

if TYPE_CHECKING:
    from pathlib import Path

    from tests.lab import Lab
    from tests.lab.fixtures import MakeLab

pytestmark = pytest.mark.lab

TARGET = "/data/model.bin"

# A stranger's distribution that puts rsync first: what the ranking says must not matter to this test
HOOK = """
from dataclasses import replace
import rrmove

@rrmove.hookimpl
def rrmove_plan(plan):
    return replace(plan, steps=tuple(sorted(plan.steps, key=lambda step: step.transport != "rsync")))
"""


@pytest.fixture
def here(lab: MakeLab) -> Lab:
    """Give the nodes of the faults' tests, empty."""
    return fresh(lab(*NODES))


def resumed(here: Lab, node: str, source: File, *options: str) -> Done:
    """Run the move again: it sends no more than what is missing, and a little."""
    lacking = missing(source, part_file(here, node))
    assert lacking > 0.25 * source.size, "somebody went on sending after the end"
    assert lacking < 0.9 * source.size, "nothing to resume: the part file holds next to nothing"
    done, sent = wire(here, node, lambda: arrive(here, source, node, TARGET, *options))
    assert sent <= 1.05 * lacking + LOGIN, f"{lacking} bytes were missing, {sent} were sent"
    assert done.last["bytes_reused"] >= source.size - lacking
    return done


@pytest.mark.parametrize("transport", ["chunked", "rsync"])
def test_a_killed_move_is_continued_and_leaves_nothing_running(here: Lab, tmp_path: Path, transport: str) -> None:
    source = make(tmp_path / "model.bin", 40 * MB)
    with Running(here, source, f"plain:{TARGET}", "--limit-rate", "12M", "--only", transport) as move:
        said = move.until(0.6)
        move.tell(signal.SIGKILL)
        assert move.done().code == -signal.SIGKILL
    nothing_runs(here, "plain")
    assert here.sha256("plain", TARGET) is None
    # What it said was there, is there
    assert missing(source, part_file(here, "plain"), 64 * 1024) <= source.size - said + MB
    resumed(here, "plain", source)


def test_a_killed_move_to_a_node_with_nothing_but_a_shell_is_continued(here: Lab, tmp_path: Path) -> None:
    source = make(tmp_path / "model.bin", 20 * MB)
    with Running(here, source, f"other:{TARGET}", "--limit-rate", "8M") as move:
        move.until(0.5)
        move.tell(signal.SIGKILL)
        move.done()
    nothing_runs(here, "other")
    here.hide("other", "python3", "rsync", "aria2c")
    try:
        resumed(here, "other", source)
    finally:
        here.restore("other", "python3", "rsync", "aria2c")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_move_says_that_it_can_be_continued(here: Lab, tmp_path: Path, number: signal.Signals) -> None:
    source = make(tmp_path / "model.bin", 20 * MB)
    old = put(here, "plain", TARGET, "old")
    with Running(here, source, f"plain:{TARGET}", "--limit-rate", "8M") as move:
        move.until(0.4)
        move.tell(number)
        done = move.done(10)
    assert done.code == 130
    assert "interrupted" in done.err
    assert "again" in done.err
    assert done.last["event"] == "finished"
    assert done.last["ok"] is False
    nothing_runs(here, "plain")
    assert old.read_text() == "old"
    resumed(here, "plain", source)


@pytest.mark.parametrize("node", ["plain", "bare"])
def test_a_part_file_that_is_wiped_midway_is_sent_again(here: Lab, tmp_path: Path, node: str) -> None:
    source = make(tmp_path / "model.bin", 20 * MB)
    with Running(here, source, f"{node}:{TARGET}", "--limit-rate", "8M") as move:
        move.until(0.5)
        for path in parts(here, node):
            path.unlink()
        done = move.done()
    assert done.code == 0, done.err
    assert here.sha256(node, TARGET) == source.digest
    assert not parts(here, node)


def test_a_part_file_that_is_damaged_midway_is_mended(here: Lab, tmp_path: Path) -> None:
    source = make(tmp_path / "model.bin", 20 * MB)
    with Running(here, source, f"plain:{TARGET}", "--limit-rate", "8M") as move:
        move.until(0.5)
        move.tell(signal.SIGKILL)
        move.done()
    nothing_runs(here, "plain")
    part = part_file(here, "plain")
    with part.open("r+b") as file:
        file.write(b"somebody else's bytes")
    resumed(here, "plain", source)


def test_a_part_of_other_content_is_never_mixed_in(here: Lab, tmp_path: Path) -> None:
    source = make(tmp_path / "model.bin", 20 * MB)
    with Running(here, source, f"plain:{TARGET}", "--limit-rate", "8M") as move:
        move.until(0.5)
        move.tell(signal.SIGKILL)
        move.done()
    nothing_runs(here, "plain")
    source.path.write_bytes(os.urandom(20 * MB))
    done = auto(here, source, f"plain:{TARGET}")
    assert done.code == 0, done.err
    assert here.path("plain", TARGET).read_bytes() == source.path.read_bytes()


@pytest.mark.parametrize("node", ["plain", "bare"])
def test_two_senders_of_different_content_leave_one_of_them_whole(here: Lab, tmp_path: Path, node: str) -> None:
    sources = [make(tmp_path / name / "model.bin", 6 * MB) for name in ("one", "two")]
    dones = all_at_once(partial(auto, here, source, f"{node}:{TARGET}", "--limit-rate", "4M") for source in sources)
    assert here.sha256(node, TARGET) in {source.digest for source in sources}
    assert all(done.code in (0, 1) for done in dones), [done.err for done in dones]
    assert any(done.code == 0 for done in dones)
    assert len(parts(here, node)) == 0 or any(done.code for done in dones)


def test_two_senders_of_the_same_content_both_succeed(here: Lab, tmp_path: Path) -> None:
    source = make(tmp_path / "model.bin", 6 * MB)
    dones = all_at_once([lambda: auto(here, source, f"plain:{TARGET}", "--limit-rate", "4M")] * 2)
    assert [done.code for done in dones] == [0, 0], [done.err for done in dones]
    assert here.sha256("plain", TARGET) == source.digest
    assert not parts(here, "plain")


def test_another_transport_continues_in_the_same_move_where_the_first_one_failed(here: Lab, tmp_path: Path) -> None:
    source = make(tmp_path / "model.bin", 30 * MB)
    place = tmp_path / "stranger"
    (place / "rsync_first-1.dist-info").mkdir(parents=True)
    (place / "rsync_first.py").write_text(HOOK)
    (place / "rsync_first-1.dist-info/METADATA").write_text("Metadata-Version: 2.1\nName: rsync-first\nVersion: 1\n")
    (place / "rsync_first-1.dist-info/entry_points.txt").write_text("[rrmove.hooks]\nrsync_first = rsync_first\n")
    before = here.bytes_to("plain")
    options = ("--only", "rsync,chunked", "--limit-rate", "8M")
    with Running(here, source, f"plain:{TARGET}", *options, env={"PYTHONPATH": str(place)}) as move:
        move.until(0.5)
        here.hide("plain", "rsync")
        try:
            here.on("plain", ["python3", "-c", KILL_RSYNC])
            done = move.done()
        finally:
            here.restore("plain", "rsync")
    sent = here.bytes_to("plain") - before
    assert done.code == 0, done.err
    assert here.sha256("plain", TARGET) == source.digest
    assert done.last["attempts"][0]["transport"] == "rsync"
    assert done.last["transport"] == "chunked"
    # What was on its way when rsync died is lost: a pipe, two socket buffers and a chunk at the seam
    assert sent < 1.05 * source.size + 6 * MB, f"{sent} bytes for a file of {source.size}"
    nothing_runs(here, "plain")


# Run on the node, whose processes share the machine's numbers but not its network: those of other nodes are left alone
KILL_RSYNC = """
import os, signal
mine = os.stat("/proc/self/ns/net").st_ino
for pid in filter(str.isdigit, os.listdir("/proc")):
    try:
        words = open(f"/proc/{pid}/cmdline", "rb").read().split(b"\\0")
        if words[0].endswith(b"rsync") and b"--server" in words and os.stat(f"/proc/{pid}/ns/net").st_ino == mine:
            os.kill(int(pid), signal.SIGKILL)
    except OSError:
        pass
"""


def test_what_rsync_left_is_continued_by_chunks_and_the_reverse(here: Lab, tmp_path: Path) -> None:
    for first, second in (("rsync", "chunked"), ("chunked", "rsync")):
        fresh(here)
        source = make(tmp_path / f"{first}.bin", 20 * MB)
        with Running(here, source, f"plain:{TARGET}", "--limit-rate", "5M", "--only", first) as move:
            move.until(0.5)
            move.tell(signal.SIGKILL)
            move.done()
        nothing_runs(here, "plain")
        assert resumed(here, "plain", source, "--only", second).last["transport"] == second


@pytest.mark.parametrize("change", ["append", "overwrite"])
def test_a_source_that_changes_midway_is_not_committed(here: Lab, tmp_path: Path, change: str) -> None:
    source = make(tmp_path / "model.bin", 10 * MB)
    old = put(here, "plain", TARGET, "old")
    with Running(here, source, f"plain:{TARGET}", "--limit-rate", "4M") as move:
        move.until(0.4)
        with source.path.open("ab" if change == "append" else "r+b") as file:
            file.write(b"more and other bytes")
        done = move.done()
    assert done.code == 1, done.err
    assert "changed" in done.err
    assert "model.bin" in done.err
    assert done.last["ok"] is False
    assert old.read_text() == "old"
    done = auto(here, source, f"plain:{TARGET}")
    assert done.code == 0, done.err
    assert here.path("plain", TARGET).read_bytes() == source.path.read_bytes()


def test_a_source_that_vanishes_midway_is_not_committed(here: Lab, tmp_path: Path) -> None:
    source = make(tmp_path / "model.bin", 10 * MB)
    old = put(here, "plain", TARGET, "old")
    with Running(here, source, f"plain:{TARGET}", "--limit-rate", "4M") as move:
        move.until(0.4)
        source.path.unlink()
        done = move.done()
    assert done.code in (0, 1), done.err
    # Who has it open may send it to its end; what must not be is a success without the file, or the reverse
    whole = here.sha256("plain", TARGET) == source.digest
    assert whole == (done.code == 0)
    assert whole or old.read_text() == "old"
