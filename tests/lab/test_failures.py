"""Moves that cannot end well: each says where, what was tried and what to do, soon, and harms nothing."""

from __future__ import annotations

import shlex
import subprocess
from typing import TYPE_CHECKING

import pytest

from tests.lab import Profile
from tests.lab.moving import (
    LOGIN,
    MB,
    NODES,
    Done,
    File,
    Running,
    arrive,
    auto,
    complains,
    fresh,
    make,
    missing,
    nothing_runs,
    part_file,
    parts,
    put,
    rrmove,
    wire,
)

if TYPE_CHECKING:
    from pathlib import Path

    from tests.lab import Lab
    from tests.lab.fixtures import MakeLab

pytestmark = pytest.mark.lab

TARGET = "/data/model.bin"
SOON = 20.0  # s within which a move that has no prospect has to say so


@pytest.fixture
def here(lab: MakeLab) -> Lab:
    """Give the nodes of the faults' tests, empty."""
    return fresh(lab(*NODES))


@pytest.fixture
def source(tmp_path: Path) -> File:
    """Give a source."""
    return make(tmp_path / "model.bin", 3 * MB)


def ends_badly(here: Lab, source: File, target: str, code: int, *words: str, options: tuple[str, ...] = ()) -> Done:
    """Try a move to a node where the target exists; see that it fails soon, and that the target stays."""
    node = target.partition(":")[0].rpartition("@")[2]
    old = put(here, "plain", TARGET, "old")
    done = auto(here, source, target, *options)
    complains(done, code, node, *words)
    assert done.seconds < SOON
    assert old.read_text() == "old"
    assert not parts(here, "plain")
    nothing_runs(here, "plain")
    return done


# Logins


def test_an_unknown_node_is_answered_with_those_that_are_known(here: Lab, source: File) -> None:
    done = ends_badly(here, source, f"plian:{TARGET}", 2, "unknown node", "plain")
    assert done.seconds < 20


def test_an_address_of_no_host_says_so(here: Lab, source: File) -> None:
    address = here.address("plain").rpartition(".")[0] + ".250"
    ends_badly(here, source, f"root@{address}:{TARGET}", 1, "does not answer", "ssh")


def test_a_port_where_nothing_listens_says_so(here: Lab, source: File) -> None:
    done = auto(here, source, f"dark:{TARGET}")
    complains(done, 1, "dark", "nothing listens", "22", "ssh dark")
    assert done.seconds < SOON


def test_a_black_hole_says_so(here: Lab, source: File) -> None:
    here.filter_ports("plain", ssh=False)
    try:
        ends_badly(here, source, f"plain:{TARGET}", 1, "does not answer", "ssh", "firewall")
    finally:
        here.filter_ports("plain")


@pytest.fixture
def config(here: Lab, tmp_path: Path) -> Path:
    """Give an ssh_config that has `plain` under names of its own, with a wrong key or a wrong host key."""
    right = here.ssh_config.read_text()
    identity = right.split("IdentityFile ")[1].split()[0]
    known = right.split("UserKnownHostsFile ")[1].split()[0]
    here.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", tmp_path / "key"])
    wrong = (tmp_path / "key.pub").read_text().split()[:2]
    (tmp_path / "known").write_text(f"{here.address('plain')} {' '.join(wrong)}\n")
    entries = {
        "stranger": (identity, "/dev/null"),
        "impostor": (identity, str(tmp_path / "known")),
        "refusing": (str(tmp_path / "key"), known),
    }
    path = tmp_path / "ssh_config"
    path.write_text(
        "".join(
            f"Host {name}\n  HostName {here.address('plain')}\n  User root\n  IdentityFile {key}\n"
            f"  IdentitiesOnly yes\n  UserKnownHostsFile {hosts}\n"
            for name, (key, hosts) in entries.items()
        )
    )
    return path


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("stranger", ("host key is unknown", "ssh stranger")),
        ("impostor", ("host key is not the one", "ssh-keygen -f")),
        ("refusing", ("authentication was refused", "authorized_keys")),
    ],
)
def test_a_login_that_is_not_safe_or_not_allowed_is_refused_at_once(
    here: Lab, source: File, config: Path, name: str, words: tuple[str, ...]
) -> None:
    done = ends_badly(here, source, f"{name}:{TARGET}", 1, *words, options=("-F", str(config)))
    assert done.seconds < 20, "there is nothing to be waited for"


def test_the_remedy_for_a_changed_host_key_works(here: Lab, source: File, config: Path, tmp_path: Path) -> None:
    """The command that is recommended removes the key; what follows is the question about an unknown host."""
    done = auto(here, source, f"impostor:{TARGET}", "-F", str(config))
    command = shlex.split(next(part for part in done.err.split("`") if part.startswith("ssh-keygen")))
    here.run([*command, "-f", tmp_path / "known"] if "-f" not in command else command, check=False)
    done = auto(here, source, f"impostor:{TARGET}", "-F", str(config))
    complains(done, 1, "impostor", "host key is unknown")


@pytest.mark.timeout(300)
@pytest.mark.campaign
def test_an_sshd_that_goes_away_midway_and_stays_away_is_named(here: Lab, tmp_path: Path) -> None:
    source = make(tmp_path / "model.bin", 10 * MB)
    old = put(here, "other", TARGET, "old")
    try:
        with Running(here, source, f"other:{TARGET}", "--limit-rate", "5M") as move:
            move.until(0.4)
            here.stop_sshd("other")
            done = move.done(240)
    finally:
        here.start_sshd("other")
    complains(done, 1, "other")
    assert "again" in done.err
    assert old.read_text() == "old"
    arrive(here, source, "other", TARGET)


def test_an_sshd_that_comes_back_is_waited_for(here: Lab, tmp_path: Path) -> None:
    source = make(tmp_path / "model.bin", 10 * MB)
    with Running(here, source, f"other:{TARGET}", "--limit-rate", "5M") as move:
        move.until(0.4)
        here.stop_sshd("other")
        here.on("other", ["sleep", "2"])
        here.start_sshd("other")
        done = move.done()
    assert done.code == 0, done.err
    assert here.sha256("other", TARGET) == source.digest


# The node's disk


def test_a_disk_that_is_too_small_is_refused_before_the_first_byte(here: Lab, tmp_path: Path) -> None:
    source = make(tmp_path / "model.bin", 50 * MB)
    old = put(here, "small", TARGET, "old")
    done, sent = wire(here, "small", lambda: auto(here, source, f"small:{TARGET}"))
    complains(done, 1, "small", "disk is full", "missing", "room")
    assert done.seconds < SOON
    assert sent < LOGIN
    assert old.read_text() == "old"
    assert not parts(here, "small"), "an empty part file is no use to anybody"


@pytest.mark.parametrize("tools", [(), ("python3",)])
def test_a_disk_that_fills_up_midway_is_named_and_the_move_continues_once_there_is_room(
    here: Lab, tmp_path: Path, tools: tuple[str, ...]
) -> None:
    source = make(tmp_path / "model.bin", 20 * MB)
    here.hide("small", *tools)
    try:
        old = put(here, "small", TARGET, "old")
        with Running(here, source, f"small:{TARGET}", "--limit-rate", "5M") as move:
            move.until(0.4)
            here.on("small", ["dd", "if=/dev/zero", "of=/data/hog", "bs=64k"], check=False)
            done = move.done()
        complains(done, 1, "small", "full")
        assert old.read_text() == "old"
        here.path("small", "/data/hog").unlink()
        lacking = missing(source, part_file(here, "small"))
        assert lacking < 0.9 * source.size, "what had arrived was not kept"
        done, sent = wire(here, "small", lambda: auto(here, source, f"small:{TARGET}"))
        assert done.code == 0, done.err
        assert here.sha256("small", TARGET) == source.digest
        assert sent <= 1.05 * lacking + LOGIN
    finally:
        here.restore("small", *tools)


@pytest.mark.parametrize("node", ["plain", "bare"])
def test_a_directory_that_cannot_be_written_to_is_named(here: Lab, source: File, node: str) -> None:
    # Read-only even for root, whom no mode stops
    here.on(node, ["sh", "-c", "mkdir /data/ro && mount -t tmpfs ro /data/ro && echo old > /data/ro/model.bin"])
    try:
        here.on(node, ["mount", "-o", "remount,ro", "/data/ro"])
        for target in ("/data/ro/model.bin", "/data/ro/new/model.bin"):
            done = auto(here, source, f"{node}:{target}")
            complains(done, 1, node, "/data/ro", "directory")
            assert done.seconds < SOON
        assert here.on(node, ["sh", "-c", "cat /data/ro/*; ls -A /data/ro"]).stdout == "old\nmodel.bin\n"
    finally:
        here.on(node, ["umount", "/data/ro"])


@pytest.mark.parametrize("node", ["plain", "bare"])
def test_a_directory_of_the_file_s_own_name_is_in_the_way(here: Lab, source: File, node: str) -> None:
    inside = put(here, node, "/data/model.bin/precious", "precious")
    done = auto(here, source, f"{node}:/data/")
    complains(done, 2, node, "/data/model.bin", "directory")
    assert inside.read_text() == "precious"
    assert not parts(here, node)


@pytest.mark.parametrize("node", ["plain", "bare"])
def test_a_file_on_the_way_to_the_target_is_no_directory(here: Lab, source: File, node: str) -> None:
    file = put(here, node, "/data/file", "precious")
    done = auto(here, source, f"{node}:/data/file/model.bin")
    assert done.code in (1, 2), done.err
    assert node in done.err
    assert "/data/file" in done.err
    assert done.seconds < SOON
    assert file.read_text() == "precious"
    assert not parts(here, node)


# The source, and the command


def test_a_source_that_is_none_is_a_matter_of_usage(here: Lab, tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    for name in ("missing.bin", "folder"):
        done = auto(here, tmp_path / name, f"plain:{TARGET}")
        assert done.code == 2, done.err
        assert name in done.err
        assert done.last["ok"] is False
        assert done.seconds < 20
    assert not list(here.path("plain", "/data").iterdir())


def test_a_transport_that_does_not_exist_is_a_matter_of_usage_or_route(here: Lab, source: File) -> None:
    done = auto(here, source, f"plain:{TARGET}", "--only", "pigeon")
    assert done.code in (2, 3), done.err
    assert "pigeon" in done.err
    assert not list(here.path("plain", "/data").iterdir())


def test_a_deadline_that_passes_is_a_failure_that_can_be_continued(here: Lab, tmp_path: Path) -> None:
    source = make(tmp_path / "model.bin", 20 * MB)
    done = auto(here, source, f"plain:{TARGET}", "--limit-rate", "4M", "--deadline", "3")
    complains(done, 1, "plain", "deadline", "again")
    assert done.seconds < 10
    nothing_runs(here, "plain")
    assert part_file(here, "plain").exists()
    assert here.sha256("plain", TARGET) is None
    done, sent = wire(here, "plain", lambda: arrive(here, source, "plain", TARGET))
    assert sent < 0.9 * source.size


def test_the_wrong_command_is_a_matter_of_usage(here: Lab, source: File) -> None:
    for words in (("auot", source.path, "plain"), ("auto", source.path), (source.path, "plain"), ("auto", "--nope")):
        done = rrmove(here, *words)
        assert done.code == 2, done.err
        assert "rrmove" in done.err


def test_a_key_that_is_refused_before_the_right_one_costs_no_wait(lab: MakeLab, tmp_path: Path) -> None:
    """The channel is asked for behind the first key; where that is refused, it is asked for anew behind the next."""
    here = lab(Profile("keys", rtt_ms=20))
    other = tmp_path / "other"
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(other)], check=True)
    text = here.ssh_config.read_text()
    here.ssh_config.write_text(text.replace("  IdentityFile", f"  IdentityFile {other}\n  IdentityFile", 1))
    source = make(tmp_path / "model.bin", MB)
    arrive(here, source, "keys", TARGET)
    assert here.connects("keys") == 1  # our own client was let in: `ssh` did not have to take over
