"""Ports besides SSH's: used where they are open, let alone where not, and no second lost over one that closed."""

from __future__ import annotations

import json
import os
import subprocess
from typing import TYPE_CHECKING, Any

import pytest

from tests.lab import Profile
from tests.lab.moving import MB, Done, File, arrive, auto, fresh, make, nothing_runs, rrmove

if TYPE_CHECKING:
    from pathlib import Path

    from tests.lab import Lab
    from tests.lab.fixtures import MakeLab

pytestmark = pytest.mark.lab

PORT = 8780
TARGET = "/data/model.bin"
NO_CALLERS = """
table inet callers {
  chain input { type filter hook input priority 0; policy accept; ct state new tcp flags syn drop; }
}
"""
"""Rules for the client: nobody may open connections to it."""
NODES = (
    Profile("hetzner", rtt_ms=20, open_ports=(PORT, 6881), without=("aria2c",)),  # on a line without a rate
    Profile("walled", rtt_ms=20),  # all ports filtered; but it may call us
    Profile("shut", rtt_ms=20, routes_back=False),
    Profile("rejects", rtt_ms=20, closed="reject", routes_back=False),  # its firewall says what a host would say
)
ALTERED = (
    Profile("alters", rtt_ms=5, open_ports=(PORT,), routes_back=False, flips=(PORT, 5 * MB)),
    Profile("garbles", rtt_ms=5, open_ports=(PORT,), routes_back=False, flips=(PORT, 128 << 10)),
)
GRAIN = 2 << 20


@pytest.fixture
def here(lab: MakeLab) -> Lab:
    """Give the nodes of these tests, empty."""
    return fresh(lab(*NODES))


@pytest.fixture
def source(tmp_path: Path) -> File:
    """Give a source."""
    return make(tmp_path / "model.bin", 12 * MB)


def transports(done: Done) -> list[tuple[str, bool]]:
    return [(attempt["transport"], attempt["error"] is None) for attempt in done.last["attempts"]]


def planned(here: Lab, tmp_path: Path, node: str, size: int) -> dict[str, Any]:
    """Ask for the plan of a sparse file, which costs no time to hash."""
    path = tmp_path / f"sparse-{size}"
    with path.open("wb") as file:
        file.truncate(size)
    done = rrmove(here, "plan", "--json", path, f"{node}:/data/")
    assert done.code == 0, done.err
    found = json.loads(done.out)
    assert isinstance(found, dict)
    return found


def test_http_leads_where_the_port_is_open_and_the_file_is_large(here: Lab, tmp_path: Path) -> None:
    def first(node: str, size: int) -> str:
        here.forget()
        return str(planned(here, tmp_path, node, size)["steps"][0]["transport"])

    assert first("hetzner", 1024 * MB) == "http"
    assert first("hetzner", 1 * MB) != "http"
    assert first("shut", 1024 * MB) == "chunked"


def test_everything_but_ssh_blocked_is_a_reason_and_one_way_that_is_open_is_enough(here: Lab, tmp_path: Path) -> None:
    def reason(node: str) -> str | None:
        here.forget()
        plan = planned(here, tmp_path, node, 1024 * MB)
        ranked = [step["transport"] for step in plan["steps"]]
        assert ranked[0] != "torrent"  # for one node it is not the best
        told = {refusal["transport"]: str(refusal["reason"]) for refusal in plan["refusals"]}
        assert ("torrent" in ranked) != ("torrent" in told)
        return told.get("torrent")

    assert reason("shut") == "port 6881 of the node is filtered, and the node cannot reach us"
    assert reason("walled") is None
    assert reason("hetzner") is None


@pytest.mark.parametrize("node", ["walled", "hetzner"])
def test_a_swarm_of_one_with_dht_blocked(here: Lab, source: File, node: str) -> None:
    """One reaches us and lets nobody in; the other one lets its torrent port in, and cannot call us."""
    if node == "hetzner":
        here.run(["nft", "-f", "-"], stdin=NO_CALLERS)
    try:
        done = arrive(here, source, node, TARGET, "--only", "torrent")
    finally:
        if node == "hetzner":
            here.run(["nft", "delete", "table", "inet", "callers"])
    assert transports(done) == [("torrent", True)]
    nothing_runs(here, node)


def test_the_open_port_brings_a_file_and_nothing_is_left(here: Lab, source: File) -> None:
    done = arrive(here, source, "hetzner", TARGET, "--only", "http")
    assert transports(done) == [("http", True)]
    nothing_runs(here, "hetzner")


def test_a_walled_node_pulls_from_us(here: Lab, source: File) -> None:
    done = arrive(here, source, "walled", TARGET, "--only", "http")
    assert transports(done) == [("http", True)]
    nothing_runs(here, "walled")


@pytest.mark.parametrize("node", ["shut", "rejects"])
def test_ports_that_lead_nowhere_cost_no_second(here: Lab, source: File, node: str) -> None:
    done = arrive(here, source, node, TARGET)
    assert transports(done) == [("chunked", True)]
    only = auto(here, source, f"{node}:/data/other.bin", "--only", "http")
    assert only.code in {1, 3}, only.err
    for attempt in only.last["attempts"]:
        assert attempt["seconds"] < 2.5  # one of connecting, the rest a busy machine's
    assert not here.path(node, "/data/other.bin").exists()


def test_what_arrives_altered_is_sent_again_and_no_more_than_that(lab: MakeLab, source: File) -> None:
    here = fresh(lab(*ALTERED))
    done = arrive(here, source, "alters", TARGET, "--only", "http", "-o", "http.tls=off")
    assert transports(done) == [("http", True)]
    flips = here.flips("alters")
    assert flips >= 2
    again = done.last["bytes_sent"] - source.size
    assert GRAIN // 2 < again <= flips * GRAIN  # a chunk for each, of which the last is short
    nothing_runs(here, "alters")


@pytest.mark.parametrize(("tls", "code"), [("off", 4), ("on", 1)])
def test_where_all_is_altered_nothing_is_committed(lab: MakeLab, source: File, tls: str, code: int) -> None:
    here = fresh(lab(*ALTERED))
    before = here.flips("garbles")
    done = auto(here, source, f"garbles:{TARGET}", "--only", "http", "-o", f"http.tls={tls}")
    assert done.code == code, done.err
    assert here.flips("garbles") > before
    assert not here.path("garbles", TARGET).exists()
    nothing_runs(here, "garbles")
    arrive(fresh(here), source, "garbles", TARGET)


def test_a_firewall_that_answers_for_the_node_costs_a_second_once(here: Lab, tmp_path: Path) -> None:
    big = sparse(tmp_path / "big.bin", 384 * MB)
    done = arrive(here, big, "rejects", TARGET, "--without", "rsync")
    assert transports(done) == [("http", False), ("chunked", True)]  # nothing seems to listen there, which is no reason
    assert done.last["attempts"][0]["seconds"] < 2.0  # 0.8 s, the rest is a busy machine's
    assert planned(here, tmp_path, "rejects", 1024 * MB)["steps"][0]["transport"] != "http"


def sparse(path: Path, size: int = 1024 * MB) -> File:
    """Write a large file with little in it: planned as a large one, sent as a small one."""
    with path.open("wb") as file:
        file.truncate(size)
        for place in range(6):
            file.seek(place * size // 7)
            file.write(os.urandom(2 * MB))
    digest = subprocess.run(["openssl", "dgst", "-sha256", "-r", path], capture_output=True, text=True, check=True)
    return File(path, digest.stdout.split()[0])


def test_a_port_that_was_open_and_now_is_not_costs_a_second(here: Lab, tmp_path: Path) -> None:
    small = make(tmp_path / "small.bin", MB)
    arrive(here, small, "hetzner", TARGET, "--only", "http")  # the port is known to be open from here on
    here.filter_ports("hetzner")
    try:
        # The way back is shut as well, so that nothing but SSH is left
        here.run(["nft", "-f", "-"], stdin=NO_CALLERS)
        done = arrive(here, sparse(tmp_path / "big.bin"), "hetzner", "/data/big.bin", "--without", "rsync")
        assert transports(done) == [("http", False), ("chunked", True)]
        # 0.3 to 0.7 s for either way, looked at side by side; the rest is a busy machine's
        assert done.last["attempts"][0]["seconds"] < 2.0
        again = planned(here, tmp_path, "hetzner", 1024 * MB)
    finally:
        here.run(["nft", "delete", "table", "inet", "callers"])
        here.filter_ports("hetzner", PORT, 6881)
    assert again["steps"][0]["transport"] != "http"  # the facts were forgotten, and asked for anew
