"""Moves that end well: every provider, odd names and sizes, what is said and what is only looked at."""

from __future__ import annotations

import json
import os
import stat
import time
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.lab.moving import (
    GRAIN,
    LOGIN,
    MB,
    NODES,
    File,
    Running,
    all_at_once,
    arrive,
    auto,
    fresh,
    make,
    parts,
    put,
    rrmove,
    wire,
)
from tests.lab.processes import wait_until
from tests.lab.profiles import Profile

if TYPE_CHECKING:
    from tests.lab import Lab
    from tests.lab.fixtures import MakeLab

pytestmark = pytest.mark.lab

FIVE = ("nebius", "runpod", "vast", "vultr", "hetzner")
HARD = ("proxy", "cutter", "hole", "far")

# No slash can be in a name; "$(touch pwned)" would leave its mark in whatever directory it was run in
ODD = (
    "two words",
    'it\'s "quoted"',
    "$(touch pwned)",
    "`touch pwned`;touch pwned",
    "new\nline",
    "-rf",
    "~",
    "*?[a]",
    "größe-漢字",
    os.fsdecode(b"latin-\xe9"),
    "back\\slash\\n",
    "x" * 255,
    "user@host:x",
    "%h #|&<>!",
)


@pytest.fixture
def here(lab: MakeLab) -> Lab:
    """Give the nodes of the faults' tests, empty."""
    return fresh(lab(*NODES))


@pytest.fixture(scope="module")
def providers(lab: MakeLab) -> Lab:
    """Give the providers' nodes."""
    return lab(*FIVE, *HARD)


# The providers


def whole_on_all(cluster: Lab, source: File, nodes: tuple[str, ...], *options: str) -> None:
    """Move a file to nodes at the same time, and see that it is whole on each."""
    fresh(cluster)
    all_at_once(partial(arrive, cluster, source, node, "/data/model.bin", *options, timeout=90) for node in nodes)
    for node in nodes:
        assert [entry.name for entry in cluster.path(node, "/data").iterdir()] == ["model.bin"]


@pytest.mark.parametrize("size", [pytest.param(1 * MB, marks=pytest.mark.campaign), 10 * MB])
def test_a_file_arrives_whole_on_every_provider_two_of_two(providers: Lab, tmp_path: Path, size: int) -> None:
    for number in range(2):
        whole_on_all(providers, make(tmp_path / f"{number}.bin", size), FIVE)


@pytest.mark.timeout(900)
@pytest.mark.campaign
@pytest.mark.parametrize("size", [1 * MB, 10 * MB])
@pytest.mark.parametrize("node", FIVE)
def test_a_file_arrives_whole_on_every_provider_five_of_five(
    providers: Lab, tmp_path: Path, node: str, size: int
) -> None:
    for number in range(5):
        whole_on_all(providers, make(tmp_path / f"{number}.bin", size), (node,))


def test_a_large_file_arrives_whole_through_a_jump_host_over_cuts_and_silence(providers: Lab, tmp_path: Path) -> None:
    before = {node: providers.resets(node) for node in ("cutter", "hole")}
    # At this rate every move takes 8 s, which is as old as a connection gets
    whole_on_all(providers, make(tmp_path / "large.bin", 24 * MB), HARD, "--limit-rate", "3M")
    for node, count in before.items():
        assert providers.resets(node) > count, "no connection was cut: nothing was proved"


def test_a_node_may_be_written_as_user_at_host(here: Lab, tmp_path: Path) -> None:
    source = make(tmp_path / "model.bin", 1 * MB)
    config = here.directory / "client/ssh/config"
    identity = config.read_text().split("IdentityFile ")[1].split()[0]
    known = config.read_text().split("UserKnownHostsFile ")[1].split()[0]
    strangers = tmp_path / "ssh_config"
    strangers.write_text(f"IdentityFile {identity}\nUserKnownHostsFile {known}\n")
    done = auto(here, source, f"root@{here.address('plain')}:/data/there", "-F", str(strangers))
    assert done.code == 0, done.err
    assert here.sha256("plain", "/data/there") == source.digest


def test_a_node_that_throttles_logins_gets_the_file_without_a_storm(here: Lab, tmp_path: Path) -> None:
    before = here.connects("hasty")
    arrive(here, make(tmp_path / "model.bin", 40 * MB), "hasty", "/data/model.bin", timeout=100)
    # Some 2 to 4 s of a connection's life and 20 MB/s: a handful would do; 2:80:4 turns most of the early ones away
    assert here.connects("hasty") - before <= 40


@pytest.mark.parametrize(
    "without", [(), pytest.param(("python3",), marks=pytest.mark.campaign)], ids=["python", "shell"]
)
def test_a_connection_that_is_not_8_bit_clean_still_gets_the_file(
    lab: MakeLab, tmp_path: Path, without: tuple[str, ...]
) -> None:
    name = f"narrow{len(without)}"
    here = fresh(lab(Profile(name, seven_bits=True, without=without)))
    # It is not clean indeed
    seen = here.run(["ssh", name, "printf '\\303\\244'; cat"], stdin="ö").stdout
    assert seen == "????"
    small = arrive(here, make(tmp_path / "small.bin", 1 * MB), name, "/data/small.bin")
    assert small.last["bytes_sent"] >= 1 * MB
    done = arrive(here, make(tmp_path / "model.bin", 5 * MB), name, "/data/model.bin")
    assert [attempt["transport"] for attempt in done.last["attempts"]] == ["base64"]


# Names and sizes


@pytest.mark.parametrize("node", ["plain", "bare"])
def test_odd_names_arrive_from_and_under_odd_names_and_are_never_run(here: Lab, tmp_path: Path, node: str) -> None:
    sources = [make(tmp_path / "in" / name, 3000 + at) for at, name in enumerate(ODD)]
    others = ODD[1:] + ODD[:1]
    tasks = [partial(auto, here, source, f"{node}:/data/{name}") for source, name in zip(sources, others, strict=True)]
    tasks += [partial(auto, here, source, f"{node}:/data/own/") for source in sources[:3]]
    for name, done in zip((*others, *ODD[:3]), all_at_once(tasks), strict=True):
        assert done.code == 0, f"{name!r}: {done.err}"
    for source, name in zip(sources, others, strict=True):
        assert here.sha256(node, f"/data/{name}") == source.digest, name
    for source, name in zip(sources, ODD[:3], strict=False):
        assert here.sha256(node, f"/data/own/{name}") == source.digest, name
    assert len(list(here.path(node, "/data").iterdir())) == len(ODD) + 1
    nothing_was_run(here, node, tmp_path)


def nothing_was_run(here: Lab, node: str, cwd: Path) -> None:
    """See that none of the names was taken for a command, on either side."""
    for folder in (here.path(node, "/data"), here.path(node, "/root"), here.path(node, "/tmp"), cwd):
        assert not list(folder.rglob("pwned"))
    assert not Path("pwned").exists()


def test_odd_names_survive_relative_paths_and_other_transports(here: Lab, tmp_path: Path) -> None:
    names = [name for name in ODD if len(name) < 100]
    for at, name in enumerate(names):
        make(tmp_path / name, 100 + at)
    tasks = [
        partial(rrmove, here, "auto", "--only", "rsync", f"./{name}", f"plain:out/{name}", cwd=tmp_path)
        for name in names
    ]
    for name, done in zip(names, all_at_once(tasks), strict=True):
        assert done.code == 0, f"{name!r}: {done.err}"
        assert here.path("plain", f"/root/out/{name}").read_bytes() == (tmp_path / name).read_bytes()
    nothing_was_run(here, "plain", tmp_path)


@pytest.mark.parametrize("node", ["plain", "barest"])
def test_files_of_every_size_about_a_chunk_arrive_in_a_directory_that_is_made(
    here: Lab, tmp_path: Path, node: str
) -> None:
    sizes = (0, 1, GRAIN - 1, GRAIN, GRAIN + 1)
    sources = [make(tmp_path / f"{size}.bin", size) for size in sizes]
    for done in all_at_once(partial(auto, here, source, f"{node}:/data/a/b/c/") for source in sources):
        assert done.code == 0, done.err
    for source in sources:
        assert here.sha256(node, f"/data/a/b/c/{source.path.name}") == source.digest
        assert here.path(node, f"/data/a/b/c/{source.path.name}").stat().st_size == source.size
    assert not parts(here, node)


@pytest.mark.parametrize("node", ["plain", "bare"])
def test_mode_and_time_follow_the_source(here: Lab, tmp_path: Path, node: str) -> None:
    source = make(tmp_path / "tool", 1000)
    source.path.chmod(0o750)
    os.utime(source.path, (1_600_000_000, 1_500_000_000))
    arrive(here, source, node, "/data/tool")
    seen = here.path(node, "/data/tool").stat()
    assert stat.S_IMODE(seen.st_mode) == 0o750
    assert int(seen.st_mtime) == 1_500_000_000


@pytest.mark.parametrize("node", ["plain", "bare"])
def test_an_existing_target_is_replaced_and_an_identical_one_recognised(here: Lab, tmp_path: Path, node: str) -> None:
    old, new = make(tmp_path / "old", 1 * MB), make(tmp_path / "new", 1 * MB)
    arrive(here, old, node, "/data/model.bin")
    arrive(here, new, node, "/data/model.bin")
    before = here.path(node, "/data/model.bin").stat().st_ino
    done, sent = wire(here, node, lambda: arrive(here, new, node, "/data/model.bin"))
    assert sent < LOGIN
    assert done.last["bytes_sent"] == 0
    assert here.path(node, "/data/model.bin").stat().st_ino == before


def test_a_directory_and_a_home_receive_the_file_under_its_own_name(here: Lab, tmp_path: Path) -> None:
    source = make(tmp_path / "model.bin", 1000)
    here.path("plain", "/data/there").mkdir()
    for target in ("plain:/data/there", "plain", "plain:~/sub/", "plain:up/../here/x"):
        assert auto(here, source, target).code == 0
    for path in ("/data/there/model.bin", "/root/model.bin", "/root/sub/model.bin", "/root/here/x"):
        assert here.sha256("plain", path) == source.digest, path


def test_a_symlink_at_the_target_leads_to_the_file_that_is_replaced(here: Lab, tmp_path: Path) -> None:
    source = make(tmp_path / "model.bin", 1000)
    put(here, "plain", "/data/v1/real", "old")
    here.path("plain", "/data/link").symlink_to("v1/real")
    assert auto(here, source, "plain:/data/link").code == 0
    assert here.path("plain", "/data/link").is_symlink()
    assert here.sha256("plain", "/data/v1/real") == source.digest


# What is said


def test_the_last_json_line_has_what_was_promised(here: Lab, tmp_path: Path) -> None:
    source = make(tmp_path / "model.bin", 3 * MB)
    done = arrive(here, source, "plain", "/data/model.bin")
    events = [json.loads(line) for line in done.out.splitlines()]
    assert all(isinstance(event["event"], str) for event in events)
    last = events[-1]
    types = {
        "event": str, "ok": bool, "transport": str, "source": str, "node": str, "destination": str, "size": int,
        "digest": str, "verified": list, "unverified": type(None),
        "bytes_sent": int, "bytes_reused": int, "seconds": float, "attempts": list, "refusals": list,
    }  # fmt: skip
    assert {key: type(value) for key, value in last.items()} == types
    assert last["event"] == "finished"
    assert (last["source"], last["node"], last["destination"]) == (str(source.path), "plain", "/data/model.bin")
    assert (last["size"], last["bytes_reused"]) == (source.size, 0)
    assert last["bytes_sent"] >= source.size
    assert last["digest"].count(":") == 1
    assert [attempt.keys() for attempt in last["attempts"]] == [{"transport", "seconds", "bytes_sent", "error"}]
    assert all(refusal.keys() == {"transport", "reason"} for refusal in last["refusals"])
    assert [event["event"] for event in events].index("committed") < len(events) - 1


def test_without_json_the_result_is_one_line_on_stdout(here: Lab, tmp_path: Path) -> None:
    source = make(tmp_path / "model.bin", 1000)
    done = rrmove(here, "auto", source.path, "plain:/data/model.bin")
    assert done.code == 0
    assert done.out.count("\n") == 1
    assert "plain:/data/model.bin" in done.out
    quiet = rrmove(here, "auto", "--quiet", source.path, "plain:/data/again.bin")
    assert (quiet.code, quiet.out, quiet.err) == (0, "", "")
    assert here.sha256("plain", "/data/again.bin") == source.digest


# Options


@pytest.mark.parametrize("transport", ["chunked", "rsync"])
def test_a_rate_limit_holds(here: Lab, tmp_path: Path, transport: str) -> None:
    source = make(tmp_path / "model.bin", 10 * MB)
    before = here.bytes_to("plain")
    crossed = []
    target = "plain:/data/model.bin"
    with Running(here, source, target, "--limit-rate", "2M", "--only", transport) as move:
        for mark in (1 * MB, 9 * MB):
            wait_until(lambda at=before + mark: here.bytes_to("plain") >= at, 20, "bytes on the wire")  # type: ignore[misc]
            crossed.append((here.bytes_to("plain"), time.monotonic()))
        assert move.done().code == 0
    (first, began), (second, ended) = crossed
    assert 1.7 * MB < (second - first) / (ended - began) < 2.4 * MB  # 2M may mean 2 MiB; and headers come on top
    assert here.sha256("plain", "/data/model.bin") == source.digest


def test_a_digest_that_is_expected_is_checked_before_anything_is_sent(here: Lab, tmp_path: Path) -> None:
    source = make(tmp_path / "model.bin", 5 * MB)
    old = put(here, "plain", "/data/model.bin", "old")
    done, sent = wire(here, "plain", lambda: auto(here, source, "plain:/data/model.bin", "--sha256", "0" * 64))
    assert done.code == 4, done.err
    assert done.last["ok"] is False
    assert "SHA-256" in done.err
    assert sent < LOGIN
    assert not parts(here, "plain")
    assert old.read_text() == "old"
    done = auto(here, source, "plain:/data/model.bin", "--sha256", source.digest.upper())
    assert done.code == 0, done.err
    assert done.last["digest"] == f"sha256:{source.digest}"
    assert here.sha256("plain", "/data/model.bin") == source.digest


# What moves nothing


def test_a_plan_moves_nothing_and_says_who_would_serve_and_who_not(here: Lab, tmp_path: Path) -> None:
    source = make(tmp_path / "model.bin", 20 * MB)
    for node, ranked, refused in (("plain", {"chunked", "rsync"}, set()), ("bare", {"chunked"}, {"rsync"})):
        done, sent = wire(here, node, lambda node=node: rrmove(here, "plan", source.path, f"{node}:/data/x"))  # type: ignore[misc]
        assert done.code == 0, done.err
        assert sent < 2 * LOGIN
        assert "chunked" in done.out
        assert "rsync" in done.out
        told = json.loads(rrmove(here, "plan", "--json", source.path, f"{node}:/data/x").out)
        assert ranked <= {step["transport"] for step in told["steps"]}
        assert [step["rank"] for step in told["steps"]] == list(range(1, len(told["steps"]) + 1))
        assert refused <= {refusal["transport"] for refusal in told["refusals"]}
        assert told["missing"] == source.size
        assert not list(here.path(node, "/data").iterdir())
        assert not list(here.path(node, "/root").iterdir())
    done = rrmove(here, "plan", "--only", "rsync", source.path, "bare:/data/x")
    assert done.code == 3
    assert "rsync" in done.out + done.err
    done = auto(here, source, "bare:/data/x", "--only", "rsync")
    assert done.code == 3
    assert "rsync" in done.err
    assert not list(here.path("bare", "/data").iterdir())


def test_a_probe_shows_several_nodes_and_names_the_dead_one(here: Lab) -> None:
    done = rrmove(here, "probe", "--json", "plain", "bare", "dark", timeout=30)
    assert done.code == 1
    told = {line["node"]: line for line in map(json.loads, done.out.splitlines())}
    assert {name: line["ok"] for name, line in told.items()} == {"plain": True, "bare": True, "dark": False}
    assert "SSH port" in told["dark"]["error"]
    assert done.seconds < 20
    for node in ("plain", "bare"):
        assert not list(here.path(node, "/data").iterdir())
        assert not list(here.path(node, "/root").iterdir())


def test_the_nodes_of_ssh_config_are_listed(here: Lab) -> None:
    done = rrmove(here, "nodes", "--json")
    rows = {row["name"]: row for row in map(json.loads, done.out.splitlines())}
    assert done.code == 0
    assert {name: rows[name]["host"] for name in here.names} == {name: here.address(name) for name in here.names}
    assert set(rrmove(here, "nodes", "--names").out.split()) >= set(here.names)


@pytest.mark.parametrize("node", ["plain", "bare"])
def test_clean_removes_what_was_left_but_not_what_is_in_use(here: Lab, tmp_path: Path, node: str) -> None:
    source = make(tmp_path / "model.bin", 6 * MB)
    keep = put(here, node, "/data/precious.bin", "precious")
    left = put(here, node, "/data/.old.bin.0123456789ab.rrmove-part", "left")
    with Running(here, source, f"{node}:/data/model.bin", "--limit-rate", "2M") as move:
        move.until(0.3)
        done = rrmove(here, "clean", f"{node}:/data")
        assert done.code == 0, done.err
        assert left.name in done.out
        assert not left.exists()
        assert parts(here, node), "the part file of the move that runs was removed"
        assert move.done().code == 0
    assert here.sha256(node, "/data/model.bin") == source.digest
    assert keep.read_text() == "precious"
    again = rrmove(here, "clean", "--json", f"{node}:/data")
    assert (again.code, json.loads(again.out)["removed"]) == (0, [])
    assert here.sha256(node, "/data/model.bin") == source.digest
