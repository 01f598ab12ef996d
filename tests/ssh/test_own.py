"""Our own SSH client against the embedded node: lanes over a process apart, and its giving way to `ssh`."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from rrmove.errors import Fatal, Transient
from rrmove.model import Node, SSHSettings
from rrmove.retry import persistently
from rrmove.ssh import own
from rrmove.ssh.failures import NoLogin, NotOurs
from rrmove.ssh.lane import AgentLane
from rrmove.ssh.login import SSHSession
from rrmove.testing import EmbeddedNode, Faults

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture
def server() -> Iterator[EmbeddedNode]:
    with EmbeddedNode() as node:
        yield node


def node_of(server: EmbeddedNode) -> Node:
    return Node(name=server.name, ssh=SSHSettings(config=server.ssh_config))


def clients(of: int) -> list[str]:
    """The client processes that descend from a process, looked at from outside."""
    listed = subprocess.run(["ps", "-eo", "pid=,args="], capture_output=True, text=True, check=True).stdout
    mine = [line.split(None, 1) for line in listed.splitlines() if "rrmove.ssh.client" in line]
    return [pid for pid, _ in mine if f"\0RRMOVE_TEST={of}\0".encode() in _environment(pid)]


def _environment(pid: str) -> bytes:
    try:
        return b"\0" + Path(f"/proc/{pid}/environ").read_bytes()
    except OSError:
        return b""


@pytest.fixture
def marked(monkeypatch: pytest.MonkeyPatch) -> int:
    mark = time.monotonic_ns()
    monkeypatch.setenv("RRMOVE_TEST", str(mark))
    return mark


def gone(mark: int) -> bool:
    end = time.monotonic() + 10
    while clients(mark) and time.monotonic() < end:
        time.sleep(0.05)
    return not clients(mark)


async def test_lanes_share_one_process_that_ends_with_the_last(server: EmbeddedNode, marked: int) -> None:
    lanes = [
        AgentLane(lambda command: own.start(node_of(server), command, strict=False), node_of(server)) for _ in "abc"
    ]
    everything = bytes(range(256))
    for reply in await asyncio.gather(*(lane.call("hello", everything) for lane in lanes)):
        assert reply.body == everything
    assert len(clients(marked)) == 4  # the one that forks, and one for each lane
    assert server.logins == 3
    assert lanes[0].handshake is not None
    await asyncio.gather(*(lane.close() for lane in lanes))
    assert gone(marked)


async def test_a_reset_is_transient(marked: int) -> None:
    with EmbeddedNode(Faults(reset_after_bytes=300_000)) as server:
        lane = AgentLane(lambda command: own.start(node_of(server), command, strict=True), node_of(server))

        async def until_it_ends() -> None:
            while True:
                await lane.call("hello", bytes(100_000))

        with pytest.raises(Transient) as caught:
            await until_it_ends()
        assert not isinstance(caught.value, NotOurs | NoLogin)
        assert server.resets == 1
        await lane.close()
    assert gone(marked)


async def test_where_the_node_does_not_let_us_in_ssh_has_its_turn(server: EmbeddedNode, tmp_path: Path) -> None:
    """A host key may be known by its certificate's authority, which only ssh can check; here it is unknown."""
    text = server.ssh_config.read_text()
    config = tmp_path / "config"
    empty = tmp_path / "known_hosts"
    empty.write_text("")
    lines = [f"  UserKnownHostsFile {empty}" if "UserKnownHostsFile" in line else line for line in text.splitlines()]
    config.write_text("\n".join(lines) + "\n")
    node = Node(name=server.name, ssh=SSHSettings(config=config))
    strict = AgentLane(lambda command: own.start(node, command, strict=True), node)
    with pytest.raises(NotOurs):
        await strict.ready()
    await strict.close()
    async with SSHSession(node, client="auto") as session:

        async def ask() -> None:
            await (await session.control()).call("hello", b"")

        with pytest.raises(Fatal, match="host key"):  # in ssh's own words
            await persistently(ask)
        assert session.opened == 2


async def test_what_only_ssh_can_do_is_done_by_ssh(server: EmbeddedNode, tmp_path: Path, marked: int) -> None:
    config = tmp_path / "config"
    config.write_text(server.ssh_config.read_text().rstrip() + "\n  SetEnv A=b\n")
    node = Node(name=server.name, ssh=SSHSettings(config=config))
    async with SSHSession(node, client="auto") as session:

        async def ask() -> None:
            await (await session.control()).call("hello", b"")

        await persistently(ask)
        assert server.logins == 1
    assert gone(marked)


async def test_nobody_listening_is_told_at_once(server: EmbeddedNode, tmp_path: Path) -> None:
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))
        port = nobody.getsockname()[1]
    lines = server.ssh_config.read_text().splitlines()
    config = tmp_path / "config"
    config.write_text("\n".join(f"  Port {port}" if "Port " in line else line for line in lines) + "\n")
    node = Node(name=server.name, ssh=SSHSettings(config=config))
    lane = AgentLane(lambda command: own.start(node, command, strict=True), node)
    with pytest.raises(NoLogin, match="nothing listens"):
        await lane.ready()
    await lane.close()


def test_nothing_outlives_a_killed_rrmove(server: EmbeddedNode, marked: int) -> None:
    script = f"""
import asyncio
from pathlib import Path
from rrmove.model import Node, SSHSettings
from rrmove.ssh import own
from rrmove.ssh.lane import AgentLane
node = Node(name={server.name!r}, ssh=SSHSettings(config=Path({str(server.ssh_config)!r})))
async def stay():
    lane = AgentLane(lambda command: own.start(node, command, strict=False), node)
    await lane.ready()
    print("up", flush=True)
    await asyncio.sleep(60)
asyncio.run(stay())
"""
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "up\n"
        assert len(clients(marked)) == 2
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
    assert gone(marked)
