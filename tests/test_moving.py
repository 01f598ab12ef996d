"""The straight line as a whole, against embedded nodes: what only shows when all the rooms work together."""

from __future__ import annotations

import asyncio
import hashlib
import os
from dataclasses import replace
from typing import TYPE_CHECKING, cast

import pytest

import rrmove
from rrmove.landing import PartFile, Place
from rrmove.manifest import Manifest, build
from rrmove.model import Node, Request, Source, SSHSettings
from rrmove.testing import EmbeddedNode, Faults

if TYPE_CHECKING:
    from pathlib import Path

    from rrmove.events import Event
    from rrmove.session import Session


def node_of(embedded: EmbeddedNode) -> Node:
    return Node(name="embedded", ssh=SSHSettings(config=embedded.ssh_config))


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "model.pth"
    path.write_bytes(os.urandom(10_000_000))
    return path


async def test_a_part_file_made_anew_is_never_taken_for_the_old_one(source: Path) -> None:
    """The file system may give a new part the inode that the wiped one had."""
    manifest = build(source, source.stat().st_size)
    request = Request(source=Source.of(source), node=Node(name="n"))
    place = Place("/t", "/p.rrmove-part", "/p.rrmove-journal", "/", "/", 1 << 40, True, None, None, None, 0)
    part = PartFile(cast("Session", None), request, manifest, replace(place, opened={"ino": "1:2", "fresh": True}))
    part._verified = bytearray(b"\1" * manifest.count)
    assert not part.missing
    part._is_open({"ino": "1:2", "fresh": True})
    assert sum(item.length for item in part.missing) == manifest.size


@pytest.mark.parametrize("ssh", ["openssh", "paramiko"])
@pytest.mark.parametrize(
    "faults",
    [
        Faults(),
        Faults(reset_after_bytes=2_000_000),
        Faults(reset_after_seconds=(1.0, 2.0), rate=4e6),
        Faults(silent_after_seconds=1.0, rate=8e6),
        Faults(hidden_tools=frozenset({"python3"}), reset_after_bytes=4_000_000),
        Faults(rtt=0.05, reset_after_bytes=700_000),
        Faults(refuse_logins=2),
    ],
    ids=["well", "bytes", "seconds", "silence", "floor", "short", "refusing"],
)
async def test_the_file_arrives_whole_whatever_the_link_does(source: Path, faults: Faults, ssh: str) -> None:
    with EmbeddedNode(faults) as embedded:
        outcome = await rrmove.move(source, node_of(embedded), ssh=ssh, only=("chunked",))
        assert outcome.ok
        assert sha256(embedded.home / source.name) == sha256(source)
        assert [path.name for path in embedded.home.iterdir()] == [source.name]


async def test_a_second_move_of_the_same_file_sends_nothing(source: Path) -> None:
    with EmbeddedNode() as embedded:
        await rrmove.move(source, node_of(embedded))
        again = await rrmove.move(source, node_of(embedded))
        assert again.ok
        assert (again.bytes_sent, again.bytes_reused) == (0, source.stat().st_size)


async def test_a_cancelled_move_is_continued(source: Path) -> None:
    with EmbeddedNode() as embedded:
        half = asyncio.Event()

        def watch(event: Event) -> None:
            if isinstance(event, rrmove.Progressed) and event.durable > 5_000_000:
                half.set()

        task = asyncio.create_task(rrmove.move(source, node_of(embedded), limit_rate=4e6, on_event=watch))
        await half.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert not (embedded.home / source.name).exists()
        outcome = await rrmove.move(source, node_of(embedded))
        assert outcome.bytes_reused >= 2_000_000
        assert outcome.bytes_sent + outcome.bytes_reused <= 1.1 * source.stat().st_size
        assert sha256(embedded.home / source.name) == sha256(source)


async def test_a_source_that_changes_midway_is_never_committed(source: Path) -> None:
    with EmbeddedNode() as embedded:
        (embedded.home / source.name).write_bytes(b"old")

        def watch(event: Event) -> None:
            if isinstance(event, rrmove.Progressed) and event.durable > 3_000_000:
                with source.open("r+b") as file:
                    file.seek(9_000_000)
                    file.write(b"changed")

        with pytest.raises(rrmove.Fatal, match="was changed while"):
            await rrmove.move(source, node_of(embedded), limit_rate=10e6, on_event=watch)
        assert (embedded.home / source.name).read_bytes() == b"old"


async def test_refusals_rest_on_what_is_so_now(source: Path) -> None:
    """Facts are remembered for a day; a transport is not refused for what was so yesterday."""
    with EmbeddedNode(Faults(hidden_tools=frozenset({"rsync"}))) as embedded:
        await rrmove.move(source, node_of(embedded))
        (embedded.home / source.name).unlink()
        with pytest.raises(rrmove.NoRouteError):
            await rrmove.move(source, node_of(embedded), only=("rsync",))
        embedded.faults = Faults()
        assert (await rrmove.move(source, node_of(embedded), only=("rsync",))).ok


async def test_the_rate_limit_holds(source: Path) -> None:
    with EmbeddedNode() as embedded:
        outcome = await rrmove.move(source, node_of(embedded), limit_rate=5e6, only=("chunked",))
        sending = sum(attempt.seconds for attempt in outcome.attempts)
        # Sent no quicker than allowed, but for the tenth of a second that may be saved up.
        assert sending >= (source.stat().st_size - 0.5e6) / 5e6 - 0.1


async def test_events_can_be_iterated(source: Path) -> None:
    with EmbeddedNode() as embedded:
        names = [type(event).__name__ async for event in rrmove.watch(source, node_of(embedded))]
    assert names[-1] == "Finished"
    assert names.index("Planned") < names.index("AttemptStarted") < names.index("Verified") < names.index("Committed")


async def test_leaving_the_loop_early_cancels_the_move(source: Path) -> None:
    with EmbeddedNode() as embedded:
        events = rrmove.watch(source, node_of(embedded), limit_rate=1e6)
        async for event in events:
            if isinstance(event, rrmove.AttemptStarted):
                break
        await events.aclose()
        assert not (embedded.home / source.name).exists()


def test_it_can_be_called_without_an_event_loop(source: Path) -> None:
    with EmbeddedNode() as embedded:
        assert rrmove.move_sync(source, node_of(embedded)).ok


async def test_bytes_that_are_wrong_every_time_are_never_committed(
    source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The node's disk is made to lie about one chunk for ever: its digest never is what was sent."""
    real = Manifest.digest
    lie = hashlib.sha256(b"something else").hexdigest()
    monkeypatch.setattr(Manifest, "digest", lambda self, i: lie if i == 1 else real(self, i))
    monkeypatch.setattr(
        PartFile, "_source_digest", lambda self, item: self._manifest.digest(item.start // self._manifest.grain)
    )
    with EmbeddedNode() as embedded:
        with pytest.raises(rrmove.IntegrityError) as caught:
            await rrmove.move(source, node_of(embedded))
        assert caught.value.exit_code == 4
        names = [path.name for path in embedded.home.iterdir()]
        assert source.name not in names
        assert any(name.endswith(".rrmove-bad") for name in names)
