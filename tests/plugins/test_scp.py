"""scp against an embedded node: whole files, resume by appending, holes, and both protocols."""

from __future__ import annotations

import os
import shutil
from typing import TYPE_CHECKING

import pytest

import rrmove
from rrmove.events import AttemptStarted, Event
from rrmove.model import Options, Source
from rrmove.probe import CLEAN, TOOLS, Facts
from rrmove.testing import EmbeddedNode, Faults
from rrmove_plugins.scp import SCP
from tests.plugins.moves import MB, ODD_NAMES, assert_delivered, cancelled_at, move, node_of, parts
from tests.ssh.local import processes_with, until

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = [
    pytest.mark.usefixtures("own_experience"),
    pytest.mark.skipif(shutil.which("scp") is None, reason="no OpenSSH client here"),
]

SIZE = 10 * MB


@pytest.fixture(scope="module")
def old_fashioned() -> Iterator[EmbeddedNode]:
    """A node whose sshd has no sftp subsystem."""
    with EmbeddedNode(Faults(hidden_tools=frozenset({"sftp-server"}))) as opened:
        yield opened


@pytest.mark.parametrize("size", [0, 1, MB, 10 * MB])
async def test_a_whole_file(shared: EmbeddedNode, tmp_path: Path, size: int) -> None:
    path = tmp_path / f"{size}.bin"
    path.write_bytes(os.urandom(size))
    outcome = await move(path, shared, "scp")
    assert_delivered(outcome, path, shared)
    assert outcome.bytes_sent == size
    assert [attempt.transport for attempt in outcome.attempts] == ["scp"] * (size > 0)


async def test_without_sftp_the_old_protocol_serves(old_fashioned: EmbeddedNode, source: Path) -> None:
    outcome = await move(source, old_fashioned, "scp")
    assert_delivered(outcome, source, old_fashioned)
    assert [(attempt.transport, attempt.error) for attempt in outcome.attempts] == [("scp", None)]


async def test_with_neither_it_says_so(source: Path) -> None:
    with EmbeddedNode(Faults(hidden_tools=frozenset({"sftp-server", "scp"}))) as bare:
        with pytest.raises(rrmove.TransportError, match="scp") as caught:
            await move(source, bare, "scp")
        assert caught.value.outcome is not None
        assert [attempt.failure for attempt in caught.value.outcome.attempts] == ["unusable"]
        assert not (bare.home / source.name).exists()


async def test_it_continues_what_chunked_began(embedded: EmbeddedNode, source: Path) -> None:
    await cancelled_at(5 * MB, source, embedded, "chunked", 10 * MB)
    outcome = await move(source, embedded, "scp")
    assert_delivered(outcome, source, embedded)
    assert [attempt.transport for attempt in outcome.attempts] == ["scp"]
    assert outcome.bytes_reused >= 2 << 20
    # Only what chunked's lanes had verified behind the first hole is sent again.
    assert outcome.bytes_sent < SIZE


async def test_connections_that_are_reset_cost_no_byte_that_was_there(embedded: EmbeddedNode, source: Path) -> None:
    def cut(event: Event) -> None:
        if isinstance(event, AttemptStarted):
            embedded.faults = Faults(reset_after_bytes=6 * MB)

    outcome = await move(source, embedded, "scp", on_event=cut)
    assert_delivered(outcome, source, embedded)
    assert embedded.resets >= 1
    assert len(outcome.attempts) >= 2
    assert {attempt.transport for attempt in outcome.attempts} == {"scp"}
    assert outcome.attempts[0].failure == "transient"
    assert sum(attempt.gained for attempt in outcome.attempts) == SIZE
    assert outcome.attempts[-1].bytes_sent == outcome.attempts[-1].gained < SIZE  # it did not start over


@pytest.mark.parametrize("node", ["embedded", "old_fashioned"])
async def test_more_behind_a_hole_than_before_it_is_written_over_in_place(
    node: str, source: Path, request: pytest.FixtureRequest
) -> None:
    there: EmbeddedNode = request.getfixturevalue(node)
    (there.home / source.name).unlink(missing_ok=True)
    await cancelled_at(4 * MB, source, there, "chunked", 10 * MB)
    part = parts(there)[0]
    content = bytearray(source.read_bytes())
    content[:4096] = bytes(4096)
    part.write_bytes(content)  # all is there but the very beginning
    inode = part.stat().st_ino
    sizes = set[int]()

    def look(_: Event) -> None:
        if part.exists():
            sizes.add(part.stat().st_size)

    outcome = await move(source, there, "scp", rate=20 * MB, on_event=look)
    assert_delivered(outcome, source, there)
    assert (there.home / source.name).stat().st_ino == inode
    assert sizes == {SIZE}  # never cut
    assert outcome.bytes_reused == SIZE - (2 << 20)


async def test_cancelled_it_leaves_no_process(embedded: EmbeddedNode, source: Path) -> None:
    await cancelled_at(2 * MB, source, embedded, "scp", 4 * MB)
    assert until(lambda: not processes_with(str(embedded.home)))
    assert until(lambda: not processes_with(str(embedded.ssh_config)))


async def test_a_rate_limit_is_kept(shared: EmbeddedNode, tmp_path: Path) -> None:
    path = tmp_path / "small.bin"
    path.write_bytes(os.urandom(2 * MB))
    outcome = await move(path, shared, "scp", rate=2 * MB)
    assert_delivered(outcome, path, shared)
    assert outcome.attempts[0].seconds > 0.5


async def test_a_full_disk_is_fatal(source: Path) -> None:
    with EmbeddedNode(Faults(disk_bytes=4 * MB)) as small:
        with pytest.raises(rrmove.Fatal):
            await move(source, small, "scp")
        assert not (small.home / source.name).exists()


@pytest.mark.parametrize("name", ODD_NAMES[1:10:2], ids=range(5))  # the suite has more of them
@pytest.mark.parametrize("node", ["shared", "old_fashioned"])
async def test_odd_names(name: str, node: str, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    there: EmbeddedNode = request.getfixturevalue(node)
    path = tmp_path / name
    path.write_bytes(os.urandom(70_000))
    outcome = await move(path, there, "scp")
    assert_delivered(outcome, path, there)
    assert [(attempt.transport, attempt.error) for attempt in outcome.attempts] == [("scp", None)]
    assert not (there.home / "oops").exists()


@pytest.mark.parametrize(
    ("answers", "reason"),
    [
        ({}, None),
        ({CLEAN.name: "yes", TOOLS.name: "have sftp-server\nlisted\n"}, None),
        ({TOOLS.name: "have scp\nlisted\n"}, None),
        ({TOOLS.name: "have rsync\nlisted\n"}, "the node has neither an sftp server nor scp"),
        ({CLEAN.name: "no"}, "the connection alters bytes, which neither sftp nor scp survives"),
    ],
)
def test_who_is_refused(embedded: EmbeddedNode, source: Path, answers: dict[str, str], reason: str | None) -> None:
    request = rrmove.Request(source=Source.of(source), node=node_of(embedded), options=Options())
    assert SCP().refuse(request, Facts(answers)) == reason
