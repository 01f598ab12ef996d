"""Nodes that get the same file pass it on to one another: our line carries it once, whoever dies holds up nobody."""

from __future__ import annotations

import json
import re
import signal
from typing import TYPE_CHECKING, Any

import pytest

from tests.lab.moving import MB, Done, File, Running, fresh, make, nothing_runs, parts, rrmove
from tests.lab.processes import wait_until
from tests.lab.profiles import Profile

if TYPE_CHECKING:
    from pathlib import Path

    from tests.lab import Lab
    from tests.lab.fixtures import MakeLab

pytestmark = pytest.mark.lab

PORT = 8780
UPLINK = "160mbit"
NODES = ("left", "middle", "right", "hub")
TARGET = "/data/model.bin"
SIZE = 40 * MB
"""Long enough on that uplink (2 s) for something to happen midway."""


@pytest.fixture
def here(lab: MakeLab) -> Lab:
    """Give nodes that reach each other at one port, and another one that nobody reaches; all empty."""
    profiles = [Profile(name, rtt_ms=4, open_ports=(PORT,)) for name in NODES]
    return fresh(lab(*profiles, Profile("walled", rtt_ms=4), Profile("shut", rtt_ms=4), uplink=UPLINK))


@pytest.fixture
def source(tmp_path: Path) -> File:
    """Give a source."""
    return make(tmp_path / "model.bin", SIZE)


def tagged(here: Lab, hub: str = "hub") -> list[str | Path]:
    """Give the option that names an inventory in which one node is a hub."""
    inventory = here.directory / "nodes.toml"
    inventory.write_text(f'[nodes.{hub}]\ntags = ["hub"]\n')
    return ["--nodes", inventory]


def places(*nodes: str) -> list[str]:
    return [f"{node}:{TARGET}" for node in nodes]


def spread(here: Lab, source: File, *nodes: str, hub: str = "hub") -> Done:
    """Move the file to nodes, one of them tagged as a hub."""
    return rrmove(here, "auto", "--json", *tagged(here, hub), source.path, *places(*nodes), timeout=60)


def ends(done: Done) -> dict[str, dict[str, Any]]:
    """Give for each node how it ended."""
    lines = [json.loads(line) for line in done.out.splitlines()]
    return {line["node"]: line for line in lines if line["event"] == "finished"}


def ways(done: Done) -> dict[str, list[str]]:
    """Give for each node the transports that were tried."""
    return {name: [attempt["transport"] for attempt in end["attempts"]] for name, end in ends(done).items()}


def why(done: Done) -> list[str]:
    """Give the reasons for which nodes did not pull."""
    refusals = [refusal for end in ends(done).values() for refusal in end["refusals"]]
    return [refusal["reason"] for refusal in refusals if refusal["transport"] == "sibling"]


def givers(here: Lab, node: str) -> list[int]:
    """Give the processes on a node that listen for siblings."""
    shown = here.on(node, ["ss", "-Hltnp", f"sport = :{PORT}"]).stdout
    return [int(pid) for pid in re.findall(r"pid=(\d+)", shown)]


def test_our_line_carries_a_file_once_and_strangers_get_it_as_well(here: Lab, source: File) -> None:
    before = here.bytes_sent()
    done = spread(here, source, *NODES)
    assert done.code == 0, done.err
    assert here.bytes_sent() - before <= 1.1 * source.size + 4 * 150_000, why(done)
    assert ways(done) == {"hub": ["chunked"], "left": ["sibling"], "middle": ["sibling"], "right": ["sibling"]}
    for name in NODES:
        assert here.sha256(name, TARGET) == source.digest
        assert not parts(here, name)
    nothing_runs(here, *NODES)


@pytest.mark.campaign
def test_whoever_cannot_be_reached_costs_no_more_than_a_second(here: Lab, source: File) -> None:
    # What is allowed counts as our line: there it would pay
    done = rrmove(here, "auto", "--json", "--limit-rate", "20M", source.path, *places("walled", "shut"), timeout=60)
    assert done.code == 0, done.err
    assert all("sibling" not in tried for tried in ways(done).values())
    assert any("it does not reach" in reason for reason in why(done)), why(done)
    assert {here.sha256(name, TARGET) for name in ("walled", "shut")} == {source.digest}


@pytest.mark.campaign
def test_a_node_that_has_the_file_is_all_that_the_others_need(here: Lab, source: File) -> None:
    first = rrmove(here, "auto", "--json", source.path, f"left:{TARGET}")
    assert first.code == 0, first.err
    before = here.bytes_sent()
    done = spread(here, source, "left", "middle", "right", hub="right")
    assert done.code == 0, done.err
    assert {here.sha256(name, TARGET) for name in ("left", "middle", "right")} == {source.digest}
    assert ways(done) == {"left": [], "middle": ["sibling"], "right": ["sibling"]}
    assert here.bytes_sent() - before < source.size / 4


def test_a_hub_that_dies_midway_is_not_waited_for(here: Lab, source: File) -> None:
    with Running(here, source, places(*NODES), *tagged(here)) as move:
        move.until(0.3)
        here.stop_sshd("hub")
        try:
            assert here.sha256("hub", TARGET) is None
            rest = NODES[:3]
            wait_until(lambda: all(here.sha256(name, TARGET) == source.digest for name in rest), 40, "the others")
        finally:
            here.start_sshd("hub")
        done = move.done(90)
    # It is back, and goes on where it was
    assert done.code == 0, done.err
    assert here.sha256("hub", TARGET) == source.digest
    fed = {"chunked", "torrent"}
    assert any(fed & set(ways(done)[name]) for name in rest), "one of them had to be fed in its place"
    assert not any(parts(here, name) for name in NODES)


def test_a_giver_that_is_killed_holds_up_nobody(here: Lab, source: File) -> None:
    with Running(here, source, places(*NODES), *tagged(here)) as move:
        move.until(0.3)
        found = givers(here, "hub")
        assert found
        for pid in found:
            here.on("hub", ["kill", "-9", str(pid)])
        done = move.done(60)
    assert done.code == 0, done.err
    assert {here.sha256(name, TARGET) for name in NODES} == {source.digest}


def test_nothing_of_ours_outlives_us_and_no_token_is_seen(here: Lab, source: File) -> None:
    with Running(here, source, places(*NODES), *tagged(here)) as move:
        move.until(0.3)
        seen = [line for name in NODES for line in here.processes(name)]
        assert any("RRMOVE" in line or "python3 -I" in line for line in seen)
        move.tell(signal.SIGKILL)
    # A token has 43 characters of base64 in one piece; what is run there comes on stdin
    assert not [line for line in seen if re.search(r"[A-Za-z0-9_-]{40,}", line)], seen
    wait_until(lambda: not any(here.processes(name) for name in NODES), 5.0, "givers and pullers to end")
