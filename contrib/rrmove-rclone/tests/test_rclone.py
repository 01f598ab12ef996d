"""rrmove-rclone, installed beside rrmove as its users have it: the suite of the contract, and what is its own."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest
from rrmove_rclone import Rclone, program, words

import rrmove
from rrmove.testing import EmbeddedNode, Faults, TransportSuite

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = pytest.mark.skipif(program() is None, reason="no rclone here")


class TestRclone(TransportSuite):
    """The contract."""

    @pytest.fixture
    def transport(self) -> Rclone:
        return Rclone()


@pytest.fixture
def embedded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[EmbeddedNode]:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    with EmbeddedNode() as opened:
        yield opened


def rrmove_says(*argv: str | Path) -> str:
    """Run the command as users do."""
    return subprocess.run(
        [sys.executable, "-m", "rrmove", *argv], check=True, capture_output=True, text=True, timeout=100
    ).stdout


def test_the_command_shows_ranks_and_uses_it(embedded: EmbeddedNode, tmp_path: Path) -> None:
    source = tmp_path / "model.pth"
    source.write_bytes(os.urandom(100_000_000))
    (row,) = [line.split() for line in rrmove_says("plugins").splitlines() if line.startswith("rclone ")]
    assert row == ["rclone", "0.1.0", "rrmove-rclone", "ssh", "none"]
    at = ["-F", embedded.ssh_config]
    plan = rrmove_says("plan", *at, source, "embedded")
    assert any(line.split()[1:2] == ["rclone"] for line in plan.splitlines()), plan
    rrmove_says("auto", "-q", *at, "--only", "rclone", source, "embedded")
    assert (embedded.home / "model.pth").read_bytes() == source.read_bytes()
    assert [path.name for path in embedded.home.iterdir()] == ["model.pth"]


@pytest.mark.parametrize("only", [("rclone",), ("rclone", "rsync")])
def test_what_others_brought_is_thrown_away_only_where_nobody_else_may_continue(
    only: tuple[str, ...], embedded: EmbeddedNode, tmp_path: Path
) -> None:
    source = tmp_path / "model.bin"
    source.write_bytes(os.urandom(5_000_000))
    node = rrmove.Node(name="embedded", ssh=rrmove.SSHSettings(config=embedded.ssh_config))
    embedded.faults = Faults(reset_after_bytes=3_500_000)
    with pytest.raises(rrmove.RRMoveError):
        rrmove.move_sync(source, node, only=("rsync",), deadline=0.6, limit_rate=5e6)
    embedded.faults = Faults()
    outcome = rrmove.move_sync(source, node, only=only)
    assert (embedded.home / "model.bin").read_bytes() == source.read_bytes()
    if outcome.bytes_reused:
        assert outcome.attempts[-1].transport == only[-1]


def test_no_secret_is_given_to_rclone(embedded: EmbeddedNode, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spy = tmp_path / "rclone"
    spy.write_text(f'#!/bin/sh\nprintf "%s\\n" "$@" >{tmp_path}/argv; exec {program()} "$@"\n')
    spy.chmod(0o755)
    monkeypatch.setattr("rrmove_rclone.program", lambda: str(spy))
    source = tmp_path / "model.bin"
    source.write_bytes(b"x" * 100_000)
    node = rrmove.Node(name="embedded", ssh=rrmove.SSHSettings(config=embedded.ssh_config, identity=embedded.identity))
    assert rrmove.move_sync(source, node, only=("rclone",)).ok
    argv = (tmp_path / "argv").read_text()
    assert str(embedded.identity) in argv  # the name of the key file, for ssh
    assert embedded.identity.read_text().splitlines()[1] not in argv
    assert "--sftp-pass" not in argv
    assert "--sftp-key" not in argv


@pytest.mark.parametrize(
    ("argv", "written"),
    [
        (("ssh", "-p", "22"), "ssh -p 22"),
        (("ssh", "-F", "/a dir/x"), 'ssh -F "/a dir/x"'),
        (("ssh", "-o", 'ProxyCommand=a "b" c'), 'ssh -o "ProxyCommand=a ""b"" c"'),
    ],
)
def test_rclone_reads_the_command_line_as_it_was_meant(argv: tuple[str, ...], written: str) -> None:
    assert words(argv) == written
