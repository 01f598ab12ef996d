"""Moves that are scripted: what `move()` emits and how it ends is the test's to say."""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

from rrmove.events import AttemptStarted, Committed, ConnectionLost, Event, Finished, Probed, Progressed, Verified
from rrmove.model import Attempt, Node, Outcome, Plan, Refusal, Request, Source

if TYPE_CHECKING:
    from collections.abc import Callable

    import pytest

ROOT = Path(__file__).parents[2]
DIGEST = "sha256-tree:" + "ab" * 32
NODES = """
[nodes.gpu-3]
host = "127.0.0.9"
port = 1
dest = "/data"
tags = ["gpu"]
[nodes.gpu-4]
host = "127.0.0.10"
port = 1
tags = ["gpu", "solo"]
"""


@dataclass(frozen=True)
class Said:
    """How a command ended and what it printed."""

    code: int
    out: str
    err: str


@dataclass
class Script:
    """What the scripted `move()` does; `calls` are what it was called with."""

    ends: Callable[[Source, Node], Outcome] = field(default_factory=lambda: outcome_of)
    raises: BaseException | None = None
    events: Callable[[Source, Node], list[Event]] = field(default_factory=lambda: events_of)
    calls: list[dict[str, object]] = field(default_factory=list)

    async def move(self, source: Path, target: Node, **options: object) -> Outcome:
        self.calls.append({"source": source, "target": target, **options})
        emit = options["on_event"]
        assert callable(emit)
        seen = Source.of(source)
        for event in self.events(seen, target):
            emit(event)
        if self.raises is not None:
            raise self.raises
        outcome = self.ends(seen, target)
        emit(Finished(target.name, outcome))
        return outcome


def events_of(source: Source, node: Node) -> list[Event]:
    half = source.size // 2
    return [
        Probed(node.name, {"tools": "python3"}, 0.4),
        AttemptStarted(node.name, "chunked", source.size, source.size),
        Progressed(node.name, half, source.size),
        ConnectionLost(node.name, "chunked", "reset by peer", 5.2, 6_100_000),
        Progressed(node.name, source.size, source.size),
        Verified(node.name, DIGEST),
        Committed(node.name, f"/data/{source.name}"),
    ]


def outcome_of(source: Source, node: Node) -> Outcome:
    return Outcome(
        request=Request(source=source, node=node, destination=node.destination or ""),
        plan=Plan((), (Refusal("http", "port 8780 is filtered"),)),
        attempts=(Attempt(transport="chunked", started=1.0, seconds=2.0, bytes_sent=source.size, gained=source.size),),
        destination=f"/data/{source.name}",
        digest=DIGEST,
        bytes_sent=source.size,
        seconds=2.0,
    )


def already_there(source: Source, node: Node) -> Outcome:
    return Outcome(
        request=Request(source=source, node=node),
        plan=Plan(()),
        destination=f"/data/{source.name}",
        digest=DIGEST,
        bytes_reused=source.size,
        seconds=0.5,
    )


def replace(monkeypatch: pytest.MonkeyPatch, name: str, **parts: object) -> None:
    module = ModuleType(name)
    vars(module).update(parts)
    monkeypatch.setitem(sys.modules, name, module)


def environment(**more: str) -> dict[str, str]:
    """Give what a process needs to import what this one can."""
    folders = [str(ROOT), *(folder for folder in sys.path if folder)]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(folders), **more}
