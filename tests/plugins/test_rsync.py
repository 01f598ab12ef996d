"""rsync against an embedded node: whole files, resume in both directions, and what it must not stumble over."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

import rrmove
from rrmove.events import AttemptStarted, Event
from rrmove.model import Node
from rrmove.testing import EmbeddedNode, Faults
from tests.plugins.moves import MB, ODD_NAMES, assert_delivered, cancelled_at, move, node_of, parts
from tests.ssh.local import processes_with, until

pytestmark = [
    pytest.mark.usefixtures("own_experience"),
    pytest.mark.skipif(shutil.which("rsync") is None, reason="no rsync here"),
    pytest.mark.skipif(shutil.which("ssh") is None, reason="no OpenSSH client here"),
]

SIZE = 20 * MB


async def test_a_whole_file(embedded: EmbeddedNode, source: Path) -> None:
    outcome = await move(source, embedded)
    assert_delivered(outcome, source, embedded)
    assert [attempt.transport for attempt in outcome.attempts] == ["rsync"]
    assert outcome.attempts[0].gained == SIZE
    assert SIZE <= outcome.bytes_sent < 1.01 * SIZE
    assert outcome.bytes_reused == 0
    again = await move(source, embedded)
    assert again.ok
    assert (again.attempts, again.bytes_sent, again.bytes_reused) == ((), 0, SIZE)


async def test_it_continues_what_chunked_began(embedded: EmbeddedNode, source: Path) -> None:
    await cancelled_at(7 * MB, source, embedded, "chunked", 15 * MB)
    outcome = await move(source, embedded)
    assert_delivered(outcome, source, embedded)
    assert [attempt.transport for attempt in outcome.attempts] == ["rsync"]
    assert outcome.bytes_reused > 4 * MB  # a chunk that is not whole counts for nothing
    assert outcome.bytes_sent < SIZE - outcome.bytes_reused + 0.5 * MB


async def test_chunked_continues_what_it_began(embedded: EmbeddedNode, source: Path) -> None:
    await cancelled_at(8 * MB, source, embedded, "rsync", 8 * MB)
    assert until(lambda: not processes_with(parts(embedded)[0].name))
    outcome = await move(source, embedded, "chunked")
    assert_delivered(outcome, source, embedded)
    assert [attempt.transport for attempt in outcome.attempts] == ["chunked"]
    assert outcome.bytes_reused > 4 * MB
    assert outcome.bytes_sent <= SIZE - outcome.bytes_reused


async def test_holes_in_the_part_are_filled(embedded: EmbeddedNode, source: Path) -> None:
    await cancelled_at(10 * MB, source, embedded, "chunked", 20 * MB)
    part = parts(embedded)[0]
    with part.open("r+b") as file:  # a zombie's rubbish, in a chunk that had been verified
        file.seek(3 * MB)
        file.write(b"rubbish" * 1000)
    outcome = await move(source, embedded)
    assert_delivered(outcome, source, embedded)
    assert 0 < outcome.bytes_reused < SIZE


async def test_connections_that_are_reset_cost_no_byte_that_was_there(embedded: EmbeddedNode, source: Path) -> None:
    def cut(event: Event) -> None:
        if isinstance(event, AttemptStarted):
            embedded.faults = Faults(reset_after_bytes=9 * MB)

    outcome = await move(source, embedded, on_event=cut)
    assert_delivered(outcome, source, embedded)
    assert embedded.resets >= 2
    assert {attempt.transport for attempt in outcome.attempts} == {"rsync"}
    assert len(outcome.attempts) >= 3
    # A cut may come before rsync has written anything, but not every time.
    assert sum(attempt.gained > 0 for attempt in outcome.attempts) >= 2
    assert outcome.attempts[0].failure == "transient"
    assert sum(attempt.gained for attempt in outcome.attempts) == SIZE
    # What was cut off in the middle of a chunk is sent again, and the protocol costs a little.
    assert embedded.bytes_in < SIZE + 2.5 * MB * len(outcome.attempts)


async def test_cancelled_it_leaves_no_process(embedded: EmbeddedNode, source: Path) -> None:
    await cancelled_at(2 * MB, source, embedded, "rsync", 4 * MB)
    assert until(lambda: not processes_with(str(embedded.home)))
    assert until(lambda: not processes_with(str(embedded.ssh_config)))


async def test_a_rate_limit_is_kept(embedded: EmbeddedNode, tmp_path: Path) -> None:
    path = tmp_path / "small.bin"
    path.write_bytes(os.urandom(4 * MB))
    outcome = await move(path, embedded, rate=2 * MB)
    assert_delivered(outcome, path, embedded)
    assert outcome.attempts[0].seconds > 1.2


async def test_a_node_without_rsync_is_refused(source: Path) -> None:
    with EmbeddedNode(Faults(hidden_tools=frozenset({"rsync"}))) as embedded:
        with pytest.raises(rrmove.NoRouteError) as caught:
            await move(source, embedded)
        assert caught.value.exit_code == 3
        refusals = {refusal.transport: refusal.reason for refusal in caught.value.refusals}
        assert refusals["rsync"] == "the node has no rsync"
        assert caught.value.outcome is not None
        assert not caught.value.outcome.ok
        assert not (embedded.home / source.name).exists()


async def test_a_small_file_for_a_node_without_rsync_fails_as_well(tmp_path: Path) -> None:
    # It may not wait for the facts, and find out by trying.
    path = tmp_path / "small.bin"
    path.write_bytes(os.urandom(100))
    with EmbeddedNode(Faults(hidden_tools=frozenset({"rsync"}))) as embedded:
        with pytest.raises(rrmove.RRMoveError, match="rsync") as caught:
            await move(path, embedded)
        assert caught.value.outcome is not None
        assert not caught.value.outcome.ok
        assert not (embedded.home / path.name).exists()
        assert until(lambda: not processes_with(str(embedded.home)))


async def test_a_machine_without_rsync_is_refused(
    embedded: EmbeddedNode, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "ssh").symlink_to(str(shutil.which("ssh")))
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(rrmove.NoRouteError) as caught:
        await move(source, embedded)
    assert "no rsync on this machine" in str([refusal.reason for refusal in caught.value.refusals])


async def test_a_full_disk_is_fatal(source: Path) -> None:
    with EmbeddedNode(Faults(disk_bytes=8 * MB)) as embedded:
        (embedded.home / "model.bin").write_bytes(b"the old one")
        with pytest.raises(rrmove.Fatal):
            await move(source, embedded)
        assert (embedded.home / "model.bin").read_bytes() == b"the old one"


@pytest.mark.parametrize("name", ODD_NAMES, ids=range(len(ODD_NAMES)))
async def test_odd_names(shared: EmbeddedNode, tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    path.write_bytes(os.urandom(70_000))
    outcome = await move(path, shared)
    assert_delivered(outcome, path, shared)
    assert [attempt.transport for attempt in outcome.attempts] == ["rsync"]
    assert outcome.attempts[0].error is None
    assert not (shared.home / "oops").exists()


async def test_a_relative_source_and_a_directory_that_is_not_there(
    embedded: EmbeddedNode, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    path = Path("a:b.bin")
    path.write_bytes(os.urandom(70_000))
    node = node_of(embedded)
    outcome = await rrmove.move(path, Node(name=node.name, ssh=node.ssh, destination="new/dir/"), only=("rsync",))
    assert_delivered(outcome, path, embedded, "new/dir/a:b.bin")


@pytest.mark.parametrize("size", [0, 1, 2 << 20, (2 << 20) + 1])
async def test_any_size(shared: EmbeddedNode, tmp_path: Path, size: int) -> None:
    path = tmp_path / f"{size}.bin"
    path.write_bytes(os.urandom(size))
    assert_delivered(await move(path, shared), path, shared)
