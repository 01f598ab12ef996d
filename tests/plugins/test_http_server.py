"""http to a running data server: whole, continued, and nothing that arrives late gets into what was verified."""

from __future__ import annotations

import asyncio
import fcntl
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING

import pytest

import rrmove
from rrmove.events import Event, Progressed, Verified
from rrmove.model import Node, Ports, SSHSettings
from rrmove.ssh import agent
from rrmove.testing import EmbeddedNode
from tests.serving.served import Answer, Served

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from rrmove.model import Outcome

pytestmark = pytest.mark.skipif(shutil.which("ssh") is None, reason="no OpenSSH client here")

MIB = 1 << 20
GRAIN = 2 * MIB
SIZE = 24 * MIB + 12345


@pytest.fixture(autouse=True)
def own_experience(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))


@pytest.fixture(scope="module", params=["plain", "tls"])
def served(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """A data server on an embedded node, which is what `node` gives."""
    with EmbeddedNode() as opened:
        where = tmp_path_factory.mktemp("served")
        (opened.home / ".local").mkdir()
        (opened.home / ".local" / "state").symlink_to(where / "state")
        with Served(where, plain=request.param == "plain") as served:
            served.node = opened  # type: ignore[attr-defined]
            yield served


@pytest.fixture(autouse=True)
def nothing_there(served: Served) -> None:
    for path in served.data.iterdir():
        path.unlink()


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "model.bin"
    path.write_bytes(os.urandom(SIZE))
    return path


def node_of(served: Served) -> Node:
    embedded: EmbeddedNode = served.node  # type: ignore[attr-defined]
    ssh = SSHSettings(host="embedded", config=embedded.ssh_config)
    return Node(name="embedded", ssh=ssh, ports=Ports(data=served.port), destination=f"{served.data}/")


async def move(
    source: Path,
    served: Served,
    *only: str,
    rate: float | None = None,
    on_event: Callable[[Event], None] | None = None,
) -> Outcome:
    return await rrmove.move(source, node_of(served), only=only or ("http",), limit_rate=rate, on_event=on_event)


def attempts(outcome: Outcome) -> list[tuple[str, str | None]]:
    return [(attempt.transport, attempt.failure) for attempt in outcome.attempts]


def whole(served: Served, source: Path) -> None:
    """It is there, nothing else is, and the server goes on."""
    assert (served.data / source.name).read_bytes() == source.read_bytes()
    assert [path.name for path in served.data.iterdir() if "rrmove" in path.name] == []
    (served.data / source.name).unlink()
    assert served.process.poll() is None
    assert served.upload(b"after", "after").json["state"] == "committed"
    (served.data / "after").unlink()


def requests(served: Served, method: str) -> int:
    return sum(row.get("method") == method for row in served.log())


async def test_a_file_goes_through_it(served: Served, source: Path) -> None:
    before = requests(served, "PUT")
    outcome = await move(source, served)
    assert attempts(outcome) == [("http", None)]
    assert SIZE <= outcome.bytes_sent < SIZE + GRAIN
    assert requests(served, "PUT") - before >= SIZE // (8 * MIB)
    whole(served, source)


async def test_what_a_killed_move_has_brought_is_not_sent_again(served: Served, source: Path, tmp_path: Path) -> None:
    embedded: EmbeddedNode = served.node  # type: ignore[attr-defined]
    nodes = tmp_path / "nodes.toml"
    nodes.write_text(f'[nodes.embedded]\nhost = "embedded"\ndata_port = {served.port}\ndest = "{served.data}/"\n')
    argv = [sys.executable, "-m", "rrmove", "auto", str(source), "embedded", "--only", "http", "--json"]
    argv += ["--nodes", str(nodes), "-F", str(embedded.ssh_config)]
    with subprocess.Popen([*argv, "--limit-rate", "16M"], stdout=subprocess.PIPE, text=True) as moving:
        assert moving.stdout is not None
        for row in map(json.loads, moving.stdout):
            assert row["event"] != "finished"
            if row["event"] == "progressed" and row["durable"] >= 6 * MIB:
                break
        os.kill(moving.pid, signal.SIGKILL)
    assert not (served.data / source.name).exists()
    outcome = await move(source, served)
    assert attempts(outcome) == [("http", None)]
    assert outcome.bytes_reused >= 2 * GRAIN
    assert outcome.bytes_sent <= SIZE - outcome.bytes_reused + GRAIN
    whole(served, source)


class Late:
    """A PUT that was altered and held up on the way: it arrives between the verification and the commit."""

    def __init__(self, served: Served, *, first: Callable[[str], object] = lambda _: None) -> None:
        self.served, self.first = served, first
        self.answers: list[Answer] = []

    def __call__(self, event: Event) -> None:
        if isinstance(event, Verified):
            (part,) = (path.name for path in self.served.data.iterdir() if path.name.endswith(agent.PART))
            if not self.answers:
                self.first(str(self.served.data / part))
            span = f"bytes {GRAIN}-{GRAIN + 99}/{SIZE}"
            put = self.served.ask("PUT", f"/v1/parts/data/{part}", body=b"x" * 100, headers={"Content-Range": span})
            self.answers.append(put)


async def test_a_put_that_comes_after_the_verification_is_not_written(served: Served, source: Path) -> None:
    late = Late(served)
    outcome = await move(source, served, on_event=late)
    assert [answer.status for answer in late.answers] == [409]
    assert "not open" in late.answers[0].what
    assert attempts(outcome) == [("http", None)]
    whole(served, source)


async def test_nor_where_the_attempt_was_broken_off_and_ssh_goes_on(served: Served, source: Path) -> None:
    reached = asyncio.Event()

    def look(event: Event) -> None:
        if isinstance(event, Progressed) and event.durable >= 6 * MIB:
            reached.set()

    moving = asyncio.create_task(move(source, served, on_event=look, rate=30e6))
    await asyncio.wait({asyncio.create_task(reached.wait()), moving}, timeout=30, return_when="FIRST_COMPLETED")
    assert not moving.done()
    moving.cancel()
    with pytest.raises(asyncio.CancelledError):
        await moving
    late = Late(served)
    outcome = await move(source, served, "chunked", on_event=late)
    assert outcome.bytes_reused >= GRAIN
    assert [answer.status for answer in late.answers] == [409]
    whole(served, source)


@pytest.mark.parametrize("transport", ["http", "chunked"])
async def test_where_another_mover_lets_it_in_all_is_verified_again(
    transport: str, served: Served, source: Path
) -> None:
    def admit(part: str) -> None:
        """Do what another rrmove does that sends the same file there."""
        us = SimpleNamespace(disk=agent.Disk())
        ino = agent.identity(Path(part).stat(), part)
        agent.admit(us, part, part.removesuffix(agent.PART) + agent.JOURNAL, ino)
        us.disk.forget(part)

    late = Late(served, first=admit)
    outcome = await move(source, served, transport, on_event=late)
    assert [answer.status for answer in late.answers] == [200, 409]  # it was written, and found
    assert SIZE < outcome.bytes_sent <= SIZE + 2 * GRAIN
    whole(served, source)


def test_who_shuts_it_out_waits_for_who_writes(served: Served) -> None:
    data = os.urandom(GRAIN)
    begun = served.begin(data, "locked").json
    part = str(served.data / begun["part"])
    us = SimpleNamespace(disk=agent.Disk(), hashing=memoryview(bytearray(agent.BLOCK)))
    fd = os.open(part, os.O_RDWR)
    fcntl.flock(fd, fcntl.LOCK_SH)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(agent.journal, "LOCKING", 0.05)
        with pytest.raises(agent.Refused, match="keeps writing"):
            agent.shut_out(us, part)
    assert served.put(begun, data, 0, 100).status == 200  # it shares the lock
    os.close(fd)
    agent.shut_out(us, part)
    assert served.put(begun, data, 100, 200).status == 409
    us.disk.forget(part)
    assert served.upload(data, "locked").json["state"] == "committed"
    (served.data / "locked").unlink()
