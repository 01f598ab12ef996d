"""rrmove-eventlog, installed beside rrmove as its users have it, in a real move."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

import rrmove
from rrmove.model import Node, SSHSettings
from rrmove.testing import EmbeddedNode, Faults

if TYPE_CHECKING:
    from pathlib import Path

    import pytest


def test_a_move_is_told_from_its_plan_to_its_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source, log = tmp_path / "model.pth", tmp_path / "log.jsonl"
    source.write_bytes(bytes(range(256)) * 20_000)
    monkeypatch.setenv("RRMOVE_EVENT_LOG", str(log))
    with EmbeddedNode(Faults(reset_after_bytes=2_000_000)) as embedded:
        rrmove.move_sync(source, Node(name="embedded", ssh=SSHSettings(config=embedded.ssh_config)))
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    names = [line["event"] for line in lines]
    assert names.index("Planned") < names.index("AttemptStarted") < names.index("Verified") < names.index("Committed")
    assert (names[-1], lines[-1]["ok"]) == ("Finished", True)
    assert "ConnectionLost" in names


def test_without_the_variable_nothing_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RRMOVE_EVENT_LOG", raising=False)
    monkeypatch.chdir(tmp_path)
    import rrmove_eventlog

    rrmove_eventlog.rrmove_event(rrmove.Waiting("node", 1.0, "why"))
    assert not list(tmp_path.iterdir())
