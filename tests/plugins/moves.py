"""Moves to an embedded node by one transport, begun, cancelled and looked at on the disk."""

from __future__ import annotations

import asyncio
import os
from typing import TYPE_CHECKING

import pytest

import rrmove
from rrmove.events import Event, Progressed
from rrmove.model import Node, Outcome, SSHSettings

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from rrmove.testing import EmbeddedNode

MB = 1_000_000
ODD_NAMES = [
    "two words",
    "line\nfeed",
    "'single' and \"double\"",
    "$(touch oops) `touch oops`; touch oops",
    "-rf",
    "host:file",
    "star*[a]?",
    "back\\slash\\*",
    "ümläut ☃",
    os.fsdecode(b"latin-\xe9\xff"),
    "{a,b}",
    "~",
    "#hash",
]


def node_of(embedded: EmbeddedNode) -> Node:
    return Node(name="embedded", ssh=SSHSettings(host="embedded", config=embedded.ssh_config))


async def move(
    path: Path,
    embedded: EmbeddedNode,
    transport: str = "rsync",
    *,
    rate: float | None = None,
    on_event: Callable[[Event], None] | None = None,
) -> Outcome:
    return await rrmove.move(path, node_of(embedded), only=(transport,), limit_rate=rate, on_event=on_event)


async def cancelled_at(count: int, path: Path, embedded: EmbeddedNode, transport: str, rate: float) -> None:
    """Begin a move and cancel it once that many bytes are said to be there."""
    reached = asyncio.Event()

    def look(event: Event) -> None:
        if isinstance(event, Progressed) and event.durable >= count:
            reached.set()

    moving = asyncio.create_task(move(path, embedded, transport, rate=rate, on_event=look))
    await asyncio.wait({asyncio.create_task(reached.wait()), moving}, timeout=30, return_when="FIRST_COMPLETED")
    assert reached.is_set()
    assert not moving.done()
    moving.cancel()
    with pytest.raises(asyncio.CancelledError):
        await moving
    assert not (embedded.home / path.name).exists()
    assert len(parts(embedded)) == 1


async def until(condition: Callable[[], bool], seconds: float = 10.0) -> None:
    """Wait for what comes soon on an idle machine and later on a busy one."""
    async with asyncio.timeout(seconds):
        while not condition():
            await asyncio.sleep(0.01)


def holds(embedded: EmbeddedNode, data: bytes, name: str = "model.pth") -> bool:
    """Tell whether a file with these bytes is all that is in the node's home."""
    return [path.name for path in embedded.home.iterdir()] == [name] and (embedded.home / name).read_bytes() == data


def parts(embedded: EmbeddedNode) -> list[Path]:
    return list(embedded.home.rglob(".*.rrmove-part"))


def assert_delivered(outcome: Outcome, path: Path, embedded: EmbeddedNode, target: str | None = None) -> None:
    there = embedded.home / (target or path.name)
    assert outcome.ok
    assert outcome.destination == str(there)
    assert there.read_bytes() == path.read_bytes()
    assert there.stat().st_mode & 0o777 == path.stat().st_mode & 0o777
    assert there.stat().st_mtime_ns == path.stat().st_mtime_ns
    assert [found.name for found in embedded.home.rglob("*") if "rrmove" in found.name] == []
