"""rrmove-prefer, installed beside rrmove as its users have it."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import pytest
from rrmove_prefer import rrmove_plan

import rrmove
from rrmove.testing import EmbeddedNode

if TYPE_CHECKING:
    from pathlib import Path

SECONDS = {"chunked": 1.0, "rsync": 2.0, "scp": 3.0, "http": math.inf}
PLAN = rrmove.Plan(tuple(rrmove.Step(name, rrmove.Estimate(each), "why") for name, each in SECONDS.items()))


def planned(tmp_path: Path, **extra: object) -> rrmove.Plan | None:
    path = tmp_path / "model.pth"
    path.write_bytes(b"x")
    node = rrmove.Node(name="gpu-3", extra=extra)
    return rrmove_plan(rrmove.Request(source=rrmove.Source.of(path), node=node), PLAN)


@pytest.mark.parametrize(
    ("extra", "order"),
    [
        ({}, None),
        ({"prefer": []}, None),
        ({"prefer": ["scp"]}, ["scp", "chunked", "rsync", "http"]),
        ({"prefer": ["scp", "rsync"]}, ["scp", "rsync", "chunked", "http"]),
        ({"prefer": ["http", "teleport"]}, ["chunked", "rsync", "scp", "http"]),
        ({"avoid": ["chunked"]}, ["rsync", "scp", "http"]),
        ({"avoid": ["chunked", "http"], "prefer": ["scp", "chunked"]}, ["scp", "rsync"]),
    ],
)
def test_the_order(tmp_path: Path, extra: dict[str, object], order: list[str] | None) -> None:
    plan = planned(tmp_path, **extra)
    assert (plan and [step.transport for step in plan.steps]) == order
    if plan is not None:
        avoided = extra.get("avoid", [])
        assert [refusal.transport for refusal in plan.refusals] == avoided


@pytest.mark.parametrize("value", ["rsync", [1], {"a": 1}])
def test_nonsense_is_told(tmp_path: Path, value: object) -> None:
    with pytest.raises(ValueError, match="prefer of gpu-3 has to be a list"):
        planned(tmp_path, prefer=value)


def test_in_a_real_move(tmp_path: Path) -> None:
    source = tmp_path / "model.pth"
    source.write_bytes(b"x" * 100_000)
    with EmbeddedNode() as embedded:
        file = tmp_path / "rrmove.toml"
        file.write_text('[nodes.embedded]\nprefer = ["rsync"]\navoid = ["chunked"]\n')
        inventory = rrmove.load_inventory(file, ssh_config=embedded.ssh_config)
        outcome = rrmove.move_sync(source, "embedded", inventory=inventory)
    assert outcome.attempts[0].transport == "rsync"
    assert "is to be spared it" in {each.transport: each.reason for each in outcome.plan.refusals}["chunked"]
